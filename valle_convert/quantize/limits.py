"""How far a file of a type may be from the checkpoint, and where that comes from.

The defaults are measured: data/limits.json holds the worst of several random networks, as
scripts/measure_quantization.py wrote it, and a file may be `margin` times as far off. Random
networks are a hard case: many of their codes have nearly the same logit, which a trained
network's have not. Who has a trained checkpoint should set limits of their own.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from importlib import resources
from typing import Any

from valle_convert.errors import InputError
from valle_convert.quantize.quality import ALL, Measured
from valle_convert.quantize.types import FILE_TYPES, FileType


@dataclass(frozen=True)
class Limits:
    """What a file has to keep.

    Attributes:
        max_kl: mean divergence over all predictions, at most, in nats.
        min_agreement: part of the best codes that stay, at least.
        why: where the two come from.
    """

    max_kl: float
    min_agreement: float
    why: str

    def __post_init__(self) -> None:
        if not self.max_kl >= 0:
            raise InputError(f"--max-kl is {self.max_kl}, where a number from 0 on is expected.")
        if not 0 <= self.min_agreement <= 1:
            raise InputError(
                f"--min-agreement is {self.min_agreement}, where a part from 0 to 1 is expected."
            )


@dataclass(frozen=True)
class Verdict:
    """Whether a file keeps its limits; `failures` in words, the worst value by head named."""

    limits: Limits
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing is beyond its limit."""
        return not self.failures


def limits_for(
    kind: FileType, max_kl: float | None = None, min_agreement: float | None = None
) -> Limits | None:
    """The user's limits, and the measured ones of the type for what the user left open.

    None for a type that was never measured and for which the user gave no limit.

    Raises:
        InputError: a limit of the user's is none.
    """
    default = _measured_limits(kind)
    given = {"--max-kl": max_kl, "--min-agreement": min_agreement}
    why = [name for name, value in given.items() if value is not None]
    if default is None and not why:
        return None
    if default is not None and len(why) < len(given):
        why.append(default.why)
    # What is open, and was not measured, is not limited.
    open_kl, open_agreement = (
        (math.inf, 0.0) if default is None else (default.max_kl, default.min_agreement)
    )
    return Limits(
        max_kl=open_kl if max_kl is None else max_kl,
        min_agreement=open_agreement if min_agreement is None else min_agreement,
        why="; ".join(why),
    )


def _measured_limits(kind: FileType) -> Limits | None:
    table = _table()
    name = _measured_name(kind)
    row = table["types"].get(name)
    if row is None:
        return None
    margin = table["margin"]
    return Limits(
        max_kl=margin * row["kl_mean"],
        min_agreement=max(0.0, 1 - margin * (1 - row["best_code"])),
        why=f"{margin:g} times what {name} measured on random networks",
    )


def judge(measured: Measured, limits: Limits) -> Verdict:
    """Hold what was measured against the limits."""
    total = measured.quality[ALL]
    heads = {name: one for name, one in measured.quality.items() if name != ALL}
    failures: list[str] = []
    # Not-a-number is beyond every limit.
    if not total.kl_mean <= limits.max_kl:
        worst = max(heads, key=lambda name: heads[name].kl_mean)
        failures.append(
            f"KL mean {total.kl_mean:.2e}, allowed {limits.max_kl:.2e} (worst in {worst}: "
            f"{heads[worst].kl_mean:.2e})"
        )
    if not total.best_code >= limits.min_agreement:
        worst = min(heads, key=lambda name: heads[name].best_code)
        failures.append(
            f"best code kept in {total.best_code:.2%}, required {limits.min_agreement:.2%} "
            f"(worst in {worst}: {heads[worst].best_code:.2%})"
        )
    return Verdict(limits, tuple(failures))


def _measured_name(kind: FileType) -> str:
    """Aliases (Q4_K for Q4_K_M) share a number; the longest of their names was measured."""
    if kind.base is None:
        return "F32"
    same = [one.name for one in FILE_TYPES.values() if one.number == kind.number and one.base]
    return max(same, key=len)


@functools.cache
def _table() -> dict[str, Any]:
    path = resources.files("valle_convert.quantize") / "data" / "limits.json"
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return table
