"""Files that are either whole or not there.

Everything this project writes goes through `atomic_output`: the data is written to a
hidden file beside the target, flushed to the disk, and renamed over the target at the
end. On any error, Ctrl-C included, the hidden file is removed and the target is as it
was.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from valle_convert.errors import EnvironmentFault, InputError


def describe_os_error(error: OSError) -> str:
    """The system's own words for an error, in lower case, without numbers and paths."""
    return (error.strerror or str(error)).lower()


def check_target(target: Path, *, force: bool, sources: Iterable[Path] = ()) -> None:
    """Refuse a target that cannot or must not be written, before any work is done.

    Args:
        target: the file that will be written.
        force: whether a file that exists may be replaced.
        sources: the inputs; a target that is one of them is refused even with `force`.

    Raises:
        InputError: the target is a directory, is an input, exists without `force`, or its
            folder does not exist.
        EnvironmentFault: the folder cannot be written to.
    """
    folder = target.parent
    if target.is_dir():
        raise InputError(
            f"The output {target} is a directory, where the name of a file is expected; "
            f"give a file in it, for example {target / 'model.gguf'}."
        )
    for source in sources:
        if target.exists() and source.exists() and target.samefile(source):
            raise InputError(
                f"The output {target} is the input file itself, which would be lost; "
                "give another name for the output."
            )
    if target.exists() and not force:
        raise InputError(
            f"The output {target} exists and is not overwritten; "
            "give another name, or --force to replace it."
        )
    if not folder.is_dir():
        raise InputError(
            f"The folder {folder} of the output {target.name} does not exist; "
            f"make it first (mkdir -p {folder})."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise EnvironmentFault(
            f"The folder {folder} cannot be written to by this user; "
            "choose another folder for the output, or change its permissions."
        )


def check_free_space(target: Path, n_bytes: int) -> None:
    """Refuse to start a file that the disk has no room for.

    Raises:
        EnvironmentFault: fewer than `n_bytes` are free on the disk of `target`.
    """
    free = shutil.disk_usage(target.parent).free
    if free < n_bytes:
        raise EnvironmentFault(
            f"The disk of {target.parent} has {free:,} bytes free, and {target.name} needs "
            f"{n_bytes:,}; free {n_bytes - free:,} bytes or write elsewhere."
        )


@contextmanager
def atomic_output(target: Path, *, force: bool, sources: Iterable[Path] = ()) -> Iterator[BinaryIO]:
    """Open a file that appears under its name only once it is complete.

    Yields a binary file, readable and seekable, in the folder of `target`.

    Raises:
        InputError, EnvironmentFault: as `check_target`, and where the disk refuses a write.
    """
    check_target(target, force=force, sources=sources)
    try:
        handle, name = tempfile.mkstemp(
            prefix=f".{target.name}.", suffix=".partial", dir=target.parent
        )
    except OSError as error:
        raise EnvironmentFault(
            f"No file can be made in {target.parent}: {describe_os_error(error)}; "
            "choose another folder for the output."
        ) from error
    partial = Path(name)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _apply_umask(partial)
        if force:
            partial.replace(target)
        else:
            _rename_without_overwriting(partial, target)
        _sync_folder(target.parent)
    except OSError as error:
        # ENOSPC, EDQUOT and EFBIG are about the output; an error with another number and a file
        # name of its own came from elsewhere and is not ours to explain.
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}:
            raise EnvironmentFault(
                f"Writing {target} failed: {describe_os_error(error)}; nothing was kept. "
                "Free some space or write elsewhere."
            ) from error
        raise
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()


def write_text_atomically(
    target: Path, text: str, *, force: bool, sources: Iterable[Path] = ()
) -> None:
    """Write a small UTF-8 text file by way of `atomic_output`."""
    with atomic_output(target, force=force, sources=sources) as file:
        file.write(text.encode("utf-8"))


def _apply_umask(path: Path) -> None:
    """Give a file made by mkstemp (mode 0600) the mode that `open` would have given it."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def _rename_without_overwriting(partial: Path, target: Path) -> None:
    """Rename, but refuse where the target came into being while the data was written."""
    try:
        os.link(partial, target)
    except FileExistsError:
        raise InputError(
            f"The output {target} was made by another program in the meantime and is not "
            "overwritten; give another name, or --force to replace it."
        ) from None
    except OSError:
        # A file system without hard links: the check at the start has to be enough.
        partial.replace(target)
    else:
        partial.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where the system lets a folder be opened."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
