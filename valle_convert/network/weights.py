"""The weights of a GGUF file under the names that they had in the checkpoint.

A plan says where each row of a file comes from; read backwards, it makes a converted file a
source of tensors like a checkpoint, with what its number format left of them. And what the
number format should leave of them is known without the file.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle_convert.errors import InputError
from valle_convert.gguf_file.encode import nominal_decibels, roundings
from valle_convert.gguf_file.keys import BIAS_KEY
from valle_convert.gguf_file.old import rounded_types
from valle_convert.gguf_file.plan import Part, PlannedFile, PlannedTensor
from valle_convert.gguf_file.read import GgufFile
from valle_convert.gguf_file.types import F32, GGML_TYPES, PLAIN_DTYPES, GgmlType


class ConvertedTensors:
    """A `NamedTensors` of a converted file.

    Args:
        plan: of the checkpoint that the file was made from.
        file: has the tensors of the plan, in their shapes; their types are its own.
    """

    def __init__(self, plan: PlannedFile, file: GgufFile) -> None:
        self._file = file
        self._parts: dict[str, tuple[PlannedTensor, Part]] = {}
        for tensor in plan.tensors:
            for part in tensor.parts:
                # Copies of rows, such as those of the tokenizer's aliases, come last.
                self._parts.setdefault(part.source, (tensor, part))
        self._biases: dict[str, tuple[int, int]] = {}
        start = 0
        for bias in plan.biases:
            known = self._biases.get(bias.source, (0, 0))
            # Heads that share a source have the same values, some more of them than others.
            if bias.n_rows > known[1] - known[0]:
                self._biases[bias.source] = (start, start + bias.n_rows)
            start += bias.n_rows

    def read(self, name: str) -> NDArray[Any]:
        """One tensor as float32, with the rows that the file has of it.

        Raises:
            InputError: a number in it is not finite, or it is not there.
        """
        if name in self._biases:
            found = self._file.keys.get(BIAS_KEY, [])
            where, values = BIAS_KEY, np.array(found[slice(*self._biases[name])], np.float32)
        else:
            tensor, part = self._parts[name]
            where, rows = tensor.name, slice(part.first_row, part.first_row + part.n_rows)
            stored = self._file.tensors[tensor.name]
            values = stored.rows() if len(tensor.shape) == 1 else stored.rows(rows)
        if not np.isfinite(values).all():
            raise InputError(
                f"{where} of {self._file.path} holds a number that is none (NaN or infinite) where "
                f"{name} of the checkpoint should stand; convert the checkpoint again."
            )
        return values


class RoundedTensors:
    """A `NamedTensors` of a checkpoint, with what a file's number formats should leave of it.

    A plain type rounds; a quantized one adds seeded noise of the size that the type is known for.

    Args:
        plan: of the checkpoint.
        file: has the tensors of the plan, in its own types. Where it can have come to a plain type
            in several ways, it tells in which.
    """

    def __init__(self, plan: PlannedFile, file: GgufFile) -> None:
        self._tensors = plan.checkpoint.tensors
        self._stored = ConvertedTensors(plan, file)
        self._types = rounded_types(plan, file)

    def read(self, name: str) -> NDArray[Any]:
        """One tensor as float32."""
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
