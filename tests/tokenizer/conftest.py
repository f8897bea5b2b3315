"""The published vocabulary, compiled, and in stock llama.cpp."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from vocabularies import PLACEHOLDERS, OpenVocabulary, write_vocabulary

from valle_convert.tokenizer.bpe import PhonemeBpe, parse_bpe, read_file
from valle_convert.tokenizer.choose import BUILT_IN
from valle_convert.tokenizer.compile import compile_bpe
from valle_convert.tokenizer.compiled import CompiledTokenizer
from valle_convert.tokenizer.oracle import LlamaTokenizer


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
