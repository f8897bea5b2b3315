from pathlib import Path

import pytest
from quantize.making import make_one, source_of
from support import Convert

from valle_convert.errors import InputError
from valle_convert.gguf_file.read import GgufFile
from valle_convert.quantize.options import MakeOptions
from valle_convert.quantize.plan import FilePlan, plan_file
from valle_convert.quantize.source import Source
from valle_convert.quantize.tool import Quantizer
from valle_convert.quantize.types import COMMON, FILE_TYPES, read_tensor_types, weights_of

OPTIONS = MakeOptions(threads=1)
NARROW = "ar-nar-len"  # a golden checkpoint whose rows are 64


def made(plan: FilePlan, folder: Path) -> Path:
    path = folder / f"{plan.kind.name}.gguf"
    make_one(plan, path)
    return path


@pytest.mark.parametrize("name", COMMON)
def test_the_predicted_size_and_types_are_those_of_the_file(
    program: Quantizer, source_256: Source, tmp_path: Path, name: str
) -> None:
    plan = plan_file(program, source_256, FILE_TYPES[name], OPTIONS)
    path = made(plan, tmp_path)
    assert path.stat().st_size == plan.n_bytes
    found = GgufFile(path)
    assert plan.tensors is not None
    assert {t.name: t.ggml_type for t in found.tensors.values()} == {
        t.name: t.ggml_type for t in plan.tensors
    }
    bits = 8 * sum(t.n_bytes for t in found.tensors.values())
    n_weights = sum(t.n_elements for t in source_256.header.tensors.values())
    assert weights_of(plan.tensors)["bits_per_weight"] == pytest.approx(bits / n_weights)
    assert not [*plan.fallbacks(plan.tensors)]
    assert not plan.needs_imatrix


def test_what_the_user_chose_for_a_tensor_is_no_fallback(
    program: Quantizer, converted: Convert
) -> None:
    settings = MakeOptions(tensor_types=("token_embd=q8_0",), threads=1)
    narrow = source_of(converted(NARROW, "f16"))
    plan = plan_file(program, narrow, FILE_TYPES["Q4_K_M"], settings)
    fallbacks = plan.fallbacks(plan.tensors or ())
    assert "token_embd.weight" not in {one.tensor for one in fallbacks}


def test_a_list_of_tensor_types_does_what_it_does_in_the_stock_program(
    program: Quantizer, source_256: Source, tmp_path: Path
) -> None:
    listing = tmp_path / "x.txt"
    listing.write_text("TOKEN_EMBD=q8_0\nblk\\.(0|7)\\.attn_q=F16 attn_q=Q5_K\n")
    settings = MakeOptions(tensor_types=read_tensor_types(listing), threads=1)
    plan = plan_file(program, source_256, FILE_TYPES["Q4_K_M"], settings)
    out = tmp_path / "out.gguf"
    program.run(["--tensor-type-file", str(listing), str(source_256.path), str(out), "Q4_K_M"])
    made = GgufFile(out).tensors
    assert {one.name: one.ggml_type for one in plan.tensors or ()} == {
        name: tensor.ggml_type for name, tensor in made.items()
    }


def test_pure_gives_every_matrix_the_type_itself(program: Quantizer, source_256: Source) -> None:
    plan = plan_file(program, source_256, FILE_TYPES["Q4_K_M"], MakeOptions(pure=True, threads=1))
    assert set(weights_of(plan.tensors)["weights"]) == {"Q4_K", "F32"}


def test_a_quantized_input_is_refused_unless_it_is_allowed(
    program: Quantizer, converted: Convert
) -> None:
    source = source_of(converted(NARROW, "q8_0"))
    with pytest.raises(InputError, match=r"already quantized .* --allow-requantize"):
        plan_file(program, source, FILE_TYPES["Q5_0"], OPTIONS)
    allowed = MakeOptions(allow_requantize=True, threads=1)
    assert plan_file(program, source, FILE_TYPES["Q5_0"], allowed).n_bytes > 0
