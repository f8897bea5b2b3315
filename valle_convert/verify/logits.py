"""Does llama.cpp compute the file's weights correctly, for every head and task?

Both networks get the same seeded utterances: llama.cpp reads the file, and the PyTorch reference
reads the file's own weights through the plan of its checkpoint. So the loss of the number format,
which the level `tensors` judges, is on both sides, and the remaining error is small enough to show
a wrong activation in a 4-bit file. `deviation` defines the limits.

The logits may differ from the checkpoint's by the expected cost of the file's number formats,
rounding or noise, measured on the same network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from valle_convert.checkpoint.source import NamedTensors
from valle_convert.errors import InputError
from valle_convert.families.bundle import Bundle, Plan
from valle_convert.metrics import Logits, kl_divergence, nmse
from valle_convert.network.arithmetic import EXACT, Arithmetic, Watch, unwatched
from valle_convert.network.protocol import Computing
from valle_convert.network.weights import BundleTensors, ConvertedTensors, RoundedTensors
from valle_convert.verify.deviation import FLOOR, NOISE_FACTOR, Deviation, hold_against
from valle_convert.verify.report import Check
from valle_convert.verify.structure import pairs_of

#: To the checkpoint, as a multiple of the number format's expected cost: measured 1.3 at most.
COST_FACTOR = 4.0
_TOO_LARGE = (
    "the inputs of a layer exceed the range that llama.cpp rounds them to for this type; convert "
    "with --outtype bf16 or f32"
)


Predictions = Mapping[str, Logits]


#: Makes a network that reports its inputs and outputs, see `Arithmetic.watch`.
MakeNetwork = Callable[[Watch], Computing]


@dataclass(frozen=True)
class References:
    """The PyTorch networks that a file is compared with.

    They are made one after the other, so that only one is in memory.

    Attributes:
        exact: with the files' weights, in float32.
        emulated: with the files' weights, rounding as llama.cpp does.
        meant: with the checkpoint's weights, in float32.
        degraded: the same, with the expected noise of the file's types.
    """

    exact: MakeNetwork
    emulated: MakeNetwork
    meant: MakeNetwork
    degraded: MakeNetwork

    @classmethod
    def of(cls, plan: Plan, bundle: Bundle, adapters: Sequence[Any]) -> References:
        """The references of converted files."""
        files = [(planned, file) for _, planned, file in pairs_of(plan, bundle)]
        recovered = plan.description.recovered
        stored = BundleTensors(files, recovered, ConvertedTensors)
        rounded = BundleTensors(files, recovered, RoundedTensors)

        def network(
            tensors: NamedTensors, arithmetic: Arithmetic = EXACT, *, folded: bool = True
        ) -> MakeNetwork:
            return lambda watch: plan.family.reference(
                tensors,
                plan.description,
                arithmetic=replace(arithmetic, watch=watch),
                adapters=adapters,
                folded=folded,
            )

        return cls(
            exact=network(stored),
            emulated=network(stored, plan.family.arithmetic(bundle)),
            meant=network(plan.description.tensors, folded=False),
            degraded=network(rounded),
        )


class Yardstick:
    """The logits of a correct file for every case, [predictions, rows of the head].

    Attributes:
        exact, emulated, meant, degraded: of each of the `References`; for the last two, for the
            first utterance only.
    """

    def __init__(
        self,
        plan: Plan,
        bundle: Bundle,
        *,
        n_utterances: int,
        seed: int,
        adapters: Sequence[Any] = (),
        advance: Callable[[int], object] = lambda _n: None,
    ) -> None:
        self._family = plan.family
        self._examples = tuple(plan.family.draw(plan.model, n_utterances, seed))
        self._advance = advance
        references = References.of(plan, bundle, adapters)
        self.exact = self.run(references.exact(unwatched))
        if not all(np.isfinite(logits).all() for logits in self.exact.values()):
            raise InputError(
                "the weights give NaN or infinity, in PyTorch too: one of them is far too large"
            )
        self.emulated = self.run(references.emulated(unwatched))
        # One utterance is enough to see the cost of the number format, and faster.
        self.meant = self.run(references.meant(unwatched), first_only=True)
        self.degraded = self.run(references.degraded(unwatched), first_only=True)

    def run(self, network: Computing, *, first_only: bool = False) -> Predictions:
        """The logits of every case; a file's network composes its inputs by its own keys."""
        found: dict[str, list[Logits]] = {}
        for example in self._examples[: 1 if first_only else None]:
            for case in self._family.cases(network.model, example):
                found.setdefault(case.name, []).append(case.run(network))
                self._advance(1)
        return {name: np.concatenate(parts) for name, parts in found.items()}


def check_logits(yardstick: Yardstick, network: Computing) -> Iterator[Check]:
    """One check for each head and task."""
    found = yardstick.run(network)
    for name, exact in yardstick.exact.items():
        logits = found.get(name)
        if logits is None or logits.shape != exact.shape:
            words = "the file has a different head or task, or none"
            yield Check(f"logits {name}", passed=False, summary=words, values={}, badness=math.inf)
            continue
        yield judge_logits(
            name,
            exact,
            yardstick.emulated[name],
            logits,
            yardstick.meant[name],
            yardstick.degraded[name],
        )


def n_passes(plan: Plan, n_utterances: int) -> int:
    """The number of passes of a `Yardstick` and `check_logits` together."""
    (first,) = plan.family.draw(plan.model, 1, 0)
    return (3 * n_utterances + 2) * len(list(plan.family.cases(plan.model, first)))


@dataclass(frozen=True)
class Judged:
    """llama.cpp's result beside the references.

    Attributes:
        problem: why nothing could be compared, or "".
        cost: the NMSE to the checkpoint, and the most that the file's types should cost.
    """

    deviation: Deviation | None
    cost: float
    cost_allowed: float
    problem: str = ""

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
            f"{COST_FACTOR:g} times what the number format should cost"
        )


def judge_numbers(
    exact: Logits, emulated: Logits, found: Logits, meant: Logits, degraded: Logits
) -> Judged:
    """Judge numbers that llama.cpp computed, [rows, columns].

    Args:
        exact: with the files' weights, in float32.
        meant: with the checkpoint's weights, in float32; possibly only the first rows.
    """
    if exact.shape != found.shape:
        words = f"llama.cpp gives {list(found.shape)} numbers, not {list(exact.shape)}"
        return Judged(None, math.inf, 0.0, words)
    for numbers, words in (
        (exact, "the weights themselves give NaN or infinity: a weight is far too large"),
        (emulated, _TOO_LARGE),
        (found, "llama.cpp gives NaN or infinity"),
    ):
        if not np.isfinite(numbers).all():
            return Judged(None, math.inf, 0.0, words)
    result = hold_against(exact, emulated, found)
    allowed = COST_FACTOR * (nmse(meant, degraded) + max(result.noise, FLOOR))
    return Judged(result, nmse(meant, found[: len(meant)]), allowed)


def judge_logits(
    name: str,
    exact: Logits,
    emulated: Logits,
    found: Logits,
    meant: Logits,
    degraded: Logits,
) -> Check:
    """Judge the logits of one case, all [predictions, codes]; see `judge_numbers`."""
    label = f"logits {name}"
    judged = judge_numbers(exact, emulated, found, meant, degraded)
    result = judged.deviation
    if result is None:
        return Check(label, passed=False, summary=judged.problem, values={}, badness=math.inf)
    divergence = float(kl_divergence(meant, found[: len(meant)]).mean())
    changed = round((1 - result.best_code) * result.n_rows)
    ties = f", {changed} of {result.n_rows} best codes changed" if changed else ""
    if changed and not result.decided:
        ties += " (all of them ties)"
    return Check(
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
        limit=f"{judged.limit}; for one prediction or code {result.allowed_outlier:.1e}, and no "
        "best code changed except ties",
        badness=judged.badness,
    )
