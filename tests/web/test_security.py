"""What somebody tries over HTTP who may not: as a caller of the listener, and as a member on the peer port."""

from __future__ import annotations

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
from tests.web.test_passing import Elsewhere
from web.app import route_table
from web.guards import SCOPES
from web.hop import CONTEXT_HEADER
from web.listener import Listener
from web.passed import PREFIX, caller_out, passed_routes
from web.services import Caller, PassingFacet

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
        assert (await ask("POST", "/api/users", bob, caller))[0] == 403
        for scope in ("admin", "admin:read", "cloud"):
            assert (await ask("POST", "/api/api-keys", {"name": "x", "scopes": [scope]}, caller))[0] == 403
        assert (await ask("POST", "/api/api-keys", {"name": "x"}, caller))[0] == 201
        assert accounts.users.all() == []
    async with peer_port(accounts, confirmed=True) as ask:
        assert (await ask("POST", "/api/users", bob, caller))[0] == 201


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
