"""Voice files of VALL-E X's own project, right ones, wrong ones and hostile ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import model_of

from valle_convert.audio import SavedCodes, write_codes
from valle_convert.errors import InputError
from valle_convert.families.vallex.symbols import symbol_ids
from valle_convert.families.vallex.voice import is_vallex_voice, read_vallex_voice
from valle_convert.model.spec import CODECS

MODEL = model_of(CODECS[8, 1024])
SAID = "haɪ_ðɛɹ."
CODES = np.random.default_rng(0).integers(0, 1024, (1, 161, 8))
CODES[0, 0, 0], CODES[0, 1, 1] = 0, 1023


def voice(path: Path, **changes: Any) -> Path:
    """As that project writes them; None leaves an array out."""
    arrays: dict[str, Any] = {
        "audio_tokens": CODES,
        "text_tokens": np.array([symbol_ids(SAID)]),
        "lang_code": 2,
        **changes,
    }
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "voice.npz"


@pytest.mark.parametrize(("code", "network_id"), [(0, 1), (1, 2), (2, 0)])
def test_a_voice_comes_with_what_it_says_in_the_networks_numbering(
    path: Path, code: int, network_id: int
) -> None:
    found = read_vallex_voice(voice(path, lang_code=code), MODEL)
    np.testing.assert_array_equal(found.codes, CODES[0])
    assert (found.codes.dtype, found.text.symbols.dtype) == (np.int32, np.int32)
    assert found.text.symbols.tolist() == symbol_ids(SAID)
    assert found.text.languages.tolist() == [network_id] * len(SAID)


def test_language_codes_of_other_shapes_and_integers_are_read_as_well(path: Path) -> None:
    for code in (np.array([2], np.int32), np.array([[2]], np.uint8)):
        assert read_vallex_voice(voice(path, lang_code=code), MODEL).text.languages[0] == 0
    compact = CODES.astype(np.uint16)
    np.testing.assert_array_equal(
        read_vallex_voice(voice(path, audio_tokens=compact), MODEL).codes, CODES[0]
    )


def test_they_are_told_from_our_own_files_of_codes(path: Path, tmp_path: Path) -> None:
    assert is_vallex_voice(voice(path))
    own = tmp_path / "codes.npz"
    write_codes(own, SavedCodes(CODES[0].astype(np.int32), CODECS[8, 1024], 1024))
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
        ({"audio_tokens": CODES[0]}, r"int64 \[161, 8\], expected integers \[1, frames, levels\]"),
        ({"audio_tokens": CODES.astype(float)}, "audio_tokens is float64"),
        ({"audio_tokens": CODES[:, :0]}, r"audio_tokens is int64 \[1, 0, 8\]"),
        ({"audio_tokens": CODES - 1}, "audio_tokens has -1"),
        (
            {"audio_tokens": CODES + 1},
            "has 1024, expected 0 to 1023; the file is damaged, or of another",
        ),
        ({"audio_tokens": CODES[:, :, :4]}, "4 levels of 1024 codes"),
        ({"text_tokens": [symbol_ids(SAID)] * 2}, r"text_tokens is int64 \[2, 8\]"),
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
