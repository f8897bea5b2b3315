"""What our readers accept, compared with the readers of the formats' own projects."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch
from safetensors import safe_open

from valle_convert.checkpoint.safetensors_file import SafetensorsFile
from valle_convert.errors import InputError
from valle_convert.gguf_file.read import GgufFile

if TYPE_CHECKING:
    from valle_convert.checkpoint import TensorSource
    from valle_convert.tokenizer.choose import TokenizerFile

#: The gguf package leaves these to numpy.
NUMPY_TYPES = {"I8", "I16", "I32", "I64", "F64"}
#: It does not make numbers of these; tests/gguf_file/test_decode.py has llama.cpp do it.
NOT_READ_TYPES = {"Q1_0", "Q2_0"}


class DisagreementError(AssertionError):
    """We accept what another reader rejects, or reads otherwise."""


def _hold(same: bool, what: str) -> None:
    if not same:
        raise DisagreementError(what)


def same_value(a: Any, b: Any) -> bool:  # noqa: ANN401 - of any type
    """Equal, where NaN is itself."""
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same_value, a, b))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


def same_gguf(path: Path) -> None:
    """Compare a file with the gguf package: keys, types, offsets, data, numbers."""
    ours, theirs = GgufFile(path, allow_part=True), gguf.GGUFReader(path)
    fields = {name: field for name, field in theirs.fields.items() if name[:5] != "GGUF."}
    _hold([name for name in ours.keys if name[:5] != "GGUF."] == list(fields), "the keys")
    for name, field in fields.items():
        _hold(same_value(ours.keys[name], field.contents()), f"the value of {name}")
        kind = field.types[-1].name.lower()
        for long, short in (("uint", "u"), ("int", "i"), ("float", "f")):
            kind = kind.replace(long, short)
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            # Of an empty array, the package does not keep the type.
            kind = f"[{kind}]" if len(field.types) > 1 else ours.key_types[name]
        _hold(ours.key_types[name] == kind, f"the type of {name}")
    _hold(list(ours.tensors) == [tensor.name for tensor in theirs.tensors], "the tensors")
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        _hold(mine.ggml_type.name == tensor.tensor_type.name, f"the type of {tensor.name}")
        shape = tuple(int(n) for n in reversed(tensor.shape))
        _hold(mine.shape == shape, f"the shape of {tensor.name}")
        place = (int(tensor.data_offset), int(tensor.n_bytes))
        _hold((mine.start, mine.n_bytes) == place, f"the place of {tensor.name}")
        _hold(mine.data.tobytes() == np.array(tensor.data).tobytes(), f"the data of {tensor.name}")
        if mine.ggml_type.name in NOT_READ_TYPES:
            continue
        if mine.ggml_type.name in NUMPY_TYPES:
            expected = np.array(tensor.data).astype(np.float32)
        else:
            raw = mine.data if mine.ggml_type.block > 1 else np.array(tensor.data)
            with np.errstate(all="ignore"):
                expected = gguf.quants.dequantize(raw, tensor.tensor_type)
        same = np.array_equal(mine.rows().ravel(), np.ravel(expected), equal_nan=True)
        _hold(same, f"the numbers of {tensor.name}")


def same_safetensors(path: Path) -> None:
    """Compare a file with the safetensors library, through torch."""
    ours = SafetensorsFile(path)
    with safe_open(path, framework="pt") as theirs:
        _hold(ours.metadata == (theirs.metadata() or {}), "the metadata")
        _hold(set(ours.specs) == set(theirs.keys()), "the names")
        for name, spec in ours.specs.items():
            if spec.dtype is None:
                continue
            tensor = theirs.get_tensor(name)
            _hold(tuple(tensor.shape) == spec.shape, f"the shape of {name}")
            raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            mine = ours.read(name)
            _hold(mine.dtype == spec.dtype, f"the type of {name}")
            _hold(mine.tobytes() == raw, f"the data of {name}")


def same_torch(path: Path, ours: TensorSource) -> None:
    """Compare the tensors of a file with those that torch loads without mapping."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
        except Exception:  # of six kinds, in 36,000 damaged files
            # It has objects that we replace, or torch stops at a field that nobody needs.
            return
    names = list(ours.specs)
    dicts = (one for one in (loaded, *loaded.values()) if isinstance(one, dict))
    theirs = next((one for one in dicts if list(one) == names), None)
    if theirs is None:
        raise DisagreementError("the names")
    for name, spec in ours.specs.items():
        if spec.dtype is None:
            continue
        mine, tensor = ours.read(name), theirs[name]
        _hold(tuple(tensor.shape) == mine.shape == spec.shape, f"the shape of {name}")
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        _hold(np.ascontiguousarray(mine).tobytes() == raw, f"the data of {name}")


def loads_tokenizer(opened: TokenizerFile) -> None:
    """Check that a tokenizer's own library loads it and gives no ids that we do not know."""
    try:
        oracle = opened.oracle()
    except InputError:
        return  # said in its own words, before anything is compiled
    n_ids = opened.tokenizer.n_ids
    texts = ["", "abc cr", "a\u0281b\u02c8 <mask>x", "</eos><unk>"]
    for setting in oracle.settings:
        for ids in oracle.encode_batch(texts, setting):
            _hold(all(0 <= one < n_ids for one in ids), f"ids {ids} of {n_ids}")


def loads_npz(path: Path) -> None:
    with np.load(path, allow_pickle=False) as archive:
        _hold(len(archive.files) > 0, "no arrays")
