"""What quantized files say, beside what the F16 file says: differences, noise, a recommendation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from valle_convert.audio.files import Audio
from valle_convert.listening.listen import (
    DISTANCE,
    EVERYWHERE,
    MEASURES,
    NLL,
    RETRIEVAL,
    WORDS,
    Listened,
    Measure,
)
from valle_convert.listening.measures import Estimate

#: What is said is judged by these, over all ways of speaking.
_SAID = (RETRIEVAL, DISTANCE, WORDS)


@dataclass(frozen=True, eq=False)
class Listening:
    """What the files of a run are held against.

    Attributes:
        baseline: what was measured of the F16 file.
        repeat: the same once more, with another seed and another number of threads.
        repeat_how: which.
        recordings: what the recogniser hears in the recordings; None without one.
        recogniser: its command.
        references: what the recordings are, in words.
        codec: its name.
        names: of the sentences: the texts, where they are known.
        sounds: of the first recordings.
    """

    baseline: Listened
    repeat: Listened
    repeat_how: str
    recordings: Listened | None
    recogniser: str | None
    references: str
    codec: str
    names: tuple[str, ...]
    sounds: tuple[Audio, ...] = ()

    def noise(self, measure: Measure) -> float:
        """How far the F16 file is from itself with another seed and other threads."""
        one, other = self.baseline.total(measure), self.repeat.total(measure)
        return abs(one.mean - other.mean) if one and other else 0.0

    def beyond_noise(self, file: Listened) -> tuple[str, ...]:
        """In what a file is worse than F16, beyond what chance explains; in words.

        The codes' likelihood, which nothing random is in, may be worse by one standard error of
        the F16 file's over sentences (L. Breiman et al., 1984). What is said must not be worse
        with an interval of the difference that begins above what the F16 file shows against
        itself.
        """
        found: list[str] = []
        for measure in (NLL, *_SAID):
            mine, base = file.total(measure), self.baseline.total(measure)
            if mine is None or base is None:
                continue
            sign = -1 if measure.is_better_high else 1
            difference = mine.minus(base)
            if measure is NLL:
                allowed, least = base.estimate().error, difference.mean
            else:
                allowed = self.noise(measure)
                least = min(sign * difference.low, sign * difference.high)
            if not sign * difference.mean <= 0 and not least <= allowed:
                found.append(
                    f"{measure.title} {mine.mean:.3f}, F16 {base.mean:.3f} (worse by "
                    f"{least:.3f}{'' if measure is NLL else ' at least'}, noise {allowed:.3f})"
                )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
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
    for (measure, place), tally in listened.tallies.items():
        entry: dict[str, Any] = _interval(tally.estimate())
        other = base.tallies.get((measure, place)) if base else None
        entry["difference"] = _interval(tally.minus(other)) if other else None
        found.setdefault(measure, {})[place] = entry
    return found


def _interval(estimate: Estimate) -> dict[str, float]:
    return {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}


def table_of(
    files: Sequence[tuple[str, Listened]], base: Listened | None
) -> tuple[list[str], list[list[str]]]:
    """Mean and interval of each measure over all places, a row a file; then the difference."""
    measures = [one for one in MEASURES.values() if any(file.total(one) for _, file in files)]
    header = ["file"]
    for one in measures:
        header += [f"{one.title}, {one.unit}" if one.unit else one.title, "difference"]
    rows = []
    for name, file in files:
        row = [name]
        for one in measures:
            tally, other = file.total(one), base.total(one) if base else None
            row.append(in_words(tally.estimate()) if tally else "")
            compared = tally is not other
            row.append(in_words(tally.minus(other), "+") if tally and other and compared else "")
        rows.append(row)
    return header, rows


def places_of(
    measure: Measure, files: Sequence[tuple[str, Listened]]
) -> tuple[list[str], list[list[str]]]:
    """One measure with its interval, a row a head or way of speaking, a column a file."""
    places = list(dict.fromkeys(place for _, file in files for place in file.places(measure)))
    rows = []
    for place in sorted(places, key=lambda one: one == EVERYWHERE):
        tallies = [file.tallies.get((measure.name, place)) for _, file in files]
        rows.append([place, *(in_words(one.estimate()) if one else "" for one in tallies)])
    return [measure.title, *(name for name, _ in files)], rows


def in_words(estimate: Estimate, sign: str = "") -> str:
    """`3.221 (3.115 to 3.331)`."""
    return f"{estimate.mean:{sign}.3f} ({estimate.low:{sign}.3f} to {estimate.high:{sign}.3f})"


def smallest_within(listening: Listening, files: Sequence[tuple[str, int, Listened]]) -> str | None:
    """The type of the smallest of some files (type, bytes, what was measured) within the noise."""
    fine = [(size, kind) for kind, size, one in files if not listening.beyond_noise(one)]
    return min(fine)[1] if fine else None


def pareto_front(files: Mapping[str, tuple[int, float]]) -> Iterator[str]:
    """Of files by name (bytes, loss), those that none is both smaller and better than."""
    best = float("inf")
    for name, (_, loss) in sorted(files.items(), key=lambda item: item[1]):
        if loss < best:
            best = loss
            yield name
