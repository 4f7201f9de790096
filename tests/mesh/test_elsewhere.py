"""One request and several holders: whatever breaks, and whenever, the text is the undisturbed one, and counted once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from inference.chat import ChatPrompt, Chunk, EmbeddingRequest, Message, Sampling
from inference.engine.client import DEFAULT_WORKER
from inference.engine.spec import EngineSpec
from inference.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    InferenceError,
    ModelUnavailable,
    Overloaded,
    StreamInterrupted,
)
from mesh import attempts
from mesh.hop import Silence
from tests.fixtures.fake_worker import expected_tokens
from tests.fixtures.holders import ME, WAIT_S, Holder, Ingress, Mesh, answer, request, until
from tests.mesh.test_metrics import value

LONG = "--rate 100 --tokens 100000 --context 200000"


def text(chunks: list[Chunk]) -> str:
    return "".join(c.text for c in chunks)


def check(chunks: list[Chunk], name: str, count: int, ingress: Ingress, *, is_split: bool = False) -> None:
    """Undisturbed: text, tokens, one finish reason; counted once; nothing is left behind."""
    assert text(chunks) == answer(name, count, is_split=is_split)
    assert [t for c in chunks for t in c.tokens] == expected_tokens(request(name).prompt, 7, count)
    assert [c.finish_reason for c in chunks if c.finish_reason] == ["stop"] and chunks[-1].finish_reason
    assert chunks[0].started is not None
    assert value(ingress.metrics, "llm_router_tokens_total", type="completion") == count
    assert value(ingress.metrics, "llm_router_tokens_total", type="prompt") == chunks[0].started.prompt_tokens
    assert value(ingress.metrics, "llm_router_requests_total", kind="chat", status="200") == 1
    assert ingress.dispatcher.active() == [] and ingress.known.in_flight.running() == 0


def served_by(chunks: list[Chunk]) -> tuple[str, ...]:
    last = [c.started for c in chunks if c.started][-1]
    return (last.peer, *last.continued_on)


async def two(mesh: Mesh, arguments: str) -> tuple[Holder, Holder, Ingress]:
    """Two holders; the first is asked first."""
    attic, tower, ingress = await mesh.holder("attic", arguments), await mesh.holder("tower", arguments), None
    ingress = await mesh.ingress()
    ingress.known.order = ("attic", "tower")
    return attic, tower, ingress


async def test_request_runs_on_the_best_holder_and_says_where() -> None:
    async with Mesh() as mesh:
        attic, tower, ingress = await two(mesh, "--tokens 12")
        chunks = await ingress.ask("a", replace(ME, explain=True))
        check(chunks, "a", 12, ingress)
        first = chunks[0].started
        assert first is not None and (first.peer, first.attempts) == ("attic", 1)
        assert first.candidates is not None and '"peer":"attic"' in first.candidates and "tower" in first.candidates
        assert len(attic.engines) == 1 and tower.engines == []
        assert ingress.known.proven == ["attic"]


async def test_connection_that_breaks_after_any_event_changes_no_text() -> None:
    """The first event says that it started, the thirteenth is the last one, or an earlier one on a busy machine, where
    an event holds several tokens. Two tokens share a character."""
    async with Mesh() as mesh:
        attic, _, _ = await two(mesh, "--rate 300 --tokens 12 --split")
        for events in range(1, 14):
            ingress = await mesh.ingress()
            ingress.known.order = ("attic", "tower")
            attic.cable.cut_after_events = events
            chunks = await ingress.ask("a")
            check(chunks, "a", 12, ingress, is_split=True)
            has_moved = ingress.known.failures == [("attic", "gone")]
            if events == 1:
                assert served_by(chunks) == ("tower",)
            elif has_moved:
                assert served_by(chunks) == ("attic", "tower")
            else:  # the finish reason stands in the event of the last token: all was there
                assert served_by(chunks) == ("attic",) and len(chunks) <= events and not ingress.known.failures


async def test_connection_that_breaks_while_text_is_held_back_changes_no_text() -> None:
    stop = (answer("x", 30)[-60:-3], answer("x", 30)[70:74] + "nothing like this")
    async with Mesh() as mesh:
        attic, _, ingress = await two(mesh, "--rate 300 --tokens 30")
        undisturbed = await ingress.ask("x", stop=stop)
        assert answer("x", 30).startswith(text(undisturbed)) and len(text(undisturbed)) < len(answer("x", 30))
        for events in range(2, 22, 3):
            ingress = await mesh.ingress()
            ingress.known.order = ("attic", "tower")
            attic.cable.cut_after_events = events
            chunks = await ingress.ask("x", stop=stop)
            assert text(chunks) == text(undisturbed) and served_by(chunks) == ("attic", "tower")
            assert [c.finish_reason for c in chunks if c.finish_reason] == ["stop"]
            assert [t for c in chunks for t in c.tokens] == [t for c in undisturbed for t in c.tokens]


async def test_connections_that_break_in_the_middle_of_an_event_change_no_text() -> None:
    async with Mesh() as mesh:
        attic, _, ingress = await two(mesh, "--rate 300 --tokens 40 --split")
        attic.cable.cut_after_bytes = 2077
        chunks = await ingress.ask("a")
        check(chunks, "a", 40, ingress, is_split=True)
        assert served_by(chunks) == ("attic", "tower")


async def test_answer_may_move_more_than_once() -> None:
    async with Mesh() as mesh:
        attic, tower, ingress = await two(mesh, "--rate 200 --tokens 30")
        await mesh.holder("barn", "--rate 200 --tokens 30")
        ingress.known.order = ("attic", "tower", "barn")
        attic.cable.cut_after_events = tower.cable.cut_after_events = 8
        chunks = await ingress.ask("a")
        check(chunks, "a", 30, ingress)
        assert served_by(chunks) == ("attic", "tower", "barn")
        assert value(ingress.metrics, "llm_router_requests_moved_total", reason="peer_gone", begun="yes") == 2


async def test_sampled_answers_go_on_with_the_same_seed_and_random_numbers() -> None:
    async with Mesh() as mesh:
        attic, _, ingress = await two(mesh, "--rate 200 --tokens 20")
        attic.cable.cut_after_events = 6
        chunks = await ingress.ask(
            "a", sampling=Sampling()
        )  # the worker refuses other draws, another seed, other tokens
        assert sum(len(c.tokens) for c in chunks) == 20 and served_by(chunks) == ("attic", "tower")


async def test_eight_streams_survive_the_machine_that_makes_them() -> None:
    async with Mesh() as mesh:
        attic, _, ingress = await two(mesh, "--rate 100 --tokens 60")
        names = [f"prompt {n}" for n in range(8)]
        asked = [asyncio.create_task(ingress.ask(name)) for name in names]
        await until(lambda: sum(r.tokens > 3 for r in attic.local.active()) == 8)
        attic.cable.cut()
        for name, chunks in zip(names, await asyncio.gather(*asked), strict=True):
            assert text(chunks) == answer(name, 60) and served_by(chunks) == ("attic", "tower")
        assert value(ingress.metrics, "llm_router_tokens_total", type="completion") == 8 * 60
        await until(lambda: not attic.local.active())


async def test_machine_that_is_gone_before_it_was_asked_is_unseen() -> None:
    async with Mesh() as mesh:
        attic, _, ingress = await two(mesh, "--tokens 5")
        attic.cable.cut()
        chunks = await ingress.ask("a")
        check(chunks, "a", 5, ingress)
        assert chunks[0].started is not None and (chunks[0].started.peer, chunks[0].started.attempts) == ("tower", 2)


async def test_machine_that_stands_still_is_left_and_told_of() -> None:
    async with Mesh() as mesh:
        attic, _, ingress = await two(mesh, "--rate 50 --tokens 30")
        ingress.dead.add("attic")
        asking = asyncio.create_task(ingress.ask("a"))
        await until(lambda: any(r.tokens > 3 for r in attic.local.active()))
        attic.cable.freeze()
        chunks = await asking
        check(chunks, "a", 30, ingress)
        assert served_by(chunks) == ("attic", "tower") and ingress.known.failures == [("attic", "gone")]
        attic.cable.thaw()  # what it says now reaches nobody
        await until(lambda: not attic.local.active())


async def test_holder_without_a_token_is_left_although_it_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "PATIENCE_S", 0.3)
    async with Mesh() as mesh:
        await mesh.holder("attic", "--prefill 60")
        await mesh.holder("tower", "--tokens 5")
        ingress = await mesh.ingress()
        ingress.known.order = ("attic", "tower")
        check(await ingress.ask("a"), "a", 5, ingress)
        assert ingress.known.failures == [("attic", "wedged")]


async def test_last_holder_is_waited_for_until_the_callers_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "PATIENCE_S", 0.1)
    async with Mesh() as mesh:
        await mesh.holder("attic", "--prefill 60")
        ingress = await mesh.ingress()
        with pytest.raises(DeadlineExceeded):
            await ingress.ask("a", replace(ME, deadline_s=1.0))
        assert ingress.known.failures == []
        await until(lambda: not mesh.holders["attic"].local.active())


async def test_without_another_holder_the_stream_is_interrupted() -> None:
    async with Mesh() as mesh:
        attic, ingress = await mesh.holder("attic", LONG), await mesh.ingress()
        made = ""
        with pytest.raises(StreamInterrupted, match="after") as caught:
            async with asyncio.timeout(WAIT_S):
                async for chunk in ingress.dispatcher.generate(request("a"), ME):
                    made += chunk.text
                    if len(made) > 50:
                        attic.cable.cut()
        assert caught.value.code == "stream_interrupted" and made and answer("a", 1000).startswith(made)


async def test_without_another_holder_nothing_begun_is_unavailable() -> None:
    async with Mesh() as mesh:
        attic, ingress = await mesh.holder("attic"), await mesh.ingress()
        attic.cable.cut()
        with pytest.raises(ModelUnavailable) as caught:
            await ingress.ask("a")
        assert caught.value.retry_after_s


async def test_connection_that_was_only_reset_is_taken_up_again_at_the_same_machine() -> None:
    async with Mesh() as mesh:
        attic, ingress = await mesh.holder("attic", "--rate 200 --tokens 20"), await mesh.ingress()
        asking = asyncio.create_task(ingress.ask("a"))
        await until(lambda: any(r.tokens > 3 for r in attic.local.active()))
        attic.cable.reset()
        chunks = await asking
        check(chunks, "a", 20, ingress)
        assert served_by(chunks) == ("attic",)


async def test_answer_goes_on_with_the_same_file_only() -> None:
    async with Mesh() as mesh:
        attic, ingress = await mesh.holder("attic", "--rate 200 --tokens 30"), await mesh.ingress()
        other = await mesh.holder("other", "--rate 200 --tokens 30", sha256="66" * 32)
        small = await mesh.holder("small", "--rate 200 --tokens 30")
        small.context, attic.context = 20, 4096
        ingress.known.order = ("attic", "other", "small")
        attic.cable.cut_after_events = 4
        with pytest.raises(StreamInterrupted):
            await ingress.ask("a", max_tokens=25)
        assert other.engines == small.engines == []
        attic.cable.cut()
        assert text(await ingress.ask("a")) == answer("a", 30), "what has not begun may be made with any file"
        assert len(other.engines) == 1


async def test_worker_that_dies_costs_its_requests_nothing_and_another_machine_goes_on() -> None:
    async with Mesh() as mesh:
        attic, _, ingress = await two(mesh, "--rate 100 --tokens 40")
        asking = asyncio.create_task(ingress.ask("a"))
        await until(lambda: any(r.tokens > 3 for r in attic.local.active()))
        attic.kill_workers()
        chunks = await asking
        check(chunks, "a", 40, ingress)
        assert served_by(chunks) == ("attic", "tower") and ingress.known.failures == []


async def test_prompt_that_kills_engines_kills_two_and_no_more() -> None:
    async with Mesh() as mesh:
        _, _, ingress = await two(mesh, "--crash-after 0 --crash-how segv")
        await mesh.holder("barn", "--crash-after 0 --crash-how segv")
        with pytest.raises(ModelUnavailable, match="crashed 2 times before the first token"):
            await ingress.ask("a")
        assert sum(len(h.engines) for h in mesh.holders.values()) == 2


@pytest.mark.engine
async def test_real_engine_goes_on_at_another_machine_with_the_same_text(scripted_gguf: Path) -> None:
    async with Mesh() as mesh:
        for name in ("attic", "tower"):
            one = await mesh.holder(name)
            one.worker, one.spec = DEFAULT_WORKER, EngineSpec(path=str(scripted_gguf), context=4096, threads=1)
        attic = mesh.holders["attic"]
        undisturbed: list[Chunk] = []
        for events in (None, 2, 3, 4):
            ingress = await mesh.ingress()
            ingress.known.order = ("attic", "tower")
            attic.cable.cut_after_events = events
            prompt = ChatPrompt(messages=(Message(role="user", content="Hello"),))
            chunks = await ingress.ask("a", prompt=prompt, max_tokens=300, ignore_eos=True, stop=("never said",))
            undisturbed = undisturbed or chunks
            assert text(chunks) == text(undisturbed) and len(text(chunks)) > 100
            assert [t for c in chunks for t in c.tokens] == [t for c in undisturbed for t in c.tokens]
            assert served_by(chunks) == (("attic",) if events is None else ("attic", "tower"))
            assert [c.finish_reason for c in chunks if c.finish_reason] == ["length"]


async def test_own_worker_that_dies_is_continued_on_another_machine() -> None:
    async with Mesh() as mesh:
        own = await mesh.holder("own", "--rate 100 --tokens 40")
        await mesh.holder("tower", "--rate 100 --tokens 40")
        ingress = await mesh.ingress(own)
        ingress.known.order = ("own", "tower")
        asking = asyncio.create_task(ingress.ask("a"))
        await until(lambda: any(r.tokens > 3 for r in own.local.active()))
        assert [(r.peer, r.state) for r in ingress.dispatcher.active()] == [("own", "generating")]
        own.kill_workers()
        chunks = await asking
        check(chunks, "a", 40, ingress)
        assert served_by(chunks) == ("own", "tower") and own.cable.connections == 0


async def test_full_holders_are_passed_over_and_then_waited_for() -> None:
    async with Mesh() as mesh:
        attic, tower = await mesh.holder("attic", LONG, slots=1), await mesh.holder("tower", LONG, slots=1)
        ingress = await mesh.ingress()
        ingress.known.order = ("attic", "tower")
        ingress.known.changes = {n: {"active": 0, "queued": 0} for n in ("attic", "tower")}  # old news: all are idle
        first, second, third = (ingress.dispatcher.generate(request(f"{n}"), ME) for n in range(3))
        assert [(await anext(g)).started.peer for g in (first, second)] == ["attic", "tower"]  # type: ignore[union-attr]
        waiting = asyncio.ensure_future(anext(third))
        await until(lambda: attic.local.queued() + tower.local.queued() == 1)
        await (first if attic.local.queued() else second).aclose()
        started = (await waiting).started
        assert started is not None and started.attempts == 1, "a refusal is no attempt"
        assert ingress.known.failures == [] and len(ingress.known.loads) >= 4
        for left in (first, second, third):
            await left.aclose()


async def test_full_queues_everywhere_are_an_overload() -> None:
    async with Mesh() as mesh:
        attic, tower = await mesh.holder("attic", LONG, slots=1), await mesh.holder("tower", LONG, slots=1)
        ingress = await mesh.ingress()
        asked = [asyncio.create_task(ingress.ask(f"{n}")) for n in range(10)]
        await until(lambda: attic.local.queued() == tower.local.queued() == 4)
        with pytest.raises(Overloaded) as caught:
            await ingress.ask("one too many")
        assert caught.value.retry_after_s
        for task in asked:
            task.cancel()
        await asyncio.wait(asked, timeout=WAIT_S)
        await until(lambda: not attic.local.active() and not tower.local.active())
        assert ingress.known.in_flight.running() == 0


async def test_continued_answer_needs_no_place_in_a_full_queue() -> None:
    async with Mesh() as mesh:
        attic, tower = await mesh.holder("attic", "--rate 50 --tokens 60"), await mesh.holder("tower", "", slots=1)
        tower.arguments = "--rate 50 --tokens 60"
        ingress, crowd = await mesh.ingress(), await mesh.ingress()
        ingress.known.order = ("attic", "tower")
        crowd.known.holders = {"tower": tower}
        asking = asyncio.create_task(ingress.ask("a"))
        await until(lambda: any(r.tokens > 3 for r in attic.local.active()))
        others = [asyncio.create_task(crowd.ask(f"{n}")) for n in range(5)]
        await until(lambda: tower.local.queued() == 4)
        with pytest.raises(Overloaded):
            await crowd.ask("one too many")
        attic.cable.cut()
        assert text(await asking) == answer("a", 60)
        assert sum(task.done() for task in others) <= 1, "it went first"
        for task in others:
            task.cancel()
        await asyncio.wait(others, timeout=WAIT_S)


async def test_holder_that_leaves_hands_its_streams_over() -> None:
    async with Mesh() as mesh:
        attic, _, ingress = await two(mesh, "--rate 100 --tokens 50")
        asked = [asyncio.create_task(ingress.ask(f"{n}")) for n in range(4)]
        await until(lambda: sum(r.tokens > 3 for r in attic.local.active()) == 4)
        attic.local.hand_over()
        for n, chunks in enumerate(await asyncio.gather(*asked)):
            assert text(chunks) == answer(f"{n}", 50) and served_by(chunks) == ("attic", "tower")
        assert served_by(await ingress.ask("b")) == ("tower",)
        assert ingress.known.failures == [], "nobody failed"


async def test_caller_that_leaves_frees_the_slot_at_the_other_machine() -> None:
    async with Mesh() as mesh:
        attic, ingress = await mesh.holder("attic", LONG), await mesh.ingress()
        stream = ingress.dispatcher.generate(request("a"), ME)
        for _ in range(3):
            await anext(stream)
        assert ingress.known.in_flight.running("attic") == 1
        await stream.aclose()
        await until(lambda: not attic.local.active() and attic.engines[0].active == 0)
        assert ingress.known.in_flight.running() == 0
        assert value(ingress.metrics, "llm_router_requests_total", kind="chat", status="499") == 1


async def test_deadline_of_the_caller_holds_over_the_hop() -> None:
    async with Mesh() as mesh:
        attic, _, ingress = await two(mesh, LONG)
        with pytest.raises(DeadlineExceeded):
            await ingress.ask("a", replace(ME, deadline_s=0.5))
        await until(lambda: not attic.local.active())
        assert ingress.known.failures == []


async def test_prompt_too_long_for_one_holder_may_fit_a_larger_one() -> None:
    async with Mesh() as mesh:
        small, large = await mesh.holder("small", "--context 20"), await mesh.holder("large", "--context 2000")
        small.context, large.context = 20, 2000
        ingress = await mesh.ingress()
        ingress.known.order = ("small", "large")
        ingress.known.changes = {"small": {"context": 20}}
        long = "word " * 30
        assert text(await ingress.ask(long)) == answer(long, 16)
        with pytest.raises(ContextLengthExceeded):
            await ingress.ask("word " * 3000)


async def test_retries_do_not_multiply_a_failure() -> None:
    async with Mesh() as mesh:
        for name in ("attic", "tower", "barn"):
            await mesh.holder(name, "--fail-load 'the disk is gone'")
        ingress = await mesh.ingress()
        for _ in range(12):
            with pytest.raises(InferenceError):
                await ingress.ask("a")
        spent = sum(h.cable.connections for h in mesh.holders.values())
        assert ingress.dispatcher._budget._left < 1.0 and spent <= 12 * 3


async def test_vectors_are_made_elsewhere_when_a_machine_is_gone() -> None:
    async with Mesh() as mesh:
        attic, _, ingress = await two(mesh, "")
        attic.cable.cut()
        made = await ingress.dispatcher.embed(EmbeddingRequest(id="e", model="embed", inputs=("a b", "c")), ME)
        assert (len(made.vectors), made.peer, made.attempts) == (2, "tower", 2)
        assert value(ingress.metrics, "llm_router_tokens_total", type="prompt") == 3
        with pytest.raises(DeadlineExceeded):
            asked = EmbeddingRequest(id="e", model="embed", inputs=("a",))
            mesh.holders["tower"].cable.freeze()
            await ingress.dispatcher.embed(asked, replace(ME, deadline_s=0.2))


async def test_many_requests_over_machines_that_come_and_go_are_all_undisturbed() -> None:
    """Cuts, resets, freezes and dead workers while forty clients ask."""
    async with Mesh() as mesh:
        for name in ("attic", "tower", "barn"):
            await mesh.holder(name, "--rate 300 --tokens 40 --split")
        own = mesh.holders["barn"]
        ingress = await mesh.ingress(own, silence=Silence(silent_s=0.3, silent_s_max=0.6))
        done = 0

        async def client(n: int) -> None:
            nonlocal done
            for k in range(4):
                assert text(await ingress.ask(f"{n} {k}")) == answer(f"{n} {k}", 40, is_split=True)
                done += 1

        async def at(count: int, what: Callable[[], None]) -> None:
            await until(lambda: done >= count)
            what()

        attic, tower = mesh.holders["attic"], mesh.holders["tower"]
        async with asyncio.timeout(60), asyncio.TaskGroup() as all_of_it:
            for n in range(20):
                all_of_it.create_task(client(n))
            all_of_it.create_task(at(4, attic.cable.reset))
            all_of_it.create_task(at(15, tower.kill_workers))
            all_of_it.create_task(at(30, attic.cable.freeze))
            all_of_it.create_task(at(45, attic.cable.thaw))
            all_of_it.create_task(at(55, attic.cable.cut))
        assert done == 80
        assert value(ingress.metrics, "llm_router_tokens_total", type="completion") == 80 * 40
        await until(lambda: not any(h.local.active() for h in mesh.holders.values()))
        assert ingress.known.in_flight.running() == 0 and ingress.dispatcher.active() == []
