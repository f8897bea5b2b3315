"""A text becomes sentences that fit, in time that grows with the text and not with its square."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valle_convert.text.sentences import speaking_size, split_sentences

#: Texts by language, a bar where they are to be cut.
TEXTS = {
    "en": """
    One.|Two!|Three?
    It was e.g. Bob.|He left.
    "Really?" he said.|"No."
    J.K. Rowling visited the U.S. Department of State at 9 a.m. Monday.
    J. K. Rowling and George W. Bush met J.R.R. Tolkien.
    Mt. Everest is high.
    It happened on Jan. 5 in Paris.
    Dr. Smith paid 3.50 for it.|Why?
    Mr. and Mrs. Jones live at 5 St. James St. London.
    She lives in Washington, D.C. with her dog.
    He works for Acme Inc. Monday through Friday.
    See Fig. 3, Sec. 4.2 and No. 5 for details.
    It weighs approx. 5 kg. per box of Smith & Sons Ltd. London.
    Lt. Gov. Lee met Sen. Warren (D-Mass.) Monday in Ft. Worth, Tex. at 5 p.m. Eastern time.
    He got a Ph.D. in physics from M.I.T. last year.
    Visit www.example.com or mail a.b@c.org today.|It is free.
    Version 2.0.1 is at 192.168.0.1 now.
    Martin Luther King Jr. Day is in January.
    "Stop!" she cried.
    “Are you sure?” he asked.
    Yahoo! is a company.
    Well ... maybe.|Or not.
    Wait... what did you say?
    The laws will appear less complex. . . .
    1. Buy milk.|2. Go home.
    I live in the U.S.|How about you?
    He bought apples, pears, etc.|Then he left.
    The answer is no.|That is all.
    Look at fig. 5.|It shows a cat.
    Go to step 3.|Press the button.
    This is plan B.|It works.
    Elizabeth I. was queen.
    We make a good team, you and I.|Did you see Albert I. Jones yesterday?
    He sat.|Mark spoke.
    We met at 5 p.m.|Let's go.
    That was in 1999.|Then it ended.
    (It was late.)|We went home.
    He said: “Go.”|They went.
    What?!|No way.
    We won!!!|Hooray!
    I never meant that....|She left the store.
    That's a problem.|iPhone users know it.
    Hydrogen is a gas. [1]|It is colorless.
    """,
    "de": """
    Wir fahren z. B. Berlin an.
    Das ist z.B. Berlin, d. h. Die große Stadt.
    Am 3. Mai kam Hr. Meier.|Er blieb.
    Der 2. Weltkrieg und der 1. FC Köln.
    Er kam am 1. 5. 2020 und am 24. Dez. 2020.
    Er wohnt in der Goethestr. 5 in Frankfurt a. M. Mitte.
    Im Jahr 500 v. Chr. Geburt.
    Das sind ca. 5 km. Luftlinie.
    Prof. Dr. med. Müller und Dipl.-Ing. Huber kamen.
    Papst Johannes Paul II. Besuch war kurz.
    Es waren rd. 5 Mio. Euro und 3 Mrd. Dollar.
    Vgl. Kap. 3 und Art. 5 Abs. 2 GG.
    Ludwig v. Beethoven komponierte.
    „Wirklich?“ fragte er.
    „Komm!“|Er kam.
    »Wirklich?«|»Ja, absolut!«
    Hunde, Katzen usw.|Alle sind nett.
    Es kostet 20.|Das ist viel.
    Das war 1999.|Danach kam nichts.
    Er ist so groß wie Max.|Das stimmt.
    """,
    "fr": """
    M. Dupont et Mme. Durand sont là.
    J.-P. Belmondo et J.-J. Rousseau sont là.
    Le 5 janv. 2020, il est parti.
    Voir p. ex. Paris, p. 5 et fig. 3.
    C.-à-d. Paris et St. Denis.
    Bd. Haussmann, il fait beau.
    L'O.N.U. Genève est grande.
    « Vraiment ? » dit-il.
    « Oui. »|Il part.
    Bonjour !|Ça va ?
    Des chiens, des chats, etc.|Ils sont gentils.
    Il a 5 ans.|Elle en a 6.
    Des chats, etc.|L'homme part.
    """,
    "ja": """
    今日は。|元気？|「はい。」
    彼は「はい。」と言った。
    「行くの？」って聞いた。
    Dr. スミスはver. 2.0を使う。
    価格は3.14円です。|高い！！|本当？
    すごい!|本当?|うん。
    『君の名は。』など。
    """,
    "zh": """
    你好。|你是谁？|我是小王！
    他说：“我去。”|然后走了。
    我们去看《摔跤吧！爸爸》好吗？|好！
    真的吗?|是的!
    U.S. 是美国。
    """,
    "ko": """
    안녕하세요.|반갑습니다!|누구세요?
    가격은 3.50달러입니다.
    Dr. 스미스가 왔다.
    2020. 5. 3. 서울에서 만났다.
    """,
}
CASES = [
    (language, line.strip().split("|"))
    for language, lines in TEXTS.items()
    for line in lines.strip().splitlines()
]


@pytest.mark.parametrize(("language", "sentences"), CASES)
def test_a_text_is_cut_where_its_sentences_end(language: str, sentences: list[str]) -> None:
    text = ("" if language in ("ja", "zh") else " ").join(sentences)
    assert split_sentences(text, language=language) == sentences
    # Its words tell the language, where that is not given.
    assert split_sentences(text) == sentences


def test_empty_lines_end_a_sentence_and_line_breaks_do_not() -> None:
    text = "One line\nbroken in two.\n\nTitle\n\nText"
    assert split_sentences(text) == ["One line broken in two.", "Title", "Text"]
    for line_break in ("\r", "\r\n"):
        assert split_sentences(text.replace("\n", line_break)) == split_sentences(text)
    assert split_sentences("Title\u2029Text") == ["Title", "Text"]
    assert split_sentences(" \n\n ") == []


def test_a_long_sentence_is_cut_after_a_clause_or_else_between_words() -> None:
    clauses = "the first part of it is this, and the second part is that one"
    assert split_sentences(clauses, max_size=40) == [
        "the first part of it is this,",
        "and the second part is that one",
    ]
    assert split_sentences("word " * 5, max_size=14) == ["word word word", "word word"]


MARKED = """
    Dr. U.S. 3. z. B. p.m. ... . … « » “ ” " ( ) [1] 「はい。」 と 《 》 I He Er 5 Jan. II. 안녕.
""".split()


@given(
    st.lists(
        st.text("ab ,;.:\u2013\n\u4f60\u3001\uff0c\u3002!?\u00a0", max_size=9)
        | st.sampled_from(MARKED),
        max_size=30,
    ),
    st.integers(3, 40),
    st.sampled_from([None, "en", "de", "fr", "ja", "zh", "ko"]),
)
def test_nothing_is_lost_but_space_and_every_piece_fits(
    parts: list[str], max_size: int, language: str | None
) -> None:
    text = " ".join(parts)
    pieces = split_sentences(text, language=language, max_size=max_size)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(piece == piece.strip() != "" for piece in pieces)
    assert all(speaking_size(piece) <= max_size for piece in pieces)


@pytest.mark.parametrize("part", ["a", "1. ", "Dr. ", ". ", "J.", "《あ。", ". »", ". [1]", "!"])
def test_a_long_text_is_cut_in_seconds(part: str) -> None:
    text = part * (200_000 // len(part))
    started = time.process_time()
    pieces = split_sentences(text)
    assert time.process_time() - started < 4  # by the square of the length, minutes
    assert sum(len("".join(piece.split())) for piece in pieces) == len("".join(text.split()))
