"""This machine as a holder: one attempt, what it measures of itself, and how it leaves."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from inference.chat import Chunk, EmbeddingRequest
from inference.errors import HolderFull, InvalidRequest, ModelUnavailable, PeerLeaving, WorkerDied
from mesh.local import LocalHolder, State
from tests.fixtures.fake_worker import expected_tokens
from tests.fixtures.holders import SHA, WAIT_S, Mesh, answer, request, until
from web.services import Forwarder

OWN = Forwarder(peer="")
TOWER = Forwarder(peer="tower")
LONG = "--rate 100 --tokens 100000 --context 200000"


async def ask(local: LocalHolder, text: str = "a", forwarder: Forwarder = OWN, **changes: object) -> list[Chunk]:
    async with asyncio.timeout(WAIT_S):
        return [c async for c in local.generate(request(text, **changes), forwarder)]


async def test_answer_goes_through_every_state_and_names_its_file() -> None:
    async with Mesh() as mesh:
        local = (await mesh.holder("attic", "--tokens 12")).local
        states: list[State] = []
        chunks = [c async for c in local.generate(request("a"), OWN, states.append)]
        assert states == ["queued", "loading", "prefill", "generating"]
        assert chunks[0].started is not None and chunks[0].started.sha256 == SHA
        assert "".join(c.text for c in chunks) == answer("a", 12)
        assert local.active() == [] and local.queued() == 0


async def test_worker_that_dies_is_one_attempt() -> None:
    async with Mesh() as mesh:
        attic = await mesh.holder("attic", "--rate 200 --tokens 50 --crash-after 10")
        tokens: list[int] = []
        with pytest.raises(WorkerDied):
            async for chunk in attic.local.generate(request("a"), OWN):
                tokens += chunk.tokens
        assert tokens == expected_tokens(request("a").prompt, 7, 10) and len(attic.engines) == 1


async def test_an_answer_that_was_read_to_its_last_chunk_is_a_success_of_its_model() -> None:
    """Who has the last chunk reads no further; a crash before counts no more then, as pool and quarantine say."""
    async with Mesh() as mesh:
        attic = await mesh.holder("attic", "--tokens 3 --rate 100")
        succeeded: list[str] = []
        attic.pool._quarantine.succeeded = succeeded.append  # type: ignore[method-assign,assignment]
        chunks = attic.local.generate(request("a"), OWN)
        async with asyncio.timeout(WAIT_S):
            while (await anext(chunks)).finish_reason is None:
                pass
        await chunks.aclose()
        assert succeeded == ["chat"]


async def test_standing_is_what_was_measured_here() -> None:
    async with Mesh() as mesh:
        local = (await mesh.holder("attic", "--rate 100 --prefill 0.2 --tokens 21", slots=3)).local
        before = local.standing("chat")
        assert (before.slots, before.active, before.decode_tokens_per_s, before.load_s) == (3, 0, None, None)
        await ask(local, "word " * 99)
        after = local.standing("chat")
        assert after.decode_tokens_per_s is not None and 0 < after.decode_tokens_per_s < 1000
        assert after.prefill_tokens_per_s is not None and 0 < after.prefill_tokens_per_s < 10_000
        assert after.service_s is not None and after.service_s > 0.3 and after.load_s == 0
        await ask(local, "short", max_tokens=2)
        again = local.standing("chat")
        assert again.decode_tokens_per_s == after.decode_tokens_per_s, "two tokens tell no rate"
        assert again.prefill_tokens_per_s == after.prefill_tokens_per_s, "two tokens of prompt neither"


async def test_slow_request_shows_while_it_runs() -> None:
    """A holder that has become slow must not go on telling of its good old days."""
    async with Mesh() as mesh:
        attic = await mesh.holder("attic", "--tokens 3 --hang-after 3", slots=1)
        await ask(attic.local)
        quick = attic.local.standing("chat").service_s
        running = asyncio.create_task(ask(attic.local, "b"))
        await until(lambda: (attic.local.standing("chat").service_s or 0.0) > (quick or 0.0) + 0.2)
        assert attic.local.standing("chat").active == 1
        running.cancel()
        await asyncio.wait([running], timeout=WAIT_S)
        assert attic.local.standing("chat").active == 0


async def test_full_holder_refuses_one_that_may_go_elsewhere() -> None:
    async with Mesh() as mesh:
        attic = await mesh.holder("attic", LONG, slots=1)
        running = attic.local.generate(request("a"), TOWER)
        await anext(running)
        with pytest.raises(HolderFull):
            await ask(attic.local, "b", replace(TOWER, may_refuse=True))
        assert attic.local.queued() == 0
        waiting = asyncio.create_task(ask(attic.local, "c", TOWER, max_tokens=2))
        await until(lambda: attic.local.queued() == attic.local.queued("chat") == 1)
        await running.aclose()
        assert (await waiting)[-1].finish_reason == "length"


async def test_callers_share_a_holder_in_turns() -> None:
    async with Mesh() as mesh:
        attic = await mesh.holder("attic", "--rate 300 --tokens 6", slots=4)
        ends: list[str] = []

        async def one(key: str, n: int) -> None:
            await ask(attic.local, f"{key} {n}", replace(TOWER, fairness_key=key))
            ends.append(key)

        await ask(attic.local)
        greedy = [asyncio.create_task(one("greedy", n)) for n in range(10)]
        await until(lambda: attic.local.queued() == 6)
        await one("modest", 0)
        assert ends.count("greedy") <= 8, "it went between"
        await asyncio.gather(*greedy)


async def test_another_file_is_not_taken_for_the_one_that_is_wanted() -> None:
    async with Mesh() as mesh:
        local = (await mesh.holder("attic")).local
        with pytest.raises(ModelUnavailable) as caught:
            await ask(local, "a", replace(TOWER, sha256="ff"))
        assert caught.value.code == "model_changed"
        assert (await ask(local, "a", replace(TOWER, sha256=SHA)))[-1].finish_reason
        unhashed = (await mesh.holder("cellar", sha256="")).local
        with pytest.raises(ModelUnavailable):
            await ask(unhashed, "a", replace(TOWER, sha256=SHA))


async def test_leaving_hands_over_what_others_asked_for_and_keeps_what_is_its_own() -> None:
    async with Mesh() as mesh:
        attic = await mesh.holder("attic", "--rate 100 --tokens 60 --slow-load 0.3", slots=2)
        own = asyncio.create_task(ask(attic.local, "own"))
        forwarded = [asyncio.create_task(ask(attic.local, f"{n}", TOWER)) for n in range(3)]  # one waits for a slot
        loading = asyncio.create_task(attic.local.embed(EmbeddingRequest(id="e", model="embed", inputs=("a",)), TOWER))
        await until(lambda: any(r.state == "loading" and r.kind == "embeddings" for r in attic.local.active()))
        attic.local.hand_over()
        for task in (*forwarded, loading):
            with pytest.raises(PeerLeaving):
                await task
        assert "".join(c.text for c in await own) == answer("own", 60)
        with pytest.raises(PeerLeaving):
            await ask(attic.local, "late", TOWER)
        assert await attic.local.drain(WAIT_S) and attic.local.active() == []


async def test_draining_ends_what_runs_and_takes_nothing_from_others() -> None:
    async with Mesh() as mesh:
        local = (await mesh.holder("attic", "--rate 100 --tokens 30")).local
        running = asyncio.create_task(ask(local, "a", TOWER))
        await until(lambda: bool(local.active()))
        draining = asyncio.create_task(local.drain(WAIT_S))
        await asyncio.sleep(0)
        with pytest.raises(PeerLeaving):
            await ask(local, "b", TOWER)
        assert await draining and "".join(c.text for c in await running) == answer("a", 30)


async def test_models_of_the_other_kind_are_refused_and_not_loaded() -> None:
    async with Mesh() as mesh:
        attic = await mesh.holder("attic")
        with pytest.raises(InvalidRequest, match="makes embeddings"):
            await ask(attic.local, model="embed")
        with pytest.raises(InvalidRequest, match="cannot make embeddings"):
            await attic.local.embed(EmbeddingRequest(id="e", model="chat", inputs=("a",)), OWN)
        assert attic.engines == []
