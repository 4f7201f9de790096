"""The real worker with real (small) models, through EngineClient: what is said here is what llama.cpp computed."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import signal
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from inference.chat import (
    ChatPrompt,
    Chunk,
    EmbeddingRequest,
    FinishReason,
    Generation,
    Message,
    Produced,
    Role,
    Sampling,
    Started,
    TextPrompt,
    TokenPrompt,
)
from inference.engine.client import EngineClient
from inference.engine.spec import EngineSpec
from inference.errors import ContextLengthExceeded, InvalidRequest, LoadFailed, WorkerDied
from tests.conftest import SCRIPTED_ANSWER
from tests.fixtures import make_gguf

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

ROOT = Path(__file__).parents[3]
WAIT_S = 60.0
GREEDY = Sampling(temperature=0.0)
IDS = 400  # token ids below this are ordinary ones of the tiny model
LOGIT_TOLERANCE = 0.1
"""Sums in another order differ by far less; one wrong cell of the KV cache moves the logits by whole units."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scripted(scripted_gguf: Path) -> AsyncIterator[EngineClient]:
    """A worker that tests share: each leaves it idle."""
    async with engine(scripted_gguf) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tiny(tiny_gguf: Path) -> AsyncIterator[EngineClient]:
    async with engine(tiny_gguf) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def embedder(embed_gguf: Path) -> AsyncIterator[EngineClient]:
    async with engine(embed_gguf, embedding=True) as client:
        yield client


@asynccontextmanager
async def engine(path: Path, *, slots: int = 4, **options: Any) -> AsyncIterator[EngineClient]:
    spec = EngineSpec(path=str(path), slots=slots, threads=1, **options)
    client = await EngineClient.start(spec, timeout_s=WAIT_S)
    try:
        yield client
    finally:
        await client.close()


def chat(*texts: str, **changes: Any) -> Generation:
    """Turns of user and assistant, beginning with the user."""
    roles = ["user", "assistant"] * len(texts)
    messages = tuple(Message(role=r, content=t) for r, t in zip(roles, texts, strict=False))  # type: ignore[arg-type]
    return replace(Generation(id="r", model="m", prompt=ChatPrompt(messages=messages), sampling=GREEDY), **changes)


def tokens_in(*ids: int, **changes: Any) -> Generation:
    request = Generation(id="r", model="m", prompt=TokenPrompt(tokens=ids), sampling=GREEDY, ignore_eos=True)
    return replace(request, **changes)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """All chunks of one answer together."""

    text: str
    tokens: tuple[int, ...]
    draws: int
    finish_reason: FinishReason | None
    started: Started


async def answer(client: EngineClient, request: Generation) -> Answer:
    chunks: list[Chunk] = []
    async with asyncio.timeout(WAIT_S):
        async for chunk in client.generate(request):
            chunks.append(chunk)
    first, *rest = chunks
    assert first.started is not None
    return Answer(
        text="".join(c.text for c in rest),
        tokens=tuple(t for c in rest for t in c.tokens),
        draws=rest[-1].draws,
        finish_reason=rest[-1].finish_reason,
        started=first.started,
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)


def gaps(path: Path, cases: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
    """For each (prompt, answer): how far each token was from the best, in a fresh context."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fixtures.fresh_logits", str(path)],
        input=json.dumps([[list(map(int, p)), list(map(int, a))] for p, a in cases]),
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    found: list[list[float]] = json.loads(done.stdout)
    return found


def assert_greedy(path: Path, cases: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
    for (prompt, made), found in zip(cases, gaps(path, cases), strict=True):
        assert len(found) == len(made) > 0
        worst = max(found)
        assert worst <= LOGIT_TOLERANCE, f"token {found.index(worst)} of {len(made)} after {len(prompt)} is {worst} off"


# -- what is said


async def test_scripted_model_says_its_text_and_stops(scripted: EngineClient) -> None:
    said = await answer(scripted, chat("Hello"))
    assert (said.text, said.finish_reason) == (SCRIPTED_ANSWER, "stop")
    assert said.started.prompt_tokens > 5
    assert said.started.cached_tokens == 0


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (("today",), "Hello from the mesh! How can I help you "),
        (("mesh", "Hello from"), ""),
        (("lo f",), "Hel"),
        (("?",), SCRIPTED_ANSWER[:-1]),
        (("not in there", "mesh?"), SCRIPTED_ANSWER),
    ],
)
async def test_stop_string_ends_the_answer_before_it(
    scripted: EngineClient, stop: tuple[str, ...], expected: str
) -> None:
    said = await answer(scripted, chat("Hello", stop=stop))
    assert (said.text, said.finish_reason) == (expected, "stop")


@pytest.mark.parametrize("context", [16, 300])
async def test_context_smaller_than_a_batch_serves_as_well(scripted_gguf: Path, context: int) -> None:
    async with engine(scripted_gguf, context=context) as client:
        said = await answer(client, chat("Hello", max_tokens=5))
    assert len(said.tokens) == 5 and SCRIPTED_ANSWER.startswith(said.text)


async def test_max_tokens_ends_the_answer_with_length(scripted: EngineClient) -> None:
    said = await answer(scripted, chat("Hello", max_tokens=3))
    assert (len(said.tokens), said.finish_reason) == (3, "length")
    assert said.text and SCRIPTED_ANSWER.startswith(said.text)


async def test_answer_ends_where_the_context_does(tiny_gguf: Path) -> None:
    async with engine(tiny_gguf, context_per_request=64) as client:
        said = await answer(client, tokens_in(*range(10)))
    assert (len(said.tokens), said.finish_reason) == (54, "length")


async def test_same_seed_gives_the_same_answer_and_another_seed_another(tiny: EngineClient) -> None:
    def request(seed: int) -> Generation:
        return tokens_in(5, 6, 7, max_tokens=24, sampling=Sampling(temperature=1.0, seed=seed))

    first, again, other = [await answer(tiny, request(seed)) for seed in (1, 1, 2)]
    assert first.tokens == again.tokens != other.tokens
    assert first.draws == again.draws == 24


async def test_template_gets_every_turn_and_a_text_prompt_gets_none(scripted: EngineClient) -> None:
    one = await answer(scripted, chat("a"))
    three = await answer(scripted, chat("a", "b", "c"))
    plain = await answer(scripted, chat(prompt=TextPrompt(text="a"), max_tokens=1))
    assert three.started.prompt_tokens > one.started.prompt_tokens > plain.started.prompt_tokens == 1


# -- many at once


async def test_cancelled_request_frees_its_slot_for_the_next(tiny_gguf: Path) -> None:
    async with engine(tiny_gguf, slots=1) as client:
        async with aclosing(client.generate(tokens_in(1, 2, 3))) as endless:
            assert (await anext(endless)).started is not None
            assert (await anext(endless)).tokens
            waiting = asyncio.create_task(answer(client, tokens_in(4, 5, 6, max_tokens=2)))
            await until(lambda: client.active == 2)
            assert (await anext(endless)).tokens
        assert len((await waiting).tokens) == 2
        await until(lambda: client.active == 0)
        await until(lambda: client.stats.get("generating") == 0 == client.stats.get("waiting"))
        assert client.stats["tokens"] < 4000  # it did not run to the end of its context


async def test_cancelling_while_waiting_or_in_prefill_leaves_the_others_alone(tiny_gguf: Path) -> None:
    rng = random.Random(5)
    prompts = [[rng.randrange(IDS) for _ in range(900)] for _ in range(12)]
    async with engine(tiny_gguf, slots=2, context=8192) as client:
        tasks = [asyncio.create_task(answer(client, tokens_in(*p, max_tokens=8))) for p in prompts]
        await until(lambda: client.active == 12)
        for task in tasks[::2]:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: client.active == 0)
    assert [isinstance(e, asyncio.CancelledError) for e in ended] == [True, False] * 6
    kept = [(p, e.tokens) for p, e in zip(prompts, ended, strict=True) if isinstance(e, Answer)]
    assert_greedy(tiny_gguf, kept)


async def test_twenty_four_requests_share_four_slots(scripted: EngineClient) -> None:
    assert scripted.info.slots == 4
    said = await asyncio.gather(*(answer(scripted, chat(f"question {i}")) for i in range(24)))
    assert {a.text for a in said} == {SCRIPTED_ANSWER}
    assert {a.finish_reason for a in said} == {"stop"}


async def test_second_turn_finds_the_first_one_in_the_cache(tiny: EngineClient, tiny_gguf: Path) -> None:
    prompt = list(range(3, 100))
    first = await answer(tiny, tokens_in(*prompt, max_tokens=20))
    turn = [*prompt, *first.tokens, 9, 8, 7]
    second = await answer(tiny, tokens_in(*turn, max_tokens=20))
    third = await answer(tiny, tokens_in(*prompt[:50], 1, 2, 3, max_tokens=20))
    assert first.started.cached_tokens == 0
    assert second.started.cached_tokens >= len(prompt) + 19  # the last token was chosen, and never evaluated
    assert 49 <= third.started.cached_tokens <= 50
    assert_greedy(tiny_gguf, [(prompt, first.tokens), (turn, second.tokens), ([*prompt[:50], 1, 2, 3], third.tokens)])


@pytest.mark.parametrize(
    "context", [pytest.param(8192, id="roomy"), pytest.param(256, id="requests are sent back to the queue")]
)
async def test_every_token_is_the_one_a_fresh_context_chooses(tiny_gguf: Path, context: int) -> None:
    """Batching, shared prefixes, parked prefixes, cancellation and preemption leave every KV cell right."""
    rng = random.Random(context)
    stems = [[rng.randrange(IDS) for _ in range(size)] for size in (7, 40, 90)]
    prompts = [[*rng.choice(stems), *(rng.randrange(IDS) for _ in range(rng.randrange(1, 30)))] for _ in range(24)]
    done: list[tuple[list[int], tuple[int, ...]]] = []

    async def one(client: EngineClient, number: int) -> None:
        request = tokens_in(*prompts[number], max_tokens=20 + 5 * (number % 9))
        if number % 4 == 3:  # leaves in the middle
            async with asyncio.timeout(WAIT_S), aclosing(client.generate(request)) as chunks:
                async for chunk in chunks:
                    if chunk.tokens:
                        break
            return
        made = await answer(client, request)
        assert len(made.tokens) == request.max_tokens
        done.append((prompts[number], made.tokens))

    async with engine(tiny_gguf, slots=4, parked=4, context=context, context_per_request=256) as client:
        await asyncio.gather(*(one(client, i) for i in range(len(prompts))))
    assert len(done) == 18
    assert_greedy(tiny_gguf, done)


# -- going on


async def test_conversations_that_left_the_cache_come_back_as_they_were(tiny_gguf: Path) -> None:
    rng = random.Random(5)
    chats = [[rng.randrange(IDS) for _ in range(500)] for _ in range(6)]
    cases = []
    async with engine(tiny_gguf, slots=2, parked=2, context=4096, shelf_bytes=64 * 1024 * 1024) as client:
        for turn in range(3):
            for ids in chats:  # six take turns; the cache keeps 1,024 tokens beside the newest
                made = await answer(client, tokens_in(*ids, sampling=GREEDY, max_tokens=8))
                assert made.started.cached_tokens >= (len(ids) - 10 if turn else 0)
                cases.append((list(ids), made.tokens))
                ids += [*made.tokens, 7, 8]
    assert_greedy(tiny_gguf, cases)


async def test_continuation_after_any_number_of_tokens_says_exactly_the_rest(scripted: EngineClient) -> None:
    whole = await answer(scripted, chat("Hello"))
    for k in range(1, len(whole.tokens)):
        begun = await answer(scripted, chat("Hello", max_tokens=k))
        produced = Produced(tokens=begun.tokens, draws=begun.draws)
        rest = await answer(scripted, chat("Hello", produced=produced))
        assert begun.tokens + rest.tokens == whole.tokens
        assert begun.text + rest.text == SCRIPTED_ANSWER
        assert rest.finish_reason == "stop"
        assert rest.started.prompt_tokens == whole.started.prompt_tokens


async def test_continuation_finds_a_stop_string_that_began_before_it(scripted: EngineClient) -> None:
    whole = await answer(scripted, chat("Hello"))
    for k in range(1, len(whole.tokens)):
        begun = await answer(scripted, chat("Hello", max_tokens=k))
        if begun.text.endswith("mesh!"):
            break
    else:
        pytest.fail("no token ends within the stop string")
    produced = Produced(tokens=begun.tokens, draws=begun.draws)
    rest = await answer(scripted, chat("Hello", produced=produced, stop=("! How can",)))
    assert rest.text == "" and rest.finish_reason == "stop"


async def test_sampled_continuation_draws_the_same_numbers(tiny: EngineClient, tiny_gguf: Path) -> None:
    sampling = Sampling(temperature=1.0, top_p=0.95, seed=11, frequency_penalty=0.5, repeat_penalty=1.1)
    request = tokens_in(5, 6, 7, max_tokens=32, sampling=sampling)
    whole = await answer(tiny, request)
    async with engine(tiny_gguf) as another:
        for k in (1, 7, 30, 31):
            produced = Produced(tokens=whole.tokens[:k], draws=k)
            rest = await answer(another, replace(request, produced=produced))
            assert rest.tokens == whole.tokens[k:]
            assert (rest.draws, rest.finish_reason) == (32, "length")


async def test_continuation_of_a_finished_answer_ends_at_once(tiny: EngineClient) -> None:
    whole = await answer(tiny, tokens_in(5, 6, 7, max_tokens=8))
    produced = Produced(tokens=whole.tokens, draws=whole.draws)
    chunks = [c async for c in tiny.generate(tokens_in(5, 6, 7, max_tokens=8, produced=produced))]
    assert chunks[-1].finish_reason == "length"
    assert not any(c.tokens for c in chunks)


# -- what is refused


async def test_prompt_longer_than_the_context_is_told_both_numbers(tiny_gguf: Path) -> None:
    async with engine(tiny_gguf, context_per_request=100) as client:
        with pytest.raises(ContextLengthExceeded, match=r"100 tokens.*1,234 tokens") as refused:
            await answer(client, tokens_in(*[7] * 1234))
        assert (refused.value.param, refused.value.status) == ("prompt", 400)
        with pytest.raises(ContextLengthExceeded, match="100 tokens") as refused:
            await answer(client, chat("word " * 200))
        assert refused.value.param == "messages"
        assert (await answer(client, tokens_in(1, max_tokens=1))).finish_reason == "length"


async def test_text_that_cannot_fit_is_refused_before_it_is_tokenized(tiny_gguf: Path, embed_gguf: Path) -> None:
    async with engine(tiny_gguf, context_per_request=100) as client:
        for request in (chat("word " * 100_000), chat(prompt=TextPrompt(text="word " * 100_000))):
            with pytest.raises(ContextLengthExceeded, match=r"100 tokens.*at least [\d,]{5,} tokens"):
                await answer(client, request)
    async with engine(embed_gguf, embedding=True, context_per_request=16) as client:
        with pytest.raises(ContextLengthExceeded, match=r"input\[1\] has at least"):
            await client.embed(EmbeddingRequest(id="e", model="m", inputs=("a", "b" * 10_000)))


async def test_more_messages_than_the_context_has_tokens_are_not_even_rendered(tmp_path: Path) -> None:
    """A million messages take a template longer than its watchdog allows, and that would end the worker."""
    slow = (
        "{% if messages|length > 1000 %}" + "{% for a in range(9999) %}" * 3 + "x" + "{% endfor %}" * 3 + "{% endif %}"
    )
    make_gguf.tiny(tmp_path / "slow.gguf", template=slow + "assistant\n")
    async with engine(tmp_path / "slow.gguf") as client:
        many = tuple(Message(role="user", content="a") for _ in range(client.info.context + 1))
        with pytest.raises(ContextLengthExceeded, match=f"{len(many):,} messages") as refused:
            await answer(client, chat(prompt=ChatPrompt(messages=many)))
        assert refused.value.param == "messages" and client.alive


@pytest.mark.parametrize("bad", [-1, 100_000, 2**31 - 1])
async def test_token_id_outside_the_vocabulary_is_named(tiny: EngineClient, bad: int) -> None:
    with pytest.raises(InvalidRequest, match=f"{bad} .*0 to {tiny.info.vocab - 1}"):
        await answer(tiny, tokens_in(1, bad, 2))
    assert (await answer(tiny, tokens_in(1, max_tokens=1))).finish_reason == "length"


async def test_generating_model_refuses_to_embed_and_the_other_way_round(tiny_gguf: Path, embed_gguf: Path) -> None:
    async with engine(tiny_gguf) as client:
        with pytest.raises(InvalidRequest, match="cannot embed"):
            await client.embed(EmbeddingRequest(id="e", model="m", inputs=("a",)))
    async with engine(embed_gguf, embedding=True) as client:
        with pytest.raises(InvalidRequest, match="cannot chat"):
            await answer(client, chat("Hello"))


# -- embeddings


def floats(vector: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(vector) // 4}f", vector)


async def test_embeddings_are_normalized_and_keep_their_order(embedder: EngineClient) -> None:
    texts = tuple(f"text number {i} " * (1 + i % 7) for i in range(50))
    together = await embedder.embed(EmbeddingRequest(id="e", model="m", inputs=texts))
    alone = [await embedder.embed(EmbeddingRequest(id="e", model="m", inputs=(t,))) for t in texts]
    assert together.dim == 64 and len(together.vectors) == 50
    assert together.prompt_tokens == sum(a.prompt_tokens for a in alone)
    for vector, other in zip(together.vectors, alone, strict=True):
        assert math.fsum(x * x for x in floats(vector)) == pytest.approx(1.0, abs=1e-5)
        assert floats(vector) == pytest.approx(floats(other.vectors[0]), abs=1e-4)
    assert floats(together.vectors[0]) != pytest.approx(floats(together.vectors[1]), abs=1e-2)


async def test_concurrent_embedding_requests_get_their_own_vectors(embedder: EngineClient) -> None:
    def request(i: int) -> EmbeddingRequest:
        return EmbeddingRequest(id="e", model="m", inputs=tuple((i, j, 3) for j in range(1 + i % 5)))

    together = await asyncio.gather(*(embedder.embed(request(i)) for i in range(20)))
    for i in (0, 7, 19):
        alone = await embedder.embed(request(i))
        for mine, other in zip(together[i].vectors, alone.vectors, strict=True):
            assert floats(mine) == pytest.approx(floats(other), abs=1e-4)


async def test_dimensions_cut_the_vector_and_it_stays_normalized(embedder: EngineClient) -> None:
    whole = await embedder.embed(EmbeddingRequest(id="e", model="m", inputs=("some text",)))
    cut = await embedder.embed(EmbeddingRequest(id="e", model="m", inputs=("some text",), dimensions=10))
    with pytest.raises(InvalidRequest, match=r"64.*65") as refused:
        await embedder.embed(EmbeddingRequest(id="e", model="m", inputs=("some text",), dimensions=65))
    assert refused.value.param == "dimensions"
    assert cut.dim == 10 and len(floats(cut.vectors[0])) == 10
    scale = math.sqrt(math.fsum(x * x for x in floats(whole.vectors[0])[:10]))
    assert floats(cut.vectors[0]) == pytest.approx([x / scale for x in floats(whole.vectors[0])[:10]], abs=1e-5)


async def test_input_longer_than_the_context_is_named_by_its_place(embed_gguf: Path) -> None:
    async with engine(embed_gguf, embedding=True, context_per_request=16) as client:
        with pytest.raises(ContextLengthExceeded, match=r"16 tokens.*input\[1\] has 17 tokens"):
            await client.embed(EmbeddingRequest(id="e", model="m", inputs=((1,), (1,) * 17)))


async def test_one_text_to_embed_does_not_wait_for_a_thousand(embedder: EngineClient) -> None:
    many = asyncio.create_task(
        embedder.embed(EmbeddingRequest(id="many", model="m", inputs=tuple((1 + i % 90, 7) for i in range(2000))))
    )
    await until(lambda: embedder.active == 1)
    one = asyncio.create_task(embedder.embed(EmbeddingRequest(id="one", model="m", inputs=((5, 6),))))
    async with asyncio.timeout(WAIT_S):
        done, _ = await asyncio.wait((many, one), return_when=asyncio.FIRST_COMPLETED)
        assert done == {one}
        assert len((await many).vectors) == 2000


async def test_input_longer_than_a_batch_is_refused_even_where_the_context_was_rounded_up(embed_gguf: Path) -> None:
    async with engine(embed_gguf, embedding=True, context=100) as client:
        assert client.info.context == 100
        with pytest.raises(ContextLengthExceeded, match="100 tokens"):
            await asyncio.wait_for(client.embed(EmbeddingRequest(id="e", model="m", inputs=((1,) * 101,))), WAIT_S)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
async def test_signals_for_all_processes_of_a_service_leave_the_worker_to_its_peer(tiny_gguf: Path) -> None:
    async with engine(tiny_gguf) as client:
        stream = client.generate(tokens_in(1, 2, 3, max_tokens=300))
        assert (await anext(stream)).started is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(client.pid, number)
        made = [t async for chunk in stream for t in chunk.tokens]
        assert len(made) == 300
        await client.close()
    death = client.died.result()
    assert (death.exit_code, death.asked) == (0, True)


# -- files that mean harm


async def test_template_that_never_ends_ends_the_worker_and_names_itself(tmp_path: Path) -> None:
    """A chat template is code from a stranger; it costs its own request, and the worker's others continue."""
    bomb = "{% if messages[0].content == 'bomb' %}" + "{% for a in range(9999) %}" * 3 + "x" + "{% endfor %}" * 3
    make_gguf.tiny(tmp_path / "bomb.gguf", template=bomb + "{% endif %}assistant\n")
    async with engine(tmp_path / "bomb.gguf") as client:
        other = asyncio.create_task(answer(client, tokens_in(1, 2, 3, sampling=GREEDY)))
        await until(lambda: bool(client.stats) or client.active == 1)
        innocent = await answer(client, chat("Hello", max_tokens=2))
        assert len(innocent.tokens) <= 2
        with pytest.raises(InvalidRequest, match="2 s") as refused:
            await answer(client, chat("bomb"))
        assert refused.value.code == "invalid_model_template"
        death = await asyncio.wait_for(asyncio.shield(client.died), WAIT_S)
        assert (death.exit_code, death.blames_model) == (65, True)
        assert isinstance((await asyncio.gather(other, return_exceptions=True))[0], WorkerDied)


async def test_template_that_refuses_the_messages_is_the_callers_error(tmp_path: Path) -> None:
    template = "{% if messages[0].role == 'assistant' %}{{ raise_exception('users begin') }}{% endif %}assistant\n"
    make_gguf.tiny(tmp_path / "strict.gguf", template=template)
    wrong = ChatPrompt(messages=(Message(role="assistant", content="Hi"), Message(role="user", content="Hello")))
    async with engine(tmp_path / "strict.gguf") as client:
        with pytest.raises(InvalidRequest, match="users begin") as refused:
            await answer(client, chat(prompt=wrong))
        assert (refused.value.status, refused.value.param) == (400, "messages")
        assert (await answer(client, chat("Hello", max_tokens=1))).tokens


@pytest.mark.parametrize("role", ["system", "developer"])
async def test_instructions_reach_a_model_whose_template_has_no_such_role(tmp_path: Path, role: Role) -> None:
    """Gemma's template refuses a system message; Qwen's drops a developer message without a word."""
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% elif m.role in ('user', 'assistant') %}{{ m.content }}{% endif %}{% endfor %}"
    )
    make_gguf.tiny(tmp_path / "gemma.gguf", template=template)
    messages = (Message(role=role, content="be brief"), Message(role="user", content="Hello"))
    async with engine(tmp_path / "gemma.gguf") as client:
        said = await answer(client, chat(prompt=ChatPrompt(messages=messages), max_tokens=8))
        same = await answer(client, chat(prompt=TextPrompt(text="be brief\n\nHello"), max_tokens=8))
    assert (said.tokens, said.started.prompt_tokens) == (same.tokens, same.started.prompt_tokens)


async def test_template_that_does_not_compile_leaves_plain_completions(tmp_path: Path) -> None:
    make_gguf.tiny(tmp_path / "broken.gguf", template="{% for m in %}")
    async with engine(tmp_path / "broken.gguf") as client:
        with pytest.raises(InvalidRequest, match="does not compile") as refused:
            await answer(client, chat("Hello"))
        assert refused.value.code == "invalid_model_template"
        assert len((await answer(client, tokens_in(1, max_tokens=3))).tokens) == 3


@pytest.mark.parametrize("share", [0.0, 0.01, 0.9])
async def test_truncated_file_cannot_be_loaded(tiny_gguf: Path, tmp_path: Path, share: float) -> None:
    data = tiny_gguf.read_bytes()
    (tmp_path / "short.gguf").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(LoadFailed):
        async with engine(tmp_path / "short.gguf"):
            pass


async def test_mutated_files_load_or_fail_and_never_hang_or_crash_the_client(tiny_gguf: Path, tmp_path: Path) -> None:
    """The peer reads headers under limits before; here native code sees every byte."""
    original = tiny_gguf.read_bytes()
    rng = random.Random(16)
    outcomes = []
    for number in range(6):
        data = bytearray(original)
        for _ in range(rng.choice((1, 4, 32))):
            data[rng.randrange(min(len(data), 600 if number % 2 else 20_000))] = rng.randrange(256)
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(data)
        try:
            async with engine(path) as client:
                outcomes.append(client.info.vocab > 0)
        except LoadFailed as error:
            outcomes.append(bool(error.message))
    assert outcomes == [True] * 6
