"""Input files, checked before they are opened; SHA-256 of files, each hashed once a process."""

import codecs
import hashlib
import os
import stat
import time
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from valle_convert.errors import InputError
from valle_convert.files.paths import kind_of, os_faults, stat_of, suggest
from valle_convert.strict_json import unique_json

#: The beginning of a zip, also of those of torch and numpy.
ZIP_MAGIC = b"PK\3\4"
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def check_input_file(path: Path, what: str = "file") -> None:
    """Reject an input that is not a regular file, such as a pipe, which may block forever."""
    found = stat_of(path, f"The {what} {path}")
    if found is None and path.is_symlink():
        raise InputError(
            f"{path} is a link to {path.readlink()}, which does not exist; give the file itself, "
            "or fix the link."
        )
    if found is None:
        raise InputError(f"There is no {what} {path}; {suggest(path)}")
    if stat.S_ISDIR(found.st_mode):
        raise InputError(f"{path} is a directory, expected {_a(what)}; give a file in it.")
    if not stat.S_ISREG(found.st_mode):
        raise InputError(
            f"{path} is {kind_of(found.st_mode)}, expected {_a(what)} with random access; "
            "write it to a file first."
        )


def first_bytes(path: Path, n: int = 512) -> bytes:
    """The first bytes of a file, or fewer if it is shorter."""
    check_input_file(path)
    with os_faults(f"{path} cannot be read"), path.open("rb") as file:
        return file.read(n)


def read_small_file(path: Path, what: str, max_bytes: int, *, pipe: bool = False) -> bytes:
    if not pipe:
        check_input_file(path, what)
    try:
        with os_faults(f"The {what} {path} cannot be read"), path.open("rb") as file:
            data = _read_at_most(file, max_bytes + 1)
    except ValueError as error:
        raise InputError(f"The {what} {str(path)!r} cannot be read: {error}.") from error
    if len(data) > max_bytes:
        raise InputError(
            f"The {what} {path} is larger than {max_bytes:,} bytes; give another file."
        )
    return data


def _read_at_most(file: BinaryIO, n: int) -> bytes:
    """In pieces: `read(n)` takes n bytes of memory however small the file is."""
    data = bytearray()
    while piece := file.read(min(n - len(data), 1 << 20)):
        data += piece
    return bytes(data)


def read_json_object(
    path: Path, what: str, max_bytes: int, *, pipe: bool = False
) -> dict[str, Any]:
    """The object in a JSON file; arguments as in `read_small_file`."""
    return json_object(read_small_file(path, what, max_bytes, pipe=pipe), f"The {what} {path}")


def json_object(data: bytes, where: str) -> dict[str, Any]:
    try:
        loaded = unique_json(data)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where} is not valid JSON ({error}); copy it again or give another."
        ) from error
    if not isinstance(loaded, dict):
        raise InputError(
            f"{where} holds a JSON {type(loaded).__name__}, expected an object; give another file."
        )
    return loaded


def _a(what: str) -> str:
    return f"{'an' if what[0] in 'aeiou' else 'a'} {what}"


def decoded(data: bytes) -> str:
    """A text in UTF-8, or in the UTF-16 or UTF-32 of its byte order mark."""
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    text = data.decode(encoding)
    if "\0" in text:
        raise ValueError("it has NUL characters, like UTF-16 without a mark; save it as UTF-8")
    return text


# A file that changed so recently may change again with the same time.
_RECENT_NS = 2_000_000_000

_Version = tuple[Path, int, int, int, int]
_known: dict[_Version, str] = {}
_locks: dict[_Version, Lock] = {}


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits."""
    with os_faults(f"{path} cannot be read to its end"), path.open("rb") as file:
        version = _version(path, file.fileno())
        # If another thread reads the file, wait for it.
        with _locks.setdefault(version, Lock()):
            if version in _known:
                return _known[version]
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        settled = time.time_ns() - version[-1] > _RECENT_NS
        if settled and _version(path, file.fileno()) == version:
            _known[version] = digest
    return digest


def _version(path: Path, handle: int) -> _Version:
    about = os.fstat(handle)
    return path.absolute(), about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns
