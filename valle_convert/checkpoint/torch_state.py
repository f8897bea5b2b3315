"""The weights in a file of torch.save, which holds much beside them.

The weights are the one dict of tensors with the names of a known model, under any key (`module`,
`state_dict`, `model`, the file itself ...), else the only dict of tensors. States of optimizers,
schedulers and random generators do not count.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from valle_convert.checkpoint.containers import Container
from valle_convert.checkpoint.names import averages_note, is_averaged, is_model
from valle_convert.checkpoint.torch_file import TorchTensors, load_torch_file
from valle_convert.checkpoint.torch_pickle import StoredTensor, word_for
from valle_convert.checkpoint.torch_zip import packed_again
from valle_convert.errors import InputError, UnsupportedModelError
from valle_convert.wording import listing

#: Optimizer states and the like, which trainers store beside weights.
_NO_WEIGHTS = re.compile(
    r".*(optim|sched|rng|random|scaler|callback|loops|param_groups|shapes|amp$|ds_config).*"
    r"|config|userdata|stats|hyper_parameters|hparams|args|cfg",
    re.IGNORECASE,
)
#: Keys under which PyTorch Lightning and others store hyperparameters.
_PARAMETERS = ("hyper_parameters", "hparams", "args", "cfg")
#: Names of the step counter.
_STEPS = ("global_step", "global_steps", "batch_idx_train")
_MAX_DEPTH = 4


def read_torch(path: Path, *, is_deepspeed: bool = False) -> Container:
    loaded = load_torch_file(path)
    lora = loaded.get("lora") if isinstance(loaded, Mapping) else None
    place, state, notes = _find_state(path, loaded, may_be_none=bool(lora))
    root = loaded if isinstance(loaded, Mapping) else {}
    # Counters and the like, which some trainers save among the tensors.
    others = [key for key, value in state.items() if value is None or _is_scalar(value)]
    if others and len(others) < len(state):
        state = {key: value for key, value in state.items() if key not in others}
        notes += (f"values that are no tensors are left out: {listing(others)}",)
    extras = {key: root[key] for key in ("userdata", "stats") if key in root}
    config = _config_in(root) if place else None
    if config is not None:
        extras["config"] = config
    steps = [root[key] for key in _STEPS if isinstance(root.get(key), int)]
    if steps and place:
        extras.setdefault("stats", {"global_step": steps[0]})
    contents = Container(
        "torch, DeepSpeed" if is_deepspeed else "torch",
        TorchTensors(path, state),
        extras,
        plain={k: v for k, v in root.items() if isinstance(k, str) and _is_scalar(v)},
        lora=TorchTensors(path, lora) if lora and isinstance(lora, Mapping) else None,
        notes=notes,
    )
    if is_deepspeed and not any(spec.n_elements for spec in contents.tensors.specs.values()):
        raise UnsupportedModelError(
            f"{path} is a DeepSpeed ZeRO stage 3 state, with the weights in the optimizer's files; "
            "export it to .sft with the training project first."
        )
    return contents


def read_unpacked(folder: Path) -> Container:
    """A file of torch.save that was unpacked into a folder."""
    with packed_again(folder) as (packed, files):
        found = read_torch(packed)
        assert isinstance(found.tensors, TorchTensors)  # noqa: S101 - for the type checker
        found.tensors.check()
    note = f"{folder.name} is an unpacked file of torch.save"
    return replace(found, kind="torch, unpacked", shards=files, notes=(note,))


def _config_in(root: Mapping[str, Any]) -> object:
    """The config among the keys of a container; a trainer's hyperparameters are not one."""
    if "config" in root:
        return root["config"]
    for parameters in (root.get(key) for key in _PARAMETERS):
        if isinstance(parameters, Mapping):
            if "experimental" in parameters:
                return parameters
            if "config" in parameters:
                return parameters["config"]
    return None


def _is_scalar(value: object) -> bool:
    return isinstance(value, str | bool | int | float)


@dataclass(frozen=True)
class _State:
    """A dict of tensors, and the keys that lead there."""

    place: tuple[str, ...]
    state: Mapping[str, Any]

    @property
    def name(self) -> str:
        return ".".join(self.place) or "the file itself"


def _find_state(
    path: Path, loaded: object, *, may_be_none: bool
) -> tuple[tuple[str, ...], Mapping[str, Any], tuple[str, ...]]:
    """The keys of the model's state dict, the dict, and what was left out."""
    found = list(_states(loaded, (), set()))
    models = [one for one in found if _is_model(one)]
    averages = [one for one in models if is_averaged(one.name)]
    chosen = [one for one in models if one not in averages] or averages or found
    distinct: dict[tuple[int, ...], _State] = {}
    for one in chosen:  # one dict may have two keys
        distinct.setdefault(tuple(map(id, one.state.values())), one)
    if len(distinct) == 1:
        (one,) = distinct.values()
        notes = [f"the weights are the entry {one.name!r}"] if one.place not in _USUAL else []
        others = [average.name for average in averages if average is not one]
        if others:
            notes.append(averages_note(others))
        return one.place, one.state, tuple(notes)
    if not distinct and may_be_none:
        return ("module",), {}, ()
    raise InputError(_explain_states(path, loaded, list(distinct.values())))


def _is_model(one: _State) -> bool:
    return is_model(key for key in one.state if isinstance(key, str))


#: Where the training project and icefall's trainer keep the weights.
_USUAL = ((), ("module",), ("model",))


def _states(value: object, place: tuple[str, ...], seen: set[int]) -> Iterator[_State]:
    """Dicts of tensors, outer ones first, each once: a pickle may contain itself."""
    if not isinstance(value, Mapping) or id(value) in seen:
        return
    seen.add(id(value))
    if place == ("lora",) or (place and _NO_WEIGHTS.fullmatch(place[-1])):
        return
    if any(isinstance(one, StoredTensor) for one in value.values()):
        yield _State(place, value)
    if len(place) < _MAX_DEPTH:
        for key, inner in value.items():
            if isinstance(key, str):
                yield from _states(inner, (*place, key), seen)


def _explain_states(path: Path, loaded: object, states: list[_State]) -> str:
    if states:
        are_models = _is_model(states[0])
        what = "models" if are_models else "dicts of tensors without a known model"
        return (
            f"{path} holds {len(states)} {what} ({listing(one.name for one in states)}), expected "
            "one model; save its state_dict() alone."
        )
    held = f"a {word_for(loaded)}"
    if isinstance(loaded, Mapping) and loaded:
        held = listing(
            f"{key if isinstance(key, str) else word_for(key):.20} ({word_for(value):.40})"
            for key, value in loaded.items()
        )
    return f"{path} holds {held}, expected a dict with tensors; save the model's state_dict()."
