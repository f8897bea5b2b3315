"""The file that encodec.cpp (and the fork that vall_e.cpp uses) loads.

Little endian, without alignment, index or count:

    int32 magic     0x67676d6c, the bytes "lmgg"
    9 x int32       the numbers of `CppHeader`; bandwidth in kbit/s, ftype 0 float32 or 1 float16
    then tensors, until the end:
      int32 x 3     n_dims, length of the name, type (0 float32, 1 float16)
      int32 x n     the dims, fastest first
      bytes         the name, not terminated
      data          C order, slowest dim first

With ftype 1, tensors with `weight` in their name are float16, biases and codebooks float32. Biases
of one element have no dims. The loader checks names, dims and types of the tensors that it finds;
files that are truncated or lack tensors load silently. So this module checks everything.
"""

import io
import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from valle_convert.encodec.architecture import (
    CPP_MAX_CODEBOOKS,
    CodecTensor,
    EncodecSpec,
    check_runs_on_encodec_cpp,
    codebook_name,
    spec_from_config,
    table_problems,
    tensor_table,
)
from valle_convert.encodec.weights import EncodecWeights, Tensor
from valle_convert.errors import InputError
from valle_convert.files import (
    atomic_output,
    check_free_space,
    os_faults,
)
from valle_convert.gguf_file.header import GGML_MAGIC
from valle_convert.progress import Progress, silent
from valle_convert.wording import plural

_HEADER = struct.Struct("<4s9i")
_TENSOR = struct.Struct("<3i")
_MAX_DIMS = 3
_MAX_NAME = 256

CppType = Literal["f16", "f32"]
_FTYPES: Mapping[CppType, int] = {"f32": 0, "f16": 1}
#: Halfway between the largest float16, 65504, and the next power of two: rounds to infinity.
_FIRST_INFINITE = 65_520.0
_DTYPES: Mapping[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<f2")}

F32_WARNING = (
    "encodec.cpp aborts on float32 files at its first convolution, which needs float16; only a "
    "patched program runs this file"
)


@dataclass(frozen=True)
class CppHeader:
    """The nine numbers at the start of the file, most of them fields of `EncodecSpec`."""

    audio_channels: int
    hidden_size: int
    num_filters: int
    kernel_size: int
    residual_kernel_size: int
    codebook_size: int
    bandwidth: int
    sampling_rate: int
    ftype: int

    def pack(self) -> bytes:
        """Magic and numbers, 40 bytes."""
        return _HEADER.pack(GGML_MAGIC, *astuple(self))

    @property
    def n_levels(self) -> int:
        """The number of levels that encodec.cpp computes from the bandwidth, in integers."""
        bits = int(math.log2(self.codebook_size) * (self.sampling_rate // 320))
        return max(1, 1000 * self.bandwidth // max(1, bits))


@dataclass(frozen=True)
class CppTensor:
    name: str
    dims: tuple[int, ...]  # fastest first; none for a single number
    ftype: int  # 0 float32, 1 float16
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class WrittenCodec:
    path: Path
    n_bytes: int
    n_tensors: int
    notes: tuple[str, ...]


# -------------------------------------------------------------------------------- writing


def plan_cpp_file(
    codec: EncodecWeights, out_type: CppType = "f16"
) -> tuple[CppHeader, tuple[CppTensor, ...]]:
    """Header and tensors of a file, without reading weights."""
    spec = codec.spec
    check_runs_on_encodec_cpp(spec, codec.source)
    numbers = asdict(spec) | {
        "bandwidth": _whole_bandwidth(spec, codec.source),
        "ftype": _FTYPES[out_type],
    }
    header = CppHeader(**{one.name: numbers[one.name] for one in fields(CppHeader)})
    tensors = []
    offset = _HEADER.size
    for entry in codec.tensors:
        ftype = header.ftype if entry.is_weight else 0
        dims = () if entry.shape == (1,) else entry.shape[::-1]
        offset += _TENSOR.size + 4 * len(dims) + len(entry.name)
        n_bytes = entry.n_elements * _DTYPES[ftype].itemsize
        tensors.append(CppTensor(entry.name, dims, ftype, offset, n_bytes))
        offset += n_bytes
    return header, tuple(tensors)


def _whole_bandwidth(spec: EncodecSpec, source: str) -> int:
    """The bandwidth in whole kbit/s (as the file stores it) with the same number of levels."""
    wanted = spec.levels_at(spec.target_bandwidths[-1])
    asked = spec.target_bandwidths[-1]
    for bandwidth in (int(asked), math.ceil(asked)):
        if bandwidth < 1:
            continue
        header = CppHeader(1, 1, 1, 1, 1, spec.codebook_size, bandwidth, spec.sampling_rate, 1)
        if header.n_levels == wanted <= min(spec.n_codebooks, CPP_MAX_CODEBOOKS):
            return bandwidth
    raise InputError(
        f"The codec {source} has a bandwidth of {asked:g} kbit/s with {plural(wanted, 'level')} of "
        f"{spec.codebook_size} codes, which encodec.cpp cannot store: it counts whole kbit/s and "
        f"at most {CPP_MAX_CODEBOOKS} levels."
    )


def write_cpp_file(
    codec: EncodecWeights,
    path: Path,
    *,
    out_type: CppType = "f16",
    force: bool = False,
    progress: Progress = silent,
) -> WrittenCodec:
    """Write the file, or nothing. Memory holds one tensor at a time."""
    header, tensors = plan_cpp_file(codec, out_type)
    size = tensors[-1].offset + tensors[-1].n_bytes
    with (
        atomic_output(path, force=force, inputs=codec.files) as file,
        progress("writing", size, "B") as advance,
    ):
        check_free_space(path, size)
        file.write(header.pack())
        for tensor in tensors:
            name = tensor.name.encode()
            file.write(_TENSOR.pack(len(tensor.dims), len(name), tensor.ftype))
            file.write(struct.pack(f"<{len(tensor.dims)}i", *tensor.dims) + name)
            advance(file.write(_data(codec, tensor)))
    notes = (F32_WARNING,) if out_type == "f32" else ()
    return WrittenCodec(path, size, len(tensors), codec.notes + notes)


def _data(codec: EncodecWeights, tensor: CppTensor) -> memoryview:
    values = read_half(codec, tensor.name) if tensor.ftype else codec.read(tensor.name)
    return np.ascontiguousarray(values, _DTYPES[tensor.ftype]).reshape(-1).view(np.uint8).data


def read_half(codec: EncodecWeights, name: str) -> NDArray[np.floating]:
    """One tensor in float16, rounded to nearest, ties to even."""
    values = codec.read(name)
    largest = max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))
    if largest >= _FIRST_INFINITE:
        raise InputError(
            f"The codec {codec.source}: the tensor {name} has values up to {largest:,.0f}, beyond "
            "float16's 65,504. Write a .gguf with --outtype f32."
        )
    import torch

    # Rounds like numpy, in an eighth of the time.
    rounded: NDArray[np.floating] = torch.tensor(values).half().numpy()
    return rounded


# -------------------------------------------------------------------------------- reading


def open_cpp_file(path: Path, source: str | None = None) -> EncodecWeights:
    """Open a file of encodec.cpp, with every tensor checked."""
    header, tensors = read_cpp_layout(path)
    spec = spec_of_header(header, [tensor.name for tensor in tensors], path)
    expected = {
        entry.name: (entry.shape, [str(_DTYPES[header.ftype if entry.is_weight else 0])])
        for entry in tensor_table(spec)
    }
    # A bias of one element has no dims.
    found = ((one.name, one.dims[::-1] or (1,), str(_DTYPES[one.ftype])) for one in tensors)
    if problems := table_problems(expected, found):
        raise _broken(path, "; ".join(problems))
    places = {tensor.name: tensor for tensor in tensors}
    data = np.memmap(path, np.uint8, mode="r")

    def read(entry: CodecTensor) -> Tensor:
        tensor = places[entry.name]
        raw = data[tensor.offset : tensor.offset + tensor.n_bytes]
        values = np.frombuffer(raw.tobytes(), _DTYPES[tensor.ftype])
        return np.asarray(values, np.float32).reshape(entry.shape)

    return EncodecWeights(
        spec,
        source or str(path),
        read,
        (path,),
        halves=frozenset(tensor.name for tensor in tensors if tensor.ftype),
        is_cpp=True,
    )


def read_cpp_layout(path: Path) -> tuple[CppHeader, tuple[CppTensor, ...]]:
    with os_faults(f"{path} cannot be read"), path.open("rb") as file:
        size = path.stat().st_size
        packed = file.read(_HEADER.size)
        if len(packed) < _HEADER.size or not packed.startswith(GGML_MAGIC):
            raise InputError(
                f"{path} is not a file of encodec.cpp: it begins with {packed[:4]!r} and has "
                f"{size:,} bytes, expected {GGML_MAGIC!r} and at least {_HEADER.size}. Make one "
                "with `valle-convert codec`."
            )
        header = CppHeader(*_HEADER.unpack(packed)[1:])
        return header, tuple(_read_tensors(file, size, path))


def _read_tensors(file: BinaryIO, size: int, path: Path) -> Iterator[CppTensor]:
    while (at := file.tell()) < size:
        head = file.read(_TENSOR.size)
        if len(head) < _TENSOR.size:
            raise _broken(path, f"{len(head)} bytes too many at its end")
        n_dims, n_name, ftype = _TENSOR.unpack(head)
        # With more than three dims, encodec.cpp writes past the end of an array.
        if not 0 <= n_dims <= _MAX_DIMS or not 0 < n_name <= _MAX_NAME or ftype not in _DTYPES:
            found = f"{n_dims} dims, a name of {n_name} bytes and the type {ftype}"
            raise _broken(path, f"expected a tensor at byte {at:,}, found {found}")
        rest = file.read(4 * n_dims + n_name)
        if len(rest) < 4 * n_dims + n_name:
            raise _broken(path, f"it is cut off at byte {size:,}, in the header of a tensor")
        dims = struct.unpack(f"<{n_dims}i", rest[: 4 * n_dims])
        name = rest[4 * n_dims :].decode("utf-8", "replace")
        if any(dim < 1 for dim in dims):
            raise _broken(path, f"the tensor {name!r} has the dims {list(dims)}")
        n_bytes = math.prod(dims) * _DTYPES[ftype].itemsize
        tensor = CppTensor(name, dims, ftype, file.tell(), n_bytes)
        if (end := tensor.offset + n_bytes) > size:
            raise _broken(path, f"it is cut off: {name} ends at {end:,} of {size:,} bytes")
        yield tensor
        file.seek(n_bytes, io.SEEK_CUR)


def _broken(path: Path, what: str) -> InputError:
    return InputError(
        f"The codec {path} is damaged: {what}. Make it again with `valle-convert codec`, or copy "
        "it again."
    )


def spec_of_header(header: CppHeader, names: Iterable[str], path: Path) -> EncodecSpec:
    """The spec of a header, with the constants built into encodec.cpp."""
    if header.ftype not in _DTYPES:
        raise InputError(
            f"{path} has the ftype {header.ftype}, expected 1 (float16) or 0 (float32)."
        )
    held = set(names)
    config = {
        **asdict(header),
        "n_codebooks": max(1, sum(codebook_name(n) in held for n in range(CPP_MAX_CODEBOOKS + 1))),
        "last_kernel_size": header.kernel_size,
        "target_bandwidths": [header.bandwidth],
    }
    spec = spec_from_config(config, str(path))
    if header.n_levels > CPP_MAX_CODEBOOKS:
        raise _broken(
            path,
            f"its bandwidth of {header.bandwidth} kbit/s means {plural(header.n_levels, 'level')}",
        )
    spec = replace(spec, n_codebooks=max(spec.n_codebooks, header.n_levels))
    check_runs_on_encodec_cpp(spec, str(path))
    return spec
