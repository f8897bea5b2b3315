"""Split a text into sentences; split long ones at a clause, a space, or anywhere.

Only white space is lost.

>>> split_sentences("Dr. Smith paid 3.50 for it. Why?  今日は。元気？")
['Dr. Smith paid 3.50 for it.', 'Why?', '今日は。', '元気？']
"""

import re
import unicodedata
from collections import Counter

#: About 12 seconds, as in training; see `speaking_size`.
MAX_SIZE = 180

_CLOSERS = "\"'”“’»«›‹)\\]}）」』】》〉"
_OPENERS = "\"'“‘«„‚»›([{¿¡"
_WIDE = r"\u3040-\u30ff\u3400-\u9fff"
#: The end of a sentence. Full width marks end one, and so do others between Chinese or Japanese
#: characters. Otherwise white space follows; in French it may precede a closing mark.
_END = re.compile(
    rf"""
    [。！？｡]+ [{_CLOSERS}]*
    | (?<=[{_WIDE}]) [.!?]+ (?=[{_WIDE}])
    | (?: \.(?:\s\.)+ | [.!?…]+ ) (?: \s?» | [{_CLOSERS}] )* (?: \s?\[\d+\] )* (?=\s|$)
    """,
    re.VERBOSE,
)
_CLAUSE = re.compile(rf"[、，；：]+[{_CLOSERS}]*|[,;:–—]+[{_CLOSERS}]*(?=\s)")
_SPACE = re.compile(r"\s+")
_CONTEXT = 40  # characters around a mark that are looked at

#: Abbreviations that never end a sentence. Those with a capital letter are other words without.
_UNFINISHED = frozenset(
    """
    Mr Mrs Ms Messrs Dr Prof Rev Hon Mt Ft Gen Adm Col Maj Capt Cmdr Lt Sgt Cpl Pvt Gov Sen Rep
    Pres Supt Fr vs cf e.g i.e approx ca
    Hr Frl Hl Dipl Ing jur Fam Fa vgl bzw bzgl zzgl inkl exkl evtl ggf sog insb evang kath dt z.b
    d.h z.t i.d.r v.a m.e u.u
    MM Mme Mmes Mlle Mgr Pr Ste env p.ex c.-à-d
    """.split()
)
#: Abbreviations that may end a sentence: companies, places, months, units.
_ABBREVIATIONS = frozenset(
    """
    jr sr esq inc ltd corp co bros dept univ assn ave st est etc al deg temp oz tbsp tsp ver ex ext
    Ala Ariz Calif Colo Conn Fla Ga Ill Ind Mass Mich Minn Miss Okla Ore Tex Wash Wis Jos Geo
    Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec Mon Tue Tues Wed Thu Thur Thurs Fri Sat Sun
    usw bspw str Dez Okt Mio Std Sek Verl Aufl Mo Di Mi Do Sa So med phil lt max
    min ev Me
    janv févr avr juil août déc av boul éd
    """.split()
)
#: Abbreviations before a number; elsewhere they are words.
_NUMBERED = frozenset(
    """
    no nos n° nr nrn fig figs sec ch chap chaps vol vols art arts par op cap eq
    abb abs kap tab anm gem mind tel tél fax réf ref
    """.split()
)
#: Initials, dotted abbreviations, and words without a vowel, such as km and Blvd.
_SHORT = re.compile(
    r"[^\W\d_]|(?:[^\W\d_]{1,2}\.-?)+[^\W\d_]{1,2}|(?![A-Z]+$)[B-DF-HJ-NP-TV-XZb-df-hj-np-tv-xz]{2,5}"
)
_SPACED = re.compile(r"(?:\b[^\W\d_]\.\s)*[^\W\d_]*$")
#: Words that often begin a sentence: after an abbreviation, they show that it ended one. The
#: language with the most of these words is that of a text.
_BEGINNERS = {
    "en": """
    The This That These Those It He She We They You I My His Her Our Their There Here Then When
    While If But And Or So Because After Before At On For From With What Who Why How Where Is Are
    Was Were Do Does Did No Not Now Please Let A An Some Many Most All One Each Every Once
    Also However Still Yet Today Meanwhile Finally Thus Perhaps Maybe In To By As It's I'm Don't
    """,
    "de": """
    Der Die Das Den Dem Des Ein Eine Einen Einem Einer Er Sie Es Ich Wir Ihr Du Man Dann Danach Da
    Dort Hier Und Aber Oder Doch Denn Wenn Weil Als Wie Was Wer Wo Warum In Im Am An Auf Bei Mit
    Nach Vor Zu Zum Zur Von Vom Für Aus Alle Alles Auch Noch Nur Nun Jetzt Heute Dies Diese Dieser
    Dieses Sein Seine Mein Meine Unser Unsere Ja Nein Nicht So Trotzdem Deshalb Daher Jedoch Kein
    Keine Viele Einige Ist Sind War Waren Hat Haben
    """,
    "fr": """
    Le La Les L Un Une Des Il Elle Ils Elles On Je J Nous Vous Tu Ce C Cette Ces Cet Mais Et Ou Où
    Donc Car Puis Ensuite Alors Quand Si En Dans Sur Avec Pour Par De Du À Au Aux Que Qui Quoi
    Comment Pourquoi Oui Non Ne Mon Ma Mes Son Sa Ses Leur Notre Votre Tout Tous Voici Voilà Après
    Avant Est Sont Était Chez
    """,
}
_BEGIN = {language: frozenset(words.split()) for language, words in _BEGINNERS.items()}


def split_sentences(
    text: str, *, language: str | None = None, max_size: int = MAX_SIZE
) -> list[str]:
    """The sentences of a text, none empty or larger than `max_size` in `speaking_size`.

    An empty line ends a sentence, a line break does not. Frequent words decide the language if none
    is given.
    """
    sentences: list[str] = []
    for paragraph in re.split(r"\n\s*\n|\r\s*\r|\u2029", text):
        for sentence in _sentences_of(paragraph, language or _language_of(paragraph)):
            sentences += _fitting(" ".join(sentence.split()), max_size)
    return sentences


def speaking_size(text: str) -> int:
    """Relative duration of a text: 1 per character, 3 per Chinese or Japanese one."""
    return sum(3 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)


def _language_of(text: str) -> str:
    words = Counter(word.capitalize() for word in re.findall(r"[^\W\d_]+", text[:2000]))
    return max(_BEGIN, key=lambda language: sum(words[one] for one in _BEGIN[language]))


def _sentences_of(paragraph: str, language: str) -> list[str]:
    sentences: list[str] = []
    start = 0
    for end in _END.finditer(paragraph):
        if _ends_sentence(paragraph, start, end, language):
            sentences.append(paragraph[start : end.end()])
            start = end.end()
    sentences.append(paragraph[start:])
    return [stripped for sentence in sentences if (stripped := sentence.strip())]


#: Japanese sentences continue after a quotation.
_QUOTING = re.compile("と(?!ころ|にか|ても|もか)|って|など")


def _ends_sentence(text: str, start: int, mark: re.Match[str], language: str) -> bool:
    """Whether a mark ends a sentence, rather than an abbreviation, a number or a pause."""
    near = max(start, mark.start() - _CONTEXT)
    before, after = text[near : mark.start()], text[mark.end() : mark.end() + _CONTEXT]
    if mark[0][0] in "。！？｡":
        is_quoted = mark[0][-1] not in "。！？｡" and _QUOTING.match(after)
        return not is_quoted and before.count("《") <= before.count("》")
    following = after.lstrip().lstrip(_OPENERS)
    if re.match(r"[,;:&/%§-]|[^\W\d_](?<=[a-zà-ÿ])(?![^\W\d_]*[A-Z])", following):
        return False
    if not re.match(r"\.(?!\s?\.)", mark[0]):
        return True
    if near == start and not any(map(str.isalpha, before)):
        return False  # the number of an item: "1. Buy milk."
    word = re.split(rf"[\s{re.escape(_OPENERS)}{_WIDE}\uac00-\ud7a3]", before)[-1].lstrip("-–")
    first = re.match(r"[^\W_]+(?:'\w+)?(?![\w.])", following)
    begins = first is not None and not _BEGIN.get(language, frozenset()).isdisjoint(
        (first[0], first[0].partition("'")[0])  # "Don't", and "L" of "L'homme"
    )
    if word.isdigit():
        # "am 3. Mai", "3. 5. 2020"; more digits are probably a year at the end.
        is_ordinal = following[:1].isdigit() or (language == "de" and following[:1].isalpha())
        return begins or len(word) > 2 or not is_ordinal
    spaced = re.sub(r"\s", "", _SPACED.search(before)[0])  # type: ignore[index]
    names = {word, word.lower(), word.rpartition("-")[2]}
    if "." in spaced:
        names |= {spaced.lower(), spaced.rpartition(".")[2]}
    if names & _UNFINISHED or (following[:1].isdigit() and names & _NUMBERED):
        return False
    is_roman = language == "de" and re.fullmatch("[IVX]+", word)
    is_short = is_roman or any(map(_SHORT.fullmatch, names)) or word.endswith("str")
    return begins or not (is_short or names & _ABBREVIATIONS)


def _fitting(sentence: str, max_size: int) -> list[str]:
    pieces: list[str] = []
    start = 0
    while start < len(sentence):
        if sentence[start].isspace():
            start += 1
            continue
        # No character is smaller than 1, so this is enough, however long the sentence is.
        near = sentence[start : start + max_size + 1]
        room = _room(near, max_size)
        cut = room if room == len(near) else _cut_within(near, room)
        pieces.append(near[:cut].rstrip())
        start += cut
    return pieces


def _room(sentence: str, max_size: int) -> int:
    """How many characters of the sentence fit; at least one."""
    size = 0
    for n, character in enumerate(sentence):
        size += speaking_size(character)
        if size > max_size:
            return max(n, 1)
    return len(sentence)


def _cut_within(sentence: str, room: int) -> int:
    """Where to split: after the last clause that fits, else at the last space, else anywhere."""
    fitting = sentence[: room + 1]  # with the character that shows whether a mark ends a clause
    clauses = [mark.end() for mark in _CLAUSE.finditer(fitting)]
    spaces = [mark.start() for mark in _SPACE.finditer(fitting)]
    for cuts in (clauses, spaces):
        # A few words before a long rest would sound rushed.
        gentle = [cut for cut in cuts if room // 4 <= cut <= room and cut > 0]
        if gentle:
            return gentle[-1]
    return room
