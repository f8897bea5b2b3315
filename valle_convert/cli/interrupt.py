"""Ctrl-C and SIGTERM end the program in order: cleaned up, in one line, with exit code 130.

While modules are imported there is nothing to clean up, and an exception could come up in
the middle of anything: `before_work` ends the process at once. `during_work` raises
KeyboardInterrupt in the main thread, so that every `finally` runs. Python swallows
exceptions in some places (destructors, callbacks from C); there the interruption is
raised again a moment later, until it gets through.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGAIN_AFTER = 0.01  # seconds
MESSAGE = "error: Interrupted; no unfinished file was left behind."

_requested = False
_kept: tuple[str, ...] = ()


def before_work() -> None:
    """Let a signal end the process at once."""
    for one in _SIGNALS:
        signal.signal(one, lambda *_: _end())


def during_work() -> None:
    """Let a signal raise KeyboardInterrupt, and see to it that nothing swallows it."""
    global _requested, _kept
    _requested, _kept = False, ()
    for one in _SIGNALS:
        signal.signal(one, _raise)
    sys.unraisablehook = _unraisable


def after_work(code: int) -> None:
    """Let a signal change nothing any more, since the exit code stands."""
    for one in _SIGNALS:
        signal.signal(one, lambda *_: os._exit(code))


def keep(*what: str) -> None:
    """Note what an interrupted command wrote all the same, such as `out.wav (2 sentences)`."""
    global _kept  # noqa: PLW0603 - likewise
    _kept = what


def message() -> str:
    """How an interrupted program ends."""
    return f"error: Interrupted; kept {' and '.join(_kept)}." if _kept else MESSAGE


def requested() -> bool:
    """Whether a signal came since the work began."""
    return _requested


def _end() -> None:
    os.write(2, f"{MESSAGE}\n".encode())
    os._exit(130)


def _raise(signum: int, frame: FrameType | None) -> None:
    global _requested  # noqa: PLW0603 - likewise
    del signum, frame
    _requested = True
    raise KeyboardInterrupt


def _unraisable(swallowed: sys.UnraisableHookArgs) -> None:
    if issubclass(swallowed.exc_type, KeyboardInterrupt):
        signal.signal(signal.SIGALRM, _raise)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_AFTER)
    else:
        sys.__unraisablehook__(swallowed)
