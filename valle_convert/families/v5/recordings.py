"""From recordings and their transcripts to files for `--data`."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle_convert.audio.codec import open_codec
from valle_convert.audio.codes import is_codes_path
from valle_convert.audio.utterances import Recorded, check_utterance
from valle_convert.audio.voice import PROMPT_SECONDS
from valle_convert.errors import InputError
from valle_convert.families.bundle import Bundle
from valle_convert.files import atomic_output, check_outputs, locked_folder, made_folder
from valle_convert.model.spec import LANGUAGES, Codes, Model
from valle_convert.progress import Progress, silent
from valle_convert.speech.phonemes import Tokenize, line_of, phoneme_tokenizer
from valle_convert.speech.recordings import ModelCodec
from valle_convert.speech.speaker import Line
from valle_convert.text.languages import detect_language, known_language

#: The part of a recording's name in the name of its utterance, in case of a long one.
_MAX_STEM_BYTES = 200


@dataclass(frozen=True, eq=False)
class MadeUtterance:
    """An utterance as `audio.utterances.read_spoken` reads it."""

    name: str
    recording: Path
    said: Line[Codes]
    arrays: dict[str, NDArray[Any]]
    notices: tuple[str, ...]  # for the user


def fill_folder(
    bundle: Bundle,
    recorded: Sequence[Recorded],
    folder: Path,
    *,
    codec: str | None = None,
    voice: Path | None = None,
    language: str | None = None,
    is_phonemes: bool = False,
    force: bool = False,
    inputs: Sequence[Path] = (),
    progress: Progress = silent,
) -> list[MadeUtterance]:
    """Make an utterance of each recording, and write all of them or none."""
    model, names = bundle.model, utterance_names(recorded)
    heard = [*(one.path for one in recorded), *([voice] if voice else [])]
    inputs = [*inputs, *bundle.paths, *heard]
    made = []
    with (
        made_folder(folder),
        locked_folder(folder),
        ExitStack() as opened,
    ):
        tokenize, _ = phoneme_tokenizer(bundle.main, opened)
        check_outputs([folder / name for name in names], inputs=inputs, force=force)
        # All texts are checked before a codec is loaded or downloaded.
        said = say_all(recorded, model, tokenize, language=language, is_phonemes=is_phonemes)
        encoder = None if all(map(is_codes_path, heard)) else open_codec(codec, model)
        model_codec = ModelCodec(model, encoder)
        prompt: Codes | None = None
        notices: tuple[str, ...] = ()
        if voice is not None:
            prompt, notices = model_codec.prompt(voice, PROMPT_SECONDS, str(voice))
        with progress("recordings", len(recorded), "") as advance:
            for one, line, name in zip(recorded, said, names, strict=True):
                arrays: dict[str, NDArray[Any]] = {
                    "phonemes": line.rows,
                    "response": model_codec.prompt(one.path, None, str(one.path))[0],
                }
                if prompt is not None:
                    arrays["prompt"] = prompt
                if line.language_id is not None:
                    arrays["language"] = np.array(line.language_id, np.int32)
                check_utterance(one.path, arrays, model)
                if not is_phonemes:
                    arrays["text"] = np.array(one.text)
                made.append(MadeUtterance(name, one.path, line, arrays, line.notices + notices))
                notices = ()
                advance(1)
        for utterance in made:
            with atomic_output(folder / utterance.name, force=force, inputs=inputs) as file:
                np.savez(file, **utterance.arrays)  # type: ignore[arg-type]
    return made


def utterance_names(recorded: Sequence[Recorded]) -> list[str]:
    """The file of each utterance: its number, which keeps the order, and the recording's name."""
    digits = max(4, len(str(len(recorded))))
    stems = [os.fsencode(one.path.stem)[:_MAX_STEM_BYTES] for one in recorded]
    return [f"{i:0{digits}}-{os.fsdecode(stem)}.npz" for i, stem in enumerate(stems, 1)]


def say_all(
    recorded: Sequence[Recorded],
    model: Model,
    tokenize: Tokenize,
    *,
    language: str | None = None,
    is_phonemes: bool = False,
) -> list[Line[Codes]]:
    if language is not None:
        language = known_language(language, model.languages or LANGUAGES)
    return [_say(one, model, tokenize, language, is_phonemes=is_phonemes) for one in recorded]


def _say(
    one: Recorded, model: Model, tokenize: Tokenize, language: str | None, *, is_phonemes: bool
) -> Line[Codes]:
    among = model.languages or LANGUAGES
    try:
        if language is None:
            language = among[0] if is_phonemes else detect_language(one.text, among)
        line = line_of(model, tokenize, one.text, language, is_phonemes=is_phonemes)
    except InputError as error:
        raise InputError(f"{one.path}: {error}") from error
    return replace(line, notices=tuple(f"{one.path}: {notice}" for notice in line.notices))
