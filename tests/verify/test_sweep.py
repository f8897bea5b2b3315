"""Nothing right fails: random shapes and types, each converted, read back and verified."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGMLQuantizationType, GGUFReader
from make_checkpoint import Shape, make_checkpoint
from random_shapes import OUT_TYPES, random_dtype, random_shape

from valle_convert import plan_conversion, verify_gguf, write_gguf
from valle_convert.errors import InputError
from valle_convert.families.family import Choices
from valle_convert.llama.library import load_library
from valle_convert.llama.selftest import quantize_file

N_QUICK, N_SLOW = 6, 200
_TYPES = {
    "f32": GGMLQuantizationType.F32,
    "f16": GGMLQuantizationType.F16,
    "bf16": GGMLQuantizationType.BF16,
    "q8_0": GGMLQuantizationType.Q8_0,
}


def check(seed: int, folder: Path) -> None:
    shape, dtype = Shape(**random_shape(seed)), random_dtype(seed)
    checkpoint = folder / "random.sft"
    make_checkpoint(checkpoint, shape, dtype=dtype)
    for out_type in OUT_TYPES:
        path = folder / f"{out_type}.gguf"
        if out_type == "q8_0" and shape.dim % 32:
            with pytest.raises(InputError, match=f"rows of {shape.dim}"):
                plan_conversion(checkpoint, Choices(out_type))
            continue
        plan = plan_conversion(checkpoint, Choices(out_type))
        write_gguf(plan, path)
        wanted = _TYPES[dtype if out_type == "auto" else out_type]
        for tensor in GGUFReader(path).tensors:
            is_matrix = len(tensor.shape) > 1
            assert tensor.tensor_type == (wanted if is_matrix else GGMLQuantizationType.F32), (
                shape,
                dtype,
                out_type,
                tensor.name,
            )
        report = verify_gguf(plan, path, levels=["structure", "tensors", "logits"])
        assert report.passed, (shape, dtype, out_type, report.verdict())
        path.unlink()


@pytest.mark.parametrize("seed", range(1000, 1000 + N_QUICK))
def test_a_few_random_shapes_pass_in_every_type(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(N_SLOW))
def test_random_shapes_pass_in_every_type(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path)


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q4_K_M", "IQ3_S", "Q2_K", "TQ1_0"])
def test_a_quantized_file_of_a_converted_one_passes(kind: str, tmp_path: Path) -> None:
    """Rounded to float16 first, which is not what one rounding gives."""
    shape = Shape(**random_shape(7, width=256))
    make_checkpoint(tmp_path / "random.sft", shape, dtype="f32")
    plan = plan_conversion(tmp_path / "random.sft", Choices("f16"))
    write_gguf(plan, tmp_path / "f16.gguf")
    quantize_file(load_library(), tmp_path / "f16.gguf", tmp_path / "out.gguf", kind)
    report = verify_gguf(plan, tmp_path / "out.gguf", levels=["structure", "tensors", "logits"])
    assert report.passed, report.verdict()
