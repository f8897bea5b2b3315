"""Facts about any path: what it leads to, and whose fault a system error is."""

import difflib
import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from valle_convert.errors import EnvironmentFault, InputError, ValleConvertError

#: Faults of the machine; all other system errors are about the input.
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


def describe_os_error(error: OSError) -> str:
    """The system's own words for an error, in lower case, without numbers and paths."""
    return (error.strerror or str(error)).lower()


def valid_utf8(text: str) -> str:
    """A text for a file; bytes that are not UTF-8 (in a file name, say) become U+FFFD."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def os_fault(words: str, error: OSError, advice: str = "") -> ValleConvertError:
    """Our error for one of the system; its number decides whose fault it is."""
    kind = EnvironmentFault if error.errno in _MACHINE else InputError
    if not advice and error.errno == errno.ENOENT and isinstance(error.filename, str):
        advice = suggest(Path(error.filename))
    if not advice and error.errno in {errno.EACCES, errno.EPERM}:
        advice = "change its permissions, or run as another user."
    return kind(f"{words}: {describe_os_error(error)}{'; ' + advice if advice else '.'}")


@contextmanager
def os_faults(words: str) -> Iterator[None]:
    """Turn any error of the system within the block into ours."""
    try:
        yield
    except OSError as error:
        raise os_fault(words, error) from error


def suggest(path: Path) -> str:
    """Advice on a path that does not exist: the nearest name in its folder."""
    try:
        there = [one.name for one in path.parent.iterdir()]
    except OSError:
        there = []
    near = difflib.get_close_matches(path.name, there, n=1, cutoff=0.7)
    return f"did you mean {path.with_name(near[0])}?" if near else "check the path."


def stat_of(path: Path, words: str) -> os.stat_result | None:
    """The stat of a path, or None if it does not exist."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise os_fault(f"{words} cannot be used", error) from error
    except ValueError as error:
        raise InputError(f"{words!r} cannot be used: {error}.") from error


def path_and_number(text: str, default: float) -> tuple[Path, float]:
    """`PATH@NUMBER`, unless the whole text is the name of a file."""
    name, at, number = text.rpartition("@")
    if at and not Path(text).exists():
        with suppress(ValueError):
            return Path(name), float(number)
    return Path(text), default


def kind_of(mode: int) -> str:
    for test, words in (
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a disk"),
        (stat.S_ISDIR, "a directory"),
    ):
        if test(mode):
            return words
    return "not a regular file"
