"""A converted file goes back to the checkpoint that it came from, bit for bit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from make_checkpoint import DTYPES, Shape, make_checkpoint
from random_shapes import random_shape
from safetensors import safe_open
from support import GOLDEN, GOLDEN_NAMES, Cli, error_of, golden_checkpoint

from valle_convert import plan_conversion, plan_repair, read_checkpoint, write_gguf
from valle_convert.checkpoint.exported import rows_of_export
from valle_convert.families.v5.export import export_file
from valle_convert.gguf_file.read import GgufFile
from valle_convert.model.families import describe
from valle_convert.quantize.tool import find_quantizer
from valle_convert.verify.tensors import check_tensors

#: What only training reads is not in a converted file.
DROPPED = {"dropout_token"}


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
    described = describe(read_checkpoint(expected))
    read = {block.source for block in described.rows} | {t.source for t in described.backbone}
    read |= {bias.source for bias in described.biases}
    assert found.keys() == read
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


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_a_golden_checkpoint_comes_back(
    name: str, converted: Callable[[str, str], Path], tmp_path: Path, cli: Cli
) -> None:
    result = cli("export", converted(name, "auto"), tmp_path / "back")
    assert result.code == 0, result.err
    assert_same(tmp_path / "back" / "fp32.sft", golden_checkpoint(name))


@pytest.mark.parametrize("seed", range(12))
def test_random_checkpoints_come_back(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)  # noqa: S311 - no secret
    shape = random_shape(seed) | {"split": seed % 4 != 0}
    source, middle = tmp_path / "random.sft", tmp_path / "random.gguf"
    make_checkpoint(source, Shape(**shape), dtype=draw.choice(list(DTYPES)))
    write_gguf(plan_conversion(source), middle)
    export_file(middle, tmp_path / "back")
    back = tmp_path / "back" / "fp32.sft"
    assert_same(back, source)
    # And what is made of it again is the same file, but for the names and digests of its source.
    write_gguf(plan_conversion(back), tmp_path / "again.gguf")
    first, again = GgufFile(middle), GgufFile(tmp_path / "again.gguf")
    assert first.tensors == again.tensors
    for name, tensor in first.tensors.items():
        assert tensor.data.tobytes() == again.tensors[name].data.tobytes()
    for name in first.keys:
        if not name.startswith(("valle.source.", "valle.digest.", "general.", "valle.tokenizer.")):
            assert first.keys[name] == again.keys[name], name


@pytest.mark.parametrize("out_type", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("dtype", ["auto", "f32", "f16"])
def test_a_rounded_file_gives_what_is_left(
    out_type: str, dtype: str, converted: Callable[[str, str], Path], tmp_path: Path
) -> None:
    middle = converted("ar-nar-len", out_type)
    export_file(middle, tmp_path, dtype=dtype)
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
        plan = plan_conversion(back, out_type=out_type)
        assert all(check.passed for check in check_tensors(plan, GgufFile(middle)))


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q2_K"])
def test_a_quantized_file_comes_back_dequantized(kind: str, tmp_path: Path) -> None:
    source, middle = tmp_path / "wide.sft", tmp_path / "wide.gguf"
    make_checkpoint(source, Shape(dim=256, heads=4, levels=3, seed=1))
    write_gguf(plan_conversion(source, out_type="f16"), middle)
    quantized = tmp_path / "quantized.gguf"
    find_quantizer("library").run([str(middle), str(quantized), kind])
    export_file(quantized, tmp_path / "back")
    back, file = read_checkpoint(tmp_path / "back" / "fp32.sft"), GgufFile(quantized)
    describe(back)
    np.testing.assert_array_equal(
        back.tensors.read("model.layers.1.mlp.down_proj.weight"),
        file.tensors["blk.1.ffn_down.weight"].rows(),
    )
    row = file.keys["valle.head.first_rows"][0]
    np.testing.assert_array_equal(
        back.tensors.read("classifiers.proj.0.weight"),
        file.tensors["token_embd.weight"].rows(slice(row, row + 65)),
    )
    assert back.config == read_checkpoint(source).config


def test_a_file_of_an_earlier_version_gets_a_config_that_says_the_same(
    converted: Callable[[str, str], Path], tmp_path: Path, cli: Cli
) -> None:
    path = converted("v6-text-head", "f32")
    file = GgufFile(path)
    old = tmp_path / "old.gguf"
    header = file.changed([], drop=["valle.source.config", "valle.source.symmap"])
    old.write_bytes(header + path.read_bytes()[file.data_start :])
    result = cli("export", old, tmp_path / "back")
    assert result.code == 0, result.err
    assert "does not carry its checkpoint's config" in result.err
    back, right = (
        read_checkpoint(one)
        for one in (tmp_path / "back" / "fp32.sft", golden_checkpoint("v6-text-head"))
    )
    assert describe(back).model == describe(right).model
    assert back.symmap == right.symmap
    # And it is verified against its checkpoint like any other.
    assert cli("verify", golden_checkpoint("v6-text-head"), old, "--level", "structure").code == 0


def hf_export(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_the_hugging_face_layout_is_that_of_the_originals_export(
    converted: Callable[[str, str], Path], tmp_path: Path, cli: Cli
) -> None:
    result = cli("export", converted("ar-nar-len", "f32"), tmp_path, "--format", "hf")
    assert result.code == 0, result.err
    assert "the layout loses the biases of the heads" in result.err
    golden = GOLDEN / "hf-export"
    found, right = hf_export(tmp_path), hf_export(golden)
    assert found.keys() == right.keys() - {"lm_head.bias"}
    rows = rows_of_export(names_of(golden), len(right["lm_head.weight"]), {}, "x")
    with_head = np.zeros(len(right["lm_head.weight"]), bool)
    for part in rows.values():
        if part.matrix == "lm_head.weight":
            with_head[part.first_row : part.first_row + part.n_rows] = True
    for name, values in found.items():
        used = with_head if name == "lm_head.weight" else slice(None)
        assert values.dtype == right[name].dtype
        assert values[used].tobytes() == right[name][used].tobytes(), name
    assert not found["lm_head.weight"][~with_head].any()
    documents = {
        name: [json.loads((one / name).read_text()) for one in (tmp_path, golden)]
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json")
    }
    ours, theirs = documents["tokenizer.json"]
    assert ours == theirs
    ours, theirs = documents["tokenizer_config.json"]
    assert ours == theirs
    ours, theirs = documents["config.json"]
    wrong = {"num_attention_heads", "num_hidden_layers", "num_key_value_heads"}  # in the original's
    wrong |= {"torch_dtype", "transformers_version", "max_position_embeddings"}
    assert {k: v for k, v in ours.items() if k not in wrong} == {
        k: v for k, v in theirs.items() if k not in wrong
    }
    assert (ours["num_attention_heads"], ours["num_hidden_layers"]) == (2, 2)


def names_of(folder: Path) -> list[str]:
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    names = [""] * (max(vocabulary.values()) + 1)
    for text, id_ in vocabulary.items():
        names[id_] = names[id_] or text
    return names


@pytest.mark.parametrize("seed", range(4))
def test_random_checkpoints_keep_every_row_in_the_hugging_face_layout(
    seed: int, tmp_path: Path
) -> None:
    shape = random_shape(seed) | {"split": True, "langs": 4, "version": 5 + seed % 2}
    source, middle = tmp_path / "random.sft", tmp_path / "random.gguf"
    make_checkpoint(source, Shape(**shape), dtype=list(DTYPES)[seed % 2])
    write_gguf(plan_conversion(source), middle)
    export_file(middle, tmp_path / "hf", format_="hf")
    found = hf_export(tmp_path / "hf")
    n_rows = len(found["lm_head.weight"])
    given = {"capabilities": list(shape["capabilities"])}
    rows = rows_of_export(names_of(tmp_path / "hf"), n_rows, given, "x")
    right = tensors_of(source)
    left_out = {"raw_text_emb.weight", "dropout_token"}
    expected = {n for n in right if not n.startswith("model.") and not n.endswith(".bias")}
    if shape["version"] == 6:
        last = 3 + shape["levels"] - ("len" not in shape["capabilities"])
        left_out.add(f"classifiers.proj.{last}.weight")
    assert rows.keys() == expected - left_out
    for name, part in rows.items():
        values = found[part.matrix][part.first_row : part.first_row + part.n_rows]
        assert values.reshape(right[name][1].shape).tobytes() == right[name][1].tobytes(), name


@pytest.mark.parametrize("seed", [None, *range(6)])
def test_the_hugging_face_layout_is_read_back(seed: int | None, tmp_path: Path, cli: Cli) -> None:
    """By the reader of exports, which knows nothing of who wrote them."""
    source, middle = tmp_path / "source.sft", tmp_path / "middle.gguf"
    shape: dict[str, Any] = {} if seed is None else random_shape(seed)
    shape |= {"split": True, "version": 5, "langs": 4, "levels": max(2, shape.get("levels", 8))}
    make_checkpoint(source, Shape(**shape), dtype=list(DTYPES)[(seed or 0) % 3])
    write_gguf(plan_conversion(source), middle)
    export_file(middle, tmp_path / "hf", format_="hf")
    said = read_checkpoint(source).config
    keys = ("unified_position_ids", "noncausal_masks", "audio_embedding_sums")
    told = {
        "capabilities": said["capabilities"],
        "size": {"heads": said["size"]["heads"]},
        "experimental": {key: said["experimental"][key] for key in keys},
    }
    config = tmp_path / "told.json"
    config.write_text(json.dumps(told))
    back, right = read_checkpoint(tmp_path / "hf", config=config), read_checkpoint(source)
    assert describe(back).model.config == describe(right).model.config
    assert {*right.tensors.specs} - {*back.tensors.specs} <= {
        "raw_text_emb.weight",
        "dropout_token",
        *(name for name in right.tensors.specs if name.endswith(".bias")),
    }
    for name in back.tensors.specs:
        one, other = (np.asarray(each.tensors.read(name)) for each in (back, right))
        assert one.dtype == other.dtype, name
        assert one.tobytes() == other.tobytes(), name
    again = tmp_path / "again.gguf"
    made = cli(tmp_path / "hf", again, "--config", config)
    assert made.code == 0, made.err
    for against in ([tmp_path / "hf", "--config", config], [source]):
        path, *options = against
        verdict = cli("verify", path, again, *options, "--level", "structure")
        assert verdict.code == 0, verdict.out


def test_a_repaired_file_is_exported(tmp_path: Path, cli: Cli) -> None:
    repaired = tmp_path / "new.gguf"
    write_gguf(plan_repair(GOLDEN / "old-gguf" / "f16.gguf"), repaired)
    assert cli("export", repaired, tmp_path / "sft").code == 0
    back = read_checkpoint(tmp_path / "sft" / "fp32.sft")
    right = read_checkpoint(golden_checkpoint("ar-nar-len"))
    for name in ("text_emb.weight", "model.layers.1.self_attn.k_proj.weight", "sep"):
        np.testing.assert_array_equal(
            back.tensors.read(name), right.tensors.read(name).astype(np.float16)
        )
    assert cli("export", repaired, tmp_path / "hf", "--format", "hf").code == 0


def test_what_cannot_be_exported_leaves_nothing(
    converted: Callable[[str, str], Path], tmp_path: Path, cli: Cli
) -> None:
    single = converted("single-classifier", "f16")
    message = error_of(cli("export", single, tmp_path / "x", "--format", "hf"), 2)
    assert "one classifier for all levels" in message
    message = error_of(cli("export", GOLDEN / "old-gguf" / "f16.gguf", tmp_path / "x"), 2)
    assert "valle-convert repair" in message
    assert error_of(cli("export", golden_checkpoint("ar-nar-len"), tmp_path / "x"), 2)
    assert not (tmp_path / "x").exists()
    plain = converted("ar-nar-len", "f16")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("mine")
    assert error_of(cli("export", plain, tmp_path / "full", "--format", "hf"), 2)
    assert [one.name for one in (tmp_path / "full").iterdir()] == ["config.json"]
    assert (tmp_path / "full" / "config.json").read_text() == "mine"
    file = GgufFile(plain)
    for text in ('{"version": 5}', "[]", "{", json.dumps({"version": 6} | {"size": {"dim": 32}})):
        from valle_convert.gguf_file.header import Key

        odd = tmp_path / "odd.gguf"
        header = file.changed([Key("valle.source.config", text, "string")])
        odd.write_bytes(header + plain.read_bytes()[file.data_start :])
        assert error_of(cli("export", odd, tmp_path / "y"), 2)
        assert not (tmp_path / "y").exists()


def test_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    source = tmp_path / "b.sft"
    make_checkpoint(source, Shape(seed=2), dtype="bf16")
    write_gguf(plan_conversion(source), tmp_path / "b.gguf")
    export_file(tmp_path / "b.gguf", tmp_path / "back")
    name, values = "model.norm.weight", tensors_of(tmp_path / "back" / "fp32.sft")
    assert values[name][1].dtype == np.dtype(ml_dtypes.bfloat16)
