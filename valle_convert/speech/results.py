"""How to speak, and what was spoken: the frozen options and results of a `Speaker`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from valle_convert.audio.codes import SavedCodes
from valle_convert.audio.files import Audio
from valle_convert.audio.voice import PROMPT_SECONDS
from valle_convert.decode import (
    GREEDY,
    End,
    Guidance,
    Mode,
    ModeChoice,
    Repetition,
    SamplingOptions,
    check_range,
)
from valle_convert.model.spec import Codec, Codes

#: Beyond this a recording is not read on: its codes would exceed every model's context.
MAX_RECORDING_SECONDS = 600.0
#: Where nothing tells the frame rate, seconds are counted as EnCodec's 75 frames.
DEFAULT_FRAME_RATE = 75.0


@dataclass(frozen=True)
class SpeakOptions:
    """How to speak. A family reads the fields of its `speaks_with`, and no others.

    Attributes:
        mode: `auto` takes what the model is made for.
        language: of the text; None detects it.
        voice_text: what the voice says, where the model goes on with it and cannot tell.
        accent: the language in whose accent all of the text is spoken; None speaks each
            language in its own.
        sampling: how codes of level 0 are drawn.
        nar_sampling: how those of the levels above are.
        repetition: how codes of level 0 are weakened that were there before.
        guidance: of all levels. Demasking always has some, see `decode.masked`.
        max_steps: of demasking.
        best_of: how many continuations are drawn, of which the most probable one is kept.
        length_penalty: above 0 makes speech longer; None takes the family's.
        max_seconds: of one sentence, at most; None takes the family's.
        duration_padding: the model's own durations are multiplied by this.
        prompt_seconds: how much of a voice is used; a shorter one is repeated.
        context_history: how many sentences before are given along as context.
        seed: of all randomness; None takes one, and the result tells which.
    """

    mode: ModeChoice = "auto"
    language: str | None = None
    voice_text: str | None = None
    accent: str | None = None
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    nar_sampling: SamplingOptions = GREEDY
    repetition: Repetition = field(default_factory=Repetition)
    guidance: Guidance = field(default_factory=Guidance)
    max_steps: int = 25
    best_of: int = 1
    length_penalty: float | None = None
    max_seconds: float | None = None
    duration_padding: float = 1.05
    prompt_seconds: float = PROMPT_SECONDS
    context_history: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_seconds is not None:
            check_range("max-seconds", self.max_seconds, 0.1, MAX_RECORDING_SECONDS)
        check_range("prompt-seconds", self.prompt_seconds, 0.1, 60.0)
        check_range("context-history", self.context_history, 0, 100)
        check_range("max-steps", self.max_steps, 1, 1000)


@dataclass(frozen=True)
class Timings:
    """Seconds of computing, by stage."""

    text: float = 0.0
    voice: float = 0.0
    length: float = 0.0
    level_0: float = 0.0
    levels: float = 0.0
    codec: float = 0.0

    @property
    def total(self) -> float:
        """All stages together."""
        return self.text + self.voice + self.length + self.level_0 + self.levels + self.codec

    def __add__(self, other: Timings) -> Timings:
        return Timings(
            text=self.text + other.text,
            voice=self.voice + other.voice,
            length=self.length + other.length,
            level_0=self.level_0 + other.level_0,
            levels=self.levels + other.levels,
            codec=self.codec + other.codec,
        )


@dataclass(frozen=True, eq=False)
class Piece:
    """One sentence, spoken.

    Attributes:
        text: as it was given; empty where there was none.
        phonemes: what it says, in the model's alphabet.
        language: of the text.
        codes: [frames, levels]; fewer levels than the model's where interrupted.
        audio: None where the speaker has no codec.
        mode: how level 0 was decoded.
        end: `stop` where it is whole, `limit` where `max_seconds` was too short for it.
        notices: what a user should know of it.
        seconds: of computing. Those of the text and the voice are in the first piece.
        ids: of the phonemes, with the marks around them.
        language_id: the model's; None where it tells no languages apart.
    """

    text: str
    phonemes: str
    language: str
    codes: Codes
    audio: Audio | None
    mode: Mode
    end: End
    notices: tuple[str, ...]
    seconds: Timings
    ids: tuple[int, ...] = ()
    language_id: int | None = None


@dataclass(frozen=True, eq=False)
class Spoken:
    """Everything that was spoken.

    Attributes:
        pieces: by sentence, in order. An interrupted text has those that were finished, and
            what there is of the one that was being spoken.
        n_levels: of the model.
        codec: what the codes are of, with its rates; `unknown` where neither codec nor model says.
        codebook_size: all codes are below this.
        seed: that gives the same codes again.
        is_whole: whether nothing interrupted it.
    """

    pieces: tuple[Piece, ...]
    n_levels: int
    codec: Codec
    codebook_size: int
    seed: int
    is_whole: bool

    @property
    def codes(self) -> Codes:
        """Those of all pieces that have every level, joined, [frames, levels]."""
        whole = [piece.codes for piece in self.pieces if piece.codes.shape[1] == self.n_levels]
        return np.concatenate([np.zeros((0, self.n_levels), np.int32), *whole])

    @property
    def saved_codes(self) -> SavedCodes:
        """The same, as they go into a file; with the phonemes where they are one whole sentence."""
        if len(self.pieces) != 1 or not self.is_whole:
            return SavedCodes(self.codes, self.codec, self.codebook_size)
        (piece,) = self.pieces
        return SavedCodes(self.codes, self.codec, self.codebook_size, piece.ids, piece.language_id)

    @property
    def audio(self) -> Audio | None:
        """That of all pieces, joined; None where the speaker has no codec."""
        parts = [piece.audio for piece in self.pieces if piece.audio is not None]
        if not parts:
            return None
        return Audio(np.concatenate([part.samples for part in parts]), parts[0].sample_rate)

    @property
    def notices(self) -> tuple[str, ...]:
        """Those of all pieces, each once."""
        return tuple(dict.fromkeys(notice for piece in self.pieces for notice in piece.notices))

    @property
    def seconds(self) -> Timings:
        """Computing time of all pieces."""
        return sum((piece.seconds for piece in self.pieces), Timings())

    @property
    def real_time_factor(self) -> float:
        """Seconds of computing for a second of sound; infinite where there is no sound."""
        rate = self.codec.frame_rate or DEFAULT_FRAME_RATE
        frames = sum(len(piece.codes) for piece in self.pieces)
        return self.seconds.total * rate / frames if frames else float("inf")


@dataclass(frozen=True)
class Heard:
    """A transcript.

    Attributes:
        phonemes: IPA, as far as the vocabulary can spell it.
        ids: of the phonemes.
        language: that the model was told.
        end: `limit` where it did not come to an end by itself.
        notices: what a user should know of it.
        voice_seconds, decode_seconds: of computing.
    """

    phonemes: str
    ids: tuple[int, ...]
    language: str
    end: End
    notices: tuple[str, ...]
    voice_seconds: float
    decode_seconds: float
