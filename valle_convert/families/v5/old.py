"""GGUF files of VALL-E made by llama.cpp's LLaMA converter, and why they speak wrongly.

They are the Hugging Face export after llama.cpp's converter for LLaMA models:
`general.architecture` is `llama`, with a SiLU gate instead of the network's GELU; the rows of q and
k are interleaved, since that graph rotates neighbours; tables and heads are two matrices; nothing
says which rows are which, or how positions count. All weights are there. `read_old` gives them
under the checkpoint's names, as numbers for the reference and as stored blocks for the writer: rows
are moved as a whole, and no number is rounded a second time.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle_convert.checkpoint import Checkpoint, TensorSpec
from valle_convert.checkpoint.config import Config, load_config, overlay
from valle_convert.checkpoint.exported import (
    EMBEDDINGS,
    HEADS,
    ExportedTensors,
    assumed_config,
    is_named,
    rows_of_export,
)
from valle_convert.checkpoint.folder import Tree, found_file
from valle_convert.checkpoint.names import RenamedTensors
from valle_convert.checkpoint.source import FLOAT32, BlockSource, CarriedVocabulary
from valle_convert.errors import InputError
from valle_convert.gguf_file.encode import can_decode, decode
from valle_convert.gguf_file.keys import (
    ARCHITECTURE,
    BIAS_KEY,
    OLD_TYPES_KEY,
    SOURCE_PREFIX,
    KeyReader,
    is_converted,
)
from valle_convert.gguf_file.plan import TOKEN_EMBEDDING
from valle_convert.gguf_file.read import GgufFile, TensorInfo
from valle_convert.gguf_file.types import GGML_TYPES, PLAIN_DTYPES
from valle_convert.model.trainer import LAYER_TENSORS
from valle_convert.tokenizer.compiled import TOKENS_KEY
from valle_convert.wording import listing

FORMAT = "GGUF of llama.cpp's LLaMA converter"
_OLD_TYPES = OLD_TYPES_KEY.removeprefix(SOURCE_PREFIX)
_WHAT = "GGUF file of VALL-E made by llama.cpp's LLaMA converter"
_ARCHITECTURE = "llama"
_OUTPUT = "output.weight"
#: Rows of the published models' matrices, whose tokens may have lost their names.
_PUBLISHED_ROWS = 17_702
#: Values that every VALL-E has.
_EXPECTED = {"rope.freq_base": 10_000.0, "attention.layer_norm_rms_epsilon": 1e-6}
#: A checkpoint's norm weight, rounded to bfloat16 by the export.
_ROUNDING = 2.0**-8


def is_old(file: GgufFile) -> bool:
    """Whether a GGUF file is a VALL-E made by llama.cpp's LLaMA converter."""
    if is_converted(file.keys) or file.keys.get("general.architecture") != _ARCHITECTURE:
        return False
    tokens = file.keys.get(TOKENS_KEY)
    if not isinstance(tokens, list):
        return False
    return is_named(tokens) or len(tokens) == _PUBLISHED_ROWS


def why_wrong(path: Path) -> str:
    """One sentence on the fault of such a file, and the remedy."""
    return (
        f"{path} is a GGUF file of VALL-E made by llama.cpp's LLaMA converter: its graph computes "
        "SiLU instead of GELU, and it lacks tables, heads and positions, so it speaks wrongly; "
        f"fix it with `valle-convert repair {path} NEW.gguf`."
    )


def read_old(
    file: GgufFile, *, config: Path | None = None, biases: Checkpoint | None = None
) -> Checkpoint:
    """Read a file made by llama.cpp's LLaMA converter as the checkpoint that it came from."""
    file.refuse_part()
    path = file.path
    if is_converted(file.keys):
        raise InputError(f"{path} is a converted file, which needs no repair.")
    names = file.keys.get(TOKENS_KEY)
    if file.keys.get("general.architecture") != _ARCHITECTURE or not isinstance(names, list):
        raise InputError(
            f"{path} is not a {_WHAT}: its architecture is "
            f"{file.keys.get('general.architecture')!r:.40}, expected 'llama' with tokens."
        )
    sizes = _Sizes(file)
    given = Config({}, "") if config is None else load_config(config, found_file(Tree(), path))
    export = _OldTensors(file, sizes)
    n_rows = export.specs[EMBEDDINGS].shape[0] if EMBEDDINGS in export.specs else 0
    rows = rows_of_export(names, n_rows, given.keys, str(path))
    said, assumed = assumed_config(
        rows,
        given.keys,
        name=path.stem,
        dim=sizes.width,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        layers=sizes.layers,
        context=sizes.context,
    )
    tensors: BlockSource = ExportedTensors(
        export, rows, str(path), lambda blocks, kind: decode(blocks, GGML_TYPES[kind])
    )
    lost = ["the table and the head of raw text"]
    origin: dict[str, str | tuple[str, ...]] = {
        "format": FORMAT,
        _OLD_TYPES: tuple(file.tensors[name].ggml_type.name for name in (TOKEN_EMBEDDING, _OUTPUT)),
    }
    if biases is None:
        lost.insert(0, "the biases of the heads, if it had any")
    else:
        tensors = _WithBiases(tensors, biases, path)
        said["experimental"]["classifiers_bias"] = True
        origin["biases_sha256"] = biases.sha256()
    return Checkpoint(
        path=path,
        container=FORMAT,
        tensors=tensors,
        config=overlay(said, given.keys),
        config_source="assumed" if config is None else f"assumed, overridden by {given.source}",
        symmap=None,
        stats={},
        companions=(*given.files, *(biases.inputs if biases is not None else ())),
        notes=given.notes,
        words={name: part.words for name, part in rows.items()},
        vocabulary=_vocabulary(file, names[: rows["text_emb.weight"].n_rows]),
        assumed=assumed,
        lost=tuple(lost),
        origin=origin,
    )


def as_repaired(checkpoint: Checkpoint, file: GgufFile) -> Checkpoint:
    """A checkpoint, reduced to what a repaired file can contain, for comparison."""
    with_biases = BIAS_KEY in file.keys
    n_heads = len(KeyReader(file.keys).words("valle.head.names"))
    kept = {
        name: name
        for name in checkpoint.tensors.specs
        if name != "raw_text_emb.weight" and _is_kept(name, n_heads, with_biases=with_biases)
    }
    experimental: dict[str, Any] = {"classifiers_bias": with_biases}
    context = file.keys.get(f"{ARCHITECTURE}.context_length")
    if isinstance(context, int):  # every export has the same number
        experimental["max_position_embeddings"] = context
    return replace(
        checkpoint,
        tensors=RenamedTensors(checkpoint.tensors, kept),
        config=overlay(checkpoint.config, {"experimental": experimental}),
        stats={},
    )


def _is_kept(name: str, n_heads: int, *, with_biases: bool) -> bool:
    head = re.fullmatch(r"classifiers\.proj\.(\d+)\.(weight|bias)", name)
    return head is None or (int(head[1]) < n_heads and (with_biases or head[2] == "weight"))


class _Sizes:
    """The numbers of the header that do not follow from the tensors."""

    def __init__(self, file: GgufFile) -> None:
        faults: list[str] = []

        def number(name: str, default: int | None = None) -> int:
            value = file.keys.get(f"{_ARCHITECTURE}.{name}", default)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 24:
                faults.append(f"{_ARCHITECTURE}.{name} is {value!r:.40}")
                return 1
            return value

        self.width = number("embedding_length")
        self.heads = number("attention.head_count")
        self.kv_heads = number("attention.head_count_kv", self.heads)
        self.layers = number("block_count")
        self.context = number("context_length")
        for name, expected in _EXPECTED.items():
            value = file.keys.get(f"{_ARCHITECTURE}.{name}", expected)
            if not isinstance(value, float) or abs(value - expected) > 1e-3 * expected:
                faults.append(f"{_ARCHITECTURE}.{name} is {value!r:.40}, not {expected:g}")
        if not faults and (self.width % self.heads or self.width // self.heads % 2):
            faults.append(f"{self.heads} heads do not divide the width {self.width} evenly")
        if faults:
            raise InputError(f"{file.path} is not a {_WHAT}: {'; '.join(faults)}.")


class _OldTensors:
    """The file's tensors under the names of the Hugging Face export, q and k in original order."""

    def __init__(self, file: GgufFile, sizes: _Sizes) -> None:
        self._stored: dict[str, TensorInfo] = {}
        self._orders: dict[str, NDArray[np.int64]] = {}
        names = {
            TOKEN_EMBEDDING: EMBEDDINGS,
            _OUTPUT: HEADS,
            "output_norm.weight": "model.norm.weight",
        }
        for layer in range(sizes.layers):
            for source, target, _ in LAYER_TENSORS:
                names[f"blk.{layer}.{target}.weight"] = f"model.layers.{layer}.{source}.weight"
        missing = [name for name in names if name not in file.tensors]
        unknown = [name for name in file.tensors if name not in names]
        unreadable = [
            f"{name} of type {tensor.ggml_type.name}"
            for name, tensor in file.tensors.items()
            if not can_decode(tensor.ggml_type) or not tensor.shape
        ]
        for words, found in (
            ("missing", missing),
            ("unexpected", unknown),
            ("cannot be read", unreadable),
        ):
            if found:
                raise InputError(f"{file.path} is not a {_WHAT}; {words}: {listing(found, 10)}.")
        specs: dict[str, TensorSpec] = {}
        for name, tensor in file.tensors.items():
            source = names[name]
            kind = tensor.ggml_type
            dtype = PLAIN_DTYPES.get(kind, FLOAT32)
            specs[source] = TensorSpec(source, dtype, kind.name, tensor.shape)
            self._stored[source] = tensor
            heads = {"q_proj": sizes.heads, "k_proj": sizes.kv_heads}.get(source.split(".")[-2])
            if heads is None:
                continue
            if tensor.shape[0] % (2 * heads):
                raise InputError(
                    f"{file.path}: the {tensor.shape[0]} rows of {name} do not divide into {heads} "
                    "heads; the file is damaged: copy it again."
                )
            stored_rows = np.arange(tensor.shape[0]).reshape(heads, -1, 2)
            self._orders[source] = stored_rows.swapaxes(1, 2).reshape(-1)
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(specs)

    def read(self, name: str) -> NDArray[Any]:
        stored = self._stored[name]
        dtype = PLAIN_DTYPES.get(stored.ggml_type)
        if len(stored.shape) == 1:
            return stored.data.view(dtype) if dtype is not None else stored.rows()
        rows = self._stored_rows(name)
        return decode(rows, stored.ggml_type) if dtype is None else rows.view(dtype)

    def read_blocks(self, name: str) -> NDArray[np.uint8] | None:
        stored = self._stored[name]
        if stored.ggml_type in PLAIN_DTYPES or len(stored.shape) == 1:
            return None
        return self._stored_rows(name)

    def _stored_rows(self, name: str) -> NDArray[np.uint8]:
        data = self._stored[name].data
        rows = data.reshape(len(data), -1)
        return rows[self._orders[name]] if name in self._orders else rows


class _WithBiases:
    """The tensors of an old file, and the biases of its checkpoint."""

    def __init__(self, tensors: BlockSource, checkpoint: Checkpoint, path: Path) -> None:
        self._tensors = tensors
        self._checkpoint = checkpoint.tensors
        given = checkpoint.tensors.specs
        specs = dict(tensors.specs)
        biases = [
            name
            for name in given
            if name.startswith("classifiers.proj.") and name.endswith(".bias")
        ]
        heads = [name for name in specs if name.startswith("classifiers.proj.")]
        if not biases:
            raise InputError(f"{checkpoint.path} has no biases of heads; leave out --biases.")
        for head in heads:
            name = head.replace(".weight", ".bias")
            if name not in biases or given[name].shape != specs[head].shape[:1]:
                raise InputError(
                    f"{checkpoint.path} is not the checkpoint of {path}: expected {name} of "
                    f"{specs[head].shape[0]} values; give the right checkpoint "
                    "with --biases, or leave that out."
                )
            specs[name] = given[name]
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(specs)
        self._check_norms(checkpoint.path, path)

    def _check_norms(self, checkpoint: Path, path: Path) -> None:
        """Check that the norms are equal, which every export keeps unquantized."""
        for name, spec in self._tensors.specs.items():
            if not name.endswith("norm.weight"):
                continue
            there = self._checkpoint.specs.get(name)
            same = there is not None and there.shape == spec.shape
            if same:
                ours = self._tensors.read(name).astype(np.float32)
                theirs = self._checkpoint.read(name).astype(np.float32)
                same = bool((np.abs(ours - theirs) <= _ROUNDING * np.abs(theirs)).all())
            if not same:
                raise InputError(
                    f"{checkpoint} is not the checkpoint of {path}: {name} differs; give the right "
                    "checkpoint with --biases, or leave that out."
                )

    def read(self, name: str) -> NDArray[Any]:
        if name in self._tensors.specs:
            return self._tensors.read(name)
        return self._checkpoint.read(name)

    def read_blocks(self, name: str) -> NDArray[np.uint8] | None:
        return self._tensors.read_blocks(name) if name in self._tensors.specs else None


def _vocabulary(file: GgufFile, names: list[str]) -> CarriedVocabulary | None:
    """The file's own strings and merges; None if it has no merges."""
    merges = file.keys.get("tokenizer.ggml.merges")
    if not isinstance(merges, list) or len(set(names)) != len(names):
        return None
    return CarriedVocabulary(
        strings={name: id_ for id_, name in enumerate(names)},
        merges=tuple(tuple(str(merge).split(" ")) for merge in merges),
    )
