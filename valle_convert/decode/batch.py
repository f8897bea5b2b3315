"""Decodings that go step by step, side by side: one batch of the network for a step of all.

Such a decoder is a generator. It yields the elements that its sequences grow by, one each, and gets
the logits after them. The weights are then read once a step for any number of sequences. Each
decoding has its own random generator and its own sequences, so it does not depend on the others.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Sequence
from functools import partial
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar

from valle_convert.decode.sampling import Logits

T = TypeVar("T")
N = TypeVar("N")
P = ParamSpec("P")


class Element(NamedTuple):
    """What a sequence grows by: a row of the network's table of codes, and its place."""

    sequence: Hashable
    code: int
    position: int


#: A decoder; its result is that of the generator.
Steps = Generator[Sequence[Element], Logits, T]
#: The network: elements of different sequences to the logits after them, [n, codes].
Append = Callable[[Sequence[Element]], Logits]


class Decoding(Generic[T]):
    def __init__(self, steps: Steps[T], n_sequences: int) -> None:
        self._steps = steps
        self.n_sequences = n_sequences
        self.elements: Sequence[Element] = ()
        self.seconds = 0.0  # computing time so far; of a step of several decodings, its part
        self.is_done = False  # whether `result` is there, or the error that it raises
        self._found: T | None = None
        self._error: Exception | None = None

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._found  # type: ignore[return-value]

    def advance(self, logits: Logits | None) -> None:
        """Go on to the next elements; None begins."""
        begin = time.perf_counter()
        try:
            self.elements = self._steps.send(logits)  # type: ignore[arg-type]
        except StopIteration as end:
            self._found, self.is_done = end.value, True
        except Exception as error:
            self.fail(error)
        self.seconds += time.perf_counter() - begin

    def fail(self, error: Exception) -> None:
        self._error, self.is_done = error, True
        self._steps.close()

    def close(self) -> None:
        self.is_done = True
        self._steps.close()


class Batch:
    """Decodings that share a network, at most `width` sequences at once.

    A decoding with more sequences runs alone. Others wait, and every second one that begins is
    the first of its text, so that a short text does not wait for a long one.
    """

    def __init__(self, append: Append, width: int = 1) -> None:
        self._append = append
        self.width = width
        self._running: list[Decoding[Any]] = []
        self._firsts: deque[Decoding[Any]] = deque()
        self._others: deque[Decoding[Any]] = deque()
        self._turns = self._firsts, self._others  # swapped each time

    def add(self, steps: Steps[T], *, n_sequences: int = 1, is_first: bool = True) -> Decoding[T]:
        """Begin a decoder when there is room."""
        decoding = Decoding(steps, n_sequences)
        (self._firsts if is_first else self._others).append(decoding)
        return decoding

    def run(self, steps: Steps[T]) -> Decoding[T]:
        decoding = self.add(steps)
        while not decoding.is_done:
            self.step()
        return decoding

    def step(self) -> None:
        """Begin what there is room for, and grow every running sequence by an element.

        One that was done without steps ends this, so that its result is heard before the next.
        """
        self._running = [one for one in self._running if not one.is_done]
        while (decoding := self._next()) is not None:
            decoding.advance(None)
            if decoding.is_done:
                return
            self._running.append(decoding)
        if not self._running:
            return
        begin = time.perf_counter()
        elements = [one for decoding in self._running for one in decoding.elements]
        try:
            logits = self._append(elements)
        except Exception as error:
            for decoding in self._running:
                decoding.fail(error)
            return
        seconds, start = (time.perf_counter() - begin) / len(elements), 0
        for decoding in self._running:
            end = start + len(decoding.elements)
            decoding.seconds += seconds * (end - start)
            decoding.advance(logits[start:end])
            start = end

    def _next(self) -> Decoding[Any] | None:
        for queue in self._turns:
            while queue and queue[0].is_done:  # closed
                queue.popleft()
        queue = self._turns[0] or self._turns[1]
        used = sum(one.n_sequences for one in self._running)
        if not queue or (used and used + queue[0].n_sequences > self.width):
            return None
        self._turns = self._turns[::-1]
        return queue.popleft()


def alone(
    steps: Callable[Concatenate[N, P], Steps[T]],
    append: Callable[[N, Sequence[Element]], Logits],
) -> Callable[Concatenate[N, P], T]:
    """A decoder as a function that runs to its end."""

    def decode(network: N, /, *arguments: P.args, **options: P.kwargs) -> T:
        batch = Batch(partial(append, network))
        return batch.run(steps(network, *arguments, **options)).result()

    return decode
