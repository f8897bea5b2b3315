"""Every kind of bad input gets one sentence, a documented exit code, and leaves nothing behind."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make_checkpoint import Shape, config_of, make_checkpoint, userdata
from safetensors.numpy import save_file
from support import Cli, error_of, golden_checkpoint, resave

Make = Callable[[Path], object]
VERSION_7 = Shape(version=7)


def with_header(change: Callable[[dict[str, Any]], object], shape: Shape | None = None) -> Make:
    def make(path: Path) -> None:
        make_checkpoint(path, shape or Shape())
        raw = path.read_bytes()
        end = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:end])
        change(header)
        encoded = json.dumps(header).encode()
        path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + raw[end:])

    return make


def with_config(shape: Shape | None = None, **changes: Any) -> Make:
    """A checkpoint whose config was changed; a key of `experimental` is written `x__key`."""

    def change(header: dict[str, Any]) -> None:
        config = json.loads(header["__metadata__"]["config"])
        for key, value in changes.items():
            place = config["experimental"] if key.startswith("x__") else config
            place[key.removeprefix("x__")] = value
        header["__metadata__"]["config"] = json.dumps(config)

    return with_header(change, shape)


def with_size(shape: Shape | None = None, **changes: int) -> Make:
    return with_config(shape, size={**config_of(shape or Shape())["size"], **changes})


def with_symmap(symmap: object) -> Make:
    said = json.dumps({**userdata(), "symmap": symmap})
    return with_header(lambda header: header["__metadata__"].update(userdata=said))


def with_state(
    change: Callable[[dict[str, np.ndarray]], object], shape: Shape | None = None
) -> Make:
    """A checkpoint whose tensors were changed."""

    def make(path: Path) -> None:
        make_checkpoint(path, shape or Shape())
        resave(path, change)

    return make


def replaced(name: str, size: tuple[int, ...], shape: Shape | None = None, **kind: Any) -> Make:
    return with_state(lambda state: state.update({name: np.zeros(size, **F4 | kind)}), shape)


F4: dict[str, Any] = {"dtype": np.float32}


def removed(*names: str, shape: Shape | None = None) -> Make:
    return with_state(lambda state: [state.pop(name) for name in names], shape)


def with_value(name: str, value: float) -> Make:
    def change(state: dict[str, np.ndarray]) -> None:
        state[name].flat[7] = value

    return with_state(change)


def saved(value: object) -> Make:
    return lambda path: torch.save(value, path)


def zipped(name: str, content: str | bytes) -> Make:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content)

    return make


def flipped_bit(entry: str) -> Make:
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


def text(content: str | bytes) -> Make:
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content)


def cut_to(size: Callable[[int], int]) -> Make:
    def make(path: Path) -> None:
        make_checkpoint(path, Shape())
        os.truncate(path, size(path.stat().st_size))

    return make


def bare(config: str | None) -> Make:
    """A file with one tensor, and a config of these words."""
    metadata = None if config is None else {"config": config}
    return lambda path: save_file({"sep": np.zeros(64, np.float32)}, path, metadata)


def training_folder(path: Path) -> None:
    path.mkdir()
    (path / "latest").write_text("1")


def too_many_layers(header: dict[str, Any]) -> None:
    name = "model.layers.{}.input_layernorm.weight"
    header[name.format(999999999)] = header.pop(name.format(1))


ONE = {"sep": torch.zeros(2)}
SPARSE = {"a": torch.zeros(2), "sep": torch.zeros(2, 2).to_sparse()}
NO_SAFETENSORS = "not a complete safetensors file"
HEAD, DECODER = "classifiers.proj.{}.bias", "audio_decoder.head.2.4.bias"

#: How it is made, and words of the refusal; `attacks` has what is hostile.
SAFETENSORS: list[tuple[Make, str]] = [
    (text(""), "is empty"),
    (Path.mkdir, "holds no checkpoint"),
    (text("hello\n"), "is a text file"),
    (text("version https://git-lfs.github.com/spec/v1\n"), "LFS"),
    (text(b"\xfe\xed" * 300), "seems to be damaged"),
    (text(b"GGUF\x03\0\0\0" + bytes(64)), "is already a GGUF file"),
    (cut_to(lambda size: size // 2), NO_SAFETENSORS),
    (cut_to(lambda _: 40), NO_SAFETENSORS),
    (with_header(lambda header: header["sep"].update(dtype="F33")), NO_SAFETENSORS),
    (with_header(too_many_layers), "layers: 2 by the config"),
    (bare(None), "has no config"),
    (bare("{"), "is not valid JSON"),
    # ---- tensors
    (
        removed("model.norm.weight", "classifiers.proj.3.weight"),
        "missing: classifiers.proj.3.weight, model.norm.weight.",
    ),
    (replaced("vision.weight", (3, 3)), "unexpected: vision.weight [3, 3]"),
    (replaced("len_emb.weight", (12, 64)), "len_emb.weight is [12, 64], expected [11, 64]"),
    (
        replaced("sep", (64,), dtype=np.float64),
        "not float32, float16 or bfloat16: sep (F64). Save these tensors in float32.",
    ),
    (with_value("rvq_l_emb.weight", np.nan), "rvq_l_emb.weight holds nan at [0, 7]"),
    (with_value(HEAD.format(2), np.nan), "proj.2.bias holds"),
    (with_value("model.norm.weight", np.inf), "model.norm.weight holds inf"),
    (with_value("model.norm.weight", 1e38), "holds 1e+38, expected at most 1e+09"),
    (replaced("text_emb.weight", (300, 64)), "300"),
    (
        removed(*map(HEAD.format, range(11))),
        "classifiers_bias is True in the config, but False by the weights",
    ),
    # ---- version 7
    (with_config(VERSION_7, version=6), "does not fit its config"),
    (
        with_config(VERSION_7, x__use_segmented_attention_mask=True),
        "use_segmented_attention_mask True",
    ),
    (with_config(VERSION_7, x__monolithic_audio_encoder=True), "monolithic_audio_encoder True"),
    (
        with_config(VERSION_7, x__per_level_normalization=False),
        "per_level_normalization is False in the config, but True by the weights",
    ),
    (
        with_config(VERSION_7, x__audio_encoder_ffn_expansion_size=3),
        "encoder width: 192 by the config, 128 by the weights",
    ),
    (with_config(VERSION_7, x__len_use_logits=True), "len_use_logits is True in the config"),
    (
        removed("resps_emb.proj.2.weight", "proms_emb.pos_embedding", shape=VERSION_7),
        "missing: proms_emb.pos_embedding, resps_emb.proj.2.weight.",
    ),
    (
        replaced("resps_emb.proj.0.weight", (192, 64), VERSION_7),
        "resps_emb.proj.0.weight is [192, 64], expected [128, 64]",
    ),
    (with_size(VERSION_7, audio_tokens=1000), "1000 by the config, 64 by the weights"),
    (
        replaced("resps_emb.embs.3.weight", (64, 64), VERSION_7),
        "resps_emb.embs.3.weight is [64, 64], expected [66, 64]",
    ),
    (replaced(DECODER, (64,), VERSION_7), f"{DECODER} is [64], expected [65]"),
    # ---- config
    (with_config(version=4), "version 4; supported are"),
    (with_config(version=8), "version 8; supported are"),
    (with_config(version="five"), "has version 'five'"),
    (with_config(experts=8), "experts 8"),
    (with_config(arch_type="retnet"), "arch_type 'retnet'"),
    (with_config(x__rotate_twice=True), "rotate_twice True"),
    (
        with_config(x__causal_size=2, x__interleave=True),
        "experimental.interleave True (supported: False); experimental.causal_size 2",
    ),
    (with_config(size="gigantic"), "size is 'gigantic'"),
    (with_config(experimental=[1]), "experimental is [1]"),
    (with_config(x__unified_position_ids="no"), "unified_position_ids is 'no'"),
    (with_config(x__max_position_embeddings=0), "max_position_embeddings is 0, expected a length"),
    (with_config(capabilities=["sing"]), "capabilities is"),
    (with_size(heads=3), "3 heads do not divide the width 64"),
    (with_size(dim=128), "text_emb.weight is [256, 64], expected [256, 128]"),
    (with_size(layers=12), "layers: 12 by the config, 2 by the weights"),
    (with_size(resp_levels=9), "codebook levels: 9 by the config, 8 by the weights"),
    (with_symmap({"a": 1, "b": 2}), "does not fit the built-in tokenizer"),
    (with_symmap({"a": "b"}), "userdata.symmap does not map"),
]
TORCH: list[tuple[Make, str]] = [
    (training_folder, "latest names the folder 1, which does not exist"),
    (text("<!DOCTYPE html><html>not found"), "is a text file"),
    (cut_to(lambda size: size // 2), "truncated or damaged"),
    (zipped("archive/data.pkl", b"\0" * (8 << 20)), "is compressed, which torch.save never does"),
    (zipped("readme.txt", "no checkpoint"), "not one of torch.save"),
    (saved([1, 2]), "holds a list"),
    (saved({"module": [1]}), "holds module (list)"),
    (saved({"module": torch.zeros(3)}), "its tensors are module"),
    (saved({"module": 0}), "holds module (int)"),
    (
        saved({"module": {"sep": "x"}, "config": {"version": 5}}),
        "holds module (dict), config (dict)",
    ),
    (saved({"module": SPARSE}), "not dense tensors"),
    (saved({"module": ONE, "config": [1]}), "'config' is rejected: it is a list"),
    (saved(ONE), "has no config"),
    (flipped_bit("data/3"), "data/3 does not match its checksum"),
    (flipped_bit("data.pkl"), "data.pkl does not match its checksum"),
]
CASES = [
    pytest.param(name, make, words, id=words)
    for name, cases in {"a.sft": SAFETENSORS, "a.pth": TORCH}.items()
    for make, words in cases
] + [pytest.param("a.xyz", text(b"\xfe\xed" * 300), "no known checkpoint format", id="a.xyz")]


@pytest.mark.parametrize(("name", "make", "words"), CASES)
def test_a_bad_checkpoint_is_refused_in_one_sentence(
    name: str, make: Make, words: str, tmp_path: Path, cli: Cli, untouched: Callable[[], None]
) -> None:
    path = tmp_path / name
    make(path)
    untouched()
    message = error_of(cli(path, tmp_path / "out.gguf"), 2)
    assert words in message
    assert str(tmp_path) in message or "tensor" in message
    assert message.endswith((".", "'"))


def test_float16_is_refused_for_a_number_that_it_cannot_hold(tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "a.sft"
    with_value("sep", 1e6)(path)
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


def test_a_type_that_rows_do_not_fit_is_refused(
    small_checkpoint: Callable[..., Path], tmp_path: Path, cli: Cli
) -> None:
    path = small_checkpoint(dim=48, heads=2)
    message = error_of(cli(path, tmp_path / "o.gguf", "--outtype", "q8_0"), 2)
    assert "rows of 48 do not divide into blocks of 32" in message


@pytest.mark.parametrize(
    ("option", "content", "words"),
    [
        ("--config", "a: [", "neither YAML nor JSON"),
        ("--config", "just words", "holds 'just words'"),
        ("--config", "", "holds nothing"),
        ("--config", "x" * (2 << 20), "is larger than 1,048,576 bytes"),
        ("--config", b"\xff\xfe\x00", "neither YAML nor JSON"),
        ("--metadata", "[1]", "holds a JSON list"),
        ("--metadata", "{", "is not valid JSON"),
        ("--metadata", '{"colour": "red"}', "'colour' is not one of"),
        ("--metadata", '{"author": 3}', "author is 3"),
        ("--metadata", '{"tags": "speech"}', "tags is 'speech'"),
        ("--lora", "words", "is a text file"),
        ("--tokenizer", "words", "JSON"),
    ],
)
def test_bad_companion_files_are_refused(
    tmp_path: Path, cli: Cli, option: str, content: str | bytes, words: str
) -> None:
    path = tmp_path / "companion"
    text(content)(path)
    assert words in error_of(
        cli(golden_checkpoint("ar-nar-len"), tmp_path / "o.gguf", option, path), 2
    )
