from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from quantize.making import make_one

from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.gguf_file.keys import DIGEST_KEYS
from valle_convert.gguf_file.read import GgufFile
from valle_convert.quantize.imatrix import (
    Entry,
    ImatrixFile,
    ImatrixInput,
    encode_imatrix,
    read_imatrix,
)
from valle_convert.quantize.options import MakeOptions, RunLog
from valle_convert.quantize.plan import arguments_of, plan_file
from valle_convert.quantize.source import Source
from valle_convert.quantize.tool import Quantizer, find_quantizer
from valle_convert.quantize.types import FILE_TYPES

OPTIONS = MakeOptions(threads=1)
SHA = "ab" * 32


def script(path: Path, text: str) -> Quantizer:
    """A program of somebody else's in the place of llama-quantize."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return find_quantizer(str(path))


@pytest.fixture
def imatrix(source_256: Source, tmp_path: Path) -> ImatrixInput:
    draw = np.random.default_rng(0)
    entries = {
        name: Entry(draw.random(tensor.shape[-1], dtype=np.float32) * 100, 100)
        for name, tensor in source_256.header.tensors.items()
        if len(tensor.shape) == 2
    }
    path = tmp_path / "m.gguf"
    path.write_bytes(encode_imatrix(ImatrixFile(entries, ("random",), 5, 20)))
    return ImatrixInput(path, path.name, read_imatrix(path), SHA)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K_M", "IQ4_XS", "Q5_0", "F16", "COPY"])
def test_program_and_library_write_the_same_bytes(
    program: Quantizer, library: Quantizer, source_256: Source, tmp_path: Path, name: str
) -> None:
    outputs = []
    for tool in (program, library):
        path = tmp_path / f"{tool.kind}.gguf"
        tool.run(arguments_of(FILE_TYPES[name], OPTIONS, source_256.path, path, None))
        outputs.append(path.read_bytes())
    assert outputs[0] == outputs[1]


def test_they_do_so_with_an_importance_matrix_and_tensor_types_too(
    program: Quantizer,
    library: Quantizer,
    source_256: Source,
    imatrix: ImatrixInput,
    tmp_path: Path,
) -> None:
    settings = MakeOptions(tensor_types=("attn_V=q6_K", r"blk\.1\.ffn_down=q8_0"), threads=1)
    outputs = []
    for tool in (program, library):
        path = tmp_path / f"{tool.kind}.gguf"
        arguments = arguments_of(
            FILE_TYPES["Q4_K_M"], settings, source_256.path, path, imatrix.path
        )
        tool.run(arguments)
        outputs.append(path.read_bytes())
    assert outputs[0] == outputs[1]
    plain = tmp_path / "plain.gguf"
    program.run(arguments_of(FILE_TYPES["Q4_K_M"], settings, source_256.path, plain, None))
    assert plain.read_bytes()[-4096:] != outputs[0][-4096:]  # the matrix makes a difference


def test_a_file_says_how_it_was_made_and_names_no_path(
    program: Quantizer, source_256: Source, imatrix: ImatrixInput, tmp_path: Path
) -> None:
    settings = MakeOptions(tensor_types=("ffn_down=q6_k",), threads=1)
    plan = plan_file(program, source_256, FILE_TYPES["Q4_K_M"], settings, imatrix)
    make_one(program, plan, tmp_path / "out.gguf")
    header = GgufFile(tmp_path / "out.gguf")
    said = {
        name.removeprefix("valle.quantize."): header.keys[name]
        for name in header.keys
        if name.startswith("valle.quantize.")
    }
    assert said["type"] == "Q4_K_M"
    assert said["tool"] == "llama-quantize"
    assert said["tool_version"] == plan.tool_version != "unknown"
    assert said["tool_sha256"] == hashlib.sha256(Path(program.command[0]).read_bytes()).hexdigest()
    assert said["source_sha256"] == hashlib.sha256(source_256.path.read_bytes()).hexdigest()
    assert said["imatrix_sha256"] == SHA
    assert said["arguments"] == [
        *("llama-quantize", "--tensor-type", "ffn_down=q6_k", "--imatrix", "m.gguf"),
        *(source_256.name, "wide-f16-Q4_K_M.gguf", "Q4_K_M"),
    ]
    assert header.keys["quantize.imatrix.file"] == "m.gguf"
    assert header.keys["quantize.imatrix.dataset"] == "random"
    assert header.keys["quantize.imatrix.chunks_count"] == 5
    assert header.keys["general.file_type"] == FILE_TYPES["Q4_K_M"].number
    folders = {str(tmp_path), str(source_256.path.parent), str(Path(program.command[0]).parent)}
    text = (tmp_path / "out.gguf").read_bytes()[: header.data_start]
    assert not any(folder.encode() in text for folder in folders)


def test_every_key_of_the_source_but_its_digests_is_still_there(
    program: Quantizer, source_256: Source, tmp_path: Path
) -> None:
    plan = plan_file(program, source_256, FILE_TYPES["Q8_0"], OPTIONS)
    make_one(program, plan, tmp_path / "out.gguf")
    header = GgufFile(tmp_path / "out.gguf")
    for name in source_256.header.keys:
        if name in DIGEST_KEYS:
            assert name not in header.keys
        elif name not in ("general.file_type", "general.quantization_version"):
            assert header.raw(name) == source_256.header.raw(name)


def test_the_digests_are_those_of_the_file_and_of_its_tensors(
    program: Quantizer, source_256: Source, tmp_path: Path
) -> None:
    plan = plan_file(program, source_256, FILE_TYPES["Q5_0"], OPTIONS)
    done = make_one(program, plan, tmp_path / "out.gguf")
    raw = (tmp_path / "out.gguf").read_bytes()
    header = GgufFile(tmp_path / "out.gguf")
    assert done.n_bytes == len(raw)
    assert done.sha256 == hashlib.sha256(raw).hexdigest()
    for tensor in done.tensors:
        entry = header.tensors[tensor.name]
        start = header.data_start + entry.offset
        assert tensor.sha256 == hashlib.sha256(raw[start : start + entry.n_bytes]).hexdigest()
    assert len(done.tensors) == len(header.tensors)


def test_progress_ends_at_the_whole_source(
    program: Quantizer, source_256: Source, tmp_path: Path
) -> None:
    from contextlib import contextmanager

    totals, steps = [], []

    @contextmanager
    def progress(_label: str, total: int, unit: str):  # type: ignore[no-untyped-def] # noqa: ANN202
        assert unit == "B"
        totals.append(total)
        yield steps.append

    plan = plan_file(program, source_256, FILE_TYPES["Q8_0"], OPTIONS)
    make_one(program, plan, tmp_path / "o.gguf", RunLog(progress))
    assert [sum(steps)] == totals
    assert len(steps) == len(source_256.header.tensors)


def test_a_failure_shows_the_last_lines_and_leaves_nothing(
    program: Quantizer, source_256: Source, tmp_path: Path
) -> None:
    plan = plan_file(program, source_256, FILE_TYPES["Q8_0"], OPTIONS)
    tool = script(tmp_path / "broken", 'echo "the model is upside down" >&2; exit 7')
    folder = tmp_path / "out"
    folder.mkdir()
    logs: list[str] = []
    with pytest.raises(EnvironmentFault, match=r"exit code 7(.|\n)*upside down"):
        make_one(tool, plan, folder / "out.gguf", RunLog(keep_log=logs.extend))
    assert list(folder.iterdir()) == []
    assert logs == ["the model is upside down"]


def test_a_death_by_signal_is_named(source_256: Source, tmp_path: Path) -> None:
    tool = script(tmp_path / "crash", "kill -SEGV $$")
    with pytest.raises(EnvironmentFault, match="killed by SIGSEGV"):
        plan_file(tool, source_256, FILE_TYPES["Q8_0"], OPTIONS)


def test_a_program_that_makes_something_else_than_it_planned_is_caught(
    program: Quantizer, source_256: Source, tmp_path: Path
) -> None:
    plan = plan_file(program, source_256, FILE_TYPES["Q8_0"], OPTIONS)
    # It calls the real program, with another type.
    tool = script(tmp_path / "other", f'"{program.command[0]}" "$1" "$2" Q5_0 1')
    with pytest.raises(EnvironmentFault, match=r"token_embd\.weight is .*Q6_K.*expected .*Q8_0"):
        make_one(tool, plan, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("n_bytes", [0, 100, 100_000])
def test_a_damaged_file_of_the_program_is_the_machines_fault(
    program: Quantizer, source_256: Source, tmp_path: Path, n_bytes: int
) -> None:
    plan = plan_file(program, source_256, FILE_TYPES["Q8_0"], OPTIONS)
    real = f'"{program.command[0]}" "$1" "$2" Q8_0 1 && truncate -s {n_bytes} "$2"'
    tool = script(tmp_path / "forgetful", real)
    with pytest.raises(EnvironmentFault, match="ended without an error, but: output of llama-q"):
        make_one(tool, plan, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_a_log_in_other_words_is_no_prediction_and_the_file_is_made_all_the_same(
    program: Quantizer, source_256: Source, tmp_path: Path
) -> None:
    # The real program, whose every "type" is "kind" from a version to come on.
    words = f'"{program.command[0]}" "$@" > "{tmp_path}/log" 2>&1; code=$?'
    tool = script(tmp_path / "newer", f'{words}\nsed "s/type/kind/g" "{tmp_path}/log"; exit $code')
    plan = plan_file(tool, source_256, FILE_TYPES["Q8_0"], OPTIONS)
    assert (plan.tensors, plan.n_bytes) == (None, None)
    make_one(tool, plan, tmp_path / "out.gguf")
    kinds = {tensor.ggml_type.name for tensor in GgufFile(tmp_path / "out.gguf").tensors.values()}
    assert kinds == {"Q8_0", "F32"}


def test_a_file_that_cannot_be_executed_is_one_sentence(source_256: Source, tmp_path: Path) -> None:
    path = tmp_path / "noise"
    path.write_bytes(bytes(range(256)))
    path.chmod(0o755)
    with pytest.raises(EnvironmentFault, match="cannot be started"):
        plan_file(find_quantizer(str(path)), source_256, FILE_TYPES["Q8_0"], OPTIONS)


def test_a_path_that_is_no_program_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "text").touch()
    for path in (tmp_path / "text", tmp_path / "absent", tmp_path):
        with pytest.raises(InputError, match="no program that can be run"):
            find_quantizer(str(path))


def test_without_a_program_the_library_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from valle_convert.llama import programs
    from valle_convert.quantize import tool

    monkeypatch.delenv("LLAMA_QUANTIZE", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    real = programs.find_program
    monkeypatch.setattr(tool, "find_program", lambda name: real(name, checkout=tmp_path))
    found = find_quantizer()
    assert found.kind == "llama_model_quantize"
    assert "no llama-quantize was found" in found.how


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)]
)
def test_whoever_stops_it_nothing_is_left_and_the_child_is_gone(
    program: Quantizer, gguf_256: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    mark = tmp_path / "pid"
    # The dry run is the real one; then it writes into the output, and goes on for ever.
    tool = script(
        tmp_path / "slow",
        f'if [ "$1" = --dry-run ]; then exec "{program.command[0]}" "$@"; fi\n'
        f'echo half > "$2"; echo $$ > "{mark}"\n'
        "while :; do echo '[ 1/ 2] working'; sleep 0.05; done",
    )
    command = [sys.executable, "-m", "valle_convert", "quantize", str(gguf_256)]
    command += [str(folder / "o.gguf"), "Q8_0", "--llama-quantize"]
    child = subprocess.Popen(
        [*command, tool.command[0]], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        assert wait_for(lambda: mark.exists() and mark.read_text().strip() != "")
        child.send_signal(number)
        assert child.wait(timeout=30) == code
    finally:
        child.kill()
        child.communicate()
    pid = int(mark.read_text())
    assert wait_for(lambda: not alive(pid))
    assert [path for path in folder.rglob("*") if path.is_file()] == []


def wait_for(condition, seconds: float = 30.0) -> bool:  # type: ignore[no-untyped-def] # noqa: ANN001
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
