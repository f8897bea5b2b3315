"""No word of a text vanishes on its way to a model's input without being named."""

import re
import time
import unicodedata
from collections import defaultdict
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valle_convert.errors import InputError
from valle_convert.families.vallex.text.tagged import TaggedText, spell
from valle_convert.text.phonemes import VOICES, to_phonemes, unsaid_characters

Path = tuple[str, str]  # family and language
PATHS: list[Path] = [
    *(("phonemes", language) for language in VOICES),
    *(("vallex", language) for language in ("en", "zh", "ja")),
]


@cache
def read(path: Path, text: str) -> tuple[str | None, frozenset[str]]:
    """What a model gets of a text (None: it is refused), and the characters that are named."""
    family, language = path
    try:
        if family == "phonemes":
            unsaid = unsaid_characters(text, language)
            return to_phonemes(text, language), frozenset(unsaid)
        spelled = spell([TaggedText(text, language)])
        named = re.findall(r"\(U\+([0-9A-F]+)\)", " ".join(spelled.notices))
        return spelled.symbols, frozenset(chr(int(code, 16)) for code in named)
    except InputError:
        return None, frozenset()


def sounds(phonemes: str | None) -> str:
    """Letters without stress, length, tone and blanks."""
    return "".join(one for one in phonemes or "" if unicodedata.category(one) in ("Ll", "Lo"))


#: Writing of the languages, from which half of all words are drawn.
OWN = {
    "en": "Latin", "de": "Latin", "fr": "Latin", "zh": "Han", "ja": "kana Han", "ko": "Hangul",
}  # fmt: skip
COMMON = {
    "Latin": "abcdefghijklmnopqrstuvwxyzABCXYZäöüéèçß",
    "Han": [chr(code) for code in range(0x4E00, 0x9FA6)],
    "Hangul": [chr(code) for code in range(0xAC00, 0xD7A4)],
    "kana": [chr(code) for code in (*range(0x3041, 0x3097), *range(0x30A1, 0x30FB))],
    "digits": "0123456789",
}
BETWEEN = [*[" "] * 6, "", "", *"&@#-/\u200b", ", ", ". ", "! ", " (", ") ", " — ", ": ", "..."]
MINUS = {
    "en": "minus",
    "de": "minus",
    "fr": "moins",
    "ja": "マイナス",
    "zh": "负",
    "ko": "마이너스",
}
#: These languages have no space before a number.
UNSPACED = {"ja": ("気温は", "気温", "第3回は"), "zh": ("温度是", "最低气温")}
#: Separators, and the pause before a consonant.
SILENT = set("|っッ⁄")


@cache
def unicode_by_kind() -> dict[str, list[str]]:
    """All letters by script, numbers and signs by category."""
    kinds = defaultdict(list)
    for character in map(chr, range(0x110000)):
        category = unicodedata.category(character)
        if category in ("Lu", "Ll", "Lo"):
            kinds[unicodedata.name(character, "").partition(" ")[0]].append(character)
        elif category in ("Nd", "No", "Nl", "Sc", "Sm", "So"):
            kinds[category].append(character)
    return kinds


@st.composite
def words(draw: st.DrawFn, language: str) -> tuple[str, str]:
    """A word, a number or a sign, and its kind."""
    source = draw(st.sampled_from(["own", "own", "own", "digits", "common", "any", "any"]))
    if source == "any":
        kind = draw(st.sampled_from(sorted(unicode_by_kind())))
        size = 1 if kind in ("No", "Nl", "Sc", "Sm", "So") else 5
        return draw(st.text(unicode_by_kind()[kind], min_size=1, max_size=size)), kind
    own = st.sampled_from(OWN[language].split())
    kind = draw({"own": own, "common": st.sampled_from(list(COMMON))}.get(source, st.just(source)))
    return draw(st.text(COMMON[kind], min_size=1, max_size=7)), kind


@st.composite
def texts(draw: st.DrawFn) -> tuple[Path, list[str], list[str]]:
    """A path, words, and what stands after each of them."""
    path = draw(st.sampled_from(PATHS))
    drawn = draw(st.lists(words(path[1]), min_size=1, max_size=6))
    after = [draw(st.sampled_from(BETWEEN)) for _ in drawn]
    for i, ((_, kind), (_, following)) in enumerate(pairwise(drawn)):
        if kind == following:  # they would be one word
            after[i] = after[i] or " "
    return path, [word for word, _ in drawn], after


@settings(deadline=None, max_examples=200)
@given(texts())
def test_a_text_without_one_of_its_words_is_read_otherwise(
    case: tuple[Path, list[str], list[str]],
) -> None:
    path, drawn, after = case
    whole, named = read(path, together(drawn, after))
    for i, word in enumerate(drawn):
        forms = {form for name in ("NFC", "NFKC", "NFKD") for form in _normal(name, word)}
        if forms & named or set(_normal("NFKC", word)) <= SILENT:
            continue
        rest = [*drawn[:i], " ", *drawn[i + 1 :]]
        if whole is None:
            assert read(path, word)[0] is None, word
        else:
            assert read(path, together(rest, after))[0] != whole, word


def together(drawn: list[str], after: list[str]) -> str:
    return "".join(word + space for word, space in zip(drawn, after, strict=True))


def _normal(form: str, text: str) -> str:
    return unicodedata.normalize(form, text)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=300)
@given(
    st.characters(categories=["Lu", "Ll", "Lo", "N", "So", "Sc", "Sm"], exclude_characters="|⁄~−"),
    st.sampled_from(PATHS),
)
def test_a_character_is_said_or_named(character: str, path: Path) -> None:
    said, named = read(path, f"1 {character}")
    assert named or sounds(said) != sounds(read(path, "1")[0])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("number", ["5", "3.5", "3,5", "3 °C", "$5", "5%"])
def test_a_minus_is_said_before_a_number_and_not_in_a_range(number: str, path: Path) -> None:
    word = sounds(read(path, MINUS[path[1]])[0])
    without = sounds(read(path, f"1 ({number})")[0])
    assert word
    assert word not in without
    for minus in "-−–":
        for text in (f"{minus}{number}", f"1 ({minus}{number})"):
            said, named = read(path, text)
            assert sounds(said).count(word) == 1
            assert not named
        for before in UNSPACED.get(path[1], ()):
            assert sounds(read(path, f"{before}{minus}{number}")[0]).count(word) == 1
    ranges = "5-6, 5–6, $5-$6, 2026-11-30, A-5"
    if path[1] in UNSPACED:
        ranges += "、5月-7月、2020年–2025年"
    assert word not in sounds(read(path, ranges)[0])


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(PATHS),
    st.integers(0, 10**12),
    st.integers(0, 10**12) | st.integers(0, 12).map(lambda power: 10**power),
)
def test_two_numbers_are_read_differently(path: Path, first: int, second: int) -> None:
    for other in {second, first * 10, first // 10} - {first}:
        assert read(path, f"{first}")[0] != read(path, f"{other}")[0]
    if path[1] in ("ja", "ko", "zh"):
        assert read(path, f"{first}.{second}")[0] != read(path, f"{first}{second}")[0]


@pytest.mark.parametrize("path", PATHS)
def test_a_fraction_is_not_two_numbers(path: Path) -> None:
    for fraction in ("7/9", "⅞", "5 ⅞"):
        said, named = read(path, fraction)
        numbers = fraction.replace("/", " ").replace("⅞", "7 8")
        assert len(sounds(said)) > len(sounds(read(path, numbers)[0]))
        assert not named


@pytest.mark.parametrize("path", PATHS)
def test_a_sign_that_unicode_counts_as_punctuation_is_said_or_named(path: Path) -> None:
    for sign in "§%&@‰":
        said, named = read(path, f"{sign} 3")
        assert sign in named or sounds(said) != sounds(read(path, "3")[0]), sign


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


@pytest.mark.parametrize(
    ("language", "text"), [("en", "7" * 10_000), ("zh", "7" * 20_000), ("ko", "1" + "😀" * 20_000)]
)
def test_a_long_word_is_read_in_seconds(language: str, text: str) -> None:
    started = time.process_time()
    assert sounds(to_phonemes(text, language))
    assert time.process_time() - started < 4  # by the square of the length, 9 to 36


def test_a_text_of_many_pages_is_read_to_its_end() -> None:
    assert (read(("vallex", "ja"), "さかなをたべました" * 500)[0] or "").count("na") == 500


@pytest.mark.parametrize(
    ("path", "text", "like"),
    [
        # Fullwidth forms, ligatures, circled and mathematical letters, other digits.
        ("phonemes ja", "価格は１００円です。", "価格は100円です。"),
        ("phonemes zh", "他有１００元。", "他有100元。"),
        ("phonemes en", "the oﬃce ① ⑫", "the office 1 12"),
        ("phonemes en", "𝐇𝐞𝐥𝐥𝐨 Ｗｏｒｌｄ", "Hello World"),
        ("phonemes en", "٣.١٤", "3.14"),
        ("phonemes en", "1½ m", "1 ½ m"),
        ("phonemes ja", "ｶﾞ", "ガ"),
        ("phonemes ja", "１０：３０", "10:30"),
        ("phonemes zh", "他说：“好！？”他走，3天。", "他说:“好!?”他走, 3天。"),
        # A superscript is no digit of the number before it.
        ("phonemes ja", "10⁶", "10 6"),
        ("phonemes ja", "₆/", "6 /"),
        ("phonemes en", "10⁻³", "10 -3"),
        ("vallex zh", "10⁻²", "十 负二"),
        ("phonemes en", "it costs .5", "it costs 0.5"),
        ("phonemes zh", "110,350或1000,110", "110350或一千,一百一十"),
        ("phonemes zh", "5000年", "五千年"),
        ("phonemes ja", "5分、2年生、8名、1日間", "ごふん、にねんせい、はちめい、いちにちかん"),
        ("phonemes ja", "35000と1,234.5", "さんまんごせんとせんにひゃくさんじゅうよんてんご"),
        (
            "phonemes ja",
            "3本、12人、14人、１２万円",
            "さんぼん、じゅうににん、じゅうよにん、じゅうにまんえん",
        ),
        ("phonemes ja", "2014年、7時間、19時", "にせんじゅうよねん、しちじかん、じゅうくじ"),
        ("phonemes ja", "注1、位1", "ちゅういち、くらいいち"),
        ("phonemes ja", "2025年1月、4月1日", "にせんにじゅうごねんいちがつ、しがつ ついたち"),
        ("phonemes ja", "3月中、9月分、10月末", "さんがつちゅう、くがつぶん、じゅうがつまつ"),
        ("phonemes ja", "3日月曜日、1人当たり", "さんにちげつようび、いちにんあたり"),
        ("phonemes zh", "1500年的历史", "一千五百年的历史"),
        ("phonemes ja", "007 10⁶ 5%", "れいれいなな じゅう ろく ごパーセント"),
        ("phonemes zh", "105000、1.2.3、2024年", "十万五千、一点二点三、二零二四年"),
        ("phonemes ko", "12345.6 & 5%", "만이천삼백사십오점육 앤드 오퍼센트"),
        ("phonemes en", "a/⁵ @½", "a / ⁵ @ ½"),
        ("phonemes de", "&√, →#", "& √, → #"),
        # Zero width and soft hyphens, apostrophes.
        ("phonemes de", "Wort\u00adtrennung", "Worttrennung"),
        ("phonemes de", "fu\u0308nf", "fünf"),
        ("phonemes en", "it´s", "it's"),
        # Signs for which a voice has no words.
        ("phonemes ja", "$5", "5ドル"),
        ("phonemes zh", "€5", "5欧元"),
        ("phonemes ko", "20℃", "20도"),
        ("phonemes fr", "#1", "dièse 1"),
        ("phonemes en", "5‰", "5 per mille"),
        ("phonemes zh", "5‰", "千分之5"),
        # Spaces and apostrophes between the digits of a number.
        ("phonemes fr", "il y a 1 000 personnes", "il y a 1000 personnes"),
        ("phonemes de", "12 345 678,5 Euro", "12345678,5 Euro"),
        ("phonemes de", "2024 100 Euro", "2024 - 100 Euro"),
        ("phonemes en", "1\u202f000\u00a0000 or 5'000", "1000000 or 5000"),
        ("phonemes en", "in 2024\u00a0500 people", "in 2024 500 people"),
        # What the Korean and the Chinese voice forget.
        ("phonemes ko", "1,000.50", "1000.50"),
        ("phonemes ko", "1st", "1 st"),
        ("phonemes zh", "A4", "A 4"),
        # Latin letters before kana, and small kana that form no syllable.
        ("phonemes ja", "Tシャツ、カーTシャツ", "T シャツ、カー T シャツ"),
        ("phonemes ja", "ねぇ、クヮゥバ", "ねえ、クワウバ"),
        ("phonemes ja", "天気", "てんき"),
        # Names whose kanji are variants.
        ("phonemes ja", "髙橋と𠮷田", "高橋と吉田"),
        ("vallex en", "the oﬃce, ① 𝐇𝐞𝐥𝐥𝐨", "the office, 1 Hello"),
        ("vallex en", "1½ cups", "1 1/2 cups"),
        ("vallex en", "10² km", "10 2 km"),
        ("vallex en", "5≤6", "5 less than or equal to 6"),
        # Years are read in pairs, other numbers are not.
        ("vallex en", "1900", "nineteen hundred"),
        ("vallex en", "1905", "nineteen oh five"),
        ("vallex en", "2000", "two thousand"),
        ("vallex en", "2005", "two thousand five"),
        ("vallex en", "2100", "two thousand one hundred"),
        ("vallex en", "the 1,000,000th", "the one millionth"),
        ("vallex en", "€2m or $1.50bn", "two euros m or one dollar and fifty cents bn"),
        ("vallex en", "on 5/3/2020", "on 5 3 2020"),
        ("vallex en", "$" + "1" * 5000, "1" * 5000 + " dollars"),
        ("vallex zh", "价格１，０００．５元", "价格一千点五元"),
        ("vallex zh", "1234" * 5, "一二三四" * 5),
        ("vallex zh", "007", "零零七"),
        ("vallex zh", "$5", "五美元"),
        ("vallex zh", "5‰", "千分之五"),
        ("vallex zh", "10²", "十二"),
        ("vallex zh", "20℃", "二十摄氏度"),
        ("vallex zh", "café", "cafe"),
        ("vallex ja", "1,000円", "1000円"),
        ("vallex ja", "－5度", "マイナス5度"),
        ("vallex ja", "20℃", "20度"),
        ("vallex ja", "$5", "5ドル"),
        ("vallex ja", "髙﨑", "高崎"),
        # OpenJTalk writes these kana as numerals.
        ("vallex ja", "ろく", "ロク"),
    ],
)
def test_what_is_written_otherwise_is_read_alike(path: str, text: str, like: str) -> None:
    family, language = path.split()
    (found, named), (expected, _) = (read((family, language), one) for one in (text, like))
    assert not named
    assert (found or "").replace("_", "") == (expected or "").replace("_", "") != ""


@pytest.mark.parametrize(
    ("path", "text", "unsaid"),
    [
        ("phonemes en", "I like 苹果。", "苹果"),
        ("phonemes ja", "龘が好き😀", "龘😀"),
        ("phonemes zh", "好かな", "かな"),
        ("phonemes ko", "大韓民國 만세 😀", "大韓民國😀"),
        ("phonemes de", "Das ist ꙮ und ꙮ", "ꙮ"),
        ("phonemes en", "Yes 😀, π and Ж… 🇩🇪", ""),
        ("phonemes ja", "はい🇩🇪", "🇩🇪"),
        ("vallex ja", "はゝヷ", "ヷ"),
        ("vallex ja", "はい한글", "한글"),
        ("vallex zh", "好かꙮ", "かꙮ"),
        ("vallex en", "Hangul 한", "한"),
        ("vallex en", "a☆b", "☆"),
    ],
)
def test_what_cannot_be_said_is_named_and_the_rest_is_said(
    path: str, text: str, unsaid: str
) -> None:
    family, language = path.split()
    said, named = read((family, language), text)
    assert named == set(unsaid)
    rest = "".join(" " if one in unsaid else one for one in text)
    assert sounds(said) == sounds(read((family, language), rest)[0])


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("phonemes en", "你好", r"read in English.*你 \(U\+4F60\).*--lang"),
        ("vallex en", "你好", r"read in English.*你 \(U\+4F60\).*--lang"),
        ("vallex ja", "...", "no letters or numbers"),
    ],
)
def test_a_text_without_a_character_that_can_be_said_is_refused_with_their_names(
    path: str, text: str, said: str
) -> None:
    family, language = path.split()
    with pytest.raises(InputError, match=f"nothing to say.*{said}"):
        to_phonemes(text, language) if family == "phonemes" else spell([TaggedText(text, language)])
