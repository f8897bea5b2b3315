"""`.ecdc` files: the codes of a recording as EnCodec's command lines exchange them.

    "ECDC" | u8 version, 0 | u32 big endian, length of the JSON | JSON | codes of 10 bits

The JSON has `m` (the model), `al` (samples), `nc` (levels) and `lm` (whether codes are squeezed by
a language model). Codes are packed lowest bit first, and the last byte is filled with zeros. Their
order is what two programs disagree on: Meta's `encodec` writes frame by frame, encodec.cpp level
by level, under a header that either reads as its own. But each writes the JSON in its own way,
which tells them apart:

    {"m": "encodec_24khz", "al": 24100, "nc": 16, "lm": false}      Meta's: frame by frame
    {"al":24100,"lm":false,"m":"encodec_24khz","nc":16}             encodec.cpp: level by level
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from valle_convert.errors import InputError
from valle_convert.files import atomic_output, os_fault

EcdcOrder = Literal["frame", "level"]
ECDC_SUFFIX = ".ecdc"

_MAGIC = b"ECDC"
_HEADER = struct.Struct(">4sBI")
_MAX_JSON_BYTES = 1 << 16
_BITS = 10
_MODEL, _RATE, _HOP = "encodec_24khz", 24_000, 320
#: encodec.cpp's `decompress` sets 12 kbit/s, whatever the file says.
_CPP_LEVELS = 16
_MAX_LEVELS = 32
#: Five hours, as for codes in other files.
_MAX_SAMPLES = 5 * 3600 * _RATE


def read_ecdc(path: Path, order: EcdcOrder | None = None) -> NDArray[np.int32]:
    """The codes of a file, [frames, levels].

    Args:
        path: of the file.
        order: frame by frame or level by level; None to tell it by the header.

    Raises:
        InputError: it is no such file, is damaged or cut off, is of another model, or its order
            cannot be told.
    """
    try:
        data = path.read_bytes() if path.stat().st_size <= _MAX_SAMPLES else b""
    except OSError as error:
        raise os_fault(f"The file of codes {path} cannot be opened", error) from error
    text, packed = _split(path, data)
    n_frames, n_levels = _parse(path, text)
    expected = -(-n_frames * n_levels * _BITS // 8)
    if len(packed) != expected:
        what = "cut off" if len(packed) < expected else "damaged"
        raise InputError(
            f"{path} is {what}: {len(packed):,} bytes of codes, where {n_frames} frames of "
            f"{n_levels} levels have {expected:,}; copy it or write it again."
        )
    unpacked = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
    bits = unpacked[: n_frames * n_levels * _BITS].reshape(-1, _BITS)
    codes = bits.astype(np.int32) @ (1 << np.arange(_BITS, dtype=np.int32))
    if (order or _order_of(path, text, n_frames, n_levels)) == "frame":
        return codes.reshape(n_frames, n_levels)
    return np.ascontiguousarray(codes.reshape(n_levels, n_frames).T)


def write_ecdc(
    path: Path,
    codes: NDArray[np.integer],
    order: EcdcOrder = "frame",
    *,
    force: bool = False,
    sources: Iterable[Path] = (),
) -> tuple[str, ...]:
    """Write codes [frames, levels] below 1024, or leave nothing.

    Returns:
        What the user should know of it.

    Raises:
        ValueError: they are no such codes.
        InputError, EnvironmentFault: as `files.atomic_output`.
    """
    if codes.ndim != 2 or codes.size == 0 or codes.min() < 0 or codes.max() >= 1 << _BITS:
        raise ValueError("codes [frames, levels] from 0 to 1023 are expected")
    n_frames, n_levels = codes.shape
    about = {"m": _MODEL, "al": n_frames * _HOP, "nc": n_levels, "lm": False}
    text = _dump(about, order).encode()
    arranged = codes if order == "frame" else codes.T
    bits = (arranged.reshape(-1, 1) >> np.arange(_BITS)) & 1
    with atomic_output(path, force=force, sources=sources) as file:
        file.write(_HEADER.pack(_MAGIC, 0, len(text)) + text)
        file.write(np.packbits(bits.astype(np.uint8), bitorder="little").tobytes())
    if order == "frame" or n_levels == _CPP_LEVELS:
        return ()
    notice = (
        f"encodec.cpp's decompress takes every file for one of {_CPP_LEVELS} levels, and {path} "
        f"has {n_levels}; Meta's encodec decodes it in the order frame"
    )
    return (notice,)


def _dump(about: dict[str, Any], order: EcdcOrder) -> str:
    """The JSON as the program writes it whose order this is."""
    if order == "frame":
        return json.dumps(about)
    return json.dumps(about, sort_keys=True, separators=(",", ":"))


def _split(path: Path, data: bytes) -> tuple[str, bytes]:
    """The JSON and the packed codes."""
    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        raise InputError(
            f"{path} is no .ecdc file: it begins with {data[:4]!r}, where {_MAGIC!r} is expected; "
            "one is written by encodec, encodec.cpp, or with --save-codes."
        )
    _, version, length = _HEADER.unpack_from(data)
    if version != 0 or length > _MAX_JSON_BYTES:
        raise InputError(
            f"{path} is an .ecdc file of version {version} with {length:,} bytes of JSON, where "
            f"version 0 and at most {_MAX_JSON_BYTES:,} are expected; the file is damaged."
        )
    start, end = _HEADER.size, _HEADER.size + length
    if end > len(data):
        raise InputError(f"{path} is cut off within its header; copy it or write it again.")
    try:
        return data[start:end].decode("utf-8"), data[end:]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: the header is no JSON ({error}); it is damaged.") from error


def _parse(path: Path, text: str) -> tuple[int, int]:
    """Frames and levels."""
    try:
        about = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: the header is no JSON ({error}); it is damaged.") from error
    if not isinstance(about, dict):
        raise InputError(
            f"{path}: the header is a {type(about).__name__}, where keys are expected."
        )
    if about.get("m") != _MODEL:
        raise InputError(
            f"{path} has codes of the model {about.get('m')!r}, where {_MODEL} is expected; encode "
            "the recording again, with that."
        )
    if about.get("lm") not in (False, None):
        raise InputError(
            f"{path} has codes that a language model squeezed (encodec --lm), which is not read; "
            "write it again without --lm."
        )
    for name, limit in (("al", _MAX_SAMPLES), ("nc", _MAX_LEVELS)):
        value = about.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
            raise InputError(
                f"{path}: {name} is {value!r}, where a whole number from 1 to {limit:,} is "
                "expected; the file is damaged."
            )
    return -(-about["al"] // _HOP), about["nc"]


def _order_of(path: Path, text: str, n_frames: int, n_levels: int) -> EcdcOrder:
    """By the way the JSON is written."""
    about = json.loads(text)
    orders: tuple[EcdcOrder, ...] = get_args(EcdcOrder)
    for order in orders:
        # Meta's order of keys is that of its program; a dict keeps it.
        if text == _dump(about, order) and (order == "level" or list(about) != sorted(about)):
            return order
    if 1 in (n_frames, n_levels):
        return "frame"  # both are the same
    raise InputError(
        f"{path} was written neither by Meta's encodec nor by encodec.cpp, so the order of its "
        "codes cannot be told; give it with --ecdc-order frame (Meta's) or level (encodec.cpp's)."
    )
