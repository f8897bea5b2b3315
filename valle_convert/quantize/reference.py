"""A file of what the reference computes: made once, and read by every job that compares with it.

    metadata    valle-convert: JSON of what it depends on, its name, the baseline, a digest
    logits.N    of each case, in the order of `Family.cases` over all utterances
    spoken.N    the codes of each utterance

A safetensors file, since the arrays are nearly all of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from valle_convert.checkpoint.safetensors_file import SafetensorsFile
from valle_convert.errors import InputError
from valle_convert.files import atomic_output
from valle_convert.quantize.examples import Examples
from valle_convert.quantize.manifest import Sha256
from valle_convert.quantize.measurements import Baseline
from valle_convert.quantize.quality import Expected

_KEY = "valle-convert"


class _Header(msgspec.Struct, frozen=True):
    schema_version: Literal[1]
    inputs: dict[str, str]
    name: str
    baseline: Baseline
    sha256: Sha256


def save_reference(
    path: Path, inputs: dict[str, str], expected: Expected, baseline: Baseline
) -> None:
    """Write the file; whether it may be replaced was checked at the start."""
    arrays = {f"logits.{i:06}": logits for i, (_, logits) in enumerate(expected.cases)}
    arrays |= {f"spoken.{i:06}": np.asarray(one, np.int64) for i, one in enumerate(expected.spoken)}
    header = _Header(1, inputs, expected.name, baseline, _digest(arrays))
    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with atomic_output(path, force=True) as file:
        file.write(save(plain, {_KEY: msgspec.json.encode(header).decode()}))


def read_reference(
    path: Path, inputs: Mapping[str, str], examples: Examples[Any]
) -> tuple[Expected, Baseline]:
    """Read the file, which has to be of these inputs; it is untrusted."""
    file = SafetensorsFile(path)
    try:
        header = msgspec.json.decode(file.metadata.get(_KEY, ""), type=_Header)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise InputError(
            f"{path} is no reference of this program; make one with evaluate --save-reference."
        ) from error
    if other := [name for name, value in inputs.items() if header.inputs.get(name) != value]:
        raise InputError(
            f"{path} was made with other inputs ({', '.join(other)}); give the same options, or "
            "make a file for these with --save-reference."
        )
    arrays = {name: file.read(name) for name in sorted(file.specs)}
    given = tuple(examples)
    cases = [case for one in given for case in examples.family.cases(examples.model, one)]
    logits = [array for name, array in arrays.items() if name.startswith("logits.")]
    spoken = [array for name, array in arrays.items() if name.startswith("spoken.")]
    size, n_levels = examples.model.codebook_size, examples.model.n_levels
    whole = (
        _digest(arrays) == header.sha256
        and (len(logits), len(spoken)) == (len(cases), len(given))
        and all(one.ndim == 2 and one.dtype == np.float32 for one in logits)
        and all(one.dtype == np.int64 and one.shape[1:] == (n_levels,) for one in spoken)
        and all(((one >= 0) & (one < size)).all() for one in spoken)
    )
    if not whole:
        raise InputError(f"{path} is damaged; make it again with evaluate --save-reference.")
    paired = tuple(zip(cases, logits, strict=True))
    return Expected(header.name, paired, given, tuple(spoken)), header.baseline


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()
