"""Which tokenizer is taken for a checkpoint, and when it is refused."""

import hashlib
import json
import runpy
from pathlib import Path

import pytest
import tokenizers
from support import PROJECT, run_python

from valle_convert.errors import InputError
from valle_convert.tokenizer.bpe import PhonemeBpe
from valle_convert.tokenizer.choose import BUILT_IN, choose_tokenizer
from valle_convert.tokenizer.oracle import HuggingFaceOracle, Setting


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "fp32.sft"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def symmap(published: PhonemeBpe) -> dict[str, int]:
    return dict(published.vocab)


def test_the_built_in_one_is_taken_where_nothing_else_is_there(
    checkpoint: Path, symmap: dict[str, int]
) -> None:
    choice = choose_tokenizer(None, checkpoint, symmap, 256)
    assert choice.source == "built-in"
    assert choice.reason == "no tokenizer.json lies beside the checkpoint"
    assert choice.agreement == (
        "its 256 ids are the checkpoint's 256 rows, its 281 strings the checkpoint's own"
    )
    assert choice.file.sha256 == hashlib.sha256(BUILT_IN.read_bytes()).hexdigest()
    assert choice.file.kind == "bpe"


def test_a_file_beside_the_checkpoint_comes_before_the_built_in_one(checkpoint: Path) -> None:
    beside = checkpoint.with_name("tokenizer.json")
    beside.write_bytes(BUILT_IN.read_bytes() + b"\n")
    for where in (checkpoint, checkpoint.parent):
        choice = choose_tokenizer(None, where, None, 256)
        assert choice.source == beside.name
        assert choice.reason == "found beside the checkpoint"
        assert choice.file.sha256 == hashlib.sha256(beside.read_bytes()).hexdigest()


def test_settings_of_a_trainer_s_batches_change_no_id(checkpoint: Path) -> None:
    beside = checkpoint.with_name("tokenizer.json")
    saved = tokenizers.Tokenizer.from_file(str(BUILT_IN))
    saved.enable_truncation(6)
    saved.enable_padding(length=64)
    saved.save(str(beside))
    settings = json.loads(beside.read_bytes())
    document = json.loads(BUILT_IN.read_bytes())
    document |= {key: settings[key] for key in ("truncation", "padding")}
    beside.write_text(json.dumps(document), encoding="utf-8")
    file = choose_tokenizer(None, checkpoint, None, 256)
    assert file.reason == "found beside the checkpoint, without its truncation and padding"
    plain = choose_tokenizer(BUILT_IN, checkpoint, None, 256)
    assert file.file.tokenizer == plain.file.tokenizer
    texts, setting = ["h", "həlˈoʊ wˈɜːld " * 9], Setting(add_special=True, parse_special=False)
    oracles = [HuggingFaceOracle(one.file.data) for one in (file, plain)]
    found, expected = (one.encode_batch(texts, setting) for one in oracles)
    assert found == expected


def test_a_broken_file_beside_is_an_error_unless_another_is_named(
    checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint.with_name("tokenizer.json").write_bytes(b"broken")
    with pytest.raises(InputError, match="is not valid JSON"):
        choose_tokenizer(None, checkpoint, None, 256)
    named = tmp_path / "mine.json"
    named.write_bytes(BUILT_IN.read_bytes())
    choice = choose_tokenizer(named, checkpoint, None, 256)
    assert (choice.source, choice.reason) == (named.name, "given by --tokenizer")


@pytest.mark.parametrize(
    ("change", "n_rows", "words"),
    [
        ({}, 255, "it has 255 phoneme rows, but the tokenizer has 256 ids"),
        ({"a": 17}, 256, "'a' has the id 17 in the checkpoint, but the id 16 in the tokenizer"),
        ({"b": None}, 256, "'b' has no id in the checkpoint, but the id 17 in the tokenizer"),
        ({"ж": 255}, 256, "'ж' has the id 255 in the checkpoint, but no id in the tokenizer"),
        ({"a": 17, "b": None, "ж": 255}, 255, "has 256 ids; 'a' has the id 17 in"),
    ],
)
def test_a_disagreement_with_the_checkpoint_is_named(
    checkpoint: Path,
    symmap: dict[str, int],
    change: dict[str, int | None],
    n_rows: int,
    words: str,
) -> None:
    given = {one: id_ for one, id_ in (symmap | change).items() if id_ is not None}
    with pytest.raises(InputError, match="--tokenizer FILE") as error:
        choose_tokenizer(None, checkpoint, given, n_rows)
    message = str(error.value)
    assert "does not fit the built-in tokenizer" in message
    assert words in message


def test_choosing_and_compiling_load_no_library() -> None:
    code = (
        "import json, sys; from pathlib import Path;"
        "from valle_convert.tokenizer.choose import choose_tokenizer;"
        "choice = choose_tokenizer(None, Path('x.sft'), None, 256);"
        "choice.file.compile([f'<row:{i}>' for i in range(27000)]);"
        "print(json.dumps([*sys.modules]))"
    )
    loaded = set(json.loads(run_python("-c", code, check=True).stdout))
    assert not loaded & {"numpy", "torch", "gguf", "tokenizers", "sentencepiece", "llama_cpp"}


# The vocabulary that is built in


def test_the_packaged_file_is_what_the_script_makes_byte_for_byte() -> None:
    script = runpy.run_path(str(PROJECT / "tokenizer" / "build.py"))
    made = script["build"](script["SOURCE"].read_text(encoding="utf-8"))
    assert BUILT_IN.read_bytes() == made.encode("utf-8")
    assert script["TARGET"] == BUILT_IN
