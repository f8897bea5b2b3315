"""No word or character vanishes on its way to VALL-E X's symbols without being named."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valle_convert.families.vallex.text import TaggedText, spell
from valle_convert.families.vallex.text.chinese import chinese_symbols
from valle_convert.families.vallex.text.english import english_symbols
from valle_convert.families.vallex.text.japanese import japanese_symbols

READERS = {"en": english_symbols, "zh": chinese_symbols, "ja": japanese_symbols}


@pytest.mark.parametrize(
    ("language", "text", "like"),
    [
        ("en", "the oﬃce, ① 𝐇𝐞𝐥𝐥𝐨", "the office, 1 Hello"),
        ("en", "1½ cups", "1 1/2 cups"),
        ("en", "10² km", "10 2 km"),
        ("en", "5≤6", "5 less than or equal to 6"),
        ("en", "on 5/3/2020", "on 5 3 2020"),
        ("en", "$" + "1" * 5000, "1" * 5000 + " dollars"),
        ("zh", "价格１，０００．５元", "价格一千点五元"),
        ("zh", "$5", "五美元"),
        ("zh", "5‰", "千分之五"),
        ("zh", "10²", "十二"),
        ("zh", "20℃", "二十摄氏度"),
        ("zh", "café", "cafe"),
        ("ja", "1,000円", "1000円"),
        ("ja", "－5度", "マイナス5度"),
        ("ja", "20℃", "20度"),
        ("ja", "$5", "5ドル"),
        ("ja", "髙﨑", "高崎"),
    ],
)
def test_what_is_written_otherwise_is_read_alike(language: str, text: str, like: str) -> None:
    read = READERS[language]
    assert read(text)[1] == []
    assert read(text)[0].replace(" ", "") == read(like)[0].replace(" ", "")


@pytest.mark.parametrize(
    ("language", "text", "unsaid"),
    [
        ("ja", "はゝヷ", ["ヷ"]),
        ("ja", "はい한글", ["한", "글"]),
        ("zh", "好かꙮ", ["か", "ꙮ"]),
        ("en", "Hangul 한", ["한"]),
        ("en", "a☆b", ["☆"]),
    ],
)
def test_a_character_without_a_reading_is_named(
    language: str, text: str, unsaid: list[str]
) -> None:
    assert READERS[language](text)[1] == unsaid


def test_a_text_of_many_pages_is_read_to_its_end() -> None:
    symbols, unsaid = japanese_symbols("さかなをたべました" * 500)
    assert symbols.count("na") == 500
    assert unsaid == []


WORDS = {
    "en": ["water", "garden", "music", "seven", "yellow", "Tolkien", "zzyzx"],
    "zh": ["学校", "老师", "北京", "朋友", "苹果", "火车"],
    "ja": ["カメラ", "テレビ", "ラジオ", "バナナ"],
}
OTHERS = """
    7 3.14 1,000.50 10:30 1/2 5% $3.50 v2.0.1 192.168.0.1 2024-05-03 1st ½ 5°C 007 4K mp3 １００ ③
    10⁶ -5 Dr. U.S. e.g. www.example.com a@b.org A&B C++ — – - ... … « » “ ” ( ) ¿ ! ?! ; :
    , 「 」 、 。 ！ ，
    😀 ™ → * _ | π Ж 한 ש
""".split()


@st.composite
def texts(draw: st.DrawFn) -> tuple[str, str, list[str]]:
    """A language, a text in it, and those of its words that have to be heard."""
    language = draw(st.sampled_from(list(READERS)))
    parts = draw(
        st.lists(
            st.sampled_from(WORDS[language]) | st.sampled_from(OTHERS), min_size=1, max_size=12
        )
    )
    space = draw(st.sampled_from([" ", ", ", " 。", "\n"]))
    return language, space.join(parts), [part for part in parts if part in WORDS[language]]


@settings(deadline=None, max_examples=200)
@given(texts())
def test_every_word_is_heard_in_its_order(case: tuple[str, str, list[str]]) -> None:
    language, text, words = case
    if not words:
        return
    heard = spell([TaggedText(text, language)]).symbols
    place = 0
    for word in words:
        expected = READERS[language](word)[0]
        place = heard.find(expected, place)
        assert place >= 0, (word, heard)
        place += len(expected)


@settings(deadline=None, max_examples=300)
@given(
    st.characters(categories=["Lu", "Ll", "Lo", "N", "So", "Sc", "Sm"], exclude_characters="|⁄~−"),
    st.sampled_from(list(READERS)),
)
def test_a_character_is_said_or_named(character: str, language: str) -> None:
    symbols, unsaid = READERS[language](character)
    assert unsaid or any(unicodedata.category(one).startswith("L") for one in symbols)
