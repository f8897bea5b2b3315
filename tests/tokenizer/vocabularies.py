"""Vocabularies: trained by SentencePiece, and alone in a GGUF file."""

import io
from collections.abc import Callable
from pathlib import Path

import sentencepiece

from valle_convert.gguf_file.header import Key, pack_header
from valle_convert.tokenizer.compiled import CompiledTokenizer
from valle_convert.tokenizer.corpus import ipa_lines
from valle_convert.tokenizer.oracle import LlamaTokenizer

PLACEHOLDERS = [f"<row:{i}>" for i in range(40)]
SIZES = {
    "context_length": 64,
    "embedding_length": 32,
    "block_count": 1,
    "feed_forward_length": 64,
    "attention.head_count": 1,
}

OpenVocabulary = Callable[[CompiledTokenizer], LlamaTokenizer]


def train_sentencepiece(**options: object) -> bytes:
    """A model that llama.cpp reproduces, if none of the options changes that."""
    model = io.BytesIO()
    given: dict[str, object] = {
        "sentence_iterator": iter(ipa_lines()[::4]),
        "model_writer": model,
        "model_type": "bpe",
        "vocab_size": 600,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "character_coverage": 0.999,
        "num_threads": 1,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(**given | options)
    return model.getvalue()


def write_vocabulary(path: Path, compiled: CompiledTokenizer) -> None:
    keys = [
        Key("general.architecture", "gemma", "string"),
        *(Key(f"gemma.{name}", size, "u32") for name, size in SIZES.items()),
        Key("gemma.attention.layer_norm_rms_epsilon", 1e-6, "f32"),
        *(Key(*one) for one in compiled.metadata()),
    ]
    path.write_bytes(pack_header(keys, []))
