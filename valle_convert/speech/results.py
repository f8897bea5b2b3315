"""Options and results of a `Speaker`."""

from dataclasses import dataclass

import numpy as np

from valle_convert.audio.codes import SavedCodes
from valle_convert.audio.files import Audio
from valle_convert.audio.voice import PROMPT_SECONDS
from valle_convert.decode.options import (
    MAX_RECORDING_SECONDS,
    DecodeOptions,
    End,
    Mode,
    option,
)
from valle_convert.decode.speech import Timings
from valle_convert.model.spec import Codec, Codes

#: EnCodec's rate, if neither the codec nor the model gives one.
DEFAULT_FRAME_RATE = 75.0


@dataclass(frozen=True)
class SpeakOptions(DecodeOptions):
    """Options of speech. A family reads only the fields in its `speaks_with`."""

    language: str | None = None  # language of the text; None detects it
    voice_text: str | None = None  # transcript of the voice, for models that continue it
    accent: str | None = option(None, "accent for the whole text: `en`, `zh` or `ja`")
    prompt_seconds: float = option(
        PROMPT_SECONDS, "how much of the voice is used; a shorter voice is repeated", 0.1, 60
    )
    max_seconds: float | None = option(
        None, "longest sentence; the default depends on the model", 0.1, MAX_RECORDING_SECONDS
    )
    context_history: int = option(0, "number of previous sentences to condition on", 0, 100)
    #: None draws one, which the result contains.
    seed: int | None = option(None, "random seed")


@dataclass(frozen=True, eq=False)
class Piece:
    """One spoken sentence."""

    text: str  # the text; empty if phonemes were given
    phonemes: str  # the text in the model's alphabet
    language: str
    codes: Codes  # [frames, levels]; fewer levels than the model has if interrupted
    audio: Audio | None  # None if the speaker has no codec
    mode: Mode  # how level 0 was decoded
    end: End  # `stop` if complete, `limit` if `max_seconds` was too short
    notices: tuple[str, ...]  # remarks for the user
    seconds: Timings  # computing time. Text and voice count with the first piece.
    ids: tuple[int, ...] = ()  # ids of the phonemes, with `<bos>` and `</eos>`
    #: The model's id of the language; None if it does not distinguish languages.
    language_id: int | None = None


@dataclass(frozen=True, eq=False)
class Spoken:
    """A spoken text."""

    #: The sentences in order; if interrupted, the last one may be incomplete.
    pieces: tuple[Piece, ...]
    n_levels: int  # number of levels of the model
    #: The codec of the codes, with its rates; `unknown` if neither codec nor model says.
    codec: Codec
    codebook_size: int  # all codes are below this
    seed: int  # gives the same codes again
    is_whole: bool  # whether the text was spoken without interruption

    @property
    def codes(self) -> Codes:
        """The codes of all pieces with all levels, joined, [frames, levels]."""
        whole = [piece.codes for piece in self.pieces if piece.codes.shape[1] == self.n_levels]
        return np.concatenate([np.zeros((0, self.n_levels), np.int32), *whole])

    @property
    def saved_codes(self) -> SavedCodes:
        """The codes for a file, with the phonemes if they are one complete sentence."""
        if len(self.pieces) != 1 or not self.is_whole:
            return SavedCodes(self.codes, self.codec, self.codebook_size)
        (piece,) = self.pieces
        return SavedCodes(self.codes, self.codec, self.codebook_size, piece.ids, piece.language_id)

    @property
    def audio(self) -> Audio | None:
        """The audio of all pieces, joined; None if the speaker has no codec."""
        parts = [piece.audio for piece in self.pieces if piece.audio is not None]
        if not parts:
            return None
        return Audio(np.concatenate([part.samples for part in parts]), parts[0].sample_rate)

    @property
    def notices(self) -> tuple[str, ...]:
        """The notices of all pieces, without duplicates."""
        return tuple(dict.fromkeys(notice for piece in self.pieces for notice in piece.notices))

    @property
    def seconds(self) -> Timings:
        """Computing time of all pieces."""
        return sum((piece.seconds for piece in self.pieces), Timings())

    @property
    def real_time_factor(self) -> float:
        """Seconds of computing per second of audio; infinite without audio."""
        rate = self.codec.frame_rate or DEFAULT_FRAME_RATE
        frames = sum(len(piece.codes) for piece in self.pieces)
        return self.seconds.total * rate / frames if frames else float("inf")


@dataclass(frozen=True)
class Heard:
    """A transcript."""

    phonemes: str  # IPA, as far as the vocabulary can spell it
    ids: tuple[int, ...]
    language: str  # the language given to the model
    end: End  # `limit` if the transcript was cut off
    notices: tuple[str, ...]  # remarks for the user
    voice_seconds: float  # of computing
    decode_seconds: float
