"""The verdict on a file of encodec.cpp: the golden one passes, and every fault is named."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support import GOLDEN, Cli, error_of

from valle_convert.encodec import open_encodec, write_cpp_file
from valle_convert.verify.codec_file import synthesized_speech, verify_codec

FOLDER = GOLDEN / "encodec-small"
LAYOUT = json.loads((FOLDER / "layout.json").read_text())
SPEECH = FOLDER / "speech.wav"


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


def test_the_golden_file_passes_and_is_heard_as_encodec_cpp_was(file: Path, cli: Cli) -> None:
    result = cli("verify", FOLDER / "hf", file, "--recording", SPEECH, "--json")
    assert result.code == 0, result
    report = json.loads(result.out)
    levels = {level["name"]: level for level in report["levels"]}
    assert list(levels) == ["structure", "tensors", "sound"]
    assert len(levels["tensors"]["checks"]) == 96
    assert all(check["values"]["different"] == 0 for check in levels["tensors"]["checks"])
    sound = [check["values"] for check in levels["sound"]["checks"][1:]]
    # What encodec.cpp itself was measured with, level by level.
    found = [round(values["codes_equal"], 4) for values in sound]
    np.testing.assert_allclose(found, LAYOUT["measured"]["codes_equal_per_level"], atol=0.01)
    expected = -10 * np.log10(LAYOUT["measured"]["nmse_decoded"])
    assert sound[-1]["snr_db"] == pytest.approx(expected, abs=0.1)


def test_without_a_recording_a_voice_is_synthesized(file: Path, cli: Cli) -> None:
    result = cli("verify", FOLDER / "hf", file)
    assert result.code == 0, result
    assert "synthesized voice" in result.err
    assert "PASSED: 107 checks" in result.out


def test_the_synthesized_voice_is_always_the_same_and_no_silence() -> None:
    np.testing.assert_array_equal(synthesized_speech(), synthesized_speech())
    assert 0.05 < float(np.sqrt(np.mean(synthesized_speech() ** 2))) < 0.5
    assert np.abs(synthesized_speech()).max() <= 1


@pytest.mark.parametrize(
    "name",
    ["decoder.model.13.block.1.conv.conv.bias", "quantizer.vq.layers.3._codebook.embed"],
)
def test_a_missing_tensor_fails_though_encodec_cpp_loads_it(
    file: Path, cli: Cli, name: str
) -> None:
    start, end = spans()[name]
    data = file.read_bytes()
    file.write_bytes(data[:start] + data[end:])
    result = cli("verify", FOLDER / "hf", file)
    assert result.code == 1, result
    assert (
        f"1 of 96 tensors are missing: {name} (encodec.cpp loads it without a word)" in result.out
    )
    assert "sound" in result.out
    assert "not run: the file is not whole" in result.out
    inspected = cli("inspect", file)
    assert inspected.code == 0
    assert f"1 of 96 tensors are missing: {name}" in inspected.err


@pytest.mark.parametrize("kept", [90, 329_000, 658_017])
def test_a_cut_file_fails(file: Path, kept: int) -> None:
    file.write_bytes(file.read_bytes()[:kept])
    report = verify_codec(open_encodec(FOLDER / "hf"), file)
    assert not report.passed
    assert "cut off" in report.to_markdown()
    assert report.levels[2].skipped


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


def test_a_header_of_another_bandwidth_fails(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[28:32] = struct.pack("<i", 3)
    file.write_bytes(data)
    report = verify_codec(open_encodec(FOLDER / "hf"), file, levels=("structure",))
    assert [check.summary for check in report.failures] == ["bandwidth is 3, expected 6"]


def test_a_codec_with_other_weights_fails_by_its_sound_as_well(file: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(FOLDER / "hf", tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["decoder.layers.0.conv.bias"] += 0.1
    save_file(tensors, other / "model.safetensors")
    report = verify_codec(open_encodec(other), file, levels=("structure", "sound"))
    failed = [check.name for check in report.failures]
    assert failed == [f"level {n}" for n in range(1, 9)]
    assert report.levels[1].checks[0].passed  # the encoder is untouched


def test_a_float32_file_is_verified_with_the_warning(tmp_path: Path) -> None:
    file = tmp_path / "f32.bin"
    source = open_encodec(FOLDER / "hf")
    write_cpp_file(source, file, out_type="f32")
    report = verify_codec(source, file)
    assert report.passed
    assert report.file_type == "F32"
    assert any("aborts" in note for note in report.notes)


def test_a_recording_that_is_too_short_is_refused(file: Path, tmp_path: Path, cli: Cli) -> None:
    soundfile.write(tmp_path / "short.wav", np.full(1_900, 0.1), 24_000)
    error = error_of(cli("verify", FOLDER / "hf", file, "--recording", tmp_path / "short.wav"), 2)
    assert "1900 samples at 24000 Hz, and encodec.cpp aborts on fewer than 1921" in error


def test_levels_of_models_and_of_codecs_are_not_mixed_up(file: Path, cli: Cli) -> None:
    assert "a codec has none" in cli("verify", FOLDER / "hf", file, "--level", "logits").err
    assert cli("verify", FOLDER / "hf", file, "--level", "tensors").code == 0
    model = GOLDEN / "ar-nar-len" / "fp32.sft"
    result = cli("verify", model, model, "--level", "sound")
    assert result.code == 2
    assert "only the files of codecs" in result.err


def test_another_file_named_bin_is_refused(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "other.bin").write_bytes(b"PK\x03\x04" + bytes(100))
    for arguments in (["verify", FOLDER / "hf"], ["inspect"]):
        error = error_of(cli(*arguments, tmp_path / "other.bin"), 2)
        assert "no file of encodec.cpp" in error


def test_inspect_shows_the_file(file: Path, cli: Cli) -> None:
    result = cli("inspect", file, "--json")
    assert result.code == 0, result
    summary = json.loads(result.out)
    assert summary["sizes"]["n_bins"] == 1024
    assert summary["behaviour"]["levels at its bandwidth"] == 8
    assert sum(group["n_tensors"] for group in summary["groups"]) == 96
    assert summary["notes"] == []
    shown = cli("inspect", file)
    assert "EnCodec, as encodec.cpp loads it" in shown.out
    assert "tables and heads" not in shown.out
