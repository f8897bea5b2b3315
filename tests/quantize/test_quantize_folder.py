"""What a run may do to a folder: nothing of the user's is lost, nothing of ours is left."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_checkpoint import Shape, make_checkpoint
from safetensors.numpy import save_file
from support import Cli, error_of

from valle_convert import plan_conversion, write_gguf
from valle_convert.families.family import Choices
from valle_convert.quantize.folder import settle_folder
from valle_convert.quantize.manifest import (
    ManifestFile,
    check_manifest,
    read_manifest,
    write_manifest,
)
from valle_convert.quantize.report import FileReport, QuantizeReport
from valle_convert.quantize.tool import Quantizer, find_quantizer

QUICK = ("--threads", "1")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_utterance(folder: Path, name: str = "a", **arrays: object) -> None:
    folder.mkdir(exist_ok=True)
    draw = np.random.default_rng(len(name))
    values: dict[str, object] = {
        "phonemes": np.array([1, 40, 41, 2]),
        "response": draw.integers(0, 64, (10, 3)),
    }
    np.savez(folder / f"{name}.npz", **{**values, **arrays})  # type: ignore[arg-type]


@pytest.fixture
def made(cli: Cli, gguf_256: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    assert cli("quantize", gguf_256, folder, "--types", "Q8_0,Q4_0", *QUICK).code == 0
    return folder


# ------------------------------------------------------------------ nothing of the user's


def test_resume_does_not_replace_a_file_that_no_manifest_lists(
    cli: Cli, gguf_256: Path, tmp_path: Path
) -> None:
    (tmp_path / "wide-Q8_0.gguf").write_bytes(b"the user's own")
    result = cli("quantize", gguf_256, tmp_path, "--types", "Q8_0", "--resume", *QUICK)
    assert "no manifest lists it" in error_of(result, 2)
    assert contents(tmp_path) == {"wide-Q8_0.gguf": b"the user's own"}


def test_resume_does_not_replace_an_importance_matrix_of_other_work(
    cli: Cli, gguf_256: Path, checkpoint_256: Path, tmp_path: Path
) -> None:
    (tmp_path / "wide-imatrix.gguf").write_bytes(b"the user's own")
    arguments = ["--types", "Q2_K_S", "--checkpoint", checkpoint_256, "--resume", *QUICK]
    error_of(cli("quantize", gguf_256, tmp_path, *arguments), 2)
    assert contents(tmp_path) == {"wide-imatrix.gguf": b"the user's own"}


def test_sums_and_a_manifest_of_somebody_else_are_not_replaced(
    cli: Cli, gguf_256: Path, tmp_path: Path
) -> None:
    for name in ("SHA256SUMS", "manifest.json"):
        folder = tmp_path / name.lower()
        folder.mkdir()
        (folder / name).write_text("{}")
        result = cli("quantize", gguf_256, folder, "--types", "Q8_0", *QUICK)
        assert "not overwritten" in error_of(result, 2)
        assert list(contents(folder)) == [name]


def test_an_output_that_is_the_input_is_refused_even_with_force(
    cli: Cli, gguf_256: Path, tmp_path: Path
) -> None:
    source = tmp_path / "wide-F16.gguf"
    shutil.copy(gguf_256, source)
    result = cli("quantize", source, tmp_path, "--types", "F16", "--force", *QUICK)
    assert "input" in error_of(result, 2)
    assert source.read_bytes() == gguf_256.read_bytes()


@pytest.mark.parametrize("name", ["o.gguf", "wide.sft"])
def test_a_log_is_neither_the_output_nor_an_input(
    cli: Cli, checkpoint_256: Path, tmp_path: Path, name: str
) -> None:
    source = tmp_path / "wide.sft"
    shutil.copy(checkpoint_256, source)
    arguments = [tmp_path / "o.gguf", "Q8_0", "--log", tmp_path / name, "--force", *QUICK]
    error_of(cli("quantize", source, *arguments), 2)
    assert source.read_bytes() == checkpoint_256.read_bytes()
    result = cli("quantize", source, tmp_path, "--types", "Q8_0", "--log", tmp_path / "a.gguf")
    assert result.code == 2
    assert list(contents(tmp_path)) == ["wide.sft"]


def test_a_half_made_folder_is_told_of_resume(cli: Cli, gguf_256: Path, made: Path) -> None:
    result = cli("quantize", gguf_256, made, "--types", "Q8_0,Q5_0", *QUICK)
    assert "--resume keeps" in error_of(result, 2)


def test_threads_change_no_byte_and_are_no_reason_to_make_a_file_again(
    cli: Cli, gguf_256: Path, made: Path
) -> None:
    before = contents(made)
    arguments = ["--types", "Q8_0,Q4_0", "--resume", "--threads", "2", "--json"]
    result = cli("quantize", gguf_256, made, *arguments)
    assert [file["status"] for file in json.loads(result.out)["files"]] == ["kept", "kept"]
    cli("quantize", gguf_256, made, *arguments, "--force", "--types", "Q8_0,Q4_0")
    assert contents(made) == before


# ------------------------------------------------------------------------ files of earlier runs


def test_files_of_earlier_types_are_said_and_prune_removes_them(
    cli: Cli, gguf_256: Path, made: Path
) -> None:
    arguments = ["--types", "Q8_0", "--resume", *QUICK]
    result = cli("quantize", gguf_256, made, *arguments)
    assert "has not judged: wide-Q4_0.gguf" in result.err
    assert (made / "wide-Q4_0.gguf").exists()
    result = cli("quantize", gguf_256, made, *arguments, "--prune")
    assert result.code == 0
    assert set(contents(made)) == {"wide-Q8_0.gguf", "manifest.json", "SHA256SUMS"}
    assert [file.name for file in read_manifest(made / "manifest.json")] == ["wide-Q8_0.gguf"]
    assert check_manifest(made).passed


@pytest.mark.parametrize(
    ("limit", "code", "why"),
    [((), 1, "this run failed"), (("--no-measure",), 3, "not everything could be judged")],
)
def test_prune_removes_nothing_unless_the_verdict_passed(
    cli: Cli,
    gguf_256: Path,
    checkpoint_256: Path,
    made: Path,
    limit: tuple[str, ...],
    code: int,
    why: str,
) -> None:
    before = contents(made)
    arguments = ["--types", "Q8_0", "--resume", "--prune", "--force", "--max-kl", "1e-9"]
    more = ["--checkpoint", checkpoint_256, "--utterances", 1, "--threads", 1]
    result = cli("quantize", gguf_256, made, *arguments, *more, *limit)
    assert result.code == code, result
    assert f"not removed: wide-Q4_0.gguf, since {why}" in result.err
    assert contents(made).items() >= {n: b for n, b in before.items() if ".gguf" in n}.items()


def test_prune_removes_nothing_where_a_run_breaks_off(
    cli: Cli, gguf_256: Path, made: Path, tmp_path: Path, program: Quantizer
) -> None:
    tool = tmp_path / "tool"
    program_path = program.command[0]
    tool.write_text(
        f'#!/bin/sh\ncase "$*" in *--dry-run*) ;; *Q5_0*) exit 7;; esac\n'
        f'exec "{program_path}" "$@"\n'
    )
    tool.chmod(0o755)
    arguments = ["--types", "Q8_0,Q5_0", "--resume", "--prune", "--force", *QUICK]
    error_of(cli("quantize", gguf_256, made, *arguments, "--llama-quantize", tool), 3)
    assert (made / "wide-Q4_0.gguf").exists()
    assert check_manifest(made).passed


def test_prune_leaves_other_models_also_of_a_type_that_was_asked_for(
    cli: Cli, checkpoint_256: Path, made: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.gguf"
    write_gguf(plan_conversion(checkpoint_256, Choices("f32")), other)
    before = contents(made)
    result = cli("quantize", other, made, "--types", "Q8_0", "--prune", *QUICK)
    assert result.code == 0, result
    assert (
        "not removed: wide-Q4_0.gguf, wide-Q8_0.gguf, since this run did not quantize their source"
    ) in result.err
    assert contents(made).items() >= {n: b for n, b in before.items() if ".gguf" in n}.items()
    names = [file.name for file in read_manifest(made / "manifest.json")]
    assert names == ["other-Q8_0.gguf", "wide-Q4_0.gguf", "wide-Q8_0.gguf"]
    assert check_manifest(made).passed


def test_prune_leaves_a_file_that_was_put_under_the_name_of_one_of_ours(
    cli: Cli, gguf_256: Path, made: Path
) -> None:
    size = (made / "wide-Q4_0.gguf").stat().st_size
    (made / "wide-Q4_0.gguf").write_bytes(bytes(size))
    result = cli("quantize", gguf_256, made, "--types", "Q8_0", "--resume", "--prune", *QUICK)
    assert "wide-Q4_0.gguf, since the manifest lists other bytes under this name" in result.err
    assert (made / "wide-Q4_0.gguf").read_bytes() == bytes(size)


def test_an_importance_matrix_that_the_run_reads_or_that_files_were_made_with_is_left(
    cli: Cli, gguf_256: Path, checkpoint_256: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    matrix = ["--checkpoint", checkpoint_256, "--imatrix-utterances", 1]
    assert cli("quantize", gguf_256, out, "--types", "Q2_K_S", *matrix, *QUICK).code == 0
    prune = ["--resume", "--prune", *QUICK]
    given = ["--imatrix", out / "wide-imatrix.gguf", "--types", "F16"]
    result = cli("quantize", gguf_256, out, *given, *matrix[:2], *prune)
    assert result.code == 0, result
    assert "not removed: wide-imatrix.gguf, since this run reads it" in result.err
    assert (out / "wide-imatrix.gguf").exists()
    assert not (out / "wide-Q2_K_S.gguf").exists()
    # Of the checkpoint that the other file comes from too.
    other = tmp_path / "other.gguf"
    write_gguf(plan_conversion(checkpoint_256, Choices("f32")), other)
    again = ["--types", "F16,Q2_K_S", "--resume", *matrix, *QUICK]
    assert cli("quantize", gguf_256, out, *again).code == 0
    result = cli("quantize", other, out, "--types", "Q8_0", *matrix[:2], *prune)
    assert "wide-imatrix.gguf, since other files here were made with it" in result.err
    assert {"wide-Q2_K_S.gguf", "wide-imatrix.gguf"} < set(contents(out))
    assert check_manifest(out).passed


def test_an_importance_matrix_is_listed_also_where_the_run_is_refused_after_it(
    cli: Cli, gguf_256: Path, checkpoint_256: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = ("quantize", gguf_256, out, "--types", "Q2_K_S", "--checkpoint", checkpoint_256, *QUICK)
    assert cli(*run, "--imatrix-utterances", 1).code == 0
    (out / "wide-imatrix.gguf").unlink()
    again = cli(*run, "--imatrix-utterances", 2, "--resume")
    assert "another importance matrix" in error_of(again, 2)
    assert check_manifest(out).passed


@pytest.mark.parametrize("manifest", [None, b"", b"[", b'{"schema_version": 1, "files": [{}]}'])
def test_prune_removes_nothing_where_the_manifest_is_missing_or_damaged(
    cli: Cli, gguf_256: Path, made: Path, manifest: bytes | None
) -> None:
    path = made / "manifest.json"
    path.unlink() if manifest is None else path.write_bytes(manifest)
    before = contents(made)
    arguments = ["--types", "Q8_0", "--prune", *QUICK]
    assert "give another folder, or --force" in error_of(
        cli("quantize", gguf_256, made, *arguments), 2
    )
    assert contents(made) == before
    result = cli("quantize", gguf_256, made, *arguments, "--force")
    assert result.code == 0
    assert "no manifest lists: wide-Q4_0.gguf" in result.err
    assert contents(made)["wide-Q4_0.gguf"] == before["wide-Q4_0.gguf"]


@given(data=st.data())
def test_what_prune_removes_and_the_manifest_afterwards(data: st.DataObject) -> None:
    """Against the rule, word by word, over folders of any kind."""
    parts = st.sampled_from(["a", "b", "b-nar", "b-nar-1", "c", "c-nar", "d"])
    ours = data.draw(st.sets(parts), "ours")
    names = sorted(data.draw(st.sets(parts), "listed") | ours)
    foreign = data.draw(st.sets(parts), "of another source")
    changed = data.draw(st.sets(parts), "changed")
    passed = data.draw(st.booleans(), "passed")
    prune = data.draw(st.booleans(), "prune")
    failures = () if passed else ("too much",)
    row = FileReport("x", "Q8_0", "made", 1, 8.0, {}, failures=failures)
    report = QuantizeReport("x", None, {}, (), "", "", None, (row,))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        listed: dict[str, ManifestFile] = {}
        for one in names:
            path = folder / f"{one}.gguf"
            path.write_bytes(one.encode())
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            source = ("1" if one in foreign else "0") * 64
            listed[path.name] = ManifestFile(
                path.name, "Q8_0", len(one), sha256, source, {}, (), None, ()
            )
            if one in changed:
                path.write_bytes(one.upper().encode())
        write_manifest(folder, list(listed.values()))
        done = settle_folder(
            *(report, folder, listed, {f"{one}.gguf" for one in ours}, {"0" * 64}), prune=prune
        )
        left = {path.stem for path in folder.glob("*.gguf")}
        may = set(names) - ours if prune and passed else set()
        for one in names:
            group = {other for other in names if other.split("-")[0] == one.split("-")[0]} - ours
            assert (one not in left) == (one in may and not group & (foreign | changed))
        assert {file.name for file in read_manifest(folder / "manifest.json")} == {
            f"{one}.gguf" for one in left
        }
        others = " ".join(done.notes)
        assert all(f"{one}.gguf" in others for one in set(names) - ours)


def test_prune_leaves_what_no_manifest_lists(cli: Cli, gguf_256: Path, made: Path) -> None:
    (made / "mine.gguf").write_bytes(b"mine")
    (made / "notes.txt").write_text("mine")
    result = cli("quantize", gguf_256, made, "--types", "Q8_0", "--resume", "--prune", *QUICK)
    assert "no manifest lists: mine.gguf" in result.err
    assert {"mine.gguf", "notes.txt"} < set(contents(made))


def test_check_manifest_tells_of_models_that_no_manifest_lists(cli: Cli, made: Path) -> None:
    (made / "extra.gguf").write_bytes(b"?")
    result = cli("check-manifest", made)
    assert result.code == 1
    assert "extra.gguf: no manifest lists it" in result.out


# ------------------------------------------------------------------------ refused at once


def test_outputs_that_are_there_are_refused_before_anything_is_converted(
    cli: Cli, checkpoint_256: Path, tmp_path: Path
) -> None:
    (tmp_path / "o.gguf").touch()
    (tmp_path / "wide-Q8_0.gguf").touch()
    for arguments in ([tmp_path / "o.gguf", "Q8_0"], [tmp_path, "--types", "Q8_0"]):
        result = cli("quantize", checkpoint_256, *arguments, *QUICK)
        assert "is not overwritten" in error_of(result, 2)
        assert "converting" not in result.err


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
@pytest.mark.parametrize("with_checkpoint", [True, False])
def test_bad_utterances_are_refused_at_once(
    cli: Cli,
    gguf_256: Path,
    checkpoint_256: Path,
    tmp_path: Path,
    dry_run: list[str],
    with_checkpoint: bool,
) -> None:
    write_utterance(tmp_path / "bad", response=np.full((10, 3), 64))
    checkpoint = ["--checkpoint", checkpoint_256] if with_checkpoint else []
    arguments = ["--types", "Q8_0", "--data", tmp_path / "bad", *checkpoint, *dry_run]
    result = cli("quantize", gguf_256, tmp_path / "out", *arguments, "--threads", 1)
    assert "holds 64" in error_of(result, 2)
    assert "wrote" not in result.err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_sees_outputs_that_are_there(cli: Cli, gguf_256: Path, made: Path) -> None:
    before = contents(made)
    arguments = ["--types", "Q8_0,Q5_0", "--dry-run", "--threads", "1"]
    assert "--resume keeps" in error_of(cli("quantize", gguf_256, made, *arguments), 2)
    result = cli("quantize", gguf_256, made, *arguments, "--resume", "--json")
    statuses = [file["status"] for file in json.loads(result.out)["files"]]
    assert statuses == ["kept", "planned"]
    assert contents(made) == before


def test_a_dry_run_of_a_checkpoint_writes_nothing_and_needs_no_conversion(
    cli: Cli, checkpoint_256: Path, tmp_path: Path
) -> None:
    planned = cli(
        "quantize", checkpoint_256, tmp_path / "x", "--types", "Q4_0", "--dry-run", *QUICK
    )
    assert planned.code == 0, planned.err
    assert "converting" not in planned.err
    assert not (tmp_path / "x").exists()


def test_files_that_are_kept_need_no_room(
    cli: Cli, gguf_256: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(made)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    result = cli("quantize", gguf_256, made, "--types", "Q8_0,Q4_0", "--resume", *QUICK)
    assert result.code == 0, result.err
    result = cli("quantize", gguf_256, made, "--types", "Q8_0,Q5_0", "--resume", *QUICK)
    assert "1,000 bytes free" in error_of(result, 3)


def test_a_report_may_lie_in_the_folder_that_is_made(
    cli: Cli, gguf_256: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "out"
    arguments = ["--types", "Q8_0", "--report", out / "r.md", "--log", out / "log", *QUICK]
    result = cli("quantize", gguf_256, out, *arguments)
    assert result.code == 0, result.err
    assert {"r.md", "log", "wide-Q8_0.gguf"} < set(contents(out))


@pytest.mark.parametrize("with_report", [True, False])
def test_a_run_that_fails_leaves_no_folder(
    cli: Cli, gguf_256: Path, tmp_path: Path, program: Quantizer, with_report: bool
) -> None:
    out = tmp_path / "deep" / "out"
    tool = tmp_path / "tool"
    dry_run = f'if [ "$1" = --dry-run ]; then exec "{program.command[0]}" "$@"; fi'
    tool.write_text(f"#!/bin/sh\n{dry_run}\nexit 7\n")
    tool.chmod(0o755)
    report = ["--report", out / "r.json"] if with_report else []
    arguments = ["--types", "Q8_0", "--llama-quantize", tool, *report, *QUICK]
    error_of(cli("quantize", gguf_256, out, *arguments), 3)
    assert not (tmp_path / "deep").exists()


def test_a_lora_that_was_merged_has_to_be_given(cli: Cli, tmp_path: Path) -> None:
    checkpoint, lora = tmp_path / "c.sft", tmp_path / "l.sft"
    make_checkpoint(checkpoint, Shape(dim=32, heads=2, layers=1, levels=2, audio_tokens=16))
    target = "model.layers.0.self_attn.q_proj"
    draw = np.random.default_rng(0)
    down, up = (draw.standard_normal(size, np.float32) for size in ((4, 32), (32, 4)))
    save_file({f"{target}.lora_A": down, f"{target}.lora_B": up}, lora)
    merged = tmp_path / "merged.gguf"
    assert cli(checkpoint, merged, "--lora", lora, "--lora-alpha", 16).code == 0
    arguments = [tmp_path / "o.gguf", "Q8_0", "--checkpoint", checkpoint, "--threads", 1]
    assert "--lora" in error_of(cli("quantize", merged, *arguments), 2)
    moved = tmp_path / "renamed.sft"
    lora.rename(moved)
    result = cli("quantize", merged, *arguments, "--lora", moved, "--lora-alpha", 16, "--dry-run")
    assert result.code == 0, result.err
    result = cli("quantize", merged, *arguments, "--lora", moved, "--lora-alpha", 8, "--dry-run")
    assert "alpha 16" in error_of(result, 2)


# ------------------------------------------------------------------------ killed, or two at once


def start(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "valle_convert", "quantize", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.fixture
def slow(program: Quantizer, tmp_path: Path) -> tuple[Quantizer, Path]:
    """A tool that plans, writes its process id, and then works without a word."""
    mark, path = tmp_path / "pid", tmp_path / "slow"
    dry_run = f'if [ "$1" = --dry-run ]; then exec "{program.command[0]}" "$@"; fi'
    path.write_text(f'#!/bin/sh\n{dry_run}\necho $$ > "{mark}"\nexec sleep 600\n')
    path.chmod(0o755)
    return find_quantizer(str(path)), mark


def test_a_killed_run_of_a_checkpoint_leaves_nothing_and_its_child_ends(
    slow: tuple[Quantizer, Path], checkpoint_256: Path, tmp_path: Path
) -> None:
    tool, mark = slow
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    run = start(
        *(checkpoint_256, out, "--types", "Q8_0", "--llama-quantize", tool.command[0], *QUICK)
    )
    try:
        assert wait_for(lambda: mark.exists() and mark.read_text().strip() != "")
        run.kill()
        run.wait(timeout=30)
    finally:
        run.kill()
        run.communicate()
    pid = int(mark.read_text())
    assert wait_for(lambda: not alive(pid), seconds=5)
    assert list(out.iterdir()) == []
    assert list(out.parent.iterdir()) == [out]


def test_a_second_run_into_the_same_folder_is_one_clear_sentence(
    cli: Cli, slow: tuple[Quantizer, Path], gguf_256: Path, tmp_path: Path
) -> None:
    tool, mark = slow
    out = tmp_path / "out"
    run = start(gguf_256, out, "--types", "Q8_0", "--llama-quantize", tool.command[0], *QUICK)
    try:
        assert wait_for(lambda: mark.exists() and mark.read_text().strip() != "")
        result = cli("quantize", gguf_256, out, "--types", "Q4_0", *QUICK)
        assert "Another run" in error_of(result, 3)
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=30) == 130
    finally:
        run.kill()
        run.communicate()
    assert cli("quantize", gguf_256, out, "--types", "Q4_0", *QUICK).code == 0


def test_the_conversion_lies_in_a_file_without_a_name(tmp_path: Path) -> None:
    from valle_convert.quantize.source import Scratch

    scratch = Scratch(tmp_path / "not" / "there")
    file, path = scratch.new()
    file.write(b"data")
    file.flush()
    assert path.read_bytes() == b"data"
    assert list(tmp_path.iterdir()) == []
    scratch.close()
    assert not os.path.exists(path)  # noqa: PTH110 - the descriptor is closed
