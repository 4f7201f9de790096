"""The hop itself: a client of peers against real holders, over a cable that breaks, stalls and lies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from aiohttp import web

from inference.chat import Chunk, EmbeddingRequest
from inference.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    HolderFull,
    InvalidRequest,
    ModelNotFound,
    ModelUnavailable,
    PeerGone,
    PeerLeaving,
    PeerSilent,
    WorkerDied,
)
from inference.openai.answer import AnswerHead
from inference.openai.upstream import HopWriter
from mesh.hop import HopClient, Silence, Target
from tests.fixtures.fake_worker import expected_tokens
from tests.fixtures.holders import SHA, WAIT_S, Holder, Ingress, Mesh, answer, request, until
from web.services import Forwarder

OWN = Forwarder(peer="")
LONG = "--rate 100 --tokens 100000 --context 200000"


def target(holder: Holder, *addresses: str) -> Target:
    there = f"127.0.0.1:{holder.cable.port}"
    return Target(peer=holder.name, name=holder.name, addresses=addresses or (there,), model_id="chat", sha256=SHA)


async def ask(ingress: Ingress, holder: Holder, forwarder: Forwarder = OWN, **changes: object) -> list[Chunk]:
    async with asyncio.timeout(WAIT_S):
        chunks = ingress.hop.generate(target(holder), request(**changes), forwarder)  # type: ignore[arg-type]
        return [c async for c in chunks]


async def test_an_answer_comes_as_it_was_made_with_what_its_holder_says_of_itself() -> None:
    async with Mesh() as mesh:
        attic, ingress = await mesh.holder("attic", "--tokens 30"), await mesh.ingress()
        first, *rest = await ask(ingress, attic)
        assert first.started is not None
        assert (first.started.prompt_tokens, first.started.sha256) == (3, SHA)
        assert "".join(c.text for c in rest) == answer("hello you", 30)
        assert [t for c in rest for t in c.tokens] == expected_tokens(request().prompt, 7, 30)
        assert (rest[-1].finish_reason, rest[-1].draws) == ("stop", 30)
        assert ingress.known.loads == [("attic", b"load of attic")] * 2


async def test_requests_one_after_another_use_one_connection() -> None:
    async with Mesh() as mesh:
        attic, ingress = await mesh.holder("attic", "--tokens 5"), await mesh.ingress()
        for n in range(5):
            chunks = ingress.hop.generate(target(attic), request(f"{n}"), OWN)
            async for chunk in chunks:
                if chunk.finish_reason:  # as the dispatcher does: it does not ask for more than the last
                    break
            await chunks.aclose()
        with pytest.raises(ContextLengthExceeded):
            await ask(ingress, attic, text="long " * 5000)
        await ask(ingress, attic)
        assert attic.cable.connections == 1


async def test_leaving_frees_the_slot_at_the_holder() -> None:
    async with Mesh() as mesh:
        attic, ingress = await mesh.holder("attic", LONG, slots=1), await mesh.ingress()
        chunks = ingress.hop.generate(target(attic), request(), OWN)
        for _ in range(3):
            await anext(chunks)
        (busy,) = attic.local.active()
        assert (busy.asked_by, busy.state) == ("ingress", "generating")
        await until(lambda: attic.engines[0].stats.get("active") == 1)
        await chunks.aclose()
        await until(lambda: attic.engines[0].stats.get("active") == 0 and not attic.local.active())


async def test_peer_that_is_no_member_any_more_is_not_listened_to() -> None:
    async with Mesh() as mesh:
        attic, tower = await mesh.holder("attic", LONG), await mesh.holder("tower", LONG)
        ingress = await mesh.ingress()
        revoked = [ingress.hop.generate(target(attic), request(), OWN) for _ in range(2)]
        stays = ingress.hop.generate(target(tower), request(), OWN)
        for chunks in (*revoked, stays):
            await anext(chunks)
        waits = asyncio.create_task(_all(revoked[0]))  # the other one's client reads nothing now
        await asyncio.sleep(0)
        ingress.hop.gone("attic")
        async with asyncio.timeout(2.0):
            with pytest.raises(PeerGone):
                await waits
            with pytest.raises(PeerGone):
                await _all(revoked[1])
        await until(lambda: not attic.local.active())
        assert await anext(stays)
        await stays.aclose()


async def _all(chunks: AsyncGenerator[Chunk, None]) -> None:
    async for _ in chunks:
        pass


async def test_what_the_ingress_says_of_a_request_arrives() -> None:
    async with Mesh() as mesh:
        attic, ingress = await mesh.holder("attic", LONG, slots=1), await mesh.ingress()
        with pytest.raises(DeadlineExceeded, match=r"after \d+ tokens"):
            await ask(ingress, attic, replace(OWN, deadline_s=0.3))
        running = ingress.hop.generate(target(attic), request(), OWN)
        await anext(running)
        with pytest.raises(HolderFull):
            await ask(ingress, attic, replace(OWN, may_refuse=True))
        with pytest.raises(ModelUnavailable) as caught:
            await ask(ingress, attic, replace(OWN, sha256="ff"))
        assert caught.value.code == "model_changed"
        assert ingress.known.loads[-1] == ("attic", b"load of attic")
        await running.aclose()


async def test_errors_of_the_holder_are_the_callers_as_if_they_were_made_here() -> None:
    async with Mesh() as mesh:
        attic, ingress = await mesh.holder("attic", "--context 10"), await mesh.ingress()
        with pytest.raises(ContextLengthExceeded) as long:
            await ask(ingress, attic, text="long " * 50)
        assert (long.value.param, long.value.status) == ("messages", 400)
        with pytest.raises(ModelNotFound):
            nobody = replace(target(attic), model_id="nobody")
            await anext(ingress.hop.generate(nobody, request(), OWN))
        with pytest.raises(InvalidRequest) as wrong:
            await anext(ingress.hop.generate(replace(target(attic), model_id="embed"), request(), OWN))
        assert wrong.value.code == "unsupported_model"


async def test_error_after_the_stream_was_opened_by_a_heartbeat_keeps_its_kind() -> None:
    async with Mesh() as mesh:
        attic = await mesh.holder("attic", "--slow-load 0.5 --context 10")
        ingress = await mesh.ingress()
        with pytest.raises(ContextLengthExceeded) as caught:
            await ask(ingress, attic, text="long " * 50)
        assert (caught.value.param, caught.value.status) == ("messages", 400)


async def test_worker_that_dies_is_told_with_everything_before_it() -> None:
    async with Mesh() as mesh:
        attic = await mesh.holder("attic", "--rate 200 --tokens 100 --crash-after 10")
        ingress = await mesh.ingress()
        chunks: list[Chunk] = []
        with pytest.raises(WorkerDied):
            async for chunk in ingress.hop.generate(target(attic), request(), OWN):
                chunks.append(chunk)
        assert [t for c in chunks for t in c.tokens] == expected_tokens(request().prompt, 7, 10)


@pytest.mark.parametrize("events", [1, 2, 7])
async def test_broken_connection_is_a_peer_that_is_gone_after_everything_that_came(events: int) -> None:
    async with Mesh() as mesh:
        attic, ingress = await mesh.holder("attic", "--rate 100 --tokens 1000"), await mesh.ingress()
        attic.cable.cut_after_events = events
        chunks: list[Chunk] = []
        with pytest.raises(PeerGone):
            async for chunk in ingress.hop.generate(target(attic), request(), OWN):
                chunks.append(chunk)
        assert [t for c in chunks for t in c.tokens] == expected_tokens(request().prompt, 7, events - 1)


async def test_cut_in_the_middle_of_an_event_gives_nothing_of_it() -> None:
    async with Mesh() as mesh:
        attic, ingress = await mesh.holder("attic", "--rate 100 --tokens 1000"), await mesh.ingress()
        attic.cable.cut_after_bytes = 1500
        tokens: list[int] = []
        text = ""
        with pytest.raises(PeerGone):
            async for chunk in ingress.hop.generate(target(attic), request(), OWN):
                tokens += chunk.tokens
                text += chunk.text
        assert tokens and text == answer("hello you", len(tokens))


async def test_nobody_listens() -> None:
    async with Mesh() as mesh:
        attic, ingress = await mesh.holder("attic"), await mesh.ingress()
        attic.cable.cut()
        with pytest.raises(PeerGone, match="cannot be reached"):
            await ask(ingress, attic)
        with pytest.raises(PeerGone, match="has no address"):
            await anext(ingress.hop.generate(replace(target(attic), addresses=()), request(), OWN))


async def test_address_that_worked_is_the_first_one_next_time() -> None:
    async with Mesh() as mesh:
        attic, dead, ingress = await mesh.holder("attic"), await mesh.holder("dead"), await mesh.ingress()
        dead.cable.cut()
        bad, good = f"127.0.0.1:{dead.cable.port}", f"127.0.0.1:{attic.cable.port}"
        both = target(attic, bad, good)
        assert ingress.hop._in_order(both) == [bad, good]
        assert [c async for c in ingress.hop.generate(both, request(), OWN)][-1].finish_reason
        assert ingress.hop._in_order(both) == [good, bad]


async def test_idle_connection_that_broke_costs_a_request_nothing() -> None:
    async with Mesh() as mesh:
        attic, ingress = await mesh.holder("attic"), await mesh.ingress()
        await ask(ingress, attic)
        attic.cable.reset()
        assert (await ask(ingress, attic))[-1].finish_reason


@pytest.mark.parametrize("is_begun", [False, True])
async def test_silent_peer_is_left_once_a_probe_fails(is_begun: bool) -> None:
    async with Mesh() as mesh:
        attic, ingress = await mesh.holder("attic", LONG), await mesh.ingress(silence=Silence(silent_s=0.3))
        ingress.dead.add("attic")
        if not is_begun:
            attic.cable.freeze()
        chunks = ingress.hop.generate(target(attic), request(), OWN)
        with pytest.raises(PeerSilent):
            async with asyncio.timeout(WAIT_S):
                async for chunk in chunks:
                    if chunk.tokens:
                        attic.cable.freeze()
        assert ingress.probes == ["attic"]


async def test_silent_peer_whose_probe_answers_is_left_all_the_same() -> None:
    async with Mesh() as mesh:
        attic = await mesh.holder("attic", LONG)
        ingress = await mesh.ingress(silence=Silence(silent_s=0.2, silent_s_max=0.6))
        attic.cable.freeze()
        with pytest.raises(PeerSilent, match=r"nothing for 0\.[67]"):
            await ask(ingress, attic)
        assert ingress.probes == ["attic"]


async def test_ingress_that_stood_still_itself_blames_nobody() -> None:
    """A closed laptop, or a machine that is short of everything."""
    async with Mesh() as mesh:
        attic = await mesh.holder("attic", "--rate 50 --tokens 40")
        ingress = await mesh.ingress(silence=Silence(silent_s=0.3, silent_s_max=0.6))
        ingress.dead.add("attic")
        text = ""
        async for chunk in ingress.hop.generate(target(attic), request(), OWN):
            if len(text) < 100 <= len(text + chunk.text):
                asyncio.get_running_loop().call_soon(time.sleep, 1.2)
            text += chunk.text
        assert text == answer("hello you", 40) and ingress.probes == []


async def test_short_silence_is_forgiven() -> None:
    async with Mesh() as mesh:
        attic = await mesh.holder("attic", "--rate 100 --tokens 20")
        ingress = await mesh.ingress(silence=Silence(silent_s=0.2, silent_s_max=WAIT_S))
        text = ""
        async for chunk in ingress.hop.generate(target(attic), request(), OWN):
            text += chunk.text
            if chunk.tokens and not ingress.probes:
                attic.cable.freeze()
                asyncio.get_running_loop().call_later(0.5, attic.cable.thaw)
                await until(lambda: True)
        assert text == answer("hello you", 20) and ingress.probes


async def test_heartbeats_keep_a_stream_alive_while_its_prompt_is_evaluated() -> None:
    async with Mesh() as mesh:
        attic = await mesh.holder("attic", "--prefill 1.5 --tokens 3")
        ingress = await mesh.ingress(silence=Silence(silent_s=0.3, silent_s_max=0.4))
        ingress.dead.add("attic")
        assert (await ask(ingress, attic))[-1].finish_reason == "stop"
        assert ingress.probes == []


async def test_slow_reader_slows_its_stream_and_nobody_else() -> None:
    async with Mesh() as mesh:
        attic = await mesh.holder("attic", "--tokens 30000 --context 40000", slots=2)
        ingress = await mesh.ingress()
        chunks = ingress.hop.generate(target(attic), request("slow"), OWN)
        await anext(chunks)
        text = (await anext(chunks)).text
        for n in range(3):  # the others are served meanwhile, and the slow one's slot is given back
            made = await ask(ingress, attic, text=f"quick {n}", max_tokens=50)
            assert "".join(c.text for c in made) == answer(f"quick {n}", 50)
        await until(lambda: attic.engines[0].active == 0)
        before = attic.cable.bytes_back
        assert before < 4_000_000, "what nobody reads is not sent"
        async for chunk in chunks:
            text += chunk.text
        assert text == answer("slow", 30_000)


async def test_holder_that_leaves_hands_over_what_it_runs_and_takes_nothing() -> None:
    async with Mesh() as mesh:
        attic, ingress = await mesh.holder("attic", LONG, slots=1), await mesh.ingress()
        running = ingress.hop.generate(target(attic), request("a"), OWN)
        await anext(running)
        waiting = asyncio.create_task(ask(ingress, attic, text="b"))
        await until(lambda: attic.local.queued() == 1)
        attic.local.hand_over()
        with pytest.raises(PeerLeaving):
            async for _ in running:
                pass
        with pytest.raises(PeerLeaving):
            await waiting
        with pytest.raises(PeerLeaving):
            await ask(ingress, attic, text="c")
        assert await attic.local.drain(WAIT_S)


async def test_stopping_the_routes_tells_the_ingress() -> None:
    async with Mesh() as mesh:
        attic, ingress = await mesh.holder("attic", LONG), await mesh.ingress()
        running = ingress.hop.generate(target(attic), request("a"), OWN)
        await anext(running)
        stopping = asyncio.create_task(attic.routes.stop(0))
        with pytest.raises(PeerLeaving):
            async for _ in running:
                pass
        await stopping
        assert attic.routes.active_requests == 0


async def test_vectors_come_over_the_hop() -> None:
    async with Mesh() as mesh:
        attic, ingress = await mesh.holder("attic"), await mesh.ingress()
        there = replace(target(attic), model_id="embed")
        asked = EmbeddingRequest(id="e", model="embed", inputs=("a b", "c"), dimensions=3)
        made = await ingress.hop.embed(there, asked, OWN)
        assert (len(made.vectors), made.dim, made.prompt_tokens) == (2, 3, 3)
        with pytest.raises(InvalidRequest):
            await ingress.hop.embed(target(attic), asked, OWN)
        attic.cable.cut()
        with pytest.raises(PeerGone):
            await ingress.hop.embed(there, asked, OWN)


# -- a holder that is none

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def liar(respond: Answer) -> AsyncIterator[tuple[HopClient, Target]]:
    async def alive(peer: str) -> bool:
        return True

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", respond)
    runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    silence = Silence(silent_s=0.2, silent_s_max=0.4)
    try:
        async with HopClient(probe=alive, silence=silence) as hop:
            there = f"127.0.0.1:{runner.addresses[0][1]}"
            yield hop, Target(peer="liar", name="liar", addresses=(there,), model_id="chat", sha256=SHA)
    finally:
        await runner.cleanup()


def says(body: bytes, status: int = 200) -> Answer:
    async def respond(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.Response(status=status, body=body)

    return respond


WRITER = HopWriter(AnswerHead(kind="generate", request_id="r", model="m", created=1))
ONE = WRITER.chunk(Chunk(text="a", tokens=(1,), draws=1))


@pytest.mark.parametrize(
    "body",
    [b"", b"data: {\n\n", ONE, ONE + b"data: [DONE]\n\n", ONE * 6, b"<html>\n" * 1000],
    ids=["nothing", "garbage", "no end", "done too early", "too many tokens", "a web page"],
)
async def test_liar_is_gone(body: bytes) -> None:
    async with liar(says(body)) as (hop, there):
        tokens = 0
        with pytest.raises(PeerGone):
            async for chunk in hop.generate(there, request(max_tokens=5), OWN):
                tokens += len(chunk.tokens)
        assert tokens <= 5


@pytest.mark.parametrize("status", [301, 403, 404, 500, 503])
async def test_status_without_a_reason_is_a_peer_that_is_gone(status: int) -> None:
    async with liar(says(b"no", status)) as (hop, there):
        with pytest.raises(PeerGone):
            await anext(hop.generate(there, request(), OWN))


async def test_answer_is_not_continued_with_another_file() -> None:
    wire = ONE.replace(b'"t":[1],"r":1', b'"started":{"prompt_tokens":1,"cached_tokens":0,"sha256":"ff"}')
    async with liar(says(wire)) as (hop, there):
        with pytest.raises(ModelUnavailable) as caught:
            await anext(hop.generate(there, request(), replace(OWN, sha256=SHA)))
        assert caught.value.code == "model_changed"


async def test_endless_refusal_is_cut_off() -> None:
    async def respond(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=500)
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65536)

    async with liar(respond) as (hop, there):
        with pytest.raises(PeerGone):
            async with asyncio.timeout(WAIT_S):
                await anext(hop.generate(there, request(), OWN))


async def test_peer_that_takes_a_request_and_never_answers_is_silent() -> None:
    async def respond(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(WAIT_S)
        return web.Response()

    async with liar(respond) as (hop, there):
        with pytest.raises(PeerSilent):
            async with asyncio.timeout(WAIT_S):
                await anext(hop.generate(there, request(), OWN))
