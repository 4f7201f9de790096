"""The mesh over HTTP: who is in it, who wants in, the door, invitations, and who goes.

Reading is for programs on this machine, and addresses are blank unless they hold the control token; what changes
anything needs that token. Nothing is decided here: `services.mesh` does, and says what cannot be.

What the routes and the command line read in the facet's answers (more is passed on as it is):

    overview  {mesh_id, name, term, coordinator: {id, name} | null, self: {id, name}, door: {open, seconds_left},
               peers: [PEER], guests_waiting, joins_waiting,
               joining: null | {state: asking | denied | expired | failed, name, members, digits, seconds_left, reason}}
    PEER      {id, name, state, is_guest, version, models: [id], active_requests, queued, since_s, ip_address}
              this peer among them, first; state: alive, suspect, dead, left, draining, wrong-version, unknown
    agents    F164's fields, and state, active_requests, queued
    peer      PEER and what else is known of it
    joins     [{id, name, digits: "481 920", seconds_left, address}]
    door      {open, seconds_left}
    invite    {line, command, expires_at}       command: `llm-router join 'llmr1-...'`
    join      {state: joined | asking, name, members, digits?, seconds_left?}
    leave     {name}                            the mesh that was left
    approve, deny, rename, revoke, trust: {id, name}
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from aiohttp import web

from inference.openai.fields import Fields, bad_value, missing
from web.body import parsed_body
from web.border import CALLER
from web.errors import HttpRefusal
from web.services import MeshFacet, Services

MINUTES_MAX = 1440.0
USES_MAX = 1000
HOURS_MAX = 8760.0
NAME_LENGTH_MAX = 64
# An id has 36 or 52 characters; the longest thing that names anybody.
WHO_LENGTH_MAX = 128
# A token has about 120 characters, and carries the addresses of its peer.
TO_LENGTH_MAX = 4096
# What is blank for callers that do not hold the control token, wherever it stands in an answer.
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
        found = self._mesh.peer(_who(request))
        return _shown(request, found | {"agent_id": found["id"], "node_id": found["id"]})

    async def identity(self, request: web.Request) -> web.Response:
        return web.json_response(self._mesh.identity())

    async def joins(self, request: web.Request) -> web.Response:
        return web.json_response(self._mesh.joins())

    async def door(self, request: web.Request) -> web.Response:
        mesh = self._mesh
        return web.json_response(mesh.door(await self._body(request, _minutes)))

    async def approve(self, request: web.Request) -> web.Response:
        mesh = self._mesh
        return web.json_response(await mesh.approve(await self._body(request, _digits_or_id)))

    async def deny(self, request: web.Request) -> web.Response:
        mesh = self._mesh
        return web.json_response(await mesh.deny(await self._body(request, _digits_or_id)))

    async def invite(self, request: web.Request) -> web.Response:
        mesh = self._mesh
        uses, hours = await self._body(request, _uses_and_hours)
        return web.json_response(await mesh.invite(uses, hours), status=201)

    async def join(self, request: web.Request) -> web.Response:
        mesh = self._mesh
        return web.json_response(await mesh.join(await self._body(request, _destination)))

    async def leave(self, request: web.Request) -> web.Response:
        return web.json_response(await self._mesh.leave())

    async def rename(self, request: web.Request) -> web.Response:
        mesh = self._mesh
        return web.json_response(await mesh.rename(_who(request), await self._body(request, _new_name)))

    async def revoke(self, request: web.Request) -> web.Response:
        return web.json_response(await self._mesh.revoke(_who(request)))

    async def trust(self, request: web.Request) -> web.Response:
        return web.json_response(await self._mesh.trust(_who(request)))

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
    """F75: addresses only for who holds the control token."""
    is_control = request[CALLER].key_id == "control"
    return web.json_response(answer if is_control else without_addresses(answer))


def _who(request: web.Request) -> str:
    who = request.match_info["id"]
    if not who.isprintable() or len(who) > WHO_LENGTH_MAX:
        raise bad_value("id", f"expected up to {WHO_LENGTH_MAX} printable characters")
    return who


def _minutes(body: dict[str, Any]) -> float:
    minutes = Fields(body).decimal("minutes", 0, MINUTES_MAX)
    if minutes is None:
        raise missing("minutes")
    return minutes


def _digits_or_id(body: dict[str, Any]) -> str:
    return normal_digits(_text(body, "who", WHO_LENGTH_MAX))


def _uses_and_hours(body: dict[str, Any]) -> tuple[int, float]:
    """One use and a day unless said otherwise."""
    fields = Fields(body)
    uses, hours = fields.integer("uses", 1, USES_MAX), fields.decimal("hours", 0, HOURS_MAX)
    if hours == 0:
        raise bad_value("hours", "expected more than 0")
    return uses or 1, hours or 24.0


def _destination(body: dict[str, Any]) -> str:
    return _text(body, "to", TO_LENGTH_MAX)


def _new_name(body: dict[str, Any]) -> str:
    return _text(body, "name", NAME_LENGTH_MAX)


def _text(body: dict[str, Any], name: str, length_max: int) -> str:
    """A required line of printable text, without space around it."""
    value = Fields(body).string(name, length_max)
    if value is None:
        raise missing(name)
    value = value.strip()
    if not value:
        raise bad_value(name, "it is empty")
    if not value.isprintable():
        raise bad_value(name, "it holds characters that cannot be printed")
    return value
