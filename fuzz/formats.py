"""Formats taken apart into their fields, so that a mutation hits a length and not just a byte."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from collections.abc import Mapping, Sequence

_GGUF_SIZES = (1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8)
_GGUF_STRING, _GGUF_ARRAY = 8, 9
_LOCAL = (4, 2, 2, 2, 2, 2, 4, 4, 4, 2, 2)
_CENTRAL = (4, 2, 2, 2, 2, 2, 2, 4, 4, 4, 2, 2, 2, 2, 2, 4, 4)
_END = (4, 2, 2, 2, 2, 4, 4, 2)


class _Walk:
    """A place in bytes that are right, and the fields passed so far."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data = data
        self.at = at
        self.fields: list[bytes] = []

    def take(self, *sizes: int) -> int:
        """Pass fields; the last one as a number."""
        for size in sizes:
            self.fields.append(self.data[self.at : self.at + size])
            self.at += size
        return int.from_bytes(self.fields[-1], "little")


def gguf_fields(data: bytes, n_chunks: int = 8) -> list[bytes]:
    """A GGUF file, field after field, and its data in some pieces."""
    walk = _Walk(data)
    walk.take(4, 4)
    n_tensors, n_keys = walk.take(8), walk.take(8)
    for _ in range(n_keys):
        walk.take(walk.take(8))
        kind = walk.take(4)
        count = 1
        if kind == _GGUF_ARRAY:
            kind, count = walk.take(4), walk.take(8)
        for _ in range(count):
            walk.take(walk.take(8) if kind == _GGUF_STRING else _GGUF_SIZES[kind])
    for _ in range(n_tensors):
        walk.take(walk.take(8))
        walk.take(*[8] * walk.take(4))
        walk.take(4, 8)
    return walk.fields + _chunks(data[walk.at :], n_chunks)


def encodec_cpp_fields(data: bytes) -> list[bytes]:
    walk = _Walk(data)
    walk.take(*[4] * 10)
    while walk.at < len(data):
        n_dims, n_name, kind = (walk.take(4) for _ in range(3))
        n_elements = 1
        for _ in range(n_dims):
            n_elements *= walk.take(4)
        walk.take(n_name, n_elements * (2 if kind else 4))
    return walk.fields


def riff_fields(data: bytes) -> list[bytes]:
    walk = _Walk(data)
    walk.take(4, 4, 4)
    while walk.at < len(data):
        walk.take(4)
        size = walk.take(4)
        walk.take(*((2, 2, 4, 4, 2, 2, size - 16) if size >= 16 and size < 64 else (size,)))
    return walk.fields


def zip_fields(data: bytes) -> list[bytes]:
    """A zip file: local headers with their data, the central directory, its end."""
    fields: list[bytes] = []
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
        central = archive.start_dir
    starts = [entry.header_offset for entry in entries]
    for start, end in zip(starts, [*starts[1:], central], strict=True):
        walk = _Walk(data, start)
        walk.take(*_LOCAL)
        n_name, n_extra = (int.from_bytes(field, "little") for field in walk.fields[-2:])
        walk.take(n_name, n_extra)
        fields += [*walk.fields, data[walk.at : end]]
    walk = _Walk(data, central)
    for _ in entries:
        begin = len(walk.fields)
        walk.take(*_CENTRAL)
        lengths = walk.fields[begin + 10 : begin + 13]
        walk.take(*(int.from_bytes(length, "little") for length in lengths))
    ending = data.rfind(b"PK\5\6")
    fields += [*walk.fields, data[walk.at : ending]]
    walk = _Walk(data, ending)
    walk.take(*_END)
    return [*fields, *walk.fields, data[walk.at :]]


def zip_of(entries: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """A right zip of wrong contents, so that a damage is not found by its checksum."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, data in entries:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def zip_entries(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def with_pickle(data: bytes, pickled: bytes) -> list[tuple[str, bytes]]:
    """The entries of a zip of torch around another pickle."""
    entries = zip_entries(data)
    return [(name, pickled if name.endswith("data.pkl") else one) for name, one in entries]


def safetensors_parts(data: bytes) -> tuple[bytes, bytes]:
    (length,) = struct.unpack_from("<Q", data)
    return data[8 : 8 + length], data[8 + length :]


def safetensors_of(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def npy_of(header: bytes, data: bytes, version: tuple[int, int] = (1, 0)) -> bytes:
    """An array as numpy stores it; the header is a Python dict in text."""
    length = struct.pack("<H" if version[0] == 1 else "<I", len(header) % (1 << 16))
    return b"\x93NUMPY" + bytes(version) + length + header + data


# -------------------------------------------------------------------------------- protobuf

Message = list[tuple[int, int, bytes]]


def proto_message(data: bytes) -> Message:
    """Number, wire type and value of each field; a number as the bytes of its groups."""
    found: Message = []
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            start = at
            _, at = _varint(data, at)
            found.append((number, wire, data[start:at]))
            continue
        size = {1: 8, 5: 4}.get(wire, -1)
        if size < 0:
            size, at = _varint(data, at)
        found.append((number, wire, data[at : at + size]))
        at += size
    return found


def proto_bytes(message: Message) -> bytes:
    """The message with every length right."""
    return b"".join(
        varint(number << 3 | wire) + (varint(len(value)) if wire == 2 else b"") + value
        for number, wire, value in message
    )


def varint(value: int) -> bytes:
    """Groups of 7 bits, the lowest first."""
    value &= (1 << 64) - 1
    groups = bytearray()
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def sentencepiece_bytes(pieces: Mapping[str, tuple[float, int]]) -> bytes:
    """A SentencePiece model of BPE with byte fallback; pieces to score and type, by id."""
    model: Message = []
    for piece, (score, kind) in pieces.items():
        fields: Message = [(1, 2, piece.encode()), (2, 5, struct.pack("<f", score))]
        model.append((1, 2, proto_bytes([*fields, (3, 0, varint(kind))])))
    trainer: Message = [(3, 0, varint(2)), (35, 0, b"\1"), (40, 0, b"\0"), (41, 0, b"\1")]
    model.append((2, 2, proto_bytes([*trainer, (42, 0, b"\2")])))
    normalizer: Message = [(1, 2, b"identity"), (3, 0, b"\1"), (4, 0, b"\0"), (5, 0, b"\1")]
    model.append((3, 2, proto_bytes(normalizer)))
    return proto_bytes(model)


def _chunks(data: bytes, n: int) -> list[bytes]:
    step = max(1, -(-len(data) // n))
    return [data[at : at + step] for at in range(0, len(data), step)]
