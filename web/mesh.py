"""The mesh over HTTP: who is in it, who wants in, the door, invitations, and who goes.

Addresses are blank unless an administrator asks, and only an administrator changes anything; into another mesh, or out
of this one, leads only the command line of the machine itself. Nothing is decided here: `services.mesh` does, and says
what cannot be.

What the routes and the command line read in the facet's answers stands at the end, as types; more is passed on as it
is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, NotRequired, TypedDict, TypeVar

from aiohttp import web

from inference.openai.fields import bad_value
from web.auth import note
from web.body import parsed_body
from web.border import CALLER
from web.errors import HttpRefusal
from web.route import Answer, Operation
from web.services import AuditNote, MeshFacet, Services
from web.shapes import Number, Text, checked

MINUTES_MAX = 1440.0
USES_MAX = 1000
HOURS_MAX = 8760.0
NAME_LENGTH_MAX = 64
# An id has 36 or 52 characters; the longest thing that names anybody.
WHO_LENGTH_MAX = 128
# A token has about 120 characters, and carries the addresses of its peer.
TO_LENGTH_MAX = 4096
# What is blank for callers that are no administrators, wherever it stands in an answer.
_ADDRESSES: dict[str, Any] = {"ip_address": "", "address": "", "addresses": []}

T = TypeVar("T")


class MeshRoutes:
    """Handlers of `/api/mesh*`, `/api/agents` and `/api/nodes`. All are 404 on a peer that has no mesh."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def overview(self, request: web.Request) -> web.Response:
        return _shown(request, self._mesh.overview())

    async def agents(self, request: web.Request) -> web.Response:
        """F164: everybody who serves, as scripts written for the reference read it."""
        return _shown(request, self._mesh.agents())

    async def peer(self, request: web.Request) -> web.Response:
        """Everything known of one; `{id}` is an id, a unique prefix of six, or a name."""
        found = self._mesh.peer(who_of(request))
        return _shown(request, found | {"agent_id": found["id"], "node_id": found["id"]})

    async def identity(self, request: web.Request) -> web.Response:
        return web.json_response(self._mesh.identity())

    async def joins(self, request: web.Request) -> web.Response:
        return web.json_response(self._mesh.joins())

    async def door(self, request: web.Request) -> web.Response:
        mesh = self._mesh
        minutes = await self._body(request, _minutes)
        answer = mesh.door(minutes)
        self._note(request, "mesh.door", "", f"open for {minutes:g} min" if minutes else "shut")
        return web.json_response(answer)

    async def approve(self, request: web.Request) -> web.Response:
        mesh = self._mesh
        return self._noted(request, "peer.approve", await mesh.approve(await self._body(request, _digits_or_id)))

    async def deny(self, request: web.Request) -> web.Response:
        mesh = self._mesh
        return self._noted(request, "peer.deny", await mesh.deny(await self._body(request, _digits_or_id)))

    async def invite(self, request: web.Request) -> web.Response:
        mesh = self._mesh
        uses, hours = await self._body(request, _uses_and_hours)
        answer = await mesh.invite(uses, hours)
        self._note(request, "mesh.invite", "", f"for {uses}, {hours:g} h")
        return web.json_response(answer, status=201)

    async def join(self, request: web.Request) -> web.Response:
        mesh = self._mesh
        to, brings_history = await self._body(request, _destination)
        answer = await mesh.join(to, brings_history)
        self._note(request, "mesh.join", "")  # not where to: the line of an invitation is a secret
        return web.json_response(answer)

    async def leave(self, request: web.Request) -> web.Response:
        return self._noted(request, "mesh.leave", await self._mesh.leave())

    async def rename(self, request: web.Request) -> web.Response:
        mesh = self._mesh
        who = who_of(request)
        return self._noted(request, "peer.rename", await mesh.rename(who, await self._body(request, _new_name)), who)

    async def revoke(self, request: web.Request) -> web.Response:
        return self._noted(request, "peer.revoke", await self._mesh.revoke(who_of(request)))

    async def trust(self, request: web.Request) -> web.Response:
        return self._noted(request, "peer.trust", await self._mesh.trust(who_of(request)))

    def _noted(self, request: web.Request, action: str, answer: dict[str, Any], detail: str = "") -> web.Response:
        """The answer, which names whom it is about: for the audit log as well."""
        self._note(request, action, str(answer.get("name") or answer.get("id") or ""), detail)
        return web.json_response(answer)

    def _note(self, request: web.Request, action: str, target: str, detail: str = "") -> None:
        note(self._services, AuditNote(action=action, caller=request[CALLER], target=target, detail=detail))

    @property
    def _mesh(self) -> MeshFacet:
        """Raises HttpRefusal 404 without one."""
        if self._services.mesh is None:
            raise HttpRefusal(404, "This peer has no mesh: it serves its own machine only.", code="no_mesh")
        return self._services.mesh

    async def _body(self, request: web.Request, parse: Callable[[dict[str, Any]], T]) -> T:
        return await parsed_body(request, self._services.limits, parse)


def normal_digits(who: str) -> str:
    """Six digits as they are shown, `481 920`, however they were typed; anything else as it is, without outer space."""
    digits = re.sub(r"[\s\-'\"]", "", who)
    is_six = len(digits) == 6 and digits.isascii() and digits.isdigit()
    return f"{digits[:3]} {digits[3:]}" if is_six else who.strip()


def without_addresses(value: Any) -> Any:
    """`value` with every address in it blank, at any depth."""
    if isinstance(value, dict):
        return {key: _ADDRESSES.get(key, without_addresses(part)) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_addresses(part) for part in value]
    return value


def _shown(request: web.Request, answer: Any) -> web.Response:
    """F75: addresses only for an administrator."""
    return web.json_response(answer if request[CALLER].is_admin else without_addresses(answer))


def who_of(request: web.Request) -> str:
    """Whom `{id}` of the path means, as it was written. Raises InvalidRequest."""
    who = request.match_info["id"]
    if not who.isprintable() or len(who) > WHO_LENGTH_MAX:
        raise bad_value("id", f"expected up to {WHO_LENGTH_MAX} printable characters")
    return who


def _minutes(body: dict[str, Any]) -> float:
    return checked(DoorChange, body)["minutes"]


def _digits_or_id(body: dict[str, Any]) -> str:
    return normal_digits(checked(Asker, body)["who"].strip())


def _uses_and_hours(body: dict[str, Any]) -> tuple[int, float]:
    """One use and a day unless said otherwise."""
    asked = checked(Invitation, body)
    uses, hours = asked.get("uses"), asked.get("hours")
    if hours == 0:
        raise bad_value("hours", "expected more than 0")
    return uses or 1, hours or 24.0


def _destination(body: dict[str, Any]) -> tuple[str, bool]:
    found = checked(Destination, body)
    return found["to"].strip(), found.get("bring_history", False)


def _new_name(body: dict[str, Any]) -> str:
    return checked(NewName, body)["name"].strip()


# -- what is asked and answered


class DoorChange(TypedDict):
    """For how long the door is open; 0 shuts it."""

    minutes: Annotated[float, Number(0, MINUTES_MAX)]


class Asker(TypedDict):
    """A machine that asks to join, by the six digits it shows or the id of its request."""

    who: Annotated[str, Text(WHO_LENGTH_MAX, is_line=True)]


class Invitation(TypedDict):
    """One use and 24 hours unless said otherwise."""

    uses: NotRequired[Annotated[int, Number(1, USES_MAX)] | None]
    hours: NotRequired[Annotated[float, Number(0, HOURS_MAX)] | None]


class Destination(TypedDict):
    """The line of an invitation, or the address of a member. `bring_history`: what was recorded here before becomes
    part of that mesh's history; else it stays on this machine."""

    to: Annotated[str, Text(TO_LENGTH_MAX, is_line=True)]
    bring_history: NotRequired[bool]


class NewName(TypedDict):
    """What the machine is called from now on."""

    name: Annotated[str, Text(NAME_LENGTH_MAX, is_line=True)]


class Named(TypedDict):
    """A machine."""

    id: str
    name: str


class Door(TypedDict):
    """While it is open, machines on the same network join by themselves."""

    open: bool
    seconds_left: float


class Peer(TypedDict):
    """A member. `state`: alive, suspect, dead, left, draining, wrong-version, unknown. Addresses are an admin's."""

    id: str
    name: str
    state: str
    is_guest: bool
    version: str
    models: list[str]
    active_requests: int
    queued: int
    since_s: float
    ip_address: NotRequired[str]


class Joining(TypedDict):
    """This machine asks to join another mesh."""

    state: str
    name: str
    members: int
    digits: str | None
    seconds_left: NotRequired[float | None]
    reason: NotRequired[str | None]


class Mesh(TypedDict):
    """The mesh as this peer sees it; its first peer is this one."""

    mesh_id: str
    name: str
    term: int
    coordinator: Named | None
    self: Named
    door: Door
    peers: list[Peer]
    guests_waiting: int
    joins_waiting: int
    joining: Joining | None


class Agent(TypedDict):
    """A peer or a registered server, as the reference has them. `state` is finer than `status`."""

    id: str
    machine_name: str
    ip_address: str
    runtime_version: str | None
    runtime_port: int | None
    status: Literal["online", "offline"]
    registered_at: str
    last_seen: str
    gpu_available: bool
    gpu_devices: list[dict[str, Any]]
    gpu_count: int
    gpu_model: str | None
    loaded_models: list[str]
    custom_name: str | None
    tags: list[str]
    notes: str | None
    agent_id: NotRequired[str]
    node_id: NotRequired[str]
    state: NotRequired[str]
    active_requests: NotRequired[int]
    queued: NotRequired[int]
    is_external: NotRequired[bool]
    is_cordoned: NotRequired[bool]


class OneAgent(TypedDict):
    """Everything known of one, its id under every name it ever had."""

    id: str
    agent_id: str
    node_id: str


class Asking(TypedDict):
    """A machine that asks to join, and the digits it shows."""

    id: str
    name: str
    digits: str
    seconds_left: float
    address: str


class Invited(TypedDict):
    """`line` is a secret until it is used; `command` is to be typed on the new machine."""

    line: str
    command: str
    expires_at: float


OVERVIEW = Operation(summary="The mesh", tag="mesh", answers={200: Answer(shape=Mesh)}, errors=(404,))
AGENTS = Operation(
    summary="Peers and registered servers", tag="agents", answers={200: Answer(shape=list[Agent])}, errors=(404,)
)
AGENT = Operation(
    summary="One peer or registered server", tag="agents", answers={200: Answer(shape=OneAgent)}, errors=(404,)
)
IDENTITY = Operation(
    summary="Who this machine is", tag="mesh", answers={200: Answer(shape=dict[str, Any])}, errors=(404,)
)
JOINS = Operation(
    summary="Machines that ask to join", tag="mesh", answers={200: Answer(shape=list[Asking])}, errors=(404,)
)
DOOR = Operation(
    summary="Open or shut the door",
    tag="mesh",
    body=DoorChange,
    answers={200: Answer(shape=Door)},
    errors=(404, 409),
)
APPROVE = Operation(
    summary="Let a machine in", tag="mesh", body=Asker, answers={200: Answer(shape=Named)}, errors=(404, 409)
)
DENY = Operation(
    summary="Turn a machine away", tag="mesh", body=Asker, answers={200: Answer(shape=Named)}, errors=(404, 409)
)
INVITE = Operation(
    summary="Make an invitation", tag="mesh", body=Invitation, answers={201: Answer(shape=Invited)}, errors=(404, 409)
)
JOIN = Operation(
    summary="Join another mesh",
    tag="mesh",
    body=Destination,
    answers={200: Answer(shape=dict[str, Any])},
    errors=(404, 409, 502, 504),
)
LEAVE = Operation(summary="Leave the mesh", tag="mesh", answers={200: Answer(shape=dict[str, Any])}, errors=(404, 409))
RENAME = Operation(
    summary="Give a machine another name",
    tag="mesh",
    body=NewName,
    answers={200: Answer(shape=Named)},
    errors=(404, 409),
)
REVOKE = Operation(
    summary="Exclude a machine for good", tag="mesh", answers={200: Answer(shape=Named)}, errors=(404, 409)
)
TRUST = Operation(
    summary="Make a guest a full member", tag="mesh", answers={200: Answer(shape=Named)}, errors=(404, 409)
)
