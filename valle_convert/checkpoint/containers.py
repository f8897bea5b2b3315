"""Containers: the content of a file, not its name, decides how it is read.

    file -> first bytes -> safetensors, a file of torch.save, or an index of several -> Container

Trainers store much beside the weights. The weights are the one dict of tensors with the names of a
known model, under any key (`module`, `state_dict`, `model`, the file itself ...), else the only
dict of tensors. States of optimizers, schedulers and random generators do not count.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from valle_convert.checkpoint.folder import (
    INDEX_SUFFIX,
    PICKLE,
    SAFETENSORS_SUFFIXES,
    TORCH_SUFFIXES,
    Tree,
    is_deepspeed,
    is_shard,
)
from valle_convert.checkpoint.names import is_averaged, is_model, with_plain_names
from valle_convert.checkpoint.safetensors_file import SafetensorsFile
from valle_convert.checkpoint.sharded import ShardedTensors
from valle_convert.checkpoint.source import TensorSource
from valle_convert.checkpoint.stand_ins import StandIn
from valle_convert.checkpoint.torch_file import (
    TorchTensors,
    is_bare_torch_pickle,
    load_torch_file,
)
from valle_convert.checkpoint.torch_pickle import StoredTensor, word_for
from valle_convert.checkpoint.torch_zip import ZIP, packed_again
from valle_convert.errors import InputError, UnsupportedModelError, ValleConvertError
from valle_convert.files import first_bytes
from valle_convert.wording import listing

_SUPPORTED = "supported are safetensors, files of torch.save, and folders with one of them"
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


@dataclass(frozen=True)
class Container:
    """A parsed container of a checkpoint or a LoRA.

    Attributes:
        container: how the weights are stored, in words.
        extras: what is stored beside them: config, userdata, stats.
        plain: all plain values of the container itself.
        shards: the files of the weights, if there are several.
        notes: what was chosen, left out or renamed, in words.
    """

    container: str
    tensors: TensorSource
    extras: Mapping[str, Any]
    plain: Mapping[str, Any] = field(default_factory=dict)
    lora: TensorSource | None = None
    shards: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def read_container(path: Path, tree: Tree, place: PurePath) -> Container:
    """Parse a file, and its shards if it is an index."""
    contents = _parse(path, tree, place)
    tensors, notes = with_plain_names(contents.tensors, str(path))
    lora = contents.lora
    if lora is not None:
        lora, more = with_plain_names(lora, str(path))
        notes += more
    return replace(contents, tensors=tensors, lora=lora, notes=(*contents.notes, *notes))


def holds_model(tree: Tree, place: PurePath) -> bool:
    """Whether a local file holds the weights of a known model."""
    try:
        contents = read_container(tree.get(place), tree, place)
    except ValleConvertError:
        return False
    return is_model(contents.tensors.specs)


def _parse(path: Path, tree: Tree, place: PurePath) -> Container:
    if place.name.endswith(INDEX_SUFFIX):
        return _read_shards(path, tree, place)
    if (header := tree.header(place)) is not None:
        _refuse_shard(tree, place)
        return Container("safetensors", header, _metadata(path, header.metadata))
    head = first_bytes(path)
    # A safetensors header begins with its length, and its JSON with a brace.
    if len(head) > 8 and head[8:9] == b"{":
        _refuse_shard(tree, place)
        file = SafetensorsFile(path)
        named = _misnamed(place, TORCH_SUFFIXES, "a safetensors file")
        return Container("safetensors", file, _metadata(path, file.metadata), notes=named)
    if head.startswith(ZIP):
        _refuse_shard(tree, place)
        named = _misnamed(place, SAFETENSORS_SUFFIXES, "a file of torch.save")
        found = _read_torch(path, is_deepspeed=is_deepspeed(place.name))
        return replace(found, notes=(*named, *found.notes))
    if is_bare_torch_pickle(head):
        return _read_torch(path)
    if place.name == PICKLE and "data" in tree.folders(place.parent):
        with packed_again(path.parent) as (packed, files):
            found = _read_torch(packed)
            assert isinstance(found.tensors, TorchTensors)  # noqa: S101 - for the type checker
            found.tensors.check()
            note = f"{path.parent.name} is an unpacked file of torch.save"
            return replace(found, container="torch, unpacked", shards=files, notes=(note,))
    raise InputError(_explain_unknown(path, head))


def _read_shards(path: Path, tree: Tree, place: PurePath) -> Container:
    names = tree.files(place.parent)

    def get(name: str) -> tuple[Path, TensorSource, Mapping[str, str]] | None:
        if name not in names:
            return None
        shard, header = tree.get(place.parent / name), tree.header(place.parent / name)
        if header is None and first_bytes(shard).startswith(ZIP):
            return shard, _read_torch(shard).tensors, {}
        file = header or SafetensorsFile(shard)
        return shard, file, file.metadata

    shards = ShardedTensors(path, get)
    kind = "torch" if place.name.endswith(f".bin{INDEX_SUFFIX}") else "safetensors"
    extras = _metadata(path, shards.metadata)
    return Container(f"{kind}, sharded", shards, extras, shards=shards.paths)


def _refuse_shard(tree: Tree, place: PurePath) -> None:
    if not is_shard(place.name):
        return
    indexes = [name for name in tree.files(place.parent) if name.endswith(INDEX_SUFFIX)]
    if indexes:
        raise InputError(
            f"{tree.name(place)} is one shard of several; give their index, "
            f"{tree.name(place.parent / indexes[0])}."
        )


def _misnamed(place: PurePath, suffixes: tuple[str, ...], what: str) -> tuple[str, ...]:
    is_so = place.suffix.lower() in suffixes
    return (f"{place.name} is {what} by its content, and read as one",) if is_so else ()


def _explain_unknown(path: Path, head: bytes) -> str:
    if not head:
        return f"{path} is empty (0 bytes); copy or download the checkpoint again."
    if head.startswith(b"GGUF"):
        return (
            f"{path} is already a GGUF file, not a checkpoint; "
            "`valle-convert inspect` shows its contents."
        )
    if head.startswith(b"version https://git-lfs"):
        return f"{path} is a pointer of Git LFS, not the weights themselves; run `git lfs pull`."
    if head[:1] == b"\x80":
        return (
            f"{path} is a bare pickle, not a file of torch.save, and is not read; save "
            "the state_dict() with torch.save."
        )
    if head[:1] in b"<{" or all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head):
        return f"{path} is a text file, not a checkpoint; {_SUPPORTED}."
    if path.suffix.lower() in SAFETENSORS_SUFFIXES + TORCH_SUFFIXES:
        return (
            f"{path} does not begin like a {path.suffix} file and seems to be damaged; "
            "copy or download it again."
        )
    return f"{path} has no known checkpoint format; {_SUPPORTED}."


def _metadata(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The model's config and the like in the metadata of safetensors."""
    extras: dict[str, Any] = {}
    for key in ("config", "userdata", "stats"):
        if key not in metadata:
            continue
        try:
            extras[key] = json.loads(metadata[key])
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}: the metadata entry {key!r} is not valid JSON ({error}); "
                "export the checkpoint again."
            ) from error
    return extras


# --------------------------------------------------------------------------------- torch


def _read_torch(path: Path, *, is_deepspeed: bool = False) -> Container:
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
    models = [one for one in found if is_model(k for k in one.state if isinstance(k, str))]
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
            notes.append(
                f"averaged (EMA) weights beside the weights are left out: {', '.join(others)}"
            )
        return one.place, one.state, tuple(notes)
    if not distinct and may_be_none:
        return ("module",), {}, ()
    raise InputError(_explain_states(path, loaded, list(distinct.values())))


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
        return (
            f"{path} holds {len(states)} dicts of tensors "
            f"({listing(one.name for one in states)}), and none is recognized as the model's; "
            "save that state_dict() alone."
        )
    if not isinstance(loaded, Mapping) or (isinstance(loaded, StandIn) and not loaded):
        return (
            f"{path} holds a {word_for(loaded)}, expected a dict of tensors, possibly nested; "
            "save the model's state_dict()."
        )
    held = ", ".join(
        f"{key if isinstance(key, str) else word_for(key):.40} ({word_for(value)})"
        for key, value in loaded.items()
    )
    return (
        f"{path} holds no dict of tensors, only {held[:200] or 'nothing'}; save the model's "
        "state_dict()."
    )
