"""Files that are either complete or absent, their folders and locks, and remains of killed runs."""

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import takewhile
from pathlib import Path
from threading import Event
from typing import BinaryIO

from valle_convert.errors import EnvironmentFault, InputError
from valle_convert.files.paths import describe_os_error, os_fault, os_faults, stat_of
from valle_convert.files.targets import check_outputs, explained_writes, resolve

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
_FLUSH_SECONDS, _FLUSH_BYTES = 0.02, 16 << 20
_NO_UNNAMED_FILES = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL, errno.ENOSYS}


@contextmanager
def atomic_output(target: Path, *, force: bool, inputs: Iterable[Path] = ()) -> Iterator[BinaryIO]:
    """Open a file that appears under its name once it is complete.

    Yields a binary file, readable and seekable.
    """
    check_outputs([target], force=force, inputs=inputs)
    with explained_writes(target), _named_at_the_end(resolve(target), force) as file:
        yield file


@contextmanager
def atomic_outputs(
    targets: Sequence[Path], *, force: bool, inputs: Iterable[Path] = ()
) -> Iterator[list[BinaryIO]]:
    """Open files that belong together: all of them appear once all are complete, or none.

    They are named one right after the other, the first one last, so that a program waiting for it
    finds the others. If one cannot be named, those already named are removed; files that `force`
    has replaced by then stay replaced.
    """
    check_outputs(targets, force=force, inputs=inputs)
    named: list[Path] = []

    def note(target: Path, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            named.append(target)

    try:
        with ExitStack() as stack:
            opened: list[BinaryIO] = []
            for target in map(resolve, targets):
                stack.push(partial(note, target))  # called after the file was named
                stack.enter_context(explained_writes(target))
                opened.append(stack.enter_context(_named_at_the_end(target, force)))
            yield opened
            for file in opened:
                file.flush()
                os.fsync(file.fileno())
    except BaseException:
        for target in () if force else named:
            target.unlink(missing_ok=True)
        raise


def write_text_atomically(target: Path, text: str, *, force: bool) -> None:
    with atomic_output(target, force=force) as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))


@contextmanager
def _named_at_the_end(target: Path, force: bool) -> Iterator[BinaryIO]:
    """A file that is unnamed or hidden until it is complete."""
    folder = target.parent
    remove_stale(folder)
    hidden: Path | None = None
    try:
        try:
            handle = _open_unnamed(folder)
            if handle is None:
                hidden, handle = new_locked(folder)
        except OSError as error:
            raise EnvironmentFault(
                f"No file can be made in {folder}: {describe_os_error(error)}; "
                "choose another folder for the output."
            ) from error
        with os.fdopen(handle, "w+b") as file:
            lock(file.fileno())
            with _written_to_disk_meanwhile(file):
                yield file
            file.flush()
            found = stat_of(target, f"The output {target}")
            if found is not None and force and hasattr(os, "fchmod"):
                # The permissions stay.
                with suppress(OSError):
                    os.fchmod(file.fileno(), stat.S_IMODE(found.st_mode))
            os.fsync(file.fileno())
            try:
                if hidden is None and force:
                    hidden = new_name(folder)
                    _name(file, hidden)
                elif hidden is None:
                    _name(file, target)
                elif not HAS_LOCKS:
                    file.close()  # Windows does not rename open files
                if hidden is not None and force:
                    hidden.replace(target)
                elif hidden is not None:
                    _rename_without_overwriting(hidden, target)
            except FileExistsError:
                raise InputError(
                    f"The output {target} was made by another program in the meantime and is not "
                    "overwritten; give another name, or --force to replace it."
                ) from None
            except PermissionError as error:
                raise os_fault(
                    f"The output {target} cannot be replaced", error, "give another name."
                ) from error
        _sync_folder(folder)
    finally:
        if hidden is not None:
            with suppress(FileNotFoundError):
                hidden.unlink()


@contextmanager
def _written_to_disk_meanwhile(file: BinaryIO) -> Iterator[None]:
    """Flush a file to the disk while it grows; a system begins with that after gigabytes."""
    done, handle = Event(), file.fileno()

    def flush() -> None:
        flushed = 0
        while not done.wait(_FLUSH_SECONDS):
            size = os.fstat(handle).st_size
            if size - flushed >= _FLUSH_BYTES:
                os.fsync(handle)
                flushed = size

    with ThreadPoolExecutor(1) as pool:
        try:  # Ctrl-C may arrive while the thread starts
            flushing = pool.submit(flush)
            yield
        finally:
            done.set()
    flushing.result()  # the system reports a failed write once


def _open_unnamed(folder: Path) -> int | None:
    """An unnamed file in a folder; None if the system or the file system has none."""
    flag = getattr(os, "O_TMPFILE", 0)
    if not flag or not Path("/proc/self/fd").is_dir():
        return None
    try:
        return os.open(folder, flag | os.O_RDWR, 0o666)
    except OSError as error:
        if error.errno in _NO_UNNAMED_FILES:
            return None
        raise


def _name(file: BinaryIO, path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        # os.link follows the link /proc/self/fd/N only with a descriptor.
        os.link(f"/proc/self/fd/{file.fileno()}", path.name, dst_dir_fd=folder)
    finally:
        os.close(folder)


def _rename_without_overwriting(hidden: Path, target: Path) -> None:
    """Rename, unless the target appeared while the data was written."""
    try:
        os.link(hidden, target)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links: the check at the start has to be enough.
        hidden.replace(target)
    else:
        hidden.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the rename survive a power cut, if the system can open a folder."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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
