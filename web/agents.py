"""Peers and registered servers under their old names: agents, nodes. What scripts written for the reference call.

    POST /api/agents                    F162: registers an OpenAI-compatible server that is no peer
    POST /api/backends                  the same by this machine's own command line: also a server on loopback
    POST /api/health                    F166: such a server is alive; its token is in X-Agent-Token
    POST /api/agents/{id}/metrics       F167
    PUT  /api/agents/{id}/settings      F83: name, tags, notes
    POST /api/agents/{id}/disconnect    F84: no more requests, until `enable`
    DELETE /api/agents/{id}             F85

`/api/nodes` is the same; bodies may say `node_id` for `agent_id`. The coordinator answers all of these (web.passing)
but `/api/backends`: only this machine can look at its own loopback. Who is listed, and how they are, is web.mesh's.
Only the form of a body is checked here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from aiohttp import web

from inference.openai.fields import bad_value, missing
from web.body import for_anybody, parsed_body
from web.border import CALLER
from web.errors import HttpRefusal
from web.mesh import who_of
from web.query import query_of
from web.route import Answer, Operation
from web.services import AgentsFacet, Services
from web.shapes import Many, Number, Text, checked


class AgentsRoutes:
    """Handlers of what changes an agent. All are 503 on a peer that manages none."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def register(self, request: web.Request) -> web.Response:
        agents = self._agents
        body = await self._body(request, Registration)
        status, found = await agents.register(body, request[CALLER])
        return web.json_response(_both_ids(found), status=status)

    async def register_here(self, request: web.Request) -> web.Response:
        """By the command line of this machine: the facet sees it by the caller."""
        return await self.register(request)

    async def heartbeat(self, request: web.Request) -> web.Response:
        agents = self._agents
        body = _one_id(await self._body(request, Heartbeat))
        if body["agent_id"] is None:
            raise missing("agent_id")
        await agents.heartbeat(request.headers.get("X-Agent-Token"), body)
        return web.json_response({"status": "ok"})

    async def metrics(self, request: web.Request) -> web.Response:
        """From an administrator, or the server itself: then it is a sign of life, and the token must be its own."""
        agents, who = self._agents, who_of(request)
        body = _one_id(await self._body(request, Metrics))
        if not request[CALLER].is_admin:
            await agents.heartbeat(request.headers.get("X-Agent-Token"), body | {"agent_id": who})
        await agents.metrics(who, body)
        return web.Response(status=204)

    async def settings(self, request: web.Request) -> web.Response:
        agents, who = self._agents, who_of(request)
        body = await self._body(request, AgentSettings)
        return web.json_response(_both_ids(await agents.settings(who, body, request[CALLER])))

    async def disconnect(self, request: web.Request) -> web.Response:
        await self._agents.disconnect(who_of(request), request[CALLER])
        return web.json_response({"status": "disconnected"}, status=202)

    async def enable(self, request: web.Request) -> web.Response:
        await self._agents.enable(who_of(request), request[CALLER])
        return web.json_response({"status": "enabled"}, status=202)

    async def delete(self, request: web.Request) -> web.Response:
        """A peer that is online wants `?confirm=true`."""
        agents, who = self._agents, who_of(request)
        is_confirmed = query_of(request, DeleteQuery).get("confirm") == "true"
        await agents.delete(who, is_confirmed, request[CALLER])
        return web.Response(status=204)

    @property
    def _agents(self) -> AgentsFacet:
        """Raises HttpRefusal 503 without one."""
        if self._services.agents is None:
            raise HttpRefusal(503, "This peer manages no agents.", code="agents_unavailable", error_type="server_error")
        return self._services.agents

    async def _body(self, request: web.Request, shape: type[Any]) -> dict[str, Any]:
        def parse(body: dict[str, Any]) -> dict[str, Any]:
            checked(shape, body)
            return body

        return await parsed_body(request, for_anybody(self._services.limits), parse)


def _one_id(body: dict[str, Any]) -> dict[str, Any]:
    """`agent_id`, whichever way it was said. Raises InvalidRequest when both are there and differ."""
    old, new = body.pop("agent_id", None), body.pop("node_id", None)
    if old is not None and new is not None and old != new:
        raise bad_value("node_id", "it differs from 'agent_id', which is the same thing")
    return body | {"agent_id": old if old is not None else new}


def _both_ids(answer: dict[str, Any]) -> dict[str, Any]:
    identity = answer.get("agent_id") or answer.get("node_id") or answer.get("id")
    return answer if identity is None else answer | {"agent_id": identity, "node_id": identity}


# -- what is asked and answered

_Id = Annotated[str, Text(128)]
_Count = Annotated[int, Number(0, 10**6)]


class Device(TypedDict):
    """GPUs of one model. A blank model or a count of 0 is refused with 403, as the reference does."""

    model: Annotated[str, Text(256)]
    count: Annotated[int, Number(-(10**6), 10**6)]
    memory: NotRequired[Annotated[int, Number(0, 2**53)] | None]


class Registration(TypedDict):
    """A server that speaks OpenAI's API at `runtime_port`, or the port after it. It is asked before it is taken.

    `base_url` may stand for address and port, and say https.
    """

    machine_name: Annotated[str, Text(128, is_line=True)]
    ip_address: NotRequired[Annotated[str, Text(255, is_line=True)] | None]
    runtime_port: NotRequired[Annotated[int, Number(1, 65535)] | None]
    base_url: NotRequired[Annotated[str, Text(255, is_line=True)] | None]
    runtime_version: NotRequired[Annotated[str, Text(64)] | None]
    gpu_available: NotRequired[bool | None]
    gpu_devices: NotRequired[Annotated[list[Device], Many(64)] | None]
    gpu_count: NotRequired[_Count | None]
    gpu_model: NotRequired[Annotated[str, Text(256)] | None]


class Registered(TypedDict):
    """`agent_token` is shown this once."""

    agent_id: str
    node_id: str
    status: Literal["registered", "updated"]
    agent_token: str


class Heartbeat(TypedDict):
    """`agent_id` or `node_id` names the server; its token must be its own. Percentages out of 0 to 100 are refused."""

    agent_id: NotRequired[_Id | None]
    node_id: NotRequired[_Id | None]
    cpu_usage: NotRequired[Annotated[float, Number(0, 100)] | None]
    memory_usage: NotRequired[Annotated[float, Number(0, 100)] | None]
    gpu_usage: NotRequired[Annotated[float, Number(0, 100)] | None]
    active_requests: NotRequired[_Count | None]


class Metrics(TypedDict):
    """What the balancer is told of a server."""

    agent_id: NotRequired[_Id | None]
    node_id: NotRequired[_Id | None]
    cpu_usage: Annotated[float, Number(0, 100)]
    memory_usage: Annotated[float, Number(0, 100)]
    gpu_usage: NotRequired[Annotated[float, Number(0, 100)] | None]
    active_requests: _Count
    avg_response_time_ms: NotRequired[Annotated[float, Number(0, 1e9)] | None]
    timestamp: NotRequired[Annotated[str, Text(64)] | None]


class AgentSettings(TypedDict):
    """What people call a machine. Blank or null clears; what is left out stays."""

    custom_name: NotRequired[Annotated[str, Text(64)] | None]
    tags: NotRequired[Annotated[list[Annotated[str, Text(64)]], Many(32)] | None]
    notes: NotRequired[Annotated[str, Text(4096)] | None]


class DeleteQuery(TypedDict, total=False):
    """`confirm`: also when it is a peer that is online."""

    confirm: Literal["true", "false"]


class Said(TypedDict):
    """It was done."""

    status: str


REGISTER = Operation(
    summary="Register a server that is no peer",
    tag="agents",
    body=Registration,
    answers={
        201: Answer(shape=Registered, description="New."),
        200: Answer(shape=Registered, description="Known by its name and port; it has a new token."),
    },
    errors=(409, 502),
)
HEARTBEAT = Operation(
    summary="A registered server is alive",
    tag="agents",
    body=Heartbeat,
    answers={200: Answer(shape=Said)},
    errors=(401, 403, 404),
)
METRICS = Operation(
    summary="The load of a registered server",
    tag="agents",
    body=Metrics,
    answers={204: Answer()},
    errors=(401, 403, 404, 409),
)
SETTINGS = Operation(
    summary="Name, tags and notes",
    tag="agents",
    body=AgentSettings,
    answers={200: Answer(shape=dict[str, Any])},
    errors=(404, 409),
)
DISCONNECT = Operation(
    summary="Send it no more requests", tag="agents", answers={202: Answer(shape=Said)}, errors=(404, 409)
)
ENABLE = Operation(summary="Send it requests again", tag="agents", answers={202: Answer(shape=Said)}, errors=(404, 409))
DELETE = Operation(
    summary="Remove it for good", tag="agents", query=DeleteQuery, answers={204: Answer()}, errors=(404, 409)
)
