"""What a user allows a file to lose, and whether it keeps that.

Nothing is allowed or forbidden by default: what is bearable depends on the model. Limits are
given by number, for all types or by type, and by the report of an earlier run. Whether a file
is right at all (its weights those of the checkpoint, its logits those of its weights) is
another question, which `verify` answers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec

from valle_convert.errors import InputError
from valle_convert.files import valid_utf8
from valle_convert.listening.listen import NLL, RETRIEVAL, WORDS, Listened, Measure
from valle_convert.quantize.manifest import read_struct
from valle_convert.quantize.quality import ALL, Measured, Quality
from valle_convert.quantize.types import file_type

#: Divergence in nats below which two runs differ by rounding alone: another processor adds up in
#: another order. F16 files measured 4e-7.
KL_FLOOR = 1e-6
MARGIN = 1.1
#: These are parts of 1.
_PARTS = ("min_agreement", "min_retrieval")


@dataclass(frozen=True)
class Limits:
    """What a file has to keep; None where nothing is limited.

    Attributes:
        max_kl: mean divergence over all predictions, at most, in nats.
        min_agreement: part of the best codes that stay, at least.
        max_nll: how much less likely the held-out codes may be than to the F16 file, at most, in
            nats a code.
        min_retrieval: part of the sentences that are said right, at least.
        max_wer: word error rate, at most.
    """

    why: str
    max_kl: float | None = None
    min_agreement: float | None = None
    max_nll: float | None = None
    min_retrieval: float | None = None
    max_wer: float | None = None

    @property
    def given(self) -> dict[str, float]:
        """The limits by name."""
        return {name: x for name, x in asdict(self).items() if name != "why" and x is not None}

    def __str__(self) -> str:
        words = {
            "max_kl": "may have a mean KL of {:.2e}",
            "min_agreement": "has to keep {:.1%} of the best codes",
            "max_nll": "may be worse than F16 by {:.4f} nats a code",
            "min_retrieval": "has to say {:.1%} right",
            "max_wer": "may have a word error rate of {:.1%}",
        }
        said = [words[name].format(value) for name, value in self.given.items()]
        return f"{' and '.join(said)} ({self.why})"

    @property
    def on_speech(self) -> bool:
        """Whether anything of it is measured by listening."""
        return bool(self.given.keys() & {"max_nll", "min_retrieval", "max_wer"})

    @property
    def on_predictions(self) -> bool:
        """Whether anything of it is measured on predictions."""
        return bool(self.given.keys() & {"max_kl", "min_agreement"})

    def failures_of_speech(self, file: Listened, base: Listened) -> tuple[str, ...]:
        """What is beyond a limit in what was said, beside what the F16 file says."""
        found: list[str] = []
        nll = _mean(file, NLL) - _mean(base, NLL)
        retrieval, wer = _mean(file, RETRIEVAL), _mean(file, WORDS)
        if self.max_nll is not None and not nll <= self.max_nll:
            found.append(f"NLL {nll:+.4f} nats a code to F16, allowed {self.max_nll:+.4f}")
        if self.min_retrieval is not None and not retrieval >= self.min_retrieval:
            found.append(f"said right in {retrieval:.1%}, required {self.min_retrieval:.1%}")
        if self.max_wer is not None and not wer <= self.max_wer:
            found.append(f"word error rate {wer:.1%}, allowed {self.max_wer:.1%}")
        return tuple(found)

    def failures(self, measured: Measured) -> tuple[str, ...]:
        """What is beyond a limit, in words, with the worst head; not-a-number always is."""
        total = measured.quality[ALL]
        heads = {name: one for name, one in measured.quality.items() if name != ALL}
        found: list[str] = []
        if not total.kl_mean <= (math.inf if self.max_kl is None else self.max_kl):
            worst = max(heads, key=lambda name: heads[name].kl_mean)
            allowed = "a number" if self.max_kl is None else f"{self.max_kl:.2e}"
            found.append(
                f"KL mean {total.kl_mean:.2e}, allowed {allowed} (worst in {worst}: "
                f"{heads[worst].kl_mean:.2e})"
            )
        if self.min_agreement is not None and not total.best_code >= self.min_agreement:
            worst = min(heads, key=lambda name: heads[name].best_code)
            found.append(
                f"best code kept in {total.best_code:.2%}, required {self.min_agreement:.2%} "
                f"(worst in {worst}: {heads[worst].best_code:.2%})"
            )
        return tuple(found)


class _EarlierFile(msgspec.Struct, frozen=True):
    type: str
    quality: dict[str, Quality] | None


class _EarlierReport(msgspec.Struct, frozen=True):
    sequences: str
    files: tuple[_EarlierFile, ...]


@dataclass(frozen=True)
class Earlier:
    """What an earlier run measured, from its JSON report.

    Attributes:
        utterances: what it was measured on, in words.
        quality: over all predictions, by type.
    """

    name: str
    utterances: str
    quality: Mapping[str, Quality]


@dataclass(frozen=True)
class Gates:
    """Everything that the user limits.

    Attributes:
        limits: by the names of `Limits`, then by type; the empty name stands for all others.
        earlier: a run that must not have been better.
        margin: by what factor divergence and changed codes may exceed those of `earlier`.
    """

    limits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    earlier: Earlier | None = None
    margin: float = MARGIN

    def limits_of(self, kind: str) -> Limits | None:
        """What holds for a type: the strictest of all; None where nothing does."""
        given = {
            name: values.get(kind, values.get("", math.nan))
            for name, values in self.limits.items()
            if kind in values or "" in values
        }
        why = [_option(name) for name in given]
        if self.earlier is not None and kind in self.earlier.quality:
            was = self.earlier.quality[kind]
            kl = max(self.margin * was.kl_mean, KL_FLOOR)
            # One prediction more may change: a code between two that are nearly equal.
            kept = 1 - self.margin * (1 - was.best_code) - 1 / was.n_rows
            given["max_kl"] = min(given.get("max_kl", math.inf), kl)
            given["min_agreement"] = max(given.get("min_agreement", 0.0), kept)
            why.append(f"no worse than {self.earlier.name} by a factor of {self.margin:g}")
        return Limits("; ".join(why), **given) if why else None

    def check_types(self, there: Collection[str]) -> None:
        """Refuse limits of types that are not evaluated, which would limit nothing."""
        for name, values in self.limits.items():
            idle = sorted(values.keys() - {*there, ""})
            if idle:
                raise InputError(
                    f"{_option(name)} has a limit for {', '.join(idle)}, which is not among the "
                    f"types that are evaluated: {', '.join(sorted(there))}."
                )
        if self.earlier is not None and (new := sorted({*there} - self.earlier.quality.keys())):
            raise InputError(
                f"{self.earlier.name} has not measured {', '.join(new)}, so there is nothing to "
                "compare with; leave these files out, or measure them without --no-worse-than."
            )

    def check_utterances(self, utterances: str) -> None:
        """Refuse an earlier run that was measured on something else."""
        if self.earlier is not None and self.earlier.utterances != utterances:
            raise InputError(
                f"{self.earlier.name} was measured over {self.earlier.utterances}, and this run "
                f"over {utterances}; give the same --data, --utterances and --seed."
            )


def gates_of(texts: Mapping[str, str | None], no_worse_than: Path | None, margin: float) -> Gates:
    """The limits as a user wrote them, by the names of `Limits`."""
    limits = {
        name: parse_limits(text, _option(name), 1.0 if name in _PARTS else math.inf)
        for name, text in texts.items()
        if text is not None
    }
    earlier = None if no_worse_than is None else read_earlier(no_worse_than)
    return Gates(limits, earlier, margin)


def parse_limits(text: str, option: str, highest: float = math.inf) -> dict[str, float]:
    """A list such as `1e-2` or `Q8_0=1e-3,Q4_K_M=1e-2`, by type; "" for a number without one."""
    values: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, number = part.rpartition("=")
        kind = file_type(name).name if equals else ""
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not (0 <= value <= highest and math.isfinite(value)):
            expected = "from 0 on" if highest == math.inf else f"from 0 to {highest:g}"
            raise InputError(
                f"{option} is {part}, where a number {expected} is expected, or a list such as "
                "Q8_0=0.001,Q4_K_M=0.01."
            )
        if kind in values:
            raise InputError(f"{option} has two limits for {kind or 'all types'}; give one.")
        values[kind] = value
    if not values:
        raise InputError(f"{option} is empty; give a number.")
    return values


def read_earlier(path: Path) -> Earlier:
    """What the JSON report of an earlier run measured."""
    report = read_struct(path, "report", _EarlierReport)
    try:
        quality = {one.type: one.quality[ALL] for one in report.files if one.quality is not None}
    except KeyError as error:
        raise InputError(f"{path} is not a report of this program: {error} is missing.") from error
    if not quality:
        raise InputError(f"{path} has no file whose quality was measured.")
    return Earlier(valid_utf8(path.name), report.sequences, quality)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _mean(listened: Listened, measure: Measure) -> float:
    tally = listened.total(measure)
    return math.nan if tally is None else tally.mean
