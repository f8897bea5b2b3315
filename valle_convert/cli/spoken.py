"""The result of `speak`, on stderr and as JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valle_convert.cli import console, interrupt
from valle_convert.wording import plural

if TYPE_CHECKING:
    from valle_convert.audio import WrittenAudio
    from valle_convert.speech.results import Spoken


@dataclass(frozen=True)
class Report:
    """What `speak` wrote; `spoken` is None if saved codes were only decoded."""

    written: WrittenAudio | None
    load_seconds: float
    spoken: Spoken | None = None
    codes: Path | None = None
    codec_seconds: float = 0.0

    @property
    def is_whole(self) -> bool:
        return self.spoken is None or self.spoken.is_whole

    def show(self, *, as_json: bool) -> None:
        if as_json:
            console.data_json(_to_json(self))
        if self.spoken is not None:
            _log(self.spoken, self.written, self.codes)
        elif self.written is not None:
            _log_written(self.written)


def _log(spoken: Spoken, written: WrittenAudio | None, codes: Path | None) -> None:
    if not spoken.is_whole:
        _note_kept(spoken, written, codes)
    console.notes(spoken.notices)
    if written is not None:
        _log_written(written)
    if codes is not None:
        frames, levels = plural(len(spoken.codes), "frame"), plural(spoken.n_levels, "level")
        console.log(f"wrote {codes}: {frames} of {levels}")
    factor = spoken.real_time_factor
    if math.isfinite(factor):
        console.log(f"{factor:.2f} s of computing per second of audio; seed {spoken.seed}")


def _note_kept(spoken: Spoken, written: WrittenAudio | None, codes: Path | None) -> None:
    """Note what an interrupted run wrote, for the last line of the program."""
    kept = []
    if written is not None:
        kept.append(f"{written.path} ({written.seconds:.1f} s of audio)")
    if codes is not None:
        kept.append(f"{codes} ({plural(len(spoken.codes), 'frame')})")
    interrupt.keep(*kept)


def _log_written(written: WrittenAudio) -> None:
    console.log(f"wrote {written.path}: {written.seconds:.1f} s of audio")
    if written.gain < 1:
        quieter = -20 * math.log10(written.gain)
        console.log(f"note: made {quieter:.1f} dB quieter to avoid clipping")


def _to_json(report: Report) -> dict[str, Any]:
    written, spoken = _written_json(report.written), report.spoken
    load = round(report.load_seconds, 4)
    if spoken is None:
        return {**written, "timings": {"load": load, "codec": round(report.codec_seconds, 4)}}
    factor = spoken.real_time_factor
    return {
        **written,
        "codes": None if report.codes is None else str(report.codes),
        "interrupted": not spoken.is_whole,
        "seed": spoken.seed,
        "real_time_factor": round(factor, 4) if math.isfinite(factor) else None,
        "timings": {"load": load, **_timings(spoken.seconds)},
        "notices": list(spoken.notices),
        "sentences": [
            {
                "text": piece.text,
                "phonemes": piece.phonemes,
                "language": piece.language,
                "mode": piece.mode,
                "end": piece.end,
                "frames": piece.codes.shape[0],
                "levels": piece.codes.shape[1],
                "timings": _timings(piece.seconds),
            }
            for piece in spoken.pieces
        ],
    }


def _timings(seconds: object) -> dict[str, float]:
    return {stage: round(value, 4) for stage, value in vars(seconds).items()}


def _written_json(written: WrittenAudio | None) -> dict[str, Any]:
    return {
        "file": str(written.path) if written else None,
        "seconds": round(written.seconds, 4) if written else None,
        "peak": written.peak if written else None,
        "gain": written.gain if written else None,
    }
