"""Binds, loads the model in the worker's thread, answers meanwhile, and shuts down in order."""

import socket
from collections.abc import Callable

import uvicorn

from valle_convert.errors import EnvironmentFault
from valle_convert.files.paths import describe_os_error
from valle_convert.serve.app import ServerSettings, make_app
from valle_convert.serve.worker import Worker
from valle_convert.speech.speaker import AnySpeaker


def bind(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise EnvironmentFault(
            f"The server cannot listen on {host}, port {port} ({describe_os_error(error)}); give "
            "another --port or --host."
        ) from error


class SpeechServer:
    """A server of one model, whose speaker is opened in the thread that uses it."""

    def __init__(self, settings: ServerSettings, open_speaker: Callable[[], AnySpeaker]) -> None:
        self._worker = Worker(open_speaker, n_places=settings.n_places, failed=self.stop)
        self._server = uvicorn.Server(
            uvicorn.Config(
                make_app(settings, self._worker),
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",  # the gate logs failures
                access_log=False,
                server_header=False,
            )
        )

    def run(self, listening: socket.socket) -> None:
        """Serve until `stop` or a signal; requests in progress are finished first."""
        self._worker.start()
        with self._worker:
            try:
                self._server.run(sockets=[listening])
            except KeyboardInterrupt:
                # uvicorn raises the signals that ended it again; a second Ctrl-C cuts answers off.
                if self._server.force_exit:
                    raise
        if self._worker.failure is not None:
            raise self._worker.failure

    def stop(self) -> None:
        """End like after a signal; from any thread."""
        self._server.should_exit = True
