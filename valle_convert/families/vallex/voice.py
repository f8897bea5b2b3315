"""Voices of VALL-E X: codes of some speech together with its transcript.

The model continues its prompt, so it needs the transcript. The voice files of its own project
(`.npz`) have both; they number the languages differently than the network.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from valle_convert.audio.codes import SavedCodes, check_array, check_codes_fit
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
    arrays = read_npz(path, (_CODES, _TEXT, _LANGUAGE), max_bytes=_MAX_BYTES, what=_WHAT)
    codes, text, language = (arrays[name] for name in (_CODES, _TEXT, _LANGUAGE))
    check_array(path, _CODES, codes, (1, "frames", "levels"), model.codebook_size)
    check_array(path, _TEXT, text, (1, "symbols"), len(VALLEX_SYMBOLS))
    language = language.reshape(()) if language.size == 1 else language
    check_array(path, _LANGUAGE, language, (), len(VOICE_FILE_LANGUAGES))
    saved = SavedCodes(codes[0].astype(np.int32), model.codec, model.codebook_size)
    check_codes_fit(saved, model, str(path))
    language_id = VALLEX_LANGUAGES.index(VOICE_FILE_LANGUAGES[int(language)])
    languages = np.full(text.shape[1], language_id, np.int32)
    return VallexVoice(saved.codes, VallexText(text[0].astype(np.int32), languages))
