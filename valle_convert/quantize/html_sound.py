"""What files said, for a page: players with the sound in them, and spectrograms of it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator

import numpy as np

from valle_convert.audio.files import Audio
from valle_convert.extras import require
from valle_convert.listening.listen import Clip
from valle_convert.listening.measures import mel_bands
from valle_convert.quantize.report import EvaluationReport

_N_BANDS = 64
#: A pixel is a frame of 16 ms; shown twice as wide.
_ZOOM = 2
#: Vorbis' quality, from 0 (best) to 1.
_COMPRESSION = 0.4
_PEAK = 0.97

STYLE = """
.answer .said { padding: 0; }
details.sentence { border: 1px solid #e2e8f0; border-radius: .4rem; margin: .6rem 0; }
details.sentence > summary { padding: .5rem .8rem; cursor: pointer; font-weight: 600; }
.said { display: flex; flex-wrap: wrap; gap: .7rem; padding: 0 .8rem .8rem; }
.said h3 { flex-basis: 100%; font-size: .9rem; margin: .5rem 0 0; color: #4a5568; }
figure { margin: 0; width: 15rem; max-width: 100%; }
figure img { display: block; height: 96px; max-width: 100%; }
figure .frame { background: #000004; height: 96px; overflow: hidden; border-radius: .25rem; }
figcaption { font-size: .85rem; } audio { width: 100%; height: 2rem; }
.nothing { color: #cbd5e0; line-height: 96px; text-align: center; font-size: .85rem; }
"""


def players(report: EvaluationReport) -> Iterator[str]:
    """A block a sentence; in it, the recording, and way by way what each file said."""
    listening = report.listening
    if listening is None:
        return
    speakers = [("F16", listening.baseline.clips)]
    speakers += [(file.kind, file.listened.clips) for file in report.files if file.listened]
    ways = list(dict.fromkeys(clip.way for clip in listening.baseline.clips))
    for n, recording in enumerate(listening.sounds):
        parts = [f"<h3>recording</h3>{_figure('through the codec', recording)}"]
        for way in ways:
            parts.append(f"<h3>{html.escape(way)}</h3>")
            parts += [_figure(name, _of(clips, n, way)) for name, clips in speakers]
        yield (
            f'<details class="sentence"{" open" if n == 0 else ""}>'
            f"<summary>{html.escape(listening.names[n])}</summary>"
            f'<div class="said">{"".join(parts)}</div></details>'
        )


def first_clips(report: EvaluationReport, kind: str) -> str:
    """The first sentence by the F16 file and by one of a type, where both said something."""
    listening = report.listening
    said = [file.listened.clips for file in report.files if file.kind == kind and file.listened]
    if listening is None or not said or not listening.names:
        return ""
    for clip in listening.baseline.clips:
        other = _of(said[0], 0, clip.way)
        if clip.sentence == 0 and clip.audio is not None and other is not None:
            figures = _figure("F16", clip.audio) + _figure(kind, other)
            title = html.escape(f"{listening.names[0]} ({clip.way})")
            return f'<div class="said"><h3>{title}</h3>{figures}</div>'
    return ""


def _of(clips: tuple[Clip, ...], sentence: int, way: str) -> Audio | None:
    found = [clip.audio for clip in clips if (clip.sentence, clip.way) == (sentence, way)]
    return found[0] if found else None


def _figure(name: str, audio: Audio | None) -> str:
    caption = html.escape(name)
    if audio is None:
        return (
            f'<figure><div class="frame nothing">said nothing</div>'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    image, width = _spectrogram(audio)
    return (
        f'<figure><div class="frame"><img src="data:image/png;base64,{image}" width="{width}" '
        f'height="96" alt="spectrogram of {caption}, {audio.seconds:.2f} seconds"></div>'
        f"<figcaption>{caption}, {audio.seconds:.2f} s</figcaption>"
        f'<audio controls preload="metadata" src="data:audio/ogg;base64,{_vorbis(audio)}">'
        "</audio></figure>"
    )


def _vorbis(audio: Audio) -> str:
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


def _spectrogram(audio: Audio) -> tuple[str, int]:
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
    return base64.b64encode(buffer.getvalue()).decode(), _ZOOM * len(bands)
