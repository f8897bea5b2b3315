"""SentencePiece models: trained here, converted, and compared with stock llama.cpp exactly."""

import pytest
from vocabularies import PLACEHOLDERS, OpenVocabulary, train_sentencepiece

from valle_convert.errors import InputError
from valle_convert.tokenizer.check import compare
from valle_convert.tokenizer.compiled import CompiledTokenizer
from valle_convert.tokenizer.corpus import texts
from valle_convert.tokenizer.oracle import SentencePieceOracle
from valle_convert.tokenizer.sentencepiece import compile_sentencepiece, parse_sentencepiece


def compile_model(data: bytes) -> CompiledTokenizer:
    return compile_sentencepiece(parse_sentencepiece(data, "f"), PLACEHOLDERS)


def strings(compiled: CompiledTokenizer) -> list[str]:
    return [token.replace("\u2581", " ") for token in compiled.tokens]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_dummy_prefix": False},
        {"add_dummy_prefix": False, "user_defined_symbols": ["<laugh>", "ˈˈ", "oʊ"]},
        {"control_symbols": ["<mask>", "<other>"]},
        {"split_by_whitespace": False, "split_digits": True},
        {"unk_id": 3, "bos_id": 0, "eos_id": 1},
    ],
    ids=repr,
)
def test_stock_llama_cpp_gives_the_ids_of_sentencepiece(
    options: dict[str, object], open_vocabulary: OpenVocabulary
) -> None:
    data = train_sentencepiece(**options)
    compiled = compile_model(data)
    report = compare(
        open_vocabulary(compiled),
        SentencePieceOracle(data),
        compiled.true_ids,
        texts(strings(compiled), 6000),
    )
    assert report.ok, report.first
    assert report.n_texts == 6000


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model_type": "unigram"}, "model_type is unigram"),
        ({"model_type": "char", "vocab_size": 400}, "model_type is char"),
        ({"model_type": "word"}, "model_type is word"),
        ({"byte_fallback": False}, "no byte fallback (256 of 256"),
        ({"normalization_rule_name": "nfkc"}, "normalizer is 'nfkc'"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalizer is 'nmt_nfkc'"),
        ({"remove_extra_whitespaces": True}, "extra spaces"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix"),
        ({"bos_id": -1}, "bos_id is -1"),
        ({"eos_id": -1}, "eos_id is -1"),
        ({"user_defined_symbols": ["<laugh>"]}, "add_dummy_prefix"),
        ({"add_dummy_prefix": False, "user_defined_symbols": ["ab", "bc"]}, "can overlap"),
        ({"add_dummy_prefix": False, "user_defined_symbols": ["a b"]}, "has a space in it"),
        ({"control_symbols": ["q"]}, "also make it from ordinary text"),
        ({"control_symbols": ["oʊ"]}, "also make it from ordinary text"),
    ],
    ids=repr,
)
def test_a_model_that_llama_cpp_does_not_reproduce_is_refused_by_its_reason(
    options: dict[str, object], reason: str
) -> None:
    more = {"hard_vocab_limit": False} if "model_type" in options else {}
    data = train_sentencepiece(**more, **options)
    with pytest.raises(InputError) as error:
        parse_sentencepiece(data, "the file")
    assert reason in str(error.value)
    assert "the file" in str(error.value)
    assert "Train it again" in str(error.value)


def test_a_model_that_the_library_itself_does_not_load_is_refused() -> None:
    with pytest.raises(InputError, match="does not load the model"):
        SentencePieceOracle(b"nothing of the kind")


def test_a_row_name_that_could_be_merged_from_pieces_is_refused() -> None:
    model = parse_sentencepiece(train_sentencepiece(), "f")
    with pytest.raises(InputError, match="can be merged from pieces"):
        compile_sentencepiece(model, ["qx"])
    with pytest.raises(InputError, match="given to two rows"):
        compile_sentencepiece(model, [model.pieces[300]])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x22\x00", "holds no pieces"),
        (b"\x0a\x05ab", "a field of 5 bytes, with 2 left"),
        (b"\xff" * 20, "more than 64 bits"),
        (b"\x0a\x04\x0a\x02\xff\xff", "not UTF-8"),
        (b"\x0a\x05\x15\x00\x00\xc0\x7f", "the score nan"),
        (b"\x0a\x02\x08\x01", "a number, expected bytes"),
        (b"{}", "unknown kind 3"),
    ],
)
def test_bytes_that_are_no_model_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(InputError) as error:
        parse_sentencepiece(data, "the file")
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x0a\x06\x0a\x02\xd0\xb6\x18\x63", "'ж', has the unknown type 99"),
        (b"\x0a\x03\x0a\x01x\x12\x02\x18\x09", "its model_type is 9, expected bpe"),
        (b"\x0a\x03\x0a\x01x\x12\x04\x1a\x02xx", "bytes, expected a number"),
    ],
)
def test_a_value_that_protobuf_would_replace_by_its_default_is_refused(
    data: bytes, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        parse_sentencepiece(train_sentencepiece() + data, "the file")
