"""Audio files: any that libsndfile reads, to mono float32; and wav files, never clipped.

A file is read in blocks and mixed at once, so that memory holds one channel of it. All
channels count alike. Resampling is soxr's at its highest quality.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from valle_convert.errors import InputError
from valle_convert.extras import require
from valle_convert.files import atomic_output, check_input_file, is_stream, os_fault

Samples = NDArray[np.float32]
SampleFormat = Literal["int16", "float32"]

#: Rates outside of these are no sound, but damaged headers; a rate of 1 Hz would be 24,000 times
#: as long at 24 kHz.
_RATES = range(1_000, 1_000_001)
#: What sound is written as, by the name of the file.
FORMATS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG"}
_BLOCK_FRAMES = 1 << 16
_INT16_FULL_SCALE = 32767


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


def write_wav(
    path: Path,
    audio: Audio,
    *,
    force: bool = False,
    sample_format: SampleFormat = "int16",
    sources: Iterable[Path] = (),
) -> WrittenAudio:
    """Write a wav, flac or ogg file, by its name, or leave nothing.

    16-bit samples cannot go beyond full scale. Audio that does is made quieter as a whole, just
    as far as needed, and the result says so (`gain`); nothing is ever clipped. float32 files keep
    every sample as it is.

    Args:
        path: of the file.
        audio: what to write.
        force: whether a file that exists may be replaced.
        sample_format: how samples are stored.
        sources: files that must not be overwritten, whatever `force` says.

    Raises:
        InputError, EnvironmentFault: as `files.atomic_output`; soundfile is not installed.
    """
    kind = audio_format(path, sample_format)
    peak = float(np.abs(audio.samples).max(initial=0.0))
    with atomic_output(path, force=force, sources=sources) as file:
        gain = _write_samples(file, audio, sample_format, peak, kind)
    return WrittenAudio(path, audio.seconds, peak, gain)


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


def _write_samples(
    file: BinaryIO, audio: Audio, sample_format: SampleFormat, peak: float, kind: str
) -> float:
    sound = require("soundfile", "Writing audio files")
    if sample_format == "float32":
        sound.write(file, audio.samples, audio.sample_rate, format="WAV", subtype="FLOAT")
        return 1.0
    gain = min(1.0, 1.0 / peak) if peak > 0 else 1.0
    scaled = np.rint(audio.samples.astype(np.float64) * (gain * _INT16_FULL_SCALE))
    subtype = "VORBIS" if kind == "OGG" else "PCM_16"
    sound.write(file, scaled.astype(np.int16), audio.sample_rate, format=kind, subtype=subtype)
    return gain
