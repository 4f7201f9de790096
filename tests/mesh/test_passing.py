"""Passing on between peers: several, each with its client port and its peer port, over real sockets."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from inference.errors import ModelNotFound, ModelUnavailable
from mesh.calls import PeerCalls
from mesh.passing import NobodyAnswers, Passing, Patience
from tests.fixtures.managed import SERVER, Managed
from web.app import route_table
from web.listener import Listener
from web.passed import PREFIX, PassedRoutes, passed_routes
from web.services import Caller, Passed

TOKEN = "control-token-of-the-tests"
RECORDS = "/api/dashboard/request-responses"
PEER = web.RequestKey("peer", str)


@dataclass
class House:
    """Peers by name. Who coordinates, and where each listens, is what these fields say."""

    coordinator: dict[str, str | None] = field(default_factory=dict)  # as each peer sees it
    addresses: dict[str, tuple[str, ...]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    peers: dict[str, Peer] = field(default_factory=dict)
    guests: set[str] = field(default_factory=set)

    def resolve(self, who: str) -> str:
        if who not in self.addresses:
            raise ModelNotFound(f"There is no machine {who[:40]!r} in this mesh.", param="id", code="peer_not_found")
        return who


@dataclass
class Peer:
    """One of them."""

    name: str
    managed: Managed
    passing: Passing
    passed: PassedRoutes
    url: str
    session: aiohttp.ClientSession
    seen: list[str] = field(default_factory=list)  # what came in on its peer port
    awaited: list[str] = field(default_factory=list)

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any, dict[str, str]]:
        data = None if body is None else io.BytesIO(json.dumps(body).encode())
        names = {"Authorization": f"Bearer {TOKEN}"}
        async with self.session.request(method, self.url + path, data=data, headers=names) as got:
            text = await got.text()
            found = {name.lower(): value for name, value in got.headers.items()}
            return got.status, json.loads(text) if text and got.content_type == "application/json" else text, found


@asynccontextmanager
async def house(*names: str, patience: Patience | None = None) -> AsyncIterator[House]:
    """The first one coordinates."""
    found = House()
    async with AsyncExitStack() as stack:
        for name in names:
            found.coordinator[name] = names[0]
            found.versions[name] = "1"
            found.peers[name] = await _peer(found, name, stack, patience or Patience())
        yield found


async def _peer(house: House, name: str, stack: AsyncExitStack, patience: Patience) -> Peer:
    calls = PeerCalls(addresses=lambda peer: house.addresses.get(peer, ()), context_of=lambda peer: None)
    await stack.enter_async_context(calls)
    awaited: list[str] = []

    async def caught_up(version: str) -> None:
        awaited.append(version)
        while house.versions[name] != version:
            await asyncio.sleep(0.01)

    passing = Passing(
        calls=calls,
        me=name,
        coordinator=lambda: house.coordinator[name],
        resolve=house.resolve,
        is_alone=lambda: len(house.addresses) == 1,
        caught_up=caught_up,
        patience=patience,
    )
    managed = Managed()
    services = managed.services(TOKEN, passing=passing.facet)
    seen: list[str] = []

    @web.middleware
    async def noted(request: web.Request, handler: Any) -> web.StreamResponse:
        seen.append(f"{request.method} {request.path_qs}")
        answer: web.StreamResponse = await handler(request)
        return answer

    routes = route_table(services)
    passed, table = passed_routes(
        services,
        routes,
        peer_of=lambda request: "whoever",
        may_pass=lambda peer: name not in house.guests,
        version=lambda: house.versions[name],
    )
    app = web.Application(middlewares=[noted], client_max_size=0)
    for method, path, handler in table:
        app.router.add_route(method, path, handler)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    house.addresses[name] = (f"127.0.0.1:{runner.addresses[0][1]}",)
    listener = Listener(services, [("127.0.0.1", 0)], routes)
    await listener.start()
    stack.push_async_callback(listener.close, 0)
    session = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)))
    url = f"http://127.0.0.1:{listener.port}"
    return Peer(name, managed, passing, passed, url, session, seen, awaited)


@asynccontextmanager
async def deaf_peer() -> AsyncIterator[str]:
    """The address of something that takes connections and never answers."""
    writers: list[asyncio.StreamWriter] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        for writer in writers:
            writer.close()
        server.close()
        await server.wait_closed()


async def test_every_peer_answers_what_the_coordinator_knows() -> None:
    """C3-C4: any peer passes what the coordinator owns on to it."""
    async with house("tower", "attic") as mesh:
        tower, attic = mesh.peers["tower"], mesh.peers["attic"]
        for peer in (tower, attic):
            status, answer, _ = await peer.ask("GET", f"{RECORDS}?page=1&q=a%26b")
            assert (status, answer["total_count"]) == (200, 1)
        assert tower.managed.asked == [("records", {"page": "1", "q": "a&b"})] * 2
        assert (attic.managed.asked, attic.seen) == ([], [])
        assert [note.caller.key_id for note in tower.managed.notes] == ["control"]  # one look, whichever way it came


async def test_a_write_is_made_by_the_coordinator_and_awaited_here() -> None:
    async with house("tower", "attic") as mesh:
        tower, attic = mesh.peers["tower"], mesh.peers["attic"]
        mesh.versions["tower"] = "2"
        writing = asyncio.create_task(attic.ask("PUT", f"/api/agents/{SERVER}/settings", {"notes": "warm"}))
        async with asyncio.timeout(10):
            while not attic.awaited:
                await asyncio.sleep(0.01)
        assert not writing.done()
        mesh.versions["attic"] = "2"
        status, answer, _ = await writing
        assert (status, answer["notes"], attic.awaited) == (200, "warm", ["2"])
        assert tower.managed.asked == [("settings", SERVER, {"notes": "warm"})]


async def test_keys_and_users_are_made_by_the_coordinator_and_a_key_is_shown_once_by_the_peer_that_was_asked() -> None:
    async with house("tower", "attic") as mesh:
        tower, attic = (mesh.peers[name].managed.accounts for name in ("tower", "attic"))
        ask = mesh.peers["attic"].ask
        status, answer, headers = await ask("POST", "/api/api-keys", {"name": "scripts"})
        assert (status, answer["key"], headers["cache-control"]) == (201, "sk-mesh-k-secret", "no-store")
        assert (await ask("PUT", "/api/users/ann", {"role": "viewer"}))[0] == 200
        assert (await ask("DELETE", "/api/api-keys/scripts"))[0] == 204
        assert [call[0] for call in tower.asked] == ["create key", "change user", "delete key"]
        assert attic.asked == []
        assert [note.action for note in mesh.peers["tower"].managed.notes] == [
            "key.create",
            "user.change",
            "key.delete",
        ]


async def test_a_login_is_answered_where_it_is_asked_for() -> None:
    async with house("tower", "attic") as mesh:
        mesh.coordinator["attic"] = None
        body = {"username": "ann", "password": "open sesame"}
        status, answer, headers = await mesh.peers["attic"].ask("POST", "/api/auth/login", body)
        assert (status, answer["csrf"]) == (200, "csrf") and "HttpOnly" in headers["set-cookie"]
        assert mesh.peers["tower"].seen == []


async def test_what_changes_nothing_is_not_awaited() -> None:
    async with house("tower", "attic") as mesh:
        attic = mesh.peers["attic"]
        mesh.versions["tower"] = "2"
        assert (await attic.ask("GET", RECORDS))[0] == 200
        assert (await attic.ask("DELETE", "/api/agents/nobody"))[0] == 404
        assert (await attic.ask("PUT", "/api/settings", {"nonsense": 1}))[0] == 404
        assert attic.awaited == []


async def test_a_write_that_does_not_arrive_here_holds_nobody_up_for_long() -> None:
    async with house("tower", "attic", patience=Patience(catch_up_s=0.05)) as mesh:
        mesh.versions["tower"] = "2"
        status, _, _ = await mesh.peers["attic"].ask("POST", f"/api/agents/{SERVER}/disconnect")
        assert (status, mesh.peers["attic"].awaited) == (202, ["2"])


async def test_a_peer_without_coordinator_says_so_and_asks_nobody() -> None:
    async with house("tower", "attic") as mesh:
        attic = mesh.peers["attic"]
        mesh.coordinator["attic"] = None
        for method, path, body in (("GET", RECORDS, None), ("PUT", "/api/settings", {"history_days": 1})):
            status, answer, headers = await attic.ask(method, path, body)
            assert (status, headers["retry-after"]) == (503, "1") and "choosing" in answer["error"]
        assert mesh.peers["tower"].seen == []


async def test_a_peer_that_is_alone_owns_everything_before_it_is_elected() -> None:
    async with house("tower") as mesh:
        mesh.coordinator["tower"] = None
        assert (await mesh.peers["tower"].ask("GET", RECORDS))[0] == 200


async def test_two_peers_that_each_take_the_other_for_the_coordinator_pass_nothing_round() -> None:
    async with house("tower", "attic") as mesh:
        mesh.coordinator |= {"tower": "attic", "attic": "tower"}
        status, answer, headers = await mesh.peers["attic"].ask("POST", f"/api/agents/{SERVER}/disconnect")
        assert (status, headers["retry-after"]) == (503, "1") and "not the one" in answer["error"]
        assert mesh.peers["tower"].seen == [f"POST {PREFIX}/api/agents/{SERVER}/disconnect"]
        assert mesh.peers["attic"].seen == []
        assert mesh.peers["tower"].managed.asked == mesh.peers["attic"].managed.asked == []


async def test_a_coordinator_that_is_gone_is_503_and_nothing_is_sent_twice() -> None:
    async with house("tower", "attic") as mesh:
        mesh.addresses["tower"] = ("127.0.0.1:1",)
        status, answer, headers = await mesh.peers["attic"].ask("POST", f"/api/agents/{SERVER}/disconnect")
        assert (status, headers["retry-after"]) == (503, "1") and "cannot be reached" in answer["error"]
        mesh.addresses["tower"] = ()
        assert (await mesh.peers["attic"].ask("GET", RECORDS))[0] == 503


async def test_a_coordinator_that_says_nothing_is_given_up() -> None:
    async with house("tower", "attic", patience=Patience(begin_s=0.1)) as mesh, deaf_peer() as address:
        mesh.addresses["tower"] = (address,)
        status, _, headers = await mesh.peers["attic"].ask("GET", RECORDS)
        assert (status, headers["retry-after"]) == (503, "1")


async def test_who_waits_for_a_peer_that_is_found_dead_waits_no_longer() -> None:
    async with house("tower", "attic", patience=Patience(begin_s=1000)) as mesh:
        tower, attic = mesh.peers["tower"], mesh.peers["attic"]
        tower.managed.gate.clear()
        asking = [asyncio.create_task(attic.ask("GET", RECORDS)) for _ in range(3)]
        async with asyncio.timeout(10):
            while len(tower.managed.asked) < 3:
                await asyncio.sleep(0.01)
        attic.passing.gone("cellar")
        attic.passing.gone("tower")
        attic.passing.gone("tower")
        assert [status for status, _, _ in await asyncio.gather(*asking)] == [503] * 3
        tower.managed.gate.set()
        assert (await attic.ask("GET", RECORDS))[0] == 200


async def test_a_coordinator_of_an_older_version_is_named_as_the_reason() -> None:
    async with house("tower", "attic") as mesh:
        runner = web.AppRunner(web.Application())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        mesh.addresses["tower"] = (f"127.0.0.1:{runner.addresses[0][1]}",)
        status, answer, headers = await mesh.peers["attic"].ask("GET", RECORDS)
        assert (status, headers["retry-after"]) == (503, "1") and "another version" in answer["error"]
        await runner.cleanup()


async def test_a_guest_hears_that_it_is_one() -> None:
    async with house("tower", "attic") as mesh:
        mesh.guests.add("tower")
        status, answer, _ = await mesh.peers["attic"].ask("GET", RECORDS)
        assert status == 403 and "guest" in answer["error"]


async def test_logs_come_from_the_peer_that_is_named() -> None:
    async with house("tower", "attic", "cellar") as mesh:
        for name in mesh.peers:
            status, answer, _ = await mesh.peers["attic"].ask("GET", f"/api/agents/{name}/logs?limit=7")
            assert (status, answer[0]["message"]) == (200, "ready")
            assert mesh.peers[name].managed.asked == [("lines", {"limit": "7"})]
        status, answer, _ = await mesh.peers["attic"].ask("GET", "/api/nodes/nobody/logs")
        assert (status, answer) == (404, {"error": "There is no machine 'nobody' in this mesh."})
        mesh.addresses["cellar"] = ("127.0.0.1:1",)
        status, answer, _ = await mesh.peers["attic"].ask("GET", "/api/agents/cellar/logs")
        assert status == 503 and "That peer" in answer["error"]


async def test_a_large_body_arrives_whole() -> None:
    async with house("tower", "attic") as mesh:
        notes = "あ" * 1_000_000
        status, answer, _ = await mesh.peers["attic"].ask("PUT", "/api/settings", {"history_days": notes})
        assert (status, list(answer)) == (400, ["error"])  # the owner's own limit for a value
        assert mesh.peers["tower"].seen == [f"PUT {PREFIX}/api/settings"]


async def test_an_export_of_any_size_passes_through_as_it_is_made() -> None:
    async with house("tower", "attic") as mesh:
        tower, attic = mesh.peers["tower"], mesh.peers["attic"]
        tower.managed.pieces = [bytes([n % 256]) * 100_000 for n in range(300)]  # 30 MB
        names = {"Authorization": f"Bearer {TOKEN}"}
        async with attic.session.get(f"{attic.url}{RECORDS}/export?format=csv", headers=names) as got:
            assert got.headers["content-disposition"] == 'attachment; filename="request-responses.json"'
            assert got.content_type == "text/csv"
            assert await got.content.read(10) == b"\0" * 10
            made = -1
            while made != tower.managed.pieces_made:  # until it stands still: nobody reads
                made = tower.managed.pieces_made
                await asyncio.sleep(0.2)
            assert made < 200
            rest = await got.read()
        assert b"\0" * 10 + rest == b"".join(tower.managed.pieces)


async def test_an_export_that_breaks_at_the_coordinator_is_broken_at_the_client() -> None:
    async with house("tower", "attic") as mesh:
        tower = mesh.peers["tower"].managed
        tower.pieces, tower.broken_after = [b"x" * 100_000] * 10, 5
        with pytest.raises(aiohttp.ClientPayloadError):
            await mesh.peers["attic"].ask("GET", f"{RECORDS}/export")
        assert (await mesh.peers["attic"].ask("GET", RECORDS))[0] == 200


async def test_a_client_that_leaves_ends_the_work_at_the_coordinator() -> None:
    async with house("tower", "attic") as mesh:
        tower, attic = mesh.peers["tower"], mesh.peers["attic"]
        tower.managed.gate.clear()
        asking = asyncio.create_task(attic.ask("GET", RECORDS))
        async with asyncio.timeout(10):
            while not tower.managed.asked:
                await asyncio.sleep(0.01)
            asking.cancel()
            await tower.passed.stop(10)  # returns when nothing runs any more
        await asyncio.gather(asking, return_exceptions=True)


async def test_the_facet_raises_what_the_surface_answers_with() -> None:
    async with house("tower", "attic") as mesh:
        passing = mesh.peers["attic"].passing
        passed = Passed(method="GET", target=RECORDS, body=b"", content_type="", caller=Caller(ip=""), request_id="r")
        mesh.coordinator["attic"] = None
        with pytest.raises(NobodyAnswers) as found:
            async with passing.to_owner(passed):
                pass
        assert isinstance(found.value, ModelUnavailable)
        assert (found.value.status, found.value.retry_after_s, found.value.code) == (503, 1, "no_coordinator")
        assert (passing.is_owner(), passing.is_this_peer("attic"), passing.is_this_peer("nobody")) == (
            False, True, False,
        )  # fmt: skip
