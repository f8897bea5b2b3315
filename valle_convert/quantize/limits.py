"""What a user allows a file to lose, and whether it keeps that.

Nothing is allowed or forbidden by default: what is bearable depends on the model. Limits are
given by number, for all types or by type, and by the report of an earlier run. Whether a file
is right at all (its weights those of the checkpoint, its logits those of its weights) is
another question, which `verify` answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from valle_convert.errors import InputError
from valle_convert.files import read_json_object, valid_utf8
from valle_convert.listening.listen import NLL, RETRIEVAL, WORDS, Listened, Measure
from valle_convert.quantize.quality import ALL, Measured
from valle_convert.quantize.types import FileType, file_type

#: Divergence in nats below which two runs differ by rounding alone: another processor adds up in
#: another order. F16 files measured 4e-7.
KL_FLOOR = 1e-6
MARGIN = 1.1
_MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class Limits:
    """What a file has to keep.

    Attributes:
        max_kl: mean divergence over all predictions, at most, in nats; infinite for no limit.
        min_agreement: part of the best codes that stay, at least; 0 for no limit.
        max_nll: how much less likely the held-out codes may be than to the F16 file, at most, in
            nats a code; infinite for no limit.
        min_retrieval: part of the sentences that are said right, at least; 0 for no limit.
        max_wer: word error rate, at most; infinite for no limit.
    """

    max_kl: float
    min_agreement: float
    why: str
    max_nll: float = math.inf
    min_retrieval: float = 0.0
    max_wer: float = math.inf

    def __str__(self) -> str:
        words = {
            f"may have a mean KL of {self.max_kl:.2e}": self.max_kl < math.inf,
            f"has to keep {self.min_agreement:.1%} of the best codes": self.min_agreement > 0,
            f"may be worse than F16 by {self.max_nll:.4f} nats a code": self.max_nll < math.inf,
            f"has to say {self.min_retrieval:.1%} right": self.min_retrieval > 0,
            f"may have a word error rate of {self.max_wer:.1%}": self.max_wer < math.inf,
        }
        return f"{' and '.join(word for word, given in words.items() if given)} ({self.why})"

    @property
    def on_speech(self) -> bool:
        """Whether anything of it is measured by listening."""
        return self.max_nll < math.inf or self.min_retrieval > 0 or self.max_wer < math.inf

    @property
    def on_predictions(self) -> bool:
        """Whether anything of it is measured on predictions."""
        return self.max_kl < math.inf or self.min_agreement > 0

    def failures_of_speech(self, file: Listened, base: Listened) -> tuple[str, ...]:
        """The same for what was said, beside what the F16 file says."""
        found: list[str] = []
        nll = _mean(file, NLL) - _mean(base, NLL)
        retrieval, wer = _mean(file, RETRIEVAL), _mean(file, WORDS)
        if self.max_nll < math.inf and not nll <= self.max_nll:
            found.append(f"NLL {nll:+.4f} nats a code to F16, allowed {self.max_nll:+.4f}")
        if self.min_retrieval > 0 and not retrieval >= self.min_retrieval:
            found.append(f"said right in {retrieval:.1%}, required {self.min_retrieval:.1%}")
        if self.max_wer < math.inf and not wer <= self.max_wer:
            found.append(f"word error rate {wer:.1%}, allowed {self.max_wer:.1%}")
        return tuple(found)

    def failures(self, measured: Measured) -> tuple[str, ...]:
        """What is beyond a limit, in words, with the worst head; not-a-number always is."""
        total = measured.quality[ALL]
        heads = {name: one for name, one in measured.quality.items() if name != ALL}
        found: list[str] = []
        if not total.kl_mean <= self.max_kl:
            worst = max(heads, key=lambda name: heads[name].kl_mean)
            found.append(
                f"KL mean {total.kl_mean:.2e}, allowed {self.max_kl:.2e} (worst in {worst}: "
                f"{heads[worst].kl_mean:.2e})"
            )
        if not total.best_code >= self.min_agreement:
            worst = min(heads, key=lambda name: heads[name].best_code)
            found.append(
                f"best code kept in {total.best_code:.2%}, required {self.min_agreement:.2%} "
                f"(worst in {worst}: {heads[worst].best_code:.2%})"
            )
        return tuple(found)


@dataclass(frozen=True)
class Earlier:
    """What an earlier run measured, from its JSON report.

    Attributes:
        utterances: what it was measured on, in words.
        quality: over all predictions, by type: mean divergence, part of best codes, predictions.
    """

    name: str
    utterances: str
    quality: Mapping[str, tuple[float, float, int]]


@dataclass(frozen=True)
class Gates:
    """Everything that the user limits.

    Attributes:
        max_kl, min_agreement: by type; the empty name stands for all others.
        earlier: a run that must not have been better.
        margin: by what factor divergence and changed codes may exceed those of `earlier`.
        max_nll, min_retrieval, max_wer: as the first two, of what is said.
    """

    max_kl: Mapping[str, float]
    min_agreement: Mapping[str, float]
    earlier: Earlier | None = None
    margin: float = MARGIN
    max_nll: Mapping[str, float] = field(default_factory=dict)
    min_retrieval: Mapping[str, float] = field(default_factory=dict)
    max_wer: Mapping[str, float] = field(default_factory=dict)

    @property
    def by_option(self) -> dict[str, Mapping[str, float]]:
        return {
            "--max-kl": self.max_kl,
            "--min-agreement": self.min_agreement,
            "--max-nll": self.max_nll,
            "--min-retrieval": self.min_retrieval,
            "--max-wer": self.max_wer,
        }

    def limits_of(self, kind: FileType) -> Limits | None:
        """What holds for a type: the strictest of all; None where nothing does."""
        given = {
            option: values.get(kind.name, values.get("", math.nan))
            for option, values in self.by_option.items()
            if kind.name in values or "" in values
        }
        why = list(given)
        max_kl = given.get("--max-kl", math.inf)
        min_agreement = given.get("--min-agreement", 0.0)
        if self.earlier is not None and kind.name in self.earlier.quality:
            kl_mean, best_code, n_rows = self.earlier.quality[kind.name]
            max_kl = min(max_kl, max(self.margin * kl_mean, KL_FLOOR))
            # One prediction more may change: a code between two that are nearly equal.
            changed = self.margin * (1 - best_code) + 1 / n_rows
            min_agreement = max(min_agreement, 1 - changed)
            why.append(f"no worse than {self.earlier.name} by a factor of {self.margin:g}")
        if not why:
            return None
        return Limits(
            max_kl,
            min_agreement,
            "; ".join(why),
            given.get("--max-nll", math.inf),
            given.get("--min-retrieval", 0.0),
            given.get("--max-wer", math.inf),
        )

    def check_types(self, kinds: Sequence[FileType]) -> None:
        """Refuse limits of types that are not made, which would limit nothing."""
        made = {kind.name for kind in kinds}
        for option, values in self.by_option.items():
            idle = sorted(values.keys() - made - {""})
            if idle:
                raise InputError(
                    f"{option} has a limit for {', '.join(idle)}, which is not among the types "
                    f"asked for: {', '.join(sorted(made))}."
                )
        if self.earlier is not None and (new := sorted(made - self.earlier.quality.keys())):
            raise InputError(
                f"{self.earlier.name} has not measured {', '.join(new)}, so that there is nothing "
                "to be no worse than; leave out these types, or measure them in a run without "
                "--no-worse-than first."
            )

    def check_utterances(self, utterances: str) -> None:
        """Refuse an earlier run that was measured on something else."""
        if self.earlier is not None and self.earlier.utterances != utterances:
            raise InputError(
                f"{self.earlier.name} was measured over {self.earlier.utterances}, and this run "
                f"over {utterances}; give the same --data, --utterances and --seed."
            )


def parse_limits(text: str | None, option: str, highest: float = math.inf) -> dict[str, float]:
    """A list such as `1e-2` or `Q8_0=1e-3,Q4_K_M=1e-2`, by type; "" for a number without one."""
    values: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in (text or "").split(","))):
        name, equals, number = part.rpartition("=")
        kind = file_type(name).name if equals else ""
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not 0 <= value <= highest:
            expected = "from 0 on" if highest == math.inf else f"from 0 to {highest:g}"
            raise InputError(
                f"{option} is {part}, where a number {expected} is expected, or a list such as "
                "Q8_0=0.001,Q4_K_M=0.01."
            )
        if kind in values:
            raise InputError(f"{option} has two limits for {kind or 'all types'}; give one.")
        values[kind] = value
    if text is not None and not values:
        raise InputError(f"{option} is empty; give a number.")
    return values


def read_earlier(path: Path) -> Earlier:
    """What the JSON report of an earlier run measured."""
    value = read_json_object(path, "report", _MAX_BYTES)
    try:
        quality = {
            str(file["type"]): _total(file["quality"][ALL])
            for file in value["files"]
            if file["quality"] is not None
        }
        utterances = str(value["sequences"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{path} is no report of `quantize` ({error!r:.100}); give the .json file that a run "
            "wrote with --report."
        ) from error
    if not quality:
        raise InputError(f"{path} has no file whose quality was measured.")
    return Earlier(valid_utf8(path.name), utterances, quality)


def _mean(listened: Listened, measure: Measure) -> float:
    tally = listened.total(measure)
    return math.nan if tally is None else tally.mean


def _total(entry: Mapping[str, Any]) -> tuple[float, float, int]:
    kl_mean, best_code = float(entry["kl_mean"]), float(entry["best_code"])
    n_rows = int(entry["n_rows"])
    if not (kl_mean >= 0 and 0 <= best_code <= 1 and n_rows > 0):
        raise ValueError("a value is out of its range")
    return kl_mean, best_code, n_rows
