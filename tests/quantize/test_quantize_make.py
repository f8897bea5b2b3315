import hashlib
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from quantize.making import make_one, script

from valle_convert.errors import EnvironmentFault
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


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K_M", "IQ4_XS", "Q5_0", "F16", "COPY", "matrix"])
def test_program_and_library_write_the_same_bytes(
    program: Quantizer,
    library: Quantizer,
    source_256: Source,
    imatrix: ImatrixInput,
    tmp_path: Path,
    name: str,
) -> None:
    """Also with an importance matrix, which makes a difference, and with tensor types."""
    settings, matrix = OPTIONS, None
    if name == "matrix":
        name, matrix = "Q4_K_M", imatrix.path
        settings = MakeOptions(tensor_types=("attn_V=q6_K", r"blk\.1\.ffn_down=q8_0"), threads=1)

    def made(tool: Quantizer, given: Path | None = matrix) -> bytes:
        path = tmp_path / f"{tool.kind}.gguf"
        tool.run(arguments_of(FILE_TYPES[name], settings, source_256.path, path, given))
        return path.read_bytes()

    assert made(program) == made(library)
    if matrix is not None:
        assert made(program, None)[-4096:] != made(program)[-4096:]


def test_a_file_says_how_it_was_made_and_names_no_path(
    program: Quantizer, source_256: Source, imatrix: ImatrixInput, tmp_path: Path
) -> None:
    settings = MakeOptions(tensor_types=("ffn_down=q6_k",), threads=1)
    plan = plan_file(program, source_256, FILE_TYPES["Q4_K_M"], settings, imatrix)
    make_one(plan, tmp_path / "out.gguf")
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


def test_progress_ends_at_the_whole_source(
    program: Quantizer, source_256: Source, tmp_path: Path
) -> None:
    totals, steps = [], []

    @contextmanager
    def progress(_label: str, total: int, unit: str):  # type: ignore[no-untyped-def] # noqa: ANN202
        assert unit == "B"
        totals.append(total)
        yield steps.append

    plan = plan_file(program, source_256, FILE_TYPES["Q8_0"], OPTIONS)
    make_one(plan, tmp_path / "o.gguf", RunLog(progress))
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
        make_one(replace(plan, quantizer=tool), folder / "out.gguf", RunLog(keep_log=logs.extend))
    assert list(folder.iterdir()) == []
    assert logs == ["the model is upside down"]


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (b"#!/bin/sh\nkill -SEGV $$\n", "killed by SIGSEGV"),
        (bytes(range(256)), "cannot be started"),
    ],
)
def test_a_program_that_cannot_run_is_one_sentence(
    source_256: Source, tmp_path: Path, program: bytes, words: str
) -> None:
    path = tmp_path / "tool"
    path.write_bytes(program)
    path.chmod(0o755)
    with pytest.raises(EnvironmentFault, match=words):
        plan_file(find_quantizer(str(path)), source_256, FILE_TYPES["Q8_0"], OPTIONS)


def test_a_program_that_makes_something_else_than_it_planned_is_caught(
    program: Quantizer, source_256: Source, tmp_path: Path
) -> None:
    plan = plan_file(program, source_256, FILE_TYPES["Q8_0"], OPTIONS)
    # It calls the real program, with another type.
    tool = script(tmp_path / "other", f'"{program.command[0]}" "$1" "$2" Q5_0 1')
    with pytest.raises(EnvironmentFault, match=r"token_embd\.weight is .*Q6_K.*expected .*Q8_0"):
        make_one(replace(plan, quantizer=tool), tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("n_bytes", [0, 100, 100_000])
def test_a_damaged_file_of_the_program_is_the_machines_fault(
    program: Quantizer, source_256: Source, tmp_path: Path, n_bytes: int
) -> None:
    plan = plan_file(program, source_256, FILE_TYPES["Q8_0"], OPTIONS)
    real = f'"{program.command[0]}" "$1" "$2" Q8_0 1 && truncate -s {n_bytes} "$2"'
    tool = script(tmp_path / "forgetful", real)
    with pytest.raises(EnvironmentFault, match="ended without an error, but: output of llama-q"):
        make_one(replace(plan, quantizer=tool), tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_a_log_in_other_words_is_no_prediction_and_the_file_is_made_all_the_same(
    program: Quantizer, source_256: Source, tmp_path: Path
) -> None:
    # The real program, whose every "type" is "kind" from a version to come on.
    words = f'"{program.command[0]}" "$@" > "{tmp_path}/log" 2>&1; code=$?'
    tool = script(tmp_path / "newer", f'{words}\nsed "s/type/kind/g" "{tmp_path}/log"; exit $code')
    plan = plan_file(tool, source_256, FILE_TYPES["Q8_0"], OPTIONS)
    assert (plan.tensors, plan.n_bytes) == (None, None)
    make_one(replace(plan, quantizer=tool), tmp_path / "out.gguf")
    kinds = {tensor.ggml_type.name for tensor in GgufFile(tmp_path / "out.gguf").tensors.values()}
    assert kinds == {"Q8_0", "F32"}


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
