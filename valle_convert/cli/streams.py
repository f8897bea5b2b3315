"""Standard streams that never raise, so that a failed print does not change the exit code.

The reader of a pipe may exit, a redirected disk may be full, and a stream may be closed from the
start. The work goes on; the first failure is kept and reported at the end.
"""

import errno
import io
import os
import select
import sys
from typing import Any, TextIO


class _Stream(io.RawIOBase):
    """An open file that drops what it cannot write, and keeps the first error."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self.failure: OSError | None = None

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - any buffer
        view = memoryview(data).cast("B")
        rest = view
        while len(rest) and self.failure is None:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [])
            except OSError as error:
                self.failure = error
        return len(view)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)


_stdout: _Stream | None = None


def install_safe_streams() -> None:
    """Replace standard output and error by streams that do not raise.

    Closed descriptors are opened on the null device first; otherwise the next file to be opened
    would get their number, and everything that is printed.
    """
    global _stdout  # noqa: PLW0603 - the streams are the process's, and so is this
    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, flags)  # gets the lowest free number, which is this one
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - open to the end
    if sys.stdout is sys.__stdout__:
        _stdout = _Stream(1)
        sys.stdout = _text(_stdout, sys.__stdout__)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Stream(2), sys.__stderr__)


def lost_output() -> str | None:
    """Why stdout is incomplete; None if it is not, or if its reader exited."""
    if _stdout is None or _stdout.failure is None or _stdout.failure.errno == errno.EPIPE:
        return None
    return (_stdout.failure.strerror or "unknown").lower()


def _text(stream: _Stream, before: TextIO | None) -> io.TextIOWrapper:
    if before is not None:
        before.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(stream),
        encoding=before.encoding if before is not None else "utf-8",
        # Names of files that are not UTF-8, and phonemes on a terminal of another encoding.
        errors="backslashreplace",
        line_buffering=stream.isatty() or stream.fileno() == 2,
    )
