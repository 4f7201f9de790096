"""EngineClient against a real child process that speaks the frames (tests/fixtures/fake_worker.py)."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from inference.chat import Chunk, EmbeddingRequest, Generation, Produced, Sampling, TextPrompt
from inference.engine import pulse
from inference.engine.client import EngineClient, LoadCrashed, death_of, worker_environment
from inference.engine.spec import EngineSpec
from inference.errors import (
    CallerError,
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineError,
    InferenceError,
    InvalidRequest,
    LoadFailed,
    ModelUnavailable,
    WorkerDied,
    error_in,
)
from tests.fixtures.fake_worker import expected_text, expected_tokens

SPEC = EngineSpec(path="none.gguf", slots=8)
WAIT_S = 20.0


@asynccontextmanager
async def engine(arguments: str = "", spec: EngineSpec = SPEC) -> AsyncIterator[EngineClient]:
    client = await EngineClient.start(spec, worker=f"tests.fixtures.fake_worker {arguments}", timeout_s=WAIT_S)
    try:
        yield client
    finally:
        await client.close()


def generation(text: str = "say something", **changes: object) -> Generation:
    made = Generation(id="r", model="m", prompt=TextPrompt(text=text), sampling=Sampling(seed=7))
    return replace(made, **changes)  # type: ignore[arg-type]


async def read(client: EngineClient, request: Generation) -> list[Chunk]:
    return [chunk async for chunk in client.generate(request)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


async def test_answer_begins_with_started_and_ends_with_the_finish_reason() -> None:
    async with engine("--tokens 20") as client:
        first, *rest = await read(client, generation())
    assert first.started is not None and first.started.prompt_tokens == 3
    assert first == Chunk(started=first.started)
    assert "".join(c.text for c in rest) == expected_text(TextPrompt(text="say something"), 7, 20)
    assert [t for c in rest for t in c.tokens] == expected_tokens(TextPrompt(text="say something"), 7, 20)
    assert rest[-1].finish_reason == "stop" and rest[-1].draws == 20
    assert all(c.finish_reason is None for c in rest[:-1])


async def test_slow_reader_gets_the_steps_it_missed_in_one_chunk() -> None:
    async with engine("--tokens 50") as client:
        stream = client.generate(generation())
        started = await anext(stream)
        assert started.started is not None
        await until(lambda: client.active == 0)  # all 50 steps are here
        chunk = await anext(stream)
        assert chunk.text == expected_text(TextPrompt(text="say something"), 7, 50)
        assert (len(chunk.tokens), chunk.draws, chunk.finish_reason) == (50, 50, "stop")
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_continuation_gives_exactly_the_text_that_is_left() -> None:
    prompt = TextPrompt(text="say something")
    stop = (expected_text(prompt, 7, 30)[-12:-3],)  # text is held back all along, so a cut is inside held text
    async with engine("--tokens 30") as client:
        whole = await read(client, generation(stop=stop))
        text = "".join(c.text for c in whole)
        tokens = [t for c in whole for t in c.tokens]
        for cut in (1, 7, len(tokens) - 1):
            produced = Produced(tokens=tuple(tokens[:cut]), draws=cut)
            rest = await read(client, generation(stop=stop, produced=produced))
            assert [t for c in rest for t in c.tokens] == tokens[cut:]
            left = "".join(c.text for c in rest)
            assert text.endswith(left) and rest[-1].finish_reason == "stop"


async def test_interrupted_answer_ends_with_its_error_however_fast_the_worker_is() -> None:
    interrupts: list[Callable[[InferenceError], None]] = []
    async with engine("--tokens 5000 --rate 500 --context 9000 --stats-every 0.01") as client:
        stream = client.generate(generation(), on_begin=interrupts.append)
        await anext(stream)
        await anext(stream)
        (interrupt,) = interrupts
        interrupt(DeadlineExceeded("too late"))
        seen = client.stats.get("tokens", 0)
        # the reader is slow, and there is always something
        await until(lambda: client.stats.get("tokens", 0) > seen + 20)
        with pytest.raises(DeadlineExceeded, match="too late"):
            async for chunk in stream:
                assert len(chunk.tokens) < 20, "made after the interruption"
        await until(lambda: client.stats["active"] == 0)
        assert client.active == 0


async def test_closing_the_iterator_cancels_in_the_worker() -> None:
    async with engine("--rate 100 --tokens 100000 --stats-every 0.01 --context 200000") as client:
        stream = client.generate(generation())
        await anext(stream)
        await anext(stream)
        await until(lambda: client.stats.get("active") == 1)
        await stream.aclose()
        assert client.active == 0
        await until(lambda: client.stats.get("active") == 0)


async def test_cancelling_the_reading_task_cancels_in_the_worker() -> None:
    async with engine("--rate 100 --tokens 100000 --stats-every 0.01 --context 200000 --slots 1") as client:
        tasks = [asyncio.create_task(read(client, generation())) for _ in range(2)]  # one runs, one waits
        await until(lambda: client.stats.get("active") == 1 and client.stats.get("waiting") == 1)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=WAIT_S)
        assert all(task.cancelled() for task in tasks)
        await until(lambda: client.stats.get("active") == 0 and client.stats.get("waiting") == 0)


async def test_an_error_frame_becomes_the_error_it_names() -> None:
    async with engine("--context 4") as client:
        with pytest.raises(ContextLengthExceeded) as caught:
            await read(client, generation("one two three four five"))
        assert (caught.value.status, caught.value.param) == (400, "messages")
        assert caught.value.code == "context_length_exceeded"
        assert "6 tokens" in caught.value.message and client.alive


async def test_embeddings_come_back_in_order() -> None:
    async with engine(spec=replace(SPEC, embedding=True)) as client:
        answer = await client.embed(EmbeddingRequest(id="e", model="m", inputs=("a b", (1, 2, 3)), dimensions=4))
    assert answer.dim == 4 and answer.prompt_tokens == 5
    assert answer.vectors == (struct.pack("<4f", 1, 0, 0, 0),) * 2


@pytest.mark.parametrize(
    ("how", "says", "blames"),
    [
        ("kill", "SIGKILL", False),
        ("segv", "SIGSEGV", True),
        ("abort", "SIGABRT", True),
        ("exit", "code 3", True),
        ("garbage", "broke the protocol", True),
        ("silence", "closed its channel", True),
    ],
)
async def test_a_death_ends_every_request_after_what_had_arrived(how: str, says: str, blames: bool) -> None:
    async with engine(f"--rate 200 --tokens 1000 --crash-after 80 --crash-how {how}") as client:

        async def text(name: str) -> str:
            made = ""
            with pytest.raises(WorkerDied, match=says):
                async for chunk in client.generate(generation(name)):
                    made += chunk.text
            return made

        names = [f"prompt {n}" for n in range(8)]
        async with asyncio.timeout(WAIT_S):
            texts = await asyncio.gather(*map(text, names))
            death = await client.died
        assert death.blames_model is blames and not death.asked
        for name, made in zip(names, texts, strict=True):
            assert made and expected_text(TextPrompt(text=name), 7, 100).startswith(made)
        assert sum(t.count(" ") for t in texts) >= 80  # whatever was sent before the end was delivered
        with pytest.raises(WorkerDied):
            await read(client, generation())


async def test_a_load_reports_progress_and_then_what_the_model_can_do() -> None:
    seen: list[float] = []
    client = await EngineClient.start(
        SPEC, worker="tests.fixtures.fake_worker --context 999", timeout_s=WAIT_S, on_progress=seen.append
    )
    await client.close()
    assert seen == [n / 10 for n in range(10)]
    assert client.info.context == 999 and client.info.slots == 8 and client.info.can_chat


async def test_a_failed_load_says_why_and_keeps_the_last_words_of_the_worker() -> None:
    with pytest.raises(LoadFailed, match="no room for it") as caught:
        async with engine("--fail-load 'no room for it' --stderr 80"):
            pass
    notes = caught.value.__notes__
    assert len(notes) == 50 and notes[-1] == "loading, line 79"


async def test_a_worker_that_dies_while_loading_is_a_crash_of_the_load() -> None:
    with pytest.raises(LoadCrashed, match="SIGSEGV while it loaded") as caught:
        async with engine("--crash-load --crash-how segv"):
            pass
    assert caught.value.death.blames_model


async def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(LoadFailed, match="No module named"):
        await EngineClient.start(SPEC, worker="tests.fixtures.no_such_worker", timeout_s=WAIT_S)


@pytest.mark.parametrize("stop", ["timeout", "cancel"])
async def test_a_load_given_up_leaves_no_process(stop: str) -> None:
    before = {p.pid for p in psutil.Process().children()}
    loading = asyncio.create_task(
        EngineClient.start(
            SPEC, worker="tests.fixtures.fake_worker --slow-load 60", timeout_s=0.3 if stop == "timeout" else WAIT_S
        )
    )
    if stop == "cancel":
        await until(lambda: {p.pid for p in psutil.Process().children()} > before)
        loading.cancel()
    with pytest.raises(LoadFailed if stop == "timeout" else asyncio.CancelledError):
        await loading
    assert {p.pid for p in psutil.Process().children()} == before


async def test_close_ends_even_a_worker_that_does_not_listen() -> None:
    async with engine("--stubborn") as client:
        await client.close(grace_s=0.2)
        assert not client.alive and not psutil.pid_exists(client.pid)
        assert client.died.result().asked and not client.died.result().blames_model


@pytest.mark.skipif(sys.platform == "win32", reason="SIGSTOP is POSIX")
async def test_worker_that_hangs_is_killed_and_its_requests_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(pulse, "STILL_S", 0.2)
    async with engine("--rate 100 --tokens 100000 --context 200000") as client:
        stream = client.generate(generation())
        await anext(stream)
        await anext(stream)
        os.kill(client.pid, signal.SIGSTOP)
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(WorkerDied, match="hung: it said and computed nothing"):
                async for _ in stream:
                    pass
            death = await client.died
    assert death.blames_model and not death.asked


@pytest.mark.skipif(sys.platform == "win32", reason="SIGSTOP is POSIX")
async def test_worker_that_has_nothing_to_do_may_be_as_still_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(pulse, "STILL_S", 0.02)
    async with engine() as client:
        os.kill(client.pid, signal.SIGSTOP)
        first = client._pulse._looked_at
        await until(lambda: client._pulse._looked_at > first + 0.1)
        assert client.alive
        monkeypatch.setattr(pulse, "STILL_S", WAIT_S)
        os.kill(client.pid, signal.SIGCONT)
        assert (await read(client, generation()))[-1].finish_reason == "stop"


@pytest.mark.skipif(sys.platform == "win32", reason="sessions are POSIX")
async def test_worker_has_its_own_session_so_ctrl_c_is_not_for_it() -> None:
    async with engine() as client:
        assert os.getsid(client.pid) == client.pid != os.getsid(0)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
async def test_worker_sees_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "LLM_ROUTER_JWT_SECRET", "LLM_ROUTER_ADMIN_PASSWORD"):
        monkeypatch.setenv(name, "canary-4711")
    async with engine() as client:
        environment = Path(f"/proc/{client.pid}/environ").read_text()
    assert "canary-4711" not in environment
    assert "GGML_NO_BACKTRACE=1" in environment


def test_environment_of_a_worker_keeps_what_is_no_secret() -> None:
    made = worker_environment({"PATH": "/bin", "OMP_WAIT_POLICY": "active", "https_proxy": "http://u:p@h"})
    secrets = {"GH_PAT": "x", "SENTRY_DSN": "x", "REDIS": "redis://:secret@host/0", "GPG_PASSPHRASE": "x"}
    assert not secrets.keys() & worker_environment(secrets).keys()
    assert made["PATH"] == "/bin" and made["OMP_WAIT_POLICY"] == "active" and "https_proxy" not in made


async def test_a_thousand_starts_and_stops_of_requests_leave_no_task_and_no_mailbox() -> None:
    async with engine("--tokens 3") as client:
        tasks = len(asyncio.all_tasks())
        for n in range(1000):
            stream = client.generate(generation(f"{n}"))
            if n % 3 == 0:
                await anext(stream)
                await stream.aclose()
            else:
                async for _ in stream:
                    pass
        assert client.active == 0 and len(asyncio.all_tasks()) == tasks


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "unsupported_model", InvalidRequest),
        (422, None, InvalidRequest),
        (503, None, ModelUnavailable),
        (500, "invalid_model_template", EngineError),
    ],
)
def test_error_frames_keep_every_field(status: int, code: str | None, kind: type[Exception]) -> None:
    error = error_in(status, "some_type", code, "p", "text")
    assert type(error) is kind
    assert (error.status, error.type, error.code, error.param, error.message) == (
        status, "some_type", code, "p", "text",
    )  # fmt: skip
    assert isinstance(error, CallerError) == (status < 500)


def test_only_an_end_from_inside_blames_the_model() -> None:
    def blames(code: int | None, **changes: object) -> bool:
        return death_of(code, **({"fault": "", "asked": False} | changes)).blames_model  # type: ignore[arg-type]

    assert blames(-int(signal.SIGSEGV)) and blames(1) and blames(0xC0000005)
    assert not blames(-9) and not blames(-15) and not blames(None)
    assert not blames(1, asked=True)
    assert blames(-9, fault="broke the protocol")
