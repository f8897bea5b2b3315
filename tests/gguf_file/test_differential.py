"""Our reader and writer against the gguf package's: the same of valid files, to the byte."""

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
from valle_convert.gguf_file.header import Key, TensorEntry, pack_header
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
def test_a_valid_file_is_read_and_its_header_written_as_by_the_gguf_package(
    metadata: dict[str, Any], contents: dict[str, Any], alignment: int
) -> None:
    metadata.pop("general.architecture", None)
    metadata.pop("general.alignment", None)
    metadata = {name: value for name, value in metadata.items() if not name.startswith("split.")}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.gguf"
        write(path, metadata, contents, alignment)
        same_gguf(path)
        file, raw = GgufFile(path), path.read_bytes()
        header = [Key(name, file.keys[name], file.key_types[name]) for name in file.keys]
        entries = [
            TensorEntry(one.name, one.shape, one.ggml_type, one.offset)
            for one in file.tensors.values()
        ]
        assert pack_header(header, entries) == raw[: file.data_start]
        path.write_bytes(file.changed([Key("new", "x" * 99, "string")]) + raw[file.data_start :])
        same_gguf(path)


@pytest.mark.parametrize(("kind", "value"), [("u32", -1), ("u32", 2**32), ("[i32]", [2**31])])
def test_a_number_that_does_not_fit_is_an_error(kind: str, value: object) -> None:
    with pytest.raises(OverflowError):
        pack_header([Key("a", value, kind)], [])


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
