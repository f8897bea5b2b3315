"""The compiler: what it writes, and that stock llama.cpp makes the original ids of it."""

import itertools
import json
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vocabularies import PLACEHOLDERS, OpenVocabulary, write_vocabulary

from valle_convert.errors import InputError
from valle_convert.tokenizer.bpe import PhonemeBpe, parse_bpe
from valle_convert.tokenizer.byte_level import from_byte_level, to_byte_level
from valle_convert.tokenizer.check import compare
from valle_convert.tokenizer.choose import BUILT_IN
from valle_convert.tokenizer.compile import compile_bpe
from valle_convert.tokenizer.compiled import CompiledTokenizer, TokenType
from valle_convert.tokenizer.corpus import AWKWARD, texts
from valle_convert.tokenizer.oracle import HuggingFaceOracle, LlamaTokenizer


def bpe_file(
    vocab: dict[str, int], merges: list[list[str]], extra: list[dict[str, Any]] | None = None
) -> bytes:
    """A tokenizer.json with these strings after the three special ones (ids from 3 on)."""
    document = json.loads(BUILT_IN.read_text(encoding="utf-8"))
    extra = [document["added_tokens"][0] | token for token in extra or []]
    special = {"<unk>": 0, "<bos>": 1, "</eos>": 2}
    document["model"] |= {"vocab": special | vocab, "merges": merges}
    document["added_tokens"] = document["added_tokens"][:3] + extra
    return json.dumps(document).encode()


def mixture(bpe: PhonemeBpe) -> Iterator[str]:
    """Some texts of every kind: all strings, awkward ones, lines, pairs, random ones."""
    yield from (string for strings in bpe.strings for string in strings)
    yield from AWKWARD
    yield from itertools.islice(texts(bpe.vocab, 90_000, seed=5), 0, None, 20)


def true_ids_of(llama: LlamaTokenizer, compiled: CompiledTokenizer, text: str) -> list[int]:
    ids = llama.encode(text, add_special=True, parse_special=False)
    return [compiled.true_ids[id_] for id_ in ids]


@given(st.binary())
def test_the_byte_alphabet_loses_nothing(data: bytes) -> None:
    assert from_byte_level(to_byte_level(data)) == data


@pytest.mark.parametrize(
    ("placeholders", "reason"),
    [
        (["<row:0>", "<row:0>"], "given to two rows"),
        (["<mask>"], "given to two rows"),
        ([to_byte_level("ˈɛ")], "given to two rows"),
        ([to_byte_level("ʁ")], "given to two rows"),
        (["âĢ"], "given to two rows"),
        (["Ģ"], "is a single character"),
        ([""], "is a single character"),
    ],
)
def test_a_row_name_that_text_could_turn_into_is_refused(
    published: PhonemeBpe, placeholders: list[str], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        compile_bpe(published, placeholders)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", [1, 2]),
        ("ˈɛ", [1, 83, 2]),
        ("ʁˈɛ€", [1, 32, 83, 0, 2]),
        # One <unk> a character, however many bytes: 1, 2, 3, 4, and 3 with a known beginning.
        ("Aжह👍‟", [1, 0, 0, 0, 0, 0, 2]),
        # Ranks, not left to right: l + ˈɛ (119) waits for ˈ + ɛ (0), and n + t (54) is not made.
        ("lˈɛnt", [1, 26, 123, 34, 2]),
        ("'sˈɛd", [1, 0, 215, 2]),
        ("<mask>", [1, 0, 27, 16, 33, 25, 0, 2]),
    ],
)
def test_literal_texts_give_literal_ids(
    llama: LlamaTokenizer, compiled: CompiledTokenizer, text: str, ids: list[int]
) -> None:
    assert true_ids_of(llama, compiled, text) == ids


@pytest.mark.parametrize(
    ("left", "right"), [("a", " "), (" ", "a"), (".", "a"), ("\n", "!"), ("1", "2")]
)
def test_merges_that_the_pre_tokenizer_would_cut_are_refused(left: str, right: str) -> None:
    bpe = parse_bpe(bpe_file({left: 3, right: 4, left + right: 5}, [[left, right]]), "f")
    with pytest.raises(InputError, match="keeps only letters and combining marks"):
        compile_bpe(bpe, [])


def test_an_apostrophe_that_is_a_phoneme_keeps_its_id(open_vocabulary: OpenVocabulary) -> None:
    data = bpe_file({"'": 3, "s": 4, "t": 5, "st": 6}, [["s", "t"]])
    compiled = compile_bpe(parse_bpe(data, "f"), [])
    llama = open_vocabulary(compiled)
    assert true_ids_of(llama, compiled, "'st's't") == [1, 3, 6, 3, 4, 3, 5, 2]


def test_an_added_token_that_is_not_special_is_matched_always(
    open_vocabulary: OpenVocabulary,
) -> None:
    extra = [{"id": 5, "content": "<laugh>", "special": False}]
    vocab = {"a": 3, "<": 4, "<laugh>": 5, "b": 6, "ab": 7}
    data = bpe_file(vocab, [["a", "b"]], extra)
    bpe = parse_bpe(data, "f")
    compiled = compile_bpe(bpe, [])
    report = compare(
        open_vocabulary(compiled),
        HuggingFaceOracle(data),
        compiled.true_ids,
        texts(bpe.vocab, 3000),
    )
    assert report.ok, report.first


def test_an_added_token_that_spells_a_byte_is_refused() -> None:
    extra = [{"id": 5, "content": "Ġ", "special": True}]
    data = bpe_file({"a": 3, " ": 4, "Ġ": 5, "b": 6, "ab": 7}, [["a", "b"]], extra)
    with pytest.raises(InputError, match="has the form that"):
        compile_bpe(parse_bpe(data, "f"), [])


LETTERS = "abcdeɛːˈɹʃθ漢か한𐐀\u0303"  # one to four bytes each, all letters or marks
assert all(unicodedata.category(letter)[0] in "LM" for letter in LETTERS)


@st.composite
def small_bpes(draw: st.DrawFn) -> bytes:
    """A tokenizer of some letters on fewer ids, with merges that follow the rules."""
    n_ids = draw(st.integers(3, 8))
    ids = draw(st.lists(st.integers(3, 2 + n_ids), min_size=len(LETTERS), max_size=len(LETTERS)))
    used = {id_: new for new, id_ in enumerate(sorted(set(ids)), start=3)}
    vocab = {letter: used[id_] for letter, id_ in zip(LETTERS, ids, strict=True)}
    merges: list[list[str]] = []
    for _ in range(draw(st.integers(1, 6))):
        left, right = draw(st.lists(st.sampled_from(sorted(vocab)), min_size=2, max_size=2))
        pairs = {(vocab[a], vocab[b]) for a, b in merges}
        # Most of what is drawn follows the two rules that chance breaks most often.
        if left + right not in vocab and (
            draw(st.integers(0, 9)) == 0
            or (vocab[left] != vocab[right] and (vocab[left], vocab[right]) not in pairs)
        ):
            vocab[left + right] = max(vocab.values()) + 1
            merges.append([left, right])
    return bpe_file(vocab, merges)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(small_bpes(), st.integers(0, 2**32))
def test_any_tokenizer_is_refused_or_reproduced_exactly(
    tmp_path: Path, data: bytes, seed: int
) -> None:
    try:
        bpe = parse_bpe(data, "f")
    except InputError:
        return
    compiled = compile_bpe(bpe, PLACEHOLDERS[:3])
    path = tmp_path / "any.gguf"
    path.unlink(missing_ok=True)
    write_vocabulary(path, compiled)
    with LlamaTokenizer(path) as llama:
        # The lines of espeak-ng, which come first, hold few of these letters.
        chosen = itertools.islice(texts(bpe.vocab, 3900, seed=seed), 2800, None)
        report = compare(llama, HuggingFaceOracle(data), compiled.true_ids, chosen)
    assert report.ok, report.first


def without(compiled: CompiledTokenizer, text: str) -> CompiledTokenizer:
    """The same vocabulary with another text in the place of this token."""
    tokens = tuple(f"<gone:{text}>" if token == text else token for token in compiled.tokens)
    assert tokens != compiled.tokens
    return replace(compiled, tokens=tokens)


def as_type(compiled: CompiledTokenizer, text: str, kind: TokenType) -> CompiledTokenizer:
    types = list(compiled.token_types)
    assert types[compiled.tokens.index(text)] != kind
    types[compiled.tokens.index(text)] = kind
    return replace(compiled, token_types=tuple(types))


def swapped_true_ids(compiled: CompiledTokenizer) -> CompiledTokenizer:
    ids = list(compiled.true_ids)
    ids[16], ids[17] = ids[17], ids[16]
    return replace(compiled, true_ids=tuple(ids))


SABOTAGE = {
    "a merge is missing": lambda c: replace(c, merges=(*c.merges[:200], *c.merges[201:])),
    "the last merge is missing": lambda c: replace(c, merges=c.merges[:-1]),
    "the order of the merges is reversed": lambda c: replace(
        c, merges=(*c.merges[:64], *reversed(c.merges[64:]))
    ),
    "two ids are exchanged": swapped_true_ids,
    "the apostrophe is no token of its own": lambda c: as_type(c, "'", TokenType.UNUSED),
    "a lead byte is no token": lambda c: without(c, to_byte_level(b"\xd0")),
    "a prefix of a character is no token": lambda c: without(c, to_byte_level(b"\xe2\x80")),
    "an alias is no token": lambda c: without(c, to_byte_level("ʁ")),
    "<mask> is not special": lambda c: as_type(c, "<mask>", TokenType.NORMAL),
    "</eos> is not put at the end": lambda c: replace(c, add_eos=False),
    "<bos> is another token": lambda c: replace(c, bos_id=3),
    "the splitter tears marks from letters": lambda c: replace(c, pre="gpt-2"),
}


@pytest.mark.parametrize("name", SABOTAGE)
def test_a_wrong_vocabulary_is_found_out(
    name: str, published: PhonemeBpe, compiled: CompiledTokenizer, open_vocabulary: OpenVocabulary
) -> None:
    wrong = SABOTAGE[name](compiled)
    oracle = HuggingFaceOracle(BUILT_IN.read_bytes())
    report = compare(open_vocabulary(wrong), oracle, wrong.true_ids, mixture(published))
    assert not report.ok
    assert report.n_differences > 0
    assert report.first[0].expected != report.first[0].found
