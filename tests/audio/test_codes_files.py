"""Files of codes: round trip, and hostile ones refused without unpickling or unpacking."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import model_of
from vallex_golden import HEARD, write_voice

from valle_convert.audio import SavedCodes, read_codes, write_codes
from valle_convert.errors import InputError
from valle_convert.families.vallex.symbols import symbol_ids
from valle_convert.families.vallex.voice import is_vallex_voice, read_vallex_voice
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


# Voices of VALL-E X, as its own project writes them

MODEL = model_of(ENCODEC)
VOICE = CODES[None].astype(np.int64)


def voice(path: Path, **changes: Any) -> Path:
    return write_voice(path, **{"audio_tokens": VOICE} | changes)


@pytest.mark.parametrize(("code", "network_id"), [(0, 1), (1, 2), (2, 0)])
def test_a_voice_comes_with_what_it_says_in_the_networks_numbering(
    path: Path, code: int, network_id: int
) -> None:
    found = read_vallex_voice(voice(path, lang_code=code), MODEL)
    np.testing.assert_array_equal(found.codes, VOICE[0])
    assert (found.codes.dtype, found.text.symbols.dtype) == (np.int32, np.int32)
    assert found.text.symbols.tolist() == symbol_ids(HEARD)
    assert found.text.languages.tolist() == [network_id] * len(HEARD)


def test_language_codes_of_other_shapes_and_integers_are_read_as_well(path: Path) -> None:
    for code in (np.array([2], np.int32), np.array([[2]], np.uint8)):
        assert read_vallex_voice(voice(path, lang_code=code), MODEL).text.languages[0] == 0
    compact = VOICE.astype(np.uint16)
    np.testing.assert_array_equal(
        read_vallex_voice(voice(path, audio_tokens=compact), MODEL).codes, VOICE[0]
    )


def test_they_are_told_from_our_own_files_of_codes(path: Path, tmp_path: Path) -> None:
    assert is_vallex_voice(voice(path))
    own = tmp_path / "own.npz"
    write_codes(own, SavedCodes(CODES, ENCODEC, 1024))
    assert not is_vallex_voice(own)
    assert not is_vallex_voice(tmp_path / "prompt.wav")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"audio_tokens": None}, "it has no array 'audio_tokens'"),
        ({"lang_code": None}, "it has no array 'lang_code'"),
        ({"lang_code": 3}, "lang_code has 3, expected 0 to 2"),
        ({"lang_code": -1}, "lang_code has -1"),
        ({"lang_code": "en"}, r"lang_code is <U2 \[\], expected one integer"),
        ({"lang_code": [0, 1]}, r"lang_code is int64 \[2\]"),
        ({"audio_tokens": VOICE[0]}, r"int64 \[30, 8\], expected integers \[1, frames, levels\]"),
        ({"audio_tokens": VOICE.astype(float)}, "audio_tokens is float64"),
        ({"audio_tokens": VOICE[:, :0]}, r"audio_tokens is int64 \[1, 0, 8\]"),
        ({"audio_tokens": VOICE - 1}, "audio_tokens has -1"),
        (
            {"audio_tokens": VOICE + 1},
            "has 1024, expected 0 to 1023; the file is damaged, or of another",
        ),
        ({"audio_tokens": VOICE[:, :, :4]}, "4 levels of 1024 codes"),
        ({"text_tokens": [symbol_ids(HEARD)] * 2}, r"text_tokens is int64 \[2, 8\]"),
        ({"text_tokens": [[5, 70]]}, "has 70, expected 0 to 69"),
        ({"text_tokens": np.zeros((1, 0), int)}, r"text_tokens is int64 \[1, 0\]"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(
    path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said) as refused:
        read_vallex_voice(voice(path, **changes), MODEL)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"no archive at all" * 100])
def test_what_is_no_archive_is_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    for read in (is_vallex_voice, lambda file: read_vallex_voice(file, MODEL)):
        with pytest.raises(InputError, match="voice file of VALL-E X"):
            read(path)
