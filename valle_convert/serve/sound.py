"""Speech in the client's format, each piece as soon as it is ready."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from valle_convert.audio import Audio
from valle_convert.audio.files import FORMATS, Samples, to_int16, wav_header
from valle_convert.extras import require


@dataclass(frozen=True)
class SoundFormat:
    media_type: str
    #: Its sample rates, the first one for other codecs; empty for any. OpenAI's pcm has 24 kHz.
    rates: tuple[int, ...] = ()


SOUND_FORMATS = {
    "mp3": SoundFormat(
        "audio/mpeg", (24_000, 8_000, 11_025, 12_000, 16_000, 22_050, 32_000, 44_100, 48_000)
    ),
    "wav": SoundFormat("audio/wav"),
    "flac": SoundFormat("audio/flac"),
    "opus": SoundFormat("audio/ogg", (48_000, 24_000, 16_000, 12_000, 8_000)),
    "pcm": SoundFormat("audio/pcm", (24_000,)),
}


class _Growing(io.BytesIO):
    """A file for libsndfile, whose bytes are taken as it grows.

    At the end libsndfile writes the length into the header. If the header was taken already, it
    stays unchanged: players do not need it for mp3 and opus.
    """

    n_taken = 0

    def take(self) -> bytes:
        taken = bytes(self.getbuffer()[self.n_taken :])
        self.n_taken += len(taken)
        return taken


class Encoder:
    """Pieces of sound to the bytes of one file.

    Nothing is clipped: a piece beyond full scale is made quieter together with all later ones.
    """

    def __init__(self, name: str, speed: float = 1.0) -> None:
        self._name, self._rates = name, SOUND_FORMATS[name].rates
        self._speed = speed
        self._out = _Growing()
        self._file: Any = None
        self._peak, self._began = 1.0, False

    def add(self, audio: Audio) -> bytes:
        """The bytes that are ready after a piece."""
        samples, rate = audio.samples, audio.sample_rate
        if self._speed != 1:
            samples = _stretched(samples, rate, self._speed)
        if self._rates and rate not in self._rates:
            soxr = require("soxr", "Resampling audio")
            samples = soxr.resample(samples, rate, self._rates[0], quality="VHQ")
            rate = self._rates[0]
        self._peak = max(self._peak, float(np.abs(samples).max(initial=0.0)))
        whole = to_int16(samples, 1 / self._peak)
        head = b"" if self._began else self._begin(rate)
        if self._file is None:
            return head + whole.tobytes()
        self._file.write(whole)
        # Many players of flac need the length in its header, so it is sent as a whole.
        return b"" if self._name == "flac" else self._out.take()

    def finish(self) -> bytes:
        if self._file is not None:
            self._file.close()
        return self._out.take()

    def _begin(self, rate: int) -> bytes:
        """The header of a format that libsndfile does not write."""
        self._began = True
        if self._name == "wav":
            return wav_header(rate, None)
        if self._name != "pcm":
            kind, subtype = FORMATS[f".{self._name}"]
            sound = require("soundfile", "Writing audio files")
            how: dict[str, Any] = {"channels": 1, "format": kind, "subtype": subtype}
            if self._name == "mp3":
                # With a constant rate, players know the length without the header.
                how |= {"bitrate_mode": "CONSTANT", "compression_level": 0.5}
            self._file = sound.SoundFile(self._out, "w", rate, **how)
        return b""


def _stretched(samples: Samples, rate: int, speed: float) -> Samples:
    stretch = require("python_stretch", "Another speed", extra="serve").Signalsmith.Stretch()
    stretch.preset(1, rate)
    stretch.timeFactor = speed
    changed: Samples = np.asarray(stretch.process(samples[None])[0], np.float32)
    return changed
