"""An evaluation's report as JSON, Markdown or HTML; the extension of its file selects the form.

The HTML page needs no other file: plots are SVG, sound and spectrograms are base64. It begins with
the recommended file and the verdict.
"""

import base64
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from valle_convert.audio.files import Audio
from valle_convert.errors import InputError
from valle_convert.extras import require
from valle_convert.files import write_text_atomically
from valle_convert.listening.measures import mel_bands
from valle_convert.quantize import tables
from valle_convert.quantize.measurements import Evaluated, TensorReport
from valle_convert.quantize.plots import plots, svg_of
from valle_convert.quantize.render import render
from valle_convert.quantize.report import EvaluationReport, nearness
from valle_convert.quantize.tables import BEYOND, WRONG
from valle_convert.strict_json import to_json_text

_BLOCK = re.compile(r"blk\.(?P<layer>\d+)\.(?P<kind>.+)")
#: From this signal-to-noise ratio in dB a cell is white; beyond this part of a loss its ink is.
_CLEAN, _DARK = 45.0, 0.5
#: Words of the tables that have a colour.
_MARKS = {
    WRONG: "bad",
    BEYOND: "bad",
    "very close": "near",
    "close": "near",
    "changed": "warn",
    "far": "bad",
}
_N_BANDS = 64
#: A pixel is a frame of 16 ms; shown twice as wide.
_ZOOM = 2
#: Vorbis' quality, from 0 (best) to 1.
_COMPRESSION = 0.4
_PEAK = 0.97


def to_markdown(report: EvaluationReport) -> str:
    return render("report.md.jinja", {"report": report, "tables": tables})


def to_html(report: EvaluationReport) -> str:
    return render("report.html.jinja", _page_values(report))


FORMS: dict[str, Callable[[EvaluationReport], str]] = {
    ".json": lambda report: to_json_text(report.to_json()) + "\n",
    ".md": to_markdown,
    ".html": to_html,
}


def check_reports(targets: Sequence[Path]) -> None:
    """Refuse a report of an unknown form, before an hour of work."""
    for target in targets:
        if target.suffix not in FORMS:
            raise InputError(
                f"The name of the report {target} must end in one of {', '.join(FORMS)}."
            )
        if target.suffix == ".html":
            require("matplotlib", "An HTML report", extra="report")


def write_report(report: EvaluationReport, target: Path, *, force: bool) -> None:
    write_text_atomically(target, FORMS[target.suffix](report), force=force)


def _page_values(report: EvaluationReport) -> dict[str, Any]:
    advice = report.advice()
    return {
        "report": report,
        "tables": tables,
        "advice": advice,
        "first_clips": _first_clips(report, advice.take),
        "verdict_class": _verdict_class(report),
        "plots": [(title, svg_of(figure)) for title, figure in plots(report)],
        "samples": _samples(report),
        "matrices": [(file, _map_of(file)) for file in report.measured if file.tensors],
        "marks": _MARKS,
        "shade": _shade,
        "spectrogram": spectrogram,
        "vorbis": vorbis,
    }


def _verdict_class(report: EvaluationReport) -> str:
    """Green only if every file is right and near the reference."""
    if not report.passed:
        return "verdict bad"
    near = [file.kl is not None and _MARKS[nearness(file.kl)[0]] == "near" for file in report.files]
    return "verdict" if all(near) else "verdict warn"


def _samples(report: EvaluationReport) -> Iterator[tuple[str, Audio, list[Any]]]:
    """By sentence: its name, the recording, and for each way of speaking the sound of each file."""
    listening = report.listening
    if listening is None:
        return
    heard = [(file.kind, file.speech.listened) for file in report.files if file.speech]
    clips = [(name, one.clips) for name, one in (("F16", listening.baseline), *heard) if one.clips]
    for n, recording in enumerate(listening.sounds):
        sounds = [
            (way, [(name, said[way][n]) for name, said in clips])
            for way in listening.baseline.clips
        ]
        yield listening.names[n], recording, sounds


def _first_clips(report: EvaluationReport, file: Evaluated | None) -> dict[str, Any] | None:
    """The first sentence by F16 and by a file, if both said something."""
    listening = report.listening
    if file is None or file.speech is None or listening is None or not listening.names:
        return None
    for way, said in file.speech.listened.clips.items():
        pair = listening.baseline.clips[way][0], said[0]
        if None not in pair:
            title = f"{listening.names[0]} ({way})"
            return {"title": title, "audios": list(zip(("F16", file.kind), pair, strict=True))}
    return None


def _map_of(file: Evaluated) -> dict[str, Any]:
    """Layers by kinds of matrices; others in rows of their own."""
    layers: dict[str, dict[str, TensorReport]] = {}
    others: list[tuple[str, TensorReport]] = []
    for one in file.tensors:
        part = f"{one.part}: " if one.part else ""
        block = _BLOCK.match(one.name)
        if block is None:
            others.append((part + one.name.removesuffix(".weight"), one))
        else:
            row = layers.setdefault(f"{part}layer {block['layer']}", {})
            row[block["kind"].removesuffix(".weight")] = one
    kinds = list(dict.fromkeys(kind for row in layers.values() for kind in row))
    return {"kinds": kinds, "others": others, "layers": list(layers.items())}


def _shade(snr_db: float | None) -> dict[str, str]:
    """From white to a dark blue; the text turns with it."""
    exact = snr_db is None or math.isinf(snr_db)
    lost = 0.0 if snr_db is None or exact else min(max((_CLEAN - snr_db) / _CLEAN, 0), 1)
    red, green, blue = (round(255 - lost * (255 - end)) for end in (23, 55, 94))
    return {
        "background": f"rgb({red}, {green}, {blue})",
        "ink": "#fff" if lost > _DARK else "#1a202c",
        "decibels": "" if exact else f" {snr_db:.0f}",
    }


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
    grays = (bands - low) / ((high - low) or 1.0) * 255
    picture = image.fromarray(grays.T[::-1].astype(np.uint8))
    picture.putpalette((colormaps["magma"](range(256))[:, :3] * 255).astype(np.uint8).tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="png", optimize=True)
    png = base64.b64encode(buffer.getvalue()).decode()
    return {"png": png, "width": _ZOOM * len(bands)}
