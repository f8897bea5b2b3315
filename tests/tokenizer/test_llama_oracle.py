"""Stock llama.cpp beside Hugging Face: the wrapper, the corpus, and the great comparison."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valle_convert.errors import InputError
from valle_convert.tokenizer.bpe import PhonemeBpe
from valle_convert.tokenizer.check import TokenizerReport, compare
from valle_convert.tokenizer.choose import BUILT_IN
from valle_convert.tokenizer.compiled import CompiledTokenizer
from valle_convert.tokenizer.corpus import ipa_lines, texts
from valle_convert.tokenizer.oracle import (
    ALL_SETTINGS,
    MAX_TEXT_BYTES,
    HuggingFaceOracle,
    LlamaTokenizer,
    Setting,
)

N_TEXTS = 24_000
N_TEXTS_SLOW = 1_000_000


@pytest.fixture(scope="module")
def oracle() -> HuggingFaceOracle:
    return HuggingFaceOracle(BUILT_IN.read_bytes())


def test_24_000_texts_have_the_same_ids_under_all_settings(
    llama: LlamaTokenizer,
    oracle: HuggingFaceOracle,
    compiled: CompiledTokenizer,
    published: PhonemeBpe,
) -> None:
    # The real lines, the awkward texts, a quarter of all pairs and some random texts.
    chosen = [*texts(published.vocab, N_TEXTS - 5000)]
    chosen += itertools.islice(texts(published.vocab, 90_000), 85_000, None)
    assert len(set(chosen)) == len(chosen) == N_TEXTS
    report = compare(llama, oracle, compiled.true_ids, chosen)
    assert report.ok, report.first
    assert report == TokenizerReport(N_TEXTS, ALL_SETTINGS, 0, report.n_tokens, ())


def test_decoding_gives_back_every_line_without_unknown_characters(
    llama: LlamaTokenizer, compiled: CompiledTokenizer
) -> None:
    encoded = {
        line: llama.encode(line, add_special=False, parse_special=False) for line in ipa_lines()
    }
    known = {line: ids for line, ids in encoded.items() if all(compiled.true_ids[i] for i in ids)}
    assert len(known) > 1000
    assert not [line for line, ids in known.items() if llama.decode(ids) != line]


@pytest.mark.slow
def test_a_million_texts_have_the_same_ids_under_all_settings(
    llama: LlamaTokenizer,
    oracle: HuggingFaceOracle,
    compiled: CompiledTokenizer,
    published: PhonemeBpe,
) -> None:
    report = compare(llama, oracle, compiled.true_ids, texts(published.vocab, N_TEXTS_SLOW, seed=1))
    assert report.ok, report.first
    assert report.n_texts == N_TEXTS_SLOW


@pytest.mark.slow
def test_every_character_of_unicode_has_the_same_ids_alone_and_inside_a_merge(
    llama: LlamaTokenizer, oracle: HuggingFaceOracle, compiled: CompiledTokenizer
) -> None:
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    contexts = (f"{c} ˈ{c}ɛ s{c}t" for c in characters)
    report = compare(llama, oracle, compiled.true_ids, contexts, [Setting(False, False)])
    assert report.ok, report.first


@settings(deadline=None)
@given(st.text())
def test_any_text_has_the_same_ids(
    llama: LlamaTokenizer, oracle: HuggingFaceOracle, compiled: CompiledTokenizer, text: str
) -> None:
    report = compare(llama, oracle, compiled.true_ids, [text])
    assert report.ok, report.first


def test_nothing_compared_is_no_success(
    llama: LlamaTokenizer, oracle: HuggingFaceOracle, compiled: CompiledTokenizer
) -> None:
    assert not compare(llama, oracle, compiled.true_ids, []).ok


def test_true_ids_of_another_file_are_refused(
    llama: LlamaTokenizer, oracle: HuggingFaceOracle
) -> None:
    with pytest.raises(ValueError, match="3 true ids for 591 tokens"):
        compare(llama, oracle, [0, 1, 2], ["a"])


def test_a_file_that_the_library_itself_does_not_load_is_refused() -> None:
    with pytest.raises(InputError, match=r"does not load the tokenizer\.json"):
        HuggingFaceOracle(b'{"model": 5}')


def test_texts_are_the_same_every_time_and_others_with_another_seed() -> None:
    one, again, other = (list(texts(["a", "b", "ab"], 4000, seed=seed)) for seed in (3, 3, 4))
    assert one == again
    assert one != other


def test_special_tokens_are_decoded_where_asked_for(llama: LlamaTokenizer) -> None:
    assert llama.decode([1, 16, 3, 2], special=True) == "<bos>a<mask></eos>"
    assert llama.decode([1, 16, 3, 2]) == "a"


PLAIN = {"add_special": False, "parse_special": False}


def test_the_longest_text_is_taken_and_a_byte_more_refused(llama: LlamaTokenizer) -> None:
    assert len(llama.encode("q" * MAX_TEXT_BYTES, **PLAIN)) == MAX_TEXT_BYTES
    around = llama.encode("q" * MAX_TEXT_BYTES, add_special=True, parse_special=True)
    assert len(around) == MAX_TEXT_BYTES + 2
    with pytest.raises(InputError, match="32,769 bytes, expected at most 32,768"):
        llama.encode("q" * (MAX_TEXT_BYTES + 1), **PLAIN)
    with pytest.raises(InputError, match="expected at most 32,768"):
        llama.encode("漢" * 10_923, **PLAIN)


def test_long_decodings_grow_the_buffer(llama: LlamaTokenizer) -> None:
    ids = llama.encode("wˈʌn" * 4000, **PLAIN) * 4
    assert llama.decode(ids) == "wˈʌn" * 16_000


@pytest.mark.parametrize("data", [None, b"", b"GGUF", b"nothing of the kind"])
def test_a_file_that_llama_cpp_does_not_load_is_refused(tmp_path: Path, data: bytes | None) -> None:
    path = tmp_path / "broken.gguf"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError, match=r"broken\.gguf"):
        LlamaTokenizer(path)
