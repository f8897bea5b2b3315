import re
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valle_convert.errors import InputError
from valle_convert.quantize.tool import Quantizer
from valle_convert.quantize.types import (
    FILE_TYPES,
    check_tensor_type,
    parse_types,
    read_tensor_types,
)


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
