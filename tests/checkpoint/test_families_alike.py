"""What the command line tells of a checkpoint and its files, of every family alike."""

import json
import shutil
from pathlib import Path

import pytest
from checkpoint.containers import write_shards
from checkpoint.small_hub import SmallHub
from support import GOLDEN_VERSION_7, Cli, error_of, golden_checkpoint
from vallex_golden import CHECKPOINT as VALLEX

from valle_convert import plan_conversion, read_checkpoint, write_gguf

VERSION_7 = golden_checkpoint(GOLDEN_VERSION_7)
CHECKPOINTS = {
    "versions 5 and 6": golden_checkpoint("ar-nar-len"),
    "VALL-E X": VALLEX,
    "version 7": VERSION_7,
}
EACH = pytest.mark.parametrize("checkpoint", CHECKPOINTS.values(), ids=CHECKPOINTS.keys())


#: What shows that the head is the table, which headers alone do not.
TIED = "nar_predict_layers.0.weight"


def in_shards(checkpoint: Path, folder: Path, *, untied: bool = False) -> Path:
    """The same weights in two files of safetensors, with their index and config."""
    opened = read_checkpoint(checkpoint)
    folder.mkdir()
    arrays = {name: opened.tensors.read(name) for name in opened.tensors.specs}
    if untied and TIED in arrays:
        arrays[TIED] = arrays[TIED] + 1
    write_shards(folder, arrays)
    (folder / "config.yaml").write_text(json.dumps(dict(opened.config)))
    return folder


@EACH
def test_inspect_counts_all_shards_and_tells_what_is_left_out(
    checkpoint: Path, tmp_path: Path, cli: Cli
) -> None:
    folder = in_shards(checkpoint, tmp_path / "m")
    said = cli("inspect", folder, "--json")
    assert said.code == 0, said.err
    found, whole = json.loads(said.out), json.loads(cli("inspect", checkpoint, "--json").out)
    assert "safetensors, sharded" in found["kind"]
    assert found["n_bytes"] == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    for name in ("sizes", "behaviour", "rows", "notes"):
        assert found[name] == whole[name], name
    left_out = plan_conversion(checkpoint).description.dropped
    assert bool(left_out) == (checkpoint != VERSION_7)
    for one in left_out:
        assert f"left out when converted: {one.source} ({one.reason})" in found["notes"]


@EACH
def test_inspect_tells_where_on_the_hub_it_lies(
    checkpoint: Path, empty_hub: SmallHub, tmp_path: Path, cli: Cli
) -> None:
    files = in_shards(checkpoint, tmp_path / "m", untied=True)
    empty_hub.add("me/shards", {path.name: path.read_bytes() for path in files.iterdir()})
    empty_hub.add("me/file", {checkpoint.name: checkpoint.read_bytes()})
    for repository, local in (("me/shards", files), ("me/file", checkpoint)):
        said = cli("inspect", f"hf:{repository}", "--json")
        assert said.code == 0, said.err
        found = json.loads(said.out)
        commit = empty_hub.repositories[repository].branches["main"]
        assert found["provenance"]["repository"] == repository
        assert found["provenance"]["commit"] == commit
        assert f"hf:{repository} is at commit {commit}" in " ".join(found["notes"])
        assert found["path"] == f"hf:{repository}"
        same = json.loads(cli("inspect", local, "--json").out)
        for name in ("sizes", "behaviour", "tokenizer", "rows", "groups", "n_bytes"):
            assert found[name] == same[name], name
        assert found["notes"][1:] == same["notes"]


@pytest.mark.parametrize(
    ("checkpoint", "second", "kind"),
    [(VALLEX, "nar", "VALL-E X: nar."), (VERSION_7, "audio", "VALL-E of version 7: audio")],
    ids=["VALL-E X", "version 7"],
)
def test_a_part_of_a_set_is_looked_into_by_itself(
    checkpoint: Path, second: str, kind: str, tmp_path: Path, cli: Cli
) -> None:
    plan = plan_conversion(checkpoint)
    write_gguf(plan, tmp_path / "x.gguf")
    for part, path in zip(plan.files, plan.at(tmp_path / "x.gguf"), strict=True):
        alone = tmp_path / part / path.name
        alone.parent.mkdir()
        shutil.copy(path, alone)
        if path.name == "x.gguf":  # the others are missed
            assert f"x-{second}.gguf" in error_of(cli("inspect", alone), 2)
            continue
        said = cli("inspect", alone, "--json")
        assert said.code == 0, said.err
        found = json.loads(said.out)
        assert found["kind"].startswith(f"GGUF, {kind}")
        assert found["n_bytes"] == alone.stat().st_size
        assert sum(group["n_tensors"] for group in found["groups"]) == len(plan.files[part].tensors)
        assert found["provenance"]["valle.source.name"] == checkpoint.name
        assert "one part of a set: give its main file to see the whole" in found["notes"]
