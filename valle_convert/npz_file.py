"""numpy's archives of arrays (`.npz`), read as what they are: files of strangers."""

import lzma
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle_convert.errors import InputError
from valle_convert.files import ZIP_MAGIC, check_input_file, os_fault

#: What zipfile, its decompressors and numpy raise on damage. RuntimeError is a password, and
#: MemoryError an array that is longer by its header than any memory.
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, KeyError, MemoryError),
    *(NotImplementedError, OverflowError, RuntimeError, SyntaxError, tokenize.TokenError),
    *(TypeError, ValueError),
)


def npz_names(path: Path, what: str) -> tuple[str, ...]:
    """The arrays that an archive says it has; InputError where it is none, see `read_npz`."""
    with _opened(path, what) as arrays:
        return tuple(arrays.files)


def read_npz(
    path: Path,
    names: Sequence[str],
    *,
    max_bytes: int,
    what: str,
    hint: str = "",
    optional: Sequence[str] = (),
) -> dict[str, NDArray[Any]]:
    with _opened(path, what, hint) as arrays:
        sizes = {item.filename: item.file_size for item in arrays.zip.infolist()}
        if missing := [name for name in names if f"{name}.npy" not in sizes]:
            raise ValueError(f"it has no array {', '.join(map(repr, missing))}")
        there = [*names, *(name for name in optional if f"{name}.npy" in sizes)]
        if sum(sizes[f"{name}.npy"] for name in there) > max_bytes:
            raise ValueError(f"it would unpack to more than {max_bytes:,} bytes")
        read = {name: arrays[f"{name}.npy"] for name in there}
        if strange := [name for name, array in read.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{', '.join(map(repr, strange))} is not an array")
        return read


@contextmanager
def _opened(path: Path, what: str, hint: str = "") -> Iterator[Any]:
    """An archive as numpy opens it, and every fault in it as an `InputError`."""
    check_input_file(path, what)
    try:
        with path.open("rb") as raw:
            # numpy takes anything else for a pickle, and says how it could be loaded unsafely.
            if raw.peek(4)[:4] != ZIP_MAGIC:
                raise ValueError("it is not a zip archive")
            with np.load(raw, allow_pickle=False) as arrays:
                yield arrays
    except OSError as error:
        raise os_fault(f"The {what} {path} cannot be opened", error) from error
    except _DAMAGED as error:
        raise InputError(f"{path} is no {what} ({error!s:.120}){hint and f'; {hint}'}.") from error
