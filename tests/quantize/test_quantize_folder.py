"""What a run may do to a folder: nothing of the user's is lost, nothing of ours is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import Cli, error_of

from valle_convert.quantize.manifest import (
    check_manifest,
)
from valle_convert.quantize.tool import Quantizer, find_quantizer

QUICK = ("--threads", "1")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_utterance(folder: Path, name: str = "a") -> None:
    folder.mkdir(exist_ok=True)
    codes = np.random.default_rng(len(name)).integers(0, 64, (10, 3))
    np.savez(folder / f"{name}.npz", phonemes=np.array([1, 40, 41, 2]), response=codes)


@pytest.fixture
def utterances(tmp_path: Path) -> Path:
    write_utterance(tmp_path / "utterances")
    return tmp_path / "utterances"


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
    assert cli("quantize", source, *arguments).code == 2
    assert source.read_bytes() == checkpoint_256.read_bytes()
    result = cli("quantize", source, tmp_path, "--types", "Q8_0", "--log", tmp_path / "a.gguf")
    assert result.code == 2
    assert list(contents(tmp_path)) == ["wide.sft"]


def test_a_half_made_folder_is_told_of_resume(cli: Cli, gguf_256: Path, made: Path) -> None:
    result = cli("quantize", gguf_256, made, "--types", "Q8_0,Q5_0", *QUICK)
    assert "--resume keeps" in error_of(result, 2)


# ------------------------------------------------------------------------ files of earlier runs


def test_files_of_earlier_types_are_said(cli: Cli, gguf_256: Path, made: Path) -> None:
    (made / "mine.gguf").write_bytes(b"mine")
    result = cli("quantize", gguf_256, made, "--types", "Q8_0", "--resume", *QUICK)
    assert "still has files of earlier runs: wide-Q4_0.gguf" in result.err
    assert "no manifest lists: mine.gguf" in result.err
    assert {"wide-Q4_0.gguf", "mine.gguf"} < set(contents(made))
    checked = cli("check-manifest", made)
    assert checked.code == 1
    assert "mine.gguf: no manifest lists it" in checked.out


def test_a_run_that_breaks_off_leaves_whole_files_and_a_manifest_of_them(
    cli: Cli, gguf_256: Path, made: Path, tmp_path: Path, program: Quantizer
) -> None:
    tool = tmp_path / "tool"
    tool.write_text(
        f'#!/bin/sh\ncase "$*" in *--dry-run*) ;; *Q5_0*) exit 7;; esac\n'
        f'exec "{program.command[0]}" "$@"\n'
    )
    tool.chmod(0o755)
    arguments = ["--types", "F16,Q5_0", "--resume", *QUICK]
    error_of(cli("quantize", gguf_256, made, *arguments, "--llama-quantize", tool), 3)
    assert (made / "wide-F16.gguf").exists()
    assert check_manifest(made).passed


def test_an_importance_matrix_goes_with_the_files_that_were_made_with_it(
    cli: Cli, gguf_256: Path, checkpoint_256: Path, tmp_path: Path, utterances: Path
) -> None:
    out, checkpoint = tmp_path / "out", ("--checkpoint", checkpoint_256)
    matrix = ("--imatrix", utterances, *checkpoint, *QUICK)
    assert cli("quantize", gguf_256, out, "--types", "Q2_K,Q4_0", *matrix).code == 0
    assert cli("quantize", gguf_256, out, "--types", "F16", *QUICK).code == 0
    run = ("evaluate", out, *checkpoint, "--utterances", 1, "--prune", "--types")
    for types, left in (("Q2_K,F16", {"Q2_K", "F16", "imatrix"}), ("F16", {"F16"})):
        assert cli(*run, types).code == 0
        assert {path.stem for path in out.glob("*.gguf")} == {f"wide-{one}" for one in left}
        assert check_manifest(out).passed


def test_an_importance_matrix_is_listed_also_where_the_run_is_refused_after_it(
    cli: Cli, gguf_256: Path, checkpoint_256: Path, tmp_path: Path, utterances: Path
) -> None:
    out = tmp_path / "out"
    run = ("quantize", gguf_256, out, "--types", "Q2_K_S", "--checkpoint", checkpoint_256)
    assert cli(*run, "--imatrix", utterances).code == 0
    (out / "wide-imatrix.gguf").unlink()
    write_utterance(utterances, "more")
    again = cli(*run, "--imatrix", utterances, "--resume")
    assert "another importance matrix" in error_of(again, 2)
    assert check_manifest(out).passed


@pytest.mark.parametrize("manifest", [None, b"", b"[", b'{"schema_version": 1, "files": [{}]}'])
def test_a_folder_whose_manifest_is_missing_or_damaged_takes_force(
    cli: Cli, gguf_256: Path, made: Path, manifest: bytes | None
) -> None:
    path = made / "manifest.json"
    path.unlink() if manifest is None else path.write_bytes(manifest)
    before = contents(made)
    run = ("quantize", gguf_256, made, "--types", "Q8_0", *QUICK)
    assert "give another folder, or --force" in error_of(cli(*run), 2)
    assert contents(made) == before
    result = cli(*run, "--force")
    assert result.code == 0
    assert "no manifest lists: wide-Q4_0.gguf" in result.err
    assert contents(made)["wide-Q4_0.gguf"] == before["wide-Q4_0.gguf"]


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


def test_a_log_may_lie_in_the_folder_that_is_made(cli: Cli, gguf_256: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    result = cli("quantize", gguf_256, out, "--types", "Q8_0", "--log", out / "log", *QUICK)
    assert result.code == 0, result.err
    assert {"log", "wide-Q8_0.gguf"} < set(contents(out))


def test_a_run_that_fails_leaves_no_folder(
    cli: Cli, gguf_256: Path, tmp_path: Path, program: Quantizer
) -> None:
    out = tmp_path / "deep" / "out"
    tool = tmp_path / "tool"
    dry_run = f'if [ "$1" = --dry-run ]; then exec "{program.command[0]}" "$@"; fi'
    tool.write_text(f"#!/bin/sh\n{dry_run}\nexit 7\n")
    tool.chmod(0o755)
    error_of(cli("quantize", gguf_256, out, "--types", "Q8_0", "--llama-quantize", tool, *QUICK), 3)
    assert not (tmp_path / "deep").exists()


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
