"""From recordings and their transcripts to files for `--data`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle_convert.audio.codec import AudioCodec, open_codec
from valle_convert.audio.codes import is_codes_path, read_codes
from valle_convert.audio.files import read_audio
from valle_convert.audio.recorded import Recorded
from valle_convert.audio.utterances import check_utterance
from valle_convert.audio.voice import PROMPT_SECONDS, fit_prompt, prompt_audio
from valle_convert.errors import InputError
from valle_convert.families.bundle import Bundle
from valle_convert.files import atomic_output, check_outputs, locked_folder, made_folder
from valle_convert.model.spec import LANGUAGES, Codes, Model
from valle_convert.progress import Progress, silent
from valle_convert.speech.phonemes import Tokenize, phoneme_tokenizer
from valle_convert.speech.results import DEFAULT_FRAME_RATE, MAX_RECORDING_SECONDS
from valle_convert.text import (
    check_phonemes,
    detect_language,
    known_language,
    listed,
    to_phonemes,
    unknown_phonemes,
    unsaid_characters,
    unsaid_notice,
)

#: The part of a recording's name in the name of its utterance, in case of a long one.
_MAX_STEM_BYTES = 200


@dataclass(frozen=True)
class Said:
    """A text, ready for the model.

    Attributes:
        ids: of the phonemes, with the marks around them.
        notices: for the user.
    """

    language: str
    phonemes: str
    ids: list[int]
    notices: tuple[str, ...]

    def language_id(self, model: Model) -> int:
        return model.languages.index(self.language) if model.languages else 0


@dataclass(frozen=True, eq=False)
class MadeUtterance:
    """An utterance as `audio.utterances.read_spoken` reads it.

    Attributes:
        notices: for the user.
    """

    name: str
    source: Path
    said: Said
    arrays: dict[str, NDArray[Any]]
    notices: tuple[str, ...]


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
        prompt, notices = voice_prompt(voice, model, encoder) if voice else (None, ())
        with progress("recordings", len(recorded), "") as advance:
            for one, line, name in zip(recorded, said, names, strict=True):
                arrays: dict[str, NDArray[Any]] = {
                    "phonemes": np.array(line.ids, np.int32),
                    "response": _codes(one.path, model, encoder, None)[0],
                }
                if prompt is not None:
                    arrays["prompt"] = prompt
                if model.has_table("language"):
                    arrays["language"] = np.array(line.language_id(model), np.int32)
                check_utterance(one.path, arrays, model.config, model)
                if not is_phonemes:
                    arrays["text"] = np.array(one.text)
                made.append(MadeUtterance(name, one.path, line, arrays, line.notices + notices))
                notices = ()
                advance(1)
        for utterance in made:
            with atomic_output(folder / utterance.name, force=force, sources=inputs) as file:
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
) -> list[Said]:
    """Turn the texts into phonemes and ids."""
    if language is not None:
        language = known_language(language, model.languages or LANGUAGES)
    return [_say(one, model, tokenize, language, is_phonemes=is_phonemes) for one in recorded]


def voice_prompt(
    voice: Path, model: Model, codec: AudioCodec | None, seconds: float = PROMPT_SECONDS
) -> tuple[Codes, tuple[str, ...]]:
    """The codes of a voice [frames, levels], of limited length, and notices."""
    prompt, notices = _codes(voice, model, codec, seconds)
    rate = model.config.codec.frame_rate or DEFAULT_FRAME_RATE
    prompt, more = fit_prompt(prompt, max(1, round(seconds * rate)), str(voice))
    return prompt, notices + more


def _say(
    one: Recorded,
    model: Model,
    tokenize: Tokenize,
    language: str | None,
    *,
    is_phonemes: bool,
) -> Said:
    among = model.languages or LANGUAGES
    notices: tuple[str, ...] = ()
    try:
        if is_phonemes:
            check_phonemes(one.text)
            spoken, phonemes = language or among[0], one.text
        else:
            spoken = language or detect_language(one.text, among)
            phonemes = to_phonemes(one.text, spoken)
            if unsaid := unsaid_characters(one.text, spoken):
                notices += (f"{one.path}: {unsaid_notice(unsaid, spoken)}",)
    except InputError as error:
        raise InputError(f"{one.path}: {error}") from error
    if unknown := unknown_phonemes(phonemes, tokenize):
        notices += (f"{one.path}: the model's vocabulary lacks these phonemes: {listed(unknown)}",)
    return Said(spoken, phonemes, tokenize(phonemes), notices)


def _codes(
    path: Path, model: Model, codec: AudioCodec | None, seconds: float | None
) -> tuple[Codes, tuple[str, ...]]:
    """The codes of a recording [frames, levels], of limited length; None for all."""
    if is_codes_path(path):
        return read_codes(path, model.config).codes, ()
    if codec is None:
        raise InputError(f"{path} is a recording, but without a codec only codes can be used.")
    rate = codec.description.sample_rate
    audio = read_audio(path, rate, max_seconds=MAX_RECORDING_SECONDS)
    audio, notices = prompt_audio(audio, seconds, str(path))
    return codec.encode(audio), notices
