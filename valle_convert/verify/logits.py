"""Does llama.cpp compute the file's weights correctly, for every head and task?

Both networks get the same seeded utterance: llama.cpp reads the file, and the PyTorch reference
reads the file's own weights through the plan of its checkpoint. So the loss of the number format,
which the level `tensors` judges, is on both sides, and the remaining error is small enough to show
a wrong activation in a 4-bit file. `deviation` defines the limits.

The logits may differ from the checkpoint's by the expected cost of the file's number formats,
rounding or noise, measured on the same network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from statistics import median
from typing import Any, TypeVar

import numpy as np

from valle_convert.checkpoint.source import NamedTensors
from valle_convert.families.bundle import Bundle, Plan
from valle_convert.metrics import Logits, kl_divergence, nmse
from valle_convert.network.arithmetic import EXACT, Arithmetic
from valle_convert.network.protocol import Computing
from valle_convert.network.weights import (
    BundleTensors,
    ConvertedTensors,
    KeptTensors,
    RoundedTensors,
)
from valle_convert.verify.deviation import NOISE_FACTOR, Deviation, deviation_of
from valle_convert.verify.report import Check
from valle_convert.verify.structure import pairs_of

#: To the checkpoint, as a multiple of the number format's expected cost: measured 1.3 at most, if
#: there are more than a few logits.
COST_FACTOR = 4.0
#: The expected cost of so few logits, such as those of `len`, varies with the noise drawn: 0.24 in
#: a Q2_0 file where 0.98 was measured, and other heads cost 0.8.
_FEW_LOGITS = 64
_TOO_LARGE = (
    "the inputs of a layer exceed the range that llama.cpp rounds them to for this type; convert "
    "with --outtype bf16 or f32"
)
#: An utterance of half the usual length shows the same damages in half the time.
LENGTH = 0.5
#: The references, and llama.cpp.
N_NETWORKS = 5

K = TypeVar("K")


@dataclass(frozen=True)
class Judged:
    deviation: Deviation | None
    cost: float  # the NMSE to the checkpoint
    cost_allowed: float  # the most that the file's types may cost
    problem: str = ""  # why nothing could be compared, or ""

    @property
    def passed(self) -> bool:
        return self.deviation is not None and self.deviation.passed and self.badness <= 1.0

    @property
    def badness(self) -> float:
        """The error relative to the limits; 1 is at the limit."""
        if self.deviation is None:
            return math.inf
        return max(self.deviation.badness, self.cost / self.cost_allowed)

    @property
    def words(self) -> str:
        if self.deviation is None:
            return self.problem
        return f"NMSE {self.deviation.nmse:.1e}, to the checkpoint {self.cost:.1e}"

    @property
    def limit(self) -> str:
        """The limits in words, with their origin."""
        if self.deviation is None:
            return ""
        return (
            f"NMSE {self.deviation.allowed:.1e}, {NOISE_FACTOR:g} times what llama.cpp's rounding "
            f"costs on this network; to the checkpoint {self.cost_allowed:.1e}, "
            f"{COST_FACTOR:g} times what the number format should cost, and the rounding"
        )


@dataclass(frozen=True)
class References:
    """What the PyTorch references compute, [rows, columns]."""

    exact: Logits  # with the files' weights, in float32
    emulated: Logits  # with the files' weights, rounding as llama.cpp does
    meant: Logits  # with the checkpoint's weights, in float32
    degraded: Logits  # the same, with the expected noise of the file's types

    @cached_property
    def cost(self) -> float:
        """What the file's types should cost, as an NMSE."""
        return nmse(self.meant, self.degraded)

    def judge(self, found: Logits, usual_cost: float = 0.0) -> Judged:
        """Judge the same numbers by llama.cpp; `usual_cost` is the least for few logits."""
        if self.exact.shape != found.shape:
            words = f"llama.cpp gives {list(found.shape)} numbers, not {list(self.exact.shape)}"
            return Judged(None, math.inf, 0.0, words)
        for numbers, words in (
            (self.exact, "the weights themselves give NaN or infinity: a weight is far too large"),
            (self.emulated, _TOO_LARGE),
            (found, "llama.cpp gives NaN or infinity"),
            (self.meant, "the checkpoint's weights give NaN or infinity"),
            (self.degraded, "the checkpoint's weights, rounded, give NaN or infinity"),
        ):
            if not np.isfinite(numbers).all():
                return Judged(None, math.inf, 0.0, words)
        result = deviation_of(self.exact, self.emulated, found)
        expected = self.cost if self.exact.size > _FEW_LOGITS else max(self.cost, usual_cost)
        allowed = COST_FACTOR * expected + result.allowed
        return Judged(result, nmse(self.meant, found), allowed)


def reference_numbers(
    plan: Plan,
    bundle: Bundle,
    adapters: Sequence[Any],
    run: Callable[[Computing], Mapping[K, Logits]],
    *,
    is_rounded: bool = False,
) -> dict[K, References]:
    """What `run` gives for each PyTorch network; only one of them is in memory at a time.

    `is_rounded`: the files are known to hold the checkpoint's weights, exactly rounded. Then the
    error of `exact` is the cost of the number formats. For families that fold, folded values are
    computed again from the checkpoint, so that wrong ones show.
    """
    files = [(planned, file) for _, planned, file in pairs_of(plan, bundle)]
    recovered = plan.description.recovered

    def numbers(
        tensors: NamedTensors, arithmetic: Arithmetic = EXACT, *, folded: bool = True
    ) -> Mapping[K, Logits]:
        return run(
            plan.family.reference(
                tensors, plan.description, arithmetic=arithmetic, adapters=adapters, folded=folded
            )
        )

    stored = KeptTensors(BundleTensors(files, recovered, ConvertedTensors))
    exact = numbers(stored)
    emulated = numbers(stored, plan.family.arithmetic(bundle))
    del stored
    meant = numbers(plan.description.tensors, folded=False)
    if is_rounded and not plan.family.folds:
        degraded = exact
    else:
        noisy = BundleTensors(files, recovered, RoundedTensors, plan.description.tensors)
        degraded = numbers(noisy, folded=False)
    return {key: References(exact[key], emulated[key], meant[key], degraded[key]) for key in exact}


class Yardstick:
    """The logits of a correct file for every case, [predictions, rows of the head]."""

    def __init__(
        self,
        plan: Plan,
        bundle: Bundle,
        *,
        seed: int,
        adapters: Sequence[Any] = (),
        is_rounded: bool = False,
        advance: Callable[[int], object] = lambda _n: None,
    ) -> None:
        self._trials = plan.family.trials
        (self._example,) = self._trials.utterances(plan.model, 1, seed=seed, length=LENGTH)
        self._advance = advance
        self.numbers = reference_numbers(
            plan, bundle, adapters, partial(self.run, repeat=False), is_rounded=is_rounded
        )

    def run(self, network: Computing, *, repeat: bool = True) -> dict[str, Logits]:
        """The logits of every case; a file's network composes its inputs by its own keys.

        Without `repeat`, what a case repeats is not computed again.
        """
        found: dict[str, Logits] = {}
        for case in self._trials.cases(network.model, self._example):
            is_known = case.rows and not repeat
            found[case.name] = (
                found[case.repeats][list(case.rows)] if is_known else case.run(network)
            )
            self._advance(1)
        return found


def check_logits(yardstick: Yardstick, network: Computing) -> Iterator[Check]:
    """One check for each head and task."""
    found = yardstick.run(network)
    usual = median(one.cost for one in yardstick.numbers.values())
    for name, numbers in yardstick.numbers.items():
        label, logits = f"logits {name}", found.get(name)
        if logits is None:
            yield Check.failure(label, "the file lacks this head or task")
            continue
        judged = numbers.judge(logits, usual)
        result = judged.deviation
        if result is None:
            yield Check.failure(label, judged.problem)
            continue
        divergence = float(kl_divergence(numbers.meant, logits).mean())
        changed = round((1 - result.best_code) * result.n_rows)
        ties = f", {changed} of {result.n_rows} best codes changed" if changed else ""
        if changed and not result.decided:
            ties += " (all of them ties)"
        yield Check(
            label,
            passed=judged.passed,
            summary=f"NMSE {result.nmse:.1e} (one prediction {result.worst_row:.1e}, one code "
            f"{result.worst_code:.1e}){ties}; to the checkpoint NMSE {judged.cost:.1e}, "
            f"KL {divergence:.1e}",
            values={
                **asdict(result),
                "nmse_to_checkpoint": judged.cost,
                "nmse_to_checkpoint_allowed": judged.cost_allowed,
                "kl_to_checkpoint": divergence,
            },
            limit=f"{judged.limit}; for one prediction or code {result.allowed_outlier:.1e}, and "
            "no best code changed except ties",
            badness=judged.badness,
        )


def n_passes(plan: Plan, *, is_rounded: bool) -> int:
    """The number of passes of a `Yardstick` and `check_logits` together."""
    (example,) = plan.family.trials.utterances(plan.model, 1, length=LENGTH)
    n_networks = N_NETWORKS - (is_rounded and not plan.family.folds)
    return n_networks * len(list(plan.family.trials.cases(plan.model, example)))
