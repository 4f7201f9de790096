"""The life of a request over a real pool and real child processes (tests/fixtures/fake_worker.py)."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from inference.chat import ChatPrompt, Chunk, EmbeddingRequest, Generation, Message, Sampling, TextPrompt
from inference.engine.client import EngineClient
from inference.engine.spec import EngineSpec
from inference.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    InferenceError,
    InvalidRequest,
    ModelNotFound,
    ModelUnavailable,
    Overloaded,
    StreamInterrupted,
)
from inference.models.model import StoredModel
from inference.models.pool import Pool, PoolLimits
from mesh.dispatch import Dispatcher, OnlyHere
from mesh.local import SLOTS_BEFORE_LOAD, LocalHolder
from mesh.metrics import Metrics
from tests.fixtures.fake_worker import expected_text, expected_tokens
from tests.fixtures.stored_models import stored_model, view
from tests.mesh.test_metrics import value
from web.services import Caller

WAIT_S = 20.0
ME = Caller(ip="127.0.0.1", is_local=True)
MODELS = {m.id: m for m in (stored_model("chat"), stored_model("embed", embeds=True))}


class Peer:
    def __init__(self, pool: Pool, arguments: str, slots: int) -> None:
        self.pool = pool
        self.arguments = arguments
        self.slots = slots
        self.engines: list[EngineClient] = []
        self.metrics = Metrics()
        self.dispatcher = dispatcher(pool, self.resolve, self.metrics, slots)

    def resolve(self, name: str) -> StoredModel:
        if name not in MODELS:
            raise ModelNotFound(f"The model {name} is not known.", param="model")
        return MODELS[name]

    async def ask(self, text: str = "hello you", caller: Caller = ME, **changes: object) -> list[Chunk]:
        return [c async for c in self.dispatcher.generate(request(text, **changes), caller)]

    async def text(self, text: str, **changes: object) -> str:
        return "".join(c.text for c in await self.ask(text, **changes))  # type: ignore[arg-type]


def dispatcher(
    pool: Pool, resolve: Callable[[str], StoredModel], metrics: Metrics, slots: int = SLOTS_BEFORE_LOAD
) -> Dispatcher:
    """Of a peer that knows no other."""
    local = LocalHolder(pool=pool, resolve=resolve, slots=slots)
    return Dispatcher(local=local, holders=OnlyHere(lambda n: view(resolve(n)), name="attic"), metrics=metrics)


@asynccontextmanager
async def peer(arguments: str = "", *, slots: int = 8, limits: PoolLimits | None = None) -> AsyncIterator[Peer]:
    async def start(model: StoredModel, on_progress: Callable[[float], None]) -> EngineClient:
        engine = await EngineClient.start(
            EngineSpec(path=str(model.path), slots=slots, embedding=model.header.is_embedding),
            worker=f"tests.fixtures.fake_worker {house.arguments}",
            timeout_s=WAIT_S,
            on_progress=on_progress,
        )
        house.engines.append(engine)
        return engine

    pool = Pool(
        start=start,
        bytes_needed=lambda m: m.size_bytes,
        limits=limits or PoolLimits(max_loaded=2),
        observe=lambda event: house.metrics.pool_event(event),
    )
    house = Peer(pool, arguments, slots)
    async with pool:
        yield house


def request(text: str, **changes: object) -> Generation:
    made = Generation(id=f"r-{text}", model="chat", prompt=TextPrompt(text=text), sampling=Sampling(seed=7))
    return replace(made, **changes)  # type: ignore[arg-type]


def answer(text: str, count: int) -> str:
    return expected_text(TextPrompt(text=text), 7, count)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


async def test_answer_says_who_served_it_and_is_counted() -> None:
    async with peer("--tokens 12") as house:
        first, *rest = await house.ask()
        assert first.started is not None and (first.started.peer, first.started.attempts) == ("attic", 1)
        assert "".join(c.text for c in rest) == answer("hello you", 12)
        assert rest[-1].finish_reason == "stop"
        assert value(house.metrics, "llm_router_requests_total", kind="chat", status="200") == 1
        assert value(house.metrics, "llm_router_tokens_total", type="completion") == 12
        assert value(house.metrics, "llm_router_tokens_total", type="prompt") == 3
        assert house.dispatcher.active() == [] and house.dispatcher.queued() == 0


@pytest.mark.parametrize("how", ["kill", "segv", "abort", "exit", "garbage"])
async def test_crash_in_the_middle_of_eight_streams_changes_no_text(how: str, tmp_path: Path) -> None:
    marker = tmp_path / "crashed"
    crash = f"--rate 200 --tokens 60 --crash-after 100 --crash-how {how} --crash-once {marker}"
    async with peer(crash) as house:
        names = [f"prompt {n}" for n in range(8)]
        async with asyncio.timeout(WAIT_S):
            answers = await asyncio.gather(*(house.ask(name) for name in names))
        for name, chunks in zip(names, answers, strict=True):
            assert "".join(c.text for c in chunks) == answer(name, 60)
            assert [t for c in chunks for t in c.tokens] == expected_tokens(TextPrompt(text=name), 7, 60)
            assert [c.finish_reason for c in chunks if c.finish_reason] == ["stop"]
            assert sum(c.started is not None for c in chunks) == 1 and chunks[0].started is not None
        assert marker.exists() and len(house.engines) == 2
        assert value(house.metrics, "llm_router_worker_crashes_total") == 1
        assert value(house.metrics, "llm_router_requests_total", kind="chat", status="200") == 8
        assert value(house.metrics, "llm_router_tokens_total", type="completion") == 8 * 60


@pytest.mark.engine
@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
async def test_real_engine_killed_in_the_middle_of_eight_streams_changes_no_text(
    how: signal.Signals, scripted_gguf: Path
) -> None:
    engines: list[EngineClient] = []

    async def start(model: StoredModel, on_progress: Callable[[float], None]) -> EngineClient:
        spec = EngineSpec(path=str(scripted_gguf), slots=8, context=8192, threads=1)
        engines.append(await EngineClient.start(spec, timeout_s=60, on_progress=on_progress))
        return engines[-1]

    async with Pool(start=start, bytes_needed=lambda m: 1, limits=PoolLimits()) as pool:
        here = dispatcher(pool, MODELS.__getitem__, Metrics())

        async def text(n: int, kill_after: int = 0) -> tuple[str, list[int]]:
            made = ""
            tokens: list[int] = []
            prompt = ChatPrompt(messages=(Message(role="user", content=f"Hello {n}"),))
            changes = {"prompt": prompt, "max_tokens": 200, "ignore_eos": True}
            async with asyncio.timeout(100):
                async for chunk in here.generate(request(f"{n}", **changes), ME):
                    made += chunk.text
                    tokens += chunk.tokens
                    if kill_after and len(tokens) >= kill_after and len(engines) == 1:
                        kill_after = 0
                        os.kill(engines[0].pid, how)
            return made, tokens

        undisturbed = await asyncio.gather(*(text(n) for n in range(8)))
        assert [len(tokens) for _, tokens in undisturbed] == [200] * 8
        assert await asyncio.gather(*(text(n, kill_after=10) for n in range(8))) == undisturbed
        assert len(engines) == 2


async def test_crash_while_text_is_held_back_for_a_stop_string_changes_no_text(tmp_path: Path) -> None:
    stop = (answer("x", 30)[-12:-3],)
    async with peer("--tokens 30") as house:
        undisturbed = await house.text("x", stop=stop)
    async with peer(f"--rate 100 --tokens 30 --crash-after 11 --crash-once {tmp_path / 'm'}") as house:
        assert await house.text("x", stop=stop) == undisturbed
        assert len(house.engines) == 2


async def test_seed_is_drawn_once_so_a_continuation_after_a_crash_has_the_same_one(tmp_path: Path) -> None:
    async with peer(f"--rate 100 --tokens 30 --crash-after 11 --crash-once {tmp_path / 'm'}") as house:
        chunks = await house.ask("x", sampling=Sampling())  # a worker that sees another seed answers with an error
        assert len([t for c in chunks for t in c.tokens]) == 30 and len(house.engines) == 2
        other = await house.ask("x", sampling=Sampling())
        assert [c.text for c in other] != [c.text for c in chunks]


async def test_crash_before_the_first_token_is_unseen(tmp_path: Path) -> None:
    async with peer(f"--tokens 5 --crash-after 0 --crash-how segv --crash-once {tmp_path / 'm'}") as house:
        chunks = await house.ask("x")
        assert chunks[0].started is not None and chunks[0].started.attempts == 2
        assert "".join(c.text for c in chunks) == answer("x", 5)


async def test_second_death_after_tokens_interrupts_the_stream() -> None:
    async with peer("--rate 200 --tokens 100 --crash-after 10 --crash-how segv") as house:
        text = ""
        with pytest.raises(StreamInterrupted) as caught:
            async for chunk in house.dispatcher.generate(request("x"), ME):
                text += chunk.text
        assert caught.value.code == "stream_interrupted"
        assert text == answer("x", 20) and "after 20 tokens" in caught.value.message
        with pytest.raises(ModelUnavailable, match="crashed 2 times within an hour") as refused:
            await house.ask("x")
        assert refused.value.retry_after_s is not None and len(house.engines) == 2
        assert value(house.metrics, "llm_router_requests_total", kind="chat", status="500") == 1


async def test_second_death_before_the_first_token_is_model_unavailable() -> None:
    async with peer("--crash-after 0 --crash-how kill") as house:
        with pytest.raises(ModelUnavailable, match="before the first token") as caught:
            await house.ask("x")
        assert caught.value.retry_after_s and len(house.engines) == 2
        assert house.dispatcher.active() == []


async def test_reload_that_fails_interrupts_a_stream_that_had_begun(tmp_path: Path) -> None:
    async with peer(f"--rate 200 --tokens 100 --crash-after 10 --crash-once {tmp_path / 'm'}") as house:
        stream = house.dispatcher.generate(request("x"), ME)
        await anext(stream)
        house.arguments = "--fail-load 'the disk is gone'"
        with pytest.raises(StreamInterrupted) as caught:
            async for _ in stream:
                pass
        assert isinstance(caught.value.__cause__, ModelUnavailable)


async def test_leaving_frees_the_slot_in_the_worker_and_here() -> None:
    async with peer("--rate 100 --tokens 100000 --context 200000 --stats-every 0.01", slots=1) as house:
        stream = house.dispatcher.generate(request("a"), ME)
        for _ in range(3):
            await anext(stream)
        engine = house.engines[0]
        await until(lambda: engine.stats.get("active") == 1)
        (busy,) = house.dispatcher.active()
        assert (busy.state, busy.model, busy.kind) == ("generating", "chat", "chat") and busy.tokens >= 1
        second = asyncio.create_task(house.ask("b", max_tokens=2))
        await until(lambda: house.dispatcher.queued() == 1)
        assert [r.state for r in house.dispatcher.active()] == ["generating", "queued"]
        await stream.aclose()
        async with asyncio.timeout(WAIT_S):
            assert (await second)[-1].finish_reason == "length"
        assert house.dispatcher.active() == [] and engine.active == 0
        assert value(house.metrics, "llm_router_requests_total", kind="chat", status="499") == 1


async def test_engine_never_has_more_requests_than_slots() -> None:
    async with peer("--rate 300 --tokens 20 --slots 2") as house:  # fewer than was assumed before the load
        await house.ask("warm")
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, house.engines[0].active)
                await asyncio.sleep(0.001)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(house.ask(f"{n}") for n in range(5)))
        watching.cancel()
        assert most == 2


async def test_reader_that_stalls_holds_no_slot_once_its_answer_is_made() -> None:
    async with peer("--tokens 10", slots=1) as house:
        stalled = house.dispatcher.generate(request("a"), ME)
        await anext(stalled)
        async with asyncio.timeout(WAIT_S):
            assert await house.text("b") == answer("b", 10)
        assert "".join([c.text async for c in stalled]) == answer("a", 10)


async def test_full_queue_is_overloaded_at_once() -> None:
    async with peer("--rate 20 --tokens 100000 --context 200000", slots=1) as house:
        tasks = [asyncio.create_task(house.ask(f"{n}")) for n in range(5)]
        await until(lambda: house.dispatcher.queued() == 4)
        with pytest.raises(Overloaded) as caught:
            await house.ask("one too many")
        assert caught.value.retry_after_s and caught.value.status == 503
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=WAIT_S)
        assert house.dispatcher.active() == [] and house.dispatcher.queued() == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--slow-load 5", "still loading"),
        ("--prefill 60", "after 0 tokens"),
        ("--rate 100 --tokens 100000 --context 200000", r"after \d+ tokens"),
        ("--hang-after 3", "after 3 tokens"),
    ],
)
async def test_deadline_of_the_caller_holds_in_every_phase(arguments: str, says: str) -> None:
    async with peer(arguments) as house:
        with pytest.raises(DeadlineExceeded, match=says) as caught:
            await house.ask("x", replace(ME, deadline_s=1.0))
        assert caught.value.status == 504
        assert house.dispatcher.active() == []
        assert all(engine.active == 0 for engine in house.engines)


async def test_deadline_shorter_than_the_queue_is_told_at_once() -> None:
    async with peer("--rate 100 --tokens 50", slots=1) as house:
        await house.ask("half a second")
        running = asyncio.create_task(house.ask("a"))
        await until(lambda: bool(house.dispatcher.active()))
        with pytest.raises(DeadlineExceeded, match="requests waiting"):
            await house.ask("b", replace(ME, deadline_s=0.1))
        await running


async def test_time_of_a_load_is_not_taken_for_the_time_of_a_request() -> None:
    async with peer("--slow-load 1.5 --rate 20 --tokens 4", slots=1) as house:
        await house.ask("loads")
        running = asyncio.create_task(house.ask("a"))
        await until(lambda: bool(house.dispatcher.active()))
        assert (await house.ask("b", replace(ME, deadline_s=1.4)))[-1].finish_reason == "stop"
        await running


async def test_wrong_kind_of_model_is_the_callers_error_and_loads_nothing() -> None:
    async with peer() as house:
        with pytest.raises(InvalidRequest, match="makes embeddings") as caught:
            await house.ask("x", model="embed")
        assert (caught.value.code, caught.value.param) == ("unsupported_model", "model")
        with pytest.raises(InvalidRequest, match="cannot make embeddings"):
            await house.dispatcher.embed(EmbeddingRequest(id="e", model="chat", inputs=("a",)), ME)
        with pytest.raises(ModelNotFound):
            await house.ask("x", model="nobody")
        assert house.engines == [] and house.dispatcher.active() == []


async def test_embeddings_survive_a_crash(tmp_path: Path) -> None:
    async with peer(f"--crash-after 0 --crash-how segv --crash-once {tmp_path / 'm'}") as house:
        answer = await house.dispatcher.embed(EmbeddingRequest(id="e", model="embed", inputs=("a b", "c")), ME)
        assert len(answer.vectors) == 2 and answer.prompt_tokens == 3 and len(house.engines) == 2
        assert value(house.metrics, "llm_router_requests_total", kind="embeddings", status="200") == 1
        assert value(house.metrics, "llm_router_tokens_total", type="prompt") == 3


async def test_embeddings_give_up_after_the_second_crash() -> None:
    async with peer("--crash-after 0") as house:
        with pytest.raises(ModelUnavailable):
            await house.dispatcher.embed(EmbeddingRequest(id="e", model="embed", inputs=("a",)), ME)
        assert len(house.engines) == 2


async def test_draining_ends_what_runs_and_takes_nothing_new() -> None:
    async with peer("--rate 100 --tokens 30") as house:
        running = asyncio.create_task(house.text("a"))
        await until(lambda: bool(house.dispatcher.active()))
        draining = asyncio.create_task(house.dispatcher.drain(WAIT_S))
        await asyncio.sleep(0)
        with pytest.raises(ModelUnavailable, match="stopping"):
            await house.ask("b")
        assert await draining is True and await running == answer("a", 30)


async def test_draining_gives_up_in_time() -> None:
    async with peer("--hang-after 0") as house:
        running = asyncio.create_task(house.ask("a"))
        await until(lambda: bool(house.dispatcher.active()))
        assert await house.dispatcher.drain(0.05) is False
        running.cancel()
        await asyncio.wait([running], timeout=WAIT_S)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts /proc/self/fd")
async def test_a_thousand_mixed_requests_leave_files_tasks_and_children_where_they_were() -> None:
    """Good, bad, cancelled, refused, embedded; some while workers are killed."""
    chance = random.Random(4711)
    async with peer("--tokens 12 --rate 2000 --context 50", slots=4) as house:

        async def one(n: int) -> str:
            what = chance.choice(["good", "long", "unknown", "wrong kind", "leaves", "embed", "hurried"])
            caller = replace(ME, deadline_s=0.02) if what == "hurried" else ME
            try:
                if what == "embed":
                    await house.dispatcher.embed(EmbeddingRequest(id=f"{n}", model="embed", inputs=("a",)), ME)
                elif what == "leaves":
                    stream = house.dispatcher.generate(request(f"{n}"), ME)
                    await anext(stream)
                    await stream.aclose()
                else:
                    model = {"unknown": "nobody", "wrong kind": "embed"}.get(what, "chat")
                    text = "too long " * 40 if what == "long" else f"{n}"
                    made = "".join([c.text for c in await house.ask(text, caller, model=model)])
                    assert made == answer(text, 12)
            except ContextLengthExceeded:
                return "too long"
            except InferenceError as error:
                return str(error.code)
            return what

        async def some(count: int) -> list[str]:
            numbers = iter(range(count))
            ends: list[str] = []

            async def client() -> None:
                for n in numbers:
                    ends.append(await one(n))

            await asyncio.gather(*(client() for _ in range(12)))
            return ends

        def held() -> tuple[int, int, int]:
            return (
                len(list(Path("/proc/self/fd").iterdir())),
                len(asyncio.all_tasks()),
                len(psutil.Process().children(recursive=True)),
            )

        async with asyncio.timeout(100):
            await some(50)
            before = held()
            ends = await some(900)
            os.kill(next(s.pid for s in house.pool.states() if s.id == "chat" and s.pid), signal.SIGKILL)
            ends += await some(100)
            await house.text("still here")
        await until(lambda: held() == before)
        assert {"good", "too long", "model_not_found", "unsupported_model", "leaves", "embed"} <= set(ends)
        assert house.dispatcher.active() == [] and house.dispatcher.queued() == 0
