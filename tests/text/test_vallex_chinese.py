"""Mandarin in VALL-E X's symbols: the table of syllables, words, numbers, letters."""

import pytest
from pypinyin import Style, lazy_pinyin
from pypinyin.pinyin_dict import pinyin_dict

from valle_convert.families.vallex.symbols import unknown_symbols
from valle_convert.families.vallex.text.chinese import chinese_symbols, spell_syllable


@pytest.mark.parametrize(
    ("text", "symbols"),
    [
        # As a voice file of the original project has them.
        ("我", "wo↓↑"),
        ("想要", "ʃiɑŋ↓↑iɑʊ↓"),
        ("零花钱", "liŋ↑xwa→tʃʰjɛn↑"),
        ("我想要零花钱。", "wo↓↑ ʃiɑŋ↓↑iɑʊ↓ liŋ↑xwa→tʃʰjɛn↑."),
        # Punctuation.
        ("你好，世界！", "ni↓↑xɑʊ↓↑, s`ɹ`↓tʃ⁼iɛ↓!"),
        ("他说：“真的？”", "tʰa→ s`wo→, ts`⁼ən→t⁼ə?"),
        # Neutral tones have no arrow; the second reading is the one of the word.
        ("银行行长", "in↑xɑŋ↑xɑŋ↑ts`⁼ɑŋ↓↑"),
        ("儿子", "əɹ`↑ts⁼ɹ"),
        # Numbers.
        ("2024年", "əɹ`↓liŋ↑əɹ`↓ sɹ↓njɛn↑"),
        ("50%", "p⁼aɪ↓↑fən→ts`⁼ɹ`→u↓↑s`ɹ`↑"),
        ("-5", "fu↓u↓↑"),
        ("３", "san→"),
        # Letters by their Chinese names.
        ("AB", "eɪ→p⁼i↓"),
    ],
)
def test_text_is_read_by_the_rules(text: str, symbols: str) -> None:
    assert chinese_symbols(text) == (symbols, [])


@pytest.mark.parametrize(
    ("pinyin", "bopomofo", "symbols"),
    [
        ("bo", "ㄅㄛ", "p⁼wo→"),
        ("po", "ㄆㄛ", "pʰwo→"),
        ("lo", "ㄌㄛ", "lo→"),
        ("dé", "ㄉㄜˊ", "t⁼ə↑"),
        ("zhī", "ㄓ", "ts`⁼ɹ`→"),
        ("chí", "ㄔˊ", "ts`ʰɹ`↑"),
        ("rì", "ㄖˋ", "ɹ`ɹ`↓"),
        ("zǐ", "ㄗˇ", "ts⁼ɹ↓↑"),
        ("cì", "ㄘˋ", "tsʰɹ↓"),
        ("sī", "ㄙ", "sɹ→"),
        ("ér", "ㄦˊ", "əɹ`↑"),
        ("xué", "ㄒㄩㄝˊ", "ʃɥɛ↑"),
        ("yuǎn", "ㄩㄢˇ", "ɥæn↓↑"),
        ("yún", "ㄩㄣˊ", "ɥn↑"),
        ("xiōng", "ㄒㄩㄥ", "ʃjʊŋ→"),
        ("liú", "ㄌㄧㄡˊ", "ljoʊ↑"),
        ("guì", "ㄍㄨㄟˋ", "k⁼weɪ↓"),
        ("kuàng", "ㄎㄨㄤˋ", "kʰuɑŋ↓"),
        ("zhōng", "ㄓㄨㄥ", "ts`⁼ʊŋ→"),
        ("men", "ㄇㄣ˙", "mən"),
    ],
)
def test_syllables_are_spelled_by_the_table(pinyin: str, bopomofo: str, symbols: str) -> None:
    assert spell_syllable(bopomofo) == symbols, pinyin


@pytest.mark.parametrize("bopomofo", ["", "ㄅ", "ㄅㄚㄚ", "A", "ㄚㄅ", "ˋ"])
def test_what_is_no_syllable_has_no_symbols(bopomofo: str) -> None:
    assert spell_syllable(bopomofo) is None


def test_every_character_that_pypinyin_reads_is_spelled_and_syllables_stay_apart() -> None:
    readings = {
        reading for code in pinyin_dict for reading in lazy_pinyin(chr(code), style=Style.BOPOMOFO)
    }
    assert len(readings) > 1200
    spelled = {reading: spell_syllable(reading) for reading in readings}
    assert unknown_symbols("".join(map(str, spelled.values()))) == []
    assert None not in spelled.values()
    # Only eng and ong after no consonant, and o after a labial, have two writings in bopomofo.
    assert len(set(spelled.values())) > len(readings) - 10
