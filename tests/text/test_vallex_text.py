"""The text of VALL-E X: tags, sentences, the symbols of each language, and their numbers."""

import json
import sys
from pathlib import Path

import eng_to_ipa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pypinyin import Style, lazy_pinyin
from pypinyin.pinyin_dict import pinyin_dict

from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.families.vallex.symbols import (
    N_SPECIAL_SYMBOLS,
    UNKNOWN_SYMBOL,
    VALLEX_SYMBOLS,
    symbol_ids,
    unknown_symbols,
)
from valle_convert.families.vallex.text import japanese
from valle_convert.families.vallex.text.chinese import chinese_symbols, spell_syllable
from valle_convert.families.vallex.text.english import english_symbols, from_espeak
from valle_convert.families.vallex.text.japanese import japanese_symbols
from valle_convert.families.vallex.text.tagged import (
    TaggedText,
    spell,
    spell_symbols,
    tagged_pieces,
    tagged_sentences,
)


def test_pieces_are_what_stands_between_two_tags_and_the_rest_is_told() -> None:
    pieces, outside = tagged_pieces("well [EN]I like [EN][ZH]苹果[ZH] and [JA] [JA]so")
    assert pieces == [TaggedText("I like ", "en"), TaggedText("苹果", "zh")]
    assert outside == ["well", "and", "so"]


def test_text_without_tags_is_one_piece_of_the_language_given_or_detected() -> None:
    assert tagged_pieces("Hello.", "en-US") == ([TaggedText("Hello.", "en")], [])
    assert tagged_pieces("你好。") == ([TaggedText("你好。", "zh")], [])
    assert tagged_pieces("今日は。") == ([TaggedText("今日は。", "ja")], [])
    # A bracket alone is no tag.
    assert tagged_pieces("[DE]Hallo[DE]", "en")[0] == [TaggedText("[DE]Hallo[DE]", "en")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[EN]Hello", r"\[EN\] is not closed: the text ends"),
        ("[EN]Hello[ZH]你好[ZH]", r"\[EN\] is not closed: \[ZH\] follows"),
        ("[EN]a[EN][JA]", r"The tag \[JA\] is not closed"),
    ],
)
def test_tags_that_are_not_closed_are_refused(text: str, said: str) -> None:
    for read in (tagged_pieces, tagged_sentences):
        with pytest.raises(InputError, match=said):
            read(text)


def test_a_language_that_the_network_does_not_speak_is_refused() -> None:
    with pytest.raises(InputError, match=r"does not speak the language 'de'.*en, zh, ja"):
        tagged_pieces("Hallo.", "de")
    with pytest.raises(InputError, match="does not speak"):
        tagged_sentences("안녕하세요.")


def test_sentences_may_go_over_several_pieces() -> None:
    text = "[EN]I like [EN][ZH]苹果。很好吃！[ZH][EN]Very much. Yes[EN][JA]いいよ[JA] x"
    sentences, outside = tagged_sentences(text)
    assert [[(one.text, one.language) for one in sentence] for sentence in sentences] == [
        [("I like", "en"), ("苹果。", "zh")],
        [("很好吃！", "zh")],
        [("Very much.", "en")],
        [("Yes", "en"), ("いいよ", "ja")],
    ]
    assert outside == ["x"]


def test_each_sentence_of_a_text_without_tags_may_be_in_another_language() -> None:
    sentences, _ = tagged_sentences("Hello there. 你好！ 今日は。")
    assert [one.language for (one,) in sentences] == ["en", "zh", "ja"]
    sentences, _ = tagged_sentences("Hello. 你好！", "zh")
    assert [one.language for (one,) in sentences] == ["zh", "zh"]


def test_pieces_are_joined_each_with_an_end_and_every_symbol_has_its_language() -> None:
    spelled = spell([TaggedText("I like ", "en"), TaggedText("苹果！", "zh")])
    assert spelled.symbols == "aɪ_laɪk.pʰiŋ↑k⁼wo↓↑!"
    assert spelled.languages == ("en",) * 8 + ("zh",) * 12
    assert spelled.notices == ()


@pytest.mark.parametrize("end", list(".,!?-~…"))
def test_an_end_that_is_there_is_kept(end: str) -> None:
    assert spell([TaggedText(f"hello{end}  ", "en")]).symbols == f"hɛˈloʊ{end}"


def test_symbols_that_are_given_stay_as_they_are() -> None:
    spelled = spell_symbols([TaggedText("hɛˈloʊ wəɹɫd", "en"), TaggedText("ni↓↑_xɑʊ↓↑.", "zh")])
    assert spelled.symbols == "hɛˈloʊ_wəɹɫd.ni↓↑_xɑʊ↓↑."
    assert spelled.languages[12:14] == ("en", "zh")
    spelled = spell_symbols([TaggedText("cɹɪr", "en")])
    assert spelled.symbols == "ɹɪ."
    assert spelled.notices == (
        "the model lacks these symbols, which are skipped: c (U+0063) r (U+0072)",
    )


@pytest.mark.parametrize(
    ("module", "language", "extra"),
    [
        ("eng_to_ipa", "en", "vallex"),
        ("jieba", "zh", "vallex"),
        ("pypinyin", "zh", "vallex"),
        ("pyopenjtalk", "ja", "japanese"),
    ],
)
def test_a_missing_package_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, module: str, language: str, extra: str
) -> None:
    from valle_convert.families.vallex.text import chinese, japanese

    chinese._jieba.cache_clear()
    japanese._openjtalk.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EnvironmentFault, match=rf"{module}.*pip install '\.\[{extra}\]'"):
        spell([TaggedText("你好 hello", language)])


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.text(max_size=15) | st.text("ab1 .!你好一、かなっん。ー", max_size=15),
            st.sampled_from(["en", "zh", "ja"]),
        ),
        max_size=4,
    )
)
def test_any_text_is_spelled_in_the_symbols_with_a_language_each_or_refused(
    pieces: list[tuple[str, str]],
) -> None:
    try:
        spelled = spell([TaggedText(*piece) for piece in pieces])
    except InputError as error:
        assert "nothing to say" in str(error)  # noqa: PT017 - or else it is spelled
        return
    assert UNKNOWN_SYMBOL not in symbol_ids(spelled.symbols)
    assert len(spelled.languages) == len(spelled.symbols)
    assert spelled.symbols[-1] in ".,!?-…~"
    again = spell_symbols([TaggedText(spelled.symbols, "en")])
    assert (again.symbols, again.notices) == (spelled.symbols, ())


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=60) | st.text("[]ENZHJA .!a你か", max_size=60))
def test_any_text_is_taken_apart_without_loss_or_refused(text: str) -> None:
    try:
        sentences, outside = tagged_sentences(text, "en")
    except InputError as error:
        assert "not closed" in str(error)  # noqa: PT017 - or else it is taken apart
        return
    told = "".join(one.text for sentence in sentences for one in sentence) + "".join(outside)
    kept = text
    for tag in ("[EN]", "[ZH]", "[JA]"):
        kept = kept.replace(tag, "")
    assert sorted("".join(told.split())) == sorted("".join(kept.split()))


# English: the dictionary, espeak-ng beside it, numbers, signs


@pytest.fixture(scope="module")
def dictionary() -> list[str]:
    """All words of the CMU dictionary that are plain letters."""
    path = Path(eng_to_ipa.__file__).parent / "resources" / "CMU_dict.json"
    words = json.loads(path.read_text(encoding="utf-8"))
    return sorted(word for word in words if word.isascii() and word.isalpha())


def test_a_voice_file_of_the_original_project_comes_out_as_it_was_written() -> None:
    said = "There will be widespread support on all sides."
    assert english_symbols(said) == ("ðɛɹ wɪɫ bi ˈwaɪdˈspɹɛd səˈpɔɹt ɔn ɔɫ saɪdz.", [])


@pytest.mark.parametrize(
    ("text", "symbols"),
    [
        # Dictionary, case and accents.
        ("Hello WORLD", "hɛˈloʊ wəɹɫd"),
        ("naïve café", "naɪiv kəˈfeɪ"),
        ("judge, church", "dʒədʒ, tʃəɹtʃ"),
        # l is dark where no vowel follows in its word.
        ("all help lovely", "ɔɫ hɛɫp ˈləvli"),
        # Punctuation.
        ("Wait... what?! “Yes”—no; (maybe): ok", "weɪt… wət?! jɛs-noʊ, ˈmeɪbi, ˈoʊˈkeɪ"),
        ("don't o’clock rock'n'roll", "doʊnt əˈklɑk ˈɹɑkənˈɹoʊɫ"),
        # Hyphens: whole, else the parts.
        ("well-known", "ˈwɛlˈnoʊn"),
        ("cat-lamp", "kæt læmp"),
        # Short forms.
        ("Dr. Smith met Mrs. Jones.", "ˈdɔktəɹ smɪθ mɛt ˈmɪsɪz dʒoʊnz."),
        ("the U.S. army", "ðə ju ɛs ˈɑɹmi"),
        # Numbers.
        ("3", "θɹi"),
        ("1,234", "wən ˈθaʊzənd tu ˈhənəɹd ˈθəɹˌdi fɔɹ"),
        ("in 1999", "ɪn ˈnaɪnˈtin ˈnaɪnti naɪn"),
        ("007", "ˈziɹoʊ ˈziɹoʊ ˈsɛvən"),
        ("3.14", "θɹi pɔɪnt wən fɔɹ"),
        ("-5", "ˈmaɪnəs faɪv"),
        ("2nd", "ˈsɛkənd"),
        ("$1", "wən ˈdɔləɹ"),
        ("£2.01", "tu paʊnz ənd wən ˈpɛni"),
        ("$3 million", "θɹi ˈmɪljən ˈdɔləɹz"),
        ("5:30", "faɪv ˈθəɹˌdi"),
        ("7:00", "ˈsɛvən əˈklɑk"),
        ("½", "wən ˈoʊvəɹ tu"),
        ("５％", "faɪv pəɹˈsɛnt"),
        ("mp3", "ˌɛmˈpi θɹi"),
    ],
)
def test_english_is_read_by_the_rules(text: str, symbols: str) -> None:
    assert english_symbols(text) == (symbols, [])


@pytest.mark.parametrize(
    ("said_by_espeak", "symbols"),
    [
        ("vˈeɪpɚwˌɛɹ", "ˈveɪpəɹˌwɛɹ"),  # marks before the syllable, r-coloured vowels
        ("kˌuːbɚnˈɛɾiz", "ˌkubəɹˈnɛtiz"),  # flaps, lengths
        ("stɹˈæs", "stɹæs"),  # one syllable: no mark
        ("bˈiːʔn̩", "ˈbitən"),  # syllabic consonants
        ("ˌʌndɪtˈɛktəbəl", "ˌəndɪˈtɛktəbəl"),
        ("ɛkstɹˈiːm", "ɛkˈstɹim"),  # the longest onset
        ("sˈɪŋɡɪŋ ŋˈɑː", "ˈsɪŋgɪŋ ŋɑ"),
    ],
)
def test_what_espeak_says_is_rewritten_as_the_dictionary_writes(
    said_by_espeak: str, symbols: str
) -> None:
    assert from_espeak(said_by_espeak) == symbols


def test_the_dictionary_is_spelled_in_the_symbols(dictionary: list[str]) -> None:
    words = np.random.default_rng(2).choice(dictionary, 8_000, replace=False).tolist()
    said, unsaid = english_symbols(" ".join(words))
    assert unsaid == []
    assert unknown_symbols(said) == [" "]
    assert len(said.split()) == len(words)


# Mandarin: the table of syllables, words, numbers, letters


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
def test_mandarin_is_read_by_the_rules(text: str, symbols: str) -> None:
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


# Japanese: OpenJTalk's phones and accents


@pytest.mark.parametrize(
    ("text", "symbols"),
    [
        # As a voice file of the original project has them.
        ("レベルが", "ɾe↓beɾɯga"),
        ("上がったそうです", "a↑gat#ta so↑ode↓sɯ*"),
        # One accent at the first mora; a rise without a fall.
        ("彼らは", "ka↓ɾeɾawa"),
        ("あんず", "a↑Nzɯ"),
        # Doubled consonants.
        ("結婚 切符 待って 雑誌", "ke↑k#koN ki↑p#pɯ ma↓t#te za↑sʃi"),
        # The syllabic nasal before other sounds, but not beyond its phrase.
        ("散歩 漢字 案内 三年 文化", "sa↑mpo ka↑n^dʑi a↑nna↓i sa↑nneN bɯ↓ŋka"),
        ("一万五百", "i↑tʃima↓N go↑çakɯ"),
        # Consonants before i, and palatal ones.
        ("にゃんこ ひと ひょう", "n^a↓ŋko çi*↑to ço↓o"),
        ("ふじ りょこう", "ɸɯ↓dʑi ɾjo↑koo"),
        # Marks.
        ("そう、ですね。", "so↑o, de↓sɯ*ne."),
        ("「何」？　はい！", "na↓n^i? ha↓i!"),
    ],
)
def test_japanese_is_read_by_the_rules(text: str, symbols: str) -> None:
    assert japanese_symbols(text) == (symbols, [])


def test_nothing_is_printed_where_data_goes(capfd: pytest.CaptureFixture[str]) -> None:
    japanese._openjtalk.cache_clear()
    japanese_symbols("はい。")
    assert capfd.readouterr().out == ""


# The 70 symbols, as its project has them


def test_there_are_70_different_symbols_in_code_point_order() -> None:
    characters = VALLEX_SYMBOLS[N_SPECIAL_SYMBOLS:]
    assert len(VALLEX_SYMBOLS) == 70
    assert all(len(one) == 1 for one in characters)
    assert list(characters) == sorted(set(characters))


@pytest.mark.parametrize(
    ("symbol", "i"),
    [("!", 5), ("_", 16), ("`", 17), ("a", 18), ("b", 19), ("d", 20), ("~", 41), ("→", 68)],
)
def test_symbols_have_the_ids_of_the_original_vocabulary(symbol: str, i: int) -> None:
    assert symbol_ids(symbol) == [i]
    assert VALLEX_SYMBOLS[i] == symbol


@given(st.text())
def test_every_character_has_one_id_and_known_ones_come_back(text: str) -> None:
    ids = symbol_ids(text)
    assert len(ids) == len(text)
    unknown = unknown_symbols(text)
    assert unknown == list(dict.fromkeys(c for c, i in zip(text, ids, strict=True) if i == 0))
    known = "".join(one for one in text if one not in unknown)
    assert "".join(VALLEX_SYMBOLS[i] for i in symbol_ids(known)) == known
