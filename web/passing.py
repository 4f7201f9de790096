"""The ingress side of passing on: what another peer answers goes to it in one hop, and its answer comes back as it is.

A route's owner stands in the route table. The guards have let the caller in before anything here runs; its key or
cookie stays here, and the owner hears who it is (web.passed). Bodies are bounded as everywhere, answers are handed on
as they come, no faster than the client reads.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from urllib.parse import quote

from aiohttp import web

from inference.errors import ModelUnavailable
from inference.openai.fields import bad_value
from web.body import for_anybody, held_body
from web.border import CALLER, REQUEST_ID, Handler
from web.download import downloaded
from web.guards import Policy
from web.route import ACCOUNTS, PEER, Route
from web.services import Passed, PassedAnswer, Services

# What the owner may say besides status and body; everything else is the ingress's own to say.
_KEPT = ("content-type", "content-disposition", "retry-after")
# What its handlers read besides the body.
_PASSED = ("x-agent-token",)

_Way = Callable[[Passed], AbstractAsyncContextManager[PassedAnswer]]


class PassingOn:
    """Makes the handler of each route that has an owner."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def handler_of(self, route: Route) -> Handler:
        """What answers `route` on this peer: its own handler, here or at its owner."""
        passing = self._services.passing
        if route.owned is None or passing is None:
            return route.handler

        async def at_the_coordinator(request: web.Request) -> web.StreamResponse:
            if passing.is_owner() or (route.owned == ACCOUNTS and passing.keeps_accounts()):
                return await route.handler(request)
            return await self._passed(request, route, passing.to_owner)

        async def at_that_peer(request: web.Request) -> web.StreamResponse:
            who = request.match_info["id"]
            if passing.is_this_peer(who):
                return await route.handler(request)
            return await self._passed(request, route, lambda passed: passing.to_peer(who, passed))

        return at_that_peer if route.owned == PEER else at_the_coordinator

    async def _passed(self, request: web.Request, route: Route, way: _Way) -> web.StreamResponse:
        limits = self._services.limits
        async with held_body(request, for_anybody(limits) if route.policy is Policy.AGENT else limits) as body:
            passed = Passed(
                method=route.method,
                target=_target(request, route),
                body=body,
                content_type="application/json",
                caller=request[CALLER],
                request_id=request[REQUEST_ID],
                headers={name: request.headers[name] for name in _PASSED if name in request.headers},
            )
            async with self._counted(way(passed)) as answer:
                headers = {name: answer.headers[name] for name in _KEPT if name in answer.headers}
                headers["Cache-Control"] = "no-store"  # whatever it is, it is somebody's: a key that is shown once, say
                if answer.status == 401:
                    headers["WWW-Authenticate"] = "Bearer"
                return await downloaded(request, status=answer.status, headers=headers, chunks=answer.chunks)

    @asynccontextmanager
    async def _counted(self, asked: AbstractAsyncContextManager[PassedAnswer]) -> AsyncIterator[PassedAnswer]:
        """The same, counted by how it began."""
        count = self._services.state.passed_on
        async with AsyncExitStack() as stack:
            try:
                answer = await stack.enter_async_context(asked)
            except ModelUnavailable:
                count("nobody")
                raise
            count("ok" if answer.status < 400 else "refused" if answer.status < 500 else "failed")
            yield answer


def _target(request: web.Request, route: Route) -> str:
    """Path and query as the owner's table has them, whatever way the client wrote them."""
    path = route.path
    for name, value in request.match_info.items():
        if value in (".", ".."):  # clients of HTTP take such a segment out, and ask for something else
            raise bad_value(name, "it names nobody")
        path = path.replace("{" + name + "}", quote(value, safe=""))
    query = request.rel_url.raw_query_string
    return f"{path}?{query}" if query else path
