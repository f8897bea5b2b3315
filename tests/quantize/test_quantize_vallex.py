"""Quantized sets of VALL-E X, with real llama-quantize."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from make_vallex import VallexShape, make_vallex
from quantize.test_vallex_imatrix import voice_file
from support import Cli, error_of
from vallex_golden import CHECKPOINT, set_paths

from valle_convert.checkpoint import read_checkpoint
from valle_convert.errors import InputError
from valle_convert.families.bundle import Bundle, open_bundle, plan, write_bundle
from valle_convert.families.family import Choices
from valle_convert.gguf_file.read import GgufFile
from valle_convert.quantize.evaluate import Given, evaluate
from valle_convert.quantize.limits import Gates
from valle_convert.quantize.options import ListenOptions, MakeOptions, MeasureOptions, RunLog
from valle_convert.quantize.run import quantize
from valle_convert.quantize.types import parse_types

#: Rows that K-quants divide into.
WIDE = VallexShape(dim=256, heads=4, layers=2, ffn=1, levels=3, codes=64)


@pytest.fixture(scope="module")
def golden_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden") / "golden-F16.gguf"
    write_bundle(plan(read_checkpoint(CHECKPOINT), Choices("f16")), path)
    return path


def options(types: str, **others: object) -> MakeOptions:
    return MakeOptions(types=parse_types(types), **others)  # type: ignore[arg-type]


def test_sets_are_made_measured_verified_and_listed(
    golden_set: Path, cli: Cli, tmp_path: Path
) -> None:
    out, report = tmp_path / "out", tmp_path / "report.json"
    made = cli("quantize", golden_set, out, "--types", "Q8_0,Q4_0")
    assert made.code == 0, made
    paths = [set_paths(out / f"golden-{kind}.gguf", 7) for kind in ("Q8_0", "Q4_0")]
    listed = {path.name for path in out.iterdir()} - {
        "manifest.json",
        "SHA256SUMS",
    }
    assert listed == {path.name for group in paths for path in group}
    assert cli("check-manifest", out).code == 0
    assert cli("verify", CHECKPOINT, paths[1][0]).code == 0
    run = ("evaluate", out, "--checkpoint", CHECKPOINT)
    judged = cli(*run, "--report", report)
    assert judged.code == 0, judged
    assert cli("check-manifest", out, "--require-passed").code == 0
    assert len(cli("inspect", out).out.splitlines()) == 2 + 2
    found = json.loads(report.read_text())
    assert found["passed"]
    assert {one["part"] for one in found["files"][0]["tensors"]} == {"ar", "nar"}
    # F16 is rounded once, and not by way of BF16.
    assert found["baseline"]["quality"]["all"]["nmse"] < 2e-6
    later = (*run, "--no-worse-than", report)
    assert "give the same --data" in error_of(cli(*later, "--utterances", 3), 2)
    assert cli(*later).code == 0
    q8, q4 = found["files"]
    assert q8["bytes"] == sum(path.stat().st_size for path in paths[0])
    assert 0 < q8["quality"]["all"]["kl_mean"] < q4["quality"]["all"]["kl_mean"]
    assert set(q8["quality"]) == {"all", "ar", *(f"nar.{i}" for i in range(1, 8))}
    assert q8["verified"]["outcome"] == "passed"
    for path, original in zip(paths[0], set_paths(golden_set, 7), strict=True):
        same = path.read_bytes() == original.read_bytes()
        assert same == ("-nar-" in path.name)
    body = GgufFile(paths[1][1], allow_part=True)
    assert body.tensors["blk.1.ffn_up.weight"].ggml_type.name == "Q4_0"
    assert body.keys["valle.quantize.type"] == "Q4_0"


def test_the_plan_knows_the_sizes(golden_set: Path, cli: Cli, tmp_path: Path) -> None:
    for source in (golden_set, CHECKPOINT):
        run = ("quantize", source, tmp_path / "out", "--types", "Q8_0,Q5_1")
        planned = cli(*run, "--dry-run", "--json")
        assert planned.code == 0, planned
        assert list(tmp_path.iterdir()) == []
        made = cli(*run, "--json")
        assert made.code == 0, made
        sizes = [
            [file["bytes"] for file in json.loads(result.out)["files"]]
            for result in (planned, made)
        ]
        assert sizes[0] == sizes[1]
        for path in (tmp_path / "out").iterdir():
            path.unlink()
        (tmp_path / "out").rmdir()


def test_the_body_is_the_same_with_every_first_part(golden_set: Path, tmp_path: Path) -> None:
    paths = set_paths(golden_set, 7)
    bodies = []
    for first in (0, 3):
        # The first part that the body is put together with is that of the first level.
        folder = tmp_path / str(first)
        folder.mkdir()
        renamed = set_paths(folder / "x.gguf", 7)
        for source, target in zip(paths, renamed, strict=True):
            target.write_bytes(source.read_bytes())
        files = open_bundle(renamed[0])
        ar, nar, *levels = files.files
        order = [ar, nar, *levels[first:], *levels[:first]]
        turned = replace(
            files, files=dict(zip(files.files, map(files.files.get, order), strict=True))
        )
        quantize_turned(turned, folder / "out.gguf")
        bodies.append((folder / "out-nar.gguf").read_bytes())
    assert bodies[0] == bodies[1]


def quantize_turned(files: Bundle, out: Path) -> None:
    from valle_convert.quantize import source

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "open_files", lambda _path: files)
        patch.setattr(Bundle, "check", lambda _self: None)
        quantize(files.path, out, options("Q4_0"))


@pytest.mark.parametrize("kind", ["Q4_K_M", "IQ2_XXS", "IQ3_XXS", "BF16"])
def test_a_checkpoint_is_converted_and_quantized_at_once(kind: str, tmp_path: Path) -> None:
    """IQ2_XXS needs an importance matrix, which is made of the checkpoint."""
    make_vallex(tmp_path / "wide.pt", WIDE)
    checkpoint = read_checkpoint(tmp_path / "wide.pt")
    out = tmp_path / "out"
    made = quantize(tmp_path / "wide.pt", out, options(kind), checkpoint=checkpoint)
    assert not made.faults
    assert (made.files[0].imatrix is not None) == kind.startswith("IQ")
    measuring = MeasureOptions(n_utterances=1)
    report = evaluate(Given((out,), checkpoint=checkpoint), Gates(), measuring)
    assert report.passed, report.verdict()
    assert open_bundle(out / f"wide-{kind}.gguf").model.n_levels == 3


def test_one_set_is_made_by_its_name_and_nothing_is_replaced(
    golden_set: Path, cli: Cli, tmp_path: Path
) -> None:
    out = tmp_path / "small.gguf"
    set_paths(out, 7)[4].write_bytes(b"mine")
    run = ("quantize", golden_set, out, "Q8_0")
    assert "small-nar-3.gguf exists" in error_of(cli(*run), 2)
    assert [path.name for path in tmp_path.iterdir()] == ["small-nar-3.gguf"]
    assert cli(*run, "--force").code == 0
    assert sorted(tmp_path.iterdir()) == sorted(set_paths(out, 7))


def test_what_is_wrong_before_is_seen_after(golden_set: Path, cli: Cli, tmp_path: Path) -> None:
    paths = set_paths(tmp_path / "bad.gguf", 7)
    for source, target in zip(set_paths(golden_set, 7), paths, strict=True):
        target.write_bytes(source.read_bytes())
    tensor = GgufFile(paths[1], allow_part=True).tensors["blk.0.attn_output.weight"]
    contents = bytearray(paths[1].read_bytes())
    contents[tensor.start : tensor.start + tensor.n_bytes] = bytes(tensor.n_bytes)
    paths[1].write_bytes(contents)
    assert cli("quantize", paths[0], tmp_path / "out", "--types", "Q8_0").code == 0
    judged = cli("evaluate", tmp_path / "out", "--checkpoint", CHECKPOINT)
    assert judged.code == 1, judged


# ------------------------------------------------------------------------ the folder


def made_at(folder: Path, name: str) -> list[int]:
    return [path.stat().st_mtime_ns for path in set_paths(folder / name, 7)]


def test_resume_keeps_whole_sets_and_prune_removes_whole_sets(
    golden_set: Path, cli: Cli, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = ("quantize", golden_set, out, "--json", "--types")
    assert cli(*run, "Q8_0").code == 0
    times = made_at(out, "golden-Q8_0.gguf")
    assert "--resume keeps the files" in error_of(cli(*run, "Q8_0,Q4_0"), 2)
    planned = cli(*run, "Q8_0,Q4_0", "--resume", "--dry-run")
    assert [one["status"] for one in json.loads(planned.out)["files"]] == ["kept", "planned"]
    both = cli(*run, "Q8_0,Q4_0", "--resume")
    assert [one["status"] for one in json.loads(both.out)["files"]] == ["kept", "made"]
    assert made_at(out, "golden-Q8_0.gguf") == times
    assert cli("check-manifest", out).code == 0
    # The bytes are those of a run that makes both at once.
    other = tmp_path / "other"
    assert cli("quantize", golden_set, other, "--types", "Q8_0,Q4_0").code == 0
    for path in other.iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes(), path.name
    left = cli(*run, "Q4_0", "--resume")
    assert "golden-Q8_0-nar-7.gguf" in " ".join(json.loads(left.out)["notes"])
    # Removed whole, after a verdict that passed, and not with one of its files changed.
    prune = ("evaluate", out, "--checkpoint", CHECKPOINT, "--prune", "--types", "Q4_0")
    path = set_paths(out / "golden-Q8_0.gguf", 7)[3]
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    changed = cli(*prune)
    assert "since the manifest lists other bytes under this name" in changed.err
    assert all(one.exists() for one in set_paths(out / "golden-Q8_0.gguf", 7))
    path.write_bytes(before)
    assert cli(*prune, "--max-kl", "1e-9").code == 1
    assert path.exists()
    assert cli(*prune).code == 0
    names = {path.name for path in out.glob("*.gguf")}
    assert names == {path.name for path in set_paths(out / "golden-Q4_0.gguf", 7)}
    assert cli("check-manifest", out).code == 0


@pytest.mark.parametrize("which", [0, 1, 5])
def test_a_set_with_a_file_that_is_missing_or_changed_is_not_kept(
    which: int, golden_set: Path, cli: Cli, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = ("quantize", golden_set, out, "--types", "Q8_0")
    assert cli(*run).code == 0
    path = set_paths(out / "golden-Q8_0.gguf", 7)[which]
    contents = path.read_bytes()
    path.write_bytes(contents[:-1] + bytes([contents[-1] ^ 1]))
    assert f"{path.name} exists, and --resume does not keep it, since its bytes" in error_of(
        cli(*run, "--resume"), 2
    )
    path.unlink()
    assert f"{path.name} of its set is missing" in error_of(cli(*run, "--resume"), 2)
    assert cli(*run, "--resume", "--force").code == 0
    assert path.read_bytes() == contents


def test_sets_of_another_source_are_not_kept(golden_set: Path, cli: Cli, tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "golden-f16.gguf"
    assert cli("quantize", golden_set, out, "--types", "Q8_0").code == 0
    make_vallex(tmp_path / "other.pt", VallexShape(seed=9))
    write_bundle(plan(read_checkpoint(tmp_path / "other.pt"), Choices("f16")), other)
    found = cli("quantize", other, out, "--types", "Q8_0", "--resume")
    assert "made from another source" in error_of(found, 2)


def test_a_checkpoint_is_gone_on_with_as_well(cli: Cli, tmp_path: Path) -> None:
    """Given utterances: then there is a matrix for every type, kept in the folder."""
    (tmp_path / "data").mkdir()
    for i in range(2):
        voice_file(tmp_path / "data" / f"{i}.npz", 20 + i, seed=i)
    out = tmp_path / "out"
    run = ("quantize", CHECKPOINT, out, "--imatrix", tmp_path / "data", "--json", "--types")
    made = cli(*run, "Q4_0")
    assert made.code == 0, made
    report = json.loads(made.out)
    assert report["files"][0]["imatrix"] == "vallex-checkpoint-imatrix.gguf"
    matrices = [out / f"vallex-checkpoint-imatrix{part}.gguf" for part in ("", "-nar")]
    times = [path.stat().st_mtime_ns for path in matrices]
    assert cli("check-manifest", out).code == 0
    for extra in (["--dry-run"], []):
        again = cli(*run, "Q4_0,Q5_0", "--resume", *extra)
        assert again.code == 0, again
        status = [one["status"] for one in json.loads(again.out)["files"]]
        assert status == ["kept", "planned" if extra else "made"]
        assert [path.stat().st_mtime_ns for path in matrices] == times
    voice_file(tmp_path / "data" / "2.npz", 30)
    again = cli(*run, "Q4_0,Q5_0", "--resume")
    assert "imatrix.gguf exists" in error_of(again, 2)


def test_what_is_wrong_is_told_before_a_checkpoint_is_converted(tmp_path: Path) -> None:
    said: list[str] = []
    log = RunLog(talk=said.append)
    (tmp_path / "data").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "vallex-checkpoint-Q8_0-nar.gguf").write_bytes(b"mine")
    for given, words in (
        (options("Q8_0", imatrix=str(tmp_path / "data")), "voice file of VALL-E X"),
        (options("Q8_0"), "Q8_0-nar.gguf exists"),
        (options("Q4_K_M", allow_fallback=False), "--no-fallback was given"),
        (options("IQ2_XXS", imatrix="none"), "without an importance matrix"),
    ):
        with pytest.raises(InputError, match=words):
            quantize(
                CHECKPOINT,
                tmp_path / "out",
                given,
                checkpoint=read_checkpoint(CHECKPOINT),
                log=log,
            )
    assert said == []
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_files_are_named_by_the_convention_and_say_who_made_them(
    golden_set: Path, cli: Cli, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    made = cli(
        *("quantize", golden_set, out, "--types", "Q8_0", "--json"),
        *("--name-files", "convention", "--quantized-by", "me", "--base-model", "a/b"),
    )
    assert made.code == 0, made
    (name,) = [one["name"] for one in json.loads(made.out)["files"]]
    assert name.startswith("vallex-checkpoint-127K")
    assert name.endswith("-Q8_0.gguf")
    files = open_bundle(out / name)
    for file in (files.files["ar"], files.files["nar"]):
        assert file.keys["general.quantized_by"] == "me"
        assert file.keys["general.base_model.0.name"] == "b"
    assert cli("verify", CHECKPOINT, out / name).code == 0


def test_what_is_not_for_sets_is_refused(golden_set: Path, tmp_path: Path) -> None:
    files = Given((golden_set,), checkpoint=read_checkpoint(CHECKPOINT))
    with pytest.raises(InputError, match="listen does not support VALL-E X yet"):
        evaluate(files, Gates(), MeasureOptions(), ListenOptions())
    with pytest.raises(InputError, match="is one file, but 2 types"):
        quantize(golden_set, tmp_path / "x.gguf", options("Q8_0,Q4_0"))
    make_vallex(tmp_path / "wide.pt", WIDE)
    write_bundle(plan(read_checkpoint(tmp_path / "wide.pt")), tmp_path / "wide.gguf")
    with pytest.raises(InputError, match="cannot be made without an importance matrix"):
        quantize(tmp_path / "wide.gguf", tmp_path / "out", options("IQ2_XXS"))
