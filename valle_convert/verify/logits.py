"""Does llama.cpp compute the file's weights correctly, for every head and task?

Both networks get the same seeded utterance: llama.cpp reads the file, and the PyTorch reference
reads the file's own weights through the plan of its checkpoint. So the loss of the number format,
which the level `tensors` judges, is on both sides, and the remaining error is small enough to show
a wrong activation in a 4-bit file.

Allowed deviations are measured, not tabulated. Three sets of logits [rows, codes] of one head are
compared: exact ones (PyTorch in float32), those of an emulation that rounds as llama.cpp does, and
llama.cpp's own. The emulation's error is the cost of rounding on this very network, whether deep,
narrow or random; llama.cpp's may be a small multiple of it. Over 2,166 passes of 50 random shapes
in four types, llama.cpp's error was 1.0 times the emulation's in the median and 3.2 times at most.

The logits may differ from the checkpoint's by the expected cost of the file's number formats,
rounding or noise, measured on the same network.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from statistics import median
from typing import Any, TypeVar

import numpy as np

from valle_convert.checkpoint.source import NamedTensors
from valle_convert.families.bundle import Bundle, Plan
from valle_convert.families.family import Case
from valle_convert.metrics import Logits, kl_divergence, nmse
from valle_convert.network.arithmetic import EXACT, Arithmetic
from valle_convert.network.protocol import AnyNetwork
from valle_convert.network.weights import (
    BundleTensors,
    ConvertedTensors,
    KeptTensors,
    RoundedTensors,
)
from valle_convert.verify.report import Check
from valle_convert.verify.structure import pairs_of

#: The energy of the error, as a multiple of the emulation's.
NOISE_FACTOR = 8.0
#: One prediction's, and one code's, as a multiple of the emulation's mean. Correct files reach
#: nine times; a wrong row of a head is off by thousands of times.
OUTLIER_FACTOR = 100.0
#: Sums in float32, in any order: 1e-12 of the energy measured.
FLOOR = 1e-10
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
_LENGTH = 0.5
#: The references, and llama.cpp.
N_NETWORKS = 5

K = TypeVar("K")


@dataclass(frozen=True)
class Deviation:
    """How far logits are from the exact ones, beside the cost of rounding."""

    problem: str = ""  # why nothing could be compared, or ""
    n_rows: int = 0
    nmse: float = math.inf  # squared error over the energy of the exact logits
    noise: float = 0.0  # the same of the emulation
    noise_outlier: float = 0.0  # the emulation's largest error of one prediction or code
    #: The largest mean square error of one prediction, over the exact logits' mean square.
    worst_row: float = math.inf
    worst_code: float = math.inf  # the largest one of one code over all predictions
    best_code: float = 0.0  # the part of the predictions with the same most likely code
    #: How many predictions have another best code although the exact logits of the two differ by
    #: more than any allowed error. The others are ties, not faults.
    decided: int = 0
    nmse_to_checkpoint: float = math.inf
    nmse_to_checkpoint_allowed: float = 0.0  # the most that the file's types may cost

    @property
    def allowed(self) -> float:
        """The normalized mean square error that rounding explains."""
        return NOISE_FACTOR * max(self.noise, FLOOR)

    @property
    def allowed_outlier(self) -> float:
        """The same for one prediction or code, which is larger in narrow networks."""
        usual = OUTLIER_FACTOR * max(self.noise, FLOOR)
        return max(usual, NOISE_FACTOR * self.noise_outlier)

    @property
    def badness(self) -> float:
        """The error relative to the limits; 1 is at the limit."""
        if self.problem:
            return math.inf
        shares = (
            self.nmse / self.allowed,
            max(self.worst_row, self.worst_code) / self.allowed_outlier,
            self.nmse_to_checkpoint / self.nmse_to_checkpoint_allowed,
            float(self.decided),
        )
        return max(shares) if np.isfinite(shares).all() else math.inf

    @property
    def passed(self) -> bool:
        """Whether rounding and the number format explain all deviations."""
        return self.decided == 0 and self.badness <= 1.0

    @property
    def words(self) -> str:
        return self.problem or (
            f"NMSE {self.nmse:.1e}, to the checkpoint {self.nmse_to_checkpoint:.1e}"
        )

    @property
    def limit(self) -> str:
        if self.problem:
            return ""
        return (
            f"NMSE {self.allowed:.1e}, {NOISE_FACTOR:g} times what llama.cpp's rounding "
            f"costs on this network; to the checkpoint {self.nmse_to_checkpoint_allowed:.1e}, "
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
        return nmse(self.meant, self.degraded)

    def judge(self, found: Logits, usual_cost: float = 0.0) -> Deviation:
        """Judge the same numbers by llama.cpp; `usual_cost` is the least for few logits."""
        exact = self.exact
        if exact.shape != found.shape:
            return Deviation(f"llama.cpp gives {list(found.shape)} numbers, not {[*exact.shape]}")
        for numbers, words in (
            (exact, "the weights themselves give NaN or infinity: a weight is far too large"),
            (self.emulated, _TOO_LARGE),
            (found, "llama.cpp gives NaN or infinity"),
            (self.meant, "the checkpoint's weights give NaN or infinity"),
            (self.degraded, "the checkpoint's weights, rounded, give NaN or infinity"),
        ):
            if not np.isfinite(numbers).all():
                return Deviation(words)
        energy = float(np.square(exact, dtype=np.float64).mean())
        error = np.square(found.astype(np.float64) - exact)
        rounding = np.square(self.emulated.astype(np.float64) - exact)
        noise = float(rounding.mean())

        def relative(value: float) -> float:
            # Logits that are all zero allow no error.
            if energy > 0.0:
                return value / energy
            return 0.0 if value == 0.0 else math.inf

        best, their_best = exact.argmax(-1), found.argmax(-1)
        rows = np.arange(len(exact))
        margins = exact[rows, best].astype(np.float64) - exact[rows, their_best]
        outlier = max(float(rounding.mean(0).max()), float(rounding.mean(-1).max()))
        allowed = max(OUTLIER_FACTOR * max(noise, FLOOR * energy), NOISE_FACTOR * outlier)
        tie = 2 * np.sqrt(allowed)  # two logits, each off by as much as one prediction may be
        expected = self.cost if exact.size > _FEW_LOGITS else max(self.cost, usual_cost)
        explained = NOISE_FACTOR * max(relative(noise), FLOOR)
        return Deviation(
            n_rows=len(exact),
            nmse=relative(float(error.mean())),
            noise=relative(noise),
            noise_outlier=relative(outlier),
            worst_row=relative(float(error.mean(-1).max())),
            worst_code=relative(float(error.mean(0).max())),
            best_code=float((best == their_best).mean()),
            decided=int((margins > tie).sum()),
            nmse_to_checkpoint=nmse(self.meant, found),
            nmse_to_checkpoint_allowed=COST_FACTOR * expected + explained,
        )


def cases_of(plan: Plan, model: Any, seed: int = 0) -> list[Case[Any]]:  # noqa: ANN401
    """The cases of one example; a file's `model` composes its inputs by its own keys."""
    (example,) = plan.family.trials.utterances(plan.model, 1, seed=seed, length=_LENGTH)
    return list(plan.family.trials.cases(model, example))


def reference_numbers(
    plan: Plan,
    bundle: Bundle,
    adapters: Sequence[Any],
    run: Callable[[AnyNetwork], Mapping[K, Logits]],
    *,
    is_rounded: bool = False,
) -> dict[K, References]:
    """What `run` gives for each PyTorch network; only one of them is in memory at a time.

    `is_rounded`: the files are known to hold the checkpoint's weights, exactly rounded. Then the
    error of `exact` is the cost of the number formats.
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
    if is_rounded:
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
        self._plan, self._seed, self._advance = plan, seed, advance
        self.numbers = reference_numbers(
            plan, bundle, adapters, partial(self.run, repeat=False), is_rounded=is_rounded
        )

    def run(self, network: AnyNetwork, *, repeat: bool = True) -> dict[str, Logits]:
        """The logits of every case. Without `repeat`, what a case repeats is not computed again."""
        found: dict[str, Logits] = {}
        for case in cases_of(self._plan, network.model, self._seed):
            is_known = case.rows and not repeat
            found[case.name] = (
                found[case.repeats][list(case.rows)] if is_known else case.run(network)
            )
            self._advance(1)
        return found


def check_logits(yardstick: Yardstick, network: AnyNetwork) -> Iterator[Check]:
    """One check for each head and task."""
    found = yardstick.run(network)
    usual = median(one.cost for one in yardstick.numbers.values())
    for name, numbers in yardstick.numbers.items():
        label, logits = f"logits {name}", found.get(name)
        if logits is None:
            yield Check.failure(label, "the file lacks this head or task")
            continue
        judged = numbers.judge(logits, usual)
        if judged.problem:
            yield Check.failure(label, judged.problem)
            continue
        divergence = float(kl_divergence(numbers.meant, logits).mean())
        changed = round((1 - judged.best_code) * judged.n_rows)
        ties = f", {changed} of {judged.n_rows} best codes changed" if changed else ""
        if changed and not judged.decided:
            ties += " (all of them ties)"
        values = {key: value for key, value in asdict(judged).items() if key != "problem"}
        yield Check(
            label,
            passed=judged.passed,
            summary=f"NMSE {judged.nmse:.1e} (one prediction {judged.worst_row:.1e}, one code "
            f"{judged.worst_code:.1e}){ties}; to the checkpoint NMSE "
            f"{judged.nmse_to_checkpoint:.1e}, KL {divergence:.1e}",
            values={**values, "kl_to_checkpoint": divergence},
            limit=f"{judged.limit}; for one prediction or code {judged.allowed_outlier:.1e}, and "
            "no best code changed except ties",
            badness=judged.badness,
        )
