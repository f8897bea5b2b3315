"""Jobs that stand alone, and `merge`: together they give what one machine gives in one go."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from make_checkpoint import Shape, make_checkpoint
from msgspec.structs import replace
from quantize.making import flip
from support import PROJECT, Cli, contents, error_of, install
from vallex_golden import CHECKPOINT as VALLEX

from valle_convert.quantize.manifest import MANIFEST, ManifestFile, read_manifest, write_manifest

MINIATURE = PROJECT / "miniature" / "miniature.sft"
QUICK = ("--utterances", 1, "--threads", 1)


def timeless(folder: Path) -> dict[str, Any]:
    """The same, but for milliseconds."""

    def without_speed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_speed(one) for key, one in value.items() if key != "speed"}
        return value

    return {
        name: without_speed(json.loads(data)) if name.endswith(".measurements.json") else data
        for name, data in contents(folder).items()
    }


def rows(report: Path) -> list[dict[str, Any]]:
    return [one | {"speed": None} for one in json.loads(report.read_text())["files"]]


@pytest.mark.parametrize("checkpoint", [MINIATURE, VALLEX], ids=["miniature", "vallex"])
def test_jobs_and_merge_give_what_one_machine_gives(
    checkpoint: Path, cli: Cli, tmp_path: Path
) -> None:
    source, matrix, reference = (tmp_path / one for one in ("m.gguf", "i.gguf", "r.safetensors"))
    assert cli(checkpoint, source, "--outtype", "f16", "--verify", "none").code == 0
    assert cli("imatrix", checkpoint, "-o", matrix, "--utterances", 1).code == 0
    compared, made = ("--checkpoint", checkpoint, *QUICK), ("--imatrix", matrix, "--threads", 1)
    limits = ("--max-kl", "Q8_0=0.5,Q4_0=2")
    one, jobs, out = (tmp_path / name for name in ("one", "jobs", "out"))
    assert cli("quantize", source, one, "--types", "Q8_0,Q4_0", *made).code == 0
    saved = ("--save-reference", reference, "--report", tmp_path / "one.json")
    result = cli("evaluate", one, *compared, *saved, *limits)
    assert result.code == 0, result
    for kind in ("Q8_0", "Q4_0"):
        job = ("quantize", source, jobs / kind, "--types", kind, *made)
        assert cli(*job).code == 0
        first = cli("evaluate", jobs / kind, *compared, "--reference", reference)
        assert first.code == 0
        assert "converting" not in first.err
        before = contents(jobs / kind)
        assert "--resume" in error_of(cli(*job), 2)
        assert cli(*job, "--resume").code == 0
        assert "kept" in cli("evaluate", jobs / kind, *compared, "--reference", reference).err
        assert contents(jobs / kind) == before  # the same job twice changes nothing
    report = tmp_path / "out.json"
    merged = cli("merge", jobs / "Q4_0", jobs / "Q8_0", out, *limits, "--report", report)
    assert merged.code == 0, merged
    assert timeless(out) == timeless(one)
    assert rows(report) == rows(tmp_path / "one.json")
    assert cli("check-manifest", out, "--require-passed").code == 0
    # What one machine made stays as it is, byte for byte, and so does what was merged.
    assert cli("merge", one, tmp_path / "again").code == 0
    assert contents(tmp_path / "again") == contents(one)
    assert cli("merge", jobs / "Q4_0", jobs / "Q8_0", out, *limits).code == 0
    assert timeless(out) == timeless(one)


def test_a_release_grows_and_fails_as_a_whole(cli: Cli, evaluated: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli("merge", evaluated, out).code == 0
    failed = cli("merge", evaluated, out, "--max-kl", "Q4_0=1e-9", "--max-kl", "Q8_0=1")
    assert failed.code == 1
    assert "FAILED: wide-Q4_0.gguf: KL mean" in failed.out
    assert "wide-Q4_0.gguf: failed" in cli("check-manifest", out, "--require-passed").out
    assert "Q6_K" in error_of(cli("merge", evaluated, out, "--max-kl", "Q6_K=1"), 2)


def edited(folder: Path, what: str) -> None:
    """Make one of two files of another tool, of other options and the like, by what is recorded."""
    if what == "data":
        path = folder / "wide-Q8_0.measurements.json"
        found = json.loads(path.read_text())
        found["compared"]["inputs"]["data"] = "0" * 64
        path.write_text(json.dumps(found))
        return
    changes: dict[str, Callable[[ManifestFile], dict[str, Any]]] = {
        "tool": lambda one: {"tool": {**one.tool, "version": one.name}},
        "options": lambda one: {"arguments": (*one.arguments, "--leave-output-tensor")},
        "source": lambda one: {"source_sha256": one.sha256},
        "importance matrix": lambda one: {"imatrix_sha256": one.sha256},
    }
    listed = [
        replace(one, **changes[what](one))
        if what == "importance matrix" or one.kind == "Q8_0"
        else one
        for one in read_manifest(folder / MANIFEST)
    ]
    write_manifest(folder, listed)


@pytest.mark.parametrize("what", ["tool", "options", "source", "importance matrix", "data"])
def test_what_was_not_made_in_one_way_is_refused_and_nothing_is_left(
    what: str, cli: Cli, evaluated: Path, tmp_path: Path
) -> None:
    edited(evaluated, what)
    found = error_of(cli("merge", evaluated, tmp_path / "out"), 2)
    words = (
        f"{evaluated / 'wide-Q8_0.gguf'} and {evaluated / 'wide-Q4_0.gguf'} differ in the {what}"
    )
    assert words in found
    if what == "options":
        assert "(--leave-output-tensor, nothing)" in found
    assert not (tmp_path / "out").exists()


def test_files_made_with_other_options_are_refused(
    cli: Cli,
    made: Path,
    checkpoint_256: Path,
    gguf_256: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("imatrix", checkpoint_256, "-o", "i.gguf", "--utterances", 1).code == 0
    run = ("--types", "Q5_0", "--threads", 1)
    for option, value, words in (
        ("--name-files", "convention", "the key general.basename"),
        ("--quantized-by", "me", "the key general.quantized_by"),
        ("--base-model", "me/base", "the key general.base_model.0.repo_url"),
        ("--imatrix", "i.gguf", "the use of a matrix"),
    ):
        assert cli("quantize", gguf_256, words, *run, option, value).code == 0
        assert f"differ in {words}" in error_of(cli("merge", made, words, "out"), 2)
    automatic = ("quantize", gguf_256, "auto", "--types", "Q2_K_S", "--checkpoint", checkpoint_256)
    assert cli(*automatic, "--threads", 1).code == 0
    assert cli("merge", made, "auto", "out").code == 0


def test_other_checkpoints_and_other_bytes_are_refused(
    cli: Cli, evaluated: Path, tmp_path: Path
) -> None:
    other, made = tmp_path / "wide.sft", tmp_path / "other"
    make_checkpoint(other, Shape(dim=256, heads=4, layers=2, levels=3, seed=2))
    assert cli("quantize", other, made, "--types", "Q5_0,Q8_0", "--threads", 1).code == 0
    run = ("merge", evaluated, made, tmp_path / "out")
    assert "different files of one name" in error_of(cli(*run), 2)
    write_manifest(made, [one for one in read_manifest(made / MANIFEST) if one.kind == "Q5_0"])
    (made / "wide-Q8_0.gguf").unlink()
    assert "wide-Q4_0.gguf differ in the checkpoint" in error_of(cli(*run), 2)
    path = evaluated / "wide-Q8_0.gguf"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert f"{path}: sha256" in error_of(cli("merge", evaluated, tmp_path / "out"), 2)
    assert not (tmp_path / "out").exists()


def test_a_merge_that_fails_at_its_end_leaves_what_was_there(
    cli: Cli, evaluated_256: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for name in ("SHA256SUMS", "manifest.json", "wide-Q8_0.measurements.json"):
        (out / name).mkdir(parents=True)
        error_of(cli("merge", evaluated_256, out), 2)
        assert [one.name for one in out.iterdir()] == [name]
        (out / name).rmdir()
    stray = out / "wide-Q6_K.gguf"
    shutil.copy(evaluated_256 / "wide-Q8_0.gguf", stray)
    assert "no manifest lists: wide-Q6_K.gguf" in cli("merge", evaluated_256, out).err
    mine = tmp_path / "mine" / "wide-Q8_0.gguf"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    assert "exists" in error_of(cli("merge", evaluated_256, mine.parent), 2)
    assert contents(mine.parent) == {"wide-Q8_0.gguf": b"mine"}


def test_what_was_not_measured_is_merged_but_not_judged(
    cli: Cli, made: Path, tmp_path: Path
) -> None:
    assert cli("merge", made, tmp_path / "out").code == 0
    assert contents(tmp_path / "out") == contents(made)
    words = error_of(cli("merge", made, tmp_path / "o", "--max-kl", 1), 2)
    assert "evaluate" in words
    assert "among the folders" in error_of(cli("merge", made, made), 2)


def test_the_reference_of_something_else_is_refused(
    cli: Cli, made: Path, checkpoint_256: Path, tmp_path: Path
) -> None:
    path = tmp_path / "r.safetensors"
    files = (made, "--types", "Q8_0", "--checkpoint", checkpoint_256, "--threads", 1)
    run = ("evaluate", *files, "--utterances", 1)
    assert cli(*run, "--save-reference", path).code == 0
    assert "exists" in error_of(cli(*run, "--save-reference", path), 2)
    found = error_of(cli(*run, "--utterances", 2, "--reference", path), 2)
    assert "differs in its inputs (data)" in found
    flip(path)
    assert "damaged" in error_of(cli(*run, "--reference", path), 2)
    shutil.copy(checkpoint_256, path)
    assert "is not a reference file" in error_of(cli(*run, "--reference", path), 2)


@pytest.fixture
def snakemake(tmp_path: Path) -> list[str]:
    """The command of docs/scale.md in `tmp_path`, over two families, with this very code."""
    config = {
        "checkpoints": {"small": str(MINIATURE), "x": str(VALLEX)},
        "types": ["Q8_0", "Q4_0"],
        "limits": "--max-kl Q8_0=0.5,Q4_0=2",
    }
    example = yaml.safe_load((PROJECT / "workflow" / "config.yaml").read_text())
    assert config.keys() <= example.keys()
    (tmp_path / "workflow").mkdir()
    (tmp_path / "workflow" / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.copy(PROJECT / "workflow" / "Snakefile", tmp_path / "workflow")
    install(tmp_path / "bin")
    lines = (PROJECT / "docs" / "scale.md").read_text().splitlines()
    command = next(line for line in lines if line.startswith("snakemake ") and "--cores" in line)
    return [sys.executable, "-m", *command.split()]


def start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finished(command: list[str], folder: Path) -> str:
    process = start(command, folder)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    return out


def test_the_workflow_plans_every_job(snakemake: list[str], tmp_path: Path) -> None:
    publishes = ("--config", "publish={small: me/small}")
    planned = finished([*snakemake, "--dry-run", *publishes], tmp_path)
    counts = dict(line.split() for line in planned.splitlines() if len(line.split()) == 2)
    jobs = {"convert": 2, "matrix": 2, "reference": 2, "quantize": 4, "evaluate": 4, "merge": 2}
    jobs |= {"publish": 1}
    assert {name: int(counts[name]) for name in jobs} == jobs


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ("publish={other: me/other}", "publish names other, which is not among"),
        ("types=[q8_0]", "The type q8_0 has lower-case letters; write Q8_0."),
    ],
)
def test_a_wrong_config_is_refused_in_a_sentence(
    snakemake: list[str], tmp_path: Path, changes: str, words: str
) -> None:
    process = start([*snakemake, "--dry-run", "--config", changes], tmp_path)
    out, _ = process.communicate()
    assert process.returncode == 1
    assert words in out


@pytest.mark.slow
def test_a_workflow_that_was_killed_ends_as_one_machine_does(
    snakemake: list[str], cli: Cli, tmp_path: Path
) -> None:
    process = start(snakemake, tmp_path)
    while not list(tmp_path.glob("build/*/*/manifest.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finished([*snakemake, "--unlock"], tmp_path)
    finished([*snakemake, "--rerun-incomplete"], tmp_path)
    assert not list(tmp_path.glob("**/.valle-convert-*"))
    assert "Nothing to be done" in finished(snakemake, tmp_path)
    for name, checkpoint in (("small", MINIATURE), ("x", VALLEX)):
        source, matrix = tmp_path / f"{name}.gguf", tmp_path / f"{name}-imatrix.gguf"
        assert cli(checkpoint, source, "--outtype", "f16").code == 0
        assert cli("imatrix", checkpoint, "-o", matrix).code == 0
        made = ("--imatrix", matrix, "--threads", 1)
        one = tmp_path / "one" / name
        assert cli("quantize", source, one, "--types", "Q8_0,Q4_0", *made).code == 0
        compared = ("--checkpoint", checkpoint, "--threads", 1)
        assert cli("evaluate", one, *compared, "--max-kl", "Q8_0=0.5,Q4_0=2").code == 0
        released = timeless(tmp_path / "release" / name)
        del released[".snakemake_timestamp"]  # the engine's own
        assert released == timeless(one)
