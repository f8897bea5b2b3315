"""Which tokenizer a conversion takes, end to end; and what works without llama.cpp."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import Cli, error_of, golden_checkpoint, resave, run_without, with_keys
from tokenizer.vocabularies import train_sentencepiece

from valle_convert.gguf_file.header import Key
from valle_convert.gguf_file.read import GgufFile
from valle_convert.tokenizer.choose import BUILT_IN


@pytest.fixture
def without_symmap(small_checkpoint: Callable[..., Path]) -> Path:
    """A checkpoint that carries no vocabulary, as those trained with another tokenizer."""
    path = small_checkpoint()
    resave(path, drop=["userdata"])
    return path


def give_600_phonemes(tensors: dict[str, np.ndarray]) -> None:
    """A phoneme table, and a head of phonemes, of so many rows."""
    draw = np.random.default_rng(0)
    for name in ("text_emb.weight", "classifiers.proj.9.weight"):
        tensors[name] = draw.standard_normal((600, 64)).astype(np.float32)
    tensors["classifiers.proj.9.bias"] = draw.standard_normal(600).astype(np.float32)


def test_a_sentencepiece_model_converts_and_verifies(
    without_symmap: Path, tmp_path: Path, cli: Cli
) -> None:
    # 256 pieces of phonemes would leave no room for 256 byte tokens: the rows grow instead.
    resave(without_symmap, give_600_phonemes)
    model, out = tmp_path / "phonemes.model", tmp_path / "out.gguf"
    model.write_bytes(train_sentencepiece())
    options = ("--tokenizer", model)
    assert cli(without_symmap, out, *options).code == 0
    keys = GgufFile(out).keys
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["valle.tokenizer.source"] == "phonemes.model"
    assert keys["valle.tokenizer.reason"] == "given by --tokenizer"
    report = json.loads(cli("verify", without_symmap, out, *options, "--json").out)
    assert report["passed"], report["verdict"]
    shown = cli("tokenize", out, "həlˈoʊ wˈɜːld", *options)
    assert shown.code == 0
    assert "sentencepiece" in shown.out
    assert "give that file with --tokenizer" in error_of(cli("tokenize", out, "a"), 2)


def end_swapped_with_begin(document: dict[str, Any]) -> None:
    template = document["post_processor"]["special_tokens"]
    template["<bos>"]["ids"], template["</eos>"]["ids"] = [2], [1]


def begin_is_mask(document: dict[str, Any]) -> None:
    document["post_processor"]["special_tokens"]["<bos>"]["ids"] = [3]


def unknown_is_mask(document: dict[str, Any]) -> None:
    document["model"]["unk_token"] = "<mask>"  # noqa: S105 - a token of text


def without_template_and_renumbered(document: dict[str, Any]) -> None:
    document["post_processor"] = None
    vocab = document["model"]["vocab"]
    vocab["<bos>"], vocab["<mask>"] = 3, 1
    for token in document["added_tokens"]:
        token["id"] = vocab[token["content"]]


@pytest.mark.parametrize(
    ("change", "ids"),
    [
        (end_swapped_with_begin, "0, 2 and 1"),
        (begin_is_mask, "0, 3 and 2"),
        (unknown_is_mask, "3, 1 and 2"),
        (without_template_and_renumbered, "0, 3 and 2"),
    ],
)
def test_a_tokenizer_json_with_other_special_ids_than_the_network_is_refused(
    change: Callable[[dict[str, Any]], None],
    ids: str,
    without_symmap: Path,
    tmp_path: Path,
    cli: Cli,
) -> None:
    document = json.loads(BUILT_IN.read_bytes())
    change(document)
    without_symmap.with_name("tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    out = tmp_path / "o.gguf"
    message = error_of(cli(without_symmap, out), 2)
    assert "tokenizer.json" in message
    assert f"unk, bos and eos = {ids}" in message
    assert not out.exists()


@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id", "unknown_token_id"])
def test_a_converted_file_with_another_special_id_is_refused_by_every_reader(
    name: str, gguf: Path, voice: Path, tmp_path: Path, cli: Cli
) -> None:
    key = f"tokenizer.ggml.{name}"
    out = with_keys(gguf, tmp_path / "out.gguf", Key(key, 7, "u32"))
    fault = f"{key} is 7, expected {GgufFile(gguf).keys[key]}"
    speak = ("speak", out, "hello", "--voice", voice, "-o", tmp_path / "said.wav")
    for command in (("inspect", out), speak, ("quantize", out, tmp_path / "q8.gguf", "Q8_0")):
        assert fault in error_of(cli(*command), 2)
    verified = cli("verify", golden_checkpoint("ar-nar-len"), out)
    assert verified.code == 1
    assert fault in verified.out + verified.err


def test_a_checkpoint_converts_where_llama_cpp_is_not_installed(tmp_path: Path) -> None:
    checkpoint, out = golden_checkpoint("ar-nar-len"), tmp_path / "out.gguf"
    done = run_without("llama_cpp", checkpoint, out)
    assert done.code == 0, done.err
    verdict = done.err.splitlines()[-1]
    assert verdict.startswith("NOT VERIFIED: ")
    assert "structure in part, tokenizer: llama-cpp-python is not installed" in verdict
    # What is asked for has to run, the default as far as it can.
    asked = run_without("llama_cpp", checkpoint, out, "--verify", "quick", "--force")
    assert asked.code == 3, asked.err
    assert asked.err.count("NOT VERIFIED: ") == 1
    assert out.exists()
    lacks = run_without("llama_cpp", "tokenize", out, "a")
    assert "pip install '.[llama]'" in error_of(lacks, 3)
