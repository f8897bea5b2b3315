"""VALL-E X's vocabulary: 70 symbols, one a character, and the numberings of its languages.

The network's text tables have more rows, but only these 70 ids are used. There are no marks around
a text; an unknown character has the id 0, which is spoken as anything.

>>> symbol_ids("ðɛɹ.")
[44, 49, 55, 10]
"""

#: In id order. From 5 on each is one character, in code point order.
VALLEX_SYMBOLS: tuple[str, ...] = (
    *("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"),
    *"!#*,-.=?NQ^_`abdefghijklmnopstuvwxyz~æçðŋɑɔəɛɥɪɫɯɸɹɾʃʊʑʒʰˈˌθ…⁼↑→↓",
)
#: The id of unknown characters; it equals `spec.UNKNOWN_PHONEME`.
UNKNOWN_SYMBOL = 0
N_SPECIAL_SYMBOLS = 5

#: The network's numbering of languages: row i of its language tables is name i.
VALLEX_LANGUAGES = ("en", "zh", "ja")
#: The numbering of `lang_code` in the voice files of the model's own project.
VOICE_FILE_LANGUAGES = ("zh", "ja", "en")

_IDS = {symbol: i for i, symbol in enumerate(VALLEX_SYMBOLS) if i >= N_SPECIAL_SYMBOLS}


def symbol_ids(symbols: str) -> list[int]:
    """The id of each character; `UNKNOWN_SYMBOL` for characters without one."""
    return [_IDS.get(character, UNKNOWN_SYMBOL) for character in symbols]


def unknown_symbols(symbols: str) -> list[str]:
    """The characters without a symbol, each once, in order."""
    return [one for one in dict.fromkeys(symbols) if one not in _IDS]
