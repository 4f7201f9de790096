"""The routes of the peer port that carry logs, over HTTP: sizes are bounded, members are told apart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gossip.transport import MEMBER
from mesh.calls import PeerCalls
from mesh.history.entries import Audit, LogId, encode
from mesh.history.messages import (
    MESSAGE_BYTES_MAX,
    PUSH_PATH,
    VECTOR_PATH,
    Batch,
    batch_out,
    span_in,
    told_in,
)
from mesh.history.replicas import Mate, View
from mesh.history.serving import Serving
from tests.fixtures.history_disk import FakeStore

ITEM = encode(Audit(at_ms=1, actor="ann", actor_kind="user", action="x"))
LOG = LogId("b", 7)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore("a")


@pytest.fixture
async def port(store: FakeStore) -> AsyncIterator[TestServer]:
    """A peer port whose callers say who they are, instead of proving it."""

    @web.middleware
    async def proven(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        request[MEMBER] = request.headers["x-test-member"]
        return await handler(request)

    view = View(me="a", mates={"b": Mate(peer="b", is_alive=True)}, coordinator="a", succession=("a", "b"))
    serving = Serving(store=lambda: store, view=lambda: view, floors=dict)
    app = web.Application(middlewares=[proven], client_max_size=0)
    for method, path, handler in serving.routes():
        app.router.add_route(method, path, handler)
    server = TestServer(app)
    await server.start_server()
    yield server
    await server.close()


async def test_a_push_and_a_vector_travel_as_calls_between_members_carry_them(
    port: TestServer, store: FakeStore
) -> None:
    async with PeerCalls(addresses=lambda peer: (f"127.0.0.1:{port.port}",), context_of=lambda peer: None) as calls:
        body = batch_out(Batch(log=LOG, low=0, have=2, first=1, items=(ITEM, ITEM)))
        answer = await calls.call("a", "POST", PUSH_PATH, body=body, headers={"x-test-member": "b"})
        assert (answer.status, span_in(answer.body)) == (200, (0, 2))
        answer = await calls.call("a", "GET", f"{VECTOR_PATH}?of=b", headers={"x-test-member": "b"})
        assert told_in(answer.body, "a").rest == {LOG: (0, 2)}
        answer = await calls.call("a", "GET", VECTOR_PATH, headers={"x-test-member": "stranger"})
        assert answer.status == 403
    assert store.vector() == {LOG: (0, 2)}


async def test_a_message_longer_than_any_of_ours_is_not_read(port: TestServer) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(MESSAGE_BYTES_MAX // 2**20 + 2):
            yield bytes(2**20)

    async with (
        aiohttp.ClientSession() as session,
        session.post(port.make_url(PUSH_PATH), data=endless(), headers={"x-test-member": "b"}) as answer,
    ):
        assert answer.status == 413


async def test_a_disk_that_is_full_is_told(port: TestServer, store: FakeStore) -> None:
    store.is_full = True
    body = batch_out(Batch(log=LOG, low=0, have=1, first=1, items=(ITEM,)))
    async with (
        aiohttp.ClientSession() as session,
        session.post(port.make_url(PUSH_PATH), data=body, headers={"x-test-member": "b"}) as answer,
    ):
        assert answer.status == 503
