"""Where does llama.cpp go wrong first? Compares the layers of a network with PyTorch.

llama.cpp's evaluation callback gives the residual stream after every layer, at every position of a
pass, and each part of a layer. The references give the same, and `References.judge` sets the
limits, as for logits.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from valle_convert.errors import EnvironmentFault
from valle_convert.families.bundle import Bundle, Plan
from valle_convert.families.family import Case
from valle_convert.llama.context import FloatArray
from valle_convert.llama.library import INSTALL_TESTED
from valle_convert.network.arithmetic import INPUTS
from valle_convert.network.protocol import OnLlama
from valle_convert.verify.logits import Deviation, cases_of, reference_numbers
from valle_convert.verify.report import Check
from valle_convert.wording import plural

_LINEAR = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
#: The residual stream after a layer.
_OUTPUT = "output"
#: The parts of a layer in order, and their names in llama.cpp's graph of each architecture. The
#: residual stream between attention and feed-forward stands for `attn_output`. In an `mpt`,
#: activation factors come before the activation.
_GRAPHS: dict[str, dict[str, str]] = {
    "gemma": {
        "attn_norm": "attn_norm",
        "attn_q": "Qcur",
        "attn_k": "Kcur",
        "attn_v": "Vcur",
        "attention": "kqv_out",
        "attn_output": "sa_out",
        "ffn_norm": "ffn_norm",
        "ffn_gate": "ffn_gate",
        "ffn_up": "ffn_up",
        "activation": "ffn_geglu",
        "ffn_down": "ffn_out",
        _OUTPUT: "l_out",
    },
    "mpt": {
        "attn_norm": "attn_norm",
        "attn_qkv": "wqkv_b",
        "attention": "kqv_out",
        "attn_output": "ffn_inp",
        "ffn_norm": "ffn_norm",
        "activation": "ffn_act",
        "ffn_down": "ffn_out",
        _OUTPUT: "l_out",
    },
}
#: The inputs of each linear layer.
_INPUTS_OF = {
    "attn_q": "attn_norm",
    "attn_qkv": "attn_norm",
    "attn_output": "attention",
    "ffn_up": "ffn_norm",
    "ffn_down": "activation",
}

#: A part of a network, a layer and a part of it; -1 is the layer of the inputs.
_Place = tuple[str, int, str]
#: All parts of a layer, by its number.
_PartsOf = Callable[[int], Mapping[_Place, Deviation]]


class _Recorder:
    """An `Observer` that records a reference in the form of llama.cpp."""

    def __init__(self, wanted: Callable[[int, str], bool]) -> None:
        self._wanted = wanted
        self._streams: dict[str, Tensor] = {}
        self._kept: dict[_Place, list[FloatArray]] = {}

    def __call__(self, part: str, target: str, inputs: Tensor, outputs: Tensor) -> None:
        if target == INPUTS:
            self._streams[part] = outputs
            self._keep(part, -1, INPUTS, outputs)
        found = _LINEAR.fullmatch(target)
        if found is None:
            return
        layer, name = int(found[1]), found[2]
        if name in _INPUTS_OF:
            self._keep(part, layer, _INPUTS_OF[name], inputs)
        if name in ("attn_output", "ffn_down"):
            self._streams[part] = self._streams[part] + outputs
        if name == "ffn_down":
            self._keep(part, layer, _OUTPUT, self._streams[part])
        self._keep(part, layer, name, self._streams[part] if name == "attn_output" else outputs)

    def _keep(self, part: str, layer: int, name: str, values: Tensor) -> None:
        if self._wanted(layer, name):
            self._kept.setdefault((part, layer, name), []).append(values.numpy())

    def take(self) -> dict[_Place, FloatArray]:
        kept, self._kept = self._kept, {}
        return {place: np.concatenate(pieces) for place, pieces in kept.items()}


def trace(
    plan: Plan,
    bundle: Bundle,
    network: OnLlama,
    *,
    seed: int = 0,
    adapters: Sequence[Any] = (),
    only: Collection[str] | None = None,
    advance: Callable[[int], object] = lambda _n: None,
) -> Iterator[Check]:
    """One check per case, or per one of `only`: the first layer that is off, and its first part."""
    # A file's network composes its inputs by its own keys.
    of_file = {one.name: one for one in traced_cases(plan, network.model, seed, only)}
    cases = [one for one in traced_cases(plan, plan.model, seed, only) if one.name in of_file]

    def judged(
        wanted: Callable[[int, str], bool], chosen: Sequence[Case[Any]]
    ) -> dict[str, dict[_Place, Deviation]]:
        """Every place that llama.cpp gives in each case, in the order of the network."""

        def run(reference: Any) -> dict[tuple[str, _Place], FloatArray]:  # noqa: ANN401
            reference.observe = recorder = _Recorder(wanted)
            kept: dict[tuple[str, _Place], FloatArray] = {}
            for case in chosen:
                case.run(reference)
                kept |= {(case.name, place): found for place, found in recorder.take().items()}
                advance(1)
            return kept

        numbers = reference_numbers(plan, bundle, adapters, run)
        found: dict[str, dict[_Place, Deviation]] = {}
        for case in chosen:
            states = _on_llama(network, of_file[case.name], wanted)
            found[case.name] = {
                place: numbers[case.name, place].judge(values) for place, values in states.items()
            }
            advance(1)
        return found

    def parts_of(case: Case[Any], layer: int) -> Mapping[_Place, Deviation]:
        return judged(lambda i, _: i == layer, [case])[case.name]

    streams = judged(lambda _, name: name in (INPUTS, _OUTPUT), cases)
    for case in cases:
        if streams[case.name]:
            yield _check(case.name, streams[case.name], partial(parts_of, case))


def traced_cases(
    plan: Plan,
    model: Any,  # noqa: ANN401 - the family's own
    seed: int,
    only: Collection[str] | None = None,
) -> Iterator[Case[Any]]:
    """The cases of one example that are compared."""
    for case in cases_of(plan, model, seed):
        if case.name in only if only is not None else not case.repeats:
            yield case


def _on_llama(
    network: OnLlama, case: Case[Any], wanted: Callable[[int, str], bool]
) -> dict[_Place, FloatArray]:
    kept: dict[_Place, FloatArray] = {}
    with ExitStack() as stack:
        caught = {}
        for part, session in network.sessions.items():
            places = {INPUTS: (part, -1, INPUTS)} if wanted(-1, INPUTS) else {}
            places |= {
                f"{name}-{layer}": (part, layer, own)
                for layer in range(session.n_layer)
                for own, name in _GRAPHS[session.architecture].items()
                if wanted(layer, own)
            }
            caught[part] = places, stack.enter_context(session.watching(places))
        case.run(network)
        for places, pieces in caught.values():
            if not pieces:
                continue  # another part computes this case
            missing = [name for name in places if name not in pieces]
            if missing:
                raise EnvironmentFault(
                    f"llama.cpp computes no {missing[0]}, so its layers cannot be compared; "
                    f"{INSTALL_TESTED}."
                )
            kept |= {place: np.concatenate(pieces[name]) for name, place in places.items()}
    return kept


def _check(name: str, judged: Mapping[_Place, Deviation], parts_of: _PartsOf) -> Check:
    n_layers = plural(len(judged) - 1, "layer")
    off = [place for place, one in judged.items() if not one.passed]
    if off:
        place, judged = _first_off(off[0], judged, parts_of)
        words = "the first place that is off is"
    else:
        place = max(judged, key=lambda one: judged[one].badness)
        words = f"right in {n_layers}; closest to the limit is"
    _, layer, what = place
    deviation = judged[place]
    where = "the inputs" if what == INPUTS else f"layer {layer}"
    where += "" if what in (INPUTS, _OUTPUT) else f", {what}"
    return Check(
        f"trace {name}",
        passed=not off,
        summary=f"{words} {where}: {deviation.words}",
        values={"layer": layer, "part": what, "nmse_to_checkpoint": deviation.nmse_to_checkpoint},
        limit=deviation.limit,
        badness=deviation.badness,
    )


def _first_off(
    place: _Place, judged: Mapping[_Place, Deviation], parts_of: _PartsOf
) -> tuple[_Place, Mapping[_Place, Deviation]]:
    """The first part that is off, up to the first residual stream that is."""
    for layer in range(place[1], -1, -1):
        found = parts_of(layer)
        off = [one for one in found if not found[one].passed]
        if not off:
            break
        place, judged = off[0], found
        # A layer's inputs may be off by less than the residual stream shows.
        if place[2] != "attn_norm":
            break
    return place, judged
