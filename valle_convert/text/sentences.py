"""Cut a long text into pieces that are each spoken in one breath.

Sentences first; one that is too long is cut at a clause, then at a space, then anywhere. No
character but white space is lost.

>>> split_sentences("Dr. Smith paid 3.50 for it. Why?  今日は。元気？")
['Dr. Smith paid 3.50 for it.', 'Why?', '今日は。', '元気？']
"""

from __future__ import annotations

import re
import unicodedata

#: About 12 seconds, which is what the models are trained on. See `speaking_size`.
MAX_SIZE = 180

_CLOSERS = "\"'”’»›)\\]}）」』】》〉"
#: The end of a sentence: full width marks end one at once, others before white space only.
_END = re.compile(rf"[。！？｡]+[{_CLOSERS}]*|[.!?…]+[{_CLOSERS}]*(?=\s)")
_CLAUSE = re.compile(rf"[、，；：]+[{_CLOSERS}]*|[,;:–—]+[{_CLOSERS}]*(?=\s)")
_SPACE = re.compile(r"\s+")
_CONTEXT = 40  # characters around a mark that are looked at

#: Abbreviations that a name or a number follows, so that a capital letter after them says nothing.
_ABBREVIATIONS = frozenset(
    """
    mr mrs ms dr prof rev hon st sr jr gen col capt lt sgt gov sen rep no vol fig pp vs approx
    e.g i.e cf
    hr fr frl nr str abs bd bzw ca evtl ggf inkl jh vgl z.b d.h u.a z.t o.ä
    m mm mme mlle mgr me av bd boul env p.ex c.-à-d
    """.split()
)


def split_sentences(text: str, *, max_size: int = MAX_SIZE) -> list[str]:
    """The sentences of a text in order, none of them empty or larger than `max_size`.

    Args:
        text: any text; a line break does not end a sentence, an empty line does.
        max_size: in units of `speaking_size`.
    """
    sentences: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in _sentences_of(paragraph):
            sentences += _fitting(" ".join(sentence.split()), max_size)
    return sentences


def speaking_size(text: str) -> int:
    """How long a text takes to say: 1 a character, and 3 for a Chinese or Japanese one."""
    return sum(3 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)


def _sentences_of(paragraph: str) -> list[str]:
    sentences: list[str] = []
    start = 0
    for end in _END.finditer(paragraph):
        if _ends_sentence(paragraph, start, end):
            sentences.append(paragraph[start : end.end()])
            start = end.end()
    sentences.append(paragraph[start:])
    return [stripped for sentence in sentences if (stripped := sentence.strip())]


def _ends_sentence(text: str, start: int, mark: re.Match[str]) -> bool:
    """Whether a mark ends a sentence, or belongs to an abbreviation, a number or a pause."""
    if mark[0][0] in "。！？｡":
        return True
    following = text[mark.end() : mark.end() + _CONTEXT].lstrip()
    first = following.lstrip("\"'“‘«„([{")[:1]
    if first.islower():
        return False
    if mark[0] != ".":
        return True
    before = text[max(start, mark.start() - _CONTEXT) : mark.start()]
    word = re.split(r"[\s\"'“‘«„(\[{]", before)[-1]
    # "J. K. Rowling"; "am 3. Mai", where a number of more digits is rather a year at the end.
    is_initial = len(word) == 1 and word.isupper()
    is_ordinal = word.isdigit() and len(word) <= 2 and first.isalpha()
    return not (is_initial or is_ordinal or word.lower() in _ABBREVIATIONS)


def _fitting(sentence: str, max_size: int) -> list[str]:
    """Cut a sentence as gently as possible into pieces that fit."""
    pieces: list[str] = []
    start = 0
    while start < len(sentence):
        if sentence[start].isspace():
            start += 1
            continue
        # No character is smaller than 1, so what fits is in here, however long the sentence is.
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
    """Where to cut: after the last clause that fits, else at the last space, else anywhere."""
    fitting = sentence[: room + 1]  # with the character that tells whether a mark is an end
    clauses = [mark.end() for mark in _CLAUSE.finditer(fitting)]
    spaces = [mark.start() for mark in _SPACE.finditer(fitting)]
    for cuts in (clauses, spaces):
        # A few words before a long rest would sound out of breath.
        gentle = [cut for cut in cuts if room // 4 <= cut <= room and cut > 0]
        if gentle:
            return gentle[-1]
    return room
