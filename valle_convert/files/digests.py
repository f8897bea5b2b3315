"""SHA-256 of files, each hashed once a process."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from threading import Lock

from valle_convert.files.paths import os_faults

_CHUNK_BYTES = 1 << 20
# A file that changed so recently may change again with the same time.
_RECENT_NS = 2_000_000_000

_Version = tuple[Path, int, int, int, int]
_known: dict[_Version, str] = {}
_locks: dict[_Version, Lock] = {}


def sha256_of(path: Path, advance: Callable[[int], object] = lambda _n: None) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits; `advance` gets the size of each chunk read."""
    with os_faults(f"{path} cannot be read to its end"), path.open("rb") as file:
        version = _version(path, file.fileno())
        # If another thread reads the file, wait for it.
        with _locks.setdefault(version, Lock()):
            if version in _known:
                return _known[version]
            digest = hashlib.sha256()
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                advance(len(chunk))
        settled = time.time_ns() - version[-1] > _RECENT_NS
        if settled and _version(path, file.fileno()) == version:
            _known[version] = digest.hexdigest()
    return digest.hexdigest()


def _version(path: Path, handle: int) -> _Version:
    about = os.fstat(handle)
    return path.absolute(), about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns
