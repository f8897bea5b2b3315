"""What is true of every path: what lies there, and whose fault it is that the system says no."""

from __future__ import annotations

import difflib
import errno
import os
import re
import stat
from pathlib import Path

from valle_convert.errors import EnvironmentFault, InputError, ValleConvertError

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


def describe_os_error(error: OSError) -> str:
    """The system's own words for an error, in lower case, without numbers and paths."""
    return (error.strerror or str(error)).lower()


def valid_utf8(text: str) -> str:
    """A text for a file, with what is no UTF-8 in it (of a file's name, say) as U+FFFD."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def os_fault(words: str, error: OSError, advice: str = "") -> ValleConvertError:
    """The error to raise for one of the system: whose fault it is follows from its number."""
    kind = EnvironmentFault if error.errno in _MACHINE else InputError
    if not advice and error.errno == errno.ENOENT and isinstance(error.filename, str):
        advice = suggest(Path(error.filename))
    if not advice and error.errno in {errno.EACCES, errno.EPERM}:
        advice = "change its permissions, or run as a user who may."
    return kind(f"{words}: {describe_os_error(error)}{'; ' + advice if advice else '.'}")


def suggest(path: Path) -> str:
    """Advice on a path that leads nowhere: the nearest name in its folder."""
    try:
        there = [one.name for one in path.parent.iterdir()]
    except OSError:
        there = []
    near = difflib.get_close_matches(path.name, there, n=1, cutoff=0.7)
    return f"did you mean {path.with_name(near[0])}?" if near else "check the path."


def stat_of(path: Path, words: str) -> os.stat_result | None:
    """What a path leads to; None for nothing."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise os_fault(f"{words} cannot be used", error) from error
    except ValueError as error:
        raise InputError(f"{words!r} cannot be used: {error}.") from error


def kind_of(mode: int) -> str:
    """What a file is that is no regular one."""
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
