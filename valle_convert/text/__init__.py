"""Text to phonemes: `sentences` splits, `languages` detects, `phonemes` makes IPA.

Everything works offline; a Python package brings espeak-ng as a library.
"""

from valle_convert.text.folding import listed, unsaid_notice
from valle_convert.text.languages import (
    detect_language,
    known_language,
    sentences_of,
)
from valle_convert.text.phonemes import (
    check_phonemes,
    to_phonemes,
    unknown_phonemes,
    unsaid_characters,
)

__all__ = [
    "check_phonemes",
    "detect_language",
    "known_language",
    "listed",
    "sentences_of",
    "to_phonemes",
    "unknown_phonemes",
    "unsaid_characters",
    "unsaid_notice",
]
