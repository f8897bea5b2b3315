"""The header, byte by byte: against literal bytes, and against the gguf package."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import GOLDEN_NAMES, GOLDEN_VALLEX, GOLDEN_VERSION_7, golden_checkpoint

from valle_convert import plan_conversion
from valle_convert.families.family import Choices
from valle_convert.gguf_file.header import Key, TensorEntry, pack_header
from valle_convert.gguf_file.write import header_of

TYPES = {
    "u16": GGUFValueType.UINT16,
    "u32": GGUFValueType.UINT32,
    "i32": GGUFValueType.INT32,
    "u64": GGUFValueType.UINT64,
    "f32": GGUFValueType.FLOAT32,
    "bool": GGUFValueType.BOOL,
    "string": GGUFValueType.STRING,
}


def bytes_of_gguf_package(path: Path, keys: list[Key], tensors: list[TensorEntry]) -> bytes:
    writer = GGUFWriter(None, str(keys[0].value))
    for key in keys[1:]:
        if key.type.startswith("["):
            writer.add_key_value(
                key.name, key.value, GGUFValueType.ARRAY, sub_type=TYPES[key.type.strip("[]")]
            )
        else:
            writer.add_key_value(key.name, key.value, TYPES[key.type])
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name,
            tensor.shape,
            np.dtype(np.float32),
            tensor.n_bytes,
            GGMLQuantizationType(tensor.ggml_type.number),
        )
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path.read_bytes()


@pytest.mark.parametrize("name", [*GOLDEN_NAMES, GOLDEN_VALLEX, GOLDEN_VERSION_7])
def test_the_headers_of_a_conversion_are_those_of_the_gguf_package(
    name: str, tmp_path: Path
) -> None:
    for plan in plan_conversion(golden_checkpoint(name), Choices("f16")).files.values():
        expected = bytes_of_gguf_package(tmp_path / "x", list(plan.keys), list(plan.tensors))
        found = header_of(plan)
        assert found[: len(expected)] == expected
        assert set(found[len(expected) :]) <= {0}
        assert len(found) % 32 == 0


VALUES = st.one_of(
    st.tuples(st.just("u32"), st.integers(0, 2**32 - 1)),
    st.tuples(st.just("i32"), st.integers(-(2**31), 2**31 - 1)),
    st.tuples(st.just("u64"), st.integers(0, 2**64 - 1)),
    st.tuples(st.just("f32"), st.floats(width=32, allow_nan=False)),
    st.tuples(st.just("bool"), st.booleans()),
    st.tuples(st.just("string"), st.text(max_size=9)),
    st.tuples(st.just("[string]"), st.lists(st.text(max_size=5), min_size=1, max_size=5)),
    st.tuples(st.just("[u32]"), st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5)),
    st.tuples(st.just("[f32]"), st.lists(st.floats(width=32, allow_nan=False), min_size=1)),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(st.text(min_size=1, max_size=8), VALUES, max_size=5))
def test_any_keys_are_packed_as_the_gguf_package_packs_them(
    tmp_path: Path, values: dict[str, tuple[str, object]]
) -> None:
    keys = [Key("general.architecture", "gemma", "string")]
    keys += [Key(name, value, kind) for name, (kind, value) in values.items()]
    expected = bytes_of_gguf_package(tmp_path / "x", keys, [])
    assert pack_header(keys, [])[: len(expected)] == expected


@pytest.mark.parametrize(("kind", "value"), [("u32", -1), ("u32", 2**32), ("[i32]", [2**31])])
def test_a_number_that_does_not_fit_is_an_error(kind: str, value: object) -> None:
    with pytest.raises(OverflowError):
        pack_header([Key("a", value, kind)], [])
