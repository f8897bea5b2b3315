"""No word of a text vanishes on its way to phonemes, whatever stands around it."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valle_convert.errors import InputError
from valle_convert.text import to_phonemes, unsaid_characters
from valle_convert.text.phonemes import VOICES


def sounds(phonemes: str) -> str:
    """Letters without stress, length and tone."""
    return "".join(one for one in phonemes if unicodedata.category(one) in ("Ll", "Lo"))


def test_a_number_is_read_whole_and_what_follows_it_too() -> None:
    assert to_phonemes("Dr. Smith paid 3.50 for it.", "en") == (
        "dˈɑːktɚ. smˈɪθ pˈeɪd θɹˈiː pɔɪnt fˈaɪv zˈiəɹoʊ fɔːɹ ɪt."
    )
    assert to_phonemes("From 1.5 to 2.5 miles.", "en") == (
        "fɹʌm wˈʌn pɔɪnt fˈaɪv tə tˈuː pɔɪnt fˈaɪv mˈaɪlz."
    )
    assert to_phonemes("Es sind 3,14 und 2,71 Meter.", "de") == (
        "ɛs zɪnt dɾˈaɪ kɔmɑː ˈaɪns fˈiːɾ ʊnt tsvˈaɪ kɔmɑː zˈiːbən ˈaɪns mˈeːtɜ."
    )


@pytest.mark.parametrize(
    ("language", "text", "like"),
    [
        # Fullwidth forms, ligatures, circled and mathematical letters, other digits.
        ("ja", "価格は１００円です。", "価格は100円です。"),
        ("zh", "他有１００元。", "他有100元。"),
        ("en", "the oﬃce", "the office"),
        ("en", "① ② ⑫", "1 2 12"),
        ("en", "𝐇𝐞𝐥𝐥𝐨 Ｗｏｒｌｄ", "Hello World"),
        ("en", "٣.١٤", "3.14"),
        ("en", "1½ m", "1 ½ m"),
        ("ja", "ｶﾞ", "ガ"),
        ("ja", "１０：３０", "10:30"),
        ("zh", "他说：“好！？”他走，3天。", "他说:“好!?”他走, 3天。"),
        # A superscript is no digit of the number before it.
        ("ja", "10⁶", "10 6"),
        # Zero width and soft hyphens, apostrophes.
        ("de", "Wort\u00adtrennung", "Worttrennung"),
        ("en", "it´s", "it's"),
        # Signs for which a voice has no words.
        ("ja", "$5", "5ドル"),
        ("zh", "€5", "5欧元"),
        ("ko", "20℃", "20도"),
        ("fr", "#1", "dièse 1"),
        ("en", "5‰", "5 per mille"),
        # What the Korean and the Chinese voice forget.
        ("ko", "1,000.50", "1000.50"),
        ("ko", "1st", "1 st"),
        ("zh", "1st", "1 st"),
        ("zh", "A4", "A 4"),
        # Names whose kanji are variants.
        ("ja", "髙橋と𠮷田", "高橋と吉田"),
    ],
)
def test_what_is_written_otherwise_is_read_alike(language: str, text: str, like: str) -> None:
    assert to_phonemes(text, language) == to_phonemes(like, language)
    assert unsaid_characters(text, language) == []


@pytest.mark.parametrize(
    ("language", "text", "unsaid"),
    [
        ("en", "I like 苹果。", ["苹", "果"]),
        ("ja", "龘が好き😀", ["龘", "😀"]),
        ("zh", "好かな", ["か", "な"]),
        ("ko", "大韓民國 만세 😀", ["大", "韓", "民", "國", "😀"]),
        ("de", "Das ist ꙮ und ꙮ", ["ꙮ"]),
        ("en", "Yes 😀, π and Ж… 🇩🇪", []),
        ("ja", "はい🇩🇪", ["🇩", "🇪"]),
    ],
)
def test_what_cannot_be_said_is_named_and_the_rest_is_said(
    language: str, text: str, unsaid: list[str]
) -> None:
    assert unsaid_characters(text, language) == unsaid
    rest = text
    for one in unsaid:
        rest = rest.replace(one, " ")
    assert to_phonemes(text, language) == to_phonemes(rest, language)


def test_a_text_without_a_character_that_can_be_said_is_refused_with_their_names() -> None:
    with pytest.raises(
        InputError, match=r"nothing to say.*read in English.*你 \(U\+4F60\).*--lang"
    ):
        to_phonemes("你好", "en")


#: Words that sound alike in every context.
WORDS = {
    "en": ["Smith", "paid", "house", "water", "garden", "music", "seven", "yellow"],
    "de": ["Haus", "Wasser", "Garten", "Musik", "gelb", "Schule", "Freund", "lachen"],
    "fr": ["maison", "jardin", "musique", "jaune", "village", "bonjour", "chanson", "livre"],
    "ja": ["さかな", "カメラ", "やま", "テレビ", "みどり", "くるま", "とり", "はな"],
    "zh": ["学校", "老师", "北京", "朋友", "天气", "苹果", "火车", "音乐"],
    "ko": ["사람", "나무", "바다", "하늘", "노래", "시간", "여름", "겨울"],
}
NUMBERS = """
    7 100 3.14 3,14 1,000 1.000,50 1,000.50 1.5e3 10:30 1/2 5% $3.50 3.50€ v2.0.1 192.168.0.1
    2024-05-03 03.05.2020 1st 2nd 3. ½ 5°C 007 4K mp3 １００ ③ 10⁶ -5
""".split()
OTHERS = """
    Dr. U.S. e.g. a.m. z. B. www.example.com a@b.org A&B C++ rock'n'roll — – - ... … « » “ ” ( ) [ ]
    ¿ ! ?! ; : , 「 」 、 。 ！ ， 😀 👨‍👩‍👧 ™ → * _ | Привет 你 か 한 ש
""".split()


@st.composite
def texts(draw: st.DrawFn) -> tuple[str, str, list[str]]:
    """A language, a text in it, and those of its words that have to be heard."""
    language = draw(st.sampled_from(list(VOICES)))
    word = st.sampled_from(WORDS[language])
    kinds = st.one_of(word, word, st.sampled_from(NUMBERS), st.sampled_from(OTHERS))
    parts = draw(st.lists(kinds, min_size=1, max_size=12))
    glue = draw(st.lists(st.sampled_from([" ", " ", " ", ", ", ". ", "\u00a0", "\n"]), min_size=12))
    text = "".join(part + space for part, space in zip(parts, glue, strict=False))
    return language, text, [part for part in parts if part in WORDS[language]]


@settings(deadline=None, max_examples=300)
@given(texts())
def test_every_word_is_heard_in_its_order(case: tuple[str, str, list[str]]) -> None:
    language, text, words = case
    if not words:
        return
    heard = sounds(to_phonemes(text, language))
    place = 0
    for word in words:
        expected = sounds(to_phonemes(word, language))
        place = heard.find(expected, place)
        assert place >= 0, (word, heard)
        place += len(expected)


@settings(deadline=None, max_examples=300)
@given(
    st.characters(categories=["Lu", "Ll", "Lo", "N", "So", "Sc", "Sm"], exclude_characters="|⁄"),
    st.sampled_from(list(VOICES)),
)
def test_a_character_is_said_or_named(character: str, language: str) -> None:
    unsaid = unsaid_characters(character, language)
    try:
        assert to_phonemes(character, language)
    except InputError:
        assert unsaid


@pytest.mark.parametrize(
    ("language", "word"),
    [
        ("en", "wonderful"),
        ("en", "w"),
        ("de", "Donau"),
        ("fr", "bonjour"),
        ("ja", "きれい"),
        ("zh", "苹果"),
        ("ko", "한국어"),
    ],
)
@pytest.mark.parametrize("space", ["", " "])
def test_length_loses_nothing(language: str, word: str, space: str) -> None:
    n_short = len(sounds(to_phonemes(space.join([word] * 4), language)))
    n_long = len(sounds(to_phonemes(space.join([word] * 120), language)))
    assert n_long >= 30 * n_short * 0.97  # cut words may sound otherwise at the cut
