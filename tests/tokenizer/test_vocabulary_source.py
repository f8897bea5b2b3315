"""The vocabulary's source, the file made of it, and the corpus of phonemes that covers it."""

import runpy

from support import PROJECT

from valle_convert.tokenizer.bpe import PhonemeBpe
from valle_convert.tokenizer.choose import BUILT_IN
from valle_convert.tokenizer.corpus import IPA_FILE, ipa_lines


def test_the_packaged_file_is_what_the_script_makes_byte_for_byte() -> None:
    script = runpy.run_path(str(PROJECT / "tokenizer" / "build.py"))
    made = script["build"](script["SOURCE"].read_text(encoding="utf-8"))
    assert BUILT_IN.read_bytes() == made.encode("utf-8")
    assert script["TARGET"] == BUILT_IN


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
