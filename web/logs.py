"""Log lines over HTTP: this peer's own, and those of another, which answers for itself (web.passing)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

from aiohttp import web

from web.errors import HttpRefusal
from web.query import query_of
from web.route import Answer, Operation
from web.services import Services
from web.shapes import Number, Text

LINES_MAX = 1000


class LogsRoutes:
    """Handler of `/api/logs` and `/api/agents/{id}/logs`: whoever runs it answers with its own lines."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def lines(self, request: web.Request) -> web.Response:
        logs = self._services.logs
        if logs is None:
            raise HttpRefusal(503, "This peer keeps no logs.", code="logs_unavailable", error_type="server_error")
        return web.json_response(await logs.lines(query_of(request, LogsQuery)))


class LogsQuery(TypedDict, total=False):
    """`level` and above; `since` is a time, or how long ago (`10m`); `grep` is a text that stands in the line."""

    level: Literal["debug", "info", "warning", "error"]
    since: Annotated[str, Text(64)]
    grep: Annotated[str, Text(256)]
    limit: Annotated[int, Number(1, LINES_MAX)]


LINES = Operation(
    summary="Log lines of this peer, newest last",
    tag="logs",
    query=LogsQuery,
    answers={200: Answer(shape=list[dict[str, Any]])},
)
LINES_OF = Operation(
    summary="Log lines of a peer, newest last",
    tag="logs",
    query=LogsQuery,
    answers={200: Answer(shape=list[dict[str, Any]])},
    errors=(404,),
)
