"""A GGUF file that holds a vocabulary and nothing else, which is all that a tokenizer needs."""

from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import pytest

from valle_convert.tokenizer.bpe import PhonemeBpe, parse_bpe, read_file
from valle_convert.tokenizer.choose import BUILT_IN
from valle_convert.tokenizer.compile import compile_bpe
from valle_convert.tokenizer.compiled import CompiledTokenizer
from valle_convert.tokenizer.oracle import LlamaTokenizer

PLACEHOLDERS = [f"<row:{i}>" for i in range(40)]
GGUF_TYPES = {
    "string": gguf.GGUFValueType.STRING,
    "bool": gguf.GGUFValueType.BOOL,
    "u32": gguf.GGUFValueType.UINT32,
    "[string]": gguf.GGUFValueType.STRING,
    "[i32]": gguf.GGUFValueType.INT32,
    "[f32]": gguf.GGUFValueType.FLOAT32,
}

OpenVocabulary = Callable[[CompiledTokenizer], LlamaTokenizer]


def write_vocabulary(path: Path, compiled: CompiledTokenizer) -> None:
    writer = gguf.GGUFWriter(path, "gemma")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-6)
    for key, value, kind in compiled.metadata():
        if kind.startswith("["):
            writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, GGUF_TYPES[kind])
        else:
            writer.add_key_value(key, value, GGUF_TYPES[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def open_vocabulary(tmp_path: Path) -> Iterator[OpenVocabulary]:
    """Load a compiled tokenizer into stock llama.cpp; closed after the test."""
    opened = []

    def open_(compiled: CompiledTokenizer) -> LlamaTokenizer:
        path = tmp_path / f"vocabulary-{len(opened)}.gguf"
        write_vocabulary(path, compiled)
        opened.append(LlamaTokenizer(path))
        return opened[-1]

    yield open_
    for llama in opened:
        llama.close()


@pytest.fixture(scope="session")
def published() -> PhonemeBpe:
    """The vocabulary of the published checkpoints."""
    return parse_bpe(read_file(BUILT_IN), str(BUILT_IN))


@pytest.fixture(scope="session")
def compiled(published: PhonemeBpe) -> CompiledTokenizer:
    """It, compiled beside 40 rows that are no text."""
    return compile_bpe(published, PLACEHOLDERS)


@pytest.fixture(scope="session")
def llama(
    compiled: CompiledTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LlamaTokenizer]:
    """It, in stock llama.cpp."""
    path = tmp_path_factory.mktemp("vocabulary") / "published.gguf"
    write_vocabulary(path, compiled)
    with LlamaTokenizer(path) as tokenizer:
        yield tokenizer
