"""The reader of tokenizer.json: what it takes from a good file, and what it refuses of a bad."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from valle_convert.errors import InputError
from valle_convert.tokenizer.bpe import parse_bpe, read_file
from valle_convert.tokenizer.choose import BUILT_IN

Document = dict[str, Any]
GOOD = BUILT_IN.read_bytes()


def good() -> Document:
    document: Document = json.loads(GOOD)
    return document


def test_merges_may_be_pairs_or_texts_with_a_space() -> None:
    document = good()
    document["model"]["merges"] = [merge.split(" ") for merge in document["model"]["merges"]]
    assert parse_bpe(json.dumps(document).encode(), "") == parse_bpe(GOOD, "")


def test_without_a_post_processor_nothing_is_put_around() -> None:
    document = good()
    document["post_processor"] = None
    bpe = parse_bpe(json.dumps(document).encode(), "")
    assert not bpe.add_bos
    assert not bpe.add_eos
    assert (bpe.bos_id, bpe.eos_id) == (1, 2)


def set_in_model(key: str, value: object) -> Callable[[Document], None]:
    return lambda document: document["model"].__setitem__(key, value)


def set_at_top(key: str, value: object) -> Callable[[Document], None]:
    return lambda document: document.__setitem__(key, value)


def add_to_vocab(string: str, id_: object) -> Callable[[Document], None]:
    return lambda document: document["model"]["vocab"].__setitem__(string, id_)


def add_merge(merge: object) -> Callable[[Document], None]:
    return lambda document: document["model"]["merges"].append(merge)


def first_merge_last(document: Document) -> None:
    merges = document["model"]["merges"]
    merges.append(merges.pop(0))


def add_merge_making(left: str, right: str, id_: int) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        document["model"]["vocab"][left + right] = id_
        document["model"]["merges"].append(f"{left} {right}")

    return change


def add_overlapping(document: Document) -> None:
    document["model"]["vocab"]["k><b"] = 256
    document["added_tokens"].append({"id": 256, "content": "k><b", "special": True})


def set_in_added(index: int, key: str, value: object) -> Callable[[Document], None]:
    return lambda document: document["added_tokens"][index].__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_at_top("normalizer", {"type": "NFC"}), '"normalizer"'),
        (set_at_top("pre_tokenizer", {"type": "Whitespace"}), '"pre_tokenizer"'),
        (set_at_top("post_processor", {"type": "BertProcessing"}), '"post_processor"'),
        (set_at_top("post_processor", 5), '"post_processor"'),
        (set_at_top("surprise", 1), "'surprise' is unknown"),
        (set_at_top("model", None), '"model"'),
        (set_at_top("added_tokens", {}), '"added_tokens"'),
        (set_at_top("added_tokens", [5]), "lacks an id"),
        (set_at_top("added_tokens", []), "no special token marks the begin"),
        (set_in_model("type", "WordPiece"), "'WordPiece', expected \"BPE\""),
        (set_in_model("merges", []), '"model.merges"'),
        (set_in_model("dropout", 0.1), "at random"),
        (set_in_model("continuing_subword_prefix", "##"), "parts of words"),
        (set_in_model("end_of_word_suffix", "</w>"), "ends of words"),
        (set_in_model("fuse_unk", True), "one token of several unknown"),
        (set_in_model("byte_fallback", True), "as bytes"),
        (set_in_model("ignore_merges", True), "before merging"),
        (set_in_model("unk_token", None), "unknown characters vanish"),
        (set_in_model("unk_token", "<missing>"), "unknown characters vanish"),
        (set_in_model("unk_token", ["<unk>"]), "unknown characters vanish"),
        (set_in_model("vocab", {}), '"model.vocab"'),
        (set_in_model("surprise", 1), "model.surprise"),
        (add_to_vocab("", 5), "is empty"),
        (add_to_vocab("\ud800", 5), "not valid Unicode"),
        (add_to_vocab("ж", -1), "expected a whole number"),
        (add_to_vocab("ж", True), "expected a whole number"),
        (add_to_vocab("ж", 1.5), "expected a whole number"),
        (add_to_vocab("ж", 10**30), "no string has the id 256"),
        (add_merge("a"), "the merge of rank 173"),
        (add_merge("a b c"), "the merge of rank 173"),
        (add_merge(["a", 5]), "the merge of rank 173"),
        (add_merge(["a", ""]), "the merge of rank 173"),
        (add_merge("q x"), "makes 'qx', which the vocabulary lacks"),
        (add_merge("ж x"), "uses 'ж'"),
        # `tokenizers` keeps the later of two merges on one pair of ids.
        (add_merge("ˈ ɛ"), "are on the same ids 72 and 54"),
        (add_merge_making("ʁ", "q", 256), None),
        (add_merge_making("ʁ", "ɽ", 256), "joins the id 32 with itself"),
        (add_merge_making("a", "a", 256), "joins the id 16 with itself"),
        (add_merge_making("q", "x", 83), "both make the id 83"),
        (add_merge_making("<unk>", "q", 256), "special token or of unknown"),
        (add_merge_making("q", "x", 1), "special token or of unknown"),
        (first_merge_last, "which is made by the later rank"),
        # "ɴd" comes out of the merge n + d as the id 86, whatever else the file says of it.
        (add_to_vocab("ɴd", 255), "'ɴd' has the id 255"),
        (set_in_added(1, "id", 7), "has the id 7, but in the vocabulary 1"),
        (set_in_added(1, "content", "<s>"), "in the vocabulary none"),
        (set_in_added(1, "id", None), "lacks an id"),
        (set_in_added(3, "lstrip", True), '"lstrip" set'),
        (set_in_added(3, "single_word", True), '"single_word" set'),
        (add_overlapping, "and 'k><b' can overlap"),
    ],
)
def test_what_llama_cpp_cannot_reproduce_is_refused_by_its_reason(
    change: Callable[[Document], None], reason: str | None
) -> None:
    document = good()
    change(document)
    if reason is None:  # the neighbour of a refused file is a good one
        parse_bpe(json.dumps(document).encode(), "the file")
        return
    with pytest.raises(InputError) as error:
        parse_bpe(json.dumps(document).encode(), "the file")
    message = str(error.value)
    assert reason in message
    assert "the file" in message
    assert "--tokenizer" in message


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x80{}", "rename a SentencePiece file"),
        (GOOD.decode().encode("utf-16"), "not UTF-8 text"),
        (b"{", "line 1 column 2"),
        (b"[]", "holds a JSON list"),
        (b"null", "holds a JSON NoneType"),
        (b"{}", '"model" is None'),
        (b'{"model": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"model": {}, "model": {}}', "'model' twice"),
        (GOOD.replace(b'"a": 16,', b'"a": 16, "a": 17,'), "'a' twice"),
        (GOOD[:-20], "not valid JSON"),
    ],
)
def test_a_file_that_is_no_tokenizer_json_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(InputError) as error:
        parse_bpe(data, "the file")
    assert reason in str(error.value)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.json"
    path.touch()
    with pytest.raises(InputError, match="is empty"):
        read_file(path)
