"""Errors that only HTTP has, and how any error becomes an answer.

    InferenceError
    └── HttpRefusal    the surface itself says no: status, type, code and headers are given where it is raised

`/v1/*`, `/api/chat` and `/api/generate` answer OpenAI's error object, every other `/api/*` `{"error": "text"}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from aiohttp import web

from inference.errors import DeadlineExceeded, EngineError, InferenceError
from inference.openai.answer import error_object

# A model loads in seconds and a queue moves in seconds; a caller that waits longer only wastes its own time.
RETRY_AFTER_S_DEFAULT = 2


class HttpRefusal(InferenceError):
    """A request that is refused before anything reaches an engine."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        error_type: str = "invalid_request_error",
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        must_close: bool = False,
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.status = status
        self.type = error_type
        self.headers = dict(headers or {})
        self.must_close = must_close


def is_openai_path(path: str) -> bool:
    """True where errors have OpenAI's shape: everywhere but on our own `/api/*`."""
    return not path.startswith("/api/") or path in ("/api/chat", "/api/generate")


def error_response(error: InferenceError, path: str) -> web.Response:
    """The answer that says `error`, in the shape callers of `path` expect."""
    body = error_object(error) if is_openai_path(path) else {"error": error.message}
    response = web.Response(
        status=error.status,
        body=json.dumps(body).encode(),
        content_type="application/json",
        headers=error_headers(error),
    )
    if isinstance(error, HttpRefusal) and error.must_close:
        response.force_close()
    return response


def error_headers(error: InferenceError) -> dict[str, str]:
    """The headers that go with `error`.

    The openai clients repeat 408, 409, 429 and 5xx by themselves unless `x-should-retry` is false: it is, when our own
    tries are spent or the caller's own deadline is the cause.
    """
    headers = dict(error.headers) if isinstance(error, HttpRefusal) else {}
    if error.status == 503 or (error.status == 429 and error.retry_after_s is not None):
        headers["Retry-After"] = str(RETRY_AFTER_S_DEFAULT if error.retry_after_s is None else error.retry_after_s)
    if isinstance(error, EngineError | DeadlineExceeded) or error.status in (408, 504):
        headers["x-should-retry"] = "false"
    return headers
