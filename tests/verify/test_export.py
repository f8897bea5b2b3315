"""A converted file goes back to the checkpoint that it came from, bit for bit."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_checkpoint import DTYPES, Shape, make_checkpoint
from random_shapes import random_shape, random_version_7
from support import (
    GOLDEN_NAMES,
    GOLDEN_VERSION_7,
    Cli,
    Convert,
    error_of,
    golden_checkpoint,
    with_keys,
)

from valle_convert import plan_conversion, read_checkpoint, write_gguf
from valle_convert.families.bundle import open_files
from valle_convert.families.family import Choices
from valle_convert.families.gemma_export import export_file
from valle_convert.gguf_file.header import Key
from valle_convert.gguf_file.read import GgufFile
from valle_convert.verify.tensors import check_tensors

#: Keys that tell where the weights come from.
OF_THE_SOURCE = ("valle.source.", "valle.digest.", "general.", "valle.tokenizer.", "valle.set.")


def tensors_of(path: Path) -> dict[str, tuple[str, np.ndarray[Any, Any]]]:
    """Names to types and bits."""
    checkpoint = read_checkpoint(path)
    return {
        name: (spec.dtype_name, np.asarray(checkpoint.tensors.read(name)))
        for name, spec in checkpoint.tensors.specs.items()
    }


def assert_same(path: Path, expected: Path) -> None:
    """The tensors, config and symmap of one checkpoint are the other's, bit for bit."""
    found, wanted = tensors_of(path), tensors_of(expected)
    dropped = {one.source for one in plan_conversion(expected).description.dropped}
    rows = {name for name in wanted if name.startswith("classifier.")}  # not dropped completely
    assert found.keys() == wanted.keys() - dropped | rows
    for name in found:
        values, right = found[name][1], wanted[name][1]
        if name.startswith("classifier."):  # rows that no head reads are gone
            right = right[: len(values)]
        assert values.dtype == right.dtype, name
        assert values.shape == right.shape, name
        assert values.tobytes() == right.tobytes(), name
    one, other = read_checkpoint(path), read_checkpoint(expected)
    assert one.config == other.config
    assert list(one.config) == list(other.config)
    assert one.symmap == other.symmap
    assert one.stats.get("global_step") == other.stats.get("global_step")


@pytest.mark.parametrize("name", [*GOLDEN_NAMES, GOLDEN_VERSION_7])
def test_a_golden_checkpoint_comes_back(
    name: str, converted: Convert, tmp_path: Path, cli: Cli
) -> None:
    result = cli("export", converted(name, "auto"), tmp_path / "back")
    assert result.code == 0, result.err
    assert_same(tmp_path / "back" / "fp32.sft", golden_checkpoint(name))


@pytest.mark.parametrize("version", ["5 and 6", "7"])
@pytest.mark.parametrize("seed", range(12))
def test_random_checkpoints_come_back(seed: int, version: str, tmp_path: Path) -> None:
    draw = random.Random(seed)  # noqa: S311 - no secret
    if version == "7":
        shape = random_version_7(seed) | {"level_norm": seed % 2 == 0}
    else:
        shape = random_shape(seed) | {"split": seed % 4 != 0}
    source, middle = tmp_path / "random.sft", tmp_path / "random.gguf"
    make_checkpoint(source, Shape(**shape), dtype=draw.choice(list(DTYPES)))
    write_gguf(plan_conversion(source), middle)
    export_file(open_files(middle), tmp_path / "back")
    back = tmp_path / "back" / "fp32.sft"
    assert_same(back, source)
    # Converting it again gives the same files, except the names and digests of its source.
    write_gguf(plan_conversion(back), tmp_path / "again.gguf")
    one, other = (open_files(path).files for path in (middle, tmp_path / "again.gguf"))
    assert one.keys() == other.keys()
    for part, first in one.items():
        again = other[part]
        assert first.tensors == again.tensors
        for name, tensor in first.tensors.items():
            assert tensor.data.tobytes() == again.tensors[name].data.tobytes()
        assert first.keys.keys() == again.keys.keys()
        for name in first.keys:
            if not name.startswith(OF_THE_SOURCE):
                assert first.keys[name] == again.keys[name], name


@pytest.mark.parametrize("out_type", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("dtype", ["auto", "f32", "f16"])
def test_a_rounded_file_gives_what_is_left(
    out_type: str, dtype: str, converted: Convert, tmp_path: Path
) -> None:
    middle = converted("ar-nar-len", out_type)
    export_file(open_files(middle), tmp_path, dtype=dtype)
    back = read_checkpoint(tmp_path / "fp32.sft")
    spec = back.tensors.specs["model.layers.0.mlp.up_proj.weight"]
    auto = {"f16": "F16", "bf16": "BF16", "q8_0": "F32"}[out_type]
    assert spec.dtype_name == (auto if dtype == "auto" else dtype.upper())
    right = GgufFile(middle).tensors["blk.0.ffn_up.weight"].rows()
    found = back.tensors.read(spec.name).astype(np.float32)
    if dtype == "f16":
        right = right.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found, right)
    if dtype != "f16":  # which rounds the norms as well
        plan = plan_conversion(back, Choices(out_type))
        assert all(check.passed for check in check_tensors(plan.main, GgufFile(middle)))


@pytest.mark.parametrize("version", [5, 7])
@pytest.mark.parametrize("kind", ["Q4_K_M", "Q2_K"])
def test_a_quantized_file_comes_back_dequantized(
    kind: str, version: int, tmp_path: Path, cli: Cli
) -> None:
    source = tmp_path / "wide.sft"
    make_checkpoint(source, Shape(dim=256, heads=4, levels=3, version=version, seed=1))
    assert cli("quantize", source, tmp_path, "--types", kind, "--imatrix", "none").code == 0
    quantized = open_files(tmp_path / f"wide-{kind}.gguf")
    export_file(quantized, tmp_path / "back")
    plan = plan_conversion(tmp_path / "back" / "fp32.sft")
    for part, planned in plan.files.items():
        for tensor in planned.tensors:
            rows = quantized.files[part].tensors[tensor.name].rows()
            for span in tensor.spans:
                right = rows[span.first_row : span.first_row + span.n_rows]
                found = plan.description.tensors.read(span.source)
                assert found.dtype == np.float32
                found = found[list(span.gather)] if span.gather else found
                np.testing.assert_array_equal(found.reshape(right.shape), right)
    assert plan.checkpoint.config == read_checkpoint(source).config


def test_what_cannot_be_exported_leaves_nothing(
    converted: Convert, tmp_path: Path, cli: Cli
) -> None:
    plain = converted("ar-nar-len", "f16")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "fp32.sft").write_text("mine")
    assert error_of(cli("export", plain, tmp_path / "full"), 2)
    assert [one.name for one in (tmp_path / "full").iterdir()] == ["fp32.sft"]
    assert (tmp_path / "full" / "fp32.sft").read_text() == "mine"
    file = GgufFile(plain)
    tables = ["?" if name == "length" else name for name in file.keys["valle.table.names"]]
    configs = ('{"version": 5}', "[]", "{", json.dumps({"version": 6} | {"size": {"dim": 32}}))
    odd_keys = [Key("valle.source.config", text, "string") for text in configs]
    odd_keys.append(Key("valle.table.names", tables, "[string]"))
    for keys, drop in (*(([key], ()) for key in odd_keys), ([], ["valle.source.config"])):
        odd = with_keys(plain, tmp_path / "odd.gguf", *keys, drop=drop)
        assert error_of(cli("export", odd, tmp_path / "y"), 2)
        assert not (tmp_path / "y").exists()
