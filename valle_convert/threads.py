"""Work in other threads, and how the threads of torch and llama.cpp wait for each other."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock, Thread
from typing import TypeVar

T = TypeVar("T")
_END = object()

#: Held by work in the background, which would disturb measurements of time.
BACKGROUND = Lock()


def in_background(run: Callable[[], T], *, awaited: bool = True) -> Future[T]:
    """The later result of a function; the process ends without it if it is not `awaited`."""
    future: Future[T] = Future()

    def running() -> None:
        with BACKGROUND:
            try:
                future.set_result(run())
            except BaseException as error:
                future.set_exception(error)

    Thread(target=running, daemon=not awaited).start()
    return future


def limit_openmp_spinning() -> None:
    """Let OpenMP threads sleep after a short spin; call it before the libraries are loaded.

    Both libraries split every small matrix product over threads that spin while they wait. By
    default they spin for so long that one other busy process makes a step of a small model take
    250 ms instead of 1. Spinning for a 30th of that has no measurable cost on an idle machine. If
    the user set one of the variables, nothing is changed.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def made_ahead(items: Iterable[T]) -> Iterator[T]:
    """The items in order, each made by another thread while the one before is used."""
    iterator: Iterator[object] = iter(items)
    with ThreadPoolExecutor(max_workers=1) as pool:
        following = pool.submit(next, iterator, _END)
        while (item := following.result()) is not _END:
            following = pool.submit(next, iterator, _END)
            yield item  # type: ignore[misc]  # not the sentinel
