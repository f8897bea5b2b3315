"""GGUF files byte by byte, so that each can be wrong in a place of one's own choice."""

import struct
from collections.abc import Sequence


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def array(element: int, n: int, values: bytes) -> bytes:
    return struct.pack("<IQ", element, n) + values


def entry(name: str | bytes, columns_first: Sequence[int], kind: int, offset: int) -> bytes:
    n = len(columns_first)
    return string(name) + struct.pack(f"<I{n}QIQ", n, *columns_first, kind, offset)


def whole(
    keys: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    alignment: int = 32,
    version: int = 3,
    n_keys: int | None = None,
    n_tensors: int | None = None,
) -> bytes:
    """A file; the counts may be wrong."""
    counts = struct.pack(
        "<IQQ",
        version,
        len(tensors) if n_tensors is None else n_tensors,
        len(keys) if n_keys is None else n_keys,
    )
    header = b"".join([b"GGUF", counts, *keys, *tensors])
    return header + bytes(-len(header) % alignment) + data
