"""GGUF files that are no converted checkpoint: one sentence for each command."""

from pathlib import Path

import pytest
from support import Cli, Convert, error_of, golden_checkpoint, with_keys

from valle_convert.gguf_file.header import Key, TensorEntry, pack_header, padded
from valle_convert.gguf_file.read import GgufFile
from valle_convert.gguf_file.types import F32

ARCHITECTURE = Key("general.architecture", "gemma", "string")


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A file with one tensor that no model of ours has."""
    path = tmp_path / "foreign.gguf"
    path.write_bytes(pack_header([ARCHITECTURE], [TensorEntry("x", (1,), F32, 0)]) + bytes(32))
    return path


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    path = tmp_path / "empty.gguf"
    path.write_bytes(pack_header([ARCHITECTURE], []))
    return path


@pytest.mark.parametrize("level", ["all", "structure", "tensors", "tokenizer", "logits"])
def test_verify_says_that_they_are_not_the_checkpoint(
    level: str, foreign: Path, empty: Path, cli: Cli
) -> None:
    for path in (foreign, empty):
        result = cli("verify", golden_checkpoint("ar-nar-len"), path, "--level", level)
        assert result.code == 1
        assert result.out.splitlines()[-1].startswith("FAILED: ")
        assert "token_embd.weight" in result.out


def test_a_converted_file_is_no_checkpoint_and_one_part_no_model(
    converted: Convert, vallex: Path, tmp_path: Path, cli: Cli
) -> None:
    body = vallex.with_name(f"{vallex.stem}-nar.gguf")
    assert "give the main file" in error_of(cli("codec", body, tmp_path / "o.gguf"), 2)
    gguf, other = converted("ar-nar-len", "q8_0"), converted("v7-nemo", "f16")
    for file in (gguf, other):
        found = error_of(cli("verify", file, gguf), 2)
        assert f"{file} is a converted file, expected the checkpoint" in found
    audio = other.with_name(f"{other.stem}-audio.gguf")
    assert f"{audio} has the parts audio, but" in error_of(cli("compare", audio, gguf), 2)


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -1.0, 0.3, 3000.0])
def test_a_frame_rate_that_no_codec_has_is_refused(
    rate: float, converted: Convert, tmp_path: Path, cli: Cli
) -> None:
    """Numbers of frames follow from it, and the memory and time that they take."""
    key = Key("valle.codec.frame_rate", rate, "f32")
    path = with_keys(converted("ar-nar-len", "q8_0"), tmp_path / "m.gguf", key)
    message = error_of(cli("speak", path, "Hi.", "--save-codes", tmp_path / "c.npz"), 2)
    assert "valle.codec.frame_rate is" in message


def test_a_file_without_tensors_has_nothing_to_quantize(
    empty: Path, tmp_path: Path, cli: Cli
) -> None:
    result = cli("quantize", empty, tmp_path / "o.gguf", "Q8_0")
    assert "has no tensors, so there is nothing to quantize" in error_of(result, 2)


def test_inspect_names_what_other_programs_would_run_or_load(tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "part.gguf"
    keys = [
        ARCHITECTURE,
        Key("tokenizer.chat_template", "{{ evil }}", "string"),
        Key("split.no", 0, "u16"),
        Key("split.count", 2, "u16"),
    ]
    path.write_bytes(pack_header(keys, []))
    result = cli("inspect", path)
    assert result.code == 0
    assert "tokenizer.chat_template: a program that other programs may run" in result.err
    assert "one part of a split model" in result.err
    for command in (["tokenize", path, "a"], ["compare", path, path], ["verify", path, path]):
        assert cli(*command).code == 2
    assert "one part of a split model" in error_of(cli("tokenize", path, "a"), 2)


def test_a_file_of_another_alignment_is_quantized_like_any(
    converted: Convert, tmp_path: Path, cli: Cli
) -> None:
    plain = converted("ar-nar-len", "f16")
    source = GgufFile(plain)
    other = tmp_path / "aligned.gguf"
    keys = [Key("general.alignment", 128, "u32")]
    keys += [Key(name, source.keys[name], source.key_types[name]) for name in source.keys]
    entries: list[TensorEntry] = []
    data, offset = b"", 0
    for tensor in source.tensors.values():
        entries.append(TensorEntry(tensor.name, tensor.shape, tensor.ggml_type, offset))
        data += tensor.data.tobytes().ljust(padded(tensor.n_bytes, 128), b"\0")
        offset = len(data)
    other.write_bytes(pack_header(keys, entries) + data)
    for path, out in ((plain, "a.gguf"), (other, "b.gguf")):
        assert cli("quantize", path, tmp_path / out, "Q8_0").code == 0
    a, b = (GgufFile(tmp_path / name) for name in ("a.gguf", "b.gguf"))
    assert b.alignment == 32
    assert b.keys["valle.quantize.source_sha256"] != a.keys["valle.quantize.source_sha256"]
    assert a.tensors == b.tensors
    for name, tensor in a.tensors.items():
        assert tensor.data.tobytes() == b.tensors[name].data.tobytes()
    # The user's own file is the input, not the copy that the tool reads.
    protected = cli("quantize", other, other, "Q8_0", "--force")
    assert "is the input file itself" in error_of(protected, 2)
