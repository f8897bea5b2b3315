"""Which tokenizer a conversion takes, end to end; and what works without llama.cpp."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from support import Cli, error_of, golden_checkpoint

from valle_convert.gguf_file.read import GgufFile
from valle_convert.tokenizer.choose import BUILT_IN
from valle_convert.tokenizer.corpus import ipa_lines


@pytest.fixture
def without_symmap(small_checkpoint: Callable[..., Path]) -> Path:
    """A checkpoint that carries no vocabulary, as those trained with another tokenizer."""
    path = small_checkpoint()
    with safe_open(path, framework="numpy") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != "userdata"}
    save_file(load_file(path), path, metadata)
    return path


@pytest.fixture
def sentencepiece_model(tmp_path: Path) -> Path:
    # 256 pieces of phonemes would leave no room for 256 byte tokens: the rows grow instead.
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(ipa_lines()[::4]),
        model_writer=model,
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    path = tmp_path / "phonemes.model"
    path.write_bytes(model.getvalue())
    return path


def with_phoneme_rows(path: Path, n_rows: int) -> None:
    """Give a checkpoint a phoneme table, and a head of phonemes, of so many rows."""
    import numpy as np

    tensors = load_file(path)
    draw = np.random.default_rng(0)
    for name in ("text_emb.weight", "classifiers.proj.9.weight"):
        tensors[name] = draw.standard_normal((n_rows, 64)).astype(np.float32)
    tensors["classifiers.proj.9.bias"] = draw.standard_normal(n_rows).astype(np.float32)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata)


def test_a_sentencepiece_model_converts_and_verifies(
    without_symmap: Path, sentencepiece_model: Path, tmp_path: Path, cli: Cli
) -> None:
    with_phoneme_rows(without_symmap, 600)
    out = tmp_path / "out.gguf"
    options = ("--tokenizer", sentencepiece_model)
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


def test_a_sentencepiece_model_of_another_size_is_refused(
    without_symmap: Path, sentencepiece_model: Path, tmp_path: Path, cli: Cli
) -> None:
    message = error_of(
        cli(without_symmap, tmp_path / "o.gguf", "--tokenizer", sentencepiece_model), 2
    )
    assert "256 phoneme rows, and the tokenizer 600 ids" in message


def test_a_sentencepiece_model_is_refused_for_a_checkpoint_with_another_vocabulary(
    small_checkpoint: Callable[..., Path], sentencepiece_model: Path, tmp_path: Path, cli: Cli
) -> None:
    message = error_of(
        cli(small_checkpoint(), tmp_path / "o.gguf", "--tokenizer", sentencepiece_model), 2
    )
    assert "does not fit the tokenizer phonemes.model" in message


def test_a_tokenizer_beside_the_checkpoint_is_taken_and_said_so(
    small_checkpoint: Callable[..., Path], tmp_path: Path, cli: Cli
) -> None:
    path = small_checkpoint("model/ckpt.sft")
    shutil.copy(BUILT_IN, path.with_name("tokenizer.json"))
    result = cli(path, tmp_path / "out.gguf")
    assert result.code == 0
    assert "tokenizer: tokenizer.json (found beside the checkpoint" in result.err
    assert GgufFile(tmp_path / "out.gguf").keys["valle.tokenizer.source"] == "tokenizer.json"


def test_both_splitters_give_files_that_verify(tmp_path: Path, cli: Cli) -> None:
    path = golden_checkpoint("ar-nar-len")
    for pre in ("qwen35", "superbpe"):
        out = tmp_path / f"{pre}.gguf"
        assert cli(path, out, "--tokenizer-pre", pre).code == 0
        assert GgufFile(out).keys["tokenizer.ggml.pre"] == pre
        assert cli("verify", path, out, "--level", "structure").code == 0


def run_without_llama_cpp(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line in a Python that has no llama-cpp-python."""
    code = (
        "import sys\nsys.modules['llama_cpp'] = None\n"
        f"sys.argv = {['valle-convert', *map(str, arguments)]!r}\n"
        "from valle_convert.cli import main\nmain()"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_a_checkpoint_converts_where_llama_cpp_is_not_installed(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    done = run_without_llama_cpp(golden_checkpoint("ar-nar-len"), out)
    assert done.returncode == 0, done.stderr
    verdict = done.stderr.splitlines()[-1]
    assert verdict.startswith("NOT VERIFIED: ")
    assert "structure in part, tokenizer: llama-cpp-python is not installed" in verdict
    full = run_without_llama_cpp(golden_checkpoint("ar-nar-len"), tmp_path / "b", "--verify=full")
    assert full.returncode == 3, full.stderr
    done = run_without_llama_cpp("tokenize", out, "a")
    assert done.returncode == 3
    assert "pip install 'valle-convert[llama]'" in done.stderr
