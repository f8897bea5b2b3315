"""Folders for outputs, locks on them, and remains of killed runs."""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path

from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.files.paths import describe_os_error, os_faults

try:
    import fcntl
except ImportError:
    #: Whether the system locks files. Windows neither does nor removes or renames open ones.
    HAS_LOCKS = False
else:
    HAS_LOCKS = True

# Of every temporary file. It is short, so that the target's own name may have 255 bytes.
_PREFIX = ".valle-convert-"
PARTIAL = ".partial"
_TEMPORARY = re.compile(rf"{re.escape(_PREFIX)}[0-9a-f]{{16}}{re.escape(PARTIAL)}")


@contextmanager
def made_folder(folder: Path, advice: str = "give another name.") -> Iterator[None]:
    """A folder for outputs, removed again if it stays empty."""
    missing = list(takewhile(lambda path: not path.exists(), [folder, *folder.parents]))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"The output {folder} is a file, expected a folder; {advice}") from None
    except OSError as error:
        raise EnvironmentFault(
            f"The folder {folder} cannot be made: {describe_os_error(error)}."
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # it is not empty
            for path in missing:
                path.rmdir()


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keep other runs of this program out of an output folder; leaves nothing."""
    if not HAS_LOCKS:
        yield
        return
    with os_faults(f"The folder {folder} cannot be opened"):
        handle = os.open(folder, os.O_RDONLY)
    try:
        if not lock(handle):
            raise EnvironmentFault(
                f"Another run of valle-convert is writing into {folder}; wait until it is done, or "
                "give another folder."
            )
        yield
    finally:
        os.close(handle)


def remove_stale(folder: Path) -> None:
    """Remove what killed runs of this program have left in a folder.

    Files of living processes are locked, and stay.
    """
    try:
        with os.scandir(folder) as entries:
            found = [Path(entry.path) for entry in entries if _TEMPORARY.fullmatch(entry.name)]
    except OSError:
        return
    for path in found:
        with suppress(OSError):
            if not HAS_LOCKS:
                path.unlink()
                continue
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if not lock(handle):
                    continue
                path.unlink()
            finally:
                os.close(handle)


def lock(handle: int) -> bool:
    """Lock an open file or folder until it is closed; False if another process has it."""
    if HAS_LOCKS:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True  # a file system without locks
    return True


def new_name(folder: Path) -> Path:
    return folder / f"{_PREFIX}{secrets.token_hex(8)}{PARTIAL}"


def new_locked(parent: Path) -> tuple[Path, int]:
    """A hidden file and its locked descriptor."""
    while True:
        path = new_name(parent).with_suffix(PARTIAL)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        handle = os.open(path, flags, 0o666)
        # Another run may have removed it as stale before it was locked.
        if lock(handle) and path.exists():
            return path, handle
        os.close(handle)
