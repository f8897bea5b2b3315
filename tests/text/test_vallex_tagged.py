"""Tags, sentences, and what the network reads of them."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.families.vallex.symbols import UNKNOWN_SYMBOL, symbol_ids
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


@settings(deadline=None, max_examples=200)
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
