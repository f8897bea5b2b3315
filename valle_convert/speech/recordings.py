"""Recordings to codes and back, with the codec of a model."""

from pathlib import Path

import numpy as np

from valle_convert.audio.codec import AudioCodec, check_codec_fits
from valle_convert.audio.codes import (
    CODES_SUFFIX,
    SavedCodes,
    check_codes_fit,
    is_codes_path,
    read_codes,
)
from valle_convert.audio.files import Audio, read_audio
from valle_convert.audio.voice import fit_prompt, prompt_audio
from valle_convert.decode.options import MAX_RECORDING_SECONDS
from valle_convert.errors import InputError
from valle_convert.model.spec import Codec, CodeFormat, Codes
from valle_convert.speech.results import DEFAULT_FRAME_RATE

#: A recording or its codes, in memory or in a file.
Recording = str | Path | Audio | SavedCodes


class ModelCodec:
    """The format of a model's codes, and a codec for them, if there is one."""

    def __init__(self, model: CodeFormat, codec: AudioCodec | None) -> None:
        if codec is not None:
            check_codec_fits(codec, model)
        self._format = model
        self._codec = codec

    @property
    def codec_description(self) -> Codec:
        """The codec of the codes, from the codec itself or from the model."""
        return self._format.codec if self._codec is None else self._codec.description

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.codec_description.frame_rate or DEFAULT_FRAME_RATE

    def decode(self, codes: Codes | SavedCodes | str | Path) -> Audio:
        """Decode codes [frames, levels or fewer], or a file of codes, to audio."""
        if not isinstance(codes, np.ndarray):
            codes = self._saved(codes, "the file of codes").codes
        return self._needed_codec().decode(codes)

    def encode(
        self, recording: Path | Audio, seconds: float | None, name: str
    ) -> tuple[SavedCodes, tuple[str, ...]]:
        """The codes of a recording, which serve as a voice in its place, and notices.

        At most `seconds` from the first sound on are taken; None takes all. `name` is for messages.
        """
        codes, notices = self._codes_of(self._read(recording, name), seconds, name)
        return SavedCodes(codes, self.codec_description, self._format.codebook_size), notices

    def prompt(
        self, recording: Recording, seconds: float | None, name: str
    ) -> tuple[Codes, tuple[str, ...]]:
        """As `encode`, also from codes, but cut or repeated to exactly `seconds`, unless None."""
        name = str(recording) if isinstance(recording, str | Path) else name
        heard = self._read(recording, name)
        codes, notices = self._codes_of(heard, seconds, name)
        if seconds is None:
            return codes, notices
        n_frames = self._frames(seconds)
        if isinstance(heard, Audio):
            codes = codes[:n_frames]  # the codec may have rounded up
        codes, more = fit_prompt(codes, n_frames, name)
        return codes, notices + more

    def _frames(self, seconds: float) -> int:
        return max(1, round(seconds * self.frame_rate))

    def _read(self, recording: Recording, name: str) -> Audio | SavedCodes:
        """A recording or its codes, read from a file if it is a path."""
        if isinstance(recording, SavedCodes) or (
            isinstance(recording, str | Path) and is_codes_path(Path(recording))
        ):
            return self._saved(recording, name)
        codec = self._needed_codec()
        if isinstance(recording, Audio):
            return recording
        rate = codec.description.sample_rate
        return read_audio(Path(recording), rate, max_seconds=MAX_RECORDING_SECONDS)

    def _codes_of(
        self, heard: Audio | SavedCodes, seconds: float | None, name: str
    ) -> tuple[Codes, tuple[str, ...]]:
        """Codes of a recording, from the first sound on for some seconds; None takes all."""
        if isinstance(heard, SavedCodes):
            return heard.codes, ()
        audio, notices = prompt_audio(heard, seconds, name)
        return self._needed_codec().encode(audio), notices

    def _saved(self, codes: SavedCodes | str | Path, name: str) -> SavedCodes:
        """Saved codes, checked to fit the model."""
        if isinstance(codes, SavedCodes):
            check_codes_fit(codes, self._format, name)
            return codes
        return read_codes(Path(codes), self._format)

    def _needed_codec(self) -> AudioCodec:
        if self._codec is None:
            raise InputError(
                f"Audio needs a codec; pass one with --codec, or use saved codes ({CODES_SUFFIX})."
            )
        return self._codec

    def _audio_of(self, codes: Codes) -> Audio | None:
        """The audio of a piece, which may be empty; None without a codec."""
        if self._codec is None:
            return None
        if not len(codes):
            return Audio(np.zeros(0, np.float32), self._codec.description.sample_rate)
        return self._codec.decode(codes)
