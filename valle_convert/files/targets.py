"""Outputs, checked before any work is done: what may be written, and what would be lost."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.files.paths import describe_os_error, kind_of, os_fault, stat_of

#: What the work at hand reads; see `protected`.
_inputs: ContextVar[tuple[Path, ...]] = ContextVar("inputs", default=())


@contextmanager
def protected(inputs: Iterable[Path | None]) -> Iterator[None]:
    """Refuse every output that would replace one of these inputs while the block runs."""
    more = tuple(one for one in inputs if one is not None)
    token = _inputs.set((*_inputs.get(), *more))
    try:
        yield
    finally:
        _inputs.reset(token)


def check_outputs(
    outputs: Sequence[Path] | Mapping[str, Path | None],
    *,
    force: bool,
    inputs: Iterable[Path | None] = (),
) -> None:
    """Hold every path that is written against all that is read, and against each other.

    Paths are compared by the files that they lead to, not by how they are spelled. A folder among
    the inputs stands for everything in it.
    """
    reads = [one for one in (*inputs, *_inputs.get()) if one is not None]
    named = (
        outputs.items()
        if isinstance(outputs, Mapping)
        else [(f"The output {path}", path) for path in outputs]
    )
    names: dict[tuple[object, ...], str] = {}
    for name, target in named:
        if target is None:
            continue
        found = stat_of(target, f"The output {target}")
        if found is not None:
            _check_replaceable(target, found, reads, force=force)
        _check_folder(resolve(target), found)
        identities: list[tuple[object, ...]] = [("name", os.path.realpath(target))]
        if found is not None:
            identities.append(("file", found.st_dev, found.st_ino))
        for identity in identities:
            if identity in names:
                raise InputError(
                    f"{names[identity]} and {name} are one file, {target}, of which only the last "
                    "would be left; give each its own."
                )
            names[identity] = name


def check_free_space(target: Path, n_bytes: int) -> None:
    """Refuse to start a file that the disk has no room for."""
    folder = resolve(target).parent
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise EnvironmentFault(
            f"The disk of {folder} has {free:,} bytes free, and {target.name} needs "
            f"{n_bytes:,}; free {n_bytes - free:,} bytes or write elsewhere."
        )


@contextmanager
def explained_writes(target: Path) -> Iterator[None]:
    """Turn what the system says of a write that failed into one sentence about the target."""
    try:
        yield
    except BrokenPipeError as error:
        raise EnvironmentFault(
            f"Writing {target} failed: whoever reads from it went away; not all was written."
        ) from error
    except OSError as error:
        # ENOSPC, EDQUOT and EFBIG are about the output; an error with another number and a file
        # name of its own came from elsewhere and is not ours to explain.
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}:
            raise EnvironmentFault(
                f"Writing {target} failed: {describe_os_error(error)}; nothing was kept. "
                "Free some space or write elsewhere."
            ) from error
        raise


def is_stream(target: Path) -> bool:
    """Whether what is written there goes away: a pipe, a device, or standard output."""
    found = stat_of(target, f"The output {target}")
    return found is not None and (
        stat.S_ISFIFO(found.st_mode) or stat.S_ISCHR(found.st_mode) or _is_stdout(found)
    )


def open_stream(target: Path) -> BinaryIO:
    """Open what `is_stream` says yes to, for writing piece by piece."""
    try:
        # Opened anew, a file on standard output would be written from its beginning.
        return os.fdopen(os.dup(1), "wb") if _is_stdout(target.stat()) else target.open("wb")
    except OSError as error:
        raise os_fault(f"The output {target} cannot be opened", error) from error


def resolve(target: Path) -> Path:
    """The file that a symbolic link points to, there or not; every other path as it is."""
    try:
        return Path(os.path.realpath(target)) if target.is_symlink() else target
    except OSError as error:
        raise os_fault(f"The output {target} cannot be used", error) from error


def _check_replaceable(
    target: Path, found: os.stat_result, inputs: list[Path], *, force: bool
) -> None:
    """Refuse to write over something that is there."""
    if stat.S_ISDIR(found.st_mode):
        raise InputError(
            f"The output {target} is a directory, where the name of a file is expected; "
            f"give a file in it, for example {target / 'model.gguf'}."
        )
    if _is_stdout(found) or not stat.S_ISREG(found.st_mode):
        kind = "standard output" if _is_stdout(found) else kind_of(found.st_mode)
        raise InputError(
            f"The output {target} is {kind}, where a file is needed that can be read back; give "
            "the name of a file."
        )
    for source in inputs:
        about = stat_of(source, str(source))
        if about is None:
            continue
        if os.path.samestat(found, about):
            words = f"is the input file itself ({source})"
        elif stat.S_ISDIR(about.st_mode) and resolve(target).is_relative_to(source.resolve()):
            words = f"is a file of the input {source}"
        else:
            continue
        raise InputError(
            f"The output {target} {words}, which would be lost; give another name for the output."
        )
    if not force:
        raise InputError(
            f"The output {target} exists and is not overwritten; give another name, or --force to "
            "replace it."
        )


def _check_folder(target: Path, found: os.stat_result | None) -> None:
    """Refuse a folder that is not there, or takes no file of this user."""
    folder = target.parent
    about = stat_of(folder, f"The folder {folder} of the output {target.name}")
    if about is None or not stat.S_ISDIR(about.st_mode):
        raise InputError(
            f"The folder {folder} of the output {target.name} does not exist; "
            f"make it first (mkdir -p {folder})."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise EnvironmentFault(
            f"The folder {folder} cannot be written to by this user; "
            "choose another folder for the output, or change its permissions."
        )
    if found is not None and about.st_mode & stat.S_ISVTX:
        user = os.geteuid()
        if user not in {0, found.st_uid, about.st_uid}:
            raise EnvironmentFault(
                f"The output {target} belongs to another user, and in the folder {folder} nobody "
                "may replace what others own; give another name."
            )


def _is_stdout(found: os.stat_result) -> bool:
    try:
        return os.path.samestat(found, os.fstat(1))
    except OSError:
        return False  # it is closed
