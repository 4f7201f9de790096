"""`/openapi.json`: the route table and the shapes of its bodies, as OpenAPI 3.1 describes an API.

Nothing is said twice: paths, methods, policies and owners stand in the table, bodies and parameters are the types that
handlers check by (web.shapes). What every route may answer (a Host that is not ours, a stopping peer) is added here.
Reference: https://spec.openapis.org/oas/v3.1.0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, TypedDict

from aiohttp import web

from web.errors import is_openai_path
from web.guards import COOKIE, Policy
from web.route import Answer, Operation, Route
from web.shapes import members_of, record_schema, schema_of

PATH = "/openapi.json"
_PARAMETER = re.compile(r"\{(\w+)(?::[^}]+)?\}")

# What may be answered whatever is asked: bad headers, a foreign web page, a foreign Host, a stopping peer, a mistake.
_ANY = (400, 403, 421, 500, 503)
_WITH_SECURITY = (401, 429)
_WITH_BODY = (408, 413, 415)

_KEYS: list[dict[str, list[str]]] = [{"key": []}, {"x-api-key": []}, {"api-key": []}]
_LOGIN: list[dict[str, list[str]]] = [{"session": []}]
_SECURITY: dict[Policy, list[dict[str, list[str]]]] = {
    Policy.PUBLIC: [],
    Policy.INFERENCE: [*_KEYS, *_LOGIN],
    Policy.LOCAL: [*_KEYS, *_LOGIN],
    Policy.METRICS: [*_KEYS, *_LOGIN],
    Policy.VIEW: [*_KEYS, *_LOGIN],
    Policy.ADMIN: [*_KEYS, *_LOGIN],
    Policy.PERSON: [{"key": []}, *_LOGIN],
    Policy.AGENT: [{"agent-token": []}, {"key": []}],
    Policy.SELF: [{"key": []}, *_LOGIN],
    Policy.CONTROL: [{"control": []}],
}
_SCHEMES: dict[str, dict[str, Any]] = {
    "key": {"type": "http", "scheme": "bearer", "description": "An API key, or the token of a login."},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same."},
    "api-key": {"type": "apiKey", "in": "header", "name": "api-key", "description": "The same."},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": COOKIE,
        "description": "A login, on /api/* only. Methods other than GET also need Origin and the header x-csrf-token.",
    },
    "agent-token": {"type": "apiKey", "in": "header", "name": "X-Agent-Token"},
    "control": {"type": "http", "scheme": "bearer", "description": "The token of this machine's command line."},
}
# The schema of an event stream would be that of its events, which end with the text [DONE].
_MEDIA: dict[str, dict[str, Any]] = {"text/event-stream": {}}


class OpenAIErrorBody(TypedDict):
    """What went wrong, for a person and for a program."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(TypedDict):
    """How `/v1/*`, `/api/chat` and `/api/generate` say that something went wrong."""

    error: OpenAIErrorBody


class TextError(TypedDict):
    """How other `/api/*` say it."""

    error: str


class OpenApiRoute:
    """Handler of `/openapi.json`. `table` is asked once, when somebody wants it."""

    def __init__(self, table: Callable[[], Sequence[Route]], version: str) -> None:
        self._table = table
        self._version = version
        self._body: bytes | None = None

    async def answer(self, request: web.Request) -> web.Response:
        if self._body is None:
            self._body = json.dumps(document(self._table(), self._version)).encode()
        return web.Response(body=self._body, content_type="application/json")


SELF = Operation(summary="This description", tag="about", answers={200: Answer(shape=dict[str, Any])})


def document(table: Sequence[Route], version: str) -> dict[str, Any]:
    """The whole description. Raises ValueError for a route that says nothing of itself."""
    definitions = _Definitions()
    paths: dict[str, dict[str, Any]] = {}
    for route in table:
        if route.operation is None:
            raise ValueError(f"{route.method} {route.path} does not say what it takes and answers")
        described = _operation(route, route.operation, definitions)
        paths.setdefault(_PARAMETER.sub(r"{\1}", route.path), {})[route.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {"title": "llm-router-mesh", "version": version, "license": {"name": "MIT", "identifier": "MIT"}},
        "tags": [{"name": name} for name in sorted({r.operation.tag for r in table if r.operation is not None})],
        "paths": paths,
        "components": {
            "schemas": definitions.schemas,
            "responses": definitions.responses,
            "securitySchemes": _SCHEMES,
        },
    }


class _Definitions:
    """The records and the failures that were met, each by its name."""

    def __init__(self) -> None:
        self.schemas: dict[str, dict[str, Any]] = {}
        self.responses: dict[str, dict[str, Any]] = {}
        self._shapes: dict[str, Any] = {}

    def __call__(self, shape: Any) -> dict[str, Any]:
        name = shape.__name__
        if self._shapes.setdefault(name, shape) is not shape:
            raise ValueError(f"two shapes are called {name}")
        if name not in self.schemas:
            self.schemas[name] = {}  # a record may hold itself
            self.schemas[name] |= record_schema(shape, self)
        return {"$ref": f"#/components/schemas/{name}"}

    def failure(self, status: int, shape: Any) -> dict[str, Any]:
        """A reference to the answer with this status and an error of this shape."""
        name = f"{shape.__name__}{status}"
        self.responses.setdefault(name, _answer(status, Answer(shape=shape), self))
        return {"$ref": f"#/components/responses/{name}"}


def _operation(route: Route, operation: Operation, definitions: _Definitions) -> dict[str, Any]:
    words = [f"For: {route.policy.value}."]
    if route.owned in ("coordinator", "accounts"):
        words.append("The coordinator answers; the peer that is asked passes it on.")
    if route.owned == "peer":
        words.append("The peer that `id` names answers; the peer that is asked passes it on.")
    described: dict[str, Any] = {
        "operationId": _operation_id(route),
        "summary": operation.summary,
        "description": " ".join(words),
        "tags": [operation.tag],
        "security": _SECURITY[route.policy],
        "responses": _responses(route, operation, definitions),
    }
    if parameters := [*_path_parameters(route), *_query_parameters(operation, definitions)]:
        described["parameters"] = parameters
    if operation.body is not None:
        content = {"application/json": {"schema": schema_of(operation.body, definitions)}}
        described["requestBody"] = {"required": not operation.is_body_optional, "content": content}
    return described


def _operation_id(route: Route) -> str:
    words = re.findall(r"[A-Za-z0-9]+", _PARAMETER.sub(r"\1", route.path)) or ["root"]
    return "_".join([route.method.lower(), *words])


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    schema = {"type": "string", "minLength": 1}
    names = _PARAMETER.findall(route.path)
    return [{"name": name, "in": "path", "required": True, "schema": schema} for name in names]


def _query_parameters(operation: Operation, definitions: _Definitions) -> list[dict[str, Any]]:
    if operation.query is None:
        return []
    return [
        {"name": name, "in": "query", "required": is_required, "schema": schema_of(hint, definitions)}
        for name, (hint, is_required) in members_of(operation.query).items()
    ]


def _responses(route: Route, operation: Operation, definitions: _Definitions) -> dict[str, Any]:
    found = {str(status): _answer(status, answer, definitions) for status, answer in operation.answers.items()}
    statuses = {*_ANY, *operation.errors}
    statuses |= set() if route.policy is Policy.PUBLIC else set(_WITH_SECURITY)
    statuses |= set() if operation.body is None else set(_WITH_BODY)
    shape = OpenAIError if is_openai_path(route.path) else TextError
    for status in sorted(statuses):
        found.setdefault(str(status), definitions.failure(status, shape))
    return found


def _answer(status: int, answer: Answer, definitions: _Definitions) -> dict[str, Any]:
    described: dict[str, Any] = {"description": answer.description or f"{HTTPStatus(status).phrase}."}
    content: dict[str, Any] = {}
    if answer.shape is not None:
        content["application/json"] = {"schema": schema_of(answer.shape, definitions)}
    content |= {media: _MEDIA.get(media, {"schema": {"type": "string"}}) for media in answer.media}
    if content:
        described["content"] = content
    headers = [*answer.headers, *(["Retry-After"] if status == 503 else [])]
    if headers:
        described["headers"] = {name: {"schema": {"type": "string"}} for name in headers}
    return described
