"""Errors in the form of OpenAI's clients."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse

from valle_convert.errors import EnvironmentFault, ValleConvertError

#: Seconds after which a client should retry.
RETRY_AFTER = {"Retry-After": "2"}


@dataclass(eq=False)
class Refusal(Exception):
    status: int
    message: str
    code: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.message)

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {"message": self.message, "type": kind, "code": self.code, "param": self.param}
        }

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


def bad_value(param: str, message: str, code: str = "invalid_value") -> Refusal:
    return Refusal(400, message, code, param)


def refusal_of(error: Exception) -> Refusal:
    """The answer for an error; no internals if it is a bug."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, EnvironmentFault):
        return Refusal(500, str(error), "environment")
    if isinstance(error, ValleConvertError):
        return Refusal(400, str(error), "invalid_request")
    return Refusal(500, "The server failed on this request; its log says why.", "internal_error")
