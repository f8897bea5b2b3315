"""`.ecdc` files in the orders of Meta's encodec and of encodec.cpp, and hostile ones."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import Cli, error_of

from valle_convert.audio import SavedCodes, read_codes, write_codes
from valle_convert.audio.ecdc import EcdcOrder, read_ecdc, write_ecdc
from valle_convert.errors import InputError
from valle_convert.model.spec import CODECS, Codec

ENCODEC = CODECS[8, 1024]
#: Three frames of two levels.
CODES = np.array([[1, 1023], [512, 0], [3, 4]], np.int32)


def packed(codes: list[int]) -> bytes:
    """Ten bits a code, lowest first, as one whole number."""
    number = sum(code << (10 * i) for i, code in enumerate(codes))
    return number.to_bytes(-(-10 * len(codes) // 8), "little")


def ecdc(about: object, body: bytes, version: int = 0) -> bytes:
    text = about if isinstance(about, bytes) else json.dumps(about).encode()
    return struct.pack(">4sBI", b"ECDC", version, len(text)) + text + body


METAS: dict[str, Any] = {"m": "encodec_24khz", "al": 801, "nc": 2, "lm": False}
BODY = packed([1, 1023, 512, 0, 3, 4])


def test_metas_file_is_frame_by_frame_as_literal_bytes_say(tmp_path: Path) -> None:
    path = tmp_path / "meta.ecdc"
    path.write_bytes(
        b"ECDC\x00\x00\x00\x00\x37"
        b'{"m": "encodec_24khz", "al": 801, "nc": 2, "lm": false}'
        b"\x01\xfc\x0f\x20\x00\x03\x10\x00"
    )
    np.testing.assert_array_equal(read_ecdc(path), CODES)


def test_encodec_cpps_file_is_level_by_level(tmp_path: Path) -> None:
    path = tmp_path / "cpp.ecdc"
    text = b'{"al":801,"lm":false,"m":"encodec_24khz","nc":2}'
    path.write_bytes(ecdc(text, packed([1, 512, 3, 1023, 0, 4])))
    np.testing.assert_array_equal(read_ecdc(path), CODES)


@given(
    n_frames=st.integers(1, 40),
    n_levels=st.integers(1, 32),
    order=st.sampled_from(["frame", "level"]),
    seed=st.integers(0, 1000),
)
def test_what_is_written_comes_back_with_its_order_recognised(
    tmp_path_factory: pytest.TempPathFactory,
    n_frames: int,
    n_levels: int,
    order: EcdcOrder,
    seed: int,
) -> None:
    path = tmp_path_factory.mktemp("ecdc") / "a.ecdc"
    codes = np.random.default_rng(seed).integers(0, 1024, (n_frames, n_levels), np.int32)
    write_ecdc(path, codes, order)
    np.testing.assert_array_equal(read_ecdc(path), codes)
    np.testing.assert_array_equal(read_ecdc(path, order), codes)
    arranged = codes if order == "frame" else codes.T
    assert path.read_bytes().endswith(packed(arranged.reshape(-1).tolist()))


def test_a_given_order_wins_over_the_header(tmp_path: Path) -> None:
    path = tmp_path / "a.ecdc"
    path.write_bytes(ecdc(METAS, BODY))
    np.testing.assert_array_equal(read_ecdc(path, "level"), [[1, 0], [1023, 3], [512, 4]])


def test_an_order_that_cannot_be_told_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.ecdc"
    path.write_bytes(ecdc(json.dumps(METAS, indent=1).encode(), BODY))
    with pytest.raises(InputError, match="--ecdc-order frame"):
        read_ecdc(path)
    np.testing.assert_array_equal(read_ecdc(path, "frame"), CODES)
    path.write_bytes(ecdc(json.dumps(METAS | {"al": 1}, indent=1).encode(), packed([7, 8])))
    np.testing.assert_array_equal(read_ecdc(path), [[7, 8]])


def test_sixteen_levels_are_cut_to_those_of_the_model(tmp_path: Path) -> None:
    from audio.test_codes_files import config

    codes = np.random.default_rng(0).integers(0, 1024, (20, 16), np.int32)
    write_ecdc(tmp_path / "a.ecdc", codes, "level")
    saved = read_codes(tmp_path / "a.ecdc", config())
    np.testing.assert_array_equal(saved.codes, codes[:, :8])
    assert (saved.codec, saved.codebook_size) == (ENCODEC, 1024)
    assert read_codes(tmp_path / "a.ecdc").codes.shape == (20, 16)
    write_ecdc(tmp_path / "few.ecdc", codes[:, :4])
    with pytest.raises(InputError, match="4 levels"):
        read_codes(tmp_path / "few.ecdc", config())


def test_what_encodec_cpp_will_not_decompress_is_told(tmp_path: Path) -> None:
    eight = SavedCodes(np.zeros((5, 8), np.int32), ENCODEC, 1024)
    (note,) = write_codes(tmp_path / "a.ecdc", eight, order="level")
    assert "one of 16 levels" in note
    assert write_codes(tmp_path / "b.ecdc", eight) == ()
    sixteen = SavedCodes(np.zeros((5, 16), np.int32), ENCODEC, 1024)
    assert write_codes(tmp_path / "c.ecdc", sixteen, order="level") == ()


@pytest.mark.parametrize(
    "saved",
    [
        SavedCodes(np.zeros((5, 8), np.int32), ENCODEC, 64),
        SavedCodes(np.zeros((5, 9), np.int32), Codec("dac-44khz", 44_100, 86.1), 1024),
    ],
)
def test_other_codes_are_not_written(tmp_path: Path, saved: SavedCodes) -> None:
    with pytest.raises(InputError, match=r"write a \.npz instead"):
        write_codes(tmp_path / "a.ecdc", saved)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "codes", [np.zeros((0, 8)), np.full((2, 2), -1), np.full((2, 2), 1024), np.zeros(3)]
)
def test_what_is_no_codes_is_a_mistake(tmp_path: Path, codes: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="0 to 1023"):
        write_ecdc(tmp_path / "a.ecdc", codes.astype(np.int32))


def changed(**changes: Any) -> bytes:
    return ecdc(METAS | changes, BODY)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no .ecdc file"),
        (b"ECDC\x00", "no .ecdc file"),
        (b"PK\x03\x04" + bytes(20), "no .ecdc file"),
        (ecdc(METAS, BODY, version=1), "version 1"),
        (struct.pack(">4sBI", b"ECDC", 0, 2**31), "at most 65,536"),
        (struct.pack(">4sBI", b"ECDC", 0, 500) + b"{}", "cut off within its header"),
        (ecdc(b"\xff\xfe", b""), "no JSON"),
        (ecdc(b"{", b""), "no JSON"),
        (ecdc(b"[" * 60_000, b""), "no JSON"),
        (ecdc([1], b""), "is a list"),
        (changed(m="encodec_48khz"), "model 'encodec_48khz'"),
        (changed(lm=True), "language model squeezed"),
        (changed(al=0), "al is 0"),
        (changed(al="801"), "al is '801'"),
        (changed(al=10**15), "al is 1000000000000000"),
        (changed(al=True), "al is True"),
        (changed(nc=33), "nc is 33"),
        (changed(nc=None), "nc is None"),
        (changed(nc=3), "cut off: 8 bytes of codes, where 3 frames of 3 levels have 12"),
        (ecdc(METAS, BODY[:-1]), "cut off"),
        (ecdc(METAS, BODY + b"\x00"), "is damaged"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "bad.ecdc"
    path.write_bytes(data)
    with pytest.raises(InputError, match=words.replace(".", r"\.")) as refusal:
        read_ecdc(path)
    assert str(path) in str(refusal.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be opened: no such file"):
        read_codes(tmp_path / "none.ecdc")


# ------------------------------------------------------------------------------- command


def test_speaking_takes_and_writes_them(
    cli: Cli, tmp_path: Path, converted: Callable[[str, str], Path]
) -> None:
    gguf = converted("single-classifier", "f32")
    codes = np.random.default_rng(1).integers(0, 1024, (40, 16), np.int32)
    write_ecdc(tmp_path / "voice.ecdc", codes, "level")
    quick = "--max-seconds 0.2 --prompt-seconds 0.4 --temperature 0 --threads 1".split()
    arguments = ("speak", gguf, "Hello.", "--voice", tmp_path / "voice.ecdc", *quick)
    told = [*arguments, "--ecdc-order", "level"]
    for name, line in (("a.npz", arguments), ("b.npz", told), ("c.ecdc", arguments)):
        result = cli(*line, "--save-codes", tmp_path / name)
        assert result.code == 0, result
    spoken = read_codes(tmp_path / "a.npz").codes
    np.testing.assert_array_equal(read_codes(tmp_path / "b.npz").codes, spoken)
    np.testing.assert_array_equal(read_ecdc(tmp_path / "c.ecdc", "frame"), spoken)
    result = cli(*told, "--save-codes", tmp_path / "d.ecdc")
    assert "takes every file for one of 16 levels" in result.err
    np.testing.assert_array_equal(read_ecdc(tmp_path / "d.ecdc", "level"), spoken)


def test_a_model_of_other_codes_is_told_before_it_speaks(
    cli: Cli, tmp_path: Path, converted: Callable[[str, str], Path]
) -> None:
    gguf = converted("ar-nar-len", "f32")
    error = error_of(cli("speak", gguf, "Hello.", "--save-codes", tmp_path / "a.ecdc"), 2)
    assert "below 64; write a .npz instead" in error
