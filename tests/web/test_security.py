"""What somebody tries over HTTP who may not: as a caller of the listener, and as a member on the peer port."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from mesh.accounts.accounts import Accounts
from tests.fixtures.managed import Managed
from tests.fixtures.peer_accounts import PASSWORD, PERSON, peer_accounts
from tests.fixtures.scripted_mesh import LINE
from tests.web.test_passing import Elsewhere
from web import border
from web.app import route_table
from web.guards import SCOPES
from web.hop import CONTEXT_HEADER
from web.listener import Listener
from web.passed import PREFIX, caller_out, passed_routes
from web.services import Access, Caller, PassingFacet

TOKEN = "control-token-of-the-tests"
CONTROL = Caller(ip="", key_id="control", scopes=SCOPES)
ADMIN = Caller(ip="", user_id="made-up", username="anna", role="admin")


@pytest.fixture
async def accounts(tmp_path: Path) -> AsyncIterator[Accounts]:
    async with peer_accounts(tmp_path) as found:
        yield found


# -- what a member makes up of its callers


@asynccontextmanager
async def peer_port(accounts: Accounts, *, confirmed: bool) -> AsyncIterator[Any]:
    """Asks the coordinator as a member does: method, path, body, caller -> status, JSON."""
    passing = Elsewhere(is_owner=True)
    surface = replace(Managed().services(TOKEN, passing=passing.facet()), accounts=accounts.facet)
    _, table = passed_routes(
        surface,
        route_table(surface),
        peer_of=lambda request: "door",
        may_pass=lambda peer: True,
        is_confirmed=lambda peer: confirmed,
    )
    app = web.Application(client_max_size=0)
    for method, path, handler in table:
        app.router.add_route(method, path, handler)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def ask(method: str, path: str, body: Any, caller: Caller) -> tuple[int, Any]:
        headers = {"x-mesh-hop": "1", CONTEXT_HEADER: caller_out(caller)}
        async with session.request(method, url + PREFIX + path, data=json.dumps(body), headers=headers) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text else None

    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
            yield ask
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("caller", [CONTROL, ADMIN])
async def test_a_machine_that_nobody_confirmed_makes_no_administrator_by_a_caller_it_made_up(
    accounts: Accounts, caller: Caller
) -> None:
    bob = {"username": "bob", "password": PASSWORD, "role": "admin"}
    async with peer_port(accounts, confirmed=False) as ask:
        status, answer = await ask("POST", "/api/users", bob, caller)
        assert status == 403 and "open door" in answer["error"]
        for scope in ("admin", "admin:read", "cloud"):
            assert (await ask("POST", "/api/api-keys", {"name": "x", "scopes": [scope]}, caller))[0] == 403
        assert (await ask("POST", "/api/api-keys", {"name": "x"}, caller))[0] == 201
        assert accounts.users.all() == []
    async with peer_port(accounts, confirmed=True) as ask:
        assert (await ask("POST", "/api/users", bob, caller))[0] == 201


async def test_a_member_that_is_put_out_while_it_passes_something_on_changes_nothing(accounts: Accounts) -> None:
    members, was_asked = {"door"}, asyncio.Event()

    def may_pass(peer: str) -> bool:
        was_asked.set()
        return peer in members

    surface = replace(Managed().services(TOKEN, passing=Elsewhere(is_owner=True).facet()), accounts=accounts.facet)
    _, table = passed_routes(surface, route_table(surface), peer_of=lambda request: "door", may_pass=may_pass)
    app = web.Application(client_max_size=0)
    for method, path, handler in table:
        app.router.add_route(method, path, handler)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()

    async def body() -> AsyncIterator[bytes]:
        yield b'{"username": "bob", '
        await was_asked.wait()
        members.clear()
        yield b'"password": "long enough"}'

    try:
        headers = {"x-mesh-hop": "1", CONTEXT_HEADER: caller_out(CONTROL)}
        url = f"http://127.0.0.1:{runner.addresses[0][1]}{PREFIX}/api/users"
        async with aiohttp.ClientSession() as session, session.post(url, data=body(), headers=headers) as answer:
            assert answer.status == 401
    finally:
        await runner.cleanup()
    assert accounts.users.all() == []


async def test_a_machine_that_nobody_confirmed_changes_no_key_of_an_administrator(accounts: Accounts) -> None:
    made = await accounts.keys.create({"name": "ops", "scopes": ["admin"]}, PERSON)
    async with peer_port(accounts, confirmed=False) as ask:
        for method, body in (("PUT", {"models": ["x"]}), ("DELETE", None)):
            assert (await ask(method, f"/api/api-keys/{made['id']}", body, CONTROL))[0] == 403
    assert accounts.keys.of_secret(made["key"]) is not None


@pytest.mark.parametrize("keeps", [True, False])
async def test_passwords_and_keys_are_not_passed_to_a_coordinator_that_nobody_confirmed(
    accounts: Accounts, keeps: bool
) -> None:
    elsewhere = Elsewhere()
    facet: PassingFacet = replace(elsewhere.facet(), keeps_accounts=lambda: keeps)
    surface = replace(Managed().services(TOKEN, passing=facet), accounts=accounts.facet)
    listener = Listener(surface, [("127.0.0.1", 0)])
    await listener.start()
    try:
        url = f"http://127.0.0.1:{listener.port}"
        headers = {"Authorization": f"Bearer {TOKEN}"}
        body = {"username": "bob", "password": PASSWORD}
        async with aiohttp.ClientSession(headers=headers) as session:
            async with session.post(f"{url}/api/users", json=body) as answer:
                assert answer.status == (201 if keeps else 200)
            async with session.post(f"{url}/api/api-keys", json={"name": "x"}) as answer:
                assert answer.status == (201 if keeps else 200)
            async with session.get(f"{url}/api/settings") as answer:
                assert await answer.json() == {"from": "elsewhere"}
    finally:
        await listener.close(0)
    passed = [found.target for _, found in elsewhere.passed]
    assert passed == ["/api/settings"] if keeps else passed == ["/api/users", "/api/api-keys", "/api/settings"]


# -- a caller that is revoked while it sends


@pytest.fixture
async def peer(start: Any, accounts: Accounts, token: str) -> Any:
    """A surface with real accounts."""
    return await start(access=Access(hosts=frozenset({"attic.local"}), control_token=token), accounts=accounts.facet)


@pytest.mark.parametrize("kind", ["key", "login"])
async def test_who_is_revoked_while_its_body_is_on_its_way_changes_nothing(
    peer: Any, accounts: Accounts, kind: str
) -> None:
    made = await accounts.keys.create({"name": "ops", "scopes": ["admin"]}, PERSON)
    user = await accounts.users.create({"username": "anna", "password": PASSWORD, "role": "admin"}, PERSON)
    login = await accounts.login("anna", PASSWORD, Caller(ip="10.0.0.9"))
    secret = made["key"] if kind == "key" else login.token
    body = b'{"name": "mine"}'
    reader, writer = await peer.connect()
    head = (
        f"POST /api/api-keys HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {secret}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    )
    writer.write(head.encode())
    assert b"100 Continue" in await reader.readuntil(b"\r\n\r\n")  # its headers were looked at
    writer.write(body[:5])
    await writer.drain()
    await peer.ask("GET", "/health")
    if kind == "key":
        await accounts.keys.delete(made["id"], PERSON)
    else:
        await accounts.users.made("otto", PASSWORD, "admin", by="test")
        await accounts.users.delete(user["id"], PERSON)
    writer.write(body[5:])
    assert b" 401 " in await reader.readline()
    assert "mine" not in [key.name for key in accounts.keys.all()]


# -- bodies that anybody may send


@pytest.mark.parametrize("path", ["/api/health", "/api/agents/x/metrics", "/api/nodes/x/metrics"])
@pytest.mark.parametrize("is_owner", [True, False])
async def test_bodies_that_anybody_may_send_are_small(path: str, is_owner: bool) -> None:
    elsewhere = Elsewhere(is_owner=is_owner)
    listener = Listener(Managed().services(TOKEN, passing=elsewhere.facet()), [("127.0.0.1", 0)])
    await listener.start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{listener.port}") as session:
            body = json.dumps({"agent_id": "x", "junk": "x" * 100_000})
            async with session.post(path, data=body, headers={"Via": "1.1 lan", "X-Agent-Token": "x"}) as answer:
                assert answer.status == 413
    finally:
        await listener.close(0)
    assert elsewhere.passed == []


# -- what browsers make of answers


@pytest.mark.parametrize("path", ["/api/status", "/api/nothing", "/v1/models", "/health", "/metrics", "/openapi.json"])
async def test_no_answer_is_a_page_that_may_run_or_be_framed(peer: Any, path: str) -> None:
    """Whatever an answer holds, opened as a document it may do nothing: a member that means harm answers for others."""
    _, _, headers = await peer.ask("GET", path)
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["x-content-type-options"] == "nosniff"


async def test_the_owners_answer_cannot_become_a_page_that_runs_either() -> None:
    elsewhere = Elsewhere(headers={"content-type": "text/html", "content-security-policy": "x"}, pieces=[b"<script>"])
    listener = Listener(Managed().services(TOKEN, passing=elsewhere.facet()), [("127.0.0.1", 0)])
    await listener.start()
    try:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{listener.port}", headers=headers) as session,
            session.get("/api/settings") as answer,
        ):
            assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    finally:
        await listener.close(0)


@pytest.mark.parametrize("path", ["/api/status", "/api/users", "/api/auth/setup"])
async def test_what_the_api_tells_is_kept_by_no_cache(peer: Any, path: str) -> None:
    _, _, headers = await peer.ask("GET", path)
    assert headers["cache-control"] == "no-store"


# -- who seems to be on this machine


@pytest.mark.parametrize(
    "name",
    [
        "Forwarded",
        "Via",
        "X-Real-IP",
        "X-Forwarded",
        "X-Forwarded-For",
        "x-forwarded-host",
        "CF-Connecting-IP",
        "CF-Ray",
        "True-Client-IP",
        "X-Client-IP",
        "X-Cluster-Client-IP",
        "Fastly-Client-IP",
        "Fly-Client-IP",
        "X-Original-Forwarded-For",
        "X-Envoy-External-Address",
        "X-ARR-LOG-ID",
        "Tailscale-User-Login",
        "X-ProxyUser-IP",
    ],
)
async def test_what_came_through_a_proxy_of_any_kind_is_not_from_this_machine(peer: Any, name: str) -> None:
    assert (await peer.ask("GET", "/api/status"))[0] == 200
    answer = await peer.raw(
        f"GET /api/status HTTP/1.1\r\nHost: localhost\r\n{name}: x\r\nConnection: close\r\n\r\n".encode()
    )
    assert answer.split(b" ")[1] == b"401"


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_what_a_foreign_page_loads_is_not_from_this_machine(peer: Any, site: str) -> None:
    """Browsers say so also where they send no Origin: pictures, scripts, and forms that only get."""
    for path in ("/v1/models", "/api/status", "/metrics"):
        assert (await peer.ask("GET", path, sec_fetch_site=site, sec_fetch_mode="no-cors"))[0] in (401, 403)
        assert (await peer.ask("GET", path, sec_fetch_site="same-origin"))[0] == 200
        assert (await peer.ask("GET", path, sec_fetch_site="none"))[0] == 200
    for path in ("/", "/dashboard"):  # a link to it may stand anywhere
        assert (await peer.ask("GET", path, sec_fetch_site=site, sec_fetch_mode="navigate"))[0] in (200, 302)


# -- what is done to the mesh is written down


@pytest.mark.parametrize(
    ("path", "body", "action", "target"),
    [
        ("/api/mesh/door", {"minutes": 5}, "mesh.door", ""),
        ("/api/mesh/approve", {"who": "481920"}, "peer.approve", "cellar"),
        ("/api/mesh/deny", {"who": "r1"}, "peer.deny", "cellar"),
        ("/api/mesh/invite", {}, "mesh.invite", ""),
        ("/api/mesh/join", {"to": LINE}, "mesh.join", ""),
        ("/api/mesh/leave", None, "mesh.leave", "tower"),
        ("/api/mesh/peers/attic/rename", {"name": "loft"}, "peer.rename", "loft"),
        ("/api/mesh/peers/attic/revoke", None, "peer.revoke", "attic"),
        ("/api/mesh/peers/kitchen/trust", None, "peer.trust", "kitchen"),
    ],
)
async def test_who_governs_the_mesh_is_in_the_audit_log(path: str, body: Any, action: str, target: str) -> None:
    managed = Managed()
    listener = Listener(managed.services(TOKEN), [("127.0.0.1", 0)])
    await listener.start()
    try:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{listener.port}", headers=headers) as session,
            session.post(path, json=body) as answer,
        ):
            assert answer.status < 300, await answer.text()
    finally:
        await listener.close(0)
    (note,) = managed.notes
    assert (note.action, note.target, note.caller.key_id) == (action, target, "control")
    assert "secret" not in repr(note)  # the line of an invitation holds one


# -- what anybody may make this peer keep


async def test_callers_that_nobody_knows_do_not_fill_the_log(
    peer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "web.access")
    monkeypatch.setattr(border, "STRANGERS_LOGGED_MAX", 3)
    for path in ("/api/users", "/nothing", "/", "/dashboard", "/api/auth/setup", "/v1/models"):
        await peer.ask("GET", path, via="1.1 lan")
        await peer.ask("GET", path, host="evil.example")
        await peer.ask("GET", path, via="1.1 lan", authorization="Bearer wrong")
    assert len(caplog.records) == 3
    await peer.ask("GET", "/v1/models")  # who may use it is logged each time
    await peer.ask("GET", "/v1/models")
    assert len(caplog.records) == 5
    monkeypatch.setattr(border, "STRANGERS_LOGGED_S", 0.0)
    await peer.ask("GET", "/nothing")
    assert caplog.records[-1].__dict__["not_logged"] == 15
