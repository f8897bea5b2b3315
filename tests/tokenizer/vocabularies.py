"""A GGUF file that holds a vocabulary and nothing else, which is all that a tokenizer needs."""

from collections.abc import Callable
from pathlib import Path

from valle_convert.gguf_file.header import Key, pack_header
from valle_convert.tokenizer.compiled import CompiledTokenizer
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


def write_vocabulary(path: Path, compiled: CompiledTokenizer) -> None:
    keys = [
        Key("general.architecture", "gemma", "string"),
        *(Key(f"gemma.{name}", size, "u32") for name, size in SIZES.items()),
        Key("gemma.attention.layer_norm_rms_epsilon", 1e-6, "f32"),
        *(Key(*one) for one in compiled.metadata()),
    ]
    path.write_bytes(pack_header(keys, []))
