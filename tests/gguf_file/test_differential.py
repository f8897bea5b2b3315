"""Our reader against the gguf package's: the same of valid files, and of damaged ones we take."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.oracles import same_gguf
from valle_convert.errors import InputError
from valle_convert.gguf_file.metadata import size_label
from valle_convert.gguf_file.read import GgufFile
from valle_convert.gguf_file.types import GGML_TYPES

#: What no file has: the package and llama.cpp do not even agree on the size of a Q8_1.
WITHIN_COMPUTATIONS = {"Q8_1", "Q8_K"}
PACKAGE_TYPES = [
    kind
    for kind in GGMLQuantizationType
    if kind in gguf.GGML_QUANT_SIZES and kind.name not in WITHIN_COMPUTATIONS
]
BOUNDS = {
    GGUFValueType.UINT8: (0, 255),
    GGUFValueType.INT8: (-128, 127),
    GGUFValueType.UINT16: (0, 2**16 - 1),
    GGUFValueType.INT16: (-(2**15), 2**15 - 1),
    GGUFValueType.UINT32: (0, 2**32 - 1),
    GGUFValueType.INT32: (-(2**31), 2**31 - 1),
    GGUFValueType.UINT64: (0, 2**64 - 1),
    GGUFValueType.INT64: (-(2**63), 2**63 - 1),
}
NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=15
).filter(lambda name: len(name.encode()) < 60 and not name.startswith("GGUF."))


def scalars(kind: GGUFValueType) -> st.SearchStrategy[Any]:
    if kind in BOUNDS:
        low, high = BOUNDS[kind]
        return st.integers(low, high)
    if kind == GGUFValueType.BOOL:
        return st.booleans()
    if kind == GGUFValueType.STRING:
        return st.text(st.characters(codec="utf-8"), max_size=40)
    return st.floats(width=32 if kind == GGUFValueType.FLOAT32 else 64)


KINDS = [kind for kind in GGUFValueType if kind != GGUFValueType.ARRAY]


@st.composite
def keys(draw: st.DrawFn) -> tuple[Any, GGUFValueType, GGUFValueType | None]:
    kind = draw(st.sampled_from(KINDS))
    if draw(st.booleans()):
        return draw(scalars(kind)), kind, None
    # The package cannot write an empty array.
    values = draw(st.lists(scalars(kind), min_size=1, max_size=5))
    return values, GGUFValueType.ARRAY, kind


@st.composite
def tensors(draw: st.DrawFn) -> tuple[GGMLQuantizationType, tuple[int, ...], bytes]:
    kind = draw(st.sampled_from(PACKAGE_TYPES))
    block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    n_rows = draw(st.lists(st.integers(1, 3), max_size=3))
    n_blocks = draw(st.integers(1, 2 if block > 1 else 7))
    raw = draw(st.randoms(use_true_random=False)).randbytes(math.prod(n_rows) * n_blocks * n_bytes)
    return kind, (*n_rows, n_blocks * block), raw


def write(
    path: Path,
    metadata: dict[str, tuple[Any, GGUFValueType, GGUFValueType | None]],
    contents: dict[str, tuple[GGMLQuantizationType, tuple[int, ...], bytes]],
    alignment: int,
) -> None:
    writer = GGUFWriter(path, "gemma")
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    for name, (value, kind, inner) in metadata.items():
        writer.add_key_value(name, value, kind, sub_type=inner)
    for name, (kind, shape, raw) in contents.items():
        rows = np.frombuffer(raw, np.uint8).reshape(*shape[:-1], -1)
        writer.add_tensor(name, rows, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(NAMES, keys(), max_size=6),
    st.dictionaries(NAMES, tensors(), max_size=4),
    st.sampled_from([8, 16, 32, 64, 256]),
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # random bytes as scales
def test_a_valid_file_is_read_as_the_gguf_package_reads_it(
    metadata: dict[str, Any], contents: dict[str, Any], alignment: int
) -> None:
    metadata.pop("general.architecture", None)
    metadata.pop("general.alignment", None)
    metadata = {name: value for name, value in metadata.items() if not name.startswith("split.")}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.gguf"
        write(path, metadata, contents, alignment)
        same_gguf(path)


U32S = [0, 1, 2, 4, 5, 8, 9, 12, 13, 31, 48, 64, 77, 2**16, 2**31, 2**32 - 1]
U64S = [0, 1, 2, 31, 32, 33, 63, 64, 96, 2**16, 2**31, 2**32, 2**40, 2**59 + 1, 2**62, 2**63]
U64S += [2**64 - 32, 2**64 - 1]


@st.composite
def numbers(draw: st.DrawFn, size: int) -> bytes:
    """A count, length, type or offset that somebody may have thought of, or any."""
    known = U32S if size == 4 else U64S
    value = draw(st.one_of(st.sampled_from(known), st.integers(0, 2 ** (8 * size) - 1)))
    return value.to_bytes(size, "little")


class Parts:
    """A valid file, field after field; each field may be replaced, left out or doubled."""

    def __init__(self) -> None:
        self.fields: list[bytes] = [b"GGUF"]
        for number, size in ((3, 4), (3, 8), (5, 8)):
            self.number(number, size)
        self.key("general.alignment", 4, [(32, 4)])
        self.key("a.flag", 7, [(1, 1)])
        self.key("a.numbers", 9, [(5, 4), (2, 8), (7, 4), (9, 4)])
        self.key("a.text", 8, [])
        self.text("a text")
        self.key("a.words", 9, [(8, 4), (2, 8)])
        self.text("one")
        self.text("zw\u00f6lf")
        self.tensor("x", [32, 2], 8, 0)
        self.tensor("y", [3], 0, 96)
        self.tensor("z", [256, 1, 1, 2], 12, 128)
        length = sum(map(len, self.fields))
        self.fields += [bytes(-length % 32), bytes(range(96)), bytes(32), bytes(288)]

    def number(self, value: int, size: int) -> None:
        self.fields.append(value.to_bytes(size, "little"))

    def text(self, text: str) -> None:
        self.number(len(text.encode()), 8)
        self.fields.append(text.encode())

    def key(self, name: str, kind: int, values: list[tuple[int, int]]) -> None:
        self.text(name)
        self.number(kind, 4)
        for value in values:
            self.number(*value)

    def tensor(self, name: str, columns_first: list[int], kind: int, offset: int) -> None:
        self.text(name)
        self.number(len(columns_first), 4)
        for n in columns_first:
            self.number(n, 8)
        self.number(kind, 4)
        self.number(offset, 8)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    fields = list(Parts().fields)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(fields) - 1))
        match draw(st.sampled_from(["number", "number", "bytes", "leave out", "double", "swap"])):
            case "number" if len(fields[at]) in (4, 8):
                fields[at] = draw(numbers(len(fields[at])))
            case "leave out":
                fields[at] = b""
            case "double":
                fields[at] *= 2
            case "swap":
                other = draw(st.integers(0, len(fields) - 1))
                fields[at], fields[other] = fields[other], fields[at]
            case _:
                fields[at] = draw(st.binary(max_size=20))
    data = b"".join(fields)
    return data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data


@settings(max_examples=600, suppress_health_check=[HealthCheck.too_slow])
@given(damaged())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # any bytes as scales
def test_a_damaged_file_is_refused_or_read_as_the_gguf_package_reads_it(data: bytes) -> None:
    try:
        GgufFile(Path("damaged.gguf"), data)
    except InputError:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.gguf"
        path.write_bytes(data)
        same_gguf(path)


def test_the_file_that_is_damaged_is_a_valid_one(tmp_path: Path) -> None:
    path = tmp_path / "any.gguf"
    path.write_bytes(b"".join(Parts().fields))
    same_gguf(path)
    assert list(GgufFile(path).tensors) == ["x", "y", "z"]


def test_the_table_of_types_is_the_packages_but_for_what_no_file_has() -> None:
    sizes = {kind.name: (int(kind), *size) for kind, size in gguf.GGML_QUANT_SIZES.items()}
    ours = {kind.name: (kind.number, kind.block, kind.block_bytes) for kind in GGML_TYPES.values()}
    assert {"Q2_0": (42, 64, 18), **sizes} == ours | {
        one: sizes[one] for one in WITHIN_COMPUTATIONS
    }
    names = {int(one): one.name.partition("_")[2].removesuffix("_M") for one in gguf.LlamaFileType}
    for kind in GGML_TYPES.values():
        assert names[kind.file_type] in (kind.name, "")


@given(st.integers(1, 10**13))
def test_a_size_is_told_as_the_gguf_package_tells_it(n: int) -> None:
    assert size_label(n) == gguf.utility.model_weight_count_rounded_notation(n)
