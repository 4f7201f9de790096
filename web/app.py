"""The whole HTTP surface in one list: method, path, handler and policy of every route; none is without policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aiohttp import web

from web.border import Border, Handler, stamp
from web.control import ControlRoutes
from web.dialects.openai import OpenAIRoutes
from web.guards import Policy
from web.inflight import IN_FLIGHT, InFlight
from web.mesh import MeshRoutes
from web.pages import PageRoutes
from web.services import Services


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the table."""

    method: str
    path: str
    handler: Handler
    policy: Policy


def route_table(services: Services) -> list[Route]:
    """Every route there is."""
    openai = OpenAIRoutes(services)
    control = ControlRoutes(services)
    mesh = MeshRoutes(services)
    pages = PageRoutes(services)
    return [
        Route("POST", "/v1/chat/completions", openai.chat, Policy.INFERENCE),
        Route("POST", "/v1/completions", openai.completions, Policy.INFERENCE),
        Route("POST", "/v1/embeddings", openai.embeddings, Policy.INFERENCE),
        Route("GET", "/v1/models", openai.models, Policy.INFERENCE),
        Route("GET", "/v1/models/{id:.+}", openai.model, Policy.INFERENCE),
        Route("POST", "/api/chat", openai.chat, Policy.INFERENCE),
        Route("POST", "/api/generate", openai.generate, Policy.INFERENCE),
        Route("GET", "/api/status", control.status, Policy.LOCAL),
        Route("GET", "/api/ps", control.ps, Policy.LOCAL),
        Route("GET", "/api/models", control.models, Policy.LOCAL),
        Route("POST", "/api/models/import", control.import_model, Policy.CONTROL),
        Route("POST", "/api/models/load", control.load_model, Policy.CONTROL),
        Route("POST", "/api/models/unload", control.unload_model, Policy.CONTROL),
        Route("DELETE", "/api/models/{id:.+}", control.remove_model, Policy.CONTROL),
        Route("POST", "/api/shutdown", control.shutdown, Policy.CONTROL),
        Route("GET", "/api/mesh", mesh.overview, Policy.LOCAL),
        Route("GET", "/api/agents", mesh.agents, Policy.LOCAL),
        Route("GET", "/api/agents/{id}", mesh.peer, Policy.LOCAL),
        Route("GET", "/api/nodes", mesh.agents, Policy.LOCAL),
        Route("GET", "/api/nodes/{id}", mesh.peer, Policy.LOCAL),
        Route("GET", "/api/mesh/identity", mesh.identity, Policy.CONTROL),
        Route("GET", "/api/mesh/joins", mesh.joins, Policy.CONTROL),
        Route("POST", "/api/mesh/door", mesh.door, Policy.CONTROL),
        Route("POST", "/api/mesh/approve", mesh.approve, Policy.CONTROL),
        Route("POST", "/api/mesh/deny", mesh.deny, Policy.CONTROL),
        Route("POST", "/api/mesh/invite", mesh.invite, Policy.CONTROL),
        Route("POST", "/api/mesh/join", mesh.join, Policy.CONTROL),
        Route("POST", "/api/mesh/leave", mesh.leave, Policy.CONTROL),
        Route("POST", "/api/mesh/peers/{id}/rename", mesh.rename, Policy.CONTROL),
        Route("POST", "/api/mesh/peers/{id}/revoke", mesh.revoke, Policy.CONTROL),
        Route("POST", "/api/mesh/peers/{id}/trust", mesh.trust, Policy.CONTROL),
        Route("GET", "/metrics", pages.metrics, Policy.LOCAL),
        Route("GET", "/health", pages.health, Policy.PUBLIC),
        Route("GET", "/ready", pages.ready, Policy.PUBLIC),
        Route("GET", "/.well-known/llm-router", pages.well_known, Policy.PUBLIC),
        Route("GET", "/", pages.root, Policy.PUBLIC),
        Route("GET", "/dashboard", pages.dashboard, Policy.PUBLIC),
    ]


def make_app(services: Services, in_flight: InFlight, routes: Sequence[Route] | None = None) -> web.Application:
    """The application that serves `routes` (the whole table). Raises TypeError for a route without policy."""
    table = route_table(services) if routes is None else routes
    for route in table:
        if not isinstance(route.policy, Policy):
            raise TypeError(f"{route.method} {route.path} has no policy")
    border = Border(services, in_flight, {route.handler: route.policy for route in table})

    @web.middleware
    async def answered(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await border.answer(request, handler)

    app = web.Application(middlewares=[answered])
    app[IN_FLIGHT] = in_flight
    app.on_response_prepare.append(stamp)

    async def expect(request: web.Request) -> None:
        """Lets a client go on that asks first, unless its body would be refused; other expectations are ignored."""
        is_welcome = (request.content_length or 0) <= services.limits.body_bytes
        if request.headers["Expect"].lower() == "100-continue" and is_welcome:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # an interim answer is not the answer

    for route in table:
        methods = ("GET", "HEAD") if route.method == "GET" else (route.method,)
        resource = app.router.add_resource(route.path)
        for method in methods:
            resource.add_route(method, route.handler, expect_handler=expect)
    return app
