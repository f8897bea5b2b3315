"""Nothing right fails: random shapes and types, each converted, read back and verified."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from each_family import FAMILIES, OUT_TYPES, Row
from gguf import GGMLQuantizationType, GGUFReader
from make_checkpoint import Shape, make_checkpoint
from random_shapes import random_shape

from valle_convert import plan_conversion, read_checkpoint, verify_gguf, write_gguf
from valle_convert.errors import InputError
from valle_convert.families.family import Choices
from valle_convert.llama.library import load_library
from valle_convert.llama.selftest import quantize_file
from valle_convert.verify.run import LevelName, verify, verify_path

N_QUICK, N_SLOW = 6, 200
_TYPES = {
    "f32": GGMLQuantizationType.F32,
    "f16": GGMLQuantizationType.F16,
    "bf16": GGMLQuantizationType.BF16,
    "q8_0": GGMLQuantizationType.Q8_0,
}


#: Every switch of the config that changes the graph, and shapes at the edge, by version.
LAYOUTS: tuple[dict[str, Any], ...] = (
    {"levels": 9},
    {"levels": 4, "audio_tokens": 100},
    {"heads": 4, "kv_heads": 2},
    {"dim": 96, "heads": 3, "layers": 3, "ffn": 3},
    {"sums": False},
    {"experimental": {"max_position_embeddings": 64}},  # less than an example
    {"sums": "prom", "unified": True},
    {"sums": "resp", "noncausal": False},
    {"capabilities": ("ar", "nar", "lang"), "split": False, "bias": False},
    {"version": 6, "bias": False, "langs": 4, "tasks": 9},
    {"capabilities": ("ar", "nar", "len", "lang", "tone"), "tones": 3, "langs": 8},
    *(
        {"version": 7, **layout}
        for layout in (
            {"encoder_norm": False},
            {"encoder_ffn": 0},
            {"encoder_norm": False, "encoder_ffn": 0},
            {"level_weights": False},
            {"level_norm": False},
            {"encoder_ffn": 4, "decoder_ffn": 4},
            {"length_digits": True},
            {"length_digits": True, "level_norm": False},
            {"unified": True},
            {"noncausal": False},
            {"noncausal": False, "unified": True},
            {"levels": 1},
            {"levels": 9},
            {"layers": 1},
            {"capabilities": ("nar", "len", "tone"), "tones": 3},
            {"audio_tokens": 1024, "dim": 32, "layers": 1},
            {"audio_tokens": 1000, "dim": 32, "layers": 1},
        )
    ),
)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_layout_converts_and_verifies(
    layout: dict[str, Any], tmp_path: Path, small_checkpoint: Callable[..., Path]
) -> None:
    plan = plan_conversion(small_checkpoint(**layout), Choices("f32"))
    write_gguf(plan, tmp_path / "out.gguf")
    report = verify_gguf(plan, tmp_path / "out.gguf", levels=["structure", "tensors", "logits"])
    assert report.passed, report.verdict()


def check(row: Row, seed: int, folder: Path, out_types: Sequence[str] = OUT_TYPES) -> None:
    made = row.random(seed, folder)
    checkpoint = read_checkpoint(made.path)
    for out_type in out_types:
        what = made.words, out_type
        if not made.can_be(out_type):
            with pytest.raises(InputError, match=r"rows of \d+"):
                plan_conversion(checkpoint, Choices(out_type))
            continue
        paths = write_gguf(plan_conversion(checkpoint, Choices(out_type)), folder / "out.gguf")
        wanted = _TYPES[made.dtype if out_type == "auto" else out_type]
        for tensor in (tensor for path in paths for tensor in GGUFReader(path).tensors):
            is_matrix = len(tensor.shape) > 1
            assert tensor.tensor_type == (wanted if is_matrix else GGMLQuantizationType.F32), (
                *what,
                tensor.name,
            )
        levels: list[LevelName] = ["structure", "tensors", "logits", "trace"]
        report = verify_path(checkpoint, folder / "out.gguf", run=partial(verify, levels=levels))
        assert report.passed, (*what, report.verdict())
        for path in paths:
            path.unlink()


@pytest.mark.parametrize("row", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("seed", range(1000, 1000 + N_QUICK))
def test_a_few_random_shapes_pass_in_two_types(row: Row, seed: int, tmp_path: Path) -> None:
    """Three seeds come to all types."""
    check(row, seed, tmp_path, [OUT_TYPES[(2 * seed + i) % len(OUT_TYPES)] for i in range(2)])


@pytest.mark.slow
@pytest.mark.parametrize("row", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("seed", range(N_SLOW))
def test_random_shapes_pass_in_every_type(row: Row, seed: int, tmp_path: Path) -> None:
    check(row, seed, tmp_path)


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
