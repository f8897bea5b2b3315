"""Text for VALL-E X, in its 70 symbols: English, Chinese and Japanese, each by rules of its own.

`tagged` takes a text apart and puts symbols together; `english`, `chinese` and `japanese` read.
What the network learned is how its own project writes each language; espeak-ng's IPA is not it.
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
