"""Is a quantized file what its source is? Keys, tokenizer and shapes are equal, and so is every
tensor that has kept its type; the noise of the others is what their type makes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from valle_convert.gguf_file.compare import signal_to_noise
from valle_convert.gguf_file.encode import can_decode, nominal_decibels
from valle_convert.gguf_file.keys import DIGEST_KEYS, FILE_TYPE_KEY
from valle_convert.gguf_file.read import GgufFile, TensorInfo
from valle_convert.quantize.source import SourceBundle

#: What is further below the type's nominal ratio than this is not quantization; in decibels.
_MARGIN, _FLOOR = 4.0, 1.0
#: 16 bits lose no more than this.
_PLAIN = 40.0
#: Keys that quantizing changes.
_OWN = ("quantize.", "valle.quantize.", "general.")
_SHOWN = 3


def faults_of(source: SourceBundle, made: Mapping[str, GgufFile]) -> tuple[str, ...]:
    """In what files by part are not what their source is, in words; empty where they are."""
    found: list[str] = []
    for part, before in source.bundle.files.items():
        label = f"{part}: " if len(made) > 1 else ""
        after = made[part]
        found += [f"{label}{one}" for one in (*_keys(before, after), *_tensors(before, after))]
    more = len(found) - _SHOWN
    return (*found[:_SHOWN], *([f"{more} more"] if more > 0 else []))


def unread_types(made: Mapping[str, GgufFile]) -> list[str]:
    """The types of tensors that nobody but llama.cpp can read yet."""
    kinds = {tensor.ggml_type for file in made.values() for tensor in file.tensors.values()}
    return sorted(kind.name for kind in kinds if not can_decode(kind))


def _keys(before: GgufFile, after: GgufFile) -> Iterator[str]:
    for name, value in before.keys.items():
        if name in (*DIGEST_KEYS, FILE_TYPE_KEY) or name.startswith(_OWN):
            continue
        if name not in after.keys:
            yield f"the key {name} is missing"
        elif after.keys[name] != value:
            yield f"the key {name} is another one"


def _tensors(before: GgufFile, after: GgufFile) -> Iterator[str]:
    yield from (f"{name} is not expected" for name in after.tensors if name not in before.tensors)
    for name, tensor in before.tensors.items():
        found = after.tensors.get(name)
        fault = "is missing" if found is None else _fault(tensor, found)
        if fault:
            yield f"{name} {fault}"


def _fault(before: TensorInfo, after: TensorInfo) -> str:
    if before.shape != after.shape:
        return f"is of shape {list(after.shape)}, not {list(before.shape)}"
    kind, noise = after.ggml_type, signal_to_noise(before, after)
    if before.ggml_type == kind:
        return "" if noise == math.inf else "has other weights"
    least = _PLAIN if kind.block == 1 else max(_FLOOR, nominal_decibels(kind) - _MARGIN)
    if noise is None or noise >= least:  # None: a type that only llama.cpp can read yet
        return ""
    return f"has {noise:.1f} dB signal to noise, and {kind.name} has at least {least:.1f}"
