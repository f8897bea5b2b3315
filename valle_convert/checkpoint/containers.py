"""Containers: the content of a file, not its name, decides how it is read.

    file -> first bytes -> safetensors, or a file of torch.save -> Container
    *.index.json: {"metadata": {...}, "weight_map": {tensor: file beside the index, ...}}

Of a file on the hub, its header may be enough.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from numpy.typing import NDArray

from valle_convert.checkpoint.folder import (
    INDEX_SUFFIX,
    PICKLE,
    SAFETENSORS_SUFFIXES,
    TORCH_SUFFIXES,
    Tree,
    is_deepspeed,
    is_plain_name,
    is_shard,
)
from valle_convert.checkpoint.names import is_model, with_plain_names
from valle_convert.checkpoint.safetensors_file import SafetensorsFile
from valle_convert.checkpoint.source import TensorSource, TensorSpec
from valle_convert.errors import InputError, ValleConvertError
from valle_convert.files import ZIP_MAGIC, first_bytes, read_json_object
from valle_convert.wording import listing

_MAX_INDEX_BYTES = 16 << 20
_SUPPORTED = "supported are safetensors, files of torch.save, and folders with one of them"


@dataclass(frozen=True)
class Container:
    kind: str  # how the weights are stored, in words
    tensors: TensorSource
    extras: Mapping[str, Any]  # what is stored beside them: config, userdata, stats
    #: All plain values of the container itself.
    plain: Mapping[str, Any] = field(default_factory=dict)
    lora: TensorSource | None = None
    shards: tuple[Path, ...] = ()  # the files of the weights, if there are several
    notes: tuple[str, ...] = ()  # what was chosen, left out or renamed, in words


def read_container(path: Path, tree: Tree, place: PurePath) -> Container:
    """Parse a file, and its shards if it is an index."""
    if place.name.endswith(INDEX_SUFFIX):
        contents = _read_shards(path, tree, place)
    else:
        _refuse_shard(tree, place)
        contents = _parse(path, tree, place)
    tensors, notes = with_plain_names(contents.tensors, str(path))
    is_torch = contents.kind.startswith("torch")
    if place.suffix.lower() in (SAFETENSORS_SUFFIXES if is_torch else TORCH_SUFFIXES):
        kind = "a file of torch.save" if is_torch else "a safetensors file"
        notes = (f"{place.name} is {kind} by its content, and read as one", *notes)
    lora = contents.lora
    if lora is not None:
        lora, more = with_plain_names(lora, str(path))
        notes += more
    return replace(contents, tensors=tensors, lora=lora, notes=(*contents.notes, *notes))


def holds_model(tree: Tree, place: PurePath) -> bool:
    """Whether a file holds the weights of a known model; one on the hub is not opened for that."""
    if tree.origin is not None:
        return True
    try:
        contents = read_container(tree.get(place), tree, place)
    except ValleConvertError:
        return False
    return is_model(contents.tensors.specs)


def _parse(path: Path, tree: Tree, place: PurePath) -> Container:
    if (header := tree.header(place)) is not None:
        return Container("safetensors", header, _metadata(path, header.metadata))
    head = first_bytes(path)
    # A safetensors header begins with its length, and its JSON with a brace.
    if len(head) > 8 and head[8:9] == b"{":
        file = SafetensorsFile(path)
        return Container("safetensors", file, _metadata(path, file.metadata))
    # Imports 15 ms of code that a safetensors file does not need.
    from valle_convert.checkpoint import torch_state
    from valle_convert.checkpoint.torch_file import is_bare_torch_pickle

    if head.startswith(ZIP_MAGIC):
        return torch_state.read_torch(path, is_deepspeed=is_deepspeed(place.name))
    if is_bare_torch_pickle(head):
        return torch_state.read_torch(path)
    if place.name == PICKLE and "data" in tree.folders(place.parent):
        return torch_state.read_unpacked(path.parent)
    raise InputError(_explain_unknown(path, head))


def _refuse_shard(tree: Tree, place: PurePath) -> None:
    if not is_shard(place.name):
        return
    indexes = [name for name in tree.files(place.parent) if name.endswith(INDEX_SUFFIX)]
    if indexes:
        raise InputError(
            f"{tree.name(place)} is one shard of several; give their index, "
            f"{tree.name(place.parent / indexes[0])}."
        )


#: What a file is instead, by its first bytes.
_OTHERS = {
    b"GGUF": (
        "is already a GGUF file, not a checkpoint; `valle-convert inspect` shows its contents."
    ),
    b"version https://git-lfs": (
        "is a pointer of Git LFS, not the weights themselves; run `git lfs pull`."
    ),
    b"\x80": (
        "is a bare pickle, not a file of torch.save, and is not read; save the state_dict() with "
        "torch.save."
    ),
}


def _explain_unknown(path: Path, head: bytes) -> str:
    if not head:
        return f"{path} is empty (0 bytes); copy or download the checkpoint again."
    for magic, words in _OTHERS.items():
        if head.startswith(magic):
            return f"{path} {words}"
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


# ------------------------------------------------------------------------------- shards


class _Shards:
    """A `TensorSource` over the shards of an index, in the order of their names."""

    def __init__(self, files: Mapping[str, TensorSource], weight_map: Mapping[str, str]) -> None:
        self._files = {name: files[shard] for name, shard in weight_map.items()}
        self.specs: Mapping[str, TensorSpec] = {
            name: spec for file in files.values() for name, spec in file.specs.items()
        }

    def read(self, name: str) -> NDArray[Any]:
        return self._files[name].read(name)


def _read_shards(index: Path, tree: Tree, place: PurePath) -> Container:
    """Read the shards of an index, which is untrusted.

    It may list plain names only, and must list exactly the tensors of the files.
    """
    weight_map, there = _read_index(index), tree.files(place.parent)
    places = {name: place.parent / name for name in sorted(set(weight_map.values()) & {*there})}
    paths = {name: tree.get(one) for name, one in places.items()}
    found = {name: _parse(path, tree, places[name]) for name, path in paths.items()}
    files = {name: one.tensors for name, one in found.items()}
    _check_index(index, weight_map, files)
    extras: dict[str, Any] = {}
    for shard, one in found.items():
        for key, value in one.extras.items() if one.kind == "safetensors" else ():
            if extras.setdefault(key, value) != value:
                raise InputError(
                    f"The shards of {index} contradict each other: the metadata entry {key!r} of "
                    f"{shard} differs from that of earlier shards; save the model again."
                )
    kind = "torch" if place.name.endswith(f".bin{INDEX_SUFFIX}") else "safetensors"
    tensors = _Shards(files, weight_map)
    return Container(f"{kind}, sharded", tensors, extras, shards=tuple(paths.values()))


def _read_index(path: Path) -> dict[str, str]:
    weight_map = read_json_object(path, "index", _MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(
            f"The index {path} has no weight_map from tensors to files; copy or download it again."
        )
    strange = sorted(
        {
            f"{shard!r:.80}"
            for shard in weight_map.values()
            if not is_plain_name(shard) or not shard.endswith(SAFETENSORS_SUFFIXES + TORCH_SUFFIXES)
        }
    )
    if strange:
        raise InputError(
            f"The index {path} names {listing(strange)}, expected names of weight files beside it; "
            "save the model again."
        )
    return weight_map


def _check_index(
    index: Path, weight_map: Mapping[str, str], files: Mapping[str, TensorSource]
) -> None:
    """Compare the index with the shards, and report all faults in one error."""
    held = {(name, shard) for shard, file in files.items() for name in file.specs}
    missing = sorted(weight_map.items() - held)
    kinds = {
        "missing shards": sorted(set(weight_map.values()) - files.keys()),
        "missing tensors": [
            f"{name:.40} (of {shard:.40})" for name, shard in missing if shard in files
        ],
        "tensors that it does not list": [
            f"{name:.40} (in {shard:.40})" for name, shard in sorted(held - weight_map.items())
        ],
    }
    faults = [f"{kind}: {listing(ones, 1)}" for kind, ones in kinds.items() if ones]
    if faults:
        raise InputError(
            f"The index {index} does not match the files beside it: {'; '.join(faults[:2])}. Copy "
            "or download the whole folder again."
        )
