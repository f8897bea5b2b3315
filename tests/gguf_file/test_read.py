"""The one reader: against literal bytes, and each fault of a file by its own sentence."""

import os
import re
import struct
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf_bytes import array, entry, key, string, whole
from support import Convert

from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.gguf_file.header import Key
from valle_convert.gguf_file.read import GgufFile
from valle_convert.gguf_file.types import GgmlType

U8, U32, F32, BOOL, STRING, ARRAY = 0, 4, 6, 7, 8, 9

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


def parse(data: bytes) -> GgufFile:
    return GgufFile(Path("made.gguf"), data)


def reason(data: bytes) -> str:
    """Why it is refused."""
    with pytest.raises(InputError) as caught:
        parse(data)
    text = str(caught.value)
    assert text.startswith("made.gguf is not a complete GGUF file: ")
    assert text.endswith("; convert or copy it again.")
    return text.removeprefix("made.gguf is not a complete GGUF file: ").partition(";")[0]


def test_a_file_is_read_from_its_literal_bytes() -> None:
    file = parse(SMALL + DATA)
    assert dict(file.keys) == {"general.architecture": "gemma", "some.list": [7, 9]}
    assert file.key_types == {"general.architecture": "string", "some.list": "[u32]"}
    (tensor,) = file.tensors.values()
    assert (tensor.name, tensor.shape, tensor.ggml_type.name, tensor.n_bytes) == (
        "t.weight",
        (2, 32),
        "Q8_0",
        2 * 34,
    )
    assert (tensor.offset, tensor.start) == (0, len(SMALL))
    assert tensor.data.shape == (2, 34)
    assert tensor.data.tobytes() == DATA[:68]
    # A block of Q8_0 is a float16 scale and 32 int8.
    scale = np.frombuffer(DATA[34:36], np.float16).astype(np.float32)
    expected = scale * np.frombuffer(DATA[36:68], np.int8)
    np.testing.assert_array_equal(tensor.rows([1]), [expected])
    assert (file.data_start, file.data_bytes, file.size) == (len(SMALL), 96, len(SMALL) + 96)


def test_unchanged_it_is_written_as_it_was() -> None:
    assert parse(SMALL + DATA).changed([]) == SMALL


def test_a_key_that_is_there_keeps_its_place_and_a_new_one_comes_last() -> None:
    file = parse(SMALL + DATA)
    keys = [Key("new", ["a", "é"], "[string]"), Key("general.architecture", "llama", "string")]
    changed = parse(file.changed(keys, drop=["some.list"]) + DATA)
    assert dict(changed.keys) == {"general.architecture": "llama", "new": ["a", "é"]}
    assert list(changed.keys) == ["general.architecture", "new"]
    assert changed.tensors == file.tensors


def one_key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return whole([key(name, kind, value)])


def tensors(*rows: tuple[str | bytes, list[int], int, int], data: int = 0) -> bytes:
    return whole(tensors=[entry(*row) for row in rows], data=bytes(data))


#: `attacks` has more of them.
FAULTS = [
    (b"GGML" + bytes(40), "it does not begin with the four letters GGUF"),
    (b"GGUF", "it ends within the beginning, 4 bytes in"),
    (whole(version=1), "it is of version 1 of the format, expected .* 2 or 3"),
    (whole(version=4), "it is of version 4 of the format"),
    (whole(n_keys=9), "claims 9 keys, more than fit in 32 bytes"),
    (whole(n_tensors=2), "claims 2 tensors, more than fit in 32 bytes"),
    (whole([key("a", U32, bytes(4))], n_keys=2)[:48], "it ends within the name of a key 1"),
    (one_key("a\x00b", U8, b"\x00"), "the name 'a\\\\x00b' of a key 0"),
    (one_key(b"\xff", U8, b"\x00"), "key 0 has a string that is not UTF"),
    (one_key("a", 13, bytes(8)), "key 'a' is of the unknown type 13"),
    (one_key("a", ARRAY, array(99, 1, bytes(8))), "key 'a' is of the unknown type 99"),
    (one_key("a", ARRAY, array(U32, 100, b"")), "it ends within the key 'a', 64 bytes in"),
    (one_key("a", ARRAY, array(STRING, 1000, b"")), "it ends within the key 'a', 64 bytes in"),
    (
        one_key("a", STRING, struct.pack("<Q", 1 << 63)),
        "string 0 of the key 'a' has 9223372036854775808 bytes, more than the file has left",
    ),
    (one_key("a", STRING, string(b"\xc3(")), "the key 'a' has a string that is not UTF-8"),
    (
        one_key("a", ARRAY, array(STRING, 2, string(b"a" * 200) + string(b"b" * 200 + b"\xff"))),
        "the key 'a' has a string that is not UTF-8",
    ),
    (
        # A letter across two strings: the first byte of the second length, 0x80, would end it.
        one_key("a", ARRAY, array(STRING, 2, string(b"\xc2") + string(b"b" * 0x80))),
        "the key 'a' has a string that is not UTF-8",
    ),
    (one_key("a", BOOL, b"\x02"), "the key 'a' has a bool that is neither 0 nor 1"),
    (
        one_key("a", ARRAY, array(BOOL, 3, b"\x00\x01\x02")),
        "the key 'a' has a bool that is neither 0 nor 1",
    ),
    (one_key("general.alignment", U32, struct.pack("<I", 4)), "general.alignment is 4"),
    (tensors(("", [1], 0, 0)), "a tensor has a name of 0 bytes"),
    (tensors(("t" * 64, [1], 0, 0)), "a tensor has a name of 64 bytes, expected 1 to 63"),
    (tensors((b"t\xff", [1], 0, 0)), "the name of a tensor has a string that is not UTF-8"),
    (tensors(("t", [1], 0, 0), ("t", [1], 0, 32), data=64), "the tensor 't' is there twice"),
    (tensors(("t", [32, (1 << 59) + 1], 0, 0), data=128), "exceeds 63 bits"),
    (tensors(("t", [32], 4, 0)), "tensor 't' is of the unknown type 4"),
    (
        tensors(("t", [31], 8, 0)),
        "the tensor 't' cannot be Q8_0: rows of 31 do not divide into blocks of 32",
    ),
    (
        tensors(("a", [16], 0, 0), ("b", [16], 0, 32), data=128),
        "the data of 'b' begins at 32 and overlaps with that of 'a', expected 64",
    ),
    (
        tensors(("a", [1], 0, 0), ("b", [1], 0, 64), data=96),
        "the data of 'b' begins at 64 and leaves a hole after that of 'a', expected 32",
    ),
    (
        tensors(("a", [1], 0, 32), data=64),
        "the data of 'a' begins at 32 and leaves a hole after that of the beginning",
    ),
    (
        tensors(("t", [1024, 1024], 0, 0), data=64),
        "the data of 't' ends at byte 4,194,400, but the file has 160",
    ),
    (
        tensors(("t", [1 << 40, 1 << 20], 0, 0), data=64),
        "the data of 't' ends at byte 4,611,686,018,427,388,000, but the file has 160",
    ),
]


@pytest.mark.parametrize(("data", "expected"), FAULTS, ids=[words for _, words in FAULTS])
def test_each_fault_has_its_own_sentence(data: bytes, expected: str) -> None:
    found = reason(data)
    assert re.search(expected, found), found


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({"split.no": 1, "split.count": 3}, "split.no 1, split.count 3"),
        ({"split.count": 2}, "split.no None, split.count 2"),
        ({"split.no": 2}, "split.no 2, split.count None"),
    ],
)
def test_a_part_of_a_split_model_is_refused_where_the_whole_is_needed(
    keys: dict[str, int], found: str
) -> None:
    data = whole([key(name, 2, struct.pack("<H", value)) for name, value in keys.items()])
    with pytest.raises(InputError, match=f"made.gguf is one part of a split model .{found}.*merge"):
        parse(data)
    assert dict(GgufFile(Path("x"), data, allow_part=True).keys) == keys


def test_a_split_into_one_is_whole() -> None:
    parse(whole([key("split.no", 2, b"\0\0"), key("split.count", 2, b"\1\0")]))
    with pytest.raises(InputError, match="split model"):
        parse(whole([key("split.count", STRING, string("1"))]))


def test_the_last_padding_may_be_missing() -> None:
    assert parse((SMALL + DATA)[:-28]).tensors["t.weight"].data.nbytes == 68
    assert reason((SMALL + DATA)[:-29]).startswith("the data of 't.weight' ends at byte")


def test_a_file_without_tensors_is_one() -> None:
    padding = parse(one_key("a", U32, bytes(4)))
    assert (padding.data_bytes, list(padding.tensors), padding.keys["a"]) == (0, [], 0)
    parse(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))


def test_hostile_sizes_cost_no_time_and_no_memory(tmp_path: Path) -> None:
    """A 49-byte file that claims 2^40 elements, as large as it says, made of a hole."""
    claims = [
        (one_key("a", ARRAY, array(element, 1 << 40, b"")), size)
        for element in (U8, STRING, F32)
        for size in (49, 1 << 41)
    ]
    claims.append((whole([struct.pack("<Q", 1 << 40)], n_keys=1), 1 << 41))
    claims.append((one_key("a", STRING, struct.pack("<Q", 1 << 40)), 1 << 41))
    tracemalloc.start()
    try:
        for data, size in claims:
            path = tmp_path / "hostile.gguf"
            path.write_bytes(data)
            os.truncate(path, size)
            start = time.process_time()
            with pytest.raises(InputError, match=r"hostile\.gguf is not a complete GGUF file"):
                GgufFile(path)
            # Not a measurement: the difference to walking over 2^40 elements is that to forever.
            assert time.process_time() - start < 10
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_numbers_of_a_type_that_nobody_can_read_name_file_and_tensor() -> None:
    tensor = parse(tensors(("t", [256], 0, 0), data=1024)).tensors["t"]
    later = replace(tensor, ggml_type=GgmlType("LATER", 99, 256, 292))
    with pytest.raises(EnvironmentFault, match=r"^made\.gguf, t: numbers of the type LATER"):
        later.rows()


def test_it_stays_mapped_as_long_as_its_data_lives(converted: Convert) -> None:
    path = converted("ar-nar-len", "q8_0")
    data = GgufFile(path).tensors["token_embd.weight"].data
    tensor = GgufFile(path).tensors["token_embd.weight"]
    assert data.tobytes() == path.read_bytes()[tensor.start : tensor.start + tensor.n_bytes]
