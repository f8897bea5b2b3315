"""`PhonemeBpe` -> the vocabulary of llama.cpp's `gpt2` type that gives the same ids.

That type works on bytes: it splits a text by a fixed regular expression, spells each piece in
bytes, merges neighbours by rank, and drops whatever is not a token in the end. Three measures turn
it into a BPE of characters in which several strings share an id:

* The first merges join the bytes of every known character. Lead and continuation bytes differ, so
  these merges cannot cross a character's border.
* A string that shares an id gets its own token after the model's rows. Its embedding row is a
  copy, and `true_ids` has the shared id.
* An unknown character must give exactly one `<unk>`. So every possible beginning of one (an ASCII
  byte, a lead byte, a prefix of a known character that the merges leave behind) is a token with
  the true id of `<unk>`, and continuation bytes are not tokens.

    >>> bpe = parse_bpe(read_file(Path("tokenizer.json")), "tokenizer.json")
    >>> compiled = compile_bpe(bpe, placeholders=["level:0", "level:1"])
    >>> [compiled.true_ids[i] for i in llama_tokenize("ʁˈɛ€")]  # ʁ shares the id of r
    [1, 32, 83, 0, 2]
"""

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import product

from valle_convert.errors import InputError
from valle_convert.tokenizer.bpe import PhonemeBpe
from valle_convert.tokenizer.byte_level import to_byte_level
from valle_convert.tokenizer.compiled import (
    CompiledTokenizer,
    TokenType,
    check_placeholders,
    refusal,
    short,
)

#: llama.cpp's splitter before merging. Its time is linear in the length of a text, and it never
#: splits two neighbours that are both letters or combining marks, so merges among them are safe.
#: `gpt-2` and `default` separate a combining mark from its letter, `bloom` overflows the stack on
#: 40,000 characters without a space.
PRE_TOKENIZER = "qwen35"
_KEPT_WHOLE = "LM"  # Unicode categories by their first letter

# qwen35 takes 's and the like for a word; an apostrophe that is a USER_DEFINED token is cut out
# before that.
APOSTROPHE = "'"


def compile_bpe(bpe: PhonemeBpe, placeholders: Sequence[str]) -> CompiledTokenizer:
    _check_splitting(bpe)
    byte_merges = list(_byte_merges(bpe))
    aliases = [(string, id_) for id_, strings in enumerate(bpe.strings) for string in strings[1:]]
    unknowns = _unknown_beginnings(bpe, byte_merges)

    added = {token.id: token for token in bpe.added_tokens}
    types = [TokenType.NORMAL] * bpe.n_ids
    tokens = [to_byte_level(strings[0]) for strings in bpe.strings]
    for id_, token in added.items():
        tokens[id_] = token.text
        types[id_] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
    types[bpe.unk_id] = TokenType.UNKNOWN

    own = [*tokens, *(to_byte_level(string) for string, _ in aliases), *unknowns]
    _check_added_texts(bpe, own)
    check_placeholders(placeholders, own)
    tokens = [*tokens, *placeholders, *own[len(tokens) :]]
    types += [TokenType.UNUSED] * len(placeholders)
    types += [TokenType.NORMAL] * len(aliases)
    types += [TokenType.UNUSED] * len(unknowns)
    types[tokens.index(APOSTROPHE)] = TokenType.USER_DEFINED

    extra_rows = [id_ for _, id_ in aliases] + [bpe.unk_id] * len(unknowns)
    # Every merge is spelled out for all strings of its two ids.
    character_merges = (
        (to_byte_level(left), to_byte_level(right))
        for a, b, _ in bpe.merges_by_id()
        for left, right in product(bpe.strings[a], bpe.strings[b])
    )
    return CompiledTokenizer(
        model="gpt2",
        pre=PRE_TOKENIZER,
        tokens=tuple(tokens),
        token_types=tuple(types),
        merges=tuple(f"{left} {right}" for left, right in [*byte_merges, *character_merges]),
        bos_id=bpe.bos_id,
        eos_id=bpe.eos_id,
        unk_id=bpe.unk_id,
        add_bos=bpe.add_bos,
        add_eos=bpe.add_eos,
        true_ids=(*range(bpe.n_ids), *([-1] * len(placeholders)), *extra_rows),
        extra_rows=tuple(extra_rows),
    )


def _check_added_texts(bpe: PhonemeBpe, texts: Sequence[str]) -> None:
    """Reject added tokens whose text, which is stored unchanged, also spells bytes."""
    for token in bpe.added_tokens:
        if texts.count(token.text) > 1 or (len(token.text) == 1 and not token.text.isascii()):
            raise InputError(
                f"The added token {token.text!r} (id {token.id}) has the form that llama.cpp gives "
                "to the bytes of other text, so the two would be indistinguishable; "
                "a tokenizer with this token cannot be converted."
            )


def _check_splitting(bpe: PhonemeBpe) -> None:
    """Reject merges whose halves the pre-tokenizer could separate.

    Python's Unicode tables may be older than llama.cpp's; a character that both know has the same
    category in both, and one that Python does not know has category Cn, which is rejected.
    """
    problems = []
    for rank, (left, right, result) in enumerate(bpe.merges_by_id()):
        for string in bpe.strings[result]:
            cut = [c for c in string if unicodedata.category(c)[0] not in _KEPT_WHOLE]
            # A string of this id that is one character is not a result of the merge.
            if cut and len(string) > 1:
                names = f"{short(bpe.strings[left][0])} + {short(bpe.strings[right][0])}"
                problems.append(
                    f"rank {rank}, {names}: {short(string)} holds {short(cut[0])} "
                    f"(Unicode category {unicodedata.category(cut[0])})"
                )
                break
    if problems:
        raise refusal(
            f"llama.cpp's pre-tokenizer {PRE_TOKENIZER} could split the tokenizer's merges: it "
            "keeps only letters and combining marks together",
            problems,
            "Give a tokenizer whose merges join nothing else.",
        )


def _known_characters(bpe: PhonemeBpe) -> Iterator[str]:
    for strings in bpe.strings:
        for string in strings:
            if len(string) == 1:
                yield string


def _byte_merges(bpe: PhonemeBpe) -> Iterator[tuple[str, str]]:
    """The merges that join the bytes of each known character, left to right."""
    seen: set[tuple[str, str]] = set()
    for character in _known_characters(bpe):
        spelled = to_byte_level(character)
        for end in range(1, len(spelled)):
            merge = spelled[:end], spelled[end]
            if merge not in seen:
                seen.add(merge)
                yield merge


def _unknown_beginnings(bpe: PhonemeBpe, byte_merges: Sequence[tuple[str, str]]) -> list[str]:
    """The byte-level texts with which an unknown character can begin, each one token.

    Exactly one of them remains of an unknown character: its lead byte, merged with as many
    continuation bytes as it shares with some known character.
    """
    known = {to_byte_level(character) for character in _known_characters(bpe)}
    ascii_bytes = (bytes([byte]) for byte in range(0x80))
    # C0, C1 and F5 to FF do not occur in UTF-8.
    lead_bytes = (bytes([byte]) for byte in range(0xC2, 0xF5))
    single = [to_byte_level(byte) for byte in (*ascii_bytes, *lead_bytes)]
    prefixes = [left + right for left, right in byte_merges]
    return [text for text in [*single, *prefixes] if text not in known]
