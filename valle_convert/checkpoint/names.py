"""Tensor names of the model itself, without those of wrappers.

    _orig_mod.sep, module.sep, net._orig_mod.sep          -> sep
    base_model.model.model.norm.weight                    -> model.norm.weight
    q_proj.base_layer.weight, q_proj.lora_A.default.weight -> q_proj.weight, q_proj.lora_A

torch.compile, DDP, FSDP, DeepSpeed and PEFT put components into names, at any depth. A trainer puts
a prefix before all of them (`model.`, `net.`), which is removed if known names follow. A component
stays if two names would become equal.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from valle_convert.checkpoint.source import TensorSource, TensorSpec
from valle_convert.errors import InputError
from valle_convert.wording import listing, plural

_WRAPPERS = frozenset(
    """
    _orig_mod module _forward_module _fsdp_wrapped_module _checkpoint_wrapped_module base_layer
    """.split()
)
_PEFT = ("base_model", "model")
_PEFT_ADAPTER = re.compile(r"(.+\.lora_[AB])(\.[^.]+)?\.weight")
#: icefall's names for the parts of its models.
ICEFALL = re.compile(
    r"(ar|nar)_(decoder|text_embedding|audio_embeddings?|predict_layers?|stage_embeddings)\..+"
)
#: Tensors that identify a known family or an export of one, after any prefix.
_KNOWN = re.compile(
    r"((?:[^.]+\.)*?)(text_emb\.weight|phn_emb\.weight|sep|model\.embed_tokens\.weight"
    rf"|{ICEFALL.pattern})"
)
#: A Hugging Face LLaMA inside another module: Amphion's VALL-E v2, rejected by name.
AMPHION = re.compile(r"model\.(model|lm_head)\..*|(phone|prompt)_embedder\..*")
#: A moving average of weights, by the words of its name.
_AVERAGED = re.compile(r"(^|[^a-z])(ema|avg|averaged?|swa|shadow|polyak)([^a-z]|$)", re.IGNORECASE)
_COUNTER = re.compile(r"(.+\.)?(n_averaged|initted|num_updates|decay|step)")


class RenamedTensors:
    def __init__(self, tensors: TensorSource, own: Mapping[str, str]) -> None:
        self._tensors, self._own = tensors, own
        self.specs: Mapping[str, TensorSpec] = {
            name: replace(tensors.specs[one], name=name) for name, one in own.items()
        }

    def read(self, name: str) -> NDArray[Any]:
        return self._tensors.read(self._own[name])


def is_model(names: Iterable[str]) -> bool:
    """Whether a known model, perhaps wrapped, has any of these names."""
    return any(_known(unwrapped(name)) is not None for name in names)


def is_refused_by_name(names: Iterable[str]) -> bool:
    """Whether a family knows these names only to explain why it rejects them."""
    return any(map(AMPHION.fullmatch, names))


def is_averaged(name: str) -> bool:
    """Whether a name belongs to a moving average of weights."""
    return _AVERAGED.search(name) is not None


def averages_note(left_out: Iterable[str]) -> str:
    return f"averaged (EMA) weights beside the weights are left out: {', '.join(left_out)}"


def unwrapped(name: str) -> str:
    """A name without the components of wrappers."""
    parts: list[str] = []
    for part in name.split("."):
        if part in _WRAPPERS:
            continue
        parts.append(part)
        if tuple(parts[-2:]) == _PEFT:
            del parts[-2:]
    found = ".".join(parts) or name
    adapter = _PEFT_ADAPTER.fullmatch(found)
    return adapter[1] if adapter else found


def with_plain_names(tensors: TensorSource, where: str) -> tuple[TensorSource, tuple[str, ...]]:
    """The tensors under the model's own names, and the changes in words."""
    names = {name: unwrapped(name) for name in tensors.specs}
    prefix, averages = _prefixes(names.values(), where)
    notes: list[str] = []
    left_out = {name for name, plain in names.items() if plain.startswith(tuple(averages))}
    if left_out:
        notes.append(averages_note([f"{plural(len(left_out), 'tensor')} ({', '.join(averages)}*)"]))
    counters = [
        name
        for name, plain in names.items()
        if tensors.specs[name].n_elements <= 1 and _COUNTER.fullmatch(plain)
    ]
    if counters:
        notes.append(f"counters of the training are left out: {listing(counters, 3)}")
    own: dict[str, str] = {}
    twice: list[str] = []
    for name, plain in names.items():
        if name in left_out or name in counters:
            continue
        target = plain.removeprefix(prefix)
        if own.setdefault(target, name) != name:
            twice.append(f"{own[target]} and {name} ({target})")
    if twice:
        raise InputError(
            f"{where}: tensors have the same name once wrapper names are removed: "
            f"{listing(twice)}; save the plain state_dict() of one model."
        )
    renamed = [(name, target) for target, name in own.items() if target != name]
    if renamed:
        old, new = renamed[0]
        notes.insert(
            0,
            f"{plural(len(renamed), 'name')} of tensors taken without what wraps them: {old} is "
            f"{new}",
        )
    return (RenamedTensors(tensors, own), tuple(notes)) if notes else (tensors, ())


def _known(name: str) -> str | None:
    """The prefix of a name that identifies a model, or None."""
    found = _KNOWN.fullmatch(name)
    # Amphion's VALL-E v2 has a Hugging Face LLaMA in a `model`; an export has it at the top.
    if found is None or (found[1] == "model." and found[2].startswith("model.")):
        return None
    return found[1]


def _prefixes(names: Iterable[str], where: str) -> tuple[str, list[str]]:
    """The prefix of the model's names, and those of its averages."""
    found = sorted({prefix for name in names if (prefix := _known(name)) is not None})
    averages = [prefix for prefix in found if is_averaged(prefix)]
    models = [prefix for prefix in found if prefix not in averages] or averages
    if len(models) > 1:
        raise InputError(
            f"{where} holds {len(models)} models with the prefixes "
            f"{listing(map(repr, models))}, expected one; save the "
            "plain state_dict() of one."
        )
    chosen = models[0] if models else ""
    return chosen, [prefix for prefix in averages if prefix != chosen]
