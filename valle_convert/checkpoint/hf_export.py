"""The Hugging Face export as a folder: `model.safetensors`, `config.json`, `tokenizer.json`.

In: the tensors of the first, whole or in shards, and the other two if they exist. Out: the
checkpoint's tensors and config, with what the export lost and what had to be assumed.
`exported.py` finds the rows.

`config.json` has the same values for every model, 16 heads and 12 layers, and nothing on positions,
attention or sums. Its arithmetic must be VALL-E's; its number of heads is used if it fits the
width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from valle_convert.checkpoint.exported import (
    EMBEDDINGS,
    HEADS,
    ExportedTensors,
    assumed_config,
    is_count,
    is_named,
    rows_of_export,
)
from valle_convert.checkpoint.source import TensorSource
from valle_convert.errors import InputError, UnsupportedModelError
from valle_convert.files import read_json_object
from valle_convert.wording import plural

FORMAT = "Hugging Face export"
CONFIG_FILE, TOKENIZER_FILE = "config.json", "tokenizer.json"
#: Parts of the training project's checkpoint that no export has.
LOST = ("the biases of the heads, if it had any", "the table and the head of raw text")

_MAX_JSON_BYTES = 64 << 20
_MAX_ROWS = 1 << 24
_MAX_PADDING = 512  # rows
#: Values that every export has, and the width of a head in every published model.
_EXPORTED_HEADS, _HEAD_WIDTH = 16, 64
_DEFAULT_CONTEXT = 22_500
#: VALL-E's arithmetic; other values are rejected.
_ARITHMETIC: dict[str, tuple[object, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("gelu",),
    "rms_norm_eps": (1e-6,),
    "rope_theta": (10_000.0,),
    "rope_scaling": (None,),
    "attention_bias": (False,),
    "mlp_bias": (False,),
}


@dataclass(frozen=True)
class Export:
    tensors: TensorSource  # under the names of the original checkpoint
    config: object  # of that checkpoint, without the user's keys
    #: The names of the rows by table, such as `en`.
    row_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()  # values that the export lacks, in words
    notes: tuple[str, ...] = ()


def is_export(tensors: TensorSource) -> bool:
    return EMBEDDINGS in tensors.specs and "text_emb.weight" not in tensors.specs


def read_export(
    tensors: TensorSource,
    path: Path,
    *,
    config: Path | None,
    tokenizer: Path | None,
    given: Mapping[str, Any],
    title: str,
) -> Export:
    said = {} if config is None else read_json_object(config, "file", _MAX_JSON_BYTES)
    _check_arithmetic(said, config)
    widths = [spec.shape for name, spec in tensors.specs.items() if name in (EMBEDDINGS, HEADS)]
    if len(set(widths)) != 1 or len(widths) != 2 or len(widths[0]) != 2:
        raise InputError(
            f"{path} is not a complete export of a VALL-E checkpoint: {EMBEDDINGS} and {HEADS} "
            f"have the shapes {[list(shape) for shape in widths]}, expected two equal ones; "
            "export the checkpoint again."
        )
    n_rows, width = widths[0]
    names = [] if tokenizer is None else _row_names(tokenizer)
    padding = _n_padding(names, tensors)
    rows = rows_of_export(names, n_rows - padding, given, str(path))
    heads, is_given = _heads(said, given, width, path)
    own, assumed = assumed_config(
        rows,
        given,
        name=title,
        dim=width,
        heads=heads,
        kv_heads=_kv_heads(tensors, heads, width, path),
        layers=_n_layers(tensors),
        context=_context(said),
    )
    return Export(
        tensors=ExportedTensors(tensors, rows, str(path)),
        config=own,
        row_names={name: part.row_names for name, part in rows.items() if part.row_names},
        assumed=assumed if is_given else (*assumed, plural(heads, "head")),
        notes=(f"{plural(padding, 'row')} of padding dropped",) if padding else (),
    )


def _check_arithmetic(said: Mapping[str, Any], path: Path | None) -> None:
    rope = said.get("rope_parameters")
    values = dict(rope) | dict(said) if isinstance(rope, Mapping) else said
    wrong = [
        f"{key} {values[key]!r:.40} (supported: {expected[0]!r})"
        for key, expected in _ARITHMETIC.items()
        if key in values and values[key] not in expected
    ]
    if wrong:
        raise UnsupportedModelError(
            f"{path} describes a network other than VALL-E: {'; '.join(wrong)}; "
            "give the export of a VALL-E checkpoint."
        )


def _row_names(path: Path) -> list[str]:
    """The names of all ids; "" for an id without one."""
    document = read_json_object(path, "file", _MAX_JSON_BYTES)
    model = document.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict) or any(
        not isinstance(id_, int) or isinstance(id_, bool) or not 0 <= id_ < _MAX_ROWS
        for id_ in vocabulary.values()
    ):
        raise InputError(
            f"{path} has no model.vocab of names and ids below {_MAX_ROWS:,}; copy or download it "
            "again."
        )
    names = [""] * (max(vocabulary.values(), default=-1) + 1)
    for name, id_ in vocabulary.items():
        names[id_] = name
    return names


def _n_padding(names: list[str], tensors: TensorSource) -> int:
    """Rows after the last table that pad to a multiple of 8, 64 ..."""
    n_rows = tensors.specs[EMBEDDINGS].shape[0]
    if is_named(names):
        padding = n_rows - len(names)
        return padding if n_rows % 8 == 0 and 0 < padding < _MAX_PADDING else 0
    last = tensors.read(EMBEDDINGS)[-_MAX_PADDING:]
    used = np.flatnonzero((last != 0).any(axis=1))
    return 0 if not len(used) else len(last) - 1 - int(used[-1])


def _heads(
    said: Mapping[str, Any], given: Mapping[str, Any], width: int, path: Path
) -> tuple[int, bool]:
    """The number of heads, which tensors do not show, and whether the user gave it."""
    size = given.get("size")
    wanted = size.get("heads") if isinstance(size, Mapping) else None
    if wanted is not None or isinstance(size, str | int | float):
        # The other checks of the config find out whether it fits.
        return (wanted if is_count(wanted) and wanted else _EXPORTED_HEADS), True
    heads = said.get("num_attention_heads", _EXPORTED_HEADS)
    divides = is_count(heads) and heads and width % heads == 0 and width // heads % 2 == 0
    # A number other than the exports' default was set on purpose.
    if divides and (heads != _EXPORTED_HEADS or width == heads * _HEAD_WIDTH):
        return heads, False
    raise InputError(
        f"{path}: config.json has the default of every export, {heads!r:.20} heads, but the "
        f"width {width} is not {_EXPORTED_HEADS} times {_HEAD_WIDTH}; "
        "give the number with --config (size: {heads: N})."
    )


def _kv_heads(tensors: TensorSource, heads: int, width: int, path: Path) -> int:
    """Key/value heads, by the rows of their matrix; 0 if there are as many as heads."""
    spec = tensors.specs.get("model.layers.0.self_attn.k_proj.weight")
    n_rows = spec.shape[0] if spec is not None and spec.shape else width
    if n_rows == width:
        return 0
    if width % heads or n_rows % (width // heads):
        raise InputError(
            f"{path}: {n_rows} rows of keys do not divide into heads of {width} / {heads}; "
            "give the right number of heads with --config (size: {heads: N})."
        )
    return n_rows // (width // heads)


def _n_layers(tensors: TensorSource) -> int:
    """By the highest layer number, which is at most the number of tensors."""
    found = [name.split(".")[2] for name in tensors.specs if name.startswith("model.layers.")]
    numbers = [int(one) for one in found if one.isascii() and one.isdecimal() and len(one) < 10]
    return max((n + 1 for n in numbers if n < len(tensors.specs)), default=0)


def _context(said: Mapping[str, Any]) -> int:
    value = said.get("max_position_embeddings")
    return value if is_count(value) and value else _DEFAULT_CONTEXT
