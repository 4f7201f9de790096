"""What was asked and answered, over HTTP: lists, single records, files of them, totals, and who did what.

    GET /api/dashboard/request-responses            F155: ?page&per_page&as_of and the filters (`Filters` below)
    GET /api/dashboard/request-responses/{id}       F156
    GET /api/dashboard/request-responses/export     F157: ?format=json|csv, and the filters
    GET /api/dashboard/stats, /overview, /api/audit

The coordinator answers (web.passing). What filters mean is decided by who answers `HistoryFacet`; only their form is
checked here. Whoever looks at other people's requests is written down: records and files each time, lists once in a
while, because a dashboard asks for the same one every few seconds.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from aiohttp import web

from web.border import CALLER
from web.download import downloaded
from web.errors import HttpRefusal
from web.mesh import without_addresses
from web.query import query_of
from web.route import Answer, Operation
from web.services import AuditNote, Caller, HistoryFacet, Services
from web.shapes import Number, Text

# A list that is asked for again within this is the same look at it.
LOOK_S = 600.0
LOOKS_MAX = 1000
ID_LENGTH_MAX = 128


class HistoryRoutes:
    """Handlers of `/api/dashboard/*` and `/api/audit`. All are 503 on a peer that keeps no history."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._looks = _Looks()

    async def records(self, request: web.Request) -> web.Response:
        history, query = self._history, query_of(request, RecordsQuery)
        found = await history.records(query)
        caller, target = request[CALLER], _filters(query)
        if self._looks.is_new(caller, target):
            history.audit(AuditNote(action="history.list", caller=caller, target=target))
        return web.json_response(found)

    async def record(self, request: web.Request) -> web.Response:
        history, record_id = self._history, request.match_info["id"]
        found = await history.record(record_id) if len(record_id) <= ID_LENGTH_MAX else None
        if found is None:
            raise HttpRefusal(404, f"There is no request {record_id[:80]!r} in the history.", code="record_not_found")
        history.audit(AuditNote(action="history.view", caller=request[CALLER], target=record_id))
        return web.json_response(found)

    async def export(self, request: web.Request) -> web.StreamResponse:
        """A file, made while it is sent."""
        history, query = self._history, query_of(request, ExportQuery)
        export = await history.export(query)
        note = AuditNote(
            action="history.export", caller=request[CALLER], target=_filters(query), detail=query.get("format", "json")
        )
        history.audit(note)
        filename = re.sub(r"[^A-Za-z0-9._-]", "_", export.filename)
        headers = {
            "Content-Type": export.content_type,
            "Content-Disposition": f'attachment; filename="{filename}"',
        }
        return await downloaded(request, status=200, headers=headers, chunks=export.chunks)

    async def stats(self, request: web.Request) -> web.Response:
        return web.json_response(await self._history.stats(query_of(request, StatsQuery)))

    async def overview(self, request: web.Request) -> web.Response:
        """The dashboard's first page in one answer."""
        began = time.monotonic()
        found = await self._history.overview(query_of(request, StatsQuery))
        nodes = self._services.mesh.agents() if self._services.mesh is not None else []
        answer: dict[str, Any] = {"nodes": nodes, "generated_at": _now()} | found
        answer.setdefault("generation_time_ms", round((time.monotonic() - began) * 1000, 1))
        return web.json_response(answer if request[CALLER].is_admin else without_addresses(answer))

    async def audits(self, request: web.Request) -> web.Response:
        return web.json_response(await self._history.audits(query_of(request, AuditsQuery)))

    @property
    def _history(self) -> HistoryFacet:
        """Raises HttpRefusal 503 without one."""
        if self._services.history is None:
            raise HttpRefusal(
                503,
                "This peer keeps no history, or cannot read it now; its log says more.",
                code="history_unavailable",
                error_type="server_error",
            )
        return self._services.history


class _Looks:
    """Who looked at which list a short while ago; bounded."""

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[str | None, ...], float] = OrderedDict()

    def is_new(self, caller: Caller, target: str) -> bool:
        now = time.monotonic()
        look = (caller.user_id, caller.key_id, caller.ip, target)
        if now - self._seen.get(look, -LOOK_S) < LOOK_S:
            return False
        self._seen[look] = now
        self._seen.move_to_end(look)
        if len(self._seen) > LOOKS_MAX:
            self._seen.popitem(last=False)
        return True


def _filters(query: Mapping[str, str]) -> str:
    """What was looked for, for the audit log: pages are left out, and what was searched for in bodies as well."""
    shown = {name: "***" if name == "q" else value for name, value in query.items()}
    for name in ("page", "per_page", "as_of", "format"):
        shown.pop(name, None)
    return "&".join(f"{name}={value}" for name, value in sorted(shown.items()))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


# -- what is asked and answered

_Name = Annotated[str, Text(512)]
_When = Annotated[str, Text(64)]
_Page = Annotated[int, Number(-(10**9), 10**9)]

Filters = TypedDict(
    "Filters",
    {
        "model": _Name,
        "agent": Annotated[str, Text(128)],
        "ingress": Annotated[str, Text(128)],
        "status": Literal["success", "error", "cancelled", "interrupted", "running", ""],
        "from": _When,
        "to": _When,
        "q": Annotated[str, Text(1000)],
        "key": Annotated[str, Text(128)],
        "bodies": Literal["true", "false"],
    },
    total=False,
)


class RecordsQuery(Filters, total=False):
    """Newest first. `per_page` is 10, 25, 50 or 100, anything else counts as 10; a page below 1 is the first."""

    page: _Page
    per_page: _Page
    as_of: _When


class ExportQuery(Filters, total=False):
    """What to put in the file."""

    format: Literal["json", "csv"]
    bom: Literal["true", "false"]


StatsQuery = TypedDict("StatsQuery", {"from": _When, "to": _When}, total=False)


AuditsFilters = TypedDict(
    "AuditsFilters", {"from": _When, "to": _When, "actor": _Name, "action": _Name, "q": _Name}, total=False
)


class AuditsQuery(AuditsFilters, total=False):
    """Newest first."""

    page: _Page
    per_page: _Page
    as_of: _When


class Status(TypedDict):
    """How a request ended, or that it runs. What did not end well is an error here; `state` of the record is finer."""

    type: Literal["success", "error", "running"]
    message: NotRequired[str]


class Record(TypedDict):
    """One request and its answer. Bodies are there where they are kept, as text or as the JSON they were.

    `state`: success, error, cancelled, interrupted, running. `attempts` and `continued_on`: which peers it took.
    """

    id: str
    timestamp: str
    request_type: Literal["chat", "generate", "embeddings"]
    model: str
    node_id: str | None
    agent_machine_name: str | None
    agent_ip: str | None
    client_ip: str | None
    request_body: NotRequired[Any]
    response_body: NotRequired[Any]
    duration_ms: int | None
    status: Status
    completed_at: str | None
    state: str
    code: str | None
    http_status: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    ttft_ms: int | None
    attempts: int | None
    continued_on: list[str]
    ingress_node_id: str | None
    ingress_machine_name: str | None
    api_key: str | None
    api_key_id: str | None
    user: str | None
    stream: bool
    recording: Literal["full", "metadata"]
    bodies_dropped: bool


class Records(TypedDict):
    """A page. With its `as_of` other pages are of the same list, whatever came since. `incomplete` names peers whose
    newest requests have not come here yet; a search that ran out of time says how far `searched_back_to` got."""

    records: list[Record]
    total_count: int
    page: int
    per_page: int
    as_of: str
    incomplete: NotRequired[list[Any]]
    searched_back_to: NotRequired[str]


class Stats(TypedDict):
    """Sums of a time range, in all and by model, peer and key."""

    total_requests: int
    successful_requests: int
    failed_requests: int
    prompt_tokens: int
    completion_tokens: int
    models: list[dict[str, Any]]
    peers: list[dict[str, Any]]
    api_keys: list[dict[str, Any]]


class Overview(TypedDict):
    """Peers, totals, and a series of 60 minutes."""

    nodes: list[dict[str, Any]]
    stats: Stats
    history: list[dict[str, Any]]
    generated_at: str
    generation_time_ms: float


class Audit(TypedDict):
    """Somebody did something. `actor_kind`: user, key, control, peer, system."""

    timestamp: str
    actor: str
    actor_kind: str
    ip: str | None
    action: str
    target: str | None
    detail: str | None


class Audits(TypedDict):
    """A page of them."""

    entries: list[Audit]
    total_count: int
    page: int
    per_page: int
    as_of: str


RECORDS = Operation(
    summary="Requests that were answered", tag="history", query=RecordsQuery, answers={200: Answer(shape=Records)}
)
RECORD = Operation(
    summary="One request with its bodies", tag="history", answers={200: Answer(shape=Record)}, errors=(404,)
)
EXPORT = Operation(
    summary="Requests as a file",
    tag="history",
    query=ExportQuery,
    answers={200: Answer(shape=list[Record], media=("text/csv",), headers=("Content-Disposition",))},
)
STATS = Operation(summary="Totals", tag="history", query=StatsQuery, answers={200: Answer(shape=Stats)})
OVERVIEW = Operation(
    summary="Peers, totals and the last hour", tag="history", query=StatsQuery, answers={200: Answer(shape=Overview)}
)
AUDITS = Operation(summary="Who did what", tag="history", query=AuditsQuery, answers={200: Answer(shape=Audits)})
