"""Between the server and the routes: access, the id of a request, its end in any case, metrics."""

import hmac
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit
from uuid import uuid4

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from valle_convert.serve.refusal import Refusal, refusal_of
from valle_convert.speech.results import Piece

#: Paths without a key: they reveal nothing about users.
_OPEN_PATHS = frozenset({"/", "/health"})
_LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Access:
    """Who has access; `is_local` if the server listens on this machine alone."""

    api_key: str | None = None
    origins: tuple[str, ...] = ()
    is_local: bool = True

    def check(self, path: str, headers: Headers) -> None:
        # A page of another site must not use the server through a browser, neither directly nor
        # by its own name that it points to 127.0.0.1.
        host, origin = headers.get("host", ""), headers.get("origin")
        is_known_host = _name_of(f"//{host}") in _LOCAL_HOSTS
        if self.is_local and self.api_key is None and not is_known_host:
            message = "The server is for this machine; --host or --api-key open it to others."
            raise Refusal(403, message, "foreign_host")
        is_own = origin is None or origin.partition("://")[2] == host
        if not is_own and not {origin, "*"} & {*self.origins}:
            message = "Pages of other sites may not use the server, unless --cors names them."
            raise Refusal(403, message, "foreign_origin")
        if self.api_key is None or path in _OPEN_PATHS:
            return
        given = headers.get("authorization", "").removeprefix("Bearer ")
        # ASGI gives the bytes of headers as latin-1.
        if not hmac.compare_digest(given.encode("latin-1"), self.api_key.encode()):
            message = "The API key is missing or wrong; send it as Authorization: Bearer KEY."
            challenge = {"WWW-Authenticate": "Bearer"}
            raise Refusal(401, message, "invalid_api_key", None, challenge)


def is_local(host: str) -> bool:
    return host in _LOCAL_HOSTS


def _name_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


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
        queue = Gauge("valle_queue", "Requests running or waiting", registry=self._registry)
        queue.set_function(n_admitted)

    def spoke(self, piece: Piece) -> None:
        self._sentences.inc()
        self._audio.inc(0 if piece.audio is None else piece.audio.seconds)
        self._computing.inc(piece.seconds.total)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class Gate:
    def __init__(self, app: ASGIApp, *, access: Access, metrics: Metrics) -> None:
        self._app, self._access, self._metrics = app, access, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id, has_begun = uuid4().hex, False

        async def tagged(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                MutableHeaders(scope=message).append("X-Request-Id", request_id)
                self._metrics.requests.labels(message["status"]).inc()
            await send(message)

        try:
            self._access.check(scope["path"], Headers(scope=scope))
            await self._app(scope, receive, tagged)
        except Exception as error:
            refusal = refusal_of(error)
            if refusal.code == "internal_error":
                _LOG.exception("request %s failed", request_id)
            # An answer that has begun is cut off, which shows the client that it is incomplete.
            if not has_begun:
                await refusal.response()(scope, receive, tagged)
