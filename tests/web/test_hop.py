"""The peer port's routes over a scripted holder: what is refused, what is said when something fails, and how often."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from inference.chat import Chunk, EmbeddingRequest, Embeddings, Generation, Started
from inference.errors import HolderFull, InvalidRequest, Overloaded
from inference.openai.answer import DONE
from web.hop import CONTEXT_HEADER, HopRoutes, context_in, context_out, hop_routes
from web.services import Forwarder, HopFacet, Limits

CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "hi"}],
    "stream": True,
    "mesh": {"id": "r1", "kind": "chat", "now": 1.5, "utc_offset_s": 3600},
}


class Script:
    """A holder that plays an answer. `gate` holds it before it starts."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.error_after: Exception | None = None
        self.asked: list[tuple[Generation | EmbeddingRequest, Forwarder]] = []
        self.is_closed = asyncio.Event()

    async def generate(self, generation: Generation, forwarder: Forwarder) -> AsyncIterator[Chunk]:
        self.asked.append((generation, forwarder))
        try:
            await self.gate.wait()
            if self.error is not None:
                raise self.error
            yield Chunk(started=Started(prompt_tokens=3, cached_tokens=1, sha256="ab"))
            yield Chunk(tokens=(1,), draws=1)  # its text is held back
            if self.error_after is not None:
                raise self.error_after
            yield Chunk(text="Hello", tokens=(2, 3), draws=3, finish_reason="stop")
        finally:
            self.is_closed.set()

    async def embed(self, request: EmbeddingRequest, forwarder: Forwarder) -> Embeddings:
        self.asked.append((request, forwarder))
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return Embeddings(vectors=(b"\0" * 8,) * len(request.inputs), dim=2, prompt_tokens=4)


class Port:
    """The routes on a socket."""

    def __init__(self, script: Script, routes: HopRoutes, url: str, session: aiohttp.ClientSession) -> None:
        self.script = script
        self.routes = routes
        self.url = url
        self.session = session

    async def ask(
        self, path: str = "chat/completions", body: Any = CHAT, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        data = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
        names = {"x-mesh-hop": "1"} if headers is None else headers
        async with self.session.post(f"{self.url}/v1/{path}", data=data, headers=names) as got:
            return got.status, await got.read()


@asynccontextmanager
async def port(*, heartbeat_s: float = 10.0, limits: Limits | None = None) -> AsyncIterator[Port]:
    script = Script()
    facet = HopFacet(generate=script.generate, embed=script.embed, load=lambda: b"my load", heartbeat_s=heartbeat_s)
    routes, table = hop_routes(facet, limits or Limits(), lambda request: "tower")
    app = web.Application()
    for method, path, handler in table:
        app.router.add_route(method, path, handler)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
            yield Port(script, routes, f"http://127.0.0.1:{runner.addresses[0][1]}", session)
    finally:
        await runner.cleanup()


def events(wire: bytes) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in wire.split(b"\n") if line.startswith(b"data: {")]


LOAD = base64.b64encode(b"my load").decode()


async def test_every_event_is_openais_with_what_the_ingress_needs_also_while_text_is_held_back() -> None:
    async with port() as peer:
        status, wire = await peer.ask(headers={"x-mesh-hop": "1", CONTEXT_HEADER: context_out(Forwarder(peer=""))})
        assert status == 200 and wire.endswith(DONE) and wire.count(DONE) == 1
        started, held, last = events(wire)
        assert started["mesh"] == {
            "started": {"prompt_tokens": 3, "cached_tokens": 1, "sha256": "ab"}, "load": LOAD,
        }  # fmt: skip
        assert held["mesh"] == {"t": [1], "r": 1} and held["choices"][0]["delta"]["content"] == ""
        assert last["mesh"] == {"t": [2, 3], "r": 3, "load": LOAD}
        assert last["choices"][0] == {"index": 0, "delta": {"content": "Hello"}, "finish_reason": "stop"}
        ((generation, forwarder),) = peer.script.asked
        assert isinstance(generation, Generation)
        assert (generation.id, generation.now, generation.utc_offset_s) == ("r1", 1.5, 3600)
        assert forwarder == Forwarder(peer="tower")


async def test_completions_have_no_length_of_their_own() -> None:
    async with port() as peer:
        body = {"model": "m", "prompt": "hi", "mesh": {"id": "r", "kind": "generate"}}
        assert (await peer.ask("completions", body))[0] == 200
        ((generation, _),) = peer.script.asked
        assert isinstance(generation, Generation) and generation.max_tokens is None


@pytest.mark.parametrize(
    ("path", "body", "headers", "code"),
    [
        ("chat/completions", CHAT, {}, "not_a_hop"),
        ("chat/completions", CHAT, {"x-mesh-hop": "2"}, "not_a_hop"),
        ("chat/completions", CHAT, {"x-mesh-hop": "1", CONTEXT_HEADER: "%"}, "invalid_value"),
        ("chat/completions", CHAT, {"x-mesh-hop": "1", CONTEXT_HEADER: "e30" * 2000}, "invalid_value"),
        ("chat/completions", {**CHAT, "mesh": 5}, None, "missing_required_parameter"),
        ("chat/completions", {**CHAT, "messages": []}, None, "empty_array"),
        ("completions", {"model": "m", "mesh": {"id": "r", "kind": "generate"}}, None, "missing_required_parameter"),
        ("embeddings", {"model": "m", "input": "a"}, None, "missing_required_parameter"),
        ("chat/completions", b"{", None, None),
    ],
)
async def test_what_no_peer_sends_is_refused(path: str, body: Any, headers: dict[str, str] | None, code: str) -> None:
    async with port() as peer:
        status, wire = await peer.ask(path, body, headers)
        found = json.loads(wire)
        assert status == 400 and found["error"]["code"] == code and found["mesh"]["status"] == 400
        assert peer.script.asked == [] and peer.routes.active_requests == 0


async def test_body_beyond_the_limit_is_refused_and_one_of_a_large_chat_is_not() -> None:
    large = {**CHAT, "messages": [{"role": "user", "content": "あ" * 200_000}]}
    async with port() as peer:
        assert (await peer.ask(body=json.dumps(large, ensure_ascii=False).encode()))[0] == 200
        generation = peer.script.asked[0][0]
        assert isinstance(generation, Generation) and len(str(generation.prompt)) > 200_000
        status, wire = await peer.ask(body=b" " * (40 * 1024 * 1024 + 1))
        assert status == 413 and json.loads(wire)["error"]["code"] == "request_too_large"


@pytest.mark.parametrize("error", [HolderFull("full"), Overloaded("full", retry_after_s=3), InvalidRequest("no")])
async def test_failure_before_the_first_byte_is_a_status_with_the_load(error: Exception) -> None:
    async with port() as peer:
        peer.script.error = error
        status, wire = await peer.ask()
        found = json.loads(wire)
        assert status == found["mesh"]["status"] == error.status  # type: ignore[attr-defined]
        assert found["mesh"]["load"] == LOAD and found["error"]["code"] == error.code  # type: ignore[attr-defined]


async def test_failure_after_it_is_an_event_and_there_is_no_done() -> None:
    async with port() as peer:
        peer.script.error_after = Overloaded("full", retry_after_s=3)
        status, wire = await peer.ask()
        last = events(wire)[-1]
        assert status == 200 and DONE not in wire and last["error"]["code"] == "overloaded"
        assert last["mesh"] == {"status": 503, "retry_after_s": 3, "load": LOAD}


@pytest.mark.parametrize("is_begun", [False, True])
async def test_what_nobody_foresaw_is_said_without_its_text(is_begun: bool) -> None:
    async with port() as peer:
        error = RuntimeError("the secret of the attic")
        peer.script.error, peer.script.error_after = (None, error) if is_begun else (error, None)
        _, wire = await peer.ask()
        assert b"internal_error" in wire and b"secret" not in wire


async def test_stream_beats_while_nothing_happens_and_opens_for_that() -> None:
    async with port(heartbeat_s=0.05) as peer:
        peer.script.gate.clear()
        async with peer.session.post(f"{peer.url}/v1/chat/completions", json=CHAT, headers={"x-mesh-hop": "1"}) as got:
            seen = b""
            while seen.count(b": waiting\n\n") < 3:
                seen += await got.content.readany()
            peer.script.error = HolderFull("full")
            peer.script.gate.set()
            (last,) = events(await got.read())
        assert got.status == 200 and last["error"]["code"] == "holder_full"


async def test_stream_beats_while_its_body_comes_slowly() -> None:
    """A large body over a slow network is no silence."""

    async def slowly() -> AsyncIterator[bytes]:
        yield json.dumps(CHAT).encode()[:20]
        await may_end.wait()
        yield json.dumps(CHAT).encode()[20:]

    may_end = asyncio.Event()
    async with (
        port(heartbeat_s=0.05) as peer,
        peer.session.post(f"{peer.url}/v1/chat/completions", data=slowly(), headers={"x-mesh-hop": "1"}) as got,
    ):
        assert (await got.content.readany()).startswith(b": waiting")
        may_end.set()
        assert (await got.read()).endswith(DONE)


async def test_ingress_that_hangs_up_ends_the_request() -> None:
    async with port(heartbeat_s=0.05) as peer:
        peer.script.gate.clear()
        got = await peer.session.post(f"{peer.url}/v1/chat/completions", json=CHAT, headers={"x-mesh-hop": "1"})
        got.close()
        async with asyncio.timeout(10):
            await peer.script.is_closed.wait()


async def test_ingress_that_died_without_a_word_ends_its_requests_and_no_others() -> None:
    async with port(heartbeat_s=0.05) as peer:
        peer.script.gate.clear()
        asking = asyncio.create_task(peer.ask())
        async with asyncio.timeout(10):
            while not peer.script.asked:
                await asyncio.sleep(0.01)
        peer.routes.gone("somebody else")
        await asyncio.sleep(0.1)
        assert peer.routes.active_requests == 1
        peer.routes.gone("tower")
        async with asyncio.timeout(10):
            await peer.script.is_closed.wait()
        with pytest.raises(aiohttp.ClientError):
            await asking
        assert peer.routes.active_requests == 0


@pytest.mark.parametrize("is_open", [False, True])
async def test_stop_tells_the_ingress_that_this_peer_leaves(is_open: bool) -> None:
    async with port(heartbeat_s=0.05 if is_open else 10.0) as peer:
        peer.script.gate.clear()
        asking = asyncio.create_task(peer.ask())
        async with asyncio.timeout(10):
            while not peer.script.asked:
                await asyncio.sleep(0.01)
            if is_open:
                await asyncio.sleep(0.1)
            await peer.routes.stop(0)
            status, wire = await asking
        assert b"peer_draining" in wire and status == (200 if is_open else 503)
        assert peer.routes.active_requests == 0


async def test_vectors_come_in_events() -> None:
    async with port() as peer:
        body = {"model": "m", "input": ["a"] * 20, "mesh": {"id": "e"}}
        status, wire = await peer.ask("embeddings", body)
        *some, last = events(wire)
        assert status == 200 and wire.endswith(DONE)
        assert [d["index"] for e in some for d in e["data"]] == list(range(20))
        assert last["usage"]["prompt_tokens"] == 4 and last["mesh"] == {"load": LOAD, "dim": 2}


@given(
    st.builds(
        Forwarder,
        peer=st.just("tower"),
        fairness_key=st.text(max_size=40),
        background=st.booleans(),
        deadline_s=st.none() | st.floats(0.001, 86_400),
        attempt=st.integers(1, 1000),
        may_refuse=st.booleans(),
        is_resumed=st.booleans(),
        sha256=st.none() | st.text("0123456789abcdef", min_size=64, max_size=64),
    )
)
def test_context_arrives_as_it_was(forwarder: Forwarder) -> None:
    assert context_in(context_out(forwarder), "tower") == forwarder


def _header(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


@pytest.mark.parametrize(
    "said",
    [[], 5, {"deadline_s": 0}, {"deadline_s": -1}, {"deadline_s": 1e9}, {"deadline_s": True}, {"attempt": 0},
     {"attempt": 1.5}, {"background": 1}, {"sha256": 5}, {"fairness_key": "x" * 257}],
)  # fmt: skip
def test_context_that_no_peer_sends_is_refused(said: object) -> None:
    with pytest.raises(InvalidRequest):
        context_in(_header(said), "tower")


def test_context_of_a_newer_peer_may_say_more() -> None:
    assert context_in(_header({"attempt": 2, "mood": "good"}), "tower") == Forwarder(peer="tower", attempt=2)


@given(st.text(max_size=100) | st.binary(max_size=60).map(lambda b: base64.urlsafe_b64encode(b).decode()))
def test_no_context_raises_anything_else(header: str) -> None:
    try:
        context_in(header, "tower")
    except InvalidRequest:
        pass
