"""Text to phonemes: `sentences` splits, `languages` detects, `phonemes` makes IPA.

Everything works offline; a Python package brings espeak-ng as a library.
"""

from valle_convert.text.folding import listed, unsaid_notice
from valle_convert.text.languages import (
    assumed_language_notices,
    detect_language,
    detect_languages,
    known_language,
)
from valle_convert.text.phonemes import (
    check_phonemes,
    to_phonemes,
    unknown_phonemes,
    unsaid_characters,
)
from valle_convert.text.sentences import split_sentences

__all__ = [
    "assumed_language_notices",
    "check_phonemes",
    "detect_language",
    "detect_languages",
    "known_language",
    "listed",
    "split_sentences",
    "to_phonemes",
    "unknown_phonemes",
    "unsaid_characters",
    "unsaid_notice",
]
