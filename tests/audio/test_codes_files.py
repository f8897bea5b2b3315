"""Files of codes: round trip, and hostile ones refused without unpickling or unpacking."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import model_of

from valle_convert.audio import SavedCodes, read_codes, write_codes
from valle_convert.errors import InputError
from valle_convert.model.spec import CODECS, Codec, ModelConfig

ENCODEC = CODECS[8, 1024]
CODES = np.random.default_rng(0).integers(0, 1024, (30, 8)).astype(np.int32)
CODES[0, 0], CODES[1, 1] = 0, 1023


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "codes.npz"
    write_codes(path, SavedCodes(CODES, ENCODEC, 1024))
    return path


def rewrite(path: Path, **changes: Any) -> None:
    """Write the file again with other entries; None leaves one out."""
    with np.load(path) as file:
        entries = {**file, **changes}
    np.savez(path, **{name: value for name, value in entries.items() if value is not None})


def test_codes_come_back_as_they_were(path: Path) -> None:
    saved = read_codes(path, model_of(ENCODEC))
    np.testing.assert_array_equal(saved.codes, CODES)
    assert saved.codes.dtype == np.int32
    assert (saved.codec, saved.codebook_size) == (ENCODEC, 1024)


def test_the_file_is_plain_numpy(path: Path) -> None:
    with np.load(path, allow_pickle=False) as file:
        np.testing.assert_array_equal(file["codes"], CODES)
        assert file["sample_rate"] == 24_000
        assert file["frame_rate"] == 75.0
        assert file["codec"] == "encodec-24khz"


def test_numbers_may_have_any_type_of_numbers(path: Path) -> None:
    rewrite(path, frame_rate=75, codebook_size=np.uint16(1024), codes=CODES.astype(">u2"))
    assert read_codes(path).codec == ENCODEC


@pytest.mark.parametrize("name", ["codes", "codes.ecdc", "codes.npz.txt"])
def test_a_name_that_would_not_be_read_back_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"must end in \.npz"):
        write_codes(tmp_path / name, SavedCodes(CODES, ENCODEC, 1024))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codes": None}, r"no file of codes \(it has no array 'codes'"),
        ({"codes": CODES.astype(np.float32)}, "float32.*integers"),
        (
            {"codes": CODES[:, 0]},
            r"the array codes is int32 \[30\], expected integers \[frames, levels\]",
        ),
        ({"codes": CODES[:0]}, r"codes is int32 \[0, 8\]"),
        ({"codes": CODES - 1000}, "codes has -"),
        ({"codes": CODES + 1}, "codes has 1024, expected 0 to 1023"),
        ({"codes": np.array([[{}]], object)}, "no file of codes"),
        ({"format_version": np.int64(2)}, "version 2"),
        ({"format_version": np.array([1, 1])}, "format_version is not a single value"),
        ({"sample_rate": np.str_("fast")}, "sample_rate is not a single value"),
        ({"sample_rate": np.int64(-5)}, "are out of range"),
        ({"frame_rate": np.float64("nan")}, "are out of range"),
    ],
)
def test_a_file_with_a_wrong_entry_is_refused(
    path: Path, changes: dict[str, Any], words: str
) -> None:
    rewrite(path, **changes)
    with pytest.raises(InputError, match=words) as refusal:
        read_codes(path)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (model_of(ENCODEC, n_levels=9), "8 levels of 1024.*9 levels of 1024"),
        (model_of(ENCODEC, codebook_size=1000), "8 levels of 1024.*8 levels of 1000"),
        (model_of(Codec("dac-44khz", 44_100, 86.1)), "encodec-24khz.*dac-44khz"),
        (model_of(Codec("encodec-24khz", 24_000, 37.5)), "75 frames.*37.5 frames"),
    ],
)
def test_codes_of_another_codec_than_the_models_are_refused(
    path: Path, model: ModelConfig, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        read_codes(path, model)
