from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valle_convert.errors import InputError
from valle_convert.gguf_file.header import Header, read_header
from valle_convert.gguf_file.keys import Key
from valle_convert.gguf_file.pack import pack_key
from valle_convert.gguf_file.read import GgufFile


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


#: Two keys, one tensor of 2 x 32 in Q8_0, written out by hand.
SMALL = (
    b"GGUF"
    + struct.pack("<IQQ", 3, 1, 2)
    + string("general.architecture")
    + struct.pack("<I", 8)
    + string("gemma")
    + string("some.list")
    + struct.pack("<IIQ", 9, 4, 2)
    + struct.pack("<II", 7, 9)
    + string("t.weight")
    + struct.pack("<IQQIQ", 2, 32, 2, 8, 0)
)
SMALL += bytes(-len(SMALL) % 32)
DATA = bytes(range(64)) + bytes(4) + bytes(28)


def test_a_header_is_read_from_its_literal_bytes() -> None:
    header = Header(SMALL + DATA, "small")
    assert header.key_names == ("general.architecture", "some.list")
    assert header.value("general.architecture") == "gemma"
    assert header.value("some.list") == [7, 9]
    (tensor,) = header.tensors.values()
    assert (tensor.name, tensor.shape, tensor.kind.name, tensor.n_bytes) == (
        "t.weight",
        (2, 32),
        "Q8_0",
        2 * 34,
    )
    assert (header.data_start, header.data_bytes) == (len(SMALL), 96)


def test_unchanged_it_is_written_as_it_was() -> None:
    assert Header(SMALL + DATA, "small").changed([]) == SMALL


def test_a_key_that_is_there_keeps_its_place_and_a_new_one_comes_last() -> None:
    header = Header(SMALL + DATA, "small")
    keys = [Key("new", ["a", "é"], "[string]"), Key("general.architecture", "llama", "string")]
    changed = Header(header.changed(keys, drop=["some.list"]) + DATA, "changed")
    assert changed.key_names == ("general.architecture", "new")
    assert changed.value("general.architecture") == "llama"
    assert changed.value("new") == ["a", "é"]
    assert changed.tensors == header.tensors


@pytest.mark.parametrize(
    ("kind", "value"),
    [("u32", 7), ("i32", -7), ("u64", 1 << 40), ("f32", 0.5), ("bool", True), ("[i32]", [-1, 2])],
)
def test_a_value_of_every_type_comes_back(kind: str, value: object) -> None:
    header = Header(SMALL + DATA, "small")
    changed = Header(header.changed([Key("k", value, kind)]) + DATA, "changed")
    assert changed.value("k") == value
    assert pack_key(Key("k", value, kind)).endswith(changed.raw("k"))


def test_it_agrees_with_the_gguf_package_on_a_converted_file(
    converted: Callable[[str, str], Path],
) -> None:
    path = converted("ar-nar-len", "q8_0")
    header, file = read_header(path), GgufFile(path)
    assert set(header.key_names) == set(file.keys)
    assert {name: header.value(name) for name in header.key_names} == dict(file.keys)
    assert [
        (t.name, t.shape, t.kind.number, header.data_start + t.offset, t.n_bytes)
        for t in header.tensors.values()
    ] == [(t.name, t.shape, int(t.ggml_type), t.offset, t.n_bytes) for t in file.tensors.values()]
    assert header.data_start + header.data_bytes == path.stat().st_size


@given(st.integers(0, len(SMALL + DATA) - 29))
def test_a_file_that_ends_early_is_refused(length: int) -> None:
    with pytest.raises(InputError, match="no whole GGUF file"):
        Header((SMALL + DATA)[:length], "cut")


@given(st.integers(0, len(SMALL) - 1), st.integers(0, 255))
def test_damaged_bytes_are_read_or_refused_and_nothing_else(at: int, byte: int) -> None:
    damaged = bytearray(SMALL + DATA)
    damaged[at] = byte
    try:
        header = Header(bytes(damaged), "damaged")
        for name in header.key_names:
            header.value(name)
    except InputError:
        pass


def test_counts_that_no_file_can_hold_are_refused_at_once() -> None:
    for at in (8, 16):
        damaged = bytearray(SMALL + DATA)
        damaged[at : at + 8] = struct.pack("<Q", 1 << 62)
        with pytest.raises(InputError, match="no whole GGUF file"):
            Header(bytes(damaged), "huge")


def test_a_missing_and_an_empty_file_say_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_header(tmp_path / "absent.gguf")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(InputError, match="empty"):
        read_header(tmp_path / "empty.gguf")
