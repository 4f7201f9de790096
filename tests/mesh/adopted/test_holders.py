"""A request and servers that are no peers: real HTTP, the real dispatcher, whatever breaks and whenever."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from aiohttp import web

from gossip.member import About, MemberView
from inference.chat import ChatPrompt, Chunk, EmbeddingRequest, Generation, Message, Sampling, TextPrompt, Usage
from inference.errors import (
    DeadlineExceeded,
    EngineError,
    InferenceError,
    InvalidRequest,
    ModelNotFound,
    ModelUnavailable,
    Overloaded,
    StreamInterrupted,
)
from inference.models.model import StoredModel
from inference.models.pool import Pool, PoolLimits
from inference.providers.openai_compatible import OpenAICompatible, Patience
from mesh import attempts, penalty
from mesh.adopted.holders import LODGED, AdoptedServers, HopService
from mesh.dispatch import Dispatcher
from mesh.facts import INVENTORY, inventory_out
from mesh.hop import HopClient, Silence
from mesh.local import LocalHolder
from mesh.metrics import Metrics
from mesh.neighbours import Neighbours
from mesh.router import Ask, Candidate, Mode
from tests.fixtures.adopting import Peer, ViaLoopback, World, registered, until
from tests.fixtures.holders import HEARTBEAT_S, Cable, Mesh
from tests.fixtures.openai_server import WAIT_S, OpenAIServer, openai_server
from tests.mesh.test_metrics import value
from tests.mesh.test_neighbours import Own, Told, having, model
from web.hop import hop_routes
from web.services import Caller, Forwarder, HopFacet, Limits

ME = Caller(ip="127.0.0.1", is_local=True)
CHAT = ChatPrompt(messages=(Message(role="user", content="Hi"),))
MODEL = "llama3.2:3b"


class Reached(Told):
    """Members that are reached at an address of this machine; `inventories` as `Told` has them."""

    def __init__(self, ports: dict[str, int], **inventories: bytes) -> None:
        super().__init__(**inventories)
        self.ports = ports
        self.states: dict[str, Any] = {}

    def members(self) -> list[MemberView]:
        return [
            MemberView(
                peer=peer,
                role="active",
                state=self.states.get(peer, "alive"),
                run=1,
                incarnation=0,
                about=About(),
                since=0,
                is_connected=True,
            )
            for peer in self._inventories
        ]

    def addresses(self, peer: str) -> tuple[str, ...]:
        return (f"127.0.0.1:{self.ports[peer]}",)


@dataclass
class Ingress:
    """A peer that clients ask, and that looks after servers."""

    peer: Peer
    neighbours: Neighbours
    dispatcher: Dispatcher
    metrics: Metrics
    hop_service: HopService
    cable: Cable | None = None  # to the peer that has the server beside it

    async def ask(self, caller: Caller = ME, **changes: Any) -> list[Chunk]:
        async with asyncio.timeout(WAIT_S):
            return [chunk async for chunk in self.dispatcher.generate(request(**changes), caller)]

    async def fails(self, caller: Caller = ME, **changes: Any) -> tuple[str, InferenceError]:
        """The text that came, and the error that ended it."""
        made = ""
        with pytest.raises(InferenceError) as caught:
            async with asyncio.timeout(WAIT_S):
                async for chunk in self.dispatcher.generate(request(**changes), caller):
                    made += chunk.text
        return made, caught.value

    def candidates(self, name: str = MODEL) -> dict[str, Candidate]:
        now = self.peer.world.clock()
        return {c.name: c for c in self.neighbours.candidates(name, Ask(model_id=name), now)}


def request(**changes: Any) -> Generation:
    return replace(Generation(id="r-1", model=MODEL, prompt=CHAT, sampling=Sampling(seed=7)), **changes)


def text(chunks: list[Chunk]) -> str:
    return "".join(c.text for c in chunks)


def served_by(chunks: list[Chunk]) -> str:
    return [c.started for c in chunks if c.started][-1].peer


async def _never(*_: object) -> Any:
    raise AssertionError("this peer has no model")


def _nothing(name: str) -> StoredModel:
    raise ModelNotFound(f"The model {name} is not here.", param="model")


@asynccontextmanager
async def ingress(
    world: World,
    me: str = "tower",
    *,
    mode: Mode = "auto",
    members: Reached | None = None,
    cordoned: set[str] | None = None,
    own: Own | None = None,
) -> AsyncIterator[Ingress]:
    async with AsyncExitStack() as stack:
        client: OpenAICompatible = await stack.enter_async_context(ViaLoopback(Patience(probe_s=2.0)))
        pool = await stack.enter_async_context(Pool(start=_never, bytes_needed=lambda m: 0, limits=PoolLimits()))
        peer = Peer(world, me, client, interval_s=1000.0)
        adopted = AdoptedServers(agents=peer.agents, breakers=peer.breakers, client=client, clock=world.clock)
        neighbours = Neighbours(
            me=me,
            own=own or Own(),
            clock=world.clock,
            name_of=str,
            context_of=lambda peer: None,  # type: ignore[arg-type,return-value]  # plain HTTP
            cordoned=lambda peer: peer in (cordoned or ()),
            adopted=adopted,
        )
        if members is not None:
            neighbours.follow(members)
            for member in members.members():
                neighbours.fact_changed(member.peer, INVENTORY)
        hop = await stack.enter_async_context(
            HopClient(probe=lambda peer: _alive(), silence=Silence(silent_s=3.0, silent_s_max=6.0))
        )
        metrics = Metrics()
        local = LocalHolder(pool=pool, resolve=_nothing)
        dispatcher = Dispatcher(
            local=local, holders=neighbours, metrics=metrics, hop=hop, mode=mode, rng=random.Random(1)
        )
        yield Ingress(peer, neighbours, dispatcher, metrics, HopService(local, adopted))


async def _alive() -> bool:
    return True


# -- like a peer


async def test_a_registered_server_serves_like_a_peer() -> None:
    async with openai_server() as fake, ingress(World()) as tower:
        agent_id, _ = await registered(tower.peer, fake)
        views = {view.id: view for view in tower.neighbours.views()}
        assert views[MODEL].holders == ("attic",) and views[MODEL].ready and views[MODEL].capabilities[0] == "chat"
        assert views["nomic-embed-text"].capabilities == ("embedding",)
        chunks = await tower.ask(replace(ME, explain=True))
        first, last = chunks[0].started, chunks[-1]
        assert text(chunks) == "Hello there!" and first is not None
        assert (first.peer, first.peer_id, first.attempts) == ("attic", agent_id, 1)
        assert first.candidates is not None and '"peer":"attic"' in first.candidates
        assert (last.finish_reason, last.usage) == ("stop", Usage(prompt_tokens=11, completion_tokens=7))
        assert fake.bodies[0]["model"] == MODEL
    assert value(tower.metrics, "llm_router_tokens_total", type="completion") == 7
    assert value(tower.metrics, "llm_router_tokens_total", type="prompt") == 11
    assert value(tower.metrics, "llm_router_requests_total", kind="chat", status="200") == 1
    assert tower.dispatcher.active() == [] and tower.neighbours.in_flight.running() == 0


async def test_completions_and_vectors_come_from_it_too() -> None:
    async with openai_server() as fake, ingress(World()) as tower:
        await registered(tower.peer, fake)
        assert text(await tower.ask(prompt=TextPrompt(text="Once"), kind="generate")) == "Hello there!"
        answer = await tower.dispatcher.embed(EmbeddingRequest(id="e", model="nomic-embed-text", inputs=("a", "b")), ME)
        assert (answer.peer, answer.dim, len(answer.vectors)) == ("attic", 2, 2)
        with pytest.raises(InvalidRequest):
            await tower.dispatcher.embed(EmbeddingRequest(id="e", model=MODEL, inputs=("a",)), ME)
    assert [one.target for one in fake.seen if one.method == "POST"] == ["/v1/completions", "/v1/embeddings"]


async def test_a_model_of_a_file_is_asked_for_by_the_servers_own_name() -> None:
    async with openai_server(models=["/models/Qwen 7B.gguf", "phi:latest"]) as fake, ingress(World()) as tower:
        await registered(tower.peer, fake)
        await tower.ask(model="Qwen-7B")
        await tower.ask(model="phi")  # as Ollama's own clients may call it
        assert [body["model"] for body in fake.bodies] == ["/models/Qwen 7B.gguf", "phi:latest"]


async def test_leaving_a_request_reaches_the_server() -> None:
    async with openai_server(gate=asyncio.Event()) as fake, ingress(World()) as tower:
        agent_id, _ = await registered(tower.peer, fake)
        chunks = tower.dispatcher.generate(request(), ME)
        while not (await anext(chunks)).text:
            pass
        assert tower.neighbours.in_flight.running(agent_id) == 1 and fake.active == 1
        assert tower.candidates()["attic"].in_flight == 1
        await chunks.aclose()
        await asyncio.wait_for(fake.left.wait(), WAIT_S)
        assert tower.neighbours.in_flight.running() == 0 and tower.candidates()["attic"].in_flight == 0


async def test_the_callers_deadline_ends_the_request_at_the_server() -> None:
    async with openai_server(gate=asyncio.Event()) as fake, ingress(World()) as tower:
        await registered(tower.peer, fake)
        made, error = await tower.fails(replace(ME, deadline_s=0.5))
        assert made == "Hello" and type(error) is DeadlineExceeded
        await asyncio.wait_for(fake.left.wait(), WAIT_S)


# -- what breaks


@asynccontextmanager
async def two(**first: Any) -> AsyncIterator[tuple[OpenAIServer, OpenAIServer, Ingress]]:
    """`attic` is asked first, `barn` is good."""
    async with openai_server(**first) as attic, openai_server() as barn, ingress(World()) as tower:
        await registered_while_held(tower, attic)
        barn_id, _ = await registered(tower.peer, barn, "barn")
        await tower.peer.registry.metrics(barn_id, {"cpu_usage": 90, "memory_usage": 90, "active_requests": 3})
        yield attic, barn, tower


@pytest.mark.parametrize(
    "behaviour",
    [
        {"cut_after": 0},
        {"raw": [b"data: nonsense\n\n"]},
        {"raw": [b'data: {"error": {"message": "CUDA error", "code": 500}}\n\n']},
        {"refusal": (500, "CUDA error", {})},
        {"refusal": (503, "loading", {})},
        {"refusal": (429, "slow down", {})},
        {"refusal": (404, "model not found", {})},
        {"refusal": (401, "no key", {})},
        {"redirect": None},
    ],
)
async def test_what_fails_before_the_first_text_is_made_by_the_next_server(behaviour: dict[str, Any]) -> None:
    """F74; case 20."""
    is_redirect = behaviour.pop("redirect", 0) is None
    async with two(**behaviour) as (attic, barn, tower):
        if is_redirect:
            attic.redirect = (307, f"http://127.0.0.1:{barn.port}/v1/chat/completions")
        chunks = await tower.ask()
        assert (text(chunks), served_by(chunks)) == ("Hello there!", "barn")
        assert len(barn.bodies) == 1 and len(attic.bodies) == 1
        assert value(tower.metrics, "llm_router_requests_total", kind="chat", status="200") == 1


@pytest.mark.parametrize(
    ("behaviour", "is_avoided"),
    [
        ({"cut_after": 0}, True),
        ({"cut_after": 1}, True),
        ({"refusal": (500, "CUDA error", {})}, True),
        ({"refusal": (503, "loading", {})}, False),
        ({"refusal": (429, "slow down", {})}, False),
        ({"refusal": (404, "model not found", {})}, False),
    ],
)
async def test_a_server_with_a_fault_of_its_own_is_avoided_until_it_is_seen_to_answer(
    behaviour: dict[str, Any], is_avoided: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(penalty, "TERM_S", 1.0)
    async with two(**behaviour) as (attic, _, tower):
        if behaviour.get("cut_after"):
            await tower.fails()
        else:
            await tower.ask()
        one = tower.candidates()["attic"]
        assert (one.is_suspect, one.is_penalized) == (is_avoided, is_avoided)
        assert served_by(await tower.ask()) == "barn"
        assert len(attic.bodies) == (1 if is_avoided else 2)
        async with tower.peer.running():
            await until(lambda: not tower.candidates()["attic"].is_suspect)
        attic.refusal = attic.cut_after = None
        await until(lambda: not tower.candidates()["attic"].is_penalized)
        assert served_by(await tower.ask()) == "attic"


async def test_what_breaks_after_the_first_text_is_interrupted_and_nobody_else_is_asked() -> None:
    async with two(cut_after=2) as (attic, barn, tower):
        made, error = await tower.fails()
        assert made == "Hello there" and type(error) is StreamInterrupted
        assert barn.bodies == [] and len(attic.bodies) == 1


async def test_the_callers_own_fault_is_told_in_the_servers_words_and_asked_once() -> None:
    """Case 5."""
    async with two(refusal=(400, {"error": "model not loaded"}, {})) as (_, barn, tower):
        _, error = await tower.fails()
        assert error.status == 400 and "model not loaded" in error.message
        assert barn.bodies == [] and not tower.candidates()["attic"].is_suspect


@pytest.mark.parametrize(
    ("refusal", "status", "kind"),
    [
        ((404, "model not found", {}), 404, ModelNotFound),
        ((500, "CUDA error", {}), 500, EngineError),
        ((503, "loading", {"Retry-After": "9"}), 503, ModelUnavailable),
        ((429, "slow down", {}), 503, Overloaded),
    ],
)
async def test_the_last_servers_words_are_told_when_nobody_else_has_the_model(
    refusal: Any, status: int, kind: type[InferenceError]
) -> None:
    """Case 4."""
    async with openai_server(refusal=refusal) as fake, ingress(World()) as tower:
        await registered(tower.peer, fake)
        _, error = await tower.fails()
        assert (error.status, type(error)) == (status, kind) and refusal[1] in error.message
        if status == 404:
            assert error.code == "404" and error.type.endswith("_upstream_error")


async def test_a_server_that_stands_still_is_left_when_another_has_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "PATIENCE_ADOPTED_S", 0.2)
    monkeypatch.setattr(attempts, "PATIENCE_S", 1000.0)  # that is for peers
    async with two(hold=asyncio.Event()) as (attic, _, tower):
        assert served_by(await tower.ask()) == "barn"
        one = tower.candidates()["attic"]
        assert one.is_penalized and not one.is_suspect
        await asyncio.wait_for(attic.left.wait(), WAIT_S)


async def test_a_server_that_has_begun_to_think_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "PATIENCE_ADOPTED_S", 0.2)
    async with two(gate=asyncio.Event(), free=0) as (attic, barn, tower):
        asking = asyncio.create_task(tower.ask())
        await until(lambda: attic.active == 1)
        await asyncio.sleep(0.5)  # longer than it may take to begin
        assert attic.gate is not None
        attic.gate.set()
        assert served_by(await asking) == "attic" and barn.bodies == []


async def test_a_server_alone_is_waited_for_while_it_loads_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "PATIENCE_ADOPTED_S", 0.1)
    async with openai_server(hold=asyncio.Event()) as fake, ingress(World()) as tower:
        await registered_while_held(tower, fake)
        asking = asyncio.create_task(tower.ask())
        await until(lambda: fake.active == 1)
        await asyncio.sleep(0.3)
        assert fake.hold is not None
        fake.hold.set()
        assert text(await asking) == "Hello there!"


async def registered_while_held(tower: Ingress, fake: OpenAIServer) -> None:
    hold, fake.hold = fake.hold, None
    await registered(tower.peer, fake)
    fake.hold = hold


# -- who is asked


async def test_a_server_that_is_offline_is_never_asked_and_its_model_is_known() -> None:
    """Case 60; F4."""
    async with openai_server() as fake, ingress(World()) as tower:
        agent_id, token = await registered(tower.peer, fake)
        tower.peer.agents.own[agent_id].is_online = False
        _, error = await tower.fails()
        assert (error.status, error.retry_after_s is not None) == (503, True) and fake.bodies == []
        (view,) = [view for view in tower.neighbours.views() if view.id == MODEL]
        assert not view.ready
        _, error = await tower.fails(model="unknown")
        assert error.status == 404
        await tower.peer.registry.heartbeat(token, {"agent_id": agent_id})
        assert text(await tower.ask()) == "Hello there!"


async def test_a_disconnected_server_is_not_asked_until_it_is_enabled() -> None:
    """F84."""
    async with openai_server() as fake, ingress(World()) as tower:
        await registered(tower.peer, fake)
        await tower.peer.registry.disconnect("attic")
        _, error = await tower.fails()
        assert error.status == 503 and fake.bodies == []
        await tower.peer.registry.enable("attic")
        assert text(await tower.ask()) == "Hello there!"
        await tower.peer.registry.delete("attic")
        _, error = await tower.fails()
        assert error.status == 404


async def test_metrics_mode_takes_the_lowest_score() -> None:
    """F56 to F61, F64; cases 64 and 67."""
    async with (
        openai_server() as a,
        openai_server() as b,
        openai_server() as silent,
        ingress(World(), mode="metrics") as tower,
    ):
        for fake, name, load in ((b, "b", (70, 50, 5)), (a, "a", (20, 30, 1)), (silent, "silent", None)):
            agent_id, _ = await registered(tower.peer, fake, name)
            if load is not None:
                body = dict(zip(("cpu_usage", "memory_usage", "active_requests"), load, strict=True))
                await tower.peer.registry.metrics(agent_id, body)
        for _ in range(3):
            assert served_by(await tower.ask()) == "a"
        await tower.peer.registry.disconnect("a")
        assert served_by(await tower.ask()) == "b"  # before one of which nothing is known
        for standing in tower.peer.agents.own.values():
            standing.reported_at = None if standing.reported_at is None else standing.reported_at - 121  # stale
        assert {c.cpu_percent for c in tower.candidates().values()} == {None}
        assert {served_by(await tower.ask()) for _ in range(4)} == {"b", "silent"}


async def test_auto_mode_takes_the_quicker_one_of_equals() -> None:
    """F62; cases 68 and 69."""
    async with openai_server() as a, openai_server() as b, ingress(World()) as tower:
        slow, _ = await registered(tower.peer, a, "slow")
        quick, _ = await registered(tower.peer, b, "quick")
        body = {"cpu_usage": 10, "memory_usage": 10, "active_requests": 0}
        await tower.peer.registry.metrics(slow, body | {"avg_response_time_ms": 240})
        await tower.peer.registry.metrics(quick, body | {"avg_response_time_ms": 120})
        assert {served_by(await tower.ask()) for _ in range(5)} == {"quick"}
        await tower.peer.registry.metrics(quick, body | {"cpu_usage": 95, "avg_response_time_ms": 120})
        assert {served_by(await tower.ask()) for _ in range(10)} == {"slow"}


async def test_what_is_in_flight_here_counts_until_it_is_reported() -> None:
    async with openai_server(gate=asyncio.Event()) as fake, ingress(World()) as tower:
        agent_id, _ = await registered(tower.peer, fake)
        streams = [tower.dispatcher.generate(request(), ME) for _ in range(3)]
        for stream in streams:
            await anext(stream)
        one = tower.candidates()["attic"]
        assert (one.active, one.in_flight, one.active_requests) == (0, 3, 3)
        await tower.peer.registry.metrics(agent_id, {"cpu_usage": 1, "memory_usage": 1, "active_requests": 5})
        one = tower.candidates()["attic"]
        assert (one.active, one.in_flight, one.active_requests) == (5, 0, 5)
        for stream in streams:
            await stream.aclose()
        one = tower.candidates()["attic"]
        assert (one.active, one.in_flight, one.active_requests) == (5, -3, 2)


async def test_a_server_that_reports_nothing_is_known_by_how_long_its_answers_take() -> None:
    async with openai_server() as fake, ingress(World()) as tower:
        await registered(tower.peer, fake)
        assert tower.candidates()["attic"].response_ms is None
        await tower.ask()
        measured = tower.candidates()["attic"].response_ms
        assert measured is not None and measured > 0


async def test_answers_never_show_where_a_server_is() -> None:
    """F75."""
    async with openai_server() as fake, ingress(World()) as tower:
        agent_id, _ = await registered(tower.peer, fake, f"192.168.77.1:{fake.port}")
        chunks = await tower.ask(replace(ME, explain=True))
        assert served_by(chunks) == f"server-{agent_id[:6]}"
        shown = repr(chunks) + repr(tower.neighbours.views())
        assert "192.168" not in shown and str(fake.port) not in shown


# -- beside peers


async def test_cordoned_peers_get_no_requests_and_what_only_they_have_is_known() -> None:
    """C27."""
    members = Reached({"attic": 1}, attic=inventory_out(having(model("theirs"), model("both"))))
    cordoned: set[str] = set()
    async with ingress(World(), members=members, cordoned=cordoned, own=Own(model("both"))) as tower:
        assert set(tower.candidates("both")) == {"tower", "attic"}
        cordoned.add("attic")
        assert set(tower.candidates("both")) == {"tower"} and tower.candidates("theirs") == {}
        assert [(v.id, v.ready) for v in tower.neighbours.views()] == [("both", True), ("theirs", False)]
        _, error = await tower.fails(model="theirs")
        assert error.status == 503 and error.retry_after_s
        cordoned.add("tower")
        assert tower.candidates("both") == {}
        cordoned.clear()
        assert set(tower.candidates("both")) == {"tower", "attic"}


async def test_a_peer_makes_what_a_server_breaks_off_before_its_first_text() -> None:
    async with Mesh() as mesh, openai_server(models=["chat"], cut_after=0) as fake:
        holder = await mesh.holder("attic", "--tokens 5")
        fact = replace(model("chat"), size_bytes=10**12)  # so large that the server is asked first
        members = Reached({"attic": holder.cable.port}, attic=inventory_out(having(fact)))
        async with ingress(World(), members=members) as tower:
            await registered(tower.peer, fake, "ollama")
            assert set(tower.candidates("chat")) == {"attic", "ollama"}
            chunks = await tower.ask(model="chat", prompt=TextPrompt(text="x"))
            assert served_by(chunks) == "attic" and sum(len(c.tokens) for c in chunks) == 5
            assert len(fake.bodies) == 1


async def test_a_server_never_goes_on_with_what_a_peer_began() -> None:
    async with Mesh() as mesh, openai_server(models=["chat"]) as fake:
        holder = await mesh.holder("attic", "--tokens 50 --rate 100")
        holder.cable.cut_after_events = 8
        members = Reached({"attic": holder.cable.port}, attic=inventory_out(having(model("chat"))))
        async with ingress(World(), members=members) as tower:
            await registered(tower.peer, fake, "ollama")
            tower.peer.breakers.failed(next(iter(tower.peer.agents)).id, "wedged", tower.peer.world.clock())
            made, error = await tower.fails(model="chat", prompt=TextPrompt(text="x"))
            assert made and type(error) is StreamInterrupted and fake.bodies == []


# -- a server that only one peer reaches


@asynccontextmanager
async def lodged(fake: OpenAIServer) -> AsyncIterator[tuple[Ingress, Ingress, str]]:
    """`attic` has the server beside it; `tower` is asked."""
    world = World()
    async with AsyncExitStack() as stack:
        attic = await stack.enter_async_context(ingress(world, "attic"))
        service = attic.hop_service
        facet = HopFacet(generate=service.generate, embed=service.embed, load=lambda: b"load", heartbeat_s=HEARTBEAT_S)
        _, table = hop_routes(facet, Limits(), lambda request: "tower")
        app = web.Application()
        for method, path, handler in table:
            app.router.add_route(method, path, handler)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        cable = Cable(runner.addresses[0][1])
        await cable.lay()
        stack.push_async_callback(cable.remove)
        members = Reached({"attic": cable.port}, attic=inventory_out(having()))
        tower = await stack.enter_async_context(ingress(world, "tower", members=members))
        body = {"machine_name": "ollama", "base_url": f"http://127.0.0.1:{fake.port}"}
        _, answer = await attic.peer.registry.register(body, allow_loopback=True)
        tower.cable = cable
        yield tower, attic, answer["agent_id"]


async def test_a_server_beside_one_peer_serves_the_whole_mesh_through_that_peer() -> None:
    async with openai_server() as fake, lodged(fake) as (tower, attic, agent_id):
        for asked in (tower, attic):
            assert {view.id for view in asked.neighbours.views()} == set(fake.models)
            chunks = await asked.ask()
            assert (text(chunks), served_by(chunks)) == ("Hello there!", "ollama")
            assert chunks[-1].usage == Usage(prompt_tokens=11, completion_tokens=7)
        assert [body["model"] for body in fake.bodies] == [MODEL, MODEL]
        answer = await tower.dispatcher.embed(EmbeddingRequest(id="e", model="nomic-embed-text", inputs=("a",)), ME)
        assert (answer.peer, answer.dim) == ("ollama", 2)
        assert tower.neighbours.in_flight.running() == 0
        tower.peer.world.absent.add("attic")
        _, error = await tower.fails()
        assert error.status == 503
        tower.peer.world.absent.clear()
        await tower.peer.registry.delete(agent_id)
        _, error = await tower.fails()
        assert error.status == 404


async def test_usage_that_is_estimated_is_so_through_another_peer_too() -> None:
    async with openai_server(usage=None) as fake, lodged(fake) as (tower, _, _):
        usage = (await tower.ask())[-1].usage
        assert usage is not None and usage.is_estimated and usage.completion_tokens == 3


async def test_what_breaks_behind_another_peer_is_interrupted_or_refused_as_here() -> None:
    async with openai_server(cut_after=1) as fake, lodged(fake) as (tower, attic, _):
        made, error = await tower.fails()
        assert made == "Hello" and type(error) is StreamInterrupted
        assert tower.candidates()["ollama"].is_suspect and attic.candidates()["ollama"].is_suspect
    async with openai_server(refusal=(404, "model not found", {})) as fake, lodged(fake) as (tower, _, _):
        _, error = await tower.fails()
        assert (error.status, error.code) == (404, "404") and "model not found" in error.message


async def test_a_server_that_is_gone_behind_another_peer_is_unavailable_and_avoided() -> None:
    async with openai_server() as fake, lodged(fake) as (tower, attic, _):
        await tower.ask()
        fake.raw = [b"data: nonsense\n\n"]
        _, error = await tower.fails()
        assert (type(error), error.status, bool(error.retry_after_s)) == (ModelUnavailable, 503, True)
        assert tower.candidates()["ollama"].is_suspect and attic.candidates()["ollama"].is_suspect
        fake.refusal = (200, {"data": []}, {})
        with pytest.raises(ModelUnavailable):
            await tower.dispatcher.embed(EmbeddingRequest(id="e", model="nomic-embed-text", inputs=("a",)), ME)


async def test_a_peer_that_is_lost_with_the_server_beside_it_interrupts_what_has_text() -> None:
    async with openai_server(gate=asyncio.Event()) as fake, lodged(fake) as (tower, _, _), openai_server() as other:
        await registered(tower.peer, other, "other")
        tower.peer.breakers.failed(tower.peer.agents.found("other").id, "wedged", tower.peer.world.clock())
        chunks = tower.dispatcher.generate(request(), ME)
        while not (await anext(chunks)).text:
            pass
        assert tower.cable is not None
        tower.cable.cut()
        with pytest.raises(StreamInterrupted):
            async for _ in chunks:
                pass
        assert other.bodies == []
        moved = {"reason": "peer_gone", "begun": "yes"}
        assert not value(tower.metrics, "llm_router_requests_moved_total", **moved)  # nobody was looked for


async def test_leaving_reaches_the_server_behind_another_peer() -> None:
    async with openai_server(gate=asyncio.Event()) as fake, lodged(fake) as (tower, _, _):
        chunks = tower.dispatcher.generate(request(), ME)
        while not (await anext(chunks)).text:
            pass
        await chunks.aclose()
        await asyncio.wait_for(fake.left.wait(), WAIT_S)


async def test_a_peer_asks_only_the_servers_it_may_for_others() -> None:
    async with openai_server() as fake, lodged(fake) as (tower, attic, agent_id):
        good = f"{LODGED}{agent_id}/{MODEL}"
        for name in (f"{LODGED}nobody/{MODEL}", f"{LODGED}{agent_id}/other", f"{LODGED}{agent_id}", LODGED):
            with pytest.raises(ModelUnavailable):
                async for _ in attic.hop_service.generate(request(model=name), _forwarder()):
                    pass
        with pytest.raises(ModelUnavailable):  # the tower is not the one beside it
            async for _ in tower.hop_service.generate(request(model=good), _forwarder()):
                pass
        await attic.peer.registry.disconnect(agent_id)
        with pytest.raises(ModelUnavailable):
            async for _ in attic.hop_service.generate(request(model=good), _forwarder()):
                pass
        with pytest.raises(ModelNotFound):  # its own models are its own
            async for _ in attic.hop_service.generate(request(model="other"), _forwarder()):
                pass
        assert fake.bodies == []


def _forwarder() -> Forwarder:
    return Forwarder(peer="tower")
