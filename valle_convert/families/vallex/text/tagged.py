"""Text with language tags to symbols.

    [EN]I like [EN][ZH]苹果。[ZH]      pieces, each between two tags of its language
    Plain text.                        one language, given or detected

Each piece is spelled separately and ends with a punctuation mark. Pieces are joined without spaces,
and every symbol has the language of its piece.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import Lock

from valle_convert.errors import InputError
from valle_convert.families.vallex.symbols import VALLEX_LANGUAGES, unknown_symbols
from valle_convert.families.vallex.text.chinese import chinese_symbols
from valle_convert.families.vallex.text.english import english_symbols
from valle_convert.families.vallex.text.japanese import japanese_symbols
from valle_convert.text.folding import listed, unsaid_notice
from valle_convert.text.languages import (
    could_be_either,
    detect_languages,
    known_language,
    sentences_of,
)
from valle_convert.text.phonemes import check_phonemes
from valle_convert.text.sentences import split_sentences

#: Readers by language; they return symbols, and the characters that they cannot read.
_READERS: dict[str, Callable[[str], tuple[str, list[str]]]] = {
    "en": english_symbols,
    "zh": chinese_symbols,
    "ja": japanese_symbols,
}
#: Text and transcript are read side by side; the packages of the readers are not made for that.
_READING = Lock()
_TAGS = {language.upper(): language for language in VALLEX_LANGUAGES}
_TAG = re.compile(rf"\[({'|'.join(_TAGS)})\]")
_SENTENCE_END = re.compile(r"[.!?…。！？｡][\"'”’»)」』】]*$")
#: A piece that does not end with one of these gets a full stop.
_ENDS = ".,!?-…~"


@dataclass(frozen=True)
class TaggedText:
    """Text, or symbols, in one language, with notices for the user."""

    text: str
    language: str
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class SpelledText:
    symbols: str  # characters of the table in `symbols.py`; a space is `_`
    languages: tuple[str, ...]  # language of each symbol: `en`, `zh` or `ja`
    notices: tuple[str, ...] = ()  # remarks for the user, such as characters that cannot be read


def tagged_pieces(text: str, language: str | None = None) -> tuple[list[TaggedText], list[str]]:
    """The pieces between tags, or the whole text without tags, and the text outside of tags.

    `language` is for a text without tags; None detects it.
    """
    if _TAG.search(text) is None:
        if language is None:
            (language,) = detect_languages([text], VALLEX_LANGUAGES)
        return [TaggedText(text, known_language(language, VALLEX_LANGUAGES))], []
    pieces: list[TaggedText] = []
    outside: list[str] = []
    end = 0
    while (opening := _TAG.search(text, end)) is not None:
        outside.append(text[end : opening.start()])
        closing = _TAG.search(text, opening.end())
        if closing is None or closing[0] != opening[0]:
            found = "the text ends" if closing is None else f"{closing[0]} follows"
            raise InputError(
                f"The tag {opening[0]} is not closed: {found}. Write each piece between two tags, "
                f"as in {opening[0]}...{opening[0]}."
            )
        pieces.append(TaggedText(text[opening.end() : closing.start()], _TAGS[opening[1]]))
        end = closing.end()
    outside.append(text[end:])
    return (
        [piece for piece in pieces if piece.text.strip()],
        [part.strip() for part in outside if part.strip()],
    )


def tagged_sentences(
    text: str, language: str | None = None
) -> tuple[list[list[TaggedText]], list[str]]:
    """Like `tagged_pieces`, by sentence; without tags, the language may change by sentence."""
    if _TAG.search(text) is None:
        given = None if language is None else known_language(language, VALLEX_LANGUAGES)
        sentences, notices = sentences_of(text, given, VALLEX_LANGUAGES)
        pieces = [TaggedText(sentence, language) for sentence, language in sentences]
        if notices:
            first = next(i for i, piece in enumerate(pieces) if could_be_either(piece.text))
            pieces[first] = replace(pieces[first], notices=notices)
        return [[piece] for piece in pieces], []
    pieces, outside = tagged_pieces(text, language)
    sentences_of_pieces: list[list[TaggedText]] = [[]]
    for piece in pieces:
        parts = split_sentences(piece.text, language=piece.language)
        for i, part in enumerate(parts):
            sentences_of_pieces[-1].append(TaggedText(part, piece.language))
            if i < len(parts) - 1 or _SENTENCE_END.search(part):
                sentences_of_pieces.append([])
    return [sentence for sentence in sentences_of_pieces if sentence], outside


def spell(pieces: Sequence[TaggedText]) -> SpelledText:
    """Write text in the network's symbols; InputError if there is nothing to say."""
    symbols: list[tuple[str, str]] = []
    notices: list[str] = []
    reasons: list[str] = []
    for piece in pieces:
        notices += piece.notices
        with _READING:
            read, unsaid = _READERS[piece.language](piece.text)
        if unsaid:
            notices.append(unsaid_notice(unsaid, piece.language))
            reasons.append(unsaid_notice(unsaid[:5], piece.language))
        symbols.append((read, piece.language))
    return _put_together(symbols, notices, pieces, reasons[:1])


def spell_symbols(pieces: Sequence[TaggedText]) -> SpelledText:
    """Use symbols as they are; a space is the same as `_`."""
    symbols: list[tuple[str, str]] = []
    notices: list[str] = []
    for piece in pieces:
        given = re.sub(r"\s+", "_", piece.text.strip())
        if unknown := unknown_symbols(given):
            notices.append(f"the model lacks these symbols, which are skipped: {listed(unknown)}")
        symbols.append(("".join(one for one in given if one not in unknown), piece.language))
    return _put_together(symbols, notices, pieces)


def _put_together(
    symbols: Sequence[tuple[str, str]],
    notices: Sequence[str],
    pieces: Sequence[TaggedText],
    reasons: Sequence[str] = (),
) -> SpelledText:
    spelled, languages = "", []
    for read, language in symbols:
        stripped = read.rstrip(" _")
        if not stripped:
            continue
        written = re.sub(r"\s+", "_", stripped)
        if written[-1] not in _ENDS:
            written += "."
        spelled += written
        languages += [language] * len(written)
    check_phonemes(spelled, " ".join(piece.text for piece in pieces), reasons)
    return SpelledText(spelled, tuple(languages), tuple(dict.fromkeys(notices)))
