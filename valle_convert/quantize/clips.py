"""Sound inside an HTML page: compressed audio and its spectrogram, in base64."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from valle_convert.audio.files import Audio
from valle_convert.extras import require
from valle_convert.listening.measures import mel_bands

_N_BANDS = 64
#: A pixel is a frame of 16 ms; shown twice as wide.
_ZOOM = 2
#: Vorbis' quality, from 0 (best) to 1.
_COMPRESSION = 0.4
_PEAK = 0.97


def vorbis(audio: Audio) -> str:
    sound = require("soundfile", "Sound in a report")
    peak = float(np.abs(audio.samples).max(initial=0.0))
    samples = audio.samples * min(1.0, _PEAK / peak) if peak > 0 else audio.samples
    buffer = io.BytesIO()
    sound.write(
        buffer,
        samples,
        audio.sample_rate,
        format="OGG",
        subtype="VORBIS",
        compression_level=_COMPRESSION,
    )
    return base64.b64encode(buffer.getvalue()).decode()


def spectrogram(audio: Audio) -> dict[str, Any]:
    """A PNG of the mel bands, low ones below, and how wide to show it."""
    from matplotlib import colormaps

    image = require("PIL.Image", "A spectrogram", extra="report")
    bands = mel_bands(audio, _N_BANDS)
    low, high = float(bands.min()), float(bands.max())
    levels = (bands - low) / ((high - low) or 1.0) * 255
    picture = image.fromarray(levels.T[::-1].astype(np.uint8))
    picture.putpalette((colormaps["magma"](range(256))[:, :3] * 255).astype(np.uint8).tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="png", optimize=True)
    png = base64.b64encode(buffer.getvalue()).decode()
    return {"png": png, "width": _ZOOM * len(bands)}
