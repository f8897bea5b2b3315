"""The converted files of a model back to a `.sft`, the training project's own file.

The keys show which rows were which tensor, so no checkpoint is needed. Numbers keep their type;
quantized ones become float32, which holds them exactly. The `.sft` has its checkpoint's config and
phoneme strings. `fp32.sft` is safetensors with config, symmap and stats as metadata.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from valle_convert.checkpoint import Checkpoint, TensorSpec
from valle_convert.checkpoint.source import BFLOAT16, FLOAT16, FLOAT32
from valle_convert.errors import InputError
from valle_convert.families.bundle import Bundle
from valle_convert.families.family import Choices
from valle_convert.families.gemma import GemmaFamily
from valle_convert.files import atomic_output, check_free_space, check_outputs, made_folder
from valle_convert.gguf_file.keys import (
    BIAS_KEY,
    SOURCE_CONFIG_KEY,
    SOURCE_SYMMAP_KEY,
)
from valle_convert.gguf_file.plan import TOKEN_EMBEDDING
from valle_convert.gguf_file.read import GgufFile
from valle_convert.gguf_file.types import PLAIN_DTYPES
from valle_convert.model.description import Contents, source_shapes
from valle_convert.progress import Progress, silent

#: The values of `--dtype`; `auto` keeps the file's own.
DTYPES: Mapping[str, np.dtype[Any] | None] = {
    "auto": None,
    "f32": FLOAT32,
    "f16": FLOAT16,
    "bf16": BFLOAT16,
}
SFT_NAME = "fp32.sft"
_DTYPE_NAMES = {FLOAT32: "F32", FLOAT16: "F16", BFLOAT16: "BF16"}


class BackTensors:
    """The checkpoint's tensors from its converted files, as a `TensorSource`.

    Without a `dtype` they have the file's own type, float32 if it is quantized.
    """

    def __init__(self, bundle: Bundle, dtype: np.dtype[Any] | None = None) -> None:
        self._path = bundle.path
        self._dtype = dtype
        self._reads: dict[str, Callable[[], NDArray[np.float32]]] = {}
        self._specs: dict[str, TensorSpec] = {}
        try:
            parts = cast("GemmaFamily[Any, Any]", bundle.family).contents_of(bundle.model)
        except KeyError as error:
            raise InputError(
                f"{bundle.path}: no checkpoint has the table or head {error!s:.60}; "
                "convert the checkpoint again."
            ) from None
        for part, contents in parts.items():
            self._add_part(bundle.files[part], contents, bundle.model.config.n_embd)
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(self._specs)

    def _add_part(self, file: GgufFile, contents: Contents, width: int) -> None:
        shapes = source_shapes(contents, width)

        def add(name: str, found: np.dtype[Any], read: Callable[[], NDArray[np.float32]]) -> None:
            chosen = found if self._dtype is None else self._dtype
            self._specs[name] = TensorSpec(name, chosen, _DTYPE_NAMES[chosen], shapes[name])
            self._reads[name] = read

        embedding = file.tensors[TOKEN_EMBEDDING]
        matrices = PLAIN_DTYPES.get(embedding.ggml_type, FLOAT32)
        for block in contents.rows:
            rows = slice(block.first_row, block.first_row + block.n_rows)
            add(block.source, matrices, partial(embedding.rows, rows))
        for tensor in contents.backbone:
            stored = file.tensors.get(tensor.target)
            if stored is None or stored.shape != tensor.shape:
                raise InputError(
                    f"{file.path}: expected {tensor.target} of shape {list(tensor.shape)}, but "
                    f"{'it is missing' if stored is None else f'it is {list(stored.shape)}'}; "
                    "convert the checkpoint again."
                )
            kind = PLAIN_DTYPES.get(stored.ggml_type, FLOAT32)
            if len(tensor.shape) == 1:  # vectors are always float32 in a file
                kind = _narrow(stored.rows(), matrices)
            add(tensor.source, kind, stored.rows)
        start = 0
        biases = np.array(file.keys.get(BIAS_KEY, []), np.float32)
        for bias in contents.biases:
            values = biases[start : start + bias.n_rows]
            if shapes[bias.source] == (bias.n_rows,):
                add(bias.source, _narrow(values, matrices), values.copy)
            start += bias.n_rows

    def read(self, name: str) -> NDArray[Any]:
        """One tensor, of the shape and type of its spec."""
        spec, values = self.specs[name], self._reads[name]()
        with np.errstate(over="ignore"):
            found = values.astype(spec.dtype).reshape(spec.shape)
        if not np.isfinite(found.astype(np.float32)).all():
            raise InputError(
                f"{self._path}: {spec.name} holds NaN, infinity or a number too large for "
                f"{spec.dtype_name}; give --dtype f32, or convert the checkpoint again."
            )
        return found


def _narrow(values: NDArray[np.float32], dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type of the matrices if it holds these values exactly, else float32."""
    with np.errstate(over="ignore"):
        same = values.astype(dtype).astype(np.float32)
    return dtype if np.array_equal(same, values) else FLOAT32


def export_file(
    bundle: Bundle,
    folder: Path,
    *,
    dtype: str = "auto",
    force: bool = False,
    progress: Progress = silent,
) -> Path:
    """Write a converted file back as a checkpoint, or leave nothing."""
    tensors = BackTensors(bundle, DTYPES[dtype])
    header: dict[str, Any] = {"__metadata__": _metadata(bundle, tensors)}
    end = 0
    for name, spec in tensors.specs.items():
        header[name] = {
            "dtype": spec.dtype_name,
            "shape": list(spec.shape),
            "data_offsets": [end, end + spec.n_bytes],
        }
        end += spec.n_bytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    target, size = folder / SFT_NAME, 8 + len(text) + end
    with made_folder(folder):
        check_outputs([target], force=force, inputs=bundle.paths)
        check_free_space(target, size)
        with (
            atomic_output(target, force=force, inputs=bundle.paths) as stream,
            progress("writing", size, "B") as advance,
        ):
            advance(stream.write(len(text).to_bytes(8, "little") + text))
            for name in tensors.specs:
                advance(stream.write(tensors.read(name).reshape(-1).view(np.uint8).data))
    return target


def _json_key(file: GgufFile, key: str) -> dict[str, Any] | None:
    text = file.keys.get(key)
    try:
        value = None if text is None else json.loads(text)
    except (TypeError, ValueError, RecursionError):
        value = text
    if not isinstance(value, dict | None):
        raise InputError(f"{file.path}: {key} is not a JSON object; convert the checkpoint again.")
    return value


def _metadata(bundle: Bundle, tensors: BackTensors) -> dict[str, str]:
    """The entries of the header, each a JSON string."""
    file, model = bundle.main, bundle.model
    config = _json_key(file, SOURCE_CONFIG_KEY)
    symmap = _json_key(file, SOURCE_SYMMAP_KEY)
    if config is None:
        raise InputError(f"{file.path} lacks {SOURCE_CONFIG_KEY}; convert the checkpoint again.")
    back = Checkpoint(file.path, "gguf", tensors, config, f"in {file.path.name}", None, {})
    found = bundle.family.describe(back, Choices()).model
    carried = replace(found, config=replace(found.config, codec=model.codec))
    if bundle.family.differences(carried, model):
        raise InputError(
            f"{file.path}: its config contradicts its tensors and keys; "
            "convert the checkpoint again."
        )
    entries = {"config": json.dumps(config, ensure_ascii=False)}
    if symmap is not None:
        entries["userdata"] = json.dumps({"symmap": symmap}, ensure_ascii=False)
    step = file.keys.get("valle.source.global_step")
    if isinstance(step, int):
        entries["stats"] = json.dumps({"global_step": step})
    return entries
