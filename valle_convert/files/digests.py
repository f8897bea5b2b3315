"""SHA-256 of files, each hashed once a process."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from threading import Lock

from valle_convert.files.paths import os_faults

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
