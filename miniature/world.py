"""A small codec of WORLD parameters in a residual vector quantizer, as an `AudioCodec`.

A frame is voicing, log pitch, the aperiodicity of a few bands, and a coded spectral envelope
(M. Morise et al., WORLD, 2016), scaled; its codes are the nearest entries of one codebook after
the other, each of what the ones before have left. It is what the miniature speaks: a file of some
hundred kilobytes, made by `python -m miniature.fit_codec`, that sounds of a vocoder and keeps the
words.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle_convert.audio.codec import register_codec
from valle_convert.audio.files import Audio
from valle_convert.checkpoint.safetensors_file import SafetensorsFile
from valle_convert.errors import InputError
from valle_convert.extras import require
from valle_convert.files import atomic_output, first_bytes
from valle_convert.model.spec import Codec, Codes

Floats = NDArray[np.float32]

#: Its name in files, and of the metadata entry that holds the settings.
WORLD_NAME = "world-rvq"
#: Pitch is looked for between these, in hertz: WORLD's own range.
_F0_FLOOR, _F0_CEIL = 71.0, 800.0
#: Below this, a decoded frame has no pitch: voicing is 0 or 1 before it is quantized.
_VOICED = 0.5


@dataclass(frozen=True)
class WorldSettings:
    """Parameters of the analysis."""

    sample_rate: int = 24_000
    frame_period: float = 25.0  # milliseconds
    n_envelope: int = 32  # coefficients of the coded spectral envelope

    @property
    def n_fft(self) -> int:
        found: int = _world().get_cheaptrick_fft_size(self.sample_rate, _F0_FLOOR)
        return found


def analyse(samples: Floats, settings: WorldSettings) -> Floats:
    """Samples to frames [frames, 2 + bands + n_envelope]: voicing, log pitch, bands, envelope.

    The log pitch of a frame without one is 0; there is a frame for every begun period.
    """
    world = _world()
    sound = np.ascontiguousarray(samples, np.float64)
    rate = settings.sample_rate
    rough, times = world.dio(sound, rate, _F0_FLOOR, _F0_CEIL, frame_period=settings.frame_period)
    pitch = world.stonemask(sound, rough, times, rate)
    envelope = world.cheaptrick(sound, pitch, times, rate)
    aperiodicity = world.d4c(sound, pitch, times, rate)
    voiced = pitch > 0
    log_pitch = np.where(voiced, np.log(np.where(voiced, pitch, 1.0)), 0.0)
    frames: Floats = np.column_stack(
        [
            voiced,
            log_pitch,
            world.code_aperiodicity(aperiodicity, rate),
            world.code_spectral_envelope(envelope, rate, settings.n_envelope),
        ]
    ).astype(np.float32)
    return frames


def synthesize(frames: Floats, settings: WorldSettings) -> Floats:
    """Synthesize samples from the frames of `analyse`."""
    world = _world()
    rate, n_fft = settings.sample_rate, settings.n_fft
    values = np.ascontiguousarray(frames, np.float64)
    voiced = values[:, 0] > _VOICED
    low, high = np.log(_F0_FLOOR), np.log(_F0_CEIL)
    pitch = np.where(voiced, np.exp(np.clip(values[:, 1], low, high)), 0.0)
    bands = np.ascontiguousarray(np.minimum(values[:, 2 : -settings.n_envelope], 0.0))
    envelope = np.ascontiguousarray(values[:, -settings.n_envelope :])
    samples: Floats = world.synthesize(
        pitch,
        world.decode_spectral_envelope(envelope, rate, n_fft),
        world.decode_aperiodicity(bands, rate, n_fft),
        rate,
        settings.frame_period,
    ).astype(np.float32)
    return samples


def nearest_codes(vectors: Floats, codebooks: Floats) -> Codes:
    """Quantize vectors [frames, d] to codes [frames, levels]."""
    left = vectors
    codes = np.empty((len(vectors), len(codebooks)), np.int32)
    for level, book in enumerate(codebooks):
        distance = (book**2).sum(1)[None] - 2 * left @ book.T
        codes[:, level] = distance.argmin(1)
        left = left - book[codes[:, level]]
    return codes


class WorldCodec:
    """An `AudioCodec` in a `.safetensors` file, with its settings in the metadata.

    The tensors are `codebooks` [levels, size, d], `mean` [d] and `scale` [d].
    """

    def __init__(self, source: str | Path) -> None:
        _world()
        tensors, self.settings = _read(Path(source))
        self.codebooks, self.mean, self.scale = (
            tensors[name] for name in ("codebooks", "mean", "scale")
        )
        self.n_levels, self.codebook_size, _ = self.codebooks.shape
        rate = self.settings.sample_rate
        self.description = Codec(WORLD_NAME, rate, 1000 / self.settings.frame_period)

    def encode(self, audio: Audio) -> Codes:
        """Audio of the codec's rate to codes, [frames, levels]."""
        if audio.sample_rate != self.settings.sample_rate:
            raise ValueError(f"{audio.sample_rate} Hz, not {self.settings.sample_rate}")
        frames = analyse(audio.samples, self.settings)
        return nearest_codes(self.scaled(frames), self.codebooks)

    def scaled(self, frames: Floats) -> Floats:
        """Scale the frames of `analyse` for quantization; unvoiced frames get the mean pitch."""
        values = np.where(frames[:, :1] > _VOICED, frames, _with_pitch(frames, self.mean[1]))
        result: Floats = ((values - self.mean) * self.scale).astype(np.float32)
        return result

    def frames(self, codes: Codes) -> Floats:
        """Decode codes [frames, levels or fewer] to the frames of `analyse`."""
        if codes.size and (codes.min() < 0 or codes.max() >= self.codebook_size):
            raise ValueError(f"codes from {codes.min()} to {codes.max()} of {self.codebook_size}")
        if codes.shape[1] > self.n_levels:
            raise ValueError(f"codes of {codes.shape[1]} levels, and the codec has {self.n_levels}")
        total = np.zeros((len(codes), self.codebooks.shape[2]), np.float32)
        for level in range(codes.shape[1]):
            total += self.codebooks[level, codes[:, level]]
        result: Floats = total / self.scale + self.mean
        return result

    def decode(self, codes: Codes) -> Audio:
        """Codes [frames, levels or fewer] to audio; fewer levels sound rougher."""
        if not len(codes):
            return Audio(np.zeros(0, np.float32), self.settings.sample_rate)
        return Audio(synthesize(self.frames(codes), self.settings), self.settings.sample_rate)


def is_world_codec(source: str | Path) -> bool:
    """Whether a file is such a codec, by its first bytes."""
    path = Path(source)
    return path.is_file() and f'"{WORLD_NAME}"'.encode() in first_bytes(path)


def write_world_codec(
    path: Path, codebooks: Floats, mean: Floats, scale: Floats, settings: WorldSettings
) -> None:
    """Write a file for `WorldCodec`; the same values give the same bytes."""
    from safetensors.numpy import save

    content = save(
        {"codebooks": codebooks, "mean": mean, "scale": scale},
        metadata={WORLD_NAME: json.dumps(asdict(settings))},
    )
    with atomic_output(path, force=True) as file:
        file.write(content)


def _with_pitch(frames: Floats, log_pitch: np.floating) -> Floats:
    changed = frames.copy()
    changed[:, 1] = log_pitch
    return changed


def _read(path: Path) -> tuple[dict[str, Floats], WorldSettings]:
    file = SafetensorsFile(path)
    try:
        tensors = {name: np.array(file.read(name), np.float32) for name in file.specs}
        settings = WorldSettings(**json.loads(file.metadata[WORLD_NAME]))
        books = tensors["codebooks"]
        n_bands = books.shape[-1] - 2 - settings.n_envelope
        fits = (
            books.ndim == 3
            and n_bands > 0
            and tensors["mean"].shape == tensors["scale"].shape == books.shape[2:]
            and all(np.isfinite(tensor).all() for tensor in tensors.values())
            and bool((tensors["scale"] > 0).all())
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as a {WORLD_NAME} codec ({error}); make it with "
            "`python -m miniature.fit_codec`."
        ) from error
    if not fits:
        raise InputError(
            f"{path} is damaged: the shapes or values of its tensors are not those of a "
            f"{WORLD_NAME} codec; make it with `python -m miniature.fit_codec`."
        )
    return tensors, settings


def _world() -> Any:  # noqa: ANN401 - the package has no types
    with warnings.catch_warnings():
        # It imports pkg_resources for its version, and setuptools warns of that.
        warnings.simplefilter("ignore")
        return require("pyworld", "The miniature's codec", extra="miniature")


register_codec(WORLD_NAME, is_world_codec, WorldCodec)
