"""LoRAs kept apart: GGUF adapters that stock llama.cpp adds to a converted file while it runs.

    general.type               adapter
    adapter.type               lora
    adapter.lora.alpha         f32; the update of a weight is scale (alpha / rank) B A
    <tensor>.lora_a            [r, in], of a tensor of the base, such as blk.0.attn_q.weight
    <tensor>.lora_b            [out, r]
    valle.adapter.levels       [u32], of an adapter for some codebook levels only
        valle.adapter.base_sha256  of the checkpoint of its base

Any program of llama.cpp accepts such a file (`--lora`). The levels are this project's addition: the
session switches the adapter on and off between passes. Tables and heads are rows of one matrix, to
which llama.cpp applies no adapter: a LoRA that changes them is rejected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from valle_convert import __version__
from valle_convert.checkpoint import Checkpoint, TensorSpec
from valle_convert.checkpoint.lora import LoraFile, LoraPairs, open_lora
from valle_convert.checkpoint.source import FLOAT32, LARGEST_WEIGHT, NamedTensors
from valle_convert.errors import InputError
from valle_convert.families.bundle import Bundle
from valle_convert.files import atomic_output, check_outputs, sha256_of, valid_utf8
from valle_convert.gguf_file.encode import encode
from valle_convert.gguf_file.header import Key, pack_header, tensor_entries, write_entries
from valle_convert.gguf_file.keys import (
    ARCHITECTURE,
    CONVERTER_KEY,
    FILE_TYPE_KEY,
    SOURCE_SHA256_KEY,
    is_converted,
)
from valle_convert.gguf_file.read import GgufFile, TensorInfo
from valle_convert.gguf_file.types import F16, F32, PLAIN_DTYPES, GgmlType
from valle_convert.model.trainer import LAYER_TENSORS
from valle_convert.wording import listing

LEVELS_KEY = "valle.adapter.levels"
BASE_SHA256_KEY = "valle.adapter.base_sha256"
ALPHA_KEY = "adapter.lora.alpha"
_FORMAT_KEY, _FORMAT = "valle.adapter.format_version", 1
_SIDES = (".lora_a", ".lora_b")
_KIND = [ARCHITECTURE, "lora"]  # general.architecture and adapter.type
_TYPES: dict[str, GgmlType] = {"f32": F32, "f16": F16}
_MATRICES = {target: source for source, target, shape in LAYER_TENSORS if len(shape) == 2}


@dataclass(frozen=True)
class AdapterBase:
    """The base of an adapter: the weights of the layers, and their checkpoint."""

    name: str
    specs: Mapping[str, TensorSpec]
    sha256: str | None  # of the checkpoint; None if a file lacks it

    @classmethod
    def of(cls, base: Bundle | GgufFile | Checkpoint) -> AdapterBase:
        """A checkpoint, or files made from it, which have the same weights."""
        if isinstance(base, Checkpoint):
            return cls(str(base.path), base.tensors.specs, base.sha256())
        file = base if isinstance(base, GgufFile) else base.main
        if not is_converted(file.keys):
            raise InputError(
                f"{file.path} is not a converted VALL-E checkpoint, as an adapter needs; "
                "convert one with `valle-convert CHECKPOINT OUT.gguf`."
            )
        specs = {}
        for name, tensor in file.tensors.items():
            source = source_name(name)
            if source is not None:
                specs[source] = TensorSpec(source, FLOAT32, "F32", tensor.shape)
        said = file.keys.get(SOURCE_SHA256_KEY)
        return cls(str(file.path), specs, said if isinstance(said, str) else None)


class Adapter(LoraPairs):
    """An adapter file that fits a converted file."""

    def __init__(self, given: LoraFile, base: AdapterBase) -> None:
        file, where = GgufFile(given.path), str(given.path)
        if file.keys.get("general.type") != "adapter":
            raise InputError(
                f"{where} is not a LoRA adapter but another GGUF file; make one "
                "with `valle-convert lora BASE LORA OUT.gguf`."
            )
        said = file.keys.get(BASE_SHA256_KEY)
        alpha = file.keys.get(ALPHA_KEY)
        levels = file.keys.get(LEVELS_KEY, [])
        stored, faults = {}, []
        for name, tensor in file.tensors.items():
            weight, _, side = name.rpartition(".lora_")
            source = source_name(weight)
            if source is None or not name.endswith(_SIDES):
                faults.append(f"{name} belongs to no layer")
            else:
                stored[f"{source.removesuffix('.weight')}.lora_{side.upper()}"] = tensor
        if said is not None and base.sha256 is not None and said != base.sha256:
            faults.insert(
                0,
                f"it was made for the checkpoint with sha256 {str(said)[:16]}..., but the file is "
                f"of {base.sha256[:16]}...",
            )
        if [file.keys.get(key) for key in ("general.architecture", "adapter.type")] != _KIND:
            faults.append(f"it is not a lora of the architecture {ARCHITECTURE}")
        if not isinstance(alpha, float) or not np.isfinite(alpha) or not alpha:
            faults.append(f"{ALPHA_KEY} is {alpha!r:.40}")
        if not isinstance(levels, list) or any(type(level) is not int for level in levels):
            faults.append(f"{LEVELS_KEY} is {levels!r:.40}")
        if faults:
            raise InputError(
                f"{where} is not an adapter for {base.name}: {listing(faults, 1, '; ')}. "
                "Give the file that it was made for, or make it again with `valle-convert lora`."
            )
        config = {"alpha": alpha, "rvq_levels": levels}
        super().__init__(_Stored(stored), config, base.specs, where, factor=given.factor)
        self.path = given.path

    def is_for(self, level: int) -> bool:
        """Whether passes of that codebook level use it."""
        return not self.levels or level in self.levels


class _Stored:
    """The tensors of an adapter file under the checkpoint's names; a `TensorSource`."""

    def __init__(self, stored: Mapping[str, TensorInfo]) -> None:
        self._stored = stored
        self.specs: Mapping[str, TensorSpec] = {}
        for name, tensor in stored.items():
            kind = tensor.ggml_type
            dtype = PLAIN_DTYPES[kind] if kind in _TYPES.values() else None
            self.specs[name] = TensorSpec(name, dtype, kind.name, tensor.shape)

    def read(self, name: str) -> NDArray[np.float32]:
        return self._stored[name].rows()


class AdaptedTensors:
    """The tensors of a model with the updates of adapters added, as float32."""

    def __init__(self, tensors: NamedTensors, adapters: Sequence[Adapter]) -> None:
        self._tensors = tensors
        self._adapters = tuple(adapters)

    def read(self, name: str) -> NDArray[np.float32]:
        values: NDArray[np.float32] = np.asarray(self._tensors.read(name), np.float32)
        for adapter in self._adapters:
            if (pair := adapter.by_target.get(name)) is not None:
                down, up = adapter.read(pair)
                values = values + np.float32(pair.scale) * (up @ down)
        return values


def source_name(target: str) -> str | None:
    """The checkpoint's name of a layer's matrix in a GGUF file, else None."""
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", target)
    if found is None or found[2] not in _MATRICES:
        return None
    return f"model.layers.{found[1]}.{_MATRICES[found[2]]}.weight"


def target_name(source: str) -> str:
    _, _, layer, rest = source.split(".", 3)
    (target,) = (name for name, one in _MATRICES.items() if rest == f"{one}.weight")
    return f"blk.{layer}.{target}.weight"


def write_lora(
    base: Bundle | Checkpoint,
    lora: LoraFile,
    target: Path,
    *,
    out_type: str = "f32",
    force: bool = False,
) -> Adapter:
    """Write a LoRA as an adapter of a model, and read it back; see `api.write_lora`."""
    fits, kind, source = AdapterBase.of(base), _TYPES[out_type], lora.path
    pairs = open_lora(lora, fits.specs, kept_apart=True)
    inputs = [base.path, source]
    check_outputs([target], force=force, inputs=inputs)
    data: dict[str, NDArray[np.generic]] = {}
    for name, pair in pairs.by_target.items():
        tensors = (pair.down, pair.up)
        for side, tensor, values in zip(_SIDES, tensors, pairs.read(pair), strict=True):
            data[target_name(name) + side] = encode(values, kind, tensor)
    entries = tensor_entries((name, values.shape, kind) for name, values in data.items())
    keys = _keys(fits, pairs, source, kind)
    with atomic_output(target, force=force, inputs=inputs) as file:
        write_entries(file, pack_header(keys, entries), entries, data.values())
    written = Adapter(LoraFile(target), fits)
    written.notes = pairs.notes
    return written


def _keys(base: AdapterBase, pairs: LoraPairs, source: Path, kind: GgmlType) -> list[Key]:
    alpha = pairs.alpha * pairs.factor
    if abs(alpha) < float(np.finfo(np.float32).tiny):
        raise InputError(
            f"{source}: its alpha is 0, so it changes nothing (and llama.cpp would read it as 1)."
        )
    if not abs(alpha) <= LARGEST_WEIGHT:
        raise InputError(
            f"{source}: its alpha is {alpha:g}, expected at most {LARGEST_WEIGHT:g}; "
            "give a smaller @SCALE."
        )
    keys = [
        Key("general.architecture", ARCHITECTURE, "string"),
        Key("general.type", "adapter", "string"),
        Key("general.name", valid_utf8(source.stem), "string"),
        Key(FILE_TYPE_KEY, 0 if kind is F32 else 1, "u32"),
        Key("adapter.type", "lora", "string"),
        Key(ALPHA_KEY, alpha, "f32"),
        Key(_FORMAT_KEY, _FORMAT, "u32"),
    ]
    if pairs.levels:
        keys.append(Key(LEVELS_KEY, list(pairs.levels), "[u32]"))
    if base.sha256 is not None:
        keys.append(Key(BASE_SHA256_KEY, base.sha256, "string"))
    keys += [
        Key("valle.adapter.source_name", valid_utf8(source.name), "string"),
        Key("valle.adapter.source_sha256", sha256_of(source), "string"),
        Key(CONVERTER_KEY, __version__, "string"),
    ]
    return keys
