"""The loss that a user allows, and whether a file exceeds it.

There are no default limits, since the acceptable loss depends on the model. Limits are numbers, for
all types or by type, or the report of an earlier run. `verify` answers another question: whether a
file is right at all.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from valle_convert.errors import InputError
from valle_convert.files import valid_utf8
from valle_convert.listening.listen import NLL, RETRIEVAL, WORDS, Listened, Measure
from valle_convert.quantize.listening import FileSpeech
from valle_convert.quantize.manifest import read_struct
from valle_convert.quantize.quality import ALL, Measured, Quality
from valle_convert.quantize.types import file_type

#: Divergence in nats below which two runs differ by rounding alone: another processor adds up in
#: another order. F16 files measured 4e-7.
KL_FLOOR = 1e-6
MARGIN = 1.1
#: By name: what is allowed, and what was found. max_nll is the negative log likelihood of the
#: held-out codes minus that of F16; min_retrieval is the retrieval accuracy.
_WORDS = {
    "max_kl": ("mean KL at most {:.2e}", "KL mean {:.2e}, allowed {:.2e}"),
    "min_agreement": ("top-1 agreement at least {:.1%}", "top-1 {:.2%}, required {:.2%}"),
    "max_nll": ("NLL at most {:+.4f} nats/code to F16", "NLL {:+.4f} nats/code, allowed {:+.4f}"),
    "min_retrieval": ("retrieval at least {:.1%}", "retrieval {:.1%}, required {:.1%}"),
    "max_wer": ("WER at most {:.1%}", "word error rate {:.1%}, allowed {:.1%}"),
}
_ON_PREDICTIONS = {"max_kl", "min_agreement"}
#: These are parts of 1.
_PARTS = ("min_agreement", "min_retrieval")


@dataclass(frozen=True)
class Limits:
    """The limits of a file by name; `why` says where they come from."""

    why: str
    given: dict[str, float]

    def __str__(self) -> str:
        said = [_WORDS[name][0].format(value) for name, value in self.given.items()]
        return f"{', '.join(said)} ({self.why})"

    def is_open(self, measured: Measured | None, speech: FileSpeech | None) -> bool:
        """Whether a limit is on something that was not measured."""
        return any(not (measured if one in _ON_PREDICTIONS else speech) for one in self.given)

    def failures(self, measured: Measured | None, speech: FileSpeech | None) -> tuple[str, ...]:
        """Which limits a file exceeds; not-a-number exceeds every limit."""
        found: dict[str, float] = {}
        if measured is not None:
            total = measured.quality[ALL]
            found |= {"max_kl": total.kl_mean, "min_agreement": total.best_code}
        if speech is not None:
            listened = speech.listened
            found["max_nll"] = _mean(listened, NLL) - _mean(speech.listening.baseline, NLL)
            found["min_retrieval"] = _mean(listened, RETRIEVAL)
            found["max_wer"] = _mean(listened, WORDS)
        given = {name: limit for name, limit in self.given.items() if name in found}
        if math.isnan(found.get("max_kl", 0)):
            given.setdefault("max_kl", math.inf)
        return tuple(
            _WORDS[name][1].format(found[name], limit) + _worst_head(measured, name)
            for name, limit in given.items()
            if not (found[name] <= limit if name.startswith("max") else found[name] >= limit)
        )


def _worst_head(measured: Measured | None, name: str) -> str:
    if measured is None or name not in _ON_PREDICTIONS:
        return ""
    pick, key, form = (max, "kl_mean", ".2e") if name == "max_kl" else (min, "best_code", ".2%")
    heads = {head: getattr(one, key) for head, one in measured.quality.items() if head != ALL}
    worst = pick(heads, key=heads.__getitem__)
    return f" (worst in {worst}: {heads[worst]:{form}})"


class _EarlierFile(msgspec.Struct, frozen=True):
    type: str
    quality: dict[str, Quality] | None


class Earlier(msgspec.Struct, frozen=True):
    """The JSON report of an earlier run, as far as it limits this one; `name` is its file's."""

    source: str
    checkpoint: dict[str, str] | None
    sequences: str
    files: tuple[_EarlierFile, ...]
    name: str = ""

    @property
    def quality(self) -> dict[str, Quality]:
        """Over all predictions, by type."""
        return {one.type: one.quality[ALL] for one in self.files if one.quality is not None}


@dataclass(frozen=True)
class Gates:
    """All limits of a run; `limits_of` gives the `Limits` of the files of a type."""

    #: By name, then by type; the empty type stands for all others.
    limits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    earlier: Earlier | None = None  # a run that must not be better
    #: The factor by which divergence and changed codes may exceed those of `earlier`.
    margin: float = MARGIN

    def limits_of(self, kind: str) -> Limits | None:
        """The strictest limits of a type; None if there are none."""
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
        return Limits("; ".join(why), given) if why else None

    def check(
        self,
        types: Collection[str],
        source: str,
        checkpoint: Mapping[str, str] | None,
        sequences: str,
    ) -> None:
        """Refuse limits of types that are not evaluated, and a run of other files or data."""
        for name, values in self.limits.items():
            idle = sorted(values.keys() - {*types, ""})
            if idle:
                raise InputError(
                    f"{_option(name)} limits {', '.join(idle)}; the files have the types "
                    f"{', '.join(sorted(types))}."
                )
        earlier = self.earlier
        if earlier is None:
            return
        if new := sorted({*types} - earlier.quality.keys()):
            raise InputError(
                f"{earlier.name} has no measurements of {', '.join(new)}. Measure these files "
                "without --no-worse-than."
            )
        was = _identity(earlier.source, earlier.checkpoint)
        now = _identity(source, checkpoint)
        if was != now:
            raise InputError(
                f"{earlier.name} compares with {was:.40}, and this run with {now:.40}. Give a "
                "report of the same model."
            )
        if earlier.sequences != sequences:
            raise InputError(
                f"{earlier.name} was measured over {earlier.sequences}, and this run over "
                f"{sequences}; give the same --data and --utterances."
            )


def gates_of(
    texts: Mapping[str, Sequence[str] | None], no_worse_than: Path | None, margin: float
) -> Gates:
    """The limits as a user wrote them, by name."""
    limits = {name: parse_limits(",".join(given), name) for name, given in texts.items() if given}
    earlier = None if no_worse_than is None else read_earlier(no_worse_than)
    return Gates(limits, earlier, margin)


def parse_limits(text: str, limit: str) -> dict[str, float]:
    """A list such as `1e-2` or `Q8_0=1e-3,Q4_K_M=1e-2`, by type; "" for a number without one."""
    values: dict[str, float] = {}
    option, is_part = _option(limit), limit in _PARTS
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, number = part.rpartition("=")
        kind = file_type(name).name if equals else ""
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not (0 <= value <= (1 if is_part else math.inf) and math.isfinite(value)):
            expected = "0 to 1, such as 0.97" if is_part else "0 up, such as 0.01"
            example = "Q8_0=0.99,Q4_K_M=0.95" if is_part else "Q8_0=0.001,Q4_K_M=0.01"
            raise InputError(
                f"{option} is {part}; expected a number from {expected}, or a list: {example}."
            )
        if kind in values:
            raise InputError(f"{option} has two limits for {kind or 'all types'}.")
        values[kind] = value
    if not values:
        raise InputError(f"{option} is empty; give a number.")
    return values


def read_earlier(path: Path) -> Earlier:
    report = read_struct(path, "report", Earlier)
    measured = [one.quality for one in report.files if one.quality is not None]
    if not measured or any(ALL not in one for one in measured):
        raise InputError(f"{path} has no file whose quality was measured.")
    return msgspec.structs.replace(report, name=valid_utf8(path.name))


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _mean(listened: Listened, measure: Measure) -> float:
    tally = listened.total(measure)
    return math.nan if tally is None else tally.mean


def _identity(source: str, checkpoint: Mapping[str, str] | None) -> str:
    """What files are compared with: a checkpoint by its digest, else a file by its name."""
    return f"sha256 {checkpoint['sha256']}" if checkpoint and "sha256" in checkpoint else source
