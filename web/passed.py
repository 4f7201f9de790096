"""The peer port's side of passing on: what other peers were asked, and this one answers: the coordinator, or the very
peer that the request is about.

    METHOD /mesh/passed/api/...     x-mesh-hop: 1, x-mesh-context (the caller, as its ingress found it), x-request-id

Only routes of the table that have an owner are here, and only full members may use them: what a guest says of its
callers is not believed, and of who came by the open door and waits to be confirmed not that they are persons. The
route's policy is asked again about the caller that came. Who is not the owner (an election came between) says 503:
nothing is ever passed on twice.

Not here: who is a member (gossip.transport), the other side (web.passing, mesh.passing).
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from aiohttp import web

from inference.errors import InferenceError, InvalidRequest, ModelUnavailable
from web import guards
from web.border import CALLER, REQUEST_ID, Handler, request_id
from web.errors import HttpRefusal, error_response
from web.guards import Policy
from web.hop import CONTEXT_BYTES_MAX, CONTEXT_HEADER, HOP_HEADER
from web.inflight import OWN_IN_FLIGHT, InFlight
from web.route import PEER, Route
from web.services import Caller, Principal, Services
from web.watch import RECHECK, Recheck

_log = logging.getLogger(__name__)

PREFIX = "/mesh/passed"
VERSION_HEADER = "x-mesh-version"
"""How far the admin state had come here when the answer was made; the ingress waits until it is as far."""

# Longer than any id or name that we make.
_TEXT_MAX = 128
_SCOPES_MAX = 16
_TEXTS = ("ip", "key_id", "key_name", "user_id", "username", "session_id")


class PassedRoutes:
    """The handlers. `peer_of` answers the id that the certificate of the connection proves, `may_pass` whether that
    peer is a full member, `is_confirmed` whether it is one that did not just come by the open door, `version` how far
    the admin state has come."""

    def __init__(
        self,
        services: Services,
        *,
        peer_of: Callable[[web.Request], str],
        may_pass: Callable[[str], bool],
        is_confirmed: Callable[[str], bool],
        version: Callable[[], str],
    ) -> None:
        self._services = services
        self._peer_of = peer_of
        self._may_pass = may_pass
        self._is_confirmed = is_confirmed
        self._version = version
        self._in_flight = InFlight()

    async def stop(self, drain_s: float) -> None:
        """Ends what still runs after `drain_s` seconds."""
        await self._in_flight.stop(drain_s)

    def handler_of(self, route: Route) -> Handler:
        """What answers `route` here."""

        async def handler(request: web.Request) -> web.StreamResponse:
            request[OWN_IN_FLIGHT] = self._in_flight
            request[REQUEST_ID] = request_id(request.headers.get("x-request-id"))
            with self._in_flight.entered():
                response = await self._answered(request, route)
            if not response.prepared:
                response.headers[VERSION_HEADER] = self._version()
            return response

        return handler

    async def _answered(self, request: web.Request, route: Route) -> web.StreamResponse:
        """The border of these routes: whatever happens becomes an answer, but a disconnect."""
        path = request.path.removeprefix(PREFIX)
        try:
            request[CALLER] = self._admitted(request, route)
            return await route.handler(request)
        except InferenceError as error:
            return error_response(error, path)
        except asyncio.CancelledError:
            if not self._in_flight.was_stopped(request):
                raise
            return error_response(ModelUnavailable("The peer that answers this is stopping; try again."), path)
        except ConnectionError:
            raise
        except Exception:  # noqa: BLE001 - the border: logged with its traceback, the caller gets a 500 and an id
            _log.exception("passed request failed", extra={"request": request[REQUEST_ID]})
            message = f"Something went wrong inside the peer that answers this (request id {request[REQUEST_ID]})."
            return error_response(InferenceError(message, code="internal_error"), path)

    def _admitted(self, request: web.Request, route: Route) -> Caller:
        """The caller. Raises HttpRefusal when its peer, itself or the place is wrong."""
        if request.headers.get(HOP_HEADER) != "1":
            raise HttpRefusal(400, f"Missing header '{HOP_HEADER}: 1': this port answers peers.", code="not_a_hop")
        peer = self._peer_of(request)
        if not self._may_pass(peer):
            raise HttpRefusal(
                403,
                "The peer you asked is a guest of its mesh: it may not pass on what it is asked. Ask another one, or "
                "make it a full member with `llm-router peers trust`.",
                code="guest",
                error_type="permission_error",
            )
        caller = caller_in(request.headers.get(CONTEXT_HEADER, ""))
        request[RECHECK] = Recheck(lambda: not self._may_pass(peer) or self._is_revoked(caller))
        if self._is_revoked(caller):
            raise HttpRefusal(401, "That key or login was revoked.", code="invalid_api_key")
        if not admits(route.policy, caller):
            raise HttpRefusal(403, "The caller may not do that.", code="not_allowed", error_type="permission_error")
        self._check_owner(request, route)
        return caller if self._is_confirmed(peer) else doubted(caller)

    def _is_revoked(self, caller: Caller) -> bool:
        accounts = self._services.accounts
        return accounts is not None and accounts.revoked(caller)

    def _check_owner(self, request: web.Request, route: Route) -> None:
        passing = self._services.passing
        if passing is None:
            return
        is_admin_state = route.owned != PEER
        is_here = passing.is_owner() if is_admin_state else passing.is_this_peer(request.match_info["id"])
        if not is_here:
            raise ModelUnavailable(
                "The peer that was asked is not the one that answers this (any more); try again.",
                code="not_coordinator" if is_admin_state else "not_this_peer",
                retry_after_s=1,
            )


def passed_routes(
    services: Services,
    routes: Sequence[Route],
    *,
    peer_of: Callable[[web.Request], str],
    may_pass: Callable[[str], bool],
    is_confirmed: Callable[[str], bool] = lambda peer: True,
    version: Callable[[], str] = lambda: "",
) -> tuple[PassedRoutes, list[tuple[str, str, Handler]]]:
    """The routes to mount on the peer port, of those in `routes` that have an owner, and what ends them."""
    passed = PassedRoutes(services, peer_of=peer_of, may_pass=may_pass, is_confirmed=is_confirmed, version=version)
    owned = [route for route in routes if route.owned is not None]
    return passed, [(route.method, PREFIX + route.path, passed.handler_of(route)) for route in owned]


def admits(policy: Policy, caller: Caller) -> bool:
    """Whether `policy` lets in a caller that its ingress has authenticated."""
    is_known = caller.key_id is not None or caller.user_id is not None
    who = Principal(key_id=caller.key_id, user_id=caller.user_id, role=caller.role, scopes=caller.scopes)
    scopes = guards.scopes_of(who) if is_known else frozenset()
    return guards.permits(policy, who if is_known else None, scopes, is_here=False)


def doubted(caller: Caller) -> Caller:
    """The caller as far as a machine is believed that came by the open door and that nobody confirmed. It may make up
    anybody: so this is no person, who could make an administrator, and nobody who may use clouds."""
    is_person = caller.key_id in (None, guards.CONTROL)
    who = Principal(key_id=caller.key_id, user_id=caller.user_id, role=caller.role, scopes=caller.scopes)
    return replace(
        caller,
        key_id=guards.UNCONFIRMED if is_person else caller.key_id,
        key_name="a machine that waits to be confirmed" if is_person else caller.key_name,
        role=None,
        scopes=guards.scopes_of(who) - {"cloud"},
    )


# -- the caller in x-mesh-context


def caller_out(caller: Caller) -> str:
    """Who asks, as a header. What only the making of tokens needs is left out, and so is `is_local`: who is on the
    ingress's machine is on another one than the owner's."""
    said: dict[str, Any] = {name: getattr(caller, name) for name in _TEXTS}
    said |= {"role": caller.role, "scopes": sorted(caller.scopes)}
    kept = {name: value for name, value in said.items() if value is not None}
    if "key_name" in kept:  # people choose it; it is for people to read
        kept["key_name"] = kept["key_name"][:_TEXT_MAX]
    return base64.urlsafe_b64encode(json.dumps(kept, separators=(",", ":"), ensure_ascii=False).encode()).decode()


def caller_in(header: str) -> Caller:
    """The reverse. Raises InvalidRequest. What is unknown is ignored: a newer peer may say more."""
    try:
        if not header or len(header) > CONTEXT_BYTES_MAX:
            raise ValueError
        said = json.loads(base64.b64decode(header, altchars=b"-_", validate=True))
        values: dict[str, Any] = {name: _text(said[name]) for name in _TEXTS if said.get(name) is not None}
        role = said.get("role")
        scopes = said.get("scopes", [])
        if role not in (None, "admin", "viewer"):
            raise ValueError
        if type(scopes) is not list or len(scopes) > _SCOPES_MAX:
            raise ValueError
        return Caller(**values, role=role, scopes=frozenset(map(_text, scopes)))
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise InvalidRequest(
            f"Invalid header '{CONTEXT_HEADER}': it is not what a peer sends.", code="invalid_value"
        ) from None


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > _TEXT_MAX:
        raise ValueError
    return value
