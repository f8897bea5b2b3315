"""Text to the 70 symbols of VALL-E X, in English, Chinese and Japanese.

`tagged` splits a text at its language tags and joins the symbols. `english`, `chinese` and
`japanese` use the notation that the network was trained on, which is not espeak-ng's IPA.
"""

from valle_convert.families.vallex.text.tagged import (
    SpelledText,
    TaggedText,
    spell,
    spell_symbols,
    tagged_pieces,
    tagged_sentences,
)

__all__ = [
    "SpelledText",
    "TaggedText",
    "spell",
    "spell_symbols",
    "tagged_pieces",
    "tagged_sentences",
]
