"""Audio files: any that libsndfile reads, to mono float32; and wav files, never clipped.

A file is read in blocks and mixed at once, so that memory holds one channel of it. All
channels count alike. Resampling is soxr's at its highest quality.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self

import numpy as np
from numpy.typing import NDArray

from valle_convert.errors import InputError
from valle_convert.extras import require
from valle_convert.files import (
    atomic_output,
    check_input_file,
    explained_writes,
    is_stream,
    open_stream,
    os_fault,
)

Samples = NDArray[np.float32]
SampleFormat = Literal["int16", "float32"]

#: Rates outside of these are no sound, but damaged headers; a rate of 1 Hz would be 24,000 times
#: as long at 24 kHz.
_RATES = range(1_000, 1_000_001)
#: What sound is written as, by the name of the file.
FORMATS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG"}
_BLOCK_FRAMES = 1 << 16
_INT16_FULL_SCALE = 32767
#: What a wav header says of a length that nobody knows yet.
_UNKNOWN = 0xFFFFFFFF


@dataclass(frozen=True, eq=False)
class Audio:
    """Sound of one channel.

    Attributes:
        samples: [n], float32; full scale is 1.
        sample_rate: in Hz.
    """

    samples: Samples
    sample_rate: int

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / self.sample_rate


@dataclass(frozen=True)
class WrittenAudio:
    """What became of some audio on its way into a file.

    Attributes:
        path: of the file.
        seconds: how long it is.
        peak: the highest absolute sample before writing; full scale is 1.
        gain: what the samples were multiplied by; below 1 where they would have been clipped.
    """

    path: Path
    seconds: float
    peak: float
    gain: float


def read_audio(path: Path, sample_rate: int, *, max_seconds: float | None = None) -> Audio:
    """Read a file of any format, rate and number of channels.

    Args:
        path: wav, flac, ogg, mp3, or whatever else libsndfile knows.
        sample_rate: of the result.
        max_seconds: read no more than the beginning.

    Raises:
        InputError: there is no such file, it is no audio, it is empty, or has samples that are no
            numbers.
        EnvironmentFault: soundfile or soxr is not installed.
    """
    sound = require("soundfile", "Reading audio files")
    soxr = require("soxr", "Resampling audio")
    check_input_file(path, "audio file")
    try:
        with path.open("rb") as raw, sound.SoundFile(raw) as file:
            rate = int(file.samplerate)
            if rate not in _RATES:
                raise InputError(
                    f"{path} has a sample rate of {rate} Hz, where {_RATES[0]} to {_RATES[-1]} is "
                    "expected; the file is damaged."
                )
            limit = -1 if max_seconds is None else round(max_seconds * rate)
            blocks = file.blocks(_BLOCK_FRAMES, frames=limit, dtype="float32", always_2d=True)
            mixed = [block.mean(axis=1) for block in blocks]
    except OSError as error:
        raise os_fault(f"The audio file {path} cannot be opened", error) from error
    except sound.SoundFileError as error:
        raise InputError(
            f"{path} cannot be read as audio: {str(error).rstrip('.')}; give a wav, flac, ogg or "
            "mp3 file."
        ) from error
    samples = np.concatenate(mixed) if mixed else np.zeros(0, np.float32)
    if not len(samples):
        raise InputError(f"{path} has no sound in it: it is an audio file of length 0.")
    if not np.isfinite(samples).all():
        raise InputError(f"{path} has samples that are no finite numbers; the file is damaged.")
    if rate != sample_rate:
        samples = soxr.resample(samples, rate, sample_rate, quality="VHQ")
    return Audio(np.ascontiguousarray(samples, np.float32), sample_rate)


class AudioWriter:
    """Sound into a wav, flac or ogg file by its name, or into a stream, piece by piece.

    A file appears at the end, whole, or not at all; memory does not grow with it. 16-bit samples
    cannot go beyond full scale: sound that does is made quieter as a whole, just as far as needed.
    A stream (a pipe, a device, standard output) gets every piece at once, as a wav of unknown
    length or without any header. What went out cannot be changed any more, so that there a piece
    beyond full scale is made quieter together with all that follow. Nothing is ever clipped, and
    the result says what was done (`gain`). 32-bit floats keep every sample as it is.

    Args:
        path: of the file. It is not touched before the first piece.
        force: whether a file that exists may be replaced.
        sample_format: how samples are stored.
        raw: leave the header out; only for streams.
        sources: files that must not be overwritten, whatever `force` says.

    Raises:
        InputError, EnvironmentFault: as `files.atomic_output`, at the first piece or at the end;
            soundfile is not installed.
    """

    def __init__(
        self,
        path: Path,
        *,
        force: bool = False,
        sample_format: SampleFormat = "int16",
        raw: bool = False,
        sources: Iterable[Path] = (),
    ) -> None:
        self._path, self._force, self._sources = path, force, tuple(sources)
        self._format, self._raw = sample_format, raw
        self._kind = audio_format(path, sample_format)
        self._open = ExitStack()
        self._out: BinaryIO | None = None  # once something was added
        self._spool: BinaryIO | None = None  # float32, of a file
        self._start: int | None = None  # of a stream that can be gone back in
        self._rate = self._n = 0
        self._peak, self._gain = 0.0, 1.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None or self._out is None:
            self._open.__exit__(kind, error, trace)
            return
        with self._open:
            self._finish(self._out)

    @property
    def written(self) -> WrittenAudio | None:
        """What became of it so far; None before anything was added."""
        if self._out is None:
            return None
        return WrittenAudio(self._path, self._n / self._rate, self._peak, self._gain)

    def add(self, audio: Audio) -> None:
        """Write, or keep for the end, some more of the same sound; all at one sample rate."""
        if self._out is None:
            self._begin(audio.sample_rate)
        if audio.sample_rate != self._rate:
            raise ValueError(f"a piece at {audio.sample_rate} Hz, after {self._rate} Hz")
        self._n += len(audio.samples)
        self._peak = max(self._peak, float(np.abs(audio.samples).max(initial=0.0)))
        if self._format == "int16" and self._peak > 1:
            self._gain = 1.0 / self._peak
        if self._spool is not None:
            self._spool.write(audio.samples.astype("<f4").tobytes())
            return
        assert self._out is not None  # noqa: S101 - `_begin` opened it
        self._out.write(self._stored(audio.samples).tobytes())
        self._out.flush()

    def _begin(self, rate: int) -> None:
        self._rate = rate
        if not is_stream(self._path):
            require("soundfile", "Writing audio files")
            out = self._open.enter_context(
                atomic_output(self._path, force=self._force, sources=self._sources)
            )
            self._spool = tempfile.TemporaryFile()  # noqa: SIM115 - of `_open`
            self._open.enter_context(self._spool)
        else:
            self._open.enter_context(explained_writes(self._path))
            out = self._open.enter_context(open_stream(self._path))
            self._start = _place(out)
            if not self._raw:
                out.write(self._header(_UNKNOWN))
        self._out = out

    def _finish(self, out: BinaryIO) -> None:
        if self._spool is None:
            if self._start is not None and not self._raw:
                # A file on standard output after all.
                n_bytes = self._n * self._stored(np.zeros(1, np.float32)).itemsize
                os.pwrite(out.fileno(), self._header(n_bytes), self._start)
            return
        sound = require("soundfile", "Writing audio files")
        subtype = {"OGG": "VORBIS"}.get(self._kind, "PCM_16")
        if self._format == "float32":
            subtype = "FLOAT"
        self._spool.seek(0)
        with sound.SoundFile(
            out, "w", self._rate, channels=1, format=self._kind, subtype=subtype
        ) as file:
            while block := self._spool.read(4 * _BLOCK_FRAMES):
                file.write(self._stored(np.frombuffer(block, "<f4")))

    def _stored(self, samples: Samples) -> NDArray[np.float32] | NDArray[np.int16]:
        if self._format == "float32":
            return np.ascontiguousarray(samples, "<f4")
        scaled = np.rint(samples.astype(np.float64) * (self._gain * _INT16_FULL_SCALE))
        return scaled.astype("<i2")

    def _header(self, n_bytes: int) -> bytes:
        """The 44 bytes before the samples of a wav file (IBM and Microsoft, 1991)."""
        tag, bits = (3, 32) if self._format == "float32" else (1, 16)
        size, width = min(n_bytes, _UNKNOWN), bits // 8
        return struct.pack(
            "<4sI4s4sIHHIIHH4sI",
            *(b"RIFF", min(36 + size, _UNKNOWN), b"WAVE"),
            *(b"fmt ", 16, tag, 1, self._rate, self._rate * width, width, bits),
            *(b"data", size),
        )


def _place(out: BinaryIO) -> int | None:
    """Where a file on standard output stands; None where it cannot be gone back to."""
    import fcntl  # which Windows has not

    if not out.seekable() or fcntl.fcntl(out.fileno(), fcntl.F_GETFL) & os.O_APPEND:
        return None
    return out.tell()


def write_wav(
    path: Path,
    audio: Audio,
    *,
    force: bool = False,
    sample_format: SampleFormat = "int16",
    sources: Iterable[Path] = (),
) -> WrittenAudio:
    """Write a wav, flac or ogg file at once; arguments and errors are those of `AudioWriter`."""
    with AudioWriter(path, force=force, sample_format=sample_format, sources=sources) as writer:
        writer.add(audio)
        written = writer.written
    assert written is not None  # noqa: S101 - something was added
    return written


def audio_format(path: Path, sample_format: SampleFormat = "int16") -> str:
    """The format of an audio file by its name; a pipe or a device gets wav.

    Raises:
        InputError: it is none that is written here, or does not hold such samples.
    """
    known = FORMATS.get(path.suffix.lower())
    if known is None and not is_stream(path):
        raise InputError(
            f"The sound {path} has a name that ends in {path.suffix or 'nothing'}; give one that "
            f"ends in {', '.join(FORMATS)}."
        )
    if known is not None and known != "WAV" and sample_format == "float32":
        raise InputError(f"{path} cannot hold 32-bit floats; leave --float out, or write a .wav.")
    return known or "WAV"
