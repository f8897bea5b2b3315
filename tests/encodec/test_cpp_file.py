"""The file of encodec.cpp: byte for byte, and never one that it would load and compute wrongly."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpp_arithmetic import EncodecCppArithmetic
from encodec_files import GOLDEN_ENCODEC, LAYOUT, LAYOUT_24KHZ, golden, golden_tensors
from safetensors.torch import save_file
from support import Cli, error_of
from transformers import EncodecConfig, EncodecModel

from valle_convert.encodec.cpp_file import CppHeader, plan_cpp_file, read_cpp_layout, write_cpp_file
from valle_convert.encodec.gguf_codec import write_gguf_codec
from valle_convert.encodec.sources import open_encodec
from valle_convert.encodec.streaming import EncodecDecoder, EncodecEncoder
from valle_convert.errors import InputError
from valle_convert.files import sha256_of
from valle_convert.metrics import nmse

GOLDEN_FOLDER = GOLDEN_ENCODEC / "hf"
#: Against encodec.cpp, which sums in another order before it rounds; 3e-8 was measured.
MAX_CPP_NMSE = 1e-7


@pytest.mark.parametrize(("out_type", "column"), [("f16", 3), ("f32", 4)])
def test_the_real_architecture_has_the_listed_layout(
    full_size: Path, tmp_path: Path, out_type: Any, column: int
) -> None:
    out = tmp_path / "encodec.bin"
    codec = open_encodec(full_size)
    written = write_cpp_file(codec, out, out_type=out_type)
    assert out.stat().st_size == written.n_bytes == LAYOUT_24KHZ[f"{out_type}_bytes"]
    header, tensors = read_cpp_layout(out)
    numbers = (1, 128, 32, 7, 3, 1024, 24, 24_000, int(out_type == "f16"))
    assert tuple(vars(header).values()) == numbers
    assert (header, tensors) == plan_cpp_file(codec, out_type)
    assert len(tensors) == 120
    assert [[one.name, list(one.dims), one.offset] for one in tensors] == [
        [row[0], row[1], row[column]] for row in LAYOUT_24KHZ["tensors"]
    ]
    if out_type == "f16":
        assert [one.ftype for one in tensors] == [row[2] for row in LAYOUT_24KHZ["tensors"]]


def test_a_file_gives_the_codes_and_the_sound_that_encodec_cpp_gave(tmp_path: Path) -> None:
    out = tmp_path / "out.bin"
    write_cpp_file(open_encodec(GOLDEN_FOLDER), out)
    encoder, decoder = EncodecEncoder(open_encodec(out), 8), EncodecDecoder(open_encodec(out), 8)
    codes = golden("codes.transformers").T
    with EncodecCppArithmetic():
        agree = encoder.encode(golden("audio")) == golden("codes.encodec_cpp").T
        decoded = decoder.decode(codes)
    # All 1,200 were measured; a rounding that flips on another machine may take some with it.
    assert agree.mean() >= 0.998
    assert agree[:, 0].all()
    assert nmse(decoded, golden("decoded.encodec_cpp")) < MAX_CPP_NMSE
    # And the check can fail: without the rounding it is another program's.
    assert nmse(decoder.decode(codes), golden("decoded.encodec_cpp")) > MAX_CPP_NMSE


@pytest.mark.parametrize(
    ("bandwidth", "levels"), [(0, 1), (1, 1), (2, 2), (3, 4), (6, 8), (12, 16), (24, 32)]
)
def test_levels_are_counted_as_encodec_cpp_does(bandwidth: int, levels: int) -> None:
    assert CppHeader(1, 128, 32, 7, 3, 1024, bandwidth, 24_000, 1).n_levels == levels


#: Everything that encodec.cpp would load and compute wrongly, or refuse or abort on.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"pad_mode": "constant"}, 'pad_mode is "constant"'),
    ({"pad_mode": "replicate"}, 'pad_mode is "replicate"'),
    ({"use_conv_shortcut": False}, "use_conv_shortcut is false"),
    ({"num_lstm_layers": 1}, "num_lstm_layers is 1"),
    ({"sampling_rate": 16_000}, "sampling_rate is 16000"),
    ({"upsampling_ratios": [8, 5, 4, 4]}, r"upsampling_ratios is \[8, 5, 4, 4\]"),
    ({"upsampling_ratios": [8, 5, 2, 4]}, r"upsampling_ratios is \[8, 5, 2, 4\]"),
    ({"last_kernel_size": 5}, "last_kernel_size is 5"),
    ({"compress": 1}, "compress is 1"),
    ({"num_residual_layers": 2}, "num_residual_layers is 2"),
    ({"target_bandwidths": [25.0]}, "n_codebooks is 33, expected 1 to 32"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED, ids=str)
def test_what_encodec_cpp_would_get_wrong_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    small = {"num_filters": 2, "hidden_size": 8, "codebook_dim": 8, "target_bandwidths": [6.0]}
    model = EncodecModel(EncodecConfig(**(small | changes)))
    model.config.update(changes)
    model.save_pretrained(tmp_path / "codec")
    out = tmp_path / "out.bin"
    with pytest.raises(InputError, match=f"cannot be made a file for encodec.cpp.*{words}"):
        write_cpp_file(open_encodec(tmp_path / "codec"), out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("value", "fits"), [(65_504.0, True), (65_519.0, True), (65_520.0, False), (-1e30, False)]
)
def test_values_beyond_float16_are_refused_before_they_are_written(
    folder: Path, value: float, fits: bool
) -> None:
    tensors = golden_tensors()
    tensors["encoder.layers.13.lstm.weight_hh_l1"][3, 4] = value
    save_file(tensors, folder / "model.safetensors")
    out = folder / "out.bin"
    if fits:
        write_cpp_file(open_encodec(folder), out)
        read = open_encodec(out).read("encoder.model.13.lstm.weight_hh_l1")
        assert read[3, 4] == 65_504.0
        return
    for write, path in ((write_cpp_file, out), (write_gguf_codec, folder / "out.gguf")):
        with pytest.raises(InputError, match=r"weight_hh_l1 has values up to .* beyond float16"):
            write(open_encodec(folder), path)
        assert not path.exists()
    write_cpp_file(open_encodec(folder), out, out_type="f32")
    assert open_encodec(out).read("encoder.model.13.lstm.weight_hh_l1")[3, 4] == np.float32(value)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_cpp_file(open_encodec(GOLDEN_FOLDER), tmp_path / "golden.bin")
    return tmp_path / "golden.bin"


@pytest.mark.parametrize("kept", [41, 60, 90, 329_000, 658_017])
def test_a_cut_file_is_refused_though_encodec_cpp_loads_it(written: Path, kept: int) -> None:
    written.write_bytes(written.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"cut off|too many|no tensor"):
        open_encodec(written)


@pytest.mark.parametrize("extra", [1, 11, 12, 100])
def test_bytes_behind_the_last_tensor_are_refused(written: Path, extra: int) -> None:
    written.write_bytes(written.read_bytes() + bytes(extra))
    with pytest.raises(InputError, match=r"too many at its end|expected a tensor"):
        open_encodec(written)


@pytest.mark.parametrize(
    ("offset", "value", "words"),
    [
        (4, 2, "audio_channels is 2"),
        (8, 17, "another shape"),
        (20, -1, "residual_kernel_size is -1"),
        (24, 1, "codebook_size is 1"),
        (28, 25, "means 33 levels|33 codebooks"),
        (32, 16_000, "sampling_rate is 16000"),
        (36, 2001, "ftype 2001"),
        (36, 0, "expected float32"),
        (40, 4, "4 dims"),
        (44, -5, "name of -5 bytes"),
        (48, 7, "type 7"),
        (52, 3, "expected a tensor"),
        (52, -3, r"dims \[-3\]"),
        (60, 0, "unknown"),
    ],
)
def test_a_number_that_encodec_cpp_would_not_check_is_refused(
    written: Path, offset: int, value: int, words: str
) -> None:
    data = bytearray(written.read_bytes())
    data[offset : offset + 4] = struct.pack("<i", value)
    written.write_bytes(data)
    with pytest.raises(InputError, match=words):
        open_encodec(written)


def test_a_bias_of_one_element_may_have_a_dim(written: Path) -> None:
    data = written.read_bytes()
    name = b"decoder.model.15.conv.conv.bias"
    at = data.index(name)
    assert data[at - 12 : at] == struct.pack("<3i", 0, len(name), 0)
    longer = data[: at - 12] + struct.pack("<4i", 1, len(name), 0, 1) + data[at:]
    written.write_bytes(longer)
    expected = open_encodec(GOLDEN_FOLDER).read(name.decode())
    np.testing.assert_array_equal(open_encodec(written).read(name.decode()), expected)


def test_the_command_writes_the_golden_files(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "encodec.bin"
    result = cli("codec", GOLDEN_FOLDER, out, "--json")
    assert result.code == 0, result
    assert sha256_of(out) == LAYOUT["f16"]["sha256"]
    assert out.stat().st_size == json.loads(result.out)["bytes"] == LAYOUT["f16"]["bytes"]
    assert json.loads(result.out)["tensors"] == 96
    assert "96 tensors, 658,018 bytes" in result.err
    assert "exists" in error_of(cli("codec", GOLDEN_FOLDER, out), 2)
    warned = cli("codec", GOLDEN_FOLDER, out, "--outtype", "f32", "--force")
    assert warned.code == 0, warned
    assert out.stat().st_size == LAYOUT["f32"]["bytes"]
    assert sha256_of(out) == LAYOUT["f32"]["sha256_with_torch_weight_norm"]
    assert "aborts on float32 files at its first convolution" in warned.err


def test_half_a_kilobit_is_said_by_a_whole_number_of_the_same_levels(
    configured: Callable[..., Path],
) -> None:
    folder = configured(target_bandwidths=[1.5])
    tensors = golden_tensors()
    kept = {
        k: v
        for k, v in tensors.items()
        if not k.startswith(tuple(f"quantizer.layers.{n}." for n in range(2, 8)))
    }
    save_file(kept, folder / "model.safetensors")
    header, _ = plan_cpp_file(open_encodec(folder))
    assert (header.bandwidth, header.n_levels) == (2, 2)
