"""Does llama.cpp compute what the PyTorch reference computes, for every head and task?

The reference reads the checkpoint, llama.cpp the converted file; both get the same seeded
utterances. What is allowed follows the type of the file's weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
from gguf import GGMLQuantizationType

from valle_convert.gguf_file.read import GgufFile
from valle_convert.metrics import Agreement, agreement
from valle_convert.network.protocol import Network
from valle_convert.verify.cases import Case, cases, run_case, utterances
from valle_convert.verify.report import Check


@dataclass(frozen=True)
class Limits:
    """What a file may differ by.

    Attributes:
        nmse: normalized mean square error of each case's logits, at most.
        best_code: part of the predictions whose best code is the same, at least. One prediction
            may differ all the same, since a tie in a short case is no fault.
        why: where the two come from.
    """

    nmse: float
    best_code: float
    why: str

    def n_flips(self, n_rows: int) -> int:
        """How many of so many predictions may have another best code."""
        return max(1, math.floor((1 - self.best_code) * n_rows))


_T = GGMLQuantizationType
_MEASURED = "more than ten times what was measured on the golden checkpoints"

#: By the type of most weights. Agreement counts ties: random networks, on which this was
#: measured, have many codes of nearly the same logit, trained ones have few.
LIMITS: dict[GGMLQuantizationType, Limits] = {
    _T.F32: Limits(1e-5, 0.99, "GELU in llama.cpp is a table in float16: 4e-7 measured"),
    _T.F16: Limits(1e-4, 0.98, "activations are rounded to float16: 3e-6 measured"),
    _T.BF16: Limits(2e-3, 0.93, f"activations are rounded to bfloat16; {_MEASURED}"),
    _T.Q8_0: Limits(2e-2, 0.80, f"8-bit weights and activations; {_MEASURED}"),
}
#: For types without a measured row: a network that computes something else is above 0.5.
_OTHER = Limits(0.3, 0.25, "a lower type; the quality report of `quantize` measures it")


def limits_for(file: GgufFile) -> tuple[str, Limits]:
    """The type that most of the file's weights have, and what it allows."""
    sizes: dict[GGMLQuantizationType, int] = {}
    for tensor in file.tensors.values():
        sizes[tensor.ggml_type] = sizes.get(tensor.ggml_type, 0) + math.prod(tensor.shape)
    main = max(sizes, key=lambda ggml_type: sizes[ggml_type])
    return main.name, LIMITS.get(main, _OTHER)


def check_logits(
    reference: Network,
    network: Network,
    limits: Limits,
    *,
    n_utterances: int,
    seed: int,
    advance: Callable[[int], object] = lambda _n: None,
) -> Iterator[Check]:
    """One check for each head and task.

    Args:
        reference: the checkpoint in PyTorch.
        network: the converted file on llama.cpp.
        limits: what may differ.
        n_utterances: seeded inputs for each case.
        seed: of the inputs.
        advance: hears of each case done.
    """
    grouped: dict[str, list[tuple[Case, Case]]] = {}
    for utterance in utterances(reference.model, n_utterances, seed=seed):
        # The file's own keys say how its inputs are composed, as they do for a decoder.
        theirs = {case.name: case for case in cases(network.model, utterance)}
        for case in cases(reference.model, utterance):
            pair = (case, theirs.get(case.name, case))
            grouped.setdefault(case.name, []).append(pair)
    for name, group in grouped.items():
        expected = np.concatenate([run_case(reference, case) for case, _ in group])
        found = np.concatenate([run_case(network, case) for _, case in group])
        result = agreement(expected, found)
        advance(len(group))
        yield _judge(name, result, limits)


def _judge(name: str, result: Agreement, limits: Limits) -> Check:
    flips = round((1 - result.best_code) * result.n_rows)
    allowed = limits.n_flips(result.n_rows)
    return Check(
        f"logits {name}",
        passed=result.nmse <= limits.nmse and flips <= allowed,
        summary=f"NMSE {result.nmse:.1e}, KL {result.kl_mean:.1e} (largest {result.kl_max:.1e}), "
        f"best code the same in {result.best_code:.1%} of {result.n_rows}",
        values=asdict(result),
        limit=f"NMSE at most {limits.nmse:.0e}, best code in {limits.best_code:.0%} or all but "
        f"one ({limits.why})",
        badness=max(result.nmse / limits.nmse, flips / allowed)
        if math.isfinite(result.nmse)
        else math.inf,
    )


def n_cases(network: Network, n_utterances: int) -> int:
    """How many cases `check_logits` will run, for a progress bar."""
    (first,) = utterances(network.model, 1)
    return n_utterances * len(list(cases(network.model, first)))
