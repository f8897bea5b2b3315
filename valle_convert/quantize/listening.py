"""The speech of quantized files compared with that of the F16 file: differences and noise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from valle_convert.audio.files import Audio
from valle_convert.listening.listen import (
    DISTANCE,
    EVERYWHERE,
    MEASURES,
    NLL,
    PHONEMES,
    RETRIEVAL,
    WORDS,
    Listened,
    Measure,
)
from valle_convert.listening.measures import Estimate, Tally

Files = Sequence[tuple[str, Listened]]
#: A header, and rows of cells.
Table = tuple[list[str], list[list[str]]]
#: Nothing random is in these.
_STEADY = (NLL, PHONEMES)
#: What is said is judged by these, over all ways of speaking.
_SAID = (RETRIEVAL, DISTANCE, WORDS)


@dataclass(frozen=True, eq=False)
class Listening:
    """What the files of a run are compared with."""

    baseline: Listened  # what was measured of the F16 file
    repeat: Listened  # the same once more, with another seed and another number of threads
    repeat_how: str
    recordings: Listened | None  # what the recognizer hears in the recordings; None without one
    recogniser: str | None
    references: str
    codec: str
    names: tuple[str, ...]  # of the sentences: the texts, if they are known
    sounds: tuple[Audio, ...] = ()
    n_texts: int = 0  # the number of different sentences

    def noise(self, measure: Measure) -> float:
        """How far the F16 file is from itself with another seed and other threads."""
        one, other = self.baseline.total(measure), self.repeat.total(measure)
        return abs(one.mean - other.mean) if one and other else 0.0

    def beyond_noise(self, file: Listened) -> tuple[str, ...]:
        """How a file is worse than F16 beyond chance, in words.

        NLL and PER, which involve no random draws, may be worse by one standard error of the F16
        file's over sentences (L. Breiman et al., 1984). For the other measures, the interval of the
        difference must not begin above the difference of two F16 runs.
        """
        found: list[str] = []
        for measure in (*_STEADY, *_SAID):
            mine, base = file.total(measure), self.baseline.total(measure)
            if mine is None or base is None:
                continue
            sign = -1 if measure.is_better_high else 1
            difference = mine.minus(base)
            if measure in _STEADY:
                allowed, least = base.estimate().error, difference.mean
            else:
                allowed = self.noise(measure)
                least = min(sign * difference.low, sign * difference.high)
            if not sign * difference.mean <= 0 and not least <= allowed:
                found.append(
                    f"{measure.title} {mine.mean:.3f}, F16 {base.mean:.3f} (worse by "
                    f"{least:.3f}{'' if measure in _STEADY else ' at least'}, noise {allowed:.3f})"
                )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        return {
            "sentences": list(self.names),
            "references": self.references,
            "codec": self.codec,
            "recogniser": self.recogniser,
            "recordings": None if self.recordings is None else listened_to_json(self.recordings),
            "baseline": listened_to_json(self.baseline),
            "repeat": listened_to_json(self.repeat, self.baseline),
            "repeat_how": self.repeat_how,
        }


def listened_to_json(listened: Listened, base: Listened | None = None) -> dict[str, Any]:
    """By measure and place: mean and interval, and the difference to another file's."""
    found: dict[str, Any] = {}
    for measure, places in listened.tallies.items():
        for place, tally in places.items():
            entry: dict[str, Any] = _interval(tally.estimate())
            other = base.tallies.get(measure, {}).get(place) if base else None
            entry["difference"] = _interval(tally.minus(other)) if other else None
            found.setdefault(measure, {})[place] = entry
    return found


def _interval(estimate: Estimate) -> dict[str, float]:
    return {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}


def means_of(files: Files, base: Listened | None = None) -> Table:
    """One row per file, one column per measure: the mean, or its difference from `base`."""
    measures = [one for one in MEASURES.values() if any(file.total(one) for _, file in files)]
    titles = (f"{one.title}, {one.unit}" if one.unit else one.title for one in measures)

    def cell(mine: Tally | None, its: Tally | None) -> str:
        if mine is None or (base is not None and its is None):
            return ""
        return in_words(mine.minus(its), "+") if its else in_words(mine.estimate())

    rows = [
        [name, *(cell(file.total(one), base.total(one) if base else None) for one in measures)]
        for name, file in files
        if file is not base
    ]
    return ["file", *titles], rows


def places_of(measure: Measure, files: Files) -> Table:
    """One measure with its interval, a row a file, a column a head or way of speaking."""
    places = list(dict.fromkeys(place for _, file in files for place in file.places(measure)))
    places.sort(key=lambda one: one == EVERYWHERE)
    rows = []
    for name, file in files:
        tallies = [file.tallies.get(measure.name, {}).get(place) for place in places]
        rows.append([name, *(in_words(one.estimate()) if one else "" for one in tallies)])
    return ["file", *places], rows


def in_words(estimate: Estimate, sign: str = "") -> str:
    """`3.221 (3.115 to 3.331)`."""
    return f"{estimate.mean:{sign}.3f} ({estimate.low:{sign}.3f} to {estimate.high:{sign}.3f})"


def pareto_front(points: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """The points (size, loss) that no other is both smaller and better than."""
    best = float("inf")
    for size, loss in sorted(points):
        if loss < best:
            best = loss
            yield size, loss
