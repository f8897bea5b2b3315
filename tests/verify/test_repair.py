"""Files made the old way become right ones: every row moved, none quantized twice, all of it said.

The judge is the original's logits, less the biases that the old way lost.
"""

import json
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from each_family import set_key
from golden_cases import golden_cases
from make_checkpoint import Shape, make_checkpoint
from old_files import make_old, permuted, read_checkpoint_file
from random_shapes import random_shape
from safetensors.numpy import load_file
from support import GOLDEN, Cli, error_of, golden_checkpoint

from valle_convert import open_network, plan_repair, read_checkpoint, verify_gguf, write_gguf
from valle_convert.families.v5.old import is_old, read_old
from valle_convert.gguf_file.read import GgufFile
from valle_convert.metrics import nmse
from valle_convert.verify.run import verify, verify_path

OLD = GOLDEN / "old-gguf"
CHECKPOINT = golden_checkpoint("ar-nar-len")
#: Of the original's logits: float16 as everywhere; 8 bits a weight cost 2.2e-3 at most here, on a
#: network of two layers and 64 columns, by PyTorch's account as by llama.cpp's.
MAX_NMSE = {"f16": 1e-4, "q8_0": 4e-3}
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_K_M", "Q4_K_S", "Q3_K_M", "Q3_K_L", "Q2_K", "Q5_0")
LEVELS = ("structure", "tensors", "logits")
HEADS = {"ar": 0, **{f"nar.{i}": i for i in range(1, 8)}, "mask": 8, "stt": 9, "len": 10}


def repaired(old: Path, out: Path, **options: Any) -> GgufFile:
    write_gguf(plan_repair(old, **options), out)
    return GgufFile(out)


def blocks(file: GgufFile, name: str) -> np.ndarray:
    tensor = file.tensors[name]
    return tensor.data.reshape(tensor.shape[0], -1)


@pytest.mark.parametrize("with_biases", [False, True])
@pytest.mark.parametrize("kind", MAX_NMSE)
def test_the_originals_logits_come_out_of_a_golden_file(
    kind: str, with_biases: bool, tmp_path: Path
) -> None:
    options = {"biases": CHECKPOINT} if with_biases else {}
    repaired(OLD / f"{kind}.gguf", tmp_path / "new.gguf", **options)
    weights = load_file(CHECKPOINT)
    errors, on_paper = {}, {}
    plan = plan_repair(OLD / f"{kind}.gguf", **options)
    reference = plan.family.reference(plan.description.tensors, plan.description)
    with open_network(tmp_path / "new.gguf", n_threads=1) as network:
        for golden in golden_cases("ar-nar-len", network.model):
            lost = weights[f"classifiers.proj.{HEADS[golden.case.head]}.bias"]
            expected = golden.logits - (0 if with_biases else lost)
            found = golden.case.run(network)
            errors[golden.case.name] = nmse(expected, found)
            on_paper[golden.case.name] = nmse(golden.case.run(reference), found)
    assert set(errors) >= {"ar", "nar1", "nar4", "nar7", "mask", "mask_null", "len"}
    assert {case: error for case, error in errors.items() if error > MAX_NMSE[kind]} == {}
    assert max(on_paper.values()) < MAX_NMSE[kind]


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_the_generator_of_old_files_makes_the_golden_ones(kind: str, tmp_path: Path) -> None:
    golden = GgufFile(OLD / f"{kind}.gguf")
    made = GgufFile(make_old(CHECKPOINT, tmp_path / "made.gguf", kind.upper()))
    assert golden.tensors.keys() == made.tensors.keys()
    for name, key in golden.key_types.items():
        if not name.startswith("general."):
            assert (made.key_types[name], made.keys[name]) == (key, golden.keys[name]), name
    for name in golden.tensors:
        same = (golden.tensors[name].data == made.tensors[name].data).reshape(
            golden.tensors[name].shape[0], -1
        )
        if name != "output.weight":
            assert same.all(), name
            continue
        with_head = np.zeros(len(same), bool)
        for label, part in read_old(GgufFile(OLD / f"{kind}.gguf")).tensors._rows.items():  # type: ignore[attr-defined]
            if label.startswith("classifiers."):
                with_head[part.first_row : part.first_row + part.n_rows] = True
        assert same[with_head].all()
        assert not same[~with_head].all()


@pytest.mark.parametrize("kind", TYPES)
def test_rows_are_moved_and_none_is_quantized_twice(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "wide.sft"
    make_checkpoint(source, Shape(dim=256, heads=4, kv_heads=2, levels=3, bias=False, seed=5))
    old = GgufFile(make_old(source, tmp_path / "old.gguf", kind))
    new = repaired(old.path, tmp_path / "new.gguf")
    assert {tensor.ggml_type.name for tensor in old.tensors.values()} >= {
        kind.removesuffix("_M").removesuffix("_S").removesuffix("_L"),
        "F32",
    }
    for name, tensor in new.tensors.items():
        if name == "token_embd.weight":
            continue
        assert tensor.ggml_type == old.tensors[name].ggml_type
        heads = {"attn_q": 4, "attn_k": 2}.get(name.split(".")[-2])
        ours, theirs = blocks(new, name), blocks(old, name)
        if heads is not None and len(tensor.shape) == 2:
            ours = permuted(ours, heads)
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
    tables, heads_type = (old.tensors[n].ggml_type for n in ("token_embd.weight", "output.weight"))
    embedding = new.tensors["token_embd.weight"]
    assert embedding.ggml_type.name == (tables.name if tables == heads_type else "F16")
    n_tables = old.tensors["token_embd.weight"].shape[0]
    if tables == heads_type:
        np.testing.assert_array_equal(
            blocks(new, "token_embd.weight")[:n_tables], blocks(old, "token_embd.weight")
        )
    np.testing.assert_array_equal(
        embedding.rows(slice(0, n_tables)),
        old.tensors["token_embd.weight"].rows().astype(np.float16).astype(np.float32)
        if tables != heads_type
        else old.tensors["token_embd.weight"].rows(),
    )
    assert new.keys["valle.source.old_types"] == [tables.name, heads_type.name]
    sources = [read_old(old), read_checkpoint(source)]
    # Logits take longest, so each type compares them with one of the sources, in turn.
    compared = sources[TYPES.index(kind) % 2]
    for against in sources:
        levels = LEVELS if against is compared else ("structure", "tensors")
        report = verify_path(against, new.path, run=partial(verify, levels=levels))
        assert report.passed, report.verdict()


@pytest.mark.parametrize("seed", range(8))
def test_random_shapes_are_repaired(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)  # noqa: S311 - no secret
    shape = random_shape(seed, width=draw.choice([64, 128, 256]))
    shape |= {"split": True, "langs": min(shape["langs"], 6), "levels": max(shape["levels"], 2)}
    source = tmp_path / "random.sft"
    make_checkpoint(source, Shape(**shape), dtype=draw.choice(["f32", "f16", "bf16"]))
    old = make_old(source, tmp_path / "old.gguf", draw.choice(TYPES[:4]))
    _, config = read_checkpoint_file(source)
    told = tmp_path / "config.json"
    keys = ("unified_position_ids", "noncausal_masks", "audio_embedding_sums")
    told.write_text(
        json.dumps(
            {
                "version": config["version"],
                "capabilities": config["capabilities"],
                "experimental": {key: config["experimental"][key] for key in keys},
            }
        )
    )
    biases = source if shape["bias"] else None
    new = repaired(old, tmp_path / "new.gguf", config=told, biases=biases)
    assert "valle.source.assumed" not in new.keys
    report = verify_path(read_checkpoint(source), new.path)
    assert report.passed, (shape, report.verdict())


def test_what_is_assumed_and_lost_is_said_and_recorded(tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "new.gguf"
    said = cli("repair", OLD / "q8_0.gguf", out)
    assert said.code == 0
    assert "assumed, since the file lacks it: positions begin anew" in said.err
    assert "missing in this file and in the result: the biases" in said.err
    file = GgufFile(out)
    assert len(file.keys["valle.source.assumed"]) == 5
    assert len(file.keys["valle.source.lost"]) == 2
    assert file.keys["valle.source.format"] == "GGUF of llama.cpp's LLaMA converter"
    assert file.keys["general.file_type"] == 7
    config = tmp_path / "c.yaml"
    config.write_text("version: 5\nexperimental: {unified_position_ids: true}\n")
    cli("repair", OLD / "q8_0.gguf", out, "--force", "--config", config, "--biases", CHECKPOINT)
    file = GgufFile(out)
    assert len(file.keys["valle.source.assumed"]) == 3
    assert len(file.keys["valle.source.lost"]) == 1
    assert file.keys["valle.positions"] == "unified"
    verdict = cli("verify", CHECKPOINT, out, "--level", "structure")
    assert verdict.code == 1  # those positions are not the checkpoint's


def test_verify_holds_it_against_the_old_file_and_against_the_checkpoint(
    tmp_path: Path, cli: Cli
) -> None:
    out = tmp_path / "new.gguf"
    assert cli("repair", OLD / "q8_0.gguf", out, "--verify", "full").code == 0
    for against in (OLD / "q8_0.gguf", CHECKPOINT):
        for level in ("structure", "tensors", "logits"):
            result = cli("verify", against, out, "--level", level)
            assert result.code == 0, result.out
    assert "bit for bit" in cli("verify", OLD / "q8_0.gguf", out, "--level", "tensors").out
    other = cli("verify", OLD / "f16.gguf", out, "--level", "tensors")
    assert "was made from another checkpoint" in other.out
    assert cli("verify", golden_checkpoint("ar-nar-len-unified-causal"), out).code == 1


@pytest.mark.parametrize("tensor", ["token_embd.weight", "blk.1.attn_k.weight"])
def test_a_row_in_a_wrong_place_is_noticed(tensor: str, tmp_path: Path) -> None:
    old, out = OLD / "q8_0.gguf", tmp_path / "new.gguf"
    file = repaired(old, out)
    stored = file.tensors[tensor]
    data = bytearray(out.read_bytes())
    size = stored.n_bytes // stored.shape[0]
    first, second = (slice(stored.start + i * size, stored.start + (i + 1) * size) for i in (3, 4))
    data[first], data[second] = data[second], data[first]
    out.write_bytes(data)
    report = verify_gguf(plan_repair(old), out, levels=["tensors"])
    assert [check.name for check in report.failures] == [f"tensor {tensor}"]
    assert "2 of " in report.failures[0].summary


def changed(path: Path, out: Path, values: dict[str, object]) -> Path:
    """A copy with other values of keys; None leaves one out."""
    shutil.copy(path, out)
    for name, value in values.items():
        set_key(GgufFile(out), name, value)
    return out


def with_names(path: Path, out: Path, change: Callable[[list[str]], None]) -> Path:
    names = list(GgufFile(path).keys["tokenizer.ggml.tokens"])
    change(names)
    return changed(path, out, {"tokenizer.ggml.tokens": names})


def test_rows_without_names_are_told_by_the_sizes(tmp_path: Path, cli: Cli) -> None:
    def forget(names: list[str]) -> None:
        names[256:] = [f"token{i}" for i in range(256, len(names))]

    nameless = with_names(OLD / "q8_0.gguf", tmp_path / "nameless.gguf", forget)
    assert not is_old(GgufFile(nameless))
    message = error_of(cli("repair", nameless, tmp_path / "new.gguf"), 2)
    assert "with langs 6, tasks 9, tones 1" in message
    assert "there would be 17702 of them, not 1382" in message
    config = tmp_path / "config.yaml"
    config.write_text("size: {audio_tokens: 64}\n")
    new = repaired(nameless, tmp_path / "new.gguf", config=config)
    named = repaired(OLD / "q8_0.gguf", tmp_path / "named.gguf")
    assert new.keys["valle.table.first_rows"] == named.keys["valle.table.first_rows"]
    for name in named.tensors:
        np.testing.assert_array_equal(new.tensors[name].data, named.tensors[name].data)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"llama.attention.head_count": 3}, "3 heads do not divide the width 64"),
        ({"llama.rope.freq_base": 500_000.0}, "llama.rope.freq_base is 500000.0, not 10000"),
        ({"llama.block_count": 3}, "missing: blk.2.attn_norm.weight"),
        ({"llama.block_count": 1}, "unexpected: blk.1.attn_k.weight"),
        ({"llama.embedding_length": None}, "llama.embedding_length is None"),
        ({"general.architecture": "qwen2"}, "its architecture is 'qwen2'"),
    ],
)
def test_headers_that_contradict_the_tensors_are_refused(
    values: dict[str, object], words: str, tmp_path: Path, cli: Cli
) -> None:
    path = changed(OLD / "q8_0.gguf", tmp_path / "odd.gguf", values)
    assert words in error_of(cli("repair", path, tmp_path / "new.gguf"), 2)


def test_an_infinite_scale_of_a_block_is_refused(tmp_path: Path, cli: Cli) -> None:
    data = bytearray((OLD / "q8_0.gguf").read_bytes())
    tensor = GgufFile(OLD / "q8_0.gguf").tensors["blk.0.ffn_up.weight"]
    data[tensor.start + 34 : tensor.start + 36] = b"\x00\x7c"
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data)
    message = error_of(cli("repair", path, tmp_path / "new.gguf"), 2)
    assert "model.layers.0.mlp.up_proj.weight holds NaN or infinity" in message
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["damaged.gguf"]


def test_biases_of_another_checkpoint_are_refused(
    tmp_path: Path, cli: Cli, small_checkpoint: Callable[..., Path]
) -> None:
    out, old = tmp_path / "new.gguf", OLD / "q8_0.gguf"
    other = small_checkpoint(seed=9)
    message = error_of(cli("repair", old, out, "--biases", other), 2)
    assert "model.norm.weight differs" in message
    none = golden_checkpoint("ar-nar-len-unified-causal")
    assert "has no biases of heads" in error_of(cli("repair", old, out, "--biases", none), 2)
    wide = small_checkpoint("wide.sft", audio_tokens=10)
    assert "expected classifiers.proj.0.bias of 65 values" in error_of(
        cli("repair", old, out, "--biases", wide), 2
    )


def test_a_vocabulary_of_another_tokenizer_is_not_taken_for_the_built_in(
    tmp_path: Path, cli: Cli
) -> None:
    def exchange(names: list[str]) -> None:
        names[90], names[91] = names[91], names[90]

    path = with_names(OLD / "q8_0.gguf", tmp_path / "odd.gguf", exchange)
    message = error_of(cli("repair", path, tmp_path / "new.gguf"), 2)
    assert "does not fit the built-in tokenizer" in message
    assert "that the checkpoint was trained with (--tokenizer FILE)" in message
    built_in = Path(__file__).parents[2] / "valle_convert/tokenizer/data/tokenizer.json"
    given = cli("repair", path, tmp_path / "new.gguf", "--tokenizer", built_in)
    assert "in the tokenizer" in error_of(given, 2)
