"""`quantize`: files, a manifest, and nothing but whole files that are what their source is."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from make_vallex import VallexShape, make_vallex
from quantize.conftest import Family
from quantize.making import flip, planner, script, voice_file, write_utterance
from support import Cli, Convert, Result, contents, error_of, with_keys
from vallex_golden import CHECKPOINT as VALLEX

from valle_convert import plan_conversion
from valle_convert.checkpoint import read_checkpoint
from valle_convert.families.bundle import open_bundle, plan_bundle
from valle_convert.gguf_file.read import GgufFile
from valle_convert.quantize.evaluate import FileSelection, evaluate
from valle_convert.quantize.limits import Gates
from valle_convert.quantize.manifest import check_manifest
from valle_convert.quantize.options import MakeOptions, MeasureOptions
from valle_convert.quantize.run import quantize
from valle_convert.quantize.tool import Quantizer
from valle_convert.quantize.types import COMMON, FILE_TYPES, parse_types
from valle_convert.verify.structure import check_structure

QUICK = ("--threads", "1")
#: A VALL-E X whose rows K-quants divide into.
WIDE = VallexShape(dim=256, heads=4, layers=2, ffn=1, levels=3, codes=64)


def files_of(result: Result) -> list[dict[str, Any]]:
    assert result.code == 0, result.err
    found: list[dict[str, Any]] = json.loads(result.out)["files"]
    return found


def test_the_common_types_are_made_at_once_and_each_is_what_it_says(
    cli: Cli, gguf_256: Path, checkpoint_256: Path, tmp_path: Path
) -> None:
    result = cli("quantize", gguf_256, tmp_path / "out", "--types", ",".join(COMMON), *QUICK)
    assert result.code == 0, result.err
    planned = plan_bundle(read_checkpoint(checkpoint_256))
    for name in COMMON:
        file = GgufFile(tmp_path / "out" / f"wide-{name}.gguf")
        assert file.keys["general.file_type"] == FILE_TYPES[name].number
        # llama.cpp loads it, and every key of the conversion is as it was.
        bundle = open_bundle(file.path)
        assert all(check.passed for check in check_structure(planned, bundle, with_llama=True))
    assert check_manifest(tmp_path / "out").passed


def test_two_runs_give_the_same_bytes_and_sha256sum_itself_accepts_the_sums(
    cli: Cli, family: Family, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    assert cli("quantize", family.source, again, "--types", "Q8_0,Q4_0", *QUICK).code == 0
    assert contents(family.made) == contents(again)
    models = [path for kind in ("Q8_0", "Q4_0") for path in family.files(again, kind)]
    assert {*again.iterdir()} == {*models, again / "SHA256SUMS", again / "manifest.json"}
    done = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=again, check=False)
    assert done.returncode == 0


def test_the_first_parts_of_a_set_are_copied_and_the_body_is_quantized(golden_set: Family) -> None:
    source, made = open_bundle(golden_set.source), golden_set.files(golden_set.made, "Q4_0")
    for path, original in zip(made, source.paths, strict=True):
        same = path.read_bytes() == original.read_bytes()
        assert same == bool(re.search(r"-nar-\d", path.name))
    body = GgufFile(made[1], allow_part=True)
    assert body.tensors["blk.1.ffn_up.weight"].ggml_type.name == "Q4_0"
    assert body.keys["valle.quantize.type"] == "Q4_0"


@pytest.mark.parametrize("kind", ["Q4_K_M", "IQ2_XXS", "BF16"])
def test_a_checkpoint_is_converted_and_quantized_at_once(kind: str, tmp_path: Path) -> None:
    """IQ2_XXS needs an importance matrix, which is made of the checkpoint."""
    make_vallex(tmp_path / "wide.pt", WIDE)
    checkpoint, out = read_checkpoint(tmp_path / "wide.pt"), tmp_path / "out"
    made = quantize(
        tmp_path / "wide.pt", out, MakeOptions(parse_types(kind)), checkpoint=checkpoint
    )
    assert not made.faults
    assert (made.files[0].imatrix is not None) == kind.startswith("IQ")
    report = evaluate(
        FileSelection((out,), checkpoint=checkpoint), Gates(), MeasureOptions(n_utterances=1)
    )
    assert report.passed, report.verdict()
    keys = open_bundle(out / f"wide-{kind}.gguf").main.keys
    sha256 = hashlib.sha256((tmp_path / "wide.pt").read_bytes()).hexdigest()
    assert keys["valle.source.sha256"] == sha256


def test_one_model_is_made_by_its_name_its_log_is_kept_and_nothing_is_replaced(
    cli: Cli, family: Family, tmp_path: Path
) -> None:
    out, log = tmp_path / "small.gguf", tmp_path / "log.txt"
    names = [
        path.name.replace(f"{family.stem}-Q8_0", "small") for path in family.files(tmp_path, "Q8_0")
    ]
    (tmp_path / names[-1]).write_bytes(b"mine")
    run = ("quantize", family.source, out, "q8_0", "--log", log, *QUICK)
    assert f"{names[-1]} exists" in error_of(cli(*run), 2)
    assert contents(tmp_path) == {names[-1]: b"mine"}
    assert cli(*run, "--force").code == 0
    assert set(contents(tmp_path)) == {*names, "log.txt"}
    assert GgufFile(out).keys["valle.quantize.type"] == "Q8_0"
    assert "converting to q8_0" in log.read_text()


@pytest.mark.parametrize("what", ["weights", "NaN", "key"])
def test_a_file_that_is_not_what_its_source_is_fails(
    cli: Cli, gguf_256: Path, tmp_path: Path, program: Quantizer, what: str
) -> None:
    """A tool that plans well, and loses a layer's weights, a number or a key of the metadata."""
    damage = tmp_path / "damage.py"
    damage.write_text(
        "import sys\nfrom pathlib import Path\n"
        "from valle_convert.gguf_file.read import GgufFile\n"
        "path = Path(sys.argv[1])\nraw = bytearray(path.read_bytes())\n"
        "tensor = GgufFile(path).tensors['blk.1.ffn_up.weight']\n"
        "if sys.argv[2] == 'weights':\n"
        "    raw[tensor.start : tensor.start + tensor.n_bytes // 2] = bytes(tensor.n_bytes // 2)\n"
        "elif sys.argv[2] == 'NaN':\n"
        "    raw[tensor.start : tensor.start + 2] = b'\\0\\x7e'\n"
        "else:\n"
        "    raw[raw.index(b'valle.') + 7] ^= 1\n"
        "path.write_bytes(raw)\n"
    )
    make = f'"{program.command[0]}" "$@" && "{sys.executable}" "{damage}" "$2" {what}'
    tool = script(tmp_path / "tool", planner(program) + make).command[0]
    out = tmp_path / "o.gguf"
    result = cli("quantize", gguf_256, out, "Q8_0", "--llama-quantize", tool, *QUICK)
    assert result.code == 1, result
    assert "FAILED: o.gguf: " in result.out
    assert ("blk.1.ffn_up.weight has " in result.out) == (what == "weights")
    assert ("blk.1.ffn_up.weight holds NaN or infinity" in result.out) == (what == "NaN")


def test_resume_keeps_what_was_made_in_the_same_way_and_makes_the_rest(
    cli: Cli, family: Family, folder: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.gguf")}
    types = "Q8_0,Q4_0,Q5_0"
    refused = cli("quantize", family.source, folder, "--types", types)
    assert "--resume keeps" in error_of(refused, 2)
    # Threads change no byte.
    run = ("quantize", family.source, folder, "--types", types, "--resume", "--json")
    planned = files_of(cli(*run, "--dry-run"))
    assert [file["status"] for file in planned] == ["kept", "kept", "planned"]
    result = cli(*run, "--threads", 2)
    assert [file["status"] for file in files_of(result)] == ["kept", "kept", "made"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert check_manifest(folder).passed
    (folder / "mine.gguf").write_bytes(b"mine")
    left = cli("quantize", family.source, folder, "--types", "Q8_0", "--resume", *QUICK)
    assert f"still has files of earlier runs: {family.stem}-Q4_0" in left.err
    assert family.files(folder, "Q5_0")[-1].name in left.err
    assert "no manifest lists: mine.gguf" in left.err


@pytest.mark.parametrize("change", ["bytes", "option", "tool", "words", "source", "missing"])
def test_resume_with_force_makes_a_model_again_that_would_be_another_one_and_says_why(
    cli: Cli, family: Family, folder: Path, change: str, tmp_path: Path
) -> None:
    options = {
        "option": ["--tensor-type", "ffn_down=q8_0"],
        "tool": ["--llama-quantize", "library"],
        "words": ["--quantized-by", "another"],
    }
    source = family.another(tmp_path / "other") if change == "source" else family.source
    reason = {"bytes": "has other bytes", "option": "other options", "tool": "by another tool"}
    reason["words"] = "has another general.quantized_by"
    path = family.files(folder, "Q4_0")[-1]
    if change == "bytes":
        flip(path)
    elif change == "missing":
        path.unlink()
    run = ("quantize", source, folder, "--types", "Q4_0", "--resume", "--json", *QUICK)
    run = (*run, *options.get(change, []))
    why = reason.get(change, "made from another source")
    is_set = len(family.files(folder, "Q4_0")) > 1
    if change != "missing":
        before = contents(folder)
        assert why in error_of(cli(*run), 2)
        assert contents(folder) == before
    elif is_set:
        why = f"{path.name} is missing"
        assert why in error_of(cli(*run), 2)
    result = cli(*run, "--force")
    assert [file["status"] for file in files_of(result)] == ["made"]
    assert (change == "missing" and not is_set) or why in result.err
    assert check_manifest(folder).passed


def test_a_matrix_of_given_utterances_is_kept_in_the_folder_and_used_again(
    cli: Cli, family: Family, tmp_path: Path
) -> None:
    """It serves every type; one of other utterances is refused, and listed all the same."""
    data, out = tmp_path / "data", tmp_path / "out"
    is_vallex, bundle = family.checkpoint == VALLEX, open_bundle(family.source)

    def write(name: str) -> None:
        if is_vallex:
            data.mkdir(exist_ok=True)
            voice_file(data / f"{name}.npz", 20 + len(name))
        else:
            write_utterance(data, name, bundle.model.n_levels)

    write("a")
    run = ("quantize", family.checkpoint, out, "--imatrix", data, "--json", *QUICK, "--types")
    (made,) = files_of(cli(*run, "Q4_0"))
    assert made["imatrix"] == f"{family.checkpoint.stem}-imatrix.gguf"
    matrices = sorted(out.glob("*-imatrix*.gguf"))
    assert len(matrices) == 1 + (len(bundle.files) > 1)
    times = [path.stat().st_mtime_ns for path in matrices]
    for extra in (["--dry-run"], []):
        status = [one["status"] for one in files_of(cli(*run, "Q4_0,Q5_0", "--resume", *extra))]
        assert status == ["kept", "planned" if extra else "made"]
        assert [path.stat().st_mtime_ns for path in matrices] == times
    again = (*run, "Q4_0", "--resume")
    for words in ("", "another importance matrix"):
        for path in matrices:
            path.unlink()
        if words:
            assert words in error_of(cli(*again), 2)
        else:
            assert [one["status"] for one in files_of(cli(*again))] == ["kept"]
            write("more")
            assert "imatrix.gguf exists" in error_of(cli(*again), 2)
    assert cli(*again, "--force").code == 0
    assert check_manifest(out).passed


@pytest.mark.parametrize(
    ("given", "types", "needs_matrix"),
    [("checkpoint", "Q8_0,Q4_0", False), ("source", "Q5_1,Q2_K_S", True)],
)
def test_a_dry_run_predicts_sizes_and_writes_nothing(
    cli: Cli, family: Family, given: str, types: str, needs_matrix: bool, tmp_path: Path
) -> None:
    """Also of a checkpoint, and with an importance matrix that is not made yet."""
    compared = ("--checkpoint", family.checkpoint) if given == "source" else ()
    run = ("quantize", getattr(family, given), tmp_path / "out", "--types", types, *compared)
    result = cli(*run, *QUICK, "--json", "--dry-run")
    planned = {file["name"]: file["bytes"] for file in files_of(result)}
    assert list(tmp_path.iterdir()) == []
    made = files_of(cli(*run, *QUICK, "--json"))
    assert planned == {file["name"]: file["bytes"] for file in made}
    assert made[1]["imatrix"] == (f"{family.stem}-imatrix.gguf" if needs_matrix else None)


def test_a_tensor_that_does_not_fit_is_reported_and_no_fallback_refuses_it(
    cli: Cli, converted: Convert, tmp_path: Path
) -> None:
    source = converted("ar-nar-len", "f16")
    run = ("quantize", source, tmp_path / "a", "--types", "Q4_K_M", *QUICK)
    refused = cli(*run, "--no-fallback")
    assert "--no-fallback" in error_of(refused, 2)
    assert not (tmp_path / "a").exists()
    (file,) = files_of(cli(*run, "--json"))
    made = GgufFile(tmp_path / "a" / file["name"]).tensors
    short = {name for name, one in made.items() if len(one.shape) == 2 and one.shape[-1] == 64}
    assert "token_embd.weight" in short  # llama.cpp's log has no warning of it
    assert {one["tensor"] for one in file["fallbacks"]} == short
    for one in file["fallbacks"]:
        assert one["given"] == made[one["tensor"]].ggml_type.name != one["wanted"]
        assert one["n_columns"] == 64
    (line,) = [one for one in cli(*run, "--resume").err.splitlines() if "cannot be" in one]
    assert re.fullmatch(r"Q4_K_M: \d+ tensors \(rows of 64\) cannot be Q4_K.*: \d+ became .*", line)
    # Types of short blocks fit.
    fits = ("quantize", source, tmp_path / "b", "--types", "Q8_0,F16,BF16", "--no-fallback")
    assert cli(*fits, *QUICK).code == 0


def test_files_are_named_by_the_convention_and_say_who_made_them(
    golden_set: Family, cli: Cli, tmp_path: Path
) -> None:
    run = (tmp_path / "out", "--types", "Q8_0", "--json", "--name-files", "convention")
    named = (*run, "--quantized-by", "me", "--base-model", "a/b")
    planned = files_of(cli("quantize", golden_set.checkpoint, *named, "--dry-run"))
    (name,) = [one["name"] for one in files_of(cli("quantize", golden_set.source, *named))]
    assert [one["name"] for one in planned] == [name]
    assert re.fullmatch(r"vallex-checkpoint-127K.*-Q8_0\.gguf", name)
    files = open_bundle(tmp_path / "out" / name)
    assert files.main.keys["general.basename"] == "vallex-checkpoint"
    assert files.main.keys["general.size_label"] in name
    for file in (files.files["ar"], files.files["nar"]):
        assert file.keys["general.quantized_by"] == "me"
        assert file.keys["general.base_model.0.name"] == "b"
        assert file.keys["general.base_model.0.organization"] == "a"
        assert file.keys["general.base_model.0.repo_url"] == "https://huggingface.co/a/b"


def test_all_types_are_listed_a_line_each(cli: Cli) -> None:
    result = cli("quantize", "--list-types")
    assert result.code == 0
    assert [line.split()[0] for line in result.out.splitlines()[2:]] == list(FILE_TYPES)


def test_a_file_that_is_no_model_of_ours_is_quantized_and_not_measured(
    cli: Cli, converted: Convert, tmp_path: Path
) -> None:
    path = converted("ar-nar-len", "f16")
    ours = [name for name in GgufFile(path).keys if name.startswith("valle.")]
    other = with_keys(path, tmp_path / "other.gguf", drop=ours)
    assert cli("quantize", other, tmp_path / "o.gguf", "Q8_0", *QUICK).code == 0
    result = cli("evaluate", tmp_path / "o.gguf", other)
    assert "not a converted VALL-E" in error_of(result, 2)


def test_no_program_and_no_library_is_exit_code_3(
    cli: Cli, gguf_256: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    run = ("quantize", gguf_256, tmp_path / "o.gguf", "Q8_0", "--llama-quantize", "library")
    assert "library was not found" in error_of(cli(*run), 3)


def test_a_full_disk_is_known_before_and_files_that_are_kept_need_no_room(
    cli: Cli,
    checkpoint_256: Path,
    gguf_256: Path,
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    run = ("quantize", gguf_256, made, "--resume", *QUICK, "--types")
    assert cli(*run, "Q8_0,Q4_0").code == 0
    before = contents(made)
    assert "1,000 bytes free" in error_of(cli(*run, "Q8_0,Q5_0"), 3)
    run = ("quantize", checkpoint_256, made, "--dry-run", *QUICK, "--types")
    assert "the conversion of wide.gguf needs" in error_of(cli(*run, "Q5_0"), 3)
    assert contents(made) == before


# For a model of one file as for one of several

MEASURED = ("--utterances", 1, "--threads", 1)


def test_a_tensor_type_for_nothing_is_told(family: Family, tmp_path: Path, cli: Cli) -> None:
    run = ("quantize", family.source, tmp_path / "o.gguf", "Q8_0")
    patterns = "--tensor-type zzz=Q8_0 --tensor-type ffn_up=Q5_0 --tensor-type norm=Q8_0"
    result = cli(*run, *patterns.split())
    assert result.code == 0, result
    assert "the tensor type zzz=q8_0 matches no tensor" in result.err
    assert "the tensor type norm=q8_0 changes no tensor" in result.err
    assert "ffn_up=q5_0 " not in result.err


def test_another_checkpoint_is_refused(
    family: Family, folder: Path, tmp_path: Path, cli: Cli
) -> None:
    family.another(tmp_path / "other")
    other = ("--checkpoint", tmp_path / "other" / family.checkpoint.name)
    before = contents(folder)
    for run in (
        ("evaluate", folder, *other, *MEASURED),
        ("quantize", family.source, tmp_path / "o", "--types", "IQ2_XXS", *other),
        ("scan", family.source, "--types", "Q8_0", *other, *MEASURED),
    ):
        assert "another checkpoint" in error_of(cli(*run), 2)
    assert contents(folder) == before
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_the_baseline_is_f16_where_the_source_is_not(
    family: Family, kind: str, tmp_path: Path, cli: Cli
) -> None:
    source, made, report = (tmp_path / name for name in ("s.gguf", "made", "r.json"))
    convert = (family.checkpoint, source, "--outtype", kind, "--verify", "none")
    assert cli(*convert).code == 0
    assert cli("quantize", source, made, "--types", "Q8_0", "--threads", 1).code == 0
    run = ("evaluate", made, "--checkpoint", family.checkpoint, *MEASURED, "--report", report)
    assert cli(*run).code == 0
    assert json.loads(report.read_text())["baseline"]["type"] == "F16"


def test_a_conversion_tells_what_it_leaves_out(family: Family, tmp_path: Path, cli: Cli) -> None:
    result = cli(family.checkpoint, tmp_path / "a.gguf", "--verify", "none")
    assert result.code == 0
    dropped = plan_conversion(family.checkpoint).description.dropped
    assert result.err.count("left out: ") == len(dropped)
    assert all(one.source in result.err for one in dropped)
