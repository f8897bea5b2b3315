"""The routes."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from gguf import LlamaFileType
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from valle_convert.decode.options import ShouldStop
from valle_convert.families.bundle import Bundle
from valle_convert.serve.gate import Access, Gate, Metrics
from valle_convert.serve.refusal import RETRY_AFTER, Refusal, bad_value, refusal_of
from valle_convert.serve.request import Speaking, parse_request
from valle_convert.serve.sound import SOUND_FORMATS
from valle_convert.serve.voices import Voices
from valle_convert.serve.worker import Job, Work, Worker
from valle_convert.speech.results import SpeakOptions
from valle_convert.speech.speaker import AnySpeaker

_MAX_UPLOAD_BYTES = 8 << 20
#: A request has two texts, and a character takes up to 12 bytes of JSON (two escapes).
_BYTES_A_CHARACTER = 24
#: For a body, which arrives at once unless a client wants to hold a connection.
_BODY_SECONDS = 30.0

_PAGE = "page.html"
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:; connect-src 'self'; frame-ancestors 'none'",
}


@dataclass(frozen=True)
class ServerSettings:
    bundle: Bundle
    voices: Path | None = None  # the folder of voices
    #: Options of speaking that a request does not give.
    defaults: SpeakOptions = field(default_factory=SpeakOptions)
    access: Access = field(default_factory=Access)
    n_places: int = 8  # simultaneous requests, including waiting ones
    seconds: float = 900.0  # for a request, from its beginning to the end of its answer
    max_characters: int = 4096
    allows_new_voices: bool = False


class _Answer(StreamingResponse):
    """The answer to an admitted request, which frees its place however it ends."""

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        job: Job,
        release: Callable[[], None],
        **how: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(chunks, **how)
        self._job, self._release = job, release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._job.seconds_left):
                await super().__call__(scope, receive, send)
        except TimeoutError as error:
            raise Refusal(503, "The client read too slowly.", "timeout") from error
        finally:
            self._job.leave()
            self._release()


class Routes:
    def __init__(self, settings: ServerSettings, worker: Worker, metrics: Metrics) -> None:
        self._settings, self._worker, self._metrics = settings, worker, metrics
        self._family = settings.bundle.family
        reads_seconds = "prompt_seconds" in self._family.speaks_with
        seconds = settings.defaults.prompt_seconds if reads_seconds else None
        self._voices = Voices(settings.voices, model=settings.bundle.model, seconds=seconds)
        self._voices.check()

    def list(self) -> list[Route]:
        routes = [
            Route("/", self.page),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/v1/audio/speech", self.speech, methods=["POST"]),
            *(Route(path, self.models) for path in ("/v1/models", "/v1/audio/models")),
            *(Route(path, self.voices) for path in ("/v1/voices", "/v1/audio/voices")),
        ]
        if self._settings.allows_new_voices:
            routes += [
                Route("/v1/audio/voices", self.new_voice, methods=["POST"]),
                Route("/v1/audio/voices/{name}", self.remove_voice, methods=["DELETE"]),
            ]
        return routes

    # ------------------------------------------------------------------------- speech

    async def speech(self, request: Request) -> Response:
        begin = time.perf_counter()
        limit = self._settings.max_characters
        data = await _body(request, 4096 + _BYTES_A_CHARACTER * limit)
        wanted = parse_request(data, self._settings.defaults, self._family, max_characters=limit)
        speaking = Speaking(wanted, self._voices, self._family, self._metrics)
        job, first = await self._admitted(request, speaking)
        self._metrics.first_sound.observe(time.perf_counter() - begin)
        chunks = _sse(first, job, speaking) if wanted.is_sse else _chunks(first, job)
        return _Answer(
            chunks,
            job,
            self._worker.release,
            media_type="text/event-stream"
            if wanted.is_sse
            else SOUND_FORMATS[wanted.sound].media_type,
            headers={"X-Seed": str(speaking.options.seed), "Cache-Control": "no-store"},
        )

    async def _admitted(self, request: Request, work: Work) -> tuple[Job, bytes]:
        """A queued job and its first result; after an error it has no place any more."""
        self._worker.admit()
        job = Job(work, self._settings.seconds)
        try:
            self._worker.add(job)
            return job, await _first(job, request)
        except BaseException:
            job.leave()
            self._worker.release()
            raise

    # ------------------------------------------------------------------------- voices

    async def voices(self, _request: Request) -> Response:
        found = [{"id": name, "name": name} for name in self._voices.names()]
        return JSONResponse({"voices": found, "object": "list", "data": found})

    async def new_voice(self, request: Request) -> Response:
        form = await _form(request)
        name, text, recording = form.get("name"), form.get("text", ""), form.get("file")
        if not isinstance(recording, bytes):
            raise bad_value("file", "file is missing; give a recording (wav, flac, ogg, mp3).")
        if not isinstance(name, str) or not isinstance(text, str):
            raise bad_value("name", "name and text must be words.")
        if len(text) > self._settings.max_characters:
            raise bad_value("text", "text is too long for a recording.", "string_above_max_length")
        self._voices.check_new(name)

        def work(speaker: AnySpeaker, _: ShouldStop) -> Generator[bytes, None, None]:
            self._voices.add(name, recording, text, speaker)
            yield b""

        await self._admitted(request, work)
        self._worker.release()
        return JSONResponse({"id": name, "name": name}, 201)

    async def remove_voice(self, request: Request) -> Response:
        name = request.path_params["name"]
        self._voices.remove(name)
        return JSONResponse({"id": name, "deleted": True})

    # -------------------------------------------------------------------------- others

    @property
    def _model(self) -> str:
        return self._settings.bundle.path.stem

    async def models(self, _request: Request) -> Response:
        model = {"id": self._model, "object": "model", "owned_by": "valle-convert"}
        return JSONResponse({"models": [{"id": self._model}], "object": "list", "data": [model]})

    async def health(self, _request: Request) -> Response:
        if not self._worker.is_ready:
            return JSONResponse({"status": "loading"}, 503, RETRY_AFTER)
        names = {int(one): one.name.partition("_")[2] for one in LlamaFileType}
        kind = names.get(self._settings.bundle.main.keys.get("general.file_type", -1), "unknown")
        return JSONResponse({"status": "ok", "model": self._model, "type": kind})

    async def metrics(self, _request: Request) -> Response:
        return Response(self._metrics.text(), media_type=self._metrics.media_type)

    async def page(self, _request: Request) -> Response:
        text = files("valle_convert.serve").joinpath(_PAGE).read_text(encoding="utf-8")
        return HTMLResponse(text, headers=_PAGE_HEADERS)


def make_app(settings: ServerSettings, worker: Worker) -> Starlette:
    metrics = Metrics(lambda: worker.n_admitted)
    access = settings.access
    middleware = [Middleware(Gate, access=access, metrics=metrics)]
    if access.origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=access.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["X-Request-Id", "X-Seed"],
        )
        middleware.insert(0, cors)
    return Starlette(
        routes=Routes(settings, worker, metrics).list(),
        middleware=middleware,
        exception_handlers={HTTPException: _http_error},
    )


async def _http_error(request: Request, error: Exception) -> Response:
    """An unknown path or method."""
    assert isinstance(error, HTTPException)  # noqa: S101 - it is registered for that
    message = f"{request.method} {request.url.path}: {error.detail}."
    code = error.detail.lower().replace(" ", "_")
    return Refusal(error.status_code, message, code, None, error.headers or {}).response()


async def _first(job: Job, request: Request) -> bytes:
    """The first result, whose errors still have a status; raises if the client leaves before."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    result = asyncio.ensure_future(anext(job))
    leaving = asyncio.ensure_future(gone())
    try:
        await asyncio.wait({result, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise Refusal(499, "The client left.", "client_left")
        return result.result()
    finally:
        result.cancel()
        leaving.cancel()


async def _chunks(first: bytes, job: Job) -> AsyncIterator[bytes]:
    yield first
    async for chunk in job:
        yield chunk


async def _sse(first: bytes, job: Job, speaking: Speaking) -> AsyncIterator[bytes]:
    """Sound as OpenAI's events; tokens are characters and frames."""
    try:
        async for chunk in _chunks(first, job):
            audio = base64.b64encode(chunk).decode("ascii")
            yield _event({"type": "speech.audio.delta", "audio": audio})
    except Exception as error:
        yield _event({"type": "error", **refusal_of(error).body})
        raise
    n_in, n_out = len(speaking.wanted.text), speaking.n_frames
    usage = {"input_tokens": n_in, "output_tokens": n_out, "total_tokens": n_in + n_out}
    yield _event({"type": "speech.audio.done", "usage": usage})


def _event(value: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


async def _body(request: Request, limit: int) -> bytes:
    data = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                data += chunk
                if len(data) > limit:
                    message = f"The request has more than the limit of {limit:,} bytes."
                    raise Refusal(413, message, "request_too_large")
    except TimeoutError as error:
        raise Refusal(408, "The request came too slowly.", "timeout") from error
    except ClientDisconnect as error:
        raise Refusal(499, "The client left.", "client_left") from error
    return bytes(data)


class _InMemory(MultiPartParser):
    spool_max_size = _MAX_UPLOAD_BYTES + 1


async def _form(request: Request) -> dict[str, str | bytes]:
    """The fields of a form, and the bytes of a file; nothing touches the disk."""
    data = await _body(request, _MAX_UPLOAD_BYTES)

    async def stream() -> AsyncGenerator[bytes, None]:
        yield data

    try:
        form = await _InMemory(request.headers, stream(), max_files=1, max_fields=8).parse()
    except (MultiPartException, KeyError) as error:
        raise Refusal(400, "The body is not multipart/form-data.", "invalid_form") from error
    try:
        return {
            name: value if isinstance(value, str) else await value.read()
            for name, value in form.items()
        }
    finally:
        await form.close()
