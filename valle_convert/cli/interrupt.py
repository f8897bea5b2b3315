"""Ctrl-C and SIGTERM clean up and end the program with one line and exit code 130.

While the program starts there is nothing to clean up: `before_work` ends the process at once.
`during_work` raises KeyboardInterrupt in the main thread, so that every `finally` runs. Python
swallows exceptions in some places (destructors, callbacks from C); there the interrupt is raised
again until it gets through. It waits for imports to end, since their C code prints its own
tracebacks.
"""

import os
import signal
import sys
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_HAS_TIMER = hasattr(signal, "setitimer")  # Windows has none
_AGAIN_AFTER = 0.002  # seconds
_LONGEST_IMPORT = 5.0  # seconds that an interrupt waits for an import; torch takes two
MESSAGE = "error: Interrupted; no unfinished file was left behind."

_requested = False
_n_waits = 0
_kept: tuple[str, ...] = ()


def before_work() -> None:
    """Let a signal end the process at once."""
    for one in _SIGNALS:
        signal.signal(one, lambda *_: _end())


def during_work() -> None:
    """Let a signal raise KeyboardInterrupt, even if something swallows it once."""
    global _requested, _kept
    _requested, _kept = False, ()
    for one in _SIGNALS:
        signal.signal(one, _raise)
    sys.unraisablehook = _unraisable


def after_work(code: int) -> None:
    """Let a signal end the process with the exit code that is already known."""
    if _HAS_TIMER:
        signal.setitimer(signal.ITIMER_REAL, 0)
    for one in _SIGNALS:
        signal.signal(one, lambda *_: os._exit(code))


def keep(*what: str) -> None:
    """Note what an interrupted command kept, such as `out.wav (2 sentences)`."""
    global _kept  # noqa: PLW0603 - state of the process
    _kept = what


def message() -> str:
    return f"error: Interrupted; kept {' and '.join(_kept)}." if _kept else MESSAGE


def requested() -> bool:
    return _requested


def waits() -> bool:
    """Whether an interrupt is waiting for an import to end."""
    return _HAS_TIMER and signal.getitimer(signal.ITIMER_REAL)[0] > 0


def _end() -> None:
    os.write(2, f"{MESSAGE}\n".encode())
    os._exit(130)


def _raise(signum: int, frame: FrameType | None) -> None:
    global _requested, _n_waits  # noqa: PLW0603 - state of the process
    if signum in _SIGNALS:
        _n_waits = 0
    _requested = True
    if _HAS_TIMER and _is_importing(frame) and _n_waits * _AGAIN_AFTER < _LONGEST_IMPORT:
        _n_waits += 1
        _raise_later()
    else:
        raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported; numpy's C code prints exceptions raised then."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _raise_later() -> None:
    signal.signal(signal.SIGALRM, _raise)
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_AFTER)


def _unraisable(swallowed: "sys.UnraisableHookArgs") -> None:
    if _HAS_TIMER and issubclass(swallowed.exc_type, KeyboardInterrupt):
        _raise_later()
    else:
        sys.__unraisablehook__(swallowed)
