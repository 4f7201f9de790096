"""The one middleware: request id, guards, errors, log and metrics for every request, whatever its route.

Nothing gets past it as an exception but a disconnect: every other error becomes an answer in the shape its path has.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from aiohttp import web

from inference.errors import InferenceError, InvalidRequest
from web import guards
from web.errors import HttpRefusal, error_response
from web.guards import Admission, Policy
from web.inflight import InFlight
from web.services import Caller, Principal, Services
from web.sparing import Sparing
from web.watch import RECHECK, Recheck, Watch

_log = logging.getLogger(__name__)
_access_log = logging.getLogger("web.access")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

CALLER = web.RequestKey("caller", Caller)
PRINCIPAL = web.RequestKey("principal", Principal)
"""Whose secret came with the request; not there when none did."""
LIMIT_HEADERS = web.RequestKey("limit_headers", dict[str, str])
"""What is left of the limits of the caller's key, for the answer."""
REQUEST_ID = web.RequestKey("request_id", str)
_CORS_ORIGIN = web.RequestKey("cors_origin", str)

# Opened by itself, an answer is a document too; pages and their files say more.
_NO_PAGE = "default-src 'none'; frame-ancestors 'none'"
# Which of two would count depends on who reads them, so two are none. aiohttp refuses a second Host or Content-Length.
_SAID_ONCE = (
    "Origin",
    "Authorization",
    "x-api-key",
    "api-key",
    "Cookie",
    "x-csrf-token",
    "Content-Encoding",
    "x-llm-router-timeout",
)
REQUEST_ID_MAX = 128
# A day: longer than any answer, short enough for every timer.
DEADLINE_S_MAX = 86_400.0
# What nginx calls a client that left; it is only ever logged and counted.
STATUS_CLIENT_LEFT = 499
# Asked every few seconds by machines; nobody wants to read about it.
_PROBES = frozenset({"/health", "/ready", "/metrics"})
STRANGERS_LOGGED_MAX = 600
STRANGERS_LOGGED_S = 60.0
"""So many requests a minute of callers that nobody knows are logged one by one: whoever sends them all day must not
fill the disk. Those who may use the peer are logged each time."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


_SECRETS = ("Authorization", "x-api-key", "api-key", "Cookie")
_REFUSALS = frozenset({401, 403, 429})
# What may run for long, and ends when its caller is revoked. The others are short, and may end their own login or key.
_LONG = frozenset({Policy.INFERENCE, Policy.VIEW})


class Border:
    """Guards, answers and counts each request. `policies` maps a handler of the route table to its policy."""

    def __init__(self, services: Services, in_flight: InFlight, policies: Mapping[object, Policy]) -> None:
        self._services = services
        self._in_flight = in_flight
        self._policies = policies
        self._strangers = Sparing()
        accounts = services.accounts
        self._secrets = guards.NOBODYS
        self._watch: Watch | None = None
        if accounts is not None:
            self._secrets = guards.Secrets(of_key=accounts.of_key, of_session=accounts.of_session)
            self._watch = Watch(in_flight, accounts.revoked)
            accounts.on_change(self._watch.look)

    async def answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The answer to `request`, errors included."""
        started = time.monotonic()
        request[REQUEST_ID] = request_id(request.headers.get("x-request-id"))
        status = STATUS_CLIENT_LEFT
        try:
            with self._in_flight.entered():
                response = await self._guarded(request, handler)
            status = response.status
            return response
        finally:
            self._record(request, status, time.monotonic() - started)

    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await self._admitted(request, handler)
        except InferenceError as error:
            if error.status in _REFUSALS and any(name in request.headers for name in _SECRETS):
                self._services.state.key_refused(error.status)
            return error_response(error, request.path)
        except web.HTTPException as answer:
            return error_response(_routing_error(answer, request), request.path)
        except asyncio.CancelledError:
            why = self._in_flight.why_stopped(request)
            if why is None or request.writer.output_size > 0 or not self._in_flight.was_stopped(request):
                raise
            return error_response(why, request.path)
        except ConnectionError:
            raise
        except Exception:  # noqa: BLE001 - the border: logged with its traceback, the caller gets a 500 and an id
            _log.exception("request failed", extra={"request": request[REQUEST_ID]})
            message = f"Something went wrong inside this peer; its log says more (request id {request[REQUEST_ID]})."
            return error_response(InferenceError(message, code="internal_error"), request.path)

    async def _admitted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        access, accounts = self._services.access, self._services.accounts
        if request.version < (1, 0):
            raise HttpRefusal(400, "This port speaks HTTP/1.1.", must_close=True)
        _check_header_size(request, self._services.limits.header_bytes)
        facts = facts_of(request)
        guards.check_host(facts, access)
        if guards.check_origin(facts, access) and request.path.startswith("/v1/"):
            request[_CORS_ORIGIN] = facts.headers["origin"]
            if request.method == "OPTIONS" and "access-control-request-method" in facts.headers:
                return _preflight_answer()
        if facts.headers.get("upgrade", "").lower() == "websocket":
            raise HttpRefusal(400, "There is no WebSocket at this URL.", must_close=True)
        policy = self._policies.get(request.match_info.handler)
        if policy is not None:  # no policy: no route, the handler raises 404 or 405
            admission = guards.admit(facts, access, policy, self._secrets)
            caller = request[CALLER] = _caller(facts, admission)
            if admission.principal is not None:
                request[PRINCIPAL] = admission.principal
                if accounts is not None:
                    request[RECHECK] = Recheck(partial(accounts.revoked, caller))
                if self._watch is not None and policy in _LONG:
                    with self._watch.watching(caller):
                        return await handler(request)
        return await handler(request)

    def _record(self, request: web.Request, status: int, seconds: float) -> None:
        resource = request.match_info.route.resource
        route = "unknown" if resource is None else resource.canonical
        method = request.method if request.method in _METHODS else "OTHER"
        self._services.state.observe(route, method, status, seconds)
        fields = {
            "method": method,
            "route": route,
            "status": status,
            "seconds": round(seconds, 3),
            "ip": request.remote,
            "request": request[REQUEST_ID],
        }
        caller = request.get(CALLER)
        if caller is None or not caller.scopes:
            stands_for = self._strangers.may_note(STRANGERS_LOGGED_MAX, STRANGERS_LOGGED_S)
            if stands_for == 0:
                return
            if stands_for > 1:
                fields["not_logged"] = stands_for - 1
        _access_log.log(logging.DEBUG if route in _PROBES else logging.INFO, "request answered", extra=fields)


def facts_of(request: web.BaseRequest) -> guards.Request:
    """What the guards need to know of `request`. Raises HttpRefusal when it says twice what it may say once."""
    for name in _SAID_ONCE:
        if len(request.headers.getall(name, ())) > 1:
            raise HttpRefusal(400, f"There is more than one header '{name}'; send one.", must_close=True)
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    return guards.Request(
        ip=str(peer[0]) if isinstance(peer, tuple) else "",
        is_http10=request.version < (1, 1),
        target=request.raw_path if request.method != "CONNECT" else "/",
        headers={name.lower(): value for name, value in request.headers.items()},
        hosts=tuple(request.headers.getall("Host", ())),
        method=request.method,
        path=request.path,
    )


def request_id(offered: str | None) -> str:
    """The caller's own id if it is short and printable, else a new one."""
    if offered and len(offered) <= REQUEST_ID_MAX and offered.isascii() and offered.isprintable():
        return offered
    return uuid.uuid4().hex


async def stamp(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Headers that every answer carries; runs just before they are sent."""
    response.headers["x-request-id"] = request.get(REQUEST_ID) or request_id(request.headers.get("x-request-id"))
    response.headers["Server"] = "llm-router"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Content-Security-Policy", _NO_PAGE)
    if request.path.startswith("/api/"):
        response.headers.setdefault("Cache-Control", "no-store")
    response.headers.update(request.get(LIMIT_HEADERS, {}))
    origin = request.get(_CORS_ORIGIN)
    if origin is not None:
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = (
            "x-request-id, x-llm-router-peer, x-llm-router-attempts, x-llm-router-candidates"
        )
        response.headers["Vary"] = "Origin"


def _preflight_answer() -> web.Response:
    return web.Response(
        status=204,
        headers={
            "Access-Control-Allow-Methods": "GET, POST",
            "Access-Control-Allow-Headers": "authorization, content-type, x-api-key, api-key, x-request-id, "
            "x-llm-router-timeout, x-llm-router-priority, x-llm-router-explain",
            "Access-Control-Max-Age": "600",
        },
    )


def _check_header_size(request: web.BaseRequest, bytes_max: int) -> None:
    """aiohttp bounds each header, this bounds their sum."""
    size = sum(len(name) + len(value) + 4 for name, value in request.raw_headers)
    if size > bytes_max:
        raise HttpRefusal(400, f"The headers have {size:,} bytes, the limit is {bytes_max:,}.", must_close=True)


def _caller(facts: guards.Request, admission: Admission) -> Caller:
    who = admission.principal or Principal()
    return Caller(
        ip=facts.ip,
        key_id=who.key_id,
        key_name=who.key_name,
        user_id=who.user_id,
        username=who.username,
        role=who.role,
        session_id=who.session_id,
        scopes=admission.scopes,
        models=who.models,
        recording=who.recording,
        is_local=admission.is_local,
        background=facts.headers.get("x-llm-router-priority", "").strip().lower() == "background",
        deadline_s=_deadline_s(facts.headers.get("x-llm-router-timeout")),
        explain=facts.headers.get("x-llm-router-explain", "").strip() == "1",
    )


def _deadline_s(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= DEADLINE_S_MAX:
        raise InvalidRequest(
            f"Invalid header 'x-llm-router-timeout': expected seconds > 0 and <= {DEADLINE_S_MAX:.0f}.",
            param="x-llm-router-timeout",
            code="invalid_value",
        )
    return seconds


def _routing_error(answer: web.HTTPException, request: web.Request) -> HttpRefusal:
    if isinstance(answer, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(answer.allowed_methods))
        return HttpRefusal(
            405,
            f"Not allowed to {request.method[:20]} on {request.path[:200]}; allowed: {allowed}.",
            code="method_not_allowed",
            headers={"Allow": allowed},
        )
    if isinstance(answer, web.HTTPNotFound):
        return HttpRefusal(
            404,
            f"Unknown request URL: {request.method[:20]} {request.path[:200]}. Please check the URL for typos.",
            code="unknown_url",
        )
    return HttpRefusal(answer.status, answer.reason)
