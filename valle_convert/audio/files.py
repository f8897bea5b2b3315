"""Audio files: reads all formats of libsndfile as mono float32, writes five, never clipped.

A file is read in blocks and mixed at once, so that memory holds one channel; all channels have the
same weight. soxr resamples at its highest quality.
"""

import math
import os
import re
import shlex
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

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

#: Other rates mean a damaged header; 1 Hz would become 24,000 times as long at 24 kHz.
_RATES = range(1_000, 1_000_001)
#: libsndfile's format and subtype, by the suffix of the file.
FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".opus": ("OGG", "OPUS"),
}
#: If the mean of all channels has less than this share of their power, they cancel out.
_CANCELLED = 1e-3
_BLOCK_FRAMES = 1 << 16
_INT16_FULL_SCALE = 32767
#: Length in a wav header if unknown; other programs write smaller ones, from about 2^31 on.
_UNKNOWN = 0xFFFFFFFF
_MAX_KNOWN = 0x7FFF_0000
#: Bytes around the samples, which sloppy headers count too.
_SLACK = 100
#: What libsndfile logs of a wav file whose header claims more than the file has.
_CLAIMED = re.compile(r"^data : (\d+) \(should be (\d+)\)", re.MULTILINE)


@dataclass(frozen=True, eq=False)
class Audio:
    """Mono audio."""

    samples: Samples  # [n], float32; full scale is 1
    sample_rate: int  # in Hz

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate


@dataclass(frozen=True)
class WrittenAudio:
    """Result of writing audio."""

    path: Path
    seconds: float
    peak: float  # highest absolute sample before writing; full scale is 1
    gain: float  # factor of the samples; below 1 if they would have been clipped


def read_audio(path: Path, sample_rate: int, *, max_seconds: float | None = None) -> Audio:
    """Read a file of any format, rate and number of channels that libsndfile knows.

    The result has `sample_rate`, and at most the first `max_seconds`.

    Raises:
        InputError: the file is missing, or as for `decode_audio`.
        EnvironmentFault: soundfile or soxr is not installed, or the disk fails.
    """
    require("soundfile", "Reading audio files")
    check_input_file(path, "audio file")
    try:
        with path.open("rb") as raw:
            return decode_audio(raw, str(path), sample_rate, max_seconds=max_seconds)
    except OSError as error:
        raise os_fault(f"The audio file {path} cannot be opened", error) from error


def decode_audio(
    raw: BinaryIO, name: str, sample_rate: int, *, max_seconds: float | None = None
) -> Audio:
    """Read an open file, or bytes in memory, as `read_audio` does; messages call it `name`."""
    sound = require("soundfile", "Reading audio files")
    soxr = require("soxr", "Resampling audio")
    shell_name = shlex.quote(Path(name).name)
    try:
        with _sound_file(raw) as (file, check):
            rate = int(file.samplerate)
            if rate not in _RATES:
                raise InputError(
                    f"{name} has a sample rate of {rate} Hz, expected {_RATES[0]} to {_RATES[-1]}; "
                    "the file is damaged."
                )
            if claim := _CLAIMED.search(file.extra_info):
                claimed, found = map(int, claim.groups())
                if claimed < _MAX_KNOWN and found < 0.99 * claimed - _SLACK:
                    raise InputError(
                        f"{name} is truncated: {found:,} of {claimed:,} bytes of sound are there; "
                        f"copy it again, or keep the rest with `ffmpeg -i {shell_name} voice.wav`."
                    )
            left = math.inf if max_seconds is None else round(max_seconds * rate)
            mixed, power, mixed_power = [], 0.0, 0.0
            # `blocks` would need to seek, which GSM and G.72x cannot.
            while n := min(_BLOCK_FRAMES, left):
                block = file.read(n, dtype="float32", always_2d=True)
                check()
                if not len(block):
                    break
                left -= n
                mixed.append(block.mean(axis=1))
                power += _power(block)
                mixed_power += _power(mixed[-1][:, None])
    except sound.SoundFileError as error:
        raise InputError(
            f"{name} cannot be read as audio ({_reason(error)}), expected wav, flac, ogg or mp3; "
            f"convert it with `ffmpeg -i {shell_name} voice.wav`."
        ) from error
    samples = np.concatenate(mixed) if mixed else np.zeros(0, np.float32)
    if not len(samples):
        raise InputError(f"{name} is an audio file of length 0.")
    if not np.isfinite(samples).all():
        raise InputError(f"{name} has samples that are not finite; the file is damaged.")
    if mixed_power < _CANCELLED * power:
        raise InputError(
            f"The channels of {name} cancel each other out; keep one with "
            f"`ffmpeg -i {shell_name} -af 'pan=mono|c0=c0' voice.wav`."
        )
    if rate != sample_rate:
        samples = soxr.resample(samples, rate, sample_rate, quality="VHQ")
    return Audio(np.ascontiguousarray(samples, np.float32), sample_rate)


def _power(block: NDArray[np.float32]) -> float:
    """Power per channel of samples [n, channels], without their constant part."""
    with np.errstate(invalid="ignore", over="ignore"):  # NaN is rejected later
        return float(np.square(np.diff(block, axis=0), dtype=np.float64).mean(axis=1).sum())


class _Callbacks:
    """A file for libsndfile's callbacks, which must not raise: exceptions would be lost."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: BaseException | None = None

    def _call(self, name: str, argument: tuple[Any, ...], otherwise: int) -> Any:  # noqa: ANN401
        if self._error is None:
            try:
                return getattr(self._file, name)(*argument)
            except BaseException as error:  # an interrupt, too
                self._error = error
        return otherwise

    def readinto(self, buffer: memoryview) -> Any:  # noqa: ANN401
        return self._call("readinto", (buffer,), 0)

    def write(self, data: bytes) -> Any:  # noqa: ANN401
        return self._call("write", (data,), len(data))

    def seek(self, offset: int, whence: int = 0) -> Any:  # noqa: ANN401
        return self._call("seek", (offset, whence), 0)

    def tell(self) -> Any:  # noqa: ANN401
        return self._call("tell", (), 0)

    def check(self) -> None:
        """Raise the exception of a callback."""
        if self._error is not None:
            raise self._error


@contextmanager
def _sound_file(
    file: BinaryIO, *arguments: object, **options: object
) -> Iterator[tuple[Any, Callable[[], None]]]:
    """A `SoundFile` over an open file, and a function that raises the errors of its callbacks."""
    sound = require("soundfile", "Reading and writing audio files")
    guarded = _Callbacks(file)
    try:
        with sound.SoundFile(guarded, *arguments, **options) as opened:
            yield opened, guarded.check
    finally:
        guarded.check()


def _reason(error: Exception) -> str:
    """Libsndfile's words, without the name of a Python object."""
    return str(getattr(error, "error_string", error)).rstrip(".")


class AudioWriter:
    """Writes audio piece by piece to a wav, flac, ogg, mp3 or opus file, or to a stream.

    A file appears when it is complete, or not at all; memory does not grow with its length. If
    samples exceed full scale, it is made quieter as a whole, just enough. A stream (a pipe, a
    device, standard output) receives every piece at once, as wav of unknown length; there, a piece
    above full scale lowers the volume from then on. Nothing is clipped, and the result has the
    `gain`. Samples of wav and flac have 16 bits.

    The path is not touched before the first piece; `inputs` are never overwritten.
    """

    def __init__(self, path: Path, *, force: bool = False, inputs: Iterable[Path] = ()) -> None:
        self._path, self._force, self._inputs = path, force, tuple(inputs)
        self._kind, self._subtype = audio_format(path)
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
        """The result so far; None before the first piece."""
        if self._out is None:
            return None
        return WrittenAudio(self._path, self._n / self._rate, self._peak, self._gain)

    def add(self, audio: Audio) -> None:
        """Add a piece; all pieces have the same sample rate."""
        if self._out is None:
            self._begin(audio.sample_rate)
        if audio.sample_rate != self._rate:
            raise ValueError(f"a piece at {audio.sample_rate} Hz, after {self._rate} Hz")
        self._n += len(audio.samples)
        self._peak = max(self._peak, float(np.abs(audio.samples).max(initial=0.0)))
        if self._peak > 1:
            self._gain = 1.0 / self._peak
        if self._spool is not None:
            self._spool.write(audio.samples.astype("<f4").tobytes())
            return
        assert self._out is not None  # noqa: S101 - `_begin` opened it
        self._out.write(to_int16(audio.samples, self._gain).tobytes())
        self._out.flush()

    def _begin(self, rate: int) -> None:
        self._rate = rate
        if not is_stream(self._path):
            require("soundfile", "Writing audio files")
            out = self._open.enter_context(
                atomic_output(self._path, force=self._force, inputs=self._inputs)
            )
            self._spool = tempfile.TemporaryFile()  # noqa: SIM115 - of `_open`
            self._open.enter_context(self._spool)
        else:
            self._open.enter_context(explained_writes(self._path))
            out = self._open.enter_context(open_stream(self._path))
            self._start = _place(out)
            out.write(wav_header(rate, None))
        self._out = out

    def _finish(self, out: BinaryIO) -> None:
        if self._spool is None:
            if self._start is not None:
                # A file on standard output after all.
                os.pwrite(out.fileno(), wav_header(self._rate, 2 * self._n), self._start)
            return
        sound = require("soundfile", "Writing audio files")
        how = {"channels": 1, "format": self._kind, "subtype": self._subtype}
        self._spool.seek(0)
        try:
            with _sound_file(out, "w", self._rate, **how) as (file, check):
                while block := self._spool.read(4 * _BLOCK_FRAMES):
                    file.write(to_int16(np.frombuffer(block, "<f4"), self._gain))
                    check()
        except sound.SoundFileError as error:
            raise InputError(
                f"{self._path} cannot be written at {self._rate} Hz ({_reason(error)}); use .wav."
            ) from error


def to_int16(samples: Samples, gain: float) -> NDArray[np.int16]:
    """Samples as 16-bit integers, little endian."""
    scaled = np.rint(samples.astype(np.float64) * (gain * _INT16_FULL_SCALE))
    return scaled.astype("<i2")


def wav_header(rate: int, n_bytes: int | None) -> bytes:
    """The 44 bytes before the 16-bit samples of a wav file (IBM and Microsoft, 1991).

    `n_bytes` is the size of the samples; None if it is not known yet.
    """
    size = min(_UNKNOWN if n_bytes is None else n_bytes, _UNKNOWN)
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", min(36 + size, _UNKNOWN), b"WAVE"),
        *(b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16),
        *(b"data", size),
    )


def _place(out: BinaryIO) -> int | None:
    """The position in a file on standard output; None if it is not seekable."""
    import fcntl  # not available on Windows

    if not out.seekable() or fcntl.fcntl(out.fileno(), fcntl.F_GETFL) & os.O_APPEND:
        return None
    return out.tell()


def write_wav(path: Path, audio: Audio, *, force: bool = False) -> WrittenAudio:
    """Write a whole file; arguments and errors as `AudioWriter`."""
    with AudioWriter(path, force=force) as writer:
        writer.add(audio)
        written = writer.written
    assert written is not None  # noqa: S101 - something was added
    return written


def audio_format(path: Path) -> tuple[str, str]:
    """Format and subtype of an audio file by its suffix; wav for a pipe or a device.

    Raises:
        InputError: the suffix is unknown.
    """
    known = FORMATS.get(path.suffix.lower())
    if known is None and not is_stream(path):
        raise InputError(f"{path}: the name of an audio file must end in {', '.join(FORMATS)}.")
    return known or FORMATS[".wav"]
