"""Files are mapped into memory, and a disk that fails them sends a signal, not an error.

So does a file that another program cuts off while it is read. Without a handler the process dies
without a word; one of Python's own is of no use, since it would run after the instruction that
cannot go on. What is being written is a file without a name, which goes with the process.
"""

from __future__ import annotations

import ctypes
import os
import signal

from valle_convert.errors import EXIT_ENVIRONMENT

_MESSAGE = (
    b"error: A file that is being read became unreadable: its disk gave an error, or another "
    b"program cut it off; nothing was written. Copy the file elsewhere and try again.\n"
)


def _end(_signal: int) -> None:
    os.write(2, _MESSAGE)
    os._exit(EXIT_ENVIRONMENT)


#: Kept, since the system calls it.
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)(_end)


def tell() -> None:
    """Say it in a sentence, and end with the exit code of the machine's faults."""
    number = getattr(signal, "SIGBUS", None)
    if number is None:  # Windows has another way
        return
    system_signal = ctypes.CDLL(None).signal
    system_signal.restype = ctypes.c_void_p
    system_signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    system_signal(number, ctypes.cast(_HANDLER, ctypes.c_void_p))
