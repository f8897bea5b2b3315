"""One file by llama-quantize: its plan, its bytes, its types, and tools that fail."""

import hashlib
import re
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quantize.making import make_one, script, source_of
from support import Convert

from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.gguf_file.read import GgufFile
from valle_convert.quantize.imatrix import (
    Entry,
    ImatrixFile,
    ImatrixInput,
    encode_imatrix,
    read_imatrix,
)
from valle_convert.quantize.options import MakeOptions
from valle_convert.quantize.plan import arguments_of, plan_unit
from valle_convert.quantize.source import Source
from valle_convert.quantize.tool import Quantizer, find_quantizer
from valle_convert.quantize.types import (
    FILE_TYPES,
    bits_and_weights,
    check_tensor_type,
    parse_types,
    read_tensor_types,
)

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
    plan = plan_unit(program, source_256, FILE_TYPES["Q4_K_M"], settings, imatrix)
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
        plan_unit(find_quantizer(str(path)), source_256, FILE_TYPES["Q8_0"], OPTIONS)


def test_a_program_that_makes_something_else_than_it_planned_is_caught(
    program: Quantizer, source_256: Source, tmp_path: Path
) -> None:
    plan = plan_unit(program, source_256, FILE_TYPES["Q8_0"], OPTIONS)
    # It calls the real program, with another type.
    tool = script(tmp_path / "other", f'"{program.command[0]}" "$1" "$2" Q5_0 1')
    with pytest.raises(EnvironmentFault, match=r"token_embd\.weight is .*Q6_K.*expected .*Q8_0"):
        make_one(replace(plan, quantizer=tool), tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("n_bytes", [0, 100, 100_000])
def test_a_damaged_file_of_the_program_is_the_machines_fault(
    program: Quantizer, source_256: Source, tmp_path: Path, n_bytes: int
) -> None:
    plan = plan_unit(program, source_256, FILE_TYPES["Q8_0"], OPTIONS)
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
    plan = plan_unit(tool, source_256, FILE_TYPES["Q8_0"], OPTIONS)
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


# Plans

NARROW = "ar-nar-len"  # a golden checkpoint whose rows are 64


def test_what_the_user_chose_for_a_tensor_is_no_fallback(
    program: Quantizer, converted: Convert
) -> None:
    settings = MakeOptions(tensor_types=("token_embd=q8_0",), threads=1)
    narrow = source_of(converted(NARROW, "f16"))
    plan = plan_unit(program, narrow, FILE_TYPES["Q4_K_M"], settings)
    fallbacks = plan.fallbacks(plan.tensors or ())
    assert "token_embd.weight" not in {one.tensor for one in fallbacks}


def test_pure_gives_every_matrix_the_type_itself(program: Quantizer, source_256: Source) -> None:
    plan = plan_unit(program, source_256, FILE_TYPES["Q4_K_M"], MakeOptions(pure=True, threads=1))
    assert set(bits_and_weights(plan.tensors)["weights"]) == {"Q4_K", "F32"}


def test_a_quantized_input_is_refused_unless_it_is_allowed(
    program: Quantizer, converted: Convert
) -> None:
    source = source_of(converted(NARROW, "q8_0"))
    with pytest.raises(InputError, match=r"already quantized .* --allow-requantize"):
        plan_unit(program, source, FILE_TYPES["Q5_0"], OPTIONS)
    allowed = MakeOptions(allow_requantize=True, threads=1)
    assert plan_unit(program, source, FILE_TYPES["Q5_0"], allowed).n_bytes > 0


# Types


def test_the_table_of_types_is_the_list_that_the_stock_program_prints(program: Quantizer) -> None:
    said = subprocess.run([*program.command, "--help"], capture_output=True, text=True, check=False)
    text = (said.stdout + said.stderr).partition("allowed quantization types")[2]
    listed = {name: int(n) for n, name in re.findall(r"^ +(\d+) +or +(\w+) +:", text, re.MULTILINE)}
    assert "COPY" in text
    assert {one.name: one.number for one in FILE_TYPES.values() if one.base} == listed


def test_a_list_of_types_is_read_in_any_case_and_without_repetitions() -> None:
    assert [one.name for one in parse_types("q8_0, Q4_K_M,Q8_0")] == ["Q8_0", "Q4_K_M"]


@pytest.mark.parametrize("text", ["attn_v", "=q8_0", "attn_v=", "(=q8_0"])
def test_a_tensor_type_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        check_tensor_type(text)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("F64", r"did you mean F16\?"),
        ("I32", r"did you mean F32\?"),
        ("Q8_1", r"did you mean Q8_0\?"),
        ("Q8_K", r"did you mean Q8_0\?"),
        ("Q4_K_M", r"did you mean Q4_K\?"),
        ("I8", "expected one of .*Q4_0 .* IQ4_XS"),
        ("x" * 99, "expected one of .*Q4_0 .* IQ4_XS"),
    ],
)
def test_a_type_that_llama_quantize_does_not_make_is_refused_with_advice(
    name: str, words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        check_tensor_type(f"ffn_down={name}")
    assert len(str(caught.value)) <= 200


def test_a_list_of_tensor_types_is_in_the_form_of_llama_quantize(tmp_path: Path) -> None:
    """Words with any white space between them; its reader is `while (file >> word)`."""
    path = tmp_path / "x.txt"
    path.write_bytes(b" token_embd=Q8_0\tATTN_V=q6_K\r\n\n\x0bblk\\.(0|1)\\.ffn=f16\x0c")
    found = read_tensor_types(path)
    assert found == ("token_embd=q8_0", "attn_v=q6_k", "blk\\.(0|1)\\.ffn=f16")


@given(st.binary(max_size=40) | st.text(alphabet=" =\n\0qQ8_0a(é", max_size=40).map(str.encode))
def test_what_a_list_of_tensor_types_gives_can_be_given_to_the_tool(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.txt"
        path.write_bytes(data)
        try:
            found = read_tensor_types(path)
        except InputError:
            return
    assert found
    assert all(check_tensor_type(one) == one and one.isprintable() for one in found)
    assert not any(set(one) & set(" \t\n") for one in found)
