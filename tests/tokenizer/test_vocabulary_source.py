"""The vocabulary's source, the file made of it, and the checkpoints that were trained with it."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from valle_convert.tokenizer.bpe import PhonemeBpe
from valle_convert.tokenizer.choose import BUILT_IN
from valle_convert.tokenizer.corpus import IPA_FILE, ipa_lines

ROOT = Path(__file__).parents[2]
GOLDEN = ("ar-nar-len", "ar-nar-len-unified-causal", "single-classifier")


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build", ROOT / "tokenizer" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_packaged_file_is_what_the_script_makes_byte_for_byte(build: ModuleType) -> None:
    made = build.build(build.SOURCE.read_text(encoding="utf-8"))
    assert BUILT_IN.read_bytes() == made.encode("utf-8")
    assert build.TARGET == BUILT_IN


def test_the_ipa_corpus_has_thousands_of_lines_and_covers_the_phonemes(
    published: PhonemeBpe,
) -> None:
    lines = ipa_lines()
    assert len(lines) > 2500
    assert IPA_FILE.stat().st_size < 400_000
    seen = set("".join(lines))
    letters = {string for string in published.vocab if len(string) == 1 and string.isalpha()}
    # No voice of espeak-ng that is used says these: q, ˇ ˉ ˊ ˋ (tones of another system), ...
    assert len(letters & seen) / len(letters) > 0.85
