"""Numbers in Japanese, Chinese and Korean words, since espeak-ng's voices drop points and powers.

>>> numbers_in_words("35000円, 3本", "ja"), numbers_in_words("3.5", "zh")
('サンマンゴセン円, 三本', '三点五')
"""

import re

from valle_convert.extras import require
from valle_convert.text.folding import HAN

_NUMBER = re.compile(r"\d+(?:\.\d+)*")
#: Years are read digit by digit in Chinese, unlike 5000年历史.
_YEAR = re.compile(r"(?<!\d)(?:1[1-9]|20)\d\d(?=年(?!的?历史))")
_CHINESE = "零一二三四五六七八九十百千万亿点"
_WORDS = {
    # Not in hiragana, which would end the word before: 注1 is not 注ぐ.
    "ja": "レイ イチ ニ サン ヨン ゴ ロク ナナ ハチ キュウ ジュウ ヒャク セン マン オク テン",
    "ko": "영 일 이 삼 사 오 육 칠 팔 구 십 백 천 만 억 점",
}
#: Japanese sounds that change beside each other.
_CHANGED = {
    "サンヒャク": "サンビャク",
    "ロクヒャク": "ロッピャク",
    "ハチヒャク": "ハッピャク",
    "サンセン": "サンゼン",
    "ハチセン": "ハッセン",
}
#: A digit whose reading depends on the counter after it stays a kanji, where pykakasi knows both.
#: Not in 3日月曜日 and 1人当たり, where it knows another word.
_COUNTED = re.compile(r"(?<![\d.])[1-9](?=[本匹つ階冊歳杯]|人(?!当)|日(?![間月\d]))")
#: Japanese numbers end differently before some counters, and pykakasi reads 時 and 月末 otherwise.
_JAPANESE = re.compile(rf"({_NUMBER.pattern})(時間|月末|[時月年人])?")
_COUNTERS = {"時": "ジ", "月末": "ガツマツ"}
_ENDINGS = {
    "年": {"ヨン": "ヨ"},
    "人": {"ヨン": "ヨ"},
    "時": {"ヨン": "ヨ", "ナナ": "シチ", "キュウ": "ク"},
    "月": {"ヨン": "シ", "ナナ": "シチ", "キュウ": "ク"},
}
#: Longer numbers are read digit by digit.
_MAX_DIGITS = 12


def numbers_in_words(text: str, language: str) -> str:
    """For ja, ko and zh. A Japanese digit before a counter becomes a kanji, the rest katakana."""
    if language == "zh":
        text = _YEAR.sub(lambda year: _digits(year[0]), text)
        return _NUMBER.sub(lambda number: _in_chinese(number[0]), text)
    if language == "ja":
        # Beside another kanji it would be a name: 四月一日 is わたぬき.
        text = re.sub(rf"(?<=[{HAN}])(?={_COUNTED.pattern})", " ", text)
        text = _COUNTED.sub(lambda digit: _CHINESE[int(digit[0])], text)
        return _JAPANESE.sub(_in_japanese, text)
    return _NUMBER.sub(lambda number: _translated(_in_chinese(number[0]), language), text)


def _in_japanese(found: re.Match[str]) -> str:
    number, counter = _translated(_in_chinese(found[1]), "ja"), found[2] or ""
    for ending, other in _ENDINGS.get(counter[:1], {}).items():
        if number.endswith(ending):
            number = number.removesuffix(ending) + other
    return number + _COUNTERS.get(counter, counter)


def _translated(number: str, language: str) -> str:
    # Only Chinese says the zeros inside of a number, and one hundred.
    number = re.sub("(?<=[百千万亿])零|一(?=[十百千])", "", number)
    if language == "ko":
        number = number.removeprefix("一") if number[1:2] == "万" else number
    for chinese, word in zip(_CHINESE, _WORDS[language].split(), strict=True):
        number = number.replace(chinese, word)
    return re.sub("|".join(_CHANGED), lambda sounds: _CHANGED[sounds[0]], number)


def _in_chinese(number: str) -> str:
    whole, *others = number.split(".")
    read = _digits if len(others) == 1 else _cardinal
    return "点".join([_cardinal(whole), *map(read, others)])


def _digits(digits: str) -> str:
    return "".join(_CHINESE[int(digit)] for digit in digits)


def _cardinal(digits: str) -> str:
    if len(digits) > _MAX_DIGITS or (len(digits) > 1 and digits[0] == "0"):
        return _digits(digits)
    return str(require("cn2an", "Reading numbers").an2cn(digits, "low"))
