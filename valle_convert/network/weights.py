"""The weights of GGUF files under their names in the checkpoint.

A plan says where each row of a file comes from; read backwards, it turns converted files into a
source of tensors like a checkpoint, with the loss of their number formats. The expected loss is
known without the files.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle_convert.checkpoint.source import BlockSource, NamedTensors
from valle_convert.errors import InputError
from valle_convert.gguf_file.encode import nominal_decibels, roundings
from valle_convert.gguf_file.keys import BIAS_KEY, OLD_TYPES_KEY
from valle_convert.gguf_file.plan import TOKEN_EMBEDDING, PlannedFile, PlannedTensor, stored_type
from valle_convert.gguf_file.read import GgufFile
from valle_convert.gguf_file.types import F32, GGML_TYPES, PLAIN_DTYPES, GgmlType
from valle_convert.model.description import Recovered, RowBlock


class BundleTensors:
    """A `NamedTensors` of all files of a model."""

    def __init__(
        self,
        files: Iterable[tuple[PlannedFile, GgufFile]],
        recovered: Mapping[str, Recovered],
        reader_of: Callable[[PlannedFile, GgufFile], NamedTensors],
        others: NamedTensors | None = None,
    ) -> None:
        """`others` has what no file has under its own name."""
        self._others = others
        self._recovered = recovered
        self._readers: dict[str, NamedTensors] = {}
        for plan, file in files:
            reader = reader_of(plan, file)
            names = [span.source for tensor in plan.tensors for span in tensor.spans]
            for name in (*names, *(bias.source for bias in plan.biases)):
                self._readers.setdefault(name, reader)

    def read(self, name: str) -> NDArray[Any]:
        way = self._recovered.get(name)
        if way is None:
            reader = self._readers.get(name, self._others)
            if reader is None:
                raise KeyError(name)
            return reader.read(name)
        values = self.read(way.source)
        return values if way.undo is None else way.undo(values)


class KeptTensors:
    """A `NamedTensors` that reads, and dequantizes, each tensor once for several networks."""

    def __init__(self, tensors: NamedTensors) -> None:
        self.read = cache(tensors.read)


class ConvertedTensors:
    """A `NamedTensors` of a converted file."""

    def __init__(self, plan: PlannedFile, file: GgufFile) -> None:
        self._file = file
        self._spans: dict[str, tuple[PlannedTensor, RowBlock]] = {}
        for tensor in plan.tensors:
            for span in tensor.spans:
                # Copies of rows, such as those of the tokenizer's aliases, come last.
                self._spans.setdefault(span.source, (tensor, span))
        self._biases: dict[str, tuple[int, int]] = {}
        start = 0
        for bias in plan.biases:
            known = self._biases.get(bias.source, (0, 0))
            # Heads that share a source have the same values, some more of them than others.
            if bias.n_rows > known[1] - known[0]:
                self._biases[bias.source] = (start, start + bias.n_rows)
            start += bias.n_rows

    def read(self, name: str) -> NDArray[Any]:
        """One tensor as float32, with the rows that the file has."""
        if name in self._biases:
            found = self._file.keys.get(BIAS_KEY, [])
            where, values = BIAS_KEY, np.array(found[slice(*self._biases[name])], np.float32)
        else:
            tensor, span = self._spans[name]
            where, rows = tensor.name, slice(span.first_row, span.first_row + span.n_rows)
            stored = self._file.tensors[tensor.name]
            values = stored.rows() if len(tensor.shape) == 1 else stored.rows(rows)
        if not np.isfinite(values).all():
            raise InputError(
                f"{where} of {self._file.path} holds NaN or infinity, expected "
                f"{name} of the checkpoint; convert the checkpoint again."
            )
        return values


class RoundedTensors:
    """A `NamedTensors` of a checkpoint, with the expected loss of a file's number formats.

    A plain type rounds; a quantized one adds seeded noise of the type's usual size.
    """

    def __init__(self, plan: PlannedFile, file: GgufFile) -> None:
        self._tensors = plan.checkpoint.tensors
        self._stored = ConvertedTensors(plan, file)
        self._types = rounded_types(plan, file)

    def read(self, name: str) -> NDArray[Any]:
        weights = self._tensors.read(name).astype(np.float32)
        ggml_type = self._types.get(name, F32)
        if ggml_type in PLAIN_DTYPES:
            return self._rounded(name, weights, ggml_type)
        draw = np.random.default_rng(zlib.crc32(name.encode()))
        sizes = np.sqrt(np.square(weights).mean(-1, keepdims=True))
        scale = np.float32(10 ** (-max(1.0, nominal_decibels(ggml_type)) / 20))
        noisy: NDArray[np.float32] = weights + sizes * scale * draw.standard_normal(
            weights.shape, dtype=np.float32
        )
        return noisy

    def _rounded(
        self, name: str, weights: NDArray[np.float32], ggml_type: GgmlType
    ) -> NDArray[np.float32]:
        if name not in self._types:  # a bias, which is a key
            return weights
        stored = self._stored.read(name)
        at_once, *others = (
            _round(_round(weights, between or "F32"), ggml_type.name)
            for between in roundings(ggml_type)
        )
        for one in others:
            if np.array_equal(one.reshape(-1, one.shape[-1])[: len(stored)], stored):
                return one
        return at_once


def _round(weights: NDArray[np.float32], kind: str) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return weights.astype(PLAIN_DTYPES[GGML_TYPES[kind]]).astype(np.float32)


def rounded_types(plan: PlannedFile, file: GgufFile) -> dict[str, GgmlType]:
    """The types that the checkpoint's weights were rounded to for a file, by name.

    These are the types in the file, except in a repaired one: its token embedding may be float16 if
    the old file had quantized tables and heads, whose values are not rounded again.
    """
    specs = plan.checkpoint.tensors.specs
    names = file.keys.get(OLD_TYPES_KEY)
    old = [GGML_TYPES.get(str(name)) for name in names] if isinstance(names, list) else []
    types: dict[str, GgmlType] = {}
    for tensor in plan.tensors:
        if tensor.name not in file.tensors:
            continue
        found = file.tensors[tensor.name].ggml_type
        for span in tensor.spans:
            kind = found
            if isinstance(plan.checkpoint.tensors, BlockSource):
                kind = F32 if stored_type(specs[span.source]) == found else found
            elif tensor.name == TOKEN_EMBEDDING and len(old) == 2:
                before = old[span.label.startswith("head.")] or found
                kind = min(found, before, key=lambda one: one.bits)
            types.setdefault(span.source, kind)
    return types
