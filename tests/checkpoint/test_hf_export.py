"""The Hugging Face export gives the checkpoint's logits, less what it lost, and says what it lost.

The judge is the golden logits of the checkpoint that the original exported, less its biases.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from checkpoint.containers import (
    Arrays,
    arrays_of,
    write_export,
)
from golden_cases import golden_cases
from make_checkpoint import Shape
from safetensors.numpy import load_file, save_file
from support import GOLDEN, Cli, describe, error_of, golden_checkpoint
from verify.random_shapes import random_dtype, random_shape

from valle_convert import Choices, open_network, plan_conversion, read_checkpoint, write_gguf
from valle_convert.checkpoint.exported import HEADS
from valle_convert.families.v5.reference import ReferenceNetwork
from valle_convert.gguf_file.read import GgufFile
from valle_convert.metrics import nmse

EXPORT = GOLDEN / "hf-export"
#: As for every golden case: 4.4e-7 is measured at most.
MAX_NMSE = 1e-6
#: PyTorch against PyTorch differs by its order of summing only.
MAX_NMSE_REFERENCE = 1e-10


def say(path: Path, **config: Any) -> Path:
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def two_heads(tmp_path: Path) -> Path:
    """What nothing in the golden export tells."""
    return say(tmp_path / "heads.yaml", size={"heads": 2})


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A copy of the golden export that tests may change."""
    return Path(shutil.copytree(EXPORT, tmp_path / "export"))


def test_the_golden_logits_less_the_biases_come_out_of_both_networks(
    tmp_path: Path, two_heads: Path
) -> None:
    checkpoint = read_checkpoint(EXPORT, config=two_heads)
    out = tmp_path / "out.gguf"
    write_gguf(plan_conversion(checkpoint, Choices("f32")), out)
    weights = load_file(golden_checkpoint("ar-nar-len"))
    description = describe(checkpoint)
    reference = ReferenceNetwork(checkpoint.tensors, description)
    heads = [head.name for head in description.model.heads]
    errors: dict[str, float] = {}
    exact: dict[str, float] = {}
    with open_network(out, n_threads=1) as network:
        for golden in golden_cases("ar-nar-len", network.model):
            k = heads.index(golden.case.head)
            bias = weights[f"classifiers.proj.{k}.bias"]
            assert np.abs(bias).max() > 0.01  # the judge would not notice a lost one otherwise
            expected = golden.logits - bias
            errors[golden.case.name] = nmse(expected, golden.case.run(network))
            exact[golden.case.name] = nmse(expected, golden.case.run(reference))
    assert {"ar", "nar1", "nar4", "nar7", "mask", "mask_null", "len"} <= errors.keys()
    assert max(errors.values()) <= MAX_NMSE, errors
    assert max(exact.values()) <= MAX_NMSE_REFERENCE, exact


def test_converted_and_verified_and_recorded(tmp_path: Path, two_heads: Path, cli: Cli) -> None:
    out = tmp_path / "out.gguf"
    for source in (EXPORT, EXPORT / "model.safetensors"):
        result = cli(source, out, "--config", two_heads, "--verify", "full", "--force")
        assert result.code == 0, result.err
        assert result.err.count("assumed, since the file lacks it") == 5
        assert "missing in this file and in the result: the biases" in result.err
    keys = GgufFile(out).keys
    assert keys["valle.source.format"] == "Hugging Face export"
    assert keys["valle.source.lost"] == [
        "the biases of the heads, if it had any",
        "the table and the head of raw text",
    ]
    assert "positions begin anew in every segment" in keys["valle.source.assumed"]
    assert keys["valle.tokenizer.source"] == "built-in"
    assert "valle.head.bias" not in keys
    assert cli("verify", EXPORT, out, "--config", two_heads, "--level", "logits").code == 0
    # What the export was made of is held against what it can have of it.
    original = golden_checkpoint("ar-nar-len")
    assert cli("verify", original, out, "--level", "tensors").code == 0
    looked = cli("inspect", EXPORT, "--config", two_heads)
    assert "lost in this file: the biases of the heads" in looked.err
    assert cli("verify", out).code == 0


def test_the_published_width_needs_no_word(tmp_path: Path) -> None:
    folder = write_export(tmp_path / "e", Shape(dim=1024, heads=16, layers=1, levels=1, ffn=1))
    checkpoint = read_checkpoint(folder)
    assert describe(checkpoint).model.config.n_head == 16
    assert "16 heads" in checkpoint.assumed
    (folder / "config.json").unlink()
    assert describe(read_checkpoint(folder)).model.config.n_head == 16


def test_what_is_assumed_is_changed_by_the_user(export: Path, tmp_path: Path) -> None:
    said = {
        "version": 6 - 1,
        "size": {"heads": 2},
        "capabilities": ["ar", "nar", "len", "lang"],
        "experimental": {
            "unified_position_ids": True,
            "noncausal_masks": False,
            "audio_embedding_sums": "prom",
        },
    }
    checkpoint = read_checkpoint(export, config=say(tmp_path / "c.yaml", **said))
    config = describe(checkpoint).model.config
    assert (config.positions, config.nar_attention) == ("unified", "causal")
    assert (config.sum_prompt, config.sum_response) == (True, False)
    assert checkpoint.assumed == ()


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_vocabulary(path: Path, change: Callable[[dict[str, int]], None]) -> None:
    document = json.loads(path.read_text())
    change(document["model"]["vocab"])
    path.write_text(json.dumps(document))


def told(path: Path, shape: Shape) -> Path:
    """What the user has to say of it."""
    return say(
        path,
        size={
            "heads": shape.heads,
            "resp_levels": shape.levels,
            "audio_tokens": shape.audio_tokens,
        },
        langs=shape.langs,
        capabilities=list(shape.capabilities),
        experimental={
            "unified_position_ids": shape.unified,
            "noncausal_masks": shape.noncausal,
            "audio_embedding_sums": shape.sums,
        },
    )


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("seed", range(10))
def test_any_shape_and_type_comes_out_as_it_went_in(seed: int, named: bool, tmp_path: Path) -> None:
    # Of those that the export can hold.
    shape = Shape(**random_shape(seed) | {"split": True, "version": 5})
    dtype = random_dtype(seed)
    folder = write_export(tmp_path / "e", shape, dtype, named=named)
    checkpoint = read_checkpoint(folder, config=told(tmp_path / "c.yaml", shape))
    model = describe(checkpoint).model
    own = arrays_of(shape, dtype)
    specs = checkpoint.tensors.specs
    gone = {name for name in own if name not in specs}
    assert {name for name in gone if not name.endswith(".bias")} <= {
        "raw_text_emb.weight",
        "dropout_token",
    }
    for name in specs:
        found = checkpoint.tensors.read(name)
        assert found.dtype == own[name].dtype
        np.testing.assert_array_equal(found.view(np.uint8), own[name].view(np.uint8), name)
    assert model.config.n_head == shape.heads
    assert model.config.n_head_kv == shape.kv_heads


def test_names_are_surer_than_the_table(export: Path, two_heads: Path) -> None:
    """The table of lengths moved before that of languages, and its names with it."""
    arrays = load_file(export / "model.safetensors")
    order = [*range(264), *range(279, 290), *range(264, 279), *range(290, 1382)]
    moved = {name: arrays[name][order] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    save_file(arrays | moved, export / "model.safetensors")
    place = {old: new for new, old in enumerate(order)}
    change_vocabulary(
        export / "tokenizer.json", lambda v: v.update({name: place[i] for name, i in v.items()})
    )
    right = read_checkpoint(EXPORT, config=two_heads)
    found = read_checkpoint(export, config=two_heads)
    describe(found)
    for name in right.tensors.specs:
        np.testing.assert_array_equal(found.tensors.read(name), right.tensors.read(name))


def rename(old: str, new: str) -> Callable[[dict[str, int]], None]:
    return lambda vocabulary: vocabulary.update({new: vocabulary.pop(old)})


def swap(a: str, b: str) -> Callable[[dict[str, int]], None]:
    def change(vocabulary: dict[str, int]) -> None:
        vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]

    return change


def test_without_names_the_sizes_have_to_be_said(
    export: Path, two_heads: Path, tmp_path: Path, cli: Cli
) -> None:
    (export / "tokenizer.json").unlink()
    message = error_of(cli("inspect", export, "--config", two_heads), 2)
    assert "the rows have no names" in message
    config = say(tmp_path / "c.yaml", size={"heads": 2, "audio_tokens": 64})
    assert cli("inspect", export, "--config", config).code == 0


def config(**changes: object) -> Callable[[Path], None]:
    return lambda export: change_json(export / "config.json", **changes)


def newer(export: Path) -> None:
    """The base of the positions where newer exports have it."""
    document = json.loads((export / "config.json").read_text())
    document["rope_parameters"] = {"rope_theta": 5 * document.pop("rope_theta")}
    (export / "config.json").write_text(json.dumps(document))


def vocabulary(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda export: change_vocabulary(export / "tokenizer.json", change)


def content(name: str, text: str) -> Callable[[Path], object]:
    return lambda export: (export / name).write_text(text)


def tensors(change: Callable[[Arrays], object]) -> Callable[[Path], None]:
    def write(export: Path) -> None:
        arrays = load_file(export / "model.safetensors")
        change(arrays)
        save_file(arrays, export / "model.safetensors")

    return write


ONE, TWO, OTHER, LAST = "<|P|3|7|>", "<|P|3|8|>", "<|P|4|0|>", "<|R|NAR|0:0|64|>"
REFUSED: list[tuple[Callable[[Path], object], str]] = [
    *(
        (config(num_attention_heads=n), "with --config")
        for n in (0, 3, 64, "16", None, 16.0, True, -2)
    ),
    (config(num_attention_heads=16), "the width 64 is not 16 times 64"),
    *(
        (config(**{key: value}), f"describes a network other than VALL-E: {key}")
        for key, value in {
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 5e5,
            "rope_scaling": {"type": "linear", "factor": 2.0},
            "model_type": "mistral",
            "attention_bias": True,
        }.items()
    ),
    (newer, "describes a network other than VALL-E: rope_theta"),
    (vocabulary(rename(ONE, "<|Q|3|7|>")), "is out of the order of VALL-E's"),
    (vocabulary(lambda v: v.pop(ONE)), "is out of the order of VALL-E's"),
    (vocabulary(swap("<|P|3|63|>", OTHER)), "is out of the order of VALL-E's"),
    (vocabulary(swap(ONE, TWO)), "expected number 7"),
    (vocabulary(swap("<|lang:en|>", "<|lang:ja|>")), "row 0 of langs_emb"),
    (vocabulary(lambda v: v.update({"<|R|NAR|0:0|65|>": 1382})), "1383 tokens have names"),
    (vocabulary(lambda v: v.pop(LAST)), "1381 tokens have names"),
    (vocabulary(lambda v: v.update({"<|sep|>": 10**9})), "ids below 16,777,216"),
    (vocabulary(lambda v: v.update({"<|sep|>": "x"})), "names and ids"),
    *(
        (content("config.json", text), "config.json")
        for text in ("", "[1]", "[" * 100_000, '{"rms_norm_eps": 1e999}', '{"a": ' + "9" * 5000)
    ),
    *(
        (content("tokenizer.json", text), "tokenizer.json")
        for text in ("{", "null", '{"model": 3}', '{"model": {"vocab": [1]}}')
    ),
    (tensors(lambda a: a.pop("lm_head.weight")), "lm_head.weight have the shapes"),
    (tensors(lambda a: a.update({HEADS: a[HEADS][:-1]})), "[[1381, 64], [1382, 64]]"),
    (tensors(lambda a: a.pop("model.norm.weight")), "missing: model.norm.weight"),
    (tensors(lambda a: a.update(other=a["model.norm.weight"])), "unexpected: other"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED)
def test_what_is_no_export_of_a_vall_e_is_refused(
    change: Callable[[Path], object], words: str, export: Path, tmp_path: Path, cli: Cli
) -> None:
    config(num_attention_heads=2)(export)
    change(export)
    assert words in error_of(cli(export, tmp_path / "out.gguf"), 2)
    assert not (tmp_path / "out.gguf").exists()
