"""Language detection: by script, and between en, de and fr by a small classifier."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from valle_convert.errors import InputError
from valle_convert.extras import require
from valle_convert.model.spec import LANGUAGES
from valle_convert.text.sentences import split_sentences
from valle_convert.wording import listing

#: Languages by script, which is the first word in the Unicode names of its letters.
_SCRIPTS = {"HIRAGANA": "ja", "CJK": "zh", "BOPOMOFO": "zh", "HANGUL": "ko", "LATIN": ""}
_LATIN = ("en", "de", "fr")

#: A Chinese, Japanese or Korean letter counts as this many Latin ones.
_LATIN_LETTERS_WORTH = 3

#: Below this probability (a single short word) the classifier is guessing.
_SURE = 0.5


def detect_language(text: str, among: Sequence[str] = LANGUAGES) -> str:
    """The language of a text: one of `among`.

    The most frequent script decides. Chinese characters are Japanese if there are kana among them,
    or characters that only Japan uses. Latin letters without a clear language, and texts without
    letters, are the first of en, de and fr in `among`.
    """
    letters = _letters(text)
    if letters["HIRAGANA"]:
        letters["HIRAGANA"] += letters.pop("CJK", 0)
    script = letters.most_common(1)[0][0] if letters.total() else "LATIN"
    if script not in _SCRIPTS:
        raise InputError(
            f"The text is in the script {script.capitalize()}, which no language of this model "
            f"uses ({', '.join(among)}). Pass --language if it is one of them."
        )
    language = _SCRIPTS[script] or _classify_latin(text, [one for one in _LATIN if one in among])
    if script == "CJK":
        likely = (_language_of_han(text) or "zh", "zh", "ja")
        language = next((one for one in likely if one in among), "zh")
    if language not in among:
        raise InputError(
            f"The text seems to be in the language {language or 'of Latin letters'}, which this "
            f"model does not speak ({', '.join(among)}). Pass --language if that is wrong."
        )
    return language


def known_language(word: str, among: Sequence[str] = LANGUAGES) -> str:
    """The model's name of a language: en for en-US, en_GB and EN; else raises InputError."""
    plain = word.lower().replace("_", "-").partition("-")[0]
    for known in among:
        if known in (word, plain):
            return known
    raise InputError(
        f"This model does not speak the language {word!r}; its languages are {', '.join(among)}."
    )


def detect_languages(sentences: Sequence[str], among: Sequence[str] = LANGUAGES) -> list[str]:
    """The language of each sentence of a text; errors as `detect_language`.

    Sentences in Latin letters are detected together, since short ones are ambiguous. A sentence of
    Chinese characters alone gets the language of most other sentences with them or with kana.
    """
    found = [(sentence, detect_language(sentence, among)) for sentence in sentences]
    if latin := [sentence for sentence, language in found if language in _LATIN]:
        together = detect_language(" ".join(latin), among)
        found = [(one, together if language in _LATIN else language) for one, language in found]
    open_ = set(filter(could_be_either, sentences))
    clear = Counter(known for one, known in found if one not in open_ and known in ("ja", "zh"))
    for usual, _ in clear.most_common(1):
        found = [(one, usual if one in open_ else language) for one, language in found]
    return [language for _, language in found]


def sentences_of(
    text: str, language: str | None, among: Sequence[str], *, whole: bool = False
) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """The sentences of a text, or all of it, with their languages; notices of assumed ones."""
    sentences = [text] if whole else split_sentences(text, language=language) or [""]
    if language is not None:
        return [(sentence, language) for sentence in sentences], ()
    languages = detect_languages(sentences, among)
    found = list(zip(sentences, languages, strict=True))
    assumed = [
        repr(sentence[:20])
        for sentence, known in found
        if known == "ja" and "zh" in among and could_be_either(sentence)
    ]
    notice = (
        f"{listing(assumed, 3)} may be Chinese or Japanese, and is read in Japanese like the rest; "
        "pass --language if that is wrong"
    )
    return found, (notice,) if assumed else ()


def could_be_either(text: str) -> bool:
    letters = _letters(text)
    is_han = letters["CJK"] > 0 and letters.most_common(1)[0][0] == "CJK"
    return is_han and not letters["HIRAGANA"] and _language_of_han(text) is None


def _letters(text: str) -> Counter[str]:
    """Letters by script, weighted; both kana count as HIRAGANA."""
    letters: Counter[str] = Counter()
    for character in unicodedata.normalize("NFKC", text):
        if unicodedata.category(character).startswith("L"):
            script = script_of(character)
            letters[script] += _LATIN_LETTERS_WORTH if _SCRIPTS.get(script) else 1
    return letters


#: Letters whose Unicode names begin with another word than their script.
_SCRIPT_OF_VARIANT = {"KATAKANA": "HIRAGANA", "IDEOGRAPHIC": "CJK"}


def script_of(letter: str) -> str:
    """The first word of a letter's Unicode name; HIRAGANA for both kana."""
    script = unicodedata.name(letter, "").partition(" ")[0].partition("-")[0]
    return _SCRIPT_OF_VARIANT.get(script, script)


def _language_of_han(text: str) -> str | None:
    """Japanese or Chinese, if some characters are in the character sets of one only."""
    japanese = chinese = 0
    for character in text:
        in_japanese = _is_in(character, "shift_jis")
        in_chinese = _is_in(character, "gb2312") or _is_in(character, "big5")
        japanese += in_japanese and not in_chinese
        chinese += in_chinese and not in_japanese
    if japanese == chinese:
        return None
    return "ja" if japanese > chinese else "zh"


def _is_in(character: str, encoding: str) -> bool:
    if not "\u3400" <= character <= "\u9fff":
        return False
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _classify_latin(text: str, among: list[str]) -> str:
    if len(among) < 2:
        return among[0] if among else ""
    language, probability = _classifier(tuple(among)).classify(text)
    return str(language) if probability >= _SURE else among[0]


@cache
def _classifier(among: tuple[str, ...]) -> Any:  # noqa: ANN401 - the package has no types
    langid = require("py3langid.langid", "Detecting the language of a text")
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    identifier.set_languages(list(among))
    return identifier
