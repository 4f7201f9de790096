"""Passing on: what leaves the ingress and what comes back, and who gets what on the peer port. Real sockets."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import InvalidRequest, ModelUnavailable
from tests.fixtures.managed import AGENT_TOKEN, SERVER, Managed
from tests.fixtures.scripted_mesh import ATTIC, Refused
from web.app import route_table
from web.guards import SCOPES, Policy
from web.hop import CONTEXT_HEADER
from web.listener import Listener
from web.passed import PREFIX, VERSION_HEADER, PassedRoutes, admits, caller_in, caller_out, passed_routes
from web.route import Route
from web.services import AccountsFacet, Caller, Limits, Passed, PassedAnswer, PassingFacet, Services

TOKEN = "control-token-of-the-tests"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
RECORDS = "/api/dashboard/request-responses"


@dataclass
class Elsewhere:
    """The other peer, as its answers: a PassingFacet that remembers what was passed."""

    is_owner: bool = False
    me: str = "tower"
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    pieces: list[bytes] = field(default_factory=lambda: [b'{"from": "elsewhere"}'])
    error: Exception | None = None
    broken_after: int | None = None
    pieces_made: int = 0
    passed: list[tuple[str, Passed]] = field(default_factory=list)

    def facet(self) -> PassingFacet:
        return PassingFacet(
            is_owner=lambda: self.is_owner,
            to_owner=lambda passed: self._answer("owner", passed),
            is_this_peer=lambda who: who == self.me,
            to_peer=self._answer,
        )

    @asynccontextmanager
    async def _answer(self, who: str, passed: Passed) -> AsyncIterator[PassedAnswer]:
        self.passed.append((who, passed))
        if self.error is not None:
            raise self.error
        yield PassedAnswer(status=self.status, headers=self.headers, chunks=self._chunks())

    async def _chunks(self) -> AsyncIterator[bytes]:
        for number, piece in enumerate(self.pieces):
            if number == self.broken_after:
                raise ModelUnavailable("The coordinator went away.", retry_after_s=1)
            self.pieces_made += 1
            yield piece


@dataclass(frozen=True)
class Ingress:
    """A listener whose peer owns nothing, unless told otherwise."""

    managed: Managed
    elsewhere: Elsewhere
    listener: Listener
    url: str
    session: aiohttp.ClientSession

    async def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] = ADMIN
    ) -> tuple[int, Any, dict[str, str]]:
        data = None if body is None else json.dumps(body)
        async with self.session.request(method, self.url + path, data=data, headers=headers) as got:
            text = await got.text()
            found = {name.lower(): value for name, value in got.headers.items()}
            return got.status, json.loads(text) if text and got.content_type == "application/json" else text, found


@asynccontextmanager
async def ingress(limits: Limits | None = None) -> AsyncIterator[Ingress]:
    managed, elsewhere = Managed(), Elsewhere()
    listener = Listener(managed.services(TOKEN, passing=elsewhere.facet(), limits=limits), [("127.0.0.1", 0)])
    await listener.start()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
            yield Ingress(managed, elsewhere, listener, f"http://127.0.0.1:{listener.port}", session)
    finally:
        await listener.close(0)


# -- the ingress


async def test_what_the_coordinator_owns_goes_to_it_with_the_caller_and_without_its_secret() -> None:
    async with ingress() as peer:
        headers = ADMIN | {"x-request-id": "q1", "Cookie": "a=b", "x-mesh-context": "forged", "x-mesh-hop": "1"}
        body = {"custom_name": "loft"}
        status, answer, got = await peer.ask("PUT", f"/api/nodes/{SERVER}/settings?a=%26&b=1", body, headers)
        assert (status, answer, got["x-request-id"]) == (200, {"from": "elsewhere"}, "q1")
        ((who, passed),) = peer.elsewhere.passed
        assert who == "owner" and passed == Passed(
            method="PUT",
            target=f"/api/nodes/{SERVER}/settings?a=%26&b=1",
            body=json.dumps(body).encode(),
            content_type="application/json",
            caller=Caller(ip="127.0.0.1", key_id="control", scopes=SCOPES, is_local=True),
            request_id="q1",
        )
        assert peer.managed.asked == []


async def test_the_coordinator_itself_answers_at_once() -> None:
    async with ingress() as peer:
        peer.elsewhere.is_owner = True
        status, answer, _ = await peer.ask("GET", RECORDS)
        assert (status, answer["total_count"], peer.elsewhere.passed) == (200, 1, [])


async def test_an_agents_token_is_passed_on_with_what_it_is_for() -> None:
    async with ingress() as peer:
        await peer.ask("POST", "/api/health", {"agent_id": SERVER}, {"X-Agent-Token": AGENT_TOKEN})
        assert peer.elsewhere.passed[0][1].headers == {"x-agent-token": AGENT_TOKEN}


async def test_logs_are_asked_of_the_peer_that_has_them() -> None:
    async with ingress() as peer:
        status, answer, _ = await peer.ask("GET", "/api/agents/attic/logs?limit=5")
        assert (status, answer) == (200, {"from": "elsewhere"})
        assert [(who, passed.target) for who, passed in peer.elsewhere.passed] == [
            ("attic", "/api/agents/attic/logs?limit=5")
        ]
        status, answer, _ = await peer.ask("GET", "/api/nodes/tower/logs?limit=5")
        assert (status, answer[0]["message"]) == (200, "ready")
        assert peer.managed.asked == [("lines", {"limit": "5"})]


async def test_of_the_answer_only_status_body_and_three_headers_come_back() -> None:
    async with ingress() as peer:
        peer.elsewhere.status = 503
        peer.elsewhere.headers = {
            "content-type": "text/csv; charset=utf-8",
            "content-disposition": 'attachment; filename="a.csv"',
            "retry-after": "3",
            "set-cookie": "session=stolen",
            "access-control-allow-origin": "*",
            "content-length": "7",
            VERSION_HEADER: "9",
        }
        status, text, headers = await peer.ask("GET", f"{RECORDS}/export")
        assert (status, text) == (503, '{"from": "elsewhere"}')
        assert headers["content-type"] == "text/csv; charset=utf-8"
        assert headers["content-disposition"] == 'attachment; filename="a.csv"'
        assert (headers["retry-after"], headers["content-length"]) == ("3", "21")
        assert not headers.keys() & {"set-cookie", "access-control-allow-origin", VERSION_HEADER}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", RECORDS, None),
        ("PUT", "/api/settings", {"history_days": 3}),
        ("POST", f"/api/agents/{SERVER}/disconnect", None),
        ("GET", "/api/agents/attic/logs", None),
    ],
)
async def test_during_an_election_the_answer_is_503_and_when_to_ask_again(method: str, path: str, body: Any) -> None:
    async with ingress() as peer:
        peer.elsewhere.error = ModelUnavailable("The mesh is choosing a coordinator.", retry_after_s=1)
        status, answer, headers = await peer.ask(method, path, body)
        assert (status, answer, headers["retry-after"]) == (503, {"error": "The mesh is choosing a coordinator."}, "1")


async def test_nobody_is_asked_for_a_caller_that_the_guards_refuse() -> None:
    async with ingress() as peer:
        for method, path in (
            ("GET", RECORDS),
            ("POST", f"/api/agents/{SERVER}/enable"),
            ("GET", "/api/agents/attic/logs"),
        ):
            for headers in ({}, {"Authorization": "Bearer guessed"}, ADMIN | {"Via": "1.1 proxy"}):
                status, answer, _ = await peer.ask(method, path, headers=headers)
                assert (status, list(answer)) == (401, ["error"])
        status, _, _ = await peer.ask(
            "POST", f"/api/agents/{SERVER}/enable", headers=ADMIN | {"Origin": "http://evil.test"}
        )
        assert status == 403
        assert peer.elsewhere.passed == []


async def test_a_body_is_read_under_the_limits_before_anybody_else_is_asked() -> None:
    async with ingress(Limits(body_bytes=1000)) as peer:
        path = "/api/settings"
        assert (await peer.ask("PUT", path, {"a": "x" * 2000}))[0] == 413
        bomb = {"Content-Encoding": "gzip"} | ADMIN
        async with peer.session.put(peer.url + path, data=gzip.compress(b" " * 10**6), headers=bomb) as got:
            assert got.status == 413
        form = {"Sec-Fetch-Mode": "cors", "Content-Type": "text/plain"} | ADMIN
        async with peer.session.put(peer.url + path, data=b"{}", headers=form) as got:
            assert got.status == 415
        assert peer.elsewhere.passed == []
        async with peer.session.put(peer.url + path, data=gzip.compress(b'{"a": 1}'), headers=bomb) as got:
            assert got.status == 200
        assert peer.elsewhere.passed[0][1].body == b'{"a": 1}'


@pytest.mark.parametrize(
    ("written", "target"),
    [
        ("/api/agents/a%2Fb%3Fc/settings", "/api/agents/a%2Fb%3Fc/settings"),
        ("/api/agents/%E3%81%82/settings?x", "/api/agents/%E3%81%82/settings?x"),
        ("/api/agents/%41b/settings", "/api/agents/Ab/settings"),
        ("http://localhost/api/agents/x/settings?a=1", "/api/agents/x/settings?a=1"),
    ],
)
async def test_the_owner_is_asked_for_the_route_that_was_admitted(written: str, target: str) -> None:
    async with ingress() as peer:
        answer = await _raw(peer, f"PUT {written} HTTP/1.1")
        assert answer.startswith(b"HTTP/1.1 200")
        assert [passed.target for _, passed in peer.elsewhere.passed] == [target]


@pytest.mark.parametrize("segment", ["..", "%2e%2e", ".", "%2E"])
async def test_a_segment_that_would_change_the_path_is_passed_to_nobody(segment: str) -> None:
    async with ingress() as peer:
        answer = await _raw(peer, f"PUT /api/agents/{segment}/settings HTTP/1.1")
        assert answer.split()[1] in (b"400", b"404")
        assert peer.elsewhere.passed == []


async def _raw(peer: Ingress, line: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(peer.url.rpartition(":")[2]))
    head = [line, "Host: localhost", f"Authorization: Bearer {TOKEN}", "Content-Length: 2", "Connection: close"]
    writer.write("\r\n".join([*head, "", "{}"]).encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_a_head_request_gets_no_body_and_reads_none() -> None:
    async with ingress() as peer:
        peer.elsewhere.pieces = [b"x" * 1000] * 1000
        status, text, headers = await peer.ask("HEAD", f"{RECORDS}/export")
        assert (status, text, headers["content-type"]) == (200, "", "application/json")
        assert peer.elsewhere.pieces_made == 0 and peer.elsewhere.passed[0][1].method == "GET"


async def test_a_long_answer_is_made_no_faster_than_it_is_read() -> None:
    async with ingress() as peer:
        piece = b"x" * 64 * 1024
        peer.elsewhere.pieces = [piece] * 1000  # 64 MB
        reader, writer = await asyncio.open_connection("127.0.0.1", int(peer.url.rpartition(":")[2]), limit=2**16)
        writer.write(
            f"GET {RECORDS}/export HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
        )
        await reader.readuntil(b"\r\n\r\n")
        made = -1
        while made != peer.elsewhere.pieces_made:  # until it stands still
            made = peer.elsewhere.pieces_made
            await asyncio.sleep(0.2)
        assert made < 500
        size = 0
        while size < 64 * 1024 * 1000:
            size += len(await reader.read(2**20))
        assert peer.elsewhere.pieces_made == 1000
        writer.close()
        await writer.wait_closed()


async def test_an_answer_that_breaks_off_does_not_look_complete() -> None:
    async with ingress() as peer:
        peer.elsewhere.pieces, peer.elsewhere.broken_after = [b"x" * 64 * 1024] * 5, 3
        with pytest.raises(aiohttp.ClientPayloadError):
            await peer.ask("GET", f"{RECORDS}/export")
        peer.elsewhere.broken_after = 0
        status, answer, headers = await peer.ask("GET", f"{RECORDS}/export")
        assert (status, answer, headers["retry-after"]) == (503, {"error": "The coordinator went away."}, "1")


async def test_an_answer_that_this_peer_does_not_finish_because_it_stops_does_not_look_complete() -> None:
    async with ingress() as peer:
        peer.elsewhere.pieces = [b"x" * 64 * 1024] * 1000
        async with peer.session.get(f"{peer.url}{RECORDS}/export", headers=ADMIN) as got:
            await got.content.readexactly(10)
            await peer.listener.close(0)
            with pytest.raises(aiohttp.ClientPayloadError):
                await got.read()


async def test_a_refusal_of_the_owner_is_handed_on_as_it_is() -> None:
    async with ingress() as peer:
        peer.elsewhere.status, peer.elsewhere.pieces = 401, [b'{"error": "That is not the token of an agent."}']
        status, answer, headers = await peer.ask("POST", "/api/health", {}, {"X-Agent-Token": "x"})
        assert (status, answer["error"][:8], headers["www-authenticate"]) == (401, "That is ", "Bearer")


# -- the peer port


@dataclass
class Port:
    """The peer port of a peer that is the coordinator, unless told otherwise."""

    managed: Managed
    passing: Elsewhere
    routes: PassedRoutes
    url: str
    session: aiohttp.ClientSession
    guests: set[str] = field(default_factory=set)

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        caller: Caller | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any, dict[str, str]]:
        caller = caller or Caller(ip="192.168.1.7", key_id="k1", scopes=frozenset({"admin"}))
        names = {"x-mesh-hop": "1", CONTEXT_HEADER: caller_out(caller), "x-request-id": "q1"} | (headers or {})
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.request(method, self.url + PREFIX + path, data=data, headers=names) as got:
            text = await got.text()
            found = {name.lower(): value for name, value in got.headers.items()}
            return got.status, json.loads(text) if text and got.content_type == "application/json" else text, found


@asynccontextmanager
async def port(adapt: Callable[[Services], Services] = lambda services: services) -> AsyncIterator[Port]:
    managed, passing, guests = Managed(), Elsewhere(is_owner=True), set[str]()
    surface = adapt(managed.services(TOKEN, passing=passing.facet(), limits=Limits(body_bytes=1000)))
    routes, table = passed_routes(
        surface,
        route_table(surface),
        peer_of=lambda request: "attic",
        may_pass=lambda peer: peer not in guests,
        version=lambda: f"v{len(managed.asked)}",
    )
    app = web.Application(client_max_size=0)
    for method, path, handler in table:
        app.router.add_route(method, path, handler)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
            yield Port(managed, passing, routes, f"http://127.0.0.1:{runner.addresses[0][1]}", session, guests)
    finally:
        await runner.cleanup()


async def test_routes_without_owner_are_not_on_the_peer_port_and_all_others_are() -> None:
    services = Managed().services(TOKEN)
    table = route_table(services)
    _, mounted = passed_routes(services, table, peer_of=lambda _: "attic", may_pass=lambda peer: True)
    owned = {(route.method, PREFIX + route.path) for route in table if route.owned is not None}
    assert {(method, path) for method, path, _ in mounted} == owned
    assert len(mounted) == len(owned) > 20
    assert not [path for _, path, _ in mounted if "/v1/" in path or "shutdown" in path or "chat" in path]
    async with port() as peer:
        for method, path in (("POST", "/api/shutdown"), ("POST", "/v1/chat/completions"), ("POST", "/api/mesh/leave")):
            assert (await peer.ask(method, path, {}))[0] == 404


async def test_the_owner_answers_with_its_own_handlers_and_says_how_far_its_state_is() -> None:
    async with port() as peer:
        status, answer, headers = await peer.ask("PUT", f"/api/agents/{SERVER}/settings", {"tags": ["a"]})
        assert (status, answer["agent_id"], answer["tags"]) == (200, SERVER, ["a"])
        assert peer.managed.asked == [("settings", SERVER, {"tags": ["a"]})]
        assert headers[VERSION_HEADER] == "v1"
        status, answer, _ = await peer.ask("GET", "/api/agents/tower/logs")
        assert (status, answer[0]["message"]) == (200, "ready")


async def test_who_is_not_the_owner_says_503_and_asks_nobody_else() -> None:
    async with port() as peer:
        peer.passing.is_owner = False
        for method, path in (
            ("GET", RECORDS),
            ("POST", f"/api/nodes/{SERVER}/enable"),
            ("GET", "/api/agents/attic/logs"),
        ):
            status, answer, headers = await peer.ask(method, path)
            assert (status, list(answer), headers["retry-after"]) == (503, ["error"], "1")
        assert (peer.managed.asked, peer.passing.passed) == ([], [])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-mesh-hop": "2"}, 400),
        ({"x-mesh-hop": ""}, 400),
        ({CONTEXT_HEADER: ""}, 400),
        ({CONTEXT_HEADER: "%"}, 400),
        ({CONTEXT_HEADER: "e30" * 2000}, 400),
    ],
)
async def test_what_no_peer_sends_is_refused(headers: dict[str, str], status: int) -> None:
    async with port() as peer:
        found, answer, _ = await peer.ask("GET", RECORDS, headers=headers)
        assert (found, list(answer)) == (status, ["error"])
        assert peer.managed.asked == []


async def test_a_guest_may_not_pass_on_whatever_it_says_of_its_caller() -> None:
    async with port() as peer:
        peer.guests.add("attic")
        for caller in (Caller(ip="", key_id="control", is_local=True), Caller(ip="", user_id="u", role="admin")):
            status, answer, _ = await peer.ask("GET", RECORDS, caller=caller)
            assert status == 403 and "guest" in answer["error"]
        assert peer.managed.asked == []


VIEWER = Caller(ip="", user_id="u", username="ann", role="viewer")
READER = Caller(ip="", key_id="k", scopes=frozenset({"admin:read"}))
PLAIN = Caller(ip="", key_id="k", scopes=frozenset({"inference", "cloud"}))
OWNER = Caller(ip="", user_id="u", username="bob", role="admin")
LOOPBACK = Caller(ip="127.0.0.1", is_local=True)


@pytest.mark.parametrize(
    ("caller", "may_view", "may_change"),
    [
        (VIEWER, True, False),
        (READER, True, False),
        (PLAIN, False, False),
        (LOOPBACK, False, False),
        (OWNER, True, True),
        (Caller(ip=""), False, False),
        (Caller(ip="", key_id="control", scopes=SCOPES), True, True),
    ],
)
async def test_the_owner_asks_the_policy_again(caller: Caller, may_view: bool, may_change: bool) -> None:
    async with port() as peer:
        assert (await peer.ask("GET", RECORDS, caller=caller))[0] == (200 if may_view else 403)
        status, _, _ = await peer.ask("PUT", "/api/settings", {"history_days": 1}, caller=caller)
        assert status == (200 if may_change else 403)
        assert len(peer.managed.asked) == may_view + may_change


async def test_who_is_no_administrator_sees_no_addresses_at_the_owner_either() -> None:
    async with port() as peer:
        for caller, is_told in ((VIEWER, False), (READER, False), (OWNER, True)):
            _, answer, _ = await peer.ask("GET", "/api/dashboard/overview", caller=caller)
            assert ("192.168.1.21" in json.dumps(answer)) is is_told


async def test_a_key_that_was_revoked_meanwhile_counts_no_more() -> None:
    revoked: list[Caller] = []

    def is_revoked(caller: Caller) -> bool:
        revoked.append(caller)
        return caller.key_id == "old"

    def adapt(services: Services) -> Services:
        class Accounts:
            revoked = staticmethod(is_revoked)

        return replace(services, accounts=cast(AccountsFacet, Accounts))

    async with port(adapt) as peer:
        old = Caller(ip="", key_id="old", scopes=frozenset({"admin"}))
        assert (await peer.ask("GET", RECORDS, caller=old))[0] == 401
        assert (await peer.ask("GET", RECORDS))[0] == 200
        assert [caller.key_id for caller in revoked] == ["old", "k1"]


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (Refused(409, "No."), 409, "No."),
        (ModelUnavailable("The store is locked.", retry_after_s=2), 503, "The store is locked."),
        (RuntimeError("the secret of the attic"), 500, "Something went wrong"),
    ],
)
async def test_errors_have_the_shape_of_the_path_that_was_asked(error: Exception, status: int, text: str) -> None:
    async with port() as peer:
        peer.managed.error = error
        found, answer, headers = await peer.ask("GET", RECORDS)
        assert (found, list(answer)) == (status, ["error"]) and answer["error"].startswith(text)
        assert "secret" not in answer["error"] and headers[VERSION_HEADER]


async def test_bodies_are_parsed_under_the_limits_on_this_port_too() -> None:
    async with port() as peer:
        for body, status in ((b" " * 1001, 413), (b"{", 400), (b"[]", 400), (b'{"a": NaN}', 400), (b"", 400)):
            found, answer, _ = await peer.ask("PUT", "/api/settings", body)
            assert (found, list(answer)) == (status, ["error"])
        assert peer.managed.asked == []


async def test_a_stopping_owner_says_so() -> None:
    async with port() as peer:
        peer.managed.gate.clear()
        asking = asyncio.create_task(peer.ask("GET", RECORDS))
        async with asyncio.timeout(10):
            while not peer.managed.asked:
                await asyncio.sleep(0.01)
            await peer.routes.stop(0)
            status, answer, _ = await asking
        assert status == 503 and "stopping" in answer["error"]


# -- the caller in x-mesh-context

_NAMES = st.none() | st.text(min_size=1, max_size=40)
_CALLERS = st.builds(
    Caller,
    ip=st.sampled_from(["192.168.1.7", "fd00::5"]),
    key_id=_NAMES,
    key_name=_NAMES,
    user_id=_NAMES,
    username=_NAMES,
    role=st.sampled_from([None, "admin", "viewer"]),
    session_id=_NAMES,
    scopes=st.frozensets(st.sampled_from(["inference", "cloud", "admin:read", "metrics", "admin"])),
    is_local=st.booleans(),
)


@given(_CALLERS)
def test_a_caller_arrives_as_it_was_but_on_another_machine(caller: Caller) -> None:
    assert caller_in(caller_out(caller)) == replace(caller, is_local=False)


def test_what_only_the_making_of_tokens_needs_stays_at_the_ingress() -> None:
    caller = Caller(ip="", models=("a*",) * 1000, background=True, deadline_s=5, explain=True, recording="off")
    assert caller_in(caller_out(caller)) == Caller(ip="")


def test_a_name_that_is_too_long_is_cut_and_nothing_else() -> None:
    caller = Caller(ip="", key_id="k", key_name="x" * 5000)
    assert caller_in(caller_out(caller)) == replace(caller, key_name="x" * 128)


@pytest.mark.parametrize(
    "said",
    [[], 5, None, {}, {"ip": 5}, {"ip": "x" * 129}, {"ip": "", "role": "root"}, {"ip": "", "role": 1},
     {"ip": "", "scopes": "admin"}, {"ip": "", "scopes": [1]}, {"ip": "", "scopes": ["a"] * 17},
     {"ip": "", "scopes": {"admin": 1}}, {"ip": "", "key_id": ["control"]}, {"key_id": "control"}],
)  # fmt: skip
def test_a_caller_that_no_peer_describes_is_refused(said: object) -> None:
    header = base64.urlsafe_b64encode(json.dumps(said).encode()).decode()
    with pytest.raises(InvalidRequest):
        caller_in(header)


@given(st.text(max_size=100) | st.binary(max_size=60).map(lambda b: base64.urlsafe_b64encode(b).decode()))
def test_no_context_raises_anything_else(header: str) -> None:
    try:
        caller_in(header)
    except InvalidRequest:
        pass


@given(_CALLERS, st.sampled_from(Policy))
def test_who_may_change_may_read_and_nobody_without_a_name_may_do_either(caller: Caller, policy: Policy) -> None:
    if admits(Policy.ADMIN, caller):
        assert admits(Policy.VIEW, caller)
    if caller.key_id is None and caller.user_id is None:
        assert admits(policy, caller) == (policy in (Policy.PUBLIC, Policy.AGENT))


def test_every_owner_of_the_table_is_one_that_can_be_asked() -> None:
    table: list[Route] = route_table(Managed().services(TOKEN))
    assert {route.owned for route in table} == {None, "coordinator", "accounts", "peer"}
    assert [route.path for route in table if route.owned == "peer" and "{id}" not in route.path] == []
    assert not [route.path for route in table if route.owned and route.policy in (Policy.PUBLIC, Policy.INFERENCE)]
    assert ATTIC
