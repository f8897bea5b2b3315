"""`quantize`: files, a manifest, and nothing but whole files that are what their source is."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from make_checkpoint import Shape, make_checkpoint
from support import Cli, error_of

from valle_convert.families.bundle import open_bundle
from valle_convert.gguf_file.read import GgufFile
from valle_convert.quantize.manifest import check_manifest, read_manifest
from valle_convert.quantize.tool import Quantizer
from valle_convert.quantize.types import COMMON, FILE_TYPES
from valle_convert.verify.structure import check_structure

QUICK = ("--threads", "1")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ------------------------------------------------------------------------ files of a folder


def test_the_common_eight_are_made_at_once_and_each_is_what_it_says(
    cli: Cli, gguf_256: Path, checkpoint_256: Path, tmp_path: Path
) -> None:
    from valle_convert import plan_conversion

    result = cli("quantize", gguf_256, tmp_path / "out", "--types", ",".join(COMMON), *QUICK)
    assert result.code == 0, result.err
    plan = plan_conversion(checkpoint_256)
    for name in COMMON:
        file = GgufFile(tmp_path / "out" / f"wide-{name}.gguf")
        assert file.keys["general.file_type"] == FILE_TYPES[name].number
        # llama.cpp loads it, and every key of the conversion is as it was.
        bundle = open_bundle(file.path)
        assert all(check.passed for check in check_structure(plan, bundle, with_llama=True))
    assert check_manifest(tmp_path / "out").passed


def test_two_runs_give_the_same_bytes_and_sha256sum_itself_accepts_the_sums(
    cli: Cli, gguf_256: Path, made: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    assert cli("quantize", gguf_256, again, "--types", "Q8_0,Q4_0", *QUICK).code == 0
    assert contents(made) == contents(again)
    names = {"SHA256SUMS", "manifest.json", "wide-Q4_0.gguf", "wide-Q8_0.gguf"}
    assert set(contents(made)) == names
    done = subprocess.run(
        ["sha256sum", "--check", "SHA256SUMS"], cwd=made, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_resume_keeps_what_was_made_in_the_same_way_and_makes_the_rest(
    cli: Cli, gguf_256: Path, made: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.glob("*.gguf")}
    types = "Q8_0,Q4_0,Q5_0"
    assert "--resume keeps" in error_of(cli("quantize", gguf_256, made, "--types", types), 2)
    # Threads change no byte.
    run = ("quantize", gguf_256, made, "--types", types, "--resume", "--json", "--threads", 2)
    planned = json.loads(cli(*run, "--dry-run").out)["files"]
    assert [file["status"] for file in planned] == ["kept", "kept", "planned"]
    result = cli(*run)
    assert result.code == 0, result.err
    statuses = {file["type"]: file["status"] for file in json.loads(result.out)["files"]}
    assert statuses == {"Q8_0": "kept", "Q4_0": "kept", "Q5_0": "made"}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [file.name for file in read_manifest(made / "manifest.json")] == [
        *("wide-Q4_0.gguf", "wide-Q5_0.gguf", "wide-Q8_0.gguf"),
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [("bytes", "bytes differ"), ("option", "other options"), ("tool", "by llama-quantize")],
)
def test_resume_with_force_makes_a_file_again_whose_hash_options_or_tool_differ_and_says_why(
    cli: Cli, gguf_256: Path, made: Path, change: str, reason: str
) -> None:
    options = {
        "option": ["--tensor-type", "ffn_down=q8_0"],
        "tool": ["--llama-quantize", "library"],
    }
    path = made / "wide-Q4_0.gguf"
    if change == "bytes":
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)
    arguments = ["--types", "Q4_0", "--resume", "--json", *QUICK, *options.get(change, [])]
    before = contents(made)
    assert reason in error_of(cli("quantize", gguf_256, made, *arguments), 2)
    assert contents(made) == before
    result = cli("quantize", gguf_256, made, *arguments, "--force")
    assert result.code == 0, result.err
    assert reason in result.err
    (file,) = json.loads(result.out)["files"]
    assert file["status"] == "made"
    assert check_manifest(made).passed


def test_resume_compares_the_checkpoint_that_is_converted_first(cli: Cli, tmp_path: Path) -> None:
    """Two checkpoints under one file name: nothing of the first is taken for the second."""
    out = tmp_path / "out"
    for seed, code in ((1, 0), (1, 0), (2, 2)):
        checkpoint = tmp_path / str(seed) / "model.sft"
        checkpoint.parent.mkdir(exist_ok=True)
        make_checkpoint(checkpoint, Shape(dim=32, heads=2, layers=1, levels=2, seed=seed))
        result = cli("quantize", checkpoint, out, "--types", "Q8_0", "--resume", *QUICK)
        assert result.code == code, result.err
    assert "made from another source" in error_of(result, 2)


def test_one_file_is_one_file_and_its_log_is_kept(cli: Cli, gguf_256: Path, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    log = tmp_path / "log.txt"
    result = cli("quantize", gguf_256, folder / "o.gguf", "q6_k", "--log", log, *QUICK)
    assert result.code == 0, result.err
    assert [path.name for path in folder.iterdir()] == ["o.gguf"]
    assert GgufFile(folder / "o.gguf").keys["valle.quantize.type"] == "Q6_K"
    assert "converting to q6_K" in log.read_text()


def test_a_checkpoint_is_converted_first(cli: Cli, checkpoint_256: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = cli("quantize", checkpoint_256, out, "--types", "Q8_0", *QUICK)
    assert result.code == 0, result.err
    assert "converting" in result.err
    header = GgufFile(out / "wide-Q8_0.gguf")
    sha256 = hashlib.sha256(checkpoint_256.read_bytes()).hexdigest()
    assert header.keys["valle.source.sha256"] == sha256
    assert sorted(contents(out)) == ["SHA256SUMS", "manifest.json", "wide-Q8_0.gguf"]


@pytest.mark.parametrize("what", ["weights", "key"])
def test_a_file_that_is_not_what_its_source_is_fails(
    cli: Cli, gguf_256: Path, tmp_path: Path, program: Quantizer, what: str
) -> None:
    """A tool that plans well, and loses a layer's weights or a key of the metadata."""
    tool, damage = tmp_path / "tool", tmp_path / "damage.py"
    damage.write_text(
        "import sys\nfrom pathlib import Path\n"
        "from valle_convert.gguf_file.read import GgufFile\n"
        "path = Path(sys.argv[1])\nraw = bytearray(path.read_bytes())\n"
        "tensor = GgufFile(path).tensors['blk.1.ffn_up.weight']\n"
        "if sys.argv[2] == 'weights':\n"
        "    raw[tensor.start : tensor.start + tensor.n_bytes // 2] = bytes(tensor.n_bytes // 2)\n"
        "else:\n"
        "    raw[raw.index(b'valle.') + 7] ^= 1\n"
        "path.write_bytes(raw)\n"
    )
    tool.write_text(
        f'#!/bin/sh\nif [ "$1" = --dry-run ]; then exec "{program.command[0]}" "$@"; fi\n'
        f'"{program.command[0]}" "$@" && "{sys.executable}" "{damage}" "$2" {what}\n'
    )
    tool.chmod(0o755)
    run = ("quantize", gguf_256, tmp_path / "o.gguf", "Q8_0", "--llama-quantize", tool, *QUICK)
    result = cli(*run)
    assert result.code == 1, result
    assert "FAILED: o.gguf: " in result.out
    assert ("blk.1.ffn_up.weight has " in result.out) == (what == "weights")


# ----------------------------------------------------------------------------------- plans


def test_a_dry_run_predicts_and_writes_nothing(
    cli: Cli, gguf_256: Path, checkpoint_256: Path, made: Path, tmp_path: Path
) -> None:
    for source in (gguf_256, checkpoint_256):
        run = ("quantize", source, tmp_path / "absent", "--types", "Q8_0,Q4_0", "--dry-run")
        result = cli(*run, "--json", *QUICK)
        assert result.code == 0, result.err
        assert "converting" not in result.err
        assert {file["name"]: file["bytes"] for file in json.loads(result.out)["files"]} == {
            path.name: path.stat().st_size for path in made.glob("*.gguf")
        }
    assert not (tmp_path / "absent").exists()


def test_the_size_with_an_importance_matrix_that_is_not_made_yet_is_predicted_too(
    cli: Cli, gguf_256: Path, checkpoint_256: Path, tmp_path: Path
) -> None:
    common = ["--types", "Q2_K_S,Q8_0", "--checkpoint", checkpoint_256, "--json", *QUICK]
    planned = cli("quantize", gguf_256, tmp_path, *common, "--dry-run")
    made = cli("quantize", gguf_256, tmp_path / "out", *common)
    sizes = [
        {file["type"]: file["bytes"] for file in json.loads(one.out)["files"]}
        for one in (planned, made)
    ]
    assert sizes[0] == sizes[1]
    used = {file["type"]: file["imatrix"] for file in json.loads(made.out)["files"]}
    assert used == {"Q2_K_S": "wide-imatrix.gguf", "Q8_0": None}
    assert check_manifest(tmp_path / "out").n_files == 3


def test_a_tensor_that_does_not_fit_is_reported_and_no_fallback_refuses_it(
    cli: Cli, converted: Any, tmp_path: Path
) -> None:
    narrow = converted("ar-nar-len", "f16")
    arguments = ["--types", "Q4_K_M", *QUICK]
    result = cli("quantize", narrow, tmp_path / "a", *arguments, "--json")
    wanted = {"tensor": "blk.0.attn_k.weight", "n_columns": 64, "wanted": "Q4_K", "given": "Q5_0"}
    assert wanted in json.loads(result.out)["files"][0]["fallbacks"]
    shown = cli("quantize", narrow, tmp_path / "o.gguf", "Q4_K_M", *QUICK).err
    (line,) = [line for line in shown.splitlines() if "cannot be" in line]
    assert re.fullmatch(r"Q4_K_M: \d+ tensors \(rows of 64\) cannot be Q4_K.*: \d+ became .*", line)
    refused = cli("quantize", narrow, tmp_path / "b", *arguments, "--no-fallback")
    assert "--no-fallback" in error_of(refused, 2)
    assert not (tmp_path / "b").exists()


# -------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["o.gguf", "Q9"], "There is no type"),
        (["out", "--types", ","], "list of types is empty"),
        (["o.gguf", "--types", "Q8_0,Q4_0"], "give a folder"),
        (["o.gguf", "Q8_0", "--resume"], "--resume"),
        (["o.gguf", "Q8_0", "--tensor-types", "absent.txt"], "There is no list of tensor types"),
        (["o.gguf", "Q8_0", "--tensor-type", "attn"], "PATTERN=TYPE"),
        (["o.gguf", "Q8_0", "--llama-quantize", "/nowhere"], "no program that can be run"),
        (["o.gguf", "IQ2_XXS"], "without an importance matrix"),
        (["o.gguf", "IQ2_XXS", "--imatrix", "none"], "leave out --imatrix none"),
        (
            ["o.gguf", "Q4_K", "--tensor-type", "ffn_up=IQ2_XXS", "--imatrix", "none"],
            "Q4_K with ffn_up=iq2_xxs cannot be made without",
        ),
        (["o.gguf", "Q4_0", "--imatrix", "absent.gguf"], "There is no"),
        (["o.gguf", "Q4_0", "--imatrix", "."], "give it with --checkpoint"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_and_exit_code_2(
    cli: Cli,
    gguf_256: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in error_of(cli("quantize", gguf_256, *arguments), 2)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_type_after_a_folder_is_refused_and_both_right_forms_are_told(
    cli: Cli, gguf_256: Path, tmp_path: Path
) -> None:
    result = cli("quantize", gguf_256, tmp_path / "folder", "Q8_0", *QUICK)
    assert result.code == 2
    told = " ".join(result.err.split())
    assert "folder.gguf Q8_0 for a file" in told
    assert "folder --types Q8_0 for a folder" in told
    assert list(tmp_path.iterdir()) == []


def test_all_types_are_listed_a_line_each(cli: Cli) -> None:
    result = cli("quantize", "--list-types")
    assert result.code == 0
    assert [line.split()[0] for line in result.out.splitlines()[2:]] == list(FILE_TYPES)


def test_a_file_that_is_no_model_of_ours_is_quantized_and_not_measured(
    cli: Cli, converted: Any, tmp_path: Path
) -> None:
    path = converted("ar-nar-len", "f16")
    header = GgufFile(path)
    other = tmp_path / "other.gguf"
    ours = [name for name in header.keys if name.startswith("valle.")]
    other.write_bytes(header.changed([], drop=ours) + path.read_bytes()[header.data_start :])
    assert cli("quantize", other, tmp_path / "o.gguf", "Q8_0", *QUICK).code == 0
    result = cli("evaluate", tmp_path / "o.gguf", other)
    assert "not a converted VALL-E" in error_of(result, 2)


def test_an_importance_matrix_of_another_model_is_refused(
    cli: Cli, gguf_256: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.sft"
    make_checkpoint(other, Shape(dim=32, heads=2, layers=1, levels=2, audio_tokens=16))
    made = cli("imatrix", other, "-o", tmp_path / "m.gguf", "--utterances", 1, "--json")
    assert json.loads(made.out)["passes"] > 5
    arguments = ["Q4_0", "--imatrix", tmp_path / "m.gguf", *QUICK]
    result = cli("quantize", gguf_256, tmp_path / "o.gguf", *arguments)
    assert "of another model" in error_of(result, 2)


def test_no_program_and_no_library_is_exit_code_3(
    cli: Cli, gguf_256: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    arguments = ["Q8_0", "--llama-quantize", "library"]
    result = cli("quantize", gguf_256, tmp_path / "o.gguf", *arguments)
    assert "library was not found" in error_of(result, 3)


def test_a_full_disk_is_known_before_and_files_that_are_kept_need_no_room(
    cli: Cli, gguf_256: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    result = cli("quantize", gguf_256, tmp_path / "out", "--types", "Q8_0,Q4_0", *QUICK)
    assert "1,000 bytes free" in error_of(result, 3)
    assert not (tmp_path / "out").exists()
    resume = ("--resume", *QUICK)
    assert cli("quantize", gguf_256, made, "--types", "Q8_0,Q4_0", *resume).code == 0
    result = cli("quantize", gguf_256, made, "--types", "Q8_0,Q5_0", *resume)
    assert "1,000 bytes free" in error_of(result, 3)


def test_types_given_one_by_one_are_all_made(cli: Cli, gguf_256: Path, tmp_path: Path) -> None:
    run = ("quantize", gguf_256, tmp_path / "out", "--types", "Q4_0", "--types", "Q8_0,F16", *QUICK)
    result = cli(*run, "--dry-run", "--json")
    assert result.code == 0, result.err
    assert [one["type"] for one in json.loads(result.out)["files"]] == ["Q4_0", "Q8_0", "F16"]
