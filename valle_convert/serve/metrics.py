"""Metrics for Prometheus at /metrics."""

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from valle_convert.speech.results import Piece

_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)


class Metrics:
    media_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self, n_admitted: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        counter = partial(Counter, registry=self._registry)
        self.requests = counter("valle_requests", "Answers by status", ["status"])
        self._sentences = counter("valle_sentences", "Spoken sentences")
        self._audio = counter("valle_audio_seconds", "Seconds of audio")
        self._computing = counter("valle_computing_seconds", "Seconds of computing")
        self.first_sound = Histogram(
            "valle_first_sound_seconds",
            "Seconds from the request to its first sound",
            buckets=_SECONDS,
            registry=self._registry,
        )
        queue = Gauge(
            "valle_queue", "Requests that are running or waiting", registry=self._registry
        )
        queue.set_function(n_admitted)

    def spoke(self, piece: Piece) -> None:
        self._sentences.inc()
        self._audio.inc(0 if piece.audio is None else piece.audio.seconds)
        self._computing.inc(piece.seconds.total)

    def text(self) -> bytes:
        return generate_latest(self._registry)
