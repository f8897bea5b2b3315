"""Does llama.cpp compute what the weights of the file mean, for every head and task?

Both networks get the same seeded utterances: llama.cpp reads the file, and the PyTorch
reference reads the file's own weights through the plan of its checkpoint. So what the number
format cost the weights, which is the tensors' level to judge, is on both sides, and what is
left is small enough to see a wrong activation in a 4-bit file. `deviation` says what may differ.

Against the checkpoint itself the same logits may differ by what the number formats of the file
should cost, rounding or noise, found out on the same network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict

import numpy as np

from valle_convert.errors import InputError
from valle_convert.gguf_file.plan import GgufPlan
from valle_convert.gguf_file.read import GgufFile
from valle_convert.metrics import Logits, kl_divergence, nmse
from valle_convert.model.spec import Model
from valle_convert.network.emulation import gelu_from_table, input_rounding
from valle_convert.network.protocol import Network
from valle_convert.network.reference import ReferenceNetwork
from valle_convert.network.weights import ConvertedTensors, RoundedTensors
from valle_convert.verify.cases import Case, cases, run_case, utterances
from valle_convert.verify.deviation import FLOOR, NOISE_FACTOR, OUTLIER_FACTOR, hold_against
from valle_convert.verify.report import Check

#: To the checkpoint, as a multiple of what the number format should cost: 1.3 was measured at most.
COST_FACTOR = 4.0
_TOO_LARGE = (
    "the inputs of a layer are beyond what llama.cpp rounds them to for this type; convert with "
    "--outtype bf16 or f32"
)


class Yardstick:
    """What a right file gives, computed in PyTorch from the file's own weights.

    Attributes:
        exact: the file's weights, in float32.
        emulated: the same, rounded as llama.cpp rounds.
        meant: the checkpoint's weights, in float32.
        degraded: the checkpoint's weights, with what the file's types should leave of them.

    Raises:
        InputError: a weight of the file is not finite.
    """

    def __init__(self, plan: GgufPlan, file: GgufFile) -> None:
        tensors = ConvertedTensors(plan, file)
        types = {name: tensor.ggml_type for name, tensor in file.tensors.items()}
        self.exact = ReferenceNetwork(tensors, plan.description)
        self.emulated = ReferenceNetwork(
            tensors,
            plan.description,
            activation=gelu_from_table,
            round_inputs=input_rounding({name: kind.name for name, kind in types.items()}),
        )
        self.meant = ReferenceNetwork(plan.checkpoint.tensors, plan.description)
        self.degraded = ReferenceNetwork(RoundedTensors(plan, types), plan.description)

    def check_finite(self, seed: int) -> None:
        """Try one pass before llama.cpp is asked for it.

        Raises:
            InputError: the weights give numbers that are none.
        """
        (utterance,) = utterances(self.exact.model, 1, seed=seed)
        first = next(cases(self.exact.model, utterance))
        if not np.isfinite(run_case(self.exact, first)).all():
            raise InputError(
                "the weights give numbers that are none (NaN or infinite), in PyTorch too: one of "
                "them is far too large"
            )


def check_logits(
    yardstick: Yardstick,
    network: Network,
    *,
    n_utterances: int,
    seed: int,
    advance: Callable[[int], object] = lambda _n: None,
) -> Iterator[Check]:
    """One check for each head and task.

    Args:
        yardstick: what the file should give.
        network: the file on llama.cpp.
        n_utterances: seeded inputs for each case.
        seed: of the inputs.
        advance: called with the number of utterances done in each case.
    """
    model = yardstick.exact.model
    pairs: dict[str, list[tuple[Case, Case]]] = {}
    for utterance in utterances(model, n_utterances, seed=seed):
        # The file's own keys say how its inputs are composed, as they do for a decoder.
        theirs = {case.name: case for case in cases(network.model, utterance)}
        for case in cases(model, utterance):
            pairs.setdefault(case.name, []).append((case, theirs.get(case.name, case)))
    for name, group in pairs.items():
        ours = [case for case, _ in group]
        exact = _run(yardstick.exact, ours)
        emulated = _run(yardstick.emulated, ours)
        found = _run(network, [case for _, case in group])
        # Of what the number format costs, one utterance tells enough, in half of the time.
        meant, degraded = (_run(one, ours[:1]) for one in (yardstick.meant, yardstick.degraded))
        advance(len(group))
        yield _judge(name, exact, emulated, found, meant, degraded)


def n_passes(model: Model, n_utterances: int) -> int:
    """How far `check_logits` will advance, for a progress bar."""
    (first,) = utterances(model, 1)
    return n_utterances * len(list(cases(model, first)))


def _run(network: Network, group: list[Case]) -> Logits:
    return np.concatenate([run_case(network, case) for case in group])


def _judge(
    name: str,
    exact: Logits,
    emulated: Logits,
    found: Logits,
    meant: Logits,
    degraded: Logits,
) -> Check:
    label = f"logits {name}"
    for logits, words in (
        (exact, "the weights themselves give numbers that are none: a weight is far too large"),
        (emulated, _TOO_LARGE),
        (found, "llama.cpp gives numbers that are none"),
    ):
        if not np.isfinite(logits).all():
            return Check(label, passed=False, summary=words, values={}, badness=float("inf"))
    result = hold_against(exact, emulated, found)
    cost = nmse(meant, found[: len(meant)])
    allowed = COST_FACTOR * (nmse(meant, degraded) + max(result.noise, FLOOR))
    divergence = float(kl_divergence(meant, found[: len(meant)]).mean())
    changed = round((1 - result.best_code) * result.n_rows)
    ties = f", {changed} of {result.n_rows} best codes changed" if changed else ""
    if changed and not result.decided:
        ties += " (all of them ties)"
    return Check(
        label,
        passed=result.passed and cost <= allowed,
        summary=f"NMSE {result.nmse:.1e} (one prediction {result.worst_row:.1e}, one code "
        f"{result.worst_code:.1e}){ties}; to the checkpoint NMSE {cost:.1e}, KL {divergence:.1e}",
        values={
            **asdict(result),
            "nmse_to_checkpoint": cost,
            "nmse_to_checkpoint_allowed": allowed,
            "kl_to_checkpoint": divergence,
        },
        limit=f"NMSE {result.allowed:.1e}, {NOISE_FACTOR:g} times what llama.cpp's rounding costs "
        f"on this network ({OUTLIER_FACTOR:g} times for one prediction or code), no best code "
        f"changed but ties; to the checkpoint {allowed:.1e}, {COST_FACTOR:g} times what the number "
        "format should cost",
        badness=max(result.badness, cost / allowed),
    )
