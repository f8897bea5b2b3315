"""The verdict on a file of encodec.cpp: the golden one passes, and every fault is named."""

import json
import struct
from pathlib import Path

import pytest
from support import GOLDEN, Cli, error_of

from valle_convert.encodec.cpp_file import write_cpp_file
from valle_convert.encodec.sources import open_encodec
from valle_convert.verify.codec_file import verify_codec

FOLDER = GOLDEN / "encodec-small"
LAYOUT = json.loads((FOLDER / "layout.json").read_text())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_cpp_file(open_encodec(FOLDER / "hf"), tmp_path / "encodec.bin")
    return tmp_path / "encodec.bin"


def spans() -> dict[str, tuple[int, int]]:
    """Where each tensor begins, header included, and ends."""
    ends = [40] + [one["offset"] + one["nbytes"] for one in LAYOUT["tensors"]]
    return {
        one["name"]: (start, end)
        for one, start, end in zip(LAYOUT["tensors"], ends[:-1], ends[1:], strict=True)
    }


def test_the_golden_file_passes(file: Path, cli: Cli) -> None:
    result = cli("verify", FOLDER / "hf", file, "--json")
    assert result.code == 0, result
    levels = {level["name"]: level for level in json.loads(result.out)["levels"]}
    assert list(levels) == ["structure", "tensors"]
    assert len(levels["tensors"]["checks"]) == 96
    assert all(check["values"]["different"] == 0 for check in levels["tensors"]["checks"])
    assert "PASSED: 97 checks" in cli("verify", FOLDER / "hf", file).out
    none = cli("verify", FOLDER / "hf", file, "--level", "logits")
    assert "codecs have no such level" in none.err


@pytest.mark.parametrize(
    "name", ["decoder.model.15.conv.conv.weight", "quantizer.vq.layers.3._codebook.embed"]
)
def test_a_missing_tensor_fails_though_encodec_cpp_loads_it(
    file: Path, cli: Cli, name: str
) -> None:
    start, end = spans()[name]
    data = file.read_bytes()
    file.write_bytes(data[:start] + data[end:])
    result = cli("verify", FOLDER / "hf", file)
    assert result.code == 1, result
    assert f"1 of 96 tensors missing: {name}" in result.out
    assert "not run: the file is incomplete" in result.out
    assert cli("verify", FOLDER / "hf", file, "--level", "tensors").code == 1
    assert f"1 of 96 tensors missing: {name}" in error_of(cli("inspect", file), 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("decoder.model.6.convtr.convtr.bias", 0.5),
        ("encoder.model.13.lstm.weight_hh_l1", 0.25),
        ("quantizer.vq.layers.7._codebook.embed", 1.0),
        ("decoder.model.15.conv.conv.weight", float("nan")),
    ],
)
def test_a_changed_value_fails_by_name(file: Path, name: str, value: float) -> None:
    (tensor,) = [one for one in LAYOUT["tensors"] if one["name"] == name]
    packed = struct.pack("<e" if tensor["ftype"] else "<f", value)
    data = bytearray(file.read_bytes())
    data[tensor["offset"] : tensor["offset"] + len(packed)] = packed
    file.write_bytes(data)
    source = open_encodec(FOLDER / "hf")
    report = verify_codec(source, file, levels=("structure", "tensors"))
    assert [check.name for check in report.failures] == [name]


def test_the_neighbour_of_a_rounded_value_passes_and_the_next_one_not(file: Path) -> None:
    (tensor,) = [one for one in LAYOUT["tensors"] if one["name"].endswith("13.lstm.weight_ih_l0")][
        :1
    ]
    source = open_encodec(FOLDER / "hf")
    clean = file.read_bytes()
    for steps, passes in ((1, True), (3, False)):
        data = bytearray(clean)
        (bits,) = struct.unpack_from("<H", data, tensor["offset"])
        struct.pack_into("<H", data, tensor["offset"], bits + steps)
        file.write_bytes(data)
        assert verify_codec(source, file, levels=("tensors",)).passed is passes


def test_a_float32_file_is_verified_with_the_warning(tmp_path: Path) -> None:
    file = tmp_path / "f32.bin"
    source = open_encodec(FOLDER / "hf")
    write_cpp_file(source, file, out_type="f32")
    report = verify_codec(source, file)
    assert report.passed
    assert report.file_type == "F32"
    assert any("aborts" in note for note in report.notes)
