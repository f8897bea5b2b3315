"""`*.index.json`: one state dict in several files of safetensors or of torch.save.

    {"metadata": {...}, "weight_map": {tensor: file beside the index, ...}}

In: an index, and access to the files beside it. Out: one `TensorSource` over all of them. An index
is untrusted: it may list plain names only, and must list exactly the tensors of the files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from valle_convert.checkpoint.folder import SAFETENSORS_SUFFIXES, TORCH_SUFFIXES, is_plain_name
from valle_convert.checkpoint.source import TensorSource, TensorSpec
from valle_convert.errors import InputError
from valle_convert.files import read_small_file
from valle_convert.strict_json import unique_json
from valle_convert.wording import listing

_MAX_INDEX_BYTES = 16 << 20

#: A path, its tensors, and the strings of its metadata.
Shard = tuple[Path, TensorSource, Mapping[str, str]]


class ShardedTensors:
    """A `TensorSource` over the shards of an index, in the order of their names."""

    def __init__(self, index: Path, get: Callable[[str], Shard | None]) -> None:
        weight_map = _read_index(index)
        opened = {name: get(name) for name in sorted(set(weight_map.values()))}
        found = {name: shard for name, shard in opened.items() if shard is not None}
        files = {name: tensors for name, (_, tensors, _) in found.items()}
        _check(index, weight_map, files)
        self.paths = tuple(path for path, _, _ in found.values())
        self.metadata = _merge(index, {name: said for name, (_, _, said) in found.items()})
        self._files = {name: files[shard] for name, shard in weight_map.items()}
        self.specs: Mapping[str, TensorSpec] = {
            name: spec for file in files.values() for name, spec in file.specs.items()
        }

    def read(self, name: str) -> NDArray[Any]:
        return self._files[name].read(name)


def _read_index(path: Path) -> dict[str, str]:
    try:
        index = unique_json(read_small_file(path, "index", _MAX_INDEX_BYTES))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"The index {path} is not valid JSON ({error}); copy or download it again."
        ) from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
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


def _check(index: Path, weight_map: Mapping[str, str], files: Mapping[str, TensorSource]) -> None:
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


def _merge(index: Path, metadata: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    merged: dict[str, str] = {}
    for shard, entries in metadata.items():
        for key, value in entries.items():
            if merged.setdefault(key, value) != value:
                raise InputError(
                    f"The shards of {index} contradict each other: the metadata entry {key!r} of "
                    f"{shard} differs from that of earlier shards; save the model again."
                )
    return merged
