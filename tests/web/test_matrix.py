"""Every route, every kind of caller, every way to write a secret: who gets in.

The truth stands here in two tables, written from what was promised and not from the code: what kind of route each one
is, and whom each kind lets in. The handlers are stand-ins (what they do is tested elsewhere); routes, guards, keys and
logins are the real ones. A new route without a line here fails.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from gossip.identity import Identity
from mesh.accounts.book import USER
from tests.fixtures.book import MemoryBook
from tests.fixtures.peer_accounts import NOW, PERSON, peer_accounts
from tests.fixtures.scripted_mesh import services
from web.app import route_table
from web.border import Handler
from web.listener import Listener
from web.services import Access, Role

TOKEN = "control-token-of-the-matrix"
COOKIE = "llm_router_session"

KINDS: Mapping[str, str] = {
    # making tokens, and the models there are for it
    "POST /v1/chat/completions": "inference",
    "POST /v1/completions": "inference",
    "POST /v1/embeddings": "inference",
    "GET /v1/models": "inference",
    "GET /v1/models/{id:.+}": "inference",
    "POST /api/chat": "inference",
    "POST /api/generate": "inference",
    # who there is and what runs, without addresses
    "GET /api/status": "look around",
    "GET /api/ps": "look around",
    "GET /api/models": "look around",
    "GET /api/mesh": "look around",
    "GET /api/agents": "look around",
    "GET /api/nodes": "look around",
    "GET /api/agents/{id}": "look around",
    "GET /api/nodes/{id}": "look around",
    "GET /openapi.json": "look around",
    "GET /metrics": "metrics",
    # what the dashboard shows
    "GET /api/dashboard/request-responses": "administration, read",
    "GET /api/dashboard/request-responses/export": "administration, read",
    "GET /api/dashboard/request-responses/{id}": "administration, read",
    "GET /api/dashboard/stats": "administration, read",
    "GET /api/dashboard/overview": "administration, read",
    "GET /api/audit": "administration, read",
    "GET /api/settings": "administration, read",
    "GET /api/users": "administration, read",
    "GET /api/users/{id}": "administration, read",
    "GET /api/api-keys": "administration, read",
    "GET /api/api-keys/{id}": "administration, read",
    # what it changes
    "GET /api/logs": "administration",
    "GET /api/agents/{id}/logs": "administration",
    "GET /api/nodes/{id}/logs": "administration",
    "POST /api/models/load": "administration",
    "POST /api/models/unload": "administration",
    "DELETE /api/models/{id:.+}": "administration",
    "GET /api/mesh/joins": "administration",
    "POST /api/mesh/door": "administration",
    "POST /api/mesh/approve": "administration, in person",
    "POST /api/mesh/deny": "administration",
    "POST /api/mesh/invite": "administration, in person",
    "POST /api/mesh/peers/{id}/rename": "administration",
    "POST /api/mesh/peers/{id}/revoke": "administration",
    "POST /api/mesh/peers/{id}/trust": "administration, in person",
    "PUT /api/settings": "administration",
    "POST /api/agents": "administration",
    "POST /api/nodes": "administration",
    "DELETE /api/agents/{id}": "administration",
    "DELETE /api/nodes/{id}": "administration",
    "PUT /api/agents/{id}/settings": "administration",
    "PUT /api/nodes/{id}/settings": "administration",
    "POST /api/agents/{id}/disconnect": "administration",
    "POST /api/nodes/{id}/disconnect": "administration",
    "POST /api/agents/{id}/enable": "administration",
    "POST /api/nodes/{id}/enable": "administration",
    "POST /api/users": "administration",
    "PUT /api/users/{id}": "administration",
    "DELETE /api/users/{id}": "administration",
    "POST /api/api-keys": "administration",
    "PUT /api/api-keys/{id}": "administration",
    "DELETE /api/api-keys/{id}": "administration",
    # one's own login
    "POST /api/auth/logout": "login",
    "GET /api/auth/me": "login",
    "POST /api/auth/password": "login",
    # this machine and its membership
    "POST /api/models/import": "this machine",
    "POST /api/shutdown": "this machine",
    "GET /api/mesh/identity": "this machine",
    "POST /api/mesh/join": "this machine",
    "POST /api/mesh/leave": "this machine",
    "POST /api/backends": "this machine",
    # registered servers, whose own token the handler checks
    "POST /api/health": "anybody",
    "POST /api/agents/{id}/metrics": "anybody",
    "POST /api/nodes/{id}/metrics": "anybody",
    # the way in, and what tells nothing
    "POST /api/auth/login": "anybody",
    "GET /api/auth/setup": "anybody",
    "POST /api/auth/setup": "anybody",
    "GET /health": "anybody",
    "GET /ready": "anybody",
    "GET /.well-known/llm-router": "anybody",
    "GET /": "anybody",
    "GET /dashboard": "anybody",
    "GET /dashboard/{name}": "anybody",
}

ADMINS = {"control token", "admin key", "admin login"}
LET_IN: Mapping[str, set[str]] = {
    "inference": ADMINS | {"nobody, here", "inference key"},
    "look around": ADMINS
    | {"nobody, here", "cloud key", "inference key", "metrics key", "reading key", "viewer login"},
    "metrics": ADMINS | {"nobody, here", "metrics key"},
    "administration, read": ADMINS | {"reading key", "viewer login"},
    "administration": ADMINS,
    "administration, in person": {"control token", "admin login"},
    "login": {"control token", "admin login", "viewer login"},
    "this machine": {"control token"},
}
NOBODY = {"nobody, here", "nobody, elsewhere"}
WRONG = {"control token, elsewhere", "expired key", "revoked key", "ended login", "garbage"}
"""Whoever shows one of these is refused, and never served as somebody who shows nothing."""
KNOWN = ADMINS | {"cloud key", "inference key", "metrics key", "reading key", "viewer login"}


def expected(kind: str, caller: str) -> int:
    """The truth: the status of the answer."""
    if kind == "anybody" or caller in LET_IN[kind]:
        return 204
    return 403 if caller in KNOWN else 401


@dataclass(frozen=True, slots=True)
class Peer:
    """A surface with stand-in handlers, and a secret of each kind."""

    url: str
    secrets: Mapping[str, str]
    csrf: Mapping[str, str]
    session: aiohttp.ClientSession

    async def status(self, method: str, path: str, headers: list[tuple[str, str]]) -> int:
        async with self.session.request(
            method, self.url + re.sub(r"\{[^}]*\}", "x", path), headers=headers, allow_redirects=False
        ) as answer:
            return answer.status


def stand_in() -> Handler:
    """Each route has one of its own, as it has a handler of its own."""

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=204)

    return handler


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Peer]:
    book = MemoryBook()
    identity = Identity.generate()
    accounts = peer_accounts(tmp_path, book=book, identity=identity)
    secrets, csrf = {"control token": TOKEN, "control token, elsewhere": TOKEN, "garbage": "sk-mesh-garbage"}, {}
    scopes = {"cloud": ["cloud"], "inference": ["inference"], "metrics": ["metrics"], "reading": ["admin:read"]}
    for name, given in (scopes | {"admin": ["admin"], "expired": ["admin"], "revoked": ["admin"]}).items():
        made = await accounts.keys.create({"name": name, "scopes": given}, PERSON)
        secrets[f"{name} key"] = made["key"]
        if name == "expired":
            await accounts.keys.change(made["id"], {"expires_at": NOW}, PERSON)
        if name == "revoked":
            await accounts.keys.delete(made["id"], PERSON)
    roles: tuple[tuple[str, Role], ...] = (("admin", "admin"), ("viewer", "viewer"), ("ended", "admin"))
    for name, role in roles:
        user = {"username": name, "role": role, "epoch": 1, "password_hash": "none"}
        await book.put(f"{USER}id-{name}", user)
        issued = accounts.sessions.issue(f"id-{name}", name, role)
        secrets[f"{name} login"], csrf[f"{name} login"] = issued.token, issued.csrf
    await book.end(f"{USER}id-ended", "deleted")
    surface = dataclasses.replace(
        services(None, TOKEN), access=Access(hosts=frozenset(), control_token=TOKEN), accounts=accounts.facet
    )
    table = [dataclasses.replace(route, handler=stand_in()) for route in route_table(surface)]
    listener = Listener(surface, [("127.0.0.1", 0)], table)
    await listener.start()
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield Peer(f"http://127.0.0.1:{listener.port}", secrets, csrf, session)
    await listener.close(0)


SPELLINGS: Mapping[str, Callable[[str], list[tuple[str, str]]]] = {
    "Authorization": lambda s: [("Authorization", f"Bearer {s}")],
    "authorization, bearer": lambda s: [("authorization", f"bearer {s}")],
    "AUTHORIZATION, BEARER": lambda s: [("AUTHORIZATION", f"BEARER  {s} ")],
    "x-api-key": lambda s: [("x-api-key", s)],
    "X-Api-Key": lambda s: [("X-Api-Key", s)],
    "api-key": lambda s: [("api-key", s)],
    "API-KEY": lambda s: [("API-KEY", s)],
    "all three, the same": lambda s: [("Authorization", f"Bearer {s}"), ("x-api-key", s), ("api-key", s)],
}
ELSEWHERE = [("Via", "1.1 proxy")]
"""The tests have one machine: the sign of a proxy makes a caller as foreign as one on another."""
EVERYWHERE = {"control token"}


def test_every_route_has_a_line_and_every_line_a_route() -> None:
    table = [f"{route.method} {route.path}" for route in route_table(services(None, TOKEN))]
    assert sorted(table) == sorted(KINDS)
    assert set(KINDS.values()) <= {*LET_IN, "anybody"}


@pytest.mark.parametrize("route", KINDS)
async def test_whoever_shows_nothing(peer: Peer, route: str) -> None:
    method, path = route.split(" ")
    for each in (method, "HEAD") if method == "GET" else (method,):
        assert await peer.status(each, path, []) == expected(KINDS[route], "nobody, here")
        assert await peer.status(each, path, ELSEWHERE) == expected(KINDS[route], "nobody, elsewhere")


@pytest.mark.parametrize("route", KINDS)
async def test_whoever_shows_a_secret_however_it_is_written(peer: Peer, route: str) -> None:
    method, path = route.split(" ")
    for caller, secret in peer.secrets.items():
        truth = expected(KINDS[route], caller)
        where = [] if caller in EVERYWHERE else ELSEWHERE
        for spelling, headers in SPELLINGS.items():
            found = await peer.status(method, path, headers(secret) + where)
            assert found == truth, (route, caller, spelling)
        if caller not in ("control token, elsewhere", "control token"):  # on this machine a key is no more, and no less
            assert await peer.status(method, path, [("x-api-key", secret)]) == truth, (route, caller, "here")
        if method == "GET":
            assert await peer.status("HEAD", path, [("x-api-key", secret), *where]) == truth, (route, caller, "HEAD")


@pytest.mark.parametrize("route", KINDS)
async def test_whoever_shows_two_secrets_or_none_in_the_place_for_one(peer: Peer, route: str) -> None:
    method, path = route.split(" ")
    admin, other = peer.secrets["admin key"], peer.secrets["inference key"]
    truth = 204 if KINDS[route] == "anybody" else 401
    for headers in (
        [("Authorization", f"Bearer {admin}"), ("x-api-key", other)],
        [("Authorization", f"Bearer {other}"), ("api-key", admin)],
        [("x-api-key", admin), ("api-key", other)],
        [("x-api-key", admin), ("api-key", "")],
        [("Authorization", f"Basic {admin}")],
        [("Authorization", admin)],
        [("Authorization", "Bearer")],
        [("x-api-key", "")],
    ):
        assert await peer.status(method, path, headers) == truth, (route, headers)
    for name, value in (("Authorization", f"Bearer {admin}"), ("x-api-key", admin), ("X-API-KEY", admin)):
        assert await peer.status(method, path, [(name, value), (name, value)]) == 400, (route, name)


@pytest.mark.parametrize("route", KINDS)
@pytest.mark.parametrize("caller", ["admin login", "viewer login", "ended login"])
async def test_whoever_is_logged_in_by_cookie(peer: Peer, route: str, caller: str) -> None:
    """Cookies count on `/api/*` and the dashboard; elsewhere their bearer is whoever shows nothing."""
    method, path = route.split(" ")
    kind = KINDS[route]
    is_read = path.startswith("/api/")
    truth = expected(kind, caller if is_read else "nobody, elsewhere")
    cookie = ("Cookie", f"theme=dark; {COOKIE}={peer.secrets[caller]}")
    page = [("Origin", peer.url), ("x-csrf-token", peer.csrf[caller])]
    assert await peer.status(method, path, [cookie, *page, *ELSEWHERE]) == truth
    if method == "GET":
        assert await peer.status(method, path, [cookie, *ELSEWHERE]) == truth
        return
    for missing in ([page[0]], [page[1]], []):
        found = await peer.status(method, path, [cookie, *missing, *ELSEWHERE])
        refused = 401 if caller == "ended login" else 403
        assert found == (204 if kind == "anybody" else refused if is_read else truth), (route, missing)


@pytest.mark.parametrize("route", KINDS)
async def test_a_foreign_page_is_refused_whatever_it_shows(peer: Peer, route: str) -> None:
    method, path = route.split(" ")
    for secret in ([], [("x-api-key", peer.secrets["admin key"])], [("x-api-key", TOKEN)]):
        assert await peer.status(method, path, [("Origin", "https://evil.example"), *secret]) == 403
