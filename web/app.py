"""The whole HTTP surface in one list: method, path, handler and policy of every route; none is without policy.

A route that has an owner is answered by that peer, and passed on to it by all others (web.passing); the peer port of
each peer has the receiving side of those (web.passed). What a route takes and answers stands beside its handler.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from web import accounts, agents, assets, auth, control, history, logs, mesh, openapi, pages, settings
from web.border import Border, Handler, stamp
from web.dialects import openai, shapes
from web.guards import Policy
from web.inflight import IN_FLIGHT, InFlight
from web.passing import PassingOn
from web.route import ACCOUNTS, COORDINATOR, PEER, both_spellings
from web.route import Route as Route
from web.services import Services


def route_table(services: Services) -> list[Route]:
    """Every route there is."""
    table = [
        *_inference(services),
        *_machine(services),
        *_mesh(services),
        *_agents(services),
        *_history(services),
        *_auth(services),
        *_accounts(services),
        *_pages(services),
    ]
    description = openapi.OpenApiRoute(lambda: table, services.state.version)
    table.append(Route("GET", openapi.PATH, description.answer, Policy.LOCAL, openapi.SELF))
    return table


def _inference(services: Services) -> list[Route]:
    at = openai.OpenAIRoutes(services)
    return [
        Route("POST", "/v1/chat/completions", at.chat, Policy.INFERENCE, shapes.CHAT),
        Route("POST", "/v1/completions", at.completions, Policy.INFERENCE, shapes.COMPLETION),
        Route("POST", "/v1/embeddings", at.embeddings, Policy.INFERENCE, shapes.EMBEDDINGS),
        Route("GET", "/v1/models", at.models, Policy.INFERENCE, shapes.MODELS),
        Route("GET", "/v1/models/{id:.+}", at.model, Policy.INFERENCE, shapes.MODEL),
        Route("POST", "/api/chat", at.chat, Policy.INFERENCE, shapes.CHAT),
        Route("POST", "/api/generate", at.generate, Policy.INFERENCE, shapes.COMPLETION),
    ]


def _machine(services: Services) -> list[Route]:
    """This very peer: always answered here."""
    at, log = control.ControlRoutes(services), logs.LogsRoutes(services)
    return [
        Route("GET", "/api/status", at.status, Policy.LOCAL, control.STATUS),
        Route("GET", "/api/ps", at.ps, Policy.LOCAL, control.PS),
        Route("GET", "/api/logs", log.lines, Policy.ADMIN, logs.LINES),
        Route("GET", "/api/models", at.models, Policy.LOCAL, control.MODELS),
        Route("POST", "/api/models/import", at.import_model, Policy.CONTROL, control.IMPORT),
        Route("POST", "/api/models/load", at.load_model, Policy.ADMIN, control.LOAD),
        Route("POST", "/api/models/unload", at.unload_model, Policy.ADMIN, control.UNLOAD),
        Route("DELETE", "/api/models/{id:.+}", at.remove_model, Policy.ADMIN, control.REMOVE),
        Route("POST", "/api/shutdown", at.shutdown, Policy.CONTROL, control.SHUTDOWN),
    ]


def _mesh(services: Services) -> list[Route]:
    """Who is in the mesh; every full member may answer and sign, so nothing but the settings has an owner."""
    at, setting = mesh.MeshRoutes(services), settings.SettingsRoutes(services)
    return [
        Route("GET", "/api/mesh", at.overview, Policy.LOCAL, mesh.OVERVIEW),
        Route("GET", "/api/mesh/joins", at.joins, Policy.ADMIN, mesh.JOINS),
        Route("POST", "/api/mesh/door", at.door, Policy.ADMIN, mesh.DOOR),
        Route("POST", "/api/mesh/approve", at.approve, Policy.PERSON, mesh.APPROVE),
        Route("POST", "/api/mesh/deny", at.deny, Policy.ADMIN, mesh.DENY),
        Route("POST", "/api/mesh/invite", at.invite, Policy.PERSON, mesh.INVITE),
        Route("POST", "/api/mesh/peers/{id}/rename", at.rename, Policy.ADMIN, mesh.RENAME),
        Route("POST", "/api/mesh/peers/{id}/revoke", at.revoke, Policy.ADMIN, mesh.REVOKE),
        Route("POST", "/api/mesh/peers/{id}/trust", at.trust, Policy.PERSON, mesh.TRUST),
        Route("GET", "/api/mesh/identity", at.identity, Policy.CONTROL, mesh.IDENTITY),
        Route("POST", "/api/mesh/join", at.join, Policy.CONTROL, mesh.JOIN),
        Route("POST", "/api/mesh/leave", at.leave, Policy.CONTROL, mesh.LEAVE),
        Route("GET", "/api/settings", setting.settings, Policy.VIEW, settings.READ, COORDINATOR),
        Route("PUT", "/api/settings", setting.change, Policy.ADMIN, settings.CHANGE, COORDINATOR),
    ]


def _agents(services: Services) -> list[Route]:
    """Peers and registered servers, each route under both spellings."""
    at, seen, log = agents.AgentsRoutes(services), mesh.MeshRoutes(services), logs.LogsRoutes(services)
    one = "/api/agents/{id}"
    admin = Policy.ADMIN
    return [
        *both_spellings("GET", "/api/agents", seen.agents, Policy.LOCAL, mesh.AGENTS),
        *both_spellings("POST", "/api/agents", at.register, admin, agents.REGISTER, COORDINATOR),
        *both_spellings("GET", one, seen.peer, Policy.LOCAL, mesh.AGENT),
        *both_spellings("DELETE", one, at.delete, admin, agents.DELETE),
        *both_spellings("PUT", f"{one}/settings", at.settings, admin, agents.SETTINGS, COORDINATOR),
        *both_spellings("POST", f"{one}/disconnect", at.disconnect, admin, agents.DISCONNECT, COORDINATOR),
        *both_spellings("POST", f"{one}/enable", at.enable, admin, agents.ENABLE, COORDINATOR),
        *both_spellings("POST", f"{one}/metrics", at.metrics, Policy.AGENT, agents.METRICS, COORDINATOR),
        *both_spellings("GET", f"{one}/logs", log.lines, admin, logs.LINES_OF, PEER),
        Route("POST", "/api/backends", at.register_here, Policy.CONTROL, agents.REGISTER),
        Route("POST", "/api/health", at.heartbeat, Policy.AGENT, agents.HEARTBEAT, COORDINATOR),
    ]


def _history(services: Services) -> list[Route]:
    at = history.HistoryRoutes(services)
    records = "/api/dashboard/request-responses"
    view = Policy.VIEW
    return [
        Route("GET", records, at.records, view, history.RECORDS, COORDINATOR),
        Route("GET", f"{records}/export", at.export, view, history.EXPORT, COORDINATOR),
        Route("GET", records + "/{id}", at.record, view, history.RECORD, COORDINATOR),
        Route("GET", "/api/dashboard/stats", at.stats, view, history.STATS, COORDINATOR),
        Route("GET", "/api/dashboard/overview", at.overview, view, history.OVERVIEW, COORDINATOR),
        Route("GET", "/api/audit", at.audits, view, history.AUDITS, COORDINATOR),
    ]


def _auth(services: Services) -> list[Route]:
    """Logins are every peer's own business; so is the set-up, whose code one machine shows."""
    at = auth.AuthRoutes(services)
    return [
        Route("POST", "/api/auth/login", at.login, Policy.PUBLIC, auth.LOGIN),
        Route("POST", "/api/auth/logout", at.logout, Policy.SELF, auth.LOGOUT),
        Route("GET", "/api/auth/me", at.me, Policy.SELF, auth.ME),
        Route("POST", "/api/auth/password", at.password, Policy.SELF, auth.PASSWORD, ACCOUNTS),
        Route("GET", "/api/auth/setup", at.setup, Policy.PUBLIC, auth.SETUP),
        Route("POST", "/api/auth/setup", at.claim, Policy.PUBLIC, auth.CLAIM),
    ]


def _accounts(services: Services) -> list[Route]:
    """Users and keys: in every peer's memory, changed by the coordinator."""
    at = accounts.AccountsRoutes(services)
    user, key = "/api/users/{id}", "/api/api-keys/{id}"
    view, admin = Policy.VIEW, Policy.ADMIN
    return [
        Route("GET", "/api/users", at.users, view, accounts.USERS),
        Route("POST", "/api/users", at.create_user, admin, accounts.CREATE_USER, ACCOUNTS),
        Route("GET", user, at.user, view, accounts.USER),
        Route("PUT", user, at.change_user, admin, accounts.CHANGE_USER, ACCOUNTS),
        Route("DELETE", user, at.delete_user, admin, accounts.DELETE_USER, ACCOUNTS),
        Route("GET", "/api/api-keys", at.keys, view, accounts.KEYS),
        Route("POST", "/api/api-keys", at.create_key, admin, accounts.CREATE_KEY, ACCOUNTS),
        Route("GET", key, at.key, view, accounts.KEY),
        Route("PUT", key, at.change_key, admin, accounts.CHANGE_KEY, ACCOUNTS),
        Route("DELETE", key, at.delete_key, admin, accounts.DELETE_KEY, ACCOUNTS),
    ]


def _pages(services: Services) -> list[Route]:
    at = pages.PageRoutes(services)
    return [
        Route("GET", "/metrics", at.metrics, Policy.METRICS, pages.METRICS),
        Route("GET", "/health", at.health, Policy.PUBLIC, pages.HEALTH),
        Route("GET", "/ready", at.ready, Policy.PUBLIC, pages.READY),
        Route("GET", "/.well-known/llm-router", at.well_known, Policy.PUBLIC, pages.WELL_KNOWN),
        Route("GET", "/", at.root, Policy.PUBLIC, pages.ROOT),
        Route("GET", "/dashboard", at.dashboard, Policy.PUBLIC, pages.DASHBOARD),
        Route("GET", "/dashboard/{name}", assets.AssetRoutes().asset, Policy.PUBLIC, assets.ASSET),
    ]


def make_app(services: Services, in_flight: InFlight, routes: Sequence[Route] | None = None) -> web.Application:
    """The application that serves `routes` (the whole table). Raises TypeError for a route without policy."""
    table = route_table(services) if routes is None else routes
    passing = PassingOn(services)
    served = [(route, passing.handler_of(route)) for route in table]
    border = Border(services, in_flight, _policies(served))

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

    for route, handler in served:
        methods = ("GET", "HEAD") if route.method == "GET" else (route.method,)
        resource = app.router.add_resource(route.path)
        for method in methods:
            resource.add_route(method, handler, expect_handler=expect)
    return app


def _policies(served: Sequence[tuple[Route, Handler]]) -> dict[object, Policy]:
    """What each handler asks of its caller. Raises TypeError where that is unknown, or not the same everywhere."""
    found: dict[object, Policy] = {}
    for route, handler in served:
        if not isinstance(route.policy, Policy):
            raise TypeError(f"{route.method} {route.path} has no policy")
        if found.setdefault(handler, route.policy) is not route.policy:
            raise TypeError(f"{route.method} {route.path} has a handler that has another policy elsewhere")
    return found
