"""Progress and result of `speak`, on stderr and as JSON; how Ctrl-C stops it."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from valle_convert.cli import console, interrupt
from valle_convert.progress import Advance
from valle_convert.wording import duration, plural

if TYPE_CHECKING:
    from valle_convert.audio import AudioWriter, WrittenAudio
    from valle_convert.speech.results import Piece, Spoken


@dataclass(frozen=True)
class SpeakReport:
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
        kept = [f"{written.path} ({written.seconds:.1f} s of audio)"] if written else []
        kept += [f"{codes} ({plural(len(spoken.codes), 'frame')})"] if codes else []
        interrupt.keep(*kept)
    console.notes(spoken.notices)
    if written is not None:
        _log_written(written)
    if codes is not None:
        frames, levels = plural(len(spoken.codes), "frame"), plural(spoken.n_levels, "level")
        console.log(f"wrote {codes}: {frames} of {levels}")
    factor = spoken.real_time_factor
    if math.isfinite(factor):
        whole = f"{factor:.2f} x real time in all; " if len(spoken.pieces) > 1 else ""
        console.log(f"{whole}seed {spoken.seed}")


def _log_written(written: WrittenAudio) -> None:
    console.log(f"wrote {written.path}: {written.seconds:.1f} s of audio")
    if written.gain < 1:
        quieter = -20 * math.log10(written.gain)
        console.log(f"note: made {quieter:.1f} dB quieter to avoid clipping")


def _to_json(report: SpeakReport) -> dict[str, Any]:
    audio, spoken, load = report.written, report.spoken, round(report.load_seconds, 4)
    written = {
        "file": str(audio.path) if audio else None,
        "seconds": round(audio.seconds, 4) if audio else None,
        "peak": audio.peak if audio else None,
        "gain": audio.gain if audio else None,
    }
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


@contextmanager
def stop_on_interrupt(keep: bool) -> Iterator[Callable[[], bool]]:
    """Yield `should_stop` for decoders; with `keep`, the first Ctrl-C makes it true.

    A second Ctrl-C aborts as usual.
    """
    stopped = False

    def restore() -> None:
        for one, handler in before.items():
            signal.signal(one, handler)

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal stopped
        del signum, frame
        stopped = True
        restore()
        # Not through a stream, which the signal may have interrupted in the middle of a line.
        os.write(2, b"stopping; press Ctrl-C again to abort\n")

    signals = (signal.SIGINT, signal.SIGTERM) if keep else ()
    before = {one: signal.getsignal(one) for one in signals}
    for one in signals:
        signal.signal(one, stop)
    try:
        yield lambda: stopped
    finally:
        restore()


class SpeechProgress:
    """A `progress.Progress` on stderr that also logs sentences and passes on their audio."""

    def __init__(self, frame_rate: float, sink: AudioWriter | None) -> None:
        self._frame_rate, self._sink = frame_rate, sink
        self._n_done, self._lengths = 0, [1]
        self._began = time.perf_counter()

    def begins(self, phonemes: Sequence[str]) -> None:
        """Log the number of sentences, after all of the text became phonemes."""
        self._lengths = [max(1, len(one)) for one in phonemes]
        self._began = time.perf_counter()
        if len(phonemes) > 1:
            console.log(f"speaking {len(phonemes)} sentences, {sum(map(len, phonemes))} phonemes")

    def __call__(self, label: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        return console.progress_bar(f"{self._name}, {label}", total, unit)

    @property
    def _name(self) -> str:
        n = len(self._lengths)
        return f"sentence {self._n_done + 1}" + (f" of {n}" if n > 1 else "")

    def finished(self, piece: Piece) -> None:
        if self._sink is not None and piece.audio is not None:
            self._sink.add(piece.audio)
        name = self._name
        self._n_done += 1
        frames, levels = piece.codes.shape
        seconds = frames / self._frame_rate
        factor = piece.seconds.total / seconds if seconds else math.inf
        rest = self._left() + (f": {piece.text[:60]}" if piece.text else "")
        console.log(
            f"{name}: {plural(frames, 'frame')}, {plural(levels, 'level')}, {seconds:.1f} s of "
            f"audio, {factor:.2f} x real time ({piece.mode}, {piece.language}){rest}"
        )

    def _left(self) -> str:
        """Estimate of the time left, by phonemes."""
        rest = sum(self._lengths[self._n_done :])
        if not rest:
            return ""
        took = time.perf_counter() - self._began
        return f", {duration(took * rest / sum(self._lengths[: self._n_done]))} left"
