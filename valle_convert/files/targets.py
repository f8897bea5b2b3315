"""Outputs, checked before any work: whether they may be written, and what would be lost."""

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
from valle_convert.files.paths import describe_os_error, kind_of, os_faults, stat_of

#: The inputs of the current work; see `protected`.
_inputs: ContextVar[tuple[Path, ...]] = ContextVar("inputs", default=())


@contextmanager
def protected(inputs: Iterable[Path | None]) -> Iterator[None]:
    """Reject every output that would replace one of these inputs while the block runs."""
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
    """Compare every output with all inputs, and with the other outputs.

    Paths are equal if they lead to the same file. A folder as an input includes all files in it.
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
                    f"{names[identity]} and {name} are the same file, {target}; give each its own."
                )
            names[identity] = name


def check_free_space(target: Path, n_bytes: int) -> None:
    folder = resolve(target).parent
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise EnvironmentFault(
            f"The disk of {folder} has {free:,} bytes free, but {target.name} needs "
            f"{n_bytes:,}; free {n_bytes - free:,} bytes or write elsewhere."
        )


@contextmanager
def explained_writes(target: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise EnvironmentFault(
            f"Writing {target} failed: its reader went away before the end."
        ) from error
    except OSError as error:
        # ENOSPC, EDQUOT and EFBIG are about the output; other errors with a file name come from
        # elsewhere.
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}:
            raise EnvironmentFault(
                f"Writing {target} failed: {describe_os_error(error)}; nothing was kept. "
                "Free some space or write elsewhere."
            ) from error
        raise


def is_stream(target: Path) -> bool:
    """Whether data written there is gone: a pipe, a device, or standard output."""
    found = stat_of(target, f"The output {target}")
    return found is not None and (
        stat.S_ISFIFO(found.st_mode) or stat.S_ISCHR(found.st_mode) or _is_stdout(found)
    )


def open_stream(target: Path) -> BinaryIO:
    """Open an `is_stream` target for writing piece by piece."""
    with os_faults(f"The output {target} cannot be opened"):
        # If reopened, a file on standard output would be written from its beginning.
        return os.fdopen(os.dup(1), "wb") if _is_stdout(target.stat()) else target.open("wb")


def resolve(target: Path) -> Path:
    """The file that a symbolic link points to, existing or not; other paths unchanged."""
    with os_faults(f"The output {target} cannot be used"):
        return Path(os.path.realpath(target)) if target.is_symlink() else target


def _check_replaceable(
    target: Path, found: os.stat_result, inputs: list[Path], *, force: bool
) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise InputError(
            f"The output {target} is a directory, expected the name of a file; "
            f"give a file in it, for example {target / 'model.gguf'}."
        )
    if _is_stdout(found) or not stat.S_ISREG(found.st_mode):
        kind = "standard output" if _is_stdout(found) else kind_of(found.st_mode)
        raise InputError(
            f"The output {target} is {kind}, expected a regular file; give the name of a file."
        )
    for one in inputs:
        about = stat_of(one, str(one))
        if about is None:
            continue
        if os.path.samestat(found, about):
            words = f"is the input file itself ({one})"
        elif stat.S_ISDIR(about.st_mode) and resolve(target).is_relative_to(one.resolve()):
            words = f"is a file of the input {one}"
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
    folder = target.parent
    about = stat_of(folder, f"The folder {folder} of the output {target.name}")
    if about is None or not stat.S_ISDIR(about.st_mode):
        raise InputError(
            f"The folder {folder} of the output {target.name} does not exist; "
            f"make it first (mkdir -p {folder})."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise EnvironmentFault(
            f"The folder {folder} is not writable for this user; "
            "choose another folder for the output, or change its permissions."
        )
    if found is not None and about.st_mode & stat.S_ISVTX:
        user = os.geteuid()
        if user not in {0, found.st_uid, about.st_uid}:
            raise EnvironmentFault(
                f"The output {target} belongs to another user, and the folder {folder} is sticky "
                "(only owners replace files); give another name."
            )


def _is_stdout(found: os.stat_result) -> bool:
    try:
        return os.path.samestat(found, os.fstat(1))
    except OSError:
        return False  # closed
