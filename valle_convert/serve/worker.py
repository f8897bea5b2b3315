"""The one thread that owns llama.cpp, and its requests.

A request is a generator of results. When it yields `TURN`, it waits for a step of the speaker's
batch, which the sentences of all requests share: `decode.batch` decides which of them begins next.
Each sentence has its own random generator and its own sequences, so requests do not influence each
other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from threading import Condition, Thread

from valle_convert.closing import Closing
from valle_convert.decode.options import ShouldStop
from valle_convert.serve.refusal import RETRY_AFTER, Refusal
from valle_convert.speech.speaker import AnySpeaker

#: Yielded when a step of the batch has to come first.
TURN = None
#: The work of a request: called in the thread, with a function that stops it between two steps.
Work = Callable[[AnySpeaker, ShouldStop], Generator[bytes | None, None, None]]


class Job:
    """Results of one request, awaited by the event loop that made it."""

    def __init__(self, work: Work, seconds: float) -> None:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._results: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self._deadline = time.monotonic() + seconds
        self._is_left = False
        self._steps: Generator[bytes | None, None, None] | None = None

    @property
    def seconds_left(self) -> float:
        return self._deadline - time.monotonic()

    def leave(self) -> None:
        """Mark that nobody waits for it any more."""
        self._is_left = True

    def __aiter__(self) -> Job:
        return self

    async def __anext__(self) -> bytes:
        found = await self._results.get()
        if isinstance(found, Exception):
            raise found
        return found

    def step(self, speaker: AnySpeaker) -> bool:
        """Work until the next step of the batch, in the worker's thread; false at the end."""
        end: Exception = StopAsyncIteration()
        self._steps = self._steps or self._work(speaker, self._must_stop)
        try:
            while not self._must_stop():
                result = next(self._steps)
                if self._must_stop():
                    break  # the sentence is incomplete
                if result is TURN:
                    return True
                self._tell(result)
            self._steps.close()
        except StopIteration:
            pass
        except Exception as error:
            end = error
        if self.seconds_left < 0:
            late = (
                "The request took longer than the server allows (--timeout); send a shorter text."
            )
            end = Refusal(503, late, "timeout", None, RETRY_AFTER)
        self._tell(end)
        return False

    def _must_stop(self) -> bool:
        return self._is_left or self.seconds_left < 0

    def _tell(self, result: bytes | Exception) -> None:
        with suppress(RuntimeError):  # the loop is closed, since the server was killed
            self._loop.call_soon_threadsafe(self._results.put_nowait, result)


class Worker(Closing):
    """Opens a speaker in its own thread, and runs jobs on it."""

    def __init__(
        self, open_speaker: Callable[[], AnySpeaker], *, n_places: int, failed: Callable[[], None]
    ) -> None:
        self._open, self._failed = open_speaker, failed
        self._n_places = n_places
        self._jobs: list[Job] = []
        self._changed = Condition()
        self._is_closing = False
        self._thread = Thread(target=self._run, name="speech", daemon=True)
        self.is_ready = False
        self.failure: Exception | None = None
        #: Requests that were admitted and not yet answered.
        self.n_admitted = 0

    def start(self) -> None:
        self._thread.start()

    def admit(self) -> None:
        """Take a place, to be given back by `release`."""
        if not self.is_ready:
            raise Refusal(503, "The model is still loading.", "loading", None, RETRY_AFTER)
        if self.n_admitted >= self._n_places:
            full = f"The server already has {self._n_places} requests; try again."
            raise Refusal(429, full, "queue_full", None, RETRY_AFTER)
        self.n_admitted += 1

    def release(self) -> None:
        self.n_admitted -= 1

    def add(self, job: Job) -> None:
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()

    def close(self) -> None:
        """End the thread; remaining jobs are dropped."""
        with self._changed:
            self._is_closing = True
            for job in self._jobs:
                job.leave()
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            with self._open() as speaker:
                self.is_ready = True
                while jobs := self._wait():
                    for job in jobs:
                        if not job.step(speaker):
                            with self._changed:
                                self._jobs.remove(job)
                    speaker.batch.step()
        except Exception as error:
            self.failure = error
            self.is_ready = False
            self._failed()

    def _wait(self) -> list[Job]:
        """The jobs, as soon as there are any; none at the end."""
        with self._changed:
            while not (self._jobs or self._is_closing):
                self._changed.wait()
            return [] if self._is_closing else list(self._jobs)
