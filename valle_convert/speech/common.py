"""What all speakers share: the codec, saved codes, and a text's pieces put together."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Generic, Protocol, Self, TypeGuard, TypeVar

import numpy as np

from valle_convert.audio.codec import AudioCodec, check_codec_fits
from valle_convert.audio.codes import (
    CODES_SUFFIX,
    SavedCodes,
    check_codes_fit,
    is_codes_path,
    read_codes,
)
from valle_convert.audio.files import Audio
from valle_convert.decode import ShouldStop, never
from valle_convert.errors import InputError
from valle_convert.model.spec import Codec, CodeFormat, Codes
from valle_convert.progress import Progress, silent
from valle_convert.speech.results import DEFAULT_FRAME_RATE, Piece, Spoken

#: Told the phonemes of every sentence that is going to be spoken.
OnSentences = Callable[[Sequence[str]], object]

#: How often a sentence is drawn that the model ends before its first frame.
MAX_DRAWS = 3


class Seeded(Protocol):
    """Options of speaking, whichever the family."""

    @property
    def seed(self) -> int | None:
        """Of all randomness; None takes one."""
        ...


OptionsT = TypeVar("OptionsT", bound=Seeded)
VoiceT = TypeVar("VoiceT")


class CodeSpeaker(ABC, Generic[OptionsT, VoiceT]):
    """A model that speaks codes. Close it, or use it as a context manager.

    Args:
        model: whose codes they are.
        codec: between audio and codes; None speaks codes only, with voices given as codes.

    Raises:
        InputError: the codec is not the model's.
    """

    def __init__(self, model: CodeFormat, codec: AudioCodec | None) -> None:
        if codec is not None:
            check_codec_fits(codec, model)
        self._format = model
        self._codec = codec
        self._open = ExitStack()

    def close(self) -> None:
        """Free what `open` opened."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def codec_description(self) -> Codec:
        """What the codes are of: as the codec says, or else as the model does."""
        return self._format.codec if self._codec is None else self._codec.description

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.codec_description.frame_rate or DEFAULT_FRAME_RATE

    @abstractmethod
    def pieces(
        self,
        text: str,
        voice: VoiceT | None = None,
        options: OptionsT | None = None,
        *,
        is_phonemes: bool = False,
        progress: Progress = silent,
        should_stop: ShouldStop = never,
        on_sentences: OnSentences = lambda _phonemes: None,
    ) -> Iterator[Piece]:
        """Speak a text sentence by sentence, each given as soon as it is done."""

    @abstractmethod
    def _with_seed(self, options: OptionsT | None) -> OptionsT:
        """The options, or the usual ones, with a seed."""

    def speak(
        self,
        text: str,
        voice: VoiceT | None = None,
        options: OptionsT | None = None,
        *,
        is_phonemes: bool = False,
        progress: Progress = silent,
        should_stop: ShouldStop = never,
        on_piece: Callable[[Piece], object] = lambda _piece: None,
        on_sentences: OnSentences = lambda _phonemes: None,
        keep_audio: bool = True,
    ) -> Spoken:
        """Speak a text; arguments and errors are those of `pieces`.

        Interrupted by `should_stop`, it gives what there is. `on_piece` is called with each
        sentence as soon as it is done; without `keep_audio`, nobody else gets its sound, and
        memory does not grow with it.
        """
        options = self._with_seed(options)
        stopped = False

        def noting_stop() -> bool:
            # Interrupted between two sentences, the last piece is as whole as the others.
            nonlocal stopped
            stopped = stopped or should_stop()
            return stopped

        pieces: list[Piece] = []
        for piece in self.pieces(
            text,
            voice,
            options,
            is_phonemes=is_phonemes,
            progress=progress,
            should_stop=noting_stop,
            on_sentences=on_sentences,
        ):
            on_piece(piece)
            pieces.append(piece if keep_audio else replace(piece, audio=None))
        if pieces and not any(len(piece.codes) for piece in pieces):
            raise InputError(f"There is nothing to write: {pieces[0].notices[-1]}.")
        return self._spoken(pieces, options, is_whole=not stopped)

    def sound(self, codes: Codes | SavedCodes | str | Path) -> Audio:
        """Codes [frames, levels or fewer], or a file of them, to audio.

        Raises:
            InputError: the speaker has no codec, or saved codes are not the model's.
        """
        if not isinstance(codes, np.ndarray):
            codes = self._saved(codes, "the file of codes").codes
        return self._needed_codec().decode(codes)

    def _sounding(self, codes: Codes) -> Audio | None:
        """The sound of a piece, which may be empty; None without a codec."""
        if self._codec is None:
            return None
        if not len(codes):
            return Audio(np.zeros(0, np.float32), self._codec.description.sample_rate)
        return self._codec.decode(codes)

    def _saved(self, codes: SavedCodes | str | Path, name: str) -> SavedCodes:
        """Saved codes that are the model's."""
        if isinstance(codes, SavedCodes):
            check_codes_fit(codes, self._format, name)
            return codes
        return read_codes(Path(codes), self._format)

    def _needed_codec(self) -> AudioCodec:
        if self._codec is None:
            raise InputError(
                "Audio needs a codec, and none was given; give one with --codec, or work with "
                f"files of codes ({CODES_SUFFIX})."
            )
        return self._codec

    def _spoken(self, pieces: list[Piece], options: OptionsT, *, is_whole: bool) -> Spoken:
        assert options.seed is not None  # noqa: S101 - `_with_seed` was called first
        return Spoken(
            tuple(pieces),
            self._format.n_levels,
            self.codec_description,
            self._format.codebook_size,
            options.seed,
            is_whole,
        )


def is_codes_file(recording: object) -> TypeGuard[str | Path]:
    """Whether it names a file of codes, which needs no codec."""
    return isinstance(recording, str | Path) and is_codes_path(Path(recording))


def new_seed() -> int:
    """One that a user can type."""
    return secrets.randbits(32)
