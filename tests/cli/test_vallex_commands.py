"""VALL-E X from the command line: symbols, and text to sound."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import GOLDEN, Cli, error_of

from valle_convert.api import plan_vallex, write_set
from valle_convert.model.vallex_symbols import symbol_ids

CHECKPOINT = GOLDEN / "valle-x-small" / "vallex-checkpoint.pt"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint as a set of files."""
    path = tmp_path_factory.mktemp("set") / "out.gguf"
    write_set(plan_vallex(CHECKPOINT), path)
    return path


def test_tokenize_knows_the_symbols_and_tells_what_is_none(converted: Path, cli: Cli) -> None:
    result = cli("tokenize", converted, "ðɛɹ_c.", "--json")
    assert result.code == 0
    found = json.loads(result.out)
    assert found["llama_cpp"]["ids"] == found["bpe"]["ids"] == symbol_ids("ðɛɹ_c.")
    assert "the vocabulary lacks c (U+0063)" in result.err


def test_tokenize_takes_no_other_tokenizer_and_no_other_part(converted: Path, cli: Cli) -> None:
    result = cli("tokenize", converted, "a", "--tokenizer", CHECKPOINT)
    assert "one table of symbols" in error_of(result, 2)
    for other in ("out-nar.gguf", "out-nar-3.gguf"):
        result = cli("tokenize", converted.with_name(other), "a")
        assert "give the file of the AR" in error_of(result, 2)
