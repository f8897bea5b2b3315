"""Every kind of bad input gets one sentence, a documented exit code, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make_checkpoint import Shape, config_of, make_checkpoint, userdata
from support import Cli, error_of

# ------------------------------------------------------------------------------- makers


def parts_of(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write_parts(path: Path, header: dict[str, Any], data: bytes) -> None:
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


def state_of(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a float32 safetensors file."""
    header, data = parts_of(path)
    header.pop("__metadata__")
    return {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], np.float32).reshape(entry["shape"])
        for name, entry in header.items()
    }


def write_state(path: Path, state: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    header: dict[str, Any] = {"__metadata__": metadata}
    data = b""
    for name, values in state.items():
        raw = values.tobytes()
        kind = {"float32": "F32", "float64": "F64", "int32": "I32"}[values.dtype.name]
        header[name] = {
            "dtype": kind,
            "shape": list(values.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    write_parts(path, header, data)


class Runs:
    """Unpickling this runs code, if anything unpickles it."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (os.mkdir, (str(self.witness),))


VERSION_7 = Shape(version=7)


def metadata_of(shape: Shape) -> dict[str, str]:
    return {"config": json.dumps(config_of(shape)), "userdata": json.dumps(userdata())}


def with_state(
    change: Callable[[dict[str, np.ndarray]], None], shape: Shape | None = None
) -> Callable[[Path], None]:
    """A checkpoint whose tensors were changed."""

    def make(path: Path) -> None:
        make_checkpoint(path, shape or Shape())
        state = state_of(path)
        change(state)
        write_state(path, state, metadata_of(shape or Shape()))

    return make


def with_config(shape: Shape | None = None, **changes: Any) -> Callable[[Path], None]:
    """A checkpoint whose config was changed; a key of `experimental` is written `x__key`."""

    def make(path: Path) -> None:
        make_checkpoint(path, shape or Shape())
        header, data = parts_of(path)
        config = json.loads(header["__metadata__"]["config"])
        for key, value in changes.items():
            if key.startswith("x__"):
                config["experimental"][key.removeprefix("x__")] = value
            else:
                config[key] = value
        header["__metadata__"]["config"] = json.dumps(config)
        write_parts(path, header, data)

    return make


def with_header(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        make_checkpoint(path, Shape())
        header, data = parts_of(path)
        change(header)
        write_parts(path, header, data)

    return make


def cut(path: Path) -> None:
    make_checkpoint(path, Shape())
    os.truncate(path, path.stat().st_size // 2)


def set_value(name: str, value: float) -> Callable[[Path], None]:
    def change(state: dict[str, np.ndarray]) -> None:
        state[name] = state[name].copy()
        state[name].flat[7] = value

    return with_state(change)


def replace_tensor(
    name: str, values: np.ndarray, shape: Shape | None = None
) -> Callable[[Path], None]:
    return with_state(lambda state: state.update({name: values}), shape)


def remove_tensors(*names: str, shape: Shape | None = None) -> Callable[[Path], None]:
    def change(state: dict[str, np.ndarray]) -> None:
        for name in names:
            del state[name]

    return with_state(change, shape)


def save_torch(value: object) -> Callable[[Path], None]:
    return lambda path: torch.save(value, path)


def pickle_that_runs(path: Path) -> None:
    torch.save({"module": {"sep": torch.zeros(2)}, "config": Runs(path.with_name("ran"))}, path)


def bare_pickle_that_runs(path: Path) -> None:
    path.write_bytes(pickle.dumps(Runs(path.with_name("ran"))))


def zip_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (8 << 20))


def zip_with_a_lying_table(path: Path) -> None:
    make_checkpoint(path, Shape())
    raw = bytearray(path.read_bytes())
    # The first entry of the table of contents: its sizes are at 20 and 24.
    at = raw.index(b"PK\x01\x02")
    raw[at + 20 : at + 28] = struct.pack("<II", 0xF0000000, 0xF0000000)
    path.write_bytes(raw)


def flipped_bit(entry: str) -> Callable[[Path], None]:
    """A torch file with one bit of one entry of its zip changed."""

    def make(path: Path) -> None:
        make_checkpoint(path, Shape())
        with zipfile.ZipFile(path) as archive:
            (found,) = [one for one in archive.infolist() if one.filename.endswith(f"/{entry}")]
            content = archive.read(found)
        raw = bytearray(path.read_bytes())
        raw[raw.index(content) + len(content) // 2] ^= 1
        path.write_bytes(raw)

    return make


def other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no checkpoint")


def text(content: str | bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content)


def huge_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{" + b" " * 1000)


def first_entry(header: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = header["sep"]
    return entry


def overlap(header: dict[str, Any]) -> None:
    entry = header["text_emb.weight"]
    entry["data_offsets"] = [entry["data_offsets"][0] - 64, entry["data_offsets"][1] - 64]


def beyond_the_end(header: dict[str, Any]) -> None:
    start, end = first_entry(header)["data_offsets"]
    first_entry(header)["data_offsets"] = [start + (1 << 40), end + (1 << 40)]


def too_many_layers(header: dict[str, Any]) -> None:
    header["model.layers.999999999.input_layernorm.weight"] = header.pop(
        "model.layers.1.input_layernorm.weight"
    )


STATE_WITHOUT_CONFIG = {"sep": np.zeros(64, np.float32)}

#: name of the file, how it is made, words of the refusal
CHECKPOINTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "empty": ("a.sft", text(""), "is empty"),
    "a directory": ("a.sft", lambda path: path.mkdir(), "holds no checkpoint"),
    "a training directory": (
        "a.pth",
        lambda path: (path.mkdir(), (path / "latest").write_text("1")),
        "latest names the folder 1, which does not exist",
    ),
    "a text file": ("a.sft", text("hello\n"), "is a text file"),
    "JSON": ("a.sft", text('{"config": 1}'), "is a text file"),
    "HTML": ("a.pth", text("<!DOCTYPE html><html>not found"), "is a text file"),
    "a Git LFS pointer": ("a.sft", text("version https://git-lfs.github.com/spec/v1\n"), "LFS"),
    "binary noise": ("a.sft", text(b"\xfe\xed" * 300), "seems to be damaged"),
    "an unknown format": ("a.xyz", text(b"\xfe\xed" * 300), "no known checkpoint format"),
    "a GGUF file": ("a.sft", text(b"GGUF\x03\0\0\0" + bytes(64)), "is already a GGUF file"),
    "truncated safetensors": ("a.sft", cut, "not a complete safetensors file"),
    "truncated torch": ("a.pth", cut, "truncated or damaged"),
    "only the header": (
        "a.sft",
        lambda path: (make_checkpoint(path, Shape()), os.truncate(path, 40)),
        "not a complete safetensors file",
    ),
    "a header of an exabyte": ("a.sft", huge_header, "not a complete safetensors file"),
    "a pickle that runs code": ("a.pth", pickle_that_runs, "could run code"),
    "a bare pickle that runs code": ("a.pth", bare_pickle_that_runs, "is a bare pickle"),
    "a zip bomb": ("a.pth", zip_bomb, "is compressed, which torch.save never does"),
    "a zip table that lies": ("a.pth", zip_with_a_lying_table, "its zip table claims"),
    "another zip": ("a.pth", other_zip, "not one of torch.save"),
    "a list in a torch file": ("a.pth", save_torch([1, 2]), "holds a list"),
    "a module that is no dict": ("a.pth", save_torch({"module": [1]}), "only module (list)"),
    "a module that is a tensor": (
        "a.pth",
        save_torch({"module": torch.zeros(3)}),
        "its tensors are module",
    ),
    "a module that is 0": ("a.pth", save_torch({"module": 0}), "only module (int)"),
    "values that are no tensors": (
        "a.pth",
        save_torch({"module": {"sep": "text"}, "config": {"version": 5}}),
        "only module (dict), config (dict)",
    ),
    "a sparse tensor": (
        "a.pth",
        save_torch({"module": {"a": torch.zeros(2), "sep": torch.zeros(2, 2).to_sparse()}}),
        "not dense tensors",
    ),
    "a config that is a list": (
        "a.pth",
        save_torch({"module": {"sep": torch.zeros(2)}, "config": [1]}),
        "'config' is rejected: it is a list",
    ),
    "a bare state dict without config": (
        "a.pth",
        save_torch({"sep": torch.zeros(2)}),
        "has no config",
    ),
    "no config": (
        "a.sft",
        lambda path: write_state(path, STATE_WITHOUT_CONFIG, {}),
        "has no config",
    ),
    "a config that is no JSON": (
        "a.sft",
        lambda path: write_state(path, STATE_WITHOUT_CONFIG, {"config": "{"}),
        "is not valid JSON",
    ),
    "deeply nested JSON": (
        "a.sft",
        lambda path: write_state(path, STATE_WITHOUT_CONFIG, {"config": "[" * 10**5}),
        "is not valid JSON",
    ),
    "overlapping offsets": ("a.sft", with_header(overlap), "not a complete safetensors file"),
    "offsets beyond the end": ("a.sft", with_header(beyond_the_end), "not a complete safetensors"),
    "an unknown type": (
        "a.sft",
        with_header(lambda header: first_entry(header).update(dtype="F33")),
        "not a complete safetensors file",
    ),
    "a layer without end": ("a.sft", with_header(too_many_layers), "layers: 2 by the config"),
    "a missing tensor": (
        "a.sft",
        remove_tensors("model.norm.weight", "classifiers.proj.3.weight"),
        "missing: classifiers.proj.3.weight [64, 64], model.norm.weight [64]",
    ),
    "an unexpected tensor": (
        "a.sft",
        replace_tensor("vision.weight", np.zeros((3, 3), np.float32)),
        "unexpected: vision.weight [3, 3]",
    ),
    "a misshaped tensor": (
        "a.sft",
        replace_tensor("len_emb.weight", np.zeros((12, 64), np.float32)),
        "len_emb.weight is [12, 64], expected [11, 64]",
    ),
    "float64 weights": (
        "a.sft",
        replace_tensor("sep", np.zeros(64)),
        "not float32, float16 or bfloat16: sep (F64)",
    ),
    "NaN": ("a.sft", set_value("rvq_l_emb.weight", np.nan), "rvq_l_emb.weight holds nan at [0, 7]"),
    "infinity": ("a.sft", set_value("model.norm.weight", np.inf), "model.norm.weight holds inf"),
    "a huge number": (
        "a.sft",
        set_value("model.norm.weight", 1e38),
        "model.norm.weight holds 1e+38, expected at most 1e+09",
    ),
    "a tensor that is not what was saved": (
        "a.pth",
        flipped_bit("data/3"),
        "data/3 does not match its checksum",
    ),
    "a pickle that is not what was saved": (
        "a.pth",
        flipped_bit("data.pkl"),
        "data.pkl does not match its checksum",
    ),
    "NaN in a bias": ("a.sft", set_value("classifiers.proj.2.bias", np.nan), "proj.2.bias holds"),
    "the weights of version 7 under another version": (
        "a.sft",
        with_config(VERSION_7, version=6),
        "does not fit its config",
    ),
    "version 7 with masks of its own": (
        "a.sft",
        with_config(VERSION_7, x__use_segmented_attention_mask=True),
        "use_segmented_attention_mask True",
    ),
    "version 7 with one encoder": (
        "a.sft",
        with_config(VERSION_7, x__monolithic_audio_encoder=True),
        "monolithic_audio_encoder True",
    ),
    "version 7 without the norm that its weights have": (
        "a.sft",
        with_config(VERSION_7, x__per_level_normalization=False),
        "per_level_normalization is False in the config, but True by the weights",
    ),
    "version 7 with a narrower encoder": (
        "a.sft",
        with_config(VERSION_7, x__audio_encoder_ffn_expansion_size=3),
        "encoder width: 192 by the config, 128 by the weights",
    ),
    "version 7 with digits where there are seconds": (
        "a.sft",
        with_config(VERSION_7, x__len_use_logits=True),
        "len_use_logits is True in the config",
    ),
    "version 7 without a part of an encoder": (
        "a.sft",
        remove_tensors("resps_emb.proj.2.weight", "proms_emb.pos_embedding", shape=VERSION_7),
        "missing: proms_emb.pos_embedding [1, 8, 64], resps_emb.proj.2.weight [64, 128]",
    ),
    "version 7 with encoders of two widths": (
        "a.sft",
        replace_tensor("resps_emb.proj.0.weight", np.zeros((192, 64), np.float32), VERSION_7),
        "resps_emb.proj.0.weight is [192, 64], expected [128, 64]",
    ),
    "version 7 with codes of another codec in its config": (
        "a.sft",
        with_config(VERSION_7, size={**config_of(VERSION_7)["size"], "audio_tokens": 1000}),
        "codes a codebook: 1000 by the config, 64 by the weights",
    ),
    "version 7 whose responses have no mask code": (
        "a.sft",
        replace_tensor("resps_emb.embs.3.weight", np.zeros((64, 64), np.float32), VERSION_7),
        "resps_emb.embs.3.weight is [64, 64], expected [66, 64]",
    ),
    "version 7 with a head too small": (
        "a.sft",
        replace_tensor("audio_decoder.head.2.4.bias", np.zeros(64, np.float32), VERSION_7),
        "audio_decoder.head.2.4.bias is [64], expected [65]",
    ),
    "version 4": ("a.sft", with_config(version=4), "version 4 (older"),
    "version 8": ("a.sft", with_config(version=8), "version 8, which is unknown"),
    "a version in words": ("a.sft", with_config(version="five"), "has version 'five'"),
    "experts": ("a.sft", with_config(experts=8), "experts 8"),
    "retnet": ("a.sft", with_config(arch_type="retnet"), "arch_type 'retnet'"),
    "an unknown switch": ("a.sft", with_config(x__rotate_twice=True), "rotate_twice True"),
    "a known switch that is not built": (
        "a.sft",
        with_config(x__causal_size=2, x__interleave=True),
        "experimental.interleave True (supported: False); experimental.causal_size 2",
    ),
    "an unknown size": ("a.sft", with_config(size="gigantic"), "size is 'gigantic'"),
    "an experimental that is a list": (
        "a.sft",
        with_config(experimental=[1]),
        "experimental is [1]",
    ),
    "a switch of a wrong type": (
        "a.sft",
        with_config(x__unified_position_ids="no"),
        "unified_position_ids is 'no'",
    ),
    "a context of nothing": (
        "a.sft",
        with_config(x__max_position_embeddings=0),
        "max_position_embeddings is 0, expected a length",
    ),
    "unknown capabilities": ("a.sft", with_config(capabilities=["sing"]), "capabilities is"),
    "heads that do not divide": (
        "a.sft",
        with_config(size={**config_of(Shape())["size"], "heads": 3}),
        "3 heads do not divide the width 64",
    ),
    "a width that is not the weights'": (
        "a.sft",
        with_config(size={**config_of(Shape())["size"], "dim": 128}),
        "text_emb.weight is [256, 64], expected [256, 128]",
    ),
    "layers that are not the weights'": (
        "a.sft",
        with_config(size={**config_of(Shape())["size"], "layers": 12}),
        "layers: 12 by the config, 2 by the weights",
    ),
    "levels that are not the weights'": (
        "a.sft",
        with_config(size={**config_of(Shape())["size"], "resp_levels": 9}),
        "codebook levels: 9 by the config, 8 by the weights",
    ),
    "a bias that is not there": (
        "a.sft",
        remove_tensors(*(f"classifiers.proj.{k}.bias" for k in range(11))),
        "classifiers_bias is True in the config, but the weights have none",
    ),
    "a vocabulary of others": (
        "a.sft",
        lambda path: (
            make_checkpoint(path, Shape()),
            write_state(
                path,
                state_of(path),
                metadata_of(Shape()) | {"userdata": json.dumps({"symmap": {"a": 1, "b": 2}})},
            ),
        ),
        "does not fit the built-in tokenizer",
    ),
    "a symmap of words": (
        "a.sft",
        lambda path: (
            make_checkpoint(path, Shape()),
            write_state(
                path,
                state_of(path),
                metadata_of(Shape()) | {"userdata": json.dumps({"symmap": {"a": "b"}})},
            ),
        ),
        "userdata.symmap does not map",
    ),
    "more phonemes than the tokenizer has": (
        "a.sft",
        replace_tensor("text_emb.weight", np.zeros((300, 64), np.float32)),
        "300",
    ),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_bad_checkpoint_is_refused_in_one_sentence(
    case: str, tmp_path: Path, cli: Cli, untouched: Callable[[], None]
) -> None:
    name, make, words = CHECKPOINTS[case]
    path = tmp_path / name
    make(path)
    untouched()
    message = error_of(cli(path, tmp_path / "out.gguf"), 2)
    assert words in message
    assert str(tmp_path) in message or "tensor" in message
    assert message.endswith((".", "'"))
    assert not (tmp_path / "ran").exists()


def test_float16_is_refused_for_a_number_that_it_cannot_hold(tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "a.sft"
    set_value("sep", 1e6)(path)
    message = error_of(cli(path, tmp_path / "o.gguf", "--outtype", "f16"), 2)
    assert "sep holds 1e+06, more than float16 can (65504)" in message
    assert cli(path, tmp_path / "o.gguf", "--outtype", "bf16", "--verify", "none").code == 0


def test_a_torch_file_without_checksums_is_taken(tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "a.pth"
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        make_checkpoint(path, Shape())
    finally:
        torch.serialization.set_crc32_options(before)
    assert cli(path, tmp_path / "o.gguf").code == 0


def test_a_type_that_rows_do_not_fit_is_refused(tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "a.sft"
    make_checkpoint(path, Shape(dim=48, heads=2))
    message = error_of(cli(path, tmp_path / "o.gguf", "--outtype", "q8_0"), 2)
    assert "rows of 48 do not divide into blocks of 32" in message


# ------------------------------------------------------------------------------ outputs


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "good.sft"
    make_checkpoint(path, Shape())
    return path


def test_a_file_that_is_there_is_overwritten_with_force_only(
    source: Path, tmp_path: Path, cli: Cli, untouched: Callable[[], None]
) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("precious")
    untouched()
    assert "is not overwritten" in error_of(cli(source, out), 2)
    untouched()
    out2 = tmp_path / "forced" / "out.gguf"
    out2.parent.mkdir()
    out2.write_text("not precious")
    assert cli(source, out2, "--force", "--verify", "none").code == 0
    assert out2.read_bytes()[:4] == b"GGUF"
    shutil.rmtree(out2.parent)


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["plain", "force"])
def test_the_input_is_never_the_output(
    source: Path, tmp_path: Path, cli: Cli, force: list[str], untouched: Callable[[], None]
) -> None:
    link = tmp_path / "link.gguf"
    link.hardlink_to(source)
    untouched()
    assert "is the input file itself" in error_of(cli(source, source, *force), 2)
    assert "is the input file itself" in error_of(cli(source, link, *force), 2)


def test_a_directory_as_output_is_refused(source: Path, tmp_path: Path, cli: Cli) -> None:
    assert "is a directory" in error_of(cli(source, tmp_path, "--force"), 2)


def test_a_folder_that_is_not_there_is_named(source: Path, tmp_path: Path, cli: Cli) -> None:
    assert "mkdir -p" in error_of(cli(source, tmp_path / "no" / "out.gguf"), 2)


def test_an_output_is_required(source: Path, cli: Cli) -> None:
    result = cli(source)
    assert result.code == 2
    assert "--dry-run" in result.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1]", "holds a JSON list"),
        ("{", "is not valid JSON"),
        ('{"colour": "red"}', "'colour' is not one of"),
        ('{"author": 3}', "author is 3"),
        ('{"tags": "speech"}', "tags is 'speech'"),
    ],
)
def test_bad_metadata_is_refused(
    source: Path, tmp_path: Path, cli: Cli, content: str, words: str
) -> None:
    path = tmp_path / "metadata.json"
    path.write_text(content)
    assert words in error_of(cli(source, tmp_path / "o.gguf", "--metadata", path), 2)


@pytest.mark.parametrize(
    ("option", "content", "words"),
    [
        ("--config", "a: [", "neither YAML nor JSON"),
        ("--config", "just words", "holds a str"),
        ("--config", "x" * (2 << 20), "is larger than 1,048,576 bytes"),
        ("--config", b"\xff\xfe\x00", "neither YAML nor JSON"),
        ("--lora", "words", "is a text file"),
        ("--tokenizer", "words", "JSON"),
    ],
)
def test_bad_companion_files_are_refused(
    source: Path, tmp_path: Path, cli: Cli, option: str, content: str | bytes, words: str
) -> None:
    path = tmp_path / "companion"
    text(content)(path)
    assert words in error_of(cli(source, tmp_path / "o.gguf", option, path), 2)


@pytest.mark.parametrize("option", ["--config", "--lora", "--tokenizer", "--metadata"])
def test_a_companion_file_that_is_not_there_is_named(
    source: Path, tmp_path: Path, cli: Cli, option: str
) -> None:
    message = error_of(cli(source, tmp_path / "o.gguf", option, tmp_path / "nothing.json"), 2)
    assert "nothing.json" in message


def test_an_unknown_codec_is_refused(source: Path, tmp_path: Path, cli: Cli) -> None:
    assert "no codec 'mp3'" in error_of(cli(source, tmp_path / "o.gguf", "--codec-name", "mp3"), 2)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 64, b"text"])
@pytest.mark.parametrize("command", ["verify", "inspect", "tokenize"])
def test_a_damaged_gguf_is_refused(
    source: Path, tmp_path: Path, cli: Cli, command: str, content: bytes
) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    arguments = {"verify": [source, path], "inspect": [path], "tokenize": [path, "a"]}[command]
    result = cli(command, *arguments)
    if command == "verify" and content.startswith(b"GGUF"):
        # Of a file that it is asked to judge, the damage is the verdict.
        assert result.code == 1
        assert f"files: {path} is not a complete GGUF file" in result.out.splitlines()[-1]
    else:
        assert str(path) in error_of(result, 2)
