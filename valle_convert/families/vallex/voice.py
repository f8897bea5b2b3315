"""Voices of VALL-E X: codes of some speech together with its transcript.

The model continues its prompt, so it needs the transcript. The voice files of its own project
(`.npz`) have both; they number the languages differently than the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle_convert.audio.codes import SavedCodes, check_codes_fit
from valle_convert.errors import InputError
from valle_convert.families.vallex.composed import VallexText
from valle_convert.families.vallex.symbols import (
    VALLEX_LANGUAGES,
    VALLEX_SYMBOLS,
    VOICE_FILE_LANGUAGES,
)
from valle_convert.model.spec import CodeFormat
from valle_convert.npz_file import npz_names, read_npz

#: The length of recordings in its project, which the model was trained to continue.
MAX_VOICE_SECONDS = 15.0

#: Ten minutes of codes; the unpacked size is checked first.
_MAX_BYTES = 8 << 20
_CODES, _TEXT, _LANGUAGE = "audio_tokens", "text_tokens", "lang_code"
_WHAT = "voice file of VALL-E X"


@dataclass(frozen=True, eq=False)
class VallexVoice:
    """A voice, ready to be continued."""

    codes: NDArray[np.int32]  # [frames, levels]
    text: VallexText  # its transcript


def is_vallex_voice(path: Path) -> bool:
    """Whether a file is a voice file of that project, by the arrays in it."""
    return path.suffix.lower() == ".npz" and _CODES in npz_names(path, _WHAT)


def read_vallex_voice(path: Path, model: CodeFormat) -> VallexVoice:
    """Read a voice file of VALL-E X's own project."""
    arrays = read_npz(path, (_CODES, _TEXT, _LANGUAGE), max_bytes=_MAX_BYTES, what=_WHAT)
    codes = _checked(path, _CODES, arrays[_CODES], n_axes=3)[0]
    text = _checked(path, _TEXT, arrays[_TEXT], n_axes=2)[0]
    language = arrays[_LANGUAGE]
    if language.size != 1 or language.dtype.kind not in "iu":
        raise InputError(f"{path}: {_LANGUAGE} is {_described(language)}, expected one integer.")
    number = int(language.reshape(()))
    if not 0 <= number < len(VOICE_FILE_LANGUAGES):
        numbered = ", ".join(f"{i} {name}" for i, name in enumerate(VOICE_FILE_LANGUAGES))
        raise InputError(f"{path}: {_LANGUAGE} is {number}, expected one of {numbered}.")
    if text.max() >= len(VALLEX_SYMBOLS):
        raise InputError(
            f"{path}: {_TEXT} has the symbol {text.max()}, expected 0 to "
            f"{len(VALLEX_SYMBOLS) - 1}; it is a voice of another model."
        )
    if codes.max() >= model.codebook_size:
        raise InputError(
            f"{path}: {_CODES} has the code {codes.max()}, expected 0 to "
            f"{model.codebook_size - 1}; it is a voice of another model."
        )
    saved = SavedCodes(codes.astype(np.int32), model.codec, model.codebook_size)
    check_codes_fit(saved, model, str(path))
    language_id = VALLEX_LANGUAGES.index(VOICE_FILE_LANGUAGES[number])
    languages = np.full(len(text), language_id, np.int32)
    return VallexVoice(saved.codes, VallexText(text.astype(np.int32), languages))


def _checked(path: Path, name: str, array: NDArray[Any], *, n_axes: int) -> NDArray[Any]:
    """An array of integers from 0 on, of one utterance."""
    is_right = array.ndim == n_axes and array.shape[0] == 1 and 0 not in array.shape
    if not is_right or array.dtype.kind not in "iu" or array.min() < 0:
        axes = "[1, frames, levels]" if n_axes == 3 else "[1, symbols]"
        raise InputError(
            f"{path}: {name} is {_described(array)}, expected integers {axes} from 0 on; "
            "the file is damaged, or of another project."
        )
    return array


def _described(array: NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"
