"""A codec as GGUF: what goes in comes out, the gguf package reads it, and nothing is made up."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encodec_files import GOLDEN_ENCODEC
from gguf import GGUFReader
from support import PROJECT, Cli

from valle_convert.encodec.cpp_file import write_cpp_file
from valle_convert.encodec.gguf_codec import plan_gguf_codec, write_gguf_codec
from valle_convert.encodec.sources import open_encodec
from valle_convert.encodec.weights import EncodecWeights
from valle_convert.errors import InputError
from valle_convert.gguf_file.header import Key, TensorEntry, pack_header, padded
from valle_convert.gguf_file.types import F16
from valle_convert.verify.codec_file import verify_codec

GOLDEN_FOLDER = GOLDEN_ENCODEC / "hf"


@pytest.fixture
def codec() -> EncodecWeights:
    return open_encodec(GOLDEN_FOLDER)


@pytest.mark.parametrize("out_type", ["f16", "f32"])
def test_what_goes_in_comes_out(codec: EncodecWeights, tmp_path: Path, out_type: Any) -> None:
    path = tmp_path / "codec.gguf"
    written = write_gguf_codec(codec, path, out_type=out_type)
    assert written.n_bytes == path.stat().st_size
    read = open_encodec(path)
    assert read.spec == codec.spec
    for entry in codec.tensors:
        value = codec.read(entry.name)
        if out_type == "f16" and entry.is_weight:
            value = value.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(read.read(entry.name), value)


def test_the_keys_are_the_documented_ones(codec: EncodecWeights) -> None:
    page = (PROJECT / "docs" / "codec.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`([\w.]+)`", page))
    keys, _ = plan_gguf_codec(codec)
    names = [key.name for key in keys]
    assert len(names) > 20
    for name in names:
        short = name.partition(".")[2]
        assert documented & {name, short, f".{short}"}, name


def test_the_gguf_package_reads_the_same(codec: EncodecWeights, tmp_path: Path) -> None:
    path = tmp_path / "codec.gguf"
    write_gguf_codec(codec, path, license_="mit", url="https://example.org/codec")
    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "encodec"
    assert fields["general.license"] == "mit"
    assert fields["general.source.url"] == "https://example.org/codec"
    assert fields["encodec.upsampling_ratios"] == [8, 5, 4, 2]
    assert fields["encodec.target_bandwidths"] == [1.5, 3.0, 6.0]
    assert [tensor.name for tensor in reader.tensors] == [one.name for one in codec.tensors]
    for tensor, entry in zip(reader.tensors, codec.tensors, strict=True):
        assert tuple(map(int, reversed(tensor.shape))) == entry.shape
        value = codec.read(entry.name)
        np.testing.assert_array_equal(tensor.data, value.astype(tensor.data.dtype))


def test_a_codec_of_encodec_cpp_becomes_gguf_and_back(
    codec: EncodecWeights, tmp_path: Path
) -> None:
    write_cpp_file(codec, tmp_path / "a.bin")
    write_gguf_codec(open_encodec(tmp_path / "a.bin"), tmp_path / "b.gguf")
    write_cpp_file(open_encodec(tmp_path / "b.gguf"), tmp_path / "c.bin")
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "c.bin").read_bytes()


def rewritten(codec: EncodecWeights, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The file with other keys and tensors: `change` is given both, by name."""
    keys, tensors = plan_gguf_codec(codec)
    things: dict[str, Any] = {key.name: key for key in keys}
    things |= {tensor.name: tensor for tensor in tensors}
    change(things)
    kept = [one for one in things.values() if isinstance(one, TensorEntry)]
    placed, offset = [], 0
    for tensor in kept:
        placed.append(replace(tensor, offset=offset))
        offset += padded(tensor.n_bytes)
    header = pack_header([one for one in things.values() if isinstance(one, Key)], placed)
    path.write_bytes(header + bytes(offset))
    return path


def put(thing: Key | TensorEntry) -> Callable[[dict[str, Any]], None]:
    return lambda things: things.update({thing.name: thing})


def without(*names: str) -> Callable[[dict[str, Any]], None]:
    def change(things: dict[str, Any]) -> None:
        for name in names:
            del things[name]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            put(Key("general.architecture", "gemma", "string")),
            "architecture 'gemma', expected a codec",
        ),
        (without("general.architecture"), "architecture None"),
        (put(Key("encodec.format_version", 2, "u32")), "version 2 of the format"),
        (
            without("encodec.pad_mode", "encodec.compress"),
            "lacks encodec.compress, encodec.pad_mode",
        ),
        (put(Key("encodec.n_codebooks", 10**9, "u32")), "n_codebooks is 1000000000"),
        (put(Key("encodec.n_codebooks", "8", "string")), "n_codebooks is '8'"),
        (put(Key("encodec.hidden_size", 32, "u32")), "expected"),
        (put(Key("encodec.hidden_size", 0, "u32")), "hidden_size is 0"),
        (put(Key("encodec.upsampling_ratios", [8, 5], "[u32]")), "tensors missing"),
        (put(Key("encodec.pad_mode", 3, "u32")), "pad_mode is 3"),
        (without("decoder.model.15.conv.conv.bias"), "missing: decoder.model.15.conv.conv.bias"),
        (without("quantizer.vq.layers.7._codebook.embed"), "missing: quantizer.vq.layers.7"),
        (put(TensorEntry("text.weight", (3,), F16, 0)), "unknown: 'text.weight'"),
        (
            put(TensorEntry("decoder.model.15.conv.conv.bias", (2,), F16, 0)),
            r"bias is \[2\], expected \[1\]",
        ),
    ],
)
def test_a_file_that_is_not_whole_is_refused(
    codec: EncodecWeights, tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    path = rewritten(codec, tmp_path / "codec.gguf", change)
    pattern = words if "\\" in words else words.replace(".", r"\.")
    with pytest.raises(InputError, match=pattern):
        open_encodec(path)


def test_the_commands_write_verify_and_show_it(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "codec.gguf"
    result = cli("codec", GOLDEN_FOLDER, out, "--license", "mit")
    assert result.code == 0, result
    assert "licence" not in result.err
    verified = cli("verify", GOLDEN_FOLDER, out)
    assert verified.code == 0, verified
    assert "PASSED: 97 checks (" in verified.out
    summary = json.loads(cli("inspect", out, "--json").out)
    assert summary["kind"] == "EnCodec, as GGUF"
    assert summary["provenance"]["general.license"] == "mit"
    assert sum(group["n_tensors"] for group in summary["groups"]) == 96
    assert (
        "a .bin file cannot store"
        in cli("codec", GOLDEN_FOLDER, tmp_path / "a.bin", "--license", "mit").err
    )
    assert "the source has no license" in cli("codec", GOLDEN_FOLDER, tmp_path / "b.gguf").err


def test_a_changed_value_and_other_sizes_fail(codec: EncodecWeights, tmp_path: Path) -> None:
    path = rewritten(codec, tmp_path / "zeros.gguf", lambda _things: None)
    report = verify_codec(codec, path, levels=("structure", "tensors"))
    assert report.levels[0].passed
    assert len(report.failures) > 50
    changed = put(Key("encodec.target_bandwidths", [6.0], "[f64]"))
    other = rewritten(codec, tmp_path / "other.gguf", changed)
    report = verify_codec(codec, other, levels=("structure",))
    assert "target_bandwidths is (6.0,), expected (1.5, 3.0, 6.0)" in report.failures[0].summary


def test_a_codec_of_other_sizes_is_compared_where_it_can_be(
    codec: EncodecWeights, tmp_path: Path, full_size: Path
) -> None:
    write_gguf_codec(open_encodec(full_size), tmp_path / "large.gguf")
    report = verify_codec(codec, tmp_path / "large.gguf", levels=("structure", "tensors"))
    assert "hidden_size is 128, expected 16" in report.levels[0].checks[0].summary
    assert all(not check.passed for check in report.levels[1].checks)
    assert "it is (32,), expected (2,)" in report.levels[1].checks[0].summary
