"""Containers: the content of a file, not its name, decides how it is read.

    file -> first bytes -> safetensors, a file of torch.save, or an index of several -> Container

Of a file on the hub, its header may be enough.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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
from valle_convert.checkpoint.names import is_model, with_plain_names
from valle_convert.checkpoint.safetensors_file import SafetensorsFile
from valle_convert.checkpoint.sharded import Shard, ShardedTensors
from valle_convert.checkpoint.source import TensorSource
from valle_convert.errors import InputError, ValleConvertError
from valle_convert.files import ZIP_MAGIC, first_bytes

_SUPPORTED = "supported are safetensors, files of torch.save, and folders with one of them"


@dataclass(frozen=True)
class Container:
    container: str  # how the weights are stored, in words
    tensors: TensorSource
    extras: Mapping[str, Any]  # what is stored beside them: config, userdata, stats
    #: All plain values of the container itself.
    plain: Mapping[str, Any] = field(default_factory=dict)
    lora: TensorSource | None = None
    shards: tuple[Path, ...] = ()  # the files of the weights, if there are several
    notes: tuple[str, ...] = ()  # what was chosen, left out or renamed, in words


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
    """Whether a file holds the weights of a known model; one on the hub is not opened for that."""
    if tree.origin is not None:
        return True
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
        return Container("safetensors", file, _metadata(path, file.metadata))
    # Imports 15 ms of code that a safetensors file does not need.
    from valle_convert.checkpoint import torch_state
    from valle_convert.checkpoint.torch_file import is_bare_torch_pickle

    if head.startswith(ZIP_MAGIC):
        _refuse_shard(tree, place)
        return torch_state.read_torch(path, is_deepspeed=is_deepspeed(place.name))
    if is_bare_torch_pickle(head):
        return torch_state.read_torch(path)
    if place.name == PICKLE and "data" in tree.folders(place.parent):
        return torch_state.read_unpacked(path.parent)
    raise InputError(_explain_unknown(path, head))


def _read_shards(path: Path, tree: Tree, place: PurePath) -> Container:
    names = tree.files(place.parent)

    def get(name: str) -> Shard | None:
        if name not in names:
            return None
        shard, header = tree.get(place.parent / name), tree.header(place.parent / name)
        if header is None and first_bytes(shard).startswith(ZIP_MAGIC):
            from valle_convert.checkpoint.torch_state import read_torch

            return shard, read_torch(shard).tensors, {}
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
