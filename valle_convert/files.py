"""Files that are either whole or not there, and what is true of every path of a command line.

Everything this project writes goes through `atomic_output`: the data is written to a file
without a name in the folder of the target, flushed to the disk, and given its name at the
end. On any error, Ctrl-C and `kill -9` included, nothing is left and the target is as it
was. Where the system has no unnamed files (all but Linux, and some file systems), a hidden
file takes its place; it is locked as long as its writer lives, so that the next run knows
one that was left by a run that was killed, and removes it.

What is no regular file is never replaced and, but for sound, not written into. Of a symbolic link,
the file that it points to is written.
"""

from __future__ import annotations

import difflib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO

from valle_convert.errors import EnvironmentFault, InputError, ValleConvertError

#: Of everything that is temporary. It is short, so that the target's own name may have 255 bytes.
_PREFIX = ".valle-convert-"
_PARTIAL, _SCRATCH = ".partial", ".scratch"
_TEMPORARY = re.compile(
    rf"{re.escape(_PREFIX)}[0-9a-f]{{16}}({re.escape(_PARTIAL)}|{re.escape(_SCRATCH)})"
)

#: Faults of the machine; all other errors of the system are about what was given.
_MACHINE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ESTALE,
    errno.ETXTBSY,
    errno.EBUSY,
}
_NO_UNNAMED_FILES = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL, errno.ENOSYS}
#: What the work at hand reads; see `protected`.
_inputs: ContextVar[tuple[Path, ...]] = ContextVar("inputs", default=())


def describe_os_error(error: OSError) -> str:
    """The system's own words for an error, in lower case, without numbers and paths."""
    return (error.strerror or str(error)).lower()


def valid_utf8(text: str) -> str:
    """A text for a file, with what is no UTF-8 in it (of a file's name, say) as U+FFFD."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def os_fault(words: str, error: OSError, advice: str = "") -> ValleConvertError:
    """The error to raise for one of the system: whose fault it is follows from its number.

    Args:
        words: what failed, such as `The config a.yaml cannot be read`.
        error: of the system.
        advice: what to do, if that helps.

    Returns:
        An `EnvironmentFault` for permissions, disks and limits, else an `InputError`.
    """
    kind = EnvironmentFault if error.errno in _MACHINE else InputError
    if not advice and error.errno == errno.ENOENT and isinstance(error.filename, str):
        advice = _suggest(Path(error.filename))
    if not advice and error.errno in {errno.EACCES, errno.EPERM}:
        advice = "change its permissions, or run as a user who may."
    return kind(f"{words}: {describe_os_error(error)}{'; ' + advice if advice else '.'}")


def _a(what: str) -> str:
    return f"{'an' if what[0] in 'aeiou' else 'a'} {what}"


def _suggest(path: Path) -> str:
    """Advice on a path that leads nowhere: the nearest name in its folder."""
    try:
        there = [one.name for one in path.parent.iterdir()]
    except OSError:
        there = []
    near = difflib.get_close_matches(path.name, there, n=1, cutoff=0.7)
    return f"did you mean {path.with_name(near[0])}?" if near else "check the path."


# --------------------------------------------------------------------------------- inputs


def check_input_file(path: Path, what: str = "file") -> None:
    """Refuse a path to read from that is no regular file, such as a pipe, which may wait forever.

    Raises:
        InputError: there is nothing, or something else.
        EnvironmentFault: this user may not look.
    """
    found = stat_of(path, f"The {what} {path}")
    if found is None:
        raise InputError(f"There is no {what} {path}; {_suggest(path)}")
    if stat.S_ISDIR(found.st_mode):
        raise InputError(f"{path} is a directory, where {_a(what)} is expected; give a file in it.")
    if not stat.S_ISREG(found.st_mode):
        raise InputError(
            f"{path} is {_kind(found.st_mode)}, where {_a(what)} is expected that can be read "
            "from any place; write it to a file first."
        )


def read_small_file(path: Path, what: str, max_bytes: int, *, pipe: bool = False) -> bytes:
    """All of a file; no more than it may have.

    Args:
        path: of the file.
        what: it is, for messages.
        max_bytes: that it may have.
        pipe: whether it may be a pipe, which is waited for.

    Raises:
        InputError: there is no such file, or it is too large.
        EnvironmentFault: the system does not let it be read.
    """
    if not pipe:
        check_input_file(path, what)
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise os_fault(f"The {what} {path} cannot be read", error) from error
    except ValueError as error:
        raise InputError(f"The {what} {str(path)!r} cannot be read: {error}.") from error
    if len(data) > max_bytes:
        raise InputError(
            f"The {what} {path} has more than {max_bytes:,} bytes, where at most that many are "
            "expected; give another file."
        )
    return data


def read_json_object(
    path: Path, what: str, max_bytes: int, *, pipe: bool = False
) -> dict[str, Any]:
    """The object that a JSON file holds; arguments as of `read_small_file`.

    Raises:
        InputError: there is no such file, or it is too large, or holds no JSON object.
        EnvironmentFault: the system does not let it be read.
    """
    try:
        loaded = json.loads(read_small_file(path, what, max_bytes, pipe=pipe))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"The {what} {path} is no valid JSON ({error}); copy it again or give another."
        ) from error
    if not isinstance(loaded, dict):
        raise InputError(
            f"The {what} {path} holds a JSON {type(loaded).__name__}, where an object is expected; "
            "give another file."
        )
    return loaded


# -------------------------------------------------------------------------------- outputs


@contextmanager
def protected(inputs: Iterable[Path | None]) -> Iterator[None]:
    """Let nothing that is written meanwhile replace what is read: no file of a set, list or card.

    Args:
        inputs: files, or folders with all that is in them; None for those not given.
    """
    more = tuple(one for one in inputs if one is not None)
    token = _inputs.set((*_inputs.get(), *more))
    try:
        yield
    finally:
        _inputs.reset(token)


def check_outputs(
    outputs: Mapping[str, Path | None], *, inputs: Iterable[Path | None], force: bool
) -> None:
    """Hold every path that a command writes against all that it reads, and against each other.

    Paths are compared by the files that they lead to, not by how they are spelled. A folder among
    the inputs stands for everything in it.

    Args:
        outputs: by the name of their argument or option; None for those not given.
        inputs: all paths that are read; None for those not given.
        force: whether files that exist may be replaced.

    Raises:
        InputError, EnvironmentFault: as `check_target`, or two outputs are one file.
    """
    reads = [one for one in inputs if one is not None]
    names: dict[tuple[object, ...], str] = {}
    for name, target in outputs.items():
        if target is None:
            continue
        check_target(target, force=force, sources=reads)
        for identity in _identities(target):
            if identity in names:
                raise InputError(
                    f"{names[identity]} and {name} are one file, {target}, of which only the last "
                    "would be left; give each its own."
                )
            names[identity] = name


def check_target(target: Path, *, force: bool, sources: Iterable[Path] = ()) -> None:
    """Refuse a target that cannot or must not be written, before any work is done.

    Args:
        target: the file that will be written.
        force: whether a file that exists may be replaced.
        sources: the inputs, beside those that are `protected`; a target that is one of them, or
            is in a folder that is one, is refused even with `force`.

    Raises:
        InputError: the target is a directory, a pipe or a device, is an input, exists without
            `force`, or its folder does not exist.
        EnvironmentFault: the folder or the file cannot be written to.
    """
    words = f"The output {target}"
    found = stat_of(target, words)
    if found is not None:
        _check_regular(target, found)
        for source in (*sources, *_inputs.get()):
            _refuse_input(target, found, source)
        if not force:
            raise InputError(
                f"{words} exists and is not overwritten; give another name, or --force to replace "
                "it."
            )
    target = _resolve(target)
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
                f"{words} belongs to another user, and in the folder {folder} nobody may replace "
                "what others own; give another name."
            )


def check_free_space(target: Path, n_bytes: int) -> None:
    """Refuse to start a file that the disk has no room for.

    Raises:
        EnvironmentFault: fewer than `n_bytes` are free on the disk of `target`.
    """
    folder = _resolve(target).parent
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise EnvironmentFault(
            f"The disk of {folder} has {free:,} bytes free, and {target.name} needs "
            f"{n_bytes:,}; free {n_bytes - free:,} bytes or write elsewhere."
        )


def is_stream(target: Path) -> bool:
    """Whether what is written there goes away: a pipe, a device, or standard output."""
    found = stat_of(target, f"The output {target}")
    return found is not None and (
        stat.S_ISFIFO(found.st_mode) or stat.S_ISCHR(found.st_mode) or _is_stdout(found)
    )


@contextmanager
def atomic_output(target: Path, *, force: bool, sources: Iterable[Path] = ()) -> Iterator[BinaryIO]:
    """Open a file that appears under its name only once it is complete.

    Yields a binary file, readable and seekable.

    Raises:
        InputError, EnvironmentFault: as `check_target`, and where the disk refuses a write.
    """
    check_target(target, force=force, sources=sources)
    with explained_writes(target), _file_output(target, force) as file:
        yield file


@contextmanager
def explained_writes(target: Path) -> Iterator[None]:
    """Turn what the system says of a write that failed into one sentence about the target.

    Raises:
        EnvironmentFault: no reader is left, or the disk refuses.
    """
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


@contextmanager
def atomic_outputs(
    targets: Sequence[Path], *, force: bool, sources: Iterable[Path] = ()
) -> Iterator[list[BinaryIO]]:
    """Open files that belong together: all of them appear once all are complete, or none.

    They get their names one right after the other, the first one last, so that who waits for it
    finds the others. Where one cannot get its name, those that had theirs lose it again; what
    `force` has replaced by then stays replaced.

    Raises:
        InputError, EnvironmentFault: as `check_set`, and where the disk refuses a write.
    """
    sources = list(sources)
    check_set(targets, force=force, sources=sources)
    named: list[Path] = []

    def note(target: Path, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            named.append(target)

    try:
        with ExitStack() as stack:
            opened: list[BinaryIO] = []
            for target in targets:
                stack.push(partial(note, target))  # called after the file has got its name
                opened.append(
                    stack.enter_context(atomic_output(target, force=force, sources=sources))
                )
            yield opened
            for file in opened:
                file.flush()
                os.fsync(file.fileno())
    except BaseException:
        for target in () if force else named:
            target.unlink(missing_ok=True)
        raise


def check_set(targets: Sequence[Path], *, force: bool, sources: Iterable[Path] = ()) -> None:
    """Refuse files that belong together where one of them cannot or must not be written.

    Raises:
        InputError, EnvironmentFault: as `check_outputs`.
    """
    check_outputs({target.name: target for target in targets}, inputs=sources, force=force)


def write_text_atomically(
    target: Path, text: str, *, force: bool, sources: Iterable[Path] = ()
) -> None:
    """Write a small UTF-8 text file by way of `atomic_output`."""
    with atomic_output(target, force=force, sources=sources) as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))


# ---------------------------------------------------------------------- folders and locks


@contextmanager
def made_folder(
    folder: Path, advice: str = "give one that ends in .gguf for a single file."
) -> Iterator[None]:
    """A folder for files to come; it is gone again where none has come.

    Raises:
        InputError: it is a file.
        EnvironmentFault: it cannot be made.
    """
    missing = list(takewhile(lambda path: not path.exists(), [folder, *folder.parents]))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(
            f"The output {folder} is a file, where a folder is expected; {advice}"
        ) from None
    except OSError as error:
        raise EnvironmentFault(
            f"The folder {folder} cannot be made: {describe_os_error(error)}."
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # something lies in it
            for path in missing:
                path.rmdir()


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A hidden folder for large temporary files, gone at the end.

    It is locked as long as this process lives. Where a run was killed, the next one that writes
    into `parent` removes what it left.

    Raises:
        InputError, EnvironmentFault: no folder can be made there.
    """
    remove_stale(parent)
    try:
        folder, handle = _new_locked(parent, _SCRATCH)
    except OSError as error:
        raise os_fault(f"No folder can be made in {parent}", error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keep other runs of this program that ask for the same out of a folder; leaves nothing.

    Raises:
        InputError: another run is at work in it.
        EnvironmentFault: it cannot be opened.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise os_fault(f"The folder {folder} cannot be opened", error) from error
    try:
        if not _lock(handle):
            raise InputError(
                f"Another run of valle-convert is writing into {folder}; wait until it is done, or "
                "give another folder."
            )
        yield
    finally:
        os.close(handle)


def remove_stale(folder: Path) -> None:
    """Remove what runs of this program that were killed have left in a folder.

    Whatever a living process still writes is locked by it, and stays.
    """
    try:
        with os.scandir(folder) as entries:
            found = [Path(entry.path) for entry in entries if _TEMPORARY.fullmatch(entry.name)]
    except OSError:
        return
    for path in found:
        with suppress(OSError):
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if not _lock(handle):
                    continue
                if stat.S_ISDIR(os.fstat(handle).st_mode):
                    shutil.rmtree(path)
                else:
                    path.unlink()
            finally:
                os.close(handle)


def _lock(handle: int) -> bool:
    """Lock an open file or folder until it is closed; False where another process has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks
    return True


def _new_name(folder: Path, suffix: str) -> Path:
    return folder / f"{_PREFIX}{secrets.token_hex(8)}{suffix}"


def _new_locked(parent: Path, suffix: str) -> tuple[Path, int]:
    """A hidden file, or folder for scratch, and its locked descriptor."""
    while True:
        path = _new_name(parent, suffix)
        if suffix == _SCRATCH:
            path.mkdir()
            handle = os.open(path, os.O_RDONLY)
        else:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        # Another run may have taken it for a stale one before it was locked.
        if _lock(handle) and path.exists():
            return path, handle
        os.close(handle)


# -------------------------------------------------------------------------- how it is done


@contextmanager
def _file_output(target: Path, force: bool) -> Iterator[BinaryIO]:
    """A regular file, by way of one without a name, or with a hidden one."""
    target = _resolve(target)
    folder = target.parent
    remove_stale(folder)
    partial: Path | None = None
    try:
        try:
            handle = _open_unnamed(folder)
            if handle is None:
                partial, handle = _new_locked(folder, _PARTIAL)
        except OSError as error:
            raise EnvironmentFault(
                f"No file can be made in {folder}: {describe_os_error(error)}; "
                "choose another folder for the output."
            ) from error
        with os.fdopen(handle, "w+b") as file:
            _lock(file.fileno())
            yield file
            file.flush()
            found = stat_of(target, f"The output {target}")
            if found is not None and force:
                # Who replaces a file keeps who may read it.
                with suppress(OSError):
                    os.fchmod(file.fileno(), stat.S_IMODE(found.st_mode))
            os.fsync(file.fileno())
            try:
                if force:
                    if partial is None:
                        partial = _new_name(folder, _PARTIAL)
                        _name(file, partial)
                    partial.replace(target)
                elif partial is None:
                    _name(file, target)
                else:
                    _rename_without_overwriting(partial, target)
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
        if partial is not None:
            with suppress(FileNotFoundError):
                partial.unlink()


def open_stream(target: Path) -> BinaryIO:
    """Open what `is_stream` says yes to, for writing piece by piece.

    Raises:
        InputError, EnvironmentFault: it cannot be opened.
    """
    try:
        # Opened anew, a file on standard output would be written from its beginning.
        return os.fdopen(os.dup(1), "wb") if _is_stdout(target.stat()) else target.open("wb")
    except OSError as error:
        raise os_fault(f"The output {target} cannot be opened", error) from error


def _open_unnamed(folder: Path) -> int | None:
    """A file without a name in a folder; None where the system or the file system has none."""
    flag = getattr(os, "O_TMPFILE", 0)
    if not flag or not Path("/proc/self/fd").is_dir():
        return None
    try:
        return os.open(folder, flag | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in _NO_UNNAMED_FILES:
            return None
        raise


def _name(file: BinaryIO, path: Path) -> None:
    """Give an unnamed file a name that nothing has.

    Raises:
        FileExistsError: something has it.
    """
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        # Only with a descriptor does os.link follow the link that /proc/self/fd/N is.
        os.link(f"/proc/self/fd/{file.fileno()}", path.name, dst_dir_fd=folder)
    finally:
        os.close(folder)


def _rename_without_overwriting(partial: Path, target: Path) -> None:
    """Rename, but refuse where the target came into being while the data was written.

    Raises:
        FileExistsError: it did.
    """
    try:
        os.link(partial, target)
    except FileExistsError:
        raise
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


# -------------------------------------------------------------------------- what paths are


def stat_of(path: Path, words: str) -> os.stat_result | None:
    """What a path leads to; None for nothing.

    Raises:
        InputError, EnvironmentFault: the system does not say.
    """
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise os_fault(f"{words} cannot be used", error) from error
    except ValueError as error:
        raise InputError(f"{words!r} cannot be used: {error}.") from error


def _kind(mode: int) -> str:
    for test, words in (
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a disk"),
        (stat.S_ISDIR, "a directory"),
    ):
        if test(mode):
            return words
    return "no regular file"


def _check_regular(target: Path, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise InputError(
            f"The output {target} is a directory, where the name of a file is expected; "
            f"give a file in it, for example {target / 'model.gguf'}."
        )
    if _is_stdout(found) or not stat.S_ISREG(found.st_mode):
        kind = "standard output" if _is_stdout(found) else _kind(found.st_mode)
        raise InputError(
            f"The output {target} is {kind}, where a file is needed that can be read back; give "
            "the name of a file."
        )


def _is_stdout(found: os.stat_result) -> bool:
    try:
        return os.path.samestat(found, os.fstat(1))
    except OSError:
        return False  # it is closed


def _refuse_input(target: Path, found: os.stat_result, source: Path) -> None:
    about = stat_of(source, str(source))
    if about is None:
        return
    if os.path.samestat(found, about):
        raise InputError(
            f"The output {target} is the input file itself ({source}), which would be lost; "
            "give another name for the output."
        )
    if stat.S_ISDIR(about.st_mode) and _resolve(target).is_relative_to(source.resolve()):
        raise InputError(
            f"The output {target} is a file of the input {source}, which would be lost; "
            "give another name for the output."
        )


def _resolve(target: Path) -> Path:
    """The file that a symbolic link points to, there or not; every other path as it is."""
    try:
        return Path(os.path.realpath(target)) if target.is_symlink() else target
    except OSError as error:
        raise os_fault(f"The output {target} cannot be used", error) from error


def _identities(target: Path) -> list[tuple[object, ...]]:
    """What tells that two outputs are one file."""
    found = stat_of(target, f"The output {target}")
    names: list[tuple[object, ...]] = [("name", os.path.realpath(target))]
    if found is not None:
        names.append(("file", found.st_dev, found.st_ino))
    return names
