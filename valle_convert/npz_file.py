"""numpy's archives of arrays (`.npz`), read as what they are: files of strangers.

Nothing in them is unpickled, and no room is made for what a header merely promises.
"""

from __future__ import annotations

import io
import lzma
import math
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from valle_convert.errors import InputError
from valle_convert.files import check_input_file, os_fault

#: What zipfile, its decompressors and numpy raise on damage; RuntimeError is a password.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    TypeError,
    ValueError,
)


def npz_names(path: Path, what: str) -> tuple[str, ...]:
    """The arrays that an archive says it has; InputError where it is none, see `read_npz`."""
    check_input_file(path, what)
    try:
        with path.open("rb") as raw, zipfile.ZipFile(raw) as archive:
            return tuple(name.removesuffix(".npy") for name in archive.namelist())
    except OSError as error:
        raise os_fault(f"The {what} {path} cannot be opened", error) from error
    except _DAMAGED as error:
        raise InputError(f"{path} is no {what} ({error}).") from error


def read_npz(
    path: Path,
    names: Sequence[str],
    *,
    max_bytes: int,
    what: str,
    hint: str = "",
    optional: Sequence[str] = (),
) -> dict[str, NDArray[Any]]:
    """Some arrays of an archive.

    Args:
        path: of the archive.
        names: the arrays that it has to have.
        max_bytes: what they may unpack to, all together.
        what: the file should be, in words, for messages: `file of codes`.
        hint: how one is made, for messages.
        optional: arrays that are read where they are there.

    Raises:
        InputError: it cannot be read, is damaged, or lacks an array.
    """
    check_input_file(path, what)
    try:
        with path.open("rb") as raw, zipfile.ZipFile(raw) as archive:
            sizes = {item.filename: item.file_size for item in archive.infolist()}
            if any(item.compress_size > path.stat().st_size for item in archive.infolist()):
                # zipfile makes room for as much before it reads.
                raise ValueError("an entry is said to be larger than the file")
            if missing := [name for name in names if f"{name}.npy" not in sizes]:
                raise ValueError(f"it has no array {', '.join(map(repr, missing))}")
            there = [*names, *(name for name in optional if f"{name}.npy" in sizes)]
            if sum(sizes[f"{name}.npy"] for name in there) > max_bytes:
                raise ValueError(f"it would unpack to more than {max_bytes:,} bytes")
            return {name: _read_array(archive.read(f"{name}.npy")) for name in there}
    except OSError as error:
        raise os_fault(f"The {what} {path} cannot be opened", error) from error
    except _DAMAGED as error:
        raise InputError(f"{path} is no {what} ({error}){hint and f'; {hint}'}.") from error


def _read_array(data: bytes) -> NDArray[Any]:
    """A stored array, if it is as long as its header says: numpy would make room first."""
    file = io.BytesIO(data)
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"it has an array of the format {version[0]}.{version[1]}")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it has an array of Python objects, which are never unpickled")
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError("it has an array that is not as long as its header says")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)
