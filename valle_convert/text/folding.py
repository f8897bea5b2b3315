"""Text normalization: compatibility forms, signs, and names of skipped characters.

>>> fold("ｶﾞ １½ oﬃce")
'ガ 1 1/2 office'
"""

import re
import unicodedata
from collections.abc import Callable, Iterable

from valle_convert.errors import InputError

#: Chinese characters, as the inside of a character class.
HAN = r"\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"

#: Forms of digits that continue a number.
_SAME_NUMBER = ("<wide>", "<narrow>", "<font>")
#: Apostrophes and Japanese variants that Unicode does not fold.
_VARIANTS = {"´": "'", "ʼ": "'", "\u200b": " ", "髙": "高", "﨑": "崎", "𠮷": "吉"}
#: Variation selectors, and the frame of a keycap.
_INVISIBLE = re.compile("[\ufe00-\ufe0f\u20e3]")
_NEGATIVE_POWER = re.compile("⁻([⁰¹²³⁴-⁹]+)")

#: Words for signs that the voices of espeak-ng do not read.
SIGNS: dict[str, dict[str, str]] = {
    "en": {
        "&": "and", "@": "at", "%": "percent", "‰": "per mille", "+": "plus", "=": "equals",
        "°": "degrees", "€": "euros", "$": "dollars", "£": "pounds", "¥": "yen", "₩": "won",
        "×": "times", "÷": "divided by", "±": "plus or minus", "#": "number", "№": "number",
        "§": "section", "©": "copyright", "™": "trademark", "<": "less than",
        ">": "greater than", "≤": "less than or equal to", "≥": "greater than or equal to",
        "≠": "not equal to", "≈": "about", "∞": "infinity", "→": "to",
    },
    "de": {
        "‰": "Promille", "<": "kleiner als", ">": "größer als", "©": "Copyright", "₩": "Won",
    },
    "fr": {
        "#": "dièse", "=": "égale", "№": "numéro", "§": "paragraphe", "‰": "pour mille",
        "<": "inférieur à", ">": "supérieur à", "≤": "inférieur ou égal à",
        "≥": "supérieur ou égal à", "∞": "infini", "₩": "won",
    },
    "ja": {
        "&": "アンド", "%": "パーセント", "‰": "パーミル", "+": "プラス", "=": "イコール",
        "@": "アットマーク", "$": "ドル", "€": "ユーロ", "£": "ポンド", "¥": "円", "₩": "ウォン",
        "°C": "度", "°": "度", "#": "シャープ", "№": "ナンバー", "×": "かける", "÷": "わる",
        "±": "プラスマイナス", "<": "小なり", ">": "大なり", "→": "から", "〒": "郵便番号",
        "〇": "ゼロ", "§": "セクション",
    },
    "zh": {
        "&": "和", "%": "百分号", "+": "加", "=": "等于", "@": "艾特", "$": "美元", "€": "欧元",
        "£": "英镑", "¥": "元", "₩": "韩元", "°C": "摄氏度", "°": "度", "#": "井号", "№": "号",
        "×": "乘", "÷": "除以", "±": "正负", "<": "小于", ">": "大于", "§": "节", "‰": "千分号",
    },
    "ko": {
        "&": "앤드", "%": "퍼센트", "+": "더하기", "=": "은", "@": "골뱅이", "#": "샵", "$": "달러",
        "€": "유로", "£": "파운드", "¥": "엔", "₩": "원", "°C": "도", "°": "도",
        "№": "번호", "×": "곱하기", "÷": "나누기", "±": "플러스 마이너스", "‰": "퍼밀",
        "<": "작다", ">": "크다", "〇": "영", "§": "섹션",
    },
}  # fmt: skip
#: Words for a minus before a number.
_MINUS = {
    "en": "minus",
    "de": "minus",
    "fr": "moins",
    "ja": "マイナス",
    "zh": "负",
    "ko": "마이너스",
}
#: A minus, unless it is in a range, a date or a word. Chinese and Japanese have no space before it,
#: but a range may have a unit there: 5月-7月.
_UNSPACED = rf"ぁ-ヺー{HAN}"
_NEGATIVE = re.compile(
    rf"(?<![^\W{_UNSPACED}])(?<!\d[.,$€£¥₩])(?<!\dつ)"
    rf"(?:(?<=[ぁ-ゖ])|(?<!\d[{_UNSPACED}])(?<!\d[{_UNSPACED}]{{2}})(?<!\d[{_UNSPACED}]{{3}}))"
    r"[-−–](?=[$€£¥₩]?\.?\d)"
)
#: A fraction, but not a part of a date.
_FRACTION = re.compile(r"(?<![\d/.,])(\d+)/(\d+)(?![\d/])")
_FRACTIONS = {
    "en": r"\1 over \2",
    "de": r"\1 durch \2",
    "fr": r"\1 sur \2",
    "ja": r"\2ぶんの\1",
    "zh": r"\2分之\1",
    "ko": r"\2분의 \1",
}
_NAMES = {"en": "English", "de": "German", "fr": "French", "ja": "Japanese"}
_NAMES |= {"zh": "Chinese", "ko": "Korean"}
#: The voices of these languages do not read it as one number; the Korean one drops its fraction.
_GROUPED = re.compile(r"(?<![\d,])\d{1,3}(?:,\d{3})+(?!\d)")
#: Marks get a space after them, but not in numbers.
_WIDE_MARK = re.compile(r"[，：；！？](?=\w)(?!(?<=\d.)\d)")
#: The voices group digits in their own ways, or none; a plain space does so in German and French.
_GROUPING_SPACE = re.compile(r"(?<=\d)(?<!\d{4})['’\u00a0\u2009\u202f](?=\d{3}(?!\d))")
_GROUPED_BY_SPACE = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?: \d{3})+(?!\d)")
#: The German and the French voice would read 2024 100 as one number; they do not say a bar.
_UNGROUPED = re.compile(r"(?<=\d{4}) (?=\d{3}(?!\d))")
_PERCENT = re.compile(r"(?<!\d)(\d+(?:\.\d+)?)([%‰])")
_CURRENCY_FIRST = re.compile(r"([$€£¥₩])\s?(\d+(?:[.,]\d+)*)")


def fold(text: str, said: Callable[[str], bool] = lambda _: False) -> str:
    """Fold fullwidth forms, ligatures, circled digits etc., unless `said` can read them."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(
            f"The text {shortened(text)} is not valid Unicode; save it as UTF-8."
        ) from None
    folded: list[str] = []
    text = _NEGATIVE_POWER.sub(lambda n: f" -{unicodedata.normalize('NFKC', n[1])}", text)
    text = _INVISIBLE.sub("", unicodedata.normalize("NFC", text))
    text = _GROUPING_SPACE.sub("", text)
    for i, character in enumerate(text):
        plain = character if character.isascii() else _plain(character, said)
        category = unicodedata.category(plain[:1] or " ")
        if category in ("Cc", "Zl", "Zp"):
            plain = " "
        elif category == "Cf":
            plain = ""
        elif plain[:1].isdigit() and folded and folded[-1][-1:].isdigit() and plain != character:
            if not unicodedata.decomposition(character).startswith(_SAME_NUMBER):
                plain = f" {plain}"  # 1½ is not 11/2, and 10² not 102
        elif _WIDE_MARK.match(text, i):
            plain += " "
        folded.append(plain)
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", "".join(folded))).strip()


def _plain(character: str, said: Callable[[str], bool]) -> str:
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    if character in _VARIANTS:
        return _VARIANTS[character]
    if unicodedata.category(character) == "Sk" or character == "…" or said(character):
        return character
    return unicodedata.normalize("NFKC", character).replace("\N{FRACTION SLASH}", "/")


def signs_in_words(text: str, language: str, said: Callable[[str], bool] = lambda _: False) -> str:
    """Write minus, fractions and `SIGNS` of a folded text in words, unless `said` reads them."""
    signs = {sign: words for sign, words in SIGNS[language].items() if not said(sign[0])}
    space = " "
    text = re.sub(r"(?<![\w.,)])\.(?=\d)", "0.", text)
    if language in ("ja", "ko", "zh"):
        space = ""
        text = _GROUPED.sub(lambda number: number[0].replace(",", ""), text)
        text = _CURRENCY_FIRST.sub(r"\2\1", text)
    if language in ("de", "fr"):
        text = _UNGROUPED.sub(" | ", text)
        text = _GROUPED_BY_SPACE.sub(lambda number: number[0].replace(" ", ""), text)
    text = _NEGATIVE.sub(f"{_MINUS[language]}{space}", text)
    if not said("/"):
        text = _FRACTION.sub(_FRACTIONS[language], text)
    if language == "zh":
        text = _PERCENT.sub(
            lambda n: n[0] if said(n[2]) else f"{'百' if n[2] == '%' else '千'}分之{n[1]}", text
        )
    written = re.compile("|".join(map(re.escape, sorted(signs, key=len, reverse=True))))
    return written.sub(lambda sign: f"{space}{signs[sign[0]]}{space}", text)


def unsaid_notice(characters: Iterable[str], language: str) -> str:
    return (
        f"these characters cannot be read in {_NAMES[language]} and are skipped: "
        f"{listed(characters)}"
    )


def listed(characters: Iterable[str]) -> str:
    return " ".join(f"{one} (U+{ord(one):04X})" for one in characters)


def shortened(text: str) -> str:
    """The beginning of a text, in ASCII."""
    return ascii(text if len(text) <= 40 else f"{text[:40]}...")
