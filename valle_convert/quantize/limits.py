"""What a user allows a file to lose, and whether it keeps that.

Nothing is allowed or forbidden by default: what is bearable depends on the model. Limits are
given by number, for all types or by type, and by the report of an earlier run. Whether a file
is right at all (its weights those of the checkpoint, its logits those of its weights) is
another question, which `verify` answers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valle_convert.errors import InputError
from valle_convert.files import os_fault, valid_utf8
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
        why: where the two come from.
    """

    max_kl: float
    min_agreement: float
    why: str

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
        name: of the report.
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
    """

    max_kl: Mapping[str, float]
    min_agreement: Mapping[str, float]
    earlier: Earlier | None = None
    margin: float = MARGIN

    def limits_of(self, kind: FileType) -> Limits | None:
        """What holds for a type: the strictest of all; None where nothing does."""
        max_kl, min_agreement, why = math.inf, 0.0, []
        for option, values in (("--max-kl", self.max_kl), ("--min-agreement", self.min_agreement)):
            value = values.get(kind.name, values.get(""))
            if value is not None:
                why.append(option)
                if values is self.max_kl:
                    max_kl = value
                else:
                    min_agreement = value
        if self.earlier is not None and kind.name in self.earlier.quality:
            kl_mean, best_code, n_rows = self.earlier.quality[kind.name]
            max_kl = min(max_kl, max(self.margin * kl_mean, KL_FLOOR))
            # One prediction more may change: a code between two that are nearly equal.
            changed = self.margin * (1 - best_code) + 1 / n_rows
            min_agreement = max(min_agreement, 1 - changed)
            why.append(f"no worse than {self.earlier.name} by a factor of {self.margin:g}")
        return Limits(max_kl, min_agreement, "; ".join(why)) if why else None

    def check_types(self, kinds: Sequence[FileType]) -> None:
        """Refuse limits of types that are not made, which would limit nothing.

        Raises:
            InputError: there are such, or the earlier run has not measured a type.
        """
        made = {kind.name for kind in kinds}
        for option, values in (("--max-kl", self.max_kl), ("--min-agreement", self.min_agreement)):
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
        """Refuse an earlier run that was measured on something else.

        Raises:
            InputError: it was.
        """
        if self.earlier is not None and self.earlier.utterances != utterances:
            raise InputError(
                f"{self.earlier.name} was measured over {self.earlier.utterances}, and this run "
                f"over {utterances}; give the same --data, --utterances and --seed."
            )


def parse_limits(text: str | None, option: str, highest: float = math.inf) -> dict[str, float]:
    """A list such as `1e-2` or `Q8_0=1e-3,Q4_K_M=1e-2`, by type; "" for a number without one.

    Raises:
        InputError: a part is no number from 0 to `highest`, a type is none, or one comes twice.
    """
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
    """What the JSON report of an earlier run measured.

    Raises:
        InputError: it is no such report, or has measured nothing.
        EnvironmentFault: it cannot be read by this user.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path} is larger than any report of this program.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise os_fault(f"The report {path} cannot be read", error) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no valid JSON: {error}.") from error
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


def _total(entry: Mapping[str, Any]) -> tuple[float, float, int]:
    kl_mean, best_code = float(entry["kl_mean"]), float(entry["best_code"])
    n_rows = int(entry["n_rows"])
    if not (kl_mean >= 0 and 0 <= best_code <= 1 and n_rows > 0):
        raise ValueError("a value is out of its range")
    return kl_mean, best_code, n_rows
