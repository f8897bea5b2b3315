"""A folder of quantized files gets names, a card and one commit, which the hub has bit for bit."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkpoint.small_hub import SmallHub
from huggingface_hub import constants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_checkpoint import Shape, make_checkpoint
from quantize.conftest import Family
from quantize.making import flip
from support import Cli, contents, error_of
from vallex_golden import CHECKPOINT, set_paths

from valle_convert import plan_conversion, read_checkpoint, write_gguf
from valle_convert.errors import InputError
from valle_convert.families.bundle import plan_bundle
from valle_convert.families.family import Choices
from valle_convert.gguf_file.metadata import GeneralMetadata
from valle_convert.quantize.evaluate import FileSelection, evaluate
from valle_convert.quantize.identity import Identity, base_name, convention_name
from valle_convert.quantize.limits import Gates
from valle_convert.quantize.manifest import read_manifest, write_manifest
from valle_convert.quantize.measurements import measurements_in
from valle_convert.quantize.options import MakeOptions, MeasureOptions
from valle_convert.quantize.publish import card_of
from valle_convert.quantize.release import read_release
from valle_convert.quantize.run import quantize
from valle_convert.quantize.types import parse_types

# The library gives its HTTP client files in a way that the client does not like any more.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "someone/VALL-E-random-GGUF"


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three types of a small random network, named by the convention, measured."""
    folder = tmp_path_factory.mktemp("published")
    checkpoint, source = folder / "random.sft", folder / "random.gguf"
    make_checkpoint(checkpoint, Shape(dim=256, heads=4, layers=1, levels=3, seed=1))
    metadata = GeneralMetadata({"license": "agpl-3.0", "description": "Random; says nothing."})
    write_gguf(plan_conversion(checkpoint, Choices("f16", metadata=metadata)), source)
    identity = Identity("convention", "Someone", "ecker/vall-e")
    quantize(
        source, folder / "out", MakeOptions(parse_types("Q8_0,Q4_K_M,Q2_K"), identity=identity)
    )
    given = FileSelection((folder / "out",), checkpoint=read_checkpoint(checkpoint))
    evaluate(given, Gates(), MeasureOptions(n_utterances=1))
    return folder


@pytest.fixture
def folder(quantized: Path, tmp_path: Path) -> Path:
    """The folder as `evaluate` left it."""
    return Path(shutil.copytree(quantized / "out", tmp_path / "out"))


def change(folder: Path, kind: str, what: Callable[[dict[str, Any]], None]) -> None:
    """Change what was measured of the file of a type."""
    (path,) = folder.glob(f"*-{kind}.measurements.json")
    value = json.loads(path.read_text())
    what(value)
    path.write_text(json.dumps(value))


@pytest.fixture
def hub(empty_hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> SmallHub:
    empty_hub.add(REPO, {".gitattributes": b"*.gguf filter=lfs"})
    monkeypatch.setenv("HF_TOKEN", empty_hub.writer)
    return empty_hub


def front_matter(path: Path) -> dict[str, Any]:
    _, matter, _ = path.read_text(encoding="utf-8").split("---\n", 2)
    loaded: dict[str, Any] = yaml.safe_load(matter)
    return loaded


def table_of(path: Path) -> list[list[str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| `")]
    return [[cell.strip() for cell in row] for row in rows]


PUBLISHED = {
    "general.name": "ar+nar-len",
    "valle.checkpoint_version": 6,
    "general.size_label": "229M",
}


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (PUBLISHED, "VALL-E-ar-nar-len-229M-v6.0-Q8_0"),
        ({"general.name": "VALL-E mine/2", "general.version": "1.1"}, "VALL-E-mine-2-v1.1-Q8_0"),
        ({"general.basename": "Base", "general.finetune": "my voice"}, "Base-my-voice-Q8_0"),
        ({}, "VALL-E-Q8_0"),
    ],
)
def test_names_follow_from_the_keys(keys: dict[str, Any], name: str) -> None:
    assert convention_name(keys, "Q8_0") == name
    assert name.startswith(base_name(keys))


def test_a_dry_run_writes_the_card_only_which_says_what_was_measured(
    quantized: Path, folder: Path, hub: SmallHub, cli: Cli
) -> None:
    before, card = {*folder.iterdir()}, folder / "README.md"
    result = cli("publish", folder, REPO, "--dry-run", "--json")
    assert result.code == 0, result.err
    assert {*folder.iterdir()} == before | {card}
    assert json.loads(result.out)["commit"] is None
    # Nor does anything leave without a name.
    again = cli("publish", folder, "--force").err
    assert "nothing was sent" in again
    assert "no file was evaluated" not in again
    for measured in folder.glob("*.measurements.json"):
        measured.unlink()
    assert "no file was evaluated" in cli("publish", folder, "--force").err
    shutil.copytree(quantized / "out", folder, dirs_exist_ok=True)
    assert hub.requests == []
    assert cli("publish", folder, REPO, "--dry-run", "--force").code == 0
    matter = front_matter(card)
    assert matter["base_model"] == "ecker/vall-e"
    assert matter["base_model_relation"] == "quantized"
    assert matter["pipeline_tag"] == "text-to-speech"
    assert matter["license"] == "agpl-3.0"
    assert matter["language"] == ["en", "ja", "de", "fr", "zh", "ko"]
    assert {"gguf", "text-to-speech"} <= set(matter["tags"])
    rows = table_of(card)
    assert [row[1] for row in rows] == ["Q2_K", "Q4_K_M", "Q8_0"]
    by_name = {one.name: one for one in measurements_in(folder)}
    for name, _, size, _, kl, best, _ in rows:
        path = folder / name.strip("`")
        assert float(size.removesuffix(" MiB")) * 2**20 == pytest.approx(
            path.stat().st_size, abs=0.06 * 2**20
        )
        found = by_name[path.name]
        assert float(kl) == pytest.approx(found.kl, rel=0.06)
        assert float(best.rstrip("%")) / 100 == pytest.approx(found.top_1, abs=1e-3)
    text = card.read_text()
    for path in folder.glob("*.gguf"):
        assert f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" in text
    # One utterance tells nothing of which file to take.
    assert read_release(folder).best() is None
    assert "1 different text," in text.split("## Which one")[1].split("##")[0]
    assert f"hf download {REPO} {rows[-1][0].strip('`')} " in text
    assert "Verified: 3 of 3 types" in text
    assert "Measured against random.sft in PyTorch" in text


@pytest.mark.parametrize("words", ["<script>x</script>", "[x](http://evil)", "a\n# b", "`|x"])
def test_words_of_files_are_no_markup(folder: Path, words: str) -> None:
    def evil(value: dict[str, Any]) -> None:
        value["compared"]["reference"] = words

    for kind in ("Q8_0", "Q4_K_M", "Q2_K"):
        change(folder, kind, evil)
    assert words not in card_of(read_release(folder))


def test_a_card_recommends_by_the_rule_of_the_report(folder: Path, cli: Cli) -> None:
    for kind, kl in (("Q8_0", 1e-4), ("Q4_K_M", 5e-3), ("Q2_K", 0.2)):

        def near(value: dict[str, Any], kl: float = kl) -> None:
            value["compared"]["different_texts"] = 8
            value["measured"]["quality"]["all"]["kl_mean"] = kl

        change(folder, kind, near)
    assert (recommended(folder, cli) or "").endswith("-Q4_K_M.gguf")
    text = (folder / "README.md").read_text()
    assert "Take Q4_K_M" in text.split("## Which one")[1].split("##")[0]
    for kind, left in (("Q4_K_M", "-Q8_0.gguf"), ("Q8_0", "")):
        change(folder, kind, lambda value: value.update(failures=["KL mean 1"]))
        assert (recommended(folder, cli) or "").endswith(left)
    # Files that were measured in different ways are in no table together.
    change(
        folder,
        "Q2_K",
        lambda value: value["compared"]["inputs"].update(data="0" * 64),
    )
    assert "were not measured in one way" in error_of(cli("publish", folder, "--force"), 2)


def test_a_file_that_failed_its_limit_is_refused_and_the_card_says_which(
    folder: Path, cli: Cli
) -> None:
    failure = "KL mean 1.00e+00, allowed 1.00e-09"
    change(folder, "Q2_K", lambda value: value.update(failures=[failure]))
    assert "-Q2_K.gguf failed the last `evaluate`" in error_of(cli("publish", folder), 1)
    assert not (folder / "README.md").exists()
    assert cli("publish", folder, "--force").code == 0
    (row,) = (row for row in table_of(folder / "README.md") if row[1] == "Q2_K")
    assert row[-1] == f"nothing: {failure}"


def test_files_of_two_checkpoints_have_no_card(folder: Path, tmp_path: Path, cli: Cli) -> None:
    other = tmp_path / "other.sft"
    make_checkpoint(other, Shape(dim=256, heads=4, layers=1, levels=3, seed=2))
    assert cli("quantize", other, folder, "--types", "Q5_0", "--threads", 1).code == 0
    assert "were made of different checkpoints" in error_of(cli("publish", folder), 2)


def recommended(folder: Path, cli: Cli) -> str | None:
    said = cli("publish", folder, "--force", "--json")
    assert said.code == 0, said.err
    found: str | None = json.loads(said.out)["recommended"]
    return found


def test_publishing_is_one_commit_that_the_hub_has_bit_for_bit(
    folder: Path, hub: SmallHub, cli: Cli
) -> None:
    result = cli("publish", folder, REPO, "--json", "--message", "Three types")
    assert result.code == 0, result.err
    said = json.loads(result.out)
    assert hub.messages == ["Three types"]
    commit = hub.repositories[REPO].branches["main"]
    assert said["commit"] == commit
    there = hub.repositories[REPO].commits[commit]
    sent = contents(folder)
    for path in folder.glob("*.measurements.json"):
        del sent[path.name]  # they are none of the manifest's
    assert there == sent | {".gitattributes": b"*.gguf filter=lfs"}
    assert said["files"] == {name: len(raw) for name, raw in sent.items()}
    writes = [one for one in hub.requests if "/commit/" in one.path]
    assert len(writes) == 1


def test_other_bytes_on_the_hub_are_noticed(folder: Path, hub: SmallHub, cli: Cli) -> None:
    hub.wrong_bytes = b"other"
    message = error_of(cli("publish", folder, REPO), 3)
    assert "The hub's copy of VALL-E-random" in message


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("token", 3, "check HF_TOKEN"),
        ("repository", 2, "hf repo create someone/else"),
        ("name", 2, "no OWNER/NAME"),
        ("card", 2, "The hub refuses the card: Invalid metadata in README.md"),
        ("offline", 3, "while HF_HUB_OFFLINE is set"),
        ("down", 3, "was not published"),
    ],
)
def test_a_refusal_is_one_sentence_and_no_commit(
    fault: str,
    code: int,
    words: str,
    folder: Path,
    hub: SmallHub,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repository = {"repository": "someone/else", "name": "a/b/c"}.get(fault, REPO)
    if fault == "token":
        monkeypatch.setenv("HF_TOKEN", "reader")
    elif fault == "card":
        hub.card_error = '"license" must be one of'
    elif fault == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif fault == "down":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    message = error_of(cli("publish", folder, repository), code)
    assert words in message
    assert hub.messages == []
    if fault != "down":
        assert list(hub.repositories[REPO].commits.values()) == [
            {".gitattributes": b"*.gguf filter=lfs"}
        ]


def test_a_folder_that_is_not_as_it_was_written_is_refused(
    folder: Path, hub: SmallHub, cli: Cli
) -> None:
    model = next(folder.glob("*Q2_K.gguf"))
    flip(model)
    assert f"{model.name}: sha256" in error_of(cli("publish", folder, REPO), 2)
    flip(model)
    (folder / "stranger.gguf").write_bytes(b"GGUF")
    assert "stranger.gguf: no manifest lists it" in error_of(cli("publish", folder, REPO), 2)
    (folder / "stranger.gguf").unlink()
    assert not (folder / "README.md").exists()
    assert error_of(cli("publish", folder.parent, REPO), 2)
    assert hub.requests == []


def test_a_card_of_somebody_else_is_not_overwritten(folder: Path, cli: Cli) -> None:
    card = folder / "README.md"
    card.write_text("mine")
    assert "is another card" in error_of(cli("publish", folder), 2)
    assert card.read_text() == "mine"
    assert cli("publish", folder, "--force").code == 0
    assert cli("publish", folder).code == 0  # the same again


def test_without_measurements_nothing_is_recommended(folder: Path, cli: Cli) -> None:
    for path in folder.glob("*.measurements.json"):
        path.unlink()
    assert cli("publish", folder, "--license", "mit", "--base-model", "a/b").code == 0
    text = (folder / "README.md").read_text()
    assert "No file is recommended: no file was measured." in text
    assert front_matter(folder / "README.md")["license"] == "mit"
    assert front_matter(folder / "README.md")["base_model"] == "a/b"
    assert error_of(cli("publish", folder, "--base-model", "a", "--force"), 2)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(data=st.data())
def test_of_measurements_of_any_kind_comes_a_card_or_a_refusal(
    folder: Path, quantized: Path, data: st.DataObject
) -> None:
    (path,) = folder.glob("*-Q8_0.measurements.json")
    value = json.loads((quantized / "out" / path.name).read_text())
    at: Any = value
    for _ in range(data.draw(st.integers(0, 4), "depth")):
        inner = [key for key in at if isinstance(at[key], dict) and at[key]]
        at = at[data.draw(st.sampled_from(sorted(inner)))] if inner else at
    at[data.draw(st.sampled_from(sorted(at)))] = data.draw(JSON)
    path.write_text(json.dumps(value))
    try:
        card = card_of(read_release(folder))
    except InputError:
        return
    assert card.startswith("---\n")


# -------------------------------------------------------------------------- models of several files


@pytest.fixture
def sets(golden_set: Family, tmp_path: Path) -> Path:
    """Two types of a small model of several files, as `quantize` left them, not measured."""
    return Path(shutil.copytree(golden_set.made, tmp_path / "sets"))


def test_a_set_is_one_row_with_the_size_of_all_its_files(
    sets: Path, hub: SmallHub, cli: Cli
) -> None:
    result = cli("publish", sets, REPO, "--json", "--force", "--license", "mit")
    assert result.code == 0, result.err
    rows = table_of(sets / "README.md")
    assert [row[1] for row in rows] == ["Q4_0", "Q8_0"]
    for row in rows:
        paths = set_paths(sets / row[0].strip("`"), 7)
        size = sum(path.stat().st_size for path in paths)
        assert float(row[2].removesuffix(" MiB")) == pytest.approx(size / 2**20, abs=0.06)
    text = (sets / "README.md").read_text()
    n_weights = plan_bundle(read_checkpoint(CHECKPOINT)).n_weights
    (label,) = re.findall(r"A VALL-E X text-to-speech model of (\d+)K weights", text)
    assert int(label) == pytest.approx(n_weights / 1000, abs=1)
    assert "--voice-text" in text
    assert "a set of 9 files" in text
    (download,) = [line for line in text.splitlines() if line.startswith("hf download")]
    assert download.split()[3:-2] == [
        path.name for path in set_paths(sets / "vallex-checkpoint-Q8_0.gguf", 7)
    ]
    there = hub.repositories[REPO].commits[hub.repositories[REPO].branches["main"]]
    assert {path.name for path in sets.iterdir()} | {".gitattributes"} == set(there)


def test_a_set_without_all_its_files_is_not_published(sets: Path, tmp_path: Path, cli: Cli) -> None:
    stem = "vallex-checkpoint-Q8_0"
    for missing in (f"{stem}.gguf", f"{stem}-nar-3.gguf"):
        folder = tmp_path / missing
        folder.mkdir()
        listed = [one for one in read_manifest(sets / "manifest.json") if one.name != missing]
        for one in listed:
            shutil.copy(sets / one.name, folder)
        write_manifest(folder, listed)
        assert stem in error_of(cli("publish", folder), 2)
        assert not (folder / "README.md").exists()
