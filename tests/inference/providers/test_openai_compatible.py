"""Asking servers that are no peers, over real HTTP: what they are sent, may answer, and how long that may take."""

from __future__ import annotations

import asyncio
import json
import math
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from inference.chat import (
    ChatPrompt,
    Chunk,
    EmbeddingRequest,
    Generation,
    Message,
    Sampling,
    TextPart,
    TextPrompt,
    TokenPrompt,
    ToolCall,
    Usage,
)
from inference.errors import (
    ContextLengthExceeded,
    EngineError,
    HolderFull,
    InferenceError,
    InvalidRequest,
    ModelNotFound,
    ModelUnavailable,
    PeerGone,
    PeerSilent,
    StreamInterrupted,
)
from inference.providers import openai_compatible
from inference.providers.openai_compatible import INPUTS_MAX, OpenAICompatible, Patience, Server
from tests.fixtures.openai_server import WAIT_S, openai_server

CHAT = ChatPrompt(messages=(Message(role="system", content="Be brief."), Message(role="user", content="Hi")))
QUICK = Patience(connect_s=1.0, first_s=0.5, silent_s=0.3, usage_s=0.1, probe_s=0.5)


@pytest.fixture
async def client() -> AsyncIterator[OpenAICompatible]:
    async with OpenAICompatible() as made:
        yield made


def request(**changes: object) -> Generation:
    made = Generation(id="r-1", model="llama3.2:3b", prompt=CHAT, sampling=Sampling(seed=7))
    return replace(made, **changes)  # type: ignore[arg-type]


async def asked(client: OpenAICompatible, server: Server, **changes: object) -> list[Chunk]:
    async with asyncio.timeout(WAIT_S):
        return [chunk async for chunk in client.generate(server, request(**changes))]


def text(chunks: list[Chunk]) -> str:
    return "".join(c.text for c in chunks)


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def word(said: str, reason: str | None = None) -> bytes:
    return event({"choices": [{"delta": {"content": said}, "finish_reason": reason}]})


async def read_until_error(client: OpenAICompatible, server: Server, **changes: object) -> tuple[str, InferenceError]:
    """The text that came, and what ended it."""
    made = ""
    with pytest.raises(InferenceError) as caught:
        async with asyncio.timeout(WAIT_S):
            async for chunk in client.generate(server, request(**changes)):
                made += chunk.text
    return made, caught.value


# -- what is sent


async def test_chat_starts_with_the_first_event_and_ends_with_reason_and_usage(client: OpenAICompatible) -> None:
    async with openai_server() as fake:
        first, *rest, last = await asked(client, fake.server())
    assert first.started is not None and first.started.prompt_tokens > 0
    assert text(rest) == "Hello there!" and all(not c.tokens for c in rest)
    assert (last.finish_reason, last.usage) == ("stop", Usage(prompt_tokens=11, completion_tokens=7))


async def test_every_parameter_that_the_caller_gave_is_sent(client: OpenAICompatible) -> None:
    sampling = Sampling(
        temperature=0.25,
        top_p=0.5,
        top_k=40,
        min_p=0.05,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repeat_penalty=1.1,
        repeat_last_n=32,
        seed=42,
        logit_bias=((13, -100.0),),
    )
    messages = (
        Message(role="system", content="Be brief."),
        Message(role="user", content=(TextPart(text="a"), TextPart(text="b")), name="ann"),
        Message(role="assistant", content=None, tool_calls=(ToolCall(id="c1", name="look", arguments="{}"),)),
        Message(role="tool", content="sunny", tool_call_id="c1"),
    )
    async with openai_server() as fake:
        await asked(
            client,
            fake.server(),
            prompt=ChatPrompt(messages=messages),
            sampling=sampling,
            max_tokens=9,
            stop=("END", "\n"),
            ignore_eos=True,
        )
    (seen,) = fake.seen
    assert (seen.method, seen.target, seen.headers["Content-Type"]) == (
        "POST",
        "/v1/chat/completions",
        "application/json",
    )
    assert fake.bodies[0] == {
        "model": "llama3.2:3b",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "ann"},
            {
                "role": "assistant",
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
            },
            {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
        ],
        "temperature": 0.25,
        "top_p": 0.5,
        "top_k": 40,
        "min_p": 0.05,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repeat_penalty": 1.1,
        "repetition_penalty": 1.1,
        "repeat_last_n": 32,
        "seed": 42,
        "logit_bias": {"13": -100.0},
        "max_tokens": 9,
        "stop": ["END", "\n"],
        "ignore_eos": True,
    }


async def test_openais_defaults_are_said_so_that_the_servers_own_do_not_count(client: OpenAICompatible) -> None:
    async with openai_server() as fake:
        await asked(client, fake.server(), sampling=Sampling())
    assert (fake.bodies[0]["temperature"], fake.bodies[0]["top_p"]) == (1.0, 1.0)
    assert not {"seed", "top_k", "stop", "max_tokens", "repeat_penalty", "repetition_penalty"} & set(fake.bodies[0])


@pytest.mark.parametrize(
    ("prompt", "sent"), [(TextPrompt(text="Once"), "Once"), (TokenPrompt(tokens=(1, 2, 3)), [1, 2, 3])]
)
async def test_completions_are_asked_at_their_own_path(client: OpenAICompatible, prompt: Any, sent: Any) -> None:
    async with openai_server() as fake:
        chunks = await asked(client, fake.server(), prompt=prompt, kind="generate")
    assert text(chunks) == "Hello there!"
    assert (fake.seen[0].target, fake.bodies[0]["prompt"]) == ("/v1/completions", sent)


async def test_a_prompt_of_many_megabytes_arrives_whole(client: OpenAICompatible) -> None:
    long = "é" * 3_000_000
    async with openai_server() as fake:
        await asked(client, fake.server(), prompt=ChatPrompt(messages=(Message(role="user", content=long),)))
    assert fake.bodies[0]["messages"][0]["content"] == long


async def test_the_pinned_address_is_asked_under_the_name_that_was_registered(
    client: OpenAICompatible, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with openai_server(headers={"Set-Cookie": "a=b; Path=/"}) as fake:
        server = fake.server(host="gpu-box.invalid")
        await asked(client, server)
        await asked(client, server)
    for seen in fake.seen:
        assert seen.headers["Host"] == f"gpu-box.invalid:{fake.port}"
        assert not {"Cookie", "Authorization", "Proxy-Authorization"} & set(seen.headers)


# -- usage and finish reasons


async def test_usage_that_the_server_does_not_tell_is_estimated_and_says_so(client: OpenAICompatible) -> None:
    async with openai_server(usage=None) as fake:
        chunks = await asked(client, fake.server())
    assert chunks[0].started is not None
    told = Usage(prompt_tokens=chunks[0].started.prompt_tokens, completion_tokens=3, is_estimated=True)
    assert chunks[-1].usage == told


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": -1, "completion_tokens": 2}, {"prompt_tokens": "3", "completion_tokens": 2}, {"a": 1}]
)
async def test_usage_that_is_nonsense_is_estimated(client: OpenAICompatible, usage: dict[str, Any]) -> None:
    async with openai_server(usage=usage) as fake:
        last = (await asked(client, fake.server()))[-1]
    assert last.usage is not None and last.usage.is_estimated and last.usage.completion_tokens == 3


async def test_cached_tokens_are_told(client: OpenAICompatible) -> None:
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 8}}
    async with openai_server(usage=usage) as fake:
        last = (await asked(client, fake.server()))[-1]
    assert last.usage == Usage(prompt_tokens=11, completion_tokens=7, cached_tokens=8)


@pytest.mark.parametrize(
    ("reason", "told"), [("stop", "stop"), ("length", "length"), ("tool_calls", "stop"), ("content_filter", "stop")]
)
async def test_finish_reasons_become_ours(client: OpenAICompatible, reason: str, told: str) -> None:
    async with openai_server(finish_reason=reason) as fake:
        assert (await asked(client, fake.server()))[-1].finish_reason == told


@pytest.mark.parametrize(("reason", "done"), [("stop", False), (None, True)])
async def test_an_answer_is_complete_with_a_reason_or_a_done(
    client: OpenAICompatible, reason: str | None, done: bool
) -> None:
    async with openai_server(finish_reason=reason, says_done=done, usage=None) as fake:
        chunks = await asked(client, fake.server())
    assert text(chunks) == "Hello there!" and chunks[-1].finish_reason == "stop"


async def test_a_server_that_keeps_the_connection_open_behind_the_end_is_not_waited_for() -> None:
    async with OpenAICompatible(Patience(usage_s=0.1)) as client, openai_server() as fake:
        forever = asyncio.Event()
        fake.raw = [word("a", "stop")]
        original = fake._stream

        async def stalling(*args: Any, **more: Any) -> Any:
            response = await original(*args, **more)
            await forever.wait()
            return response

        fake._stream = stalling  # type: ignore[method-assign]
        chunks = await asked(client, fake.server())
        assert text(chunks) == "a" and chunks[-1].usage is not None and chunks[-1].usage.is_estimated


async def test_thoughts_are_no_text_but_they_are_progress_and_tokens(client: OpenAICompatible) -> None:
    raw = [
        event({"choices": [{"delta": {"reasoning_content": "hm"}}]}),
        event({"choices": [{"delta": {"content": "", "reasoning": "so"}}]}),
        word("yes"),
        word("", "stop"),
        b"data: [DONE]\n\n",
    ]
    async with openai_server(raw=raw) as fake:
        chunks = await asked(client, fake.server())
    assert text(chunks) == "yes" and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3


async def test_answer_in_one_piece_is_taken(client: OpenAICompatible) -> None:
    whole = {
        "choices": [{"message": {"role": "assistant", "content": "All at once"}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
    }
    async with openai_server(raw=[json.dumps(whole).encode()], content_type="application/json") as fake:
        first, middle, last = await asked(client, fake.server())
    assert first.started is not None and middle.text == "All at once"
    assert (last.finish_reason, last.usage) == ("length", Usage(prompt_tokens=3, completion_tokens=4))


async def test_events_may_be_cut_anywhere_and_end_with_carriage_returns(client: OpenAICompatible) -> None:
    stream = b": hi\r\n\r\n" + (word("ü") + word("x", "stop")).replace(b"\n", b"\r\n") + b"data: [DONE]\r\n\r\n"
    async with openai_server(raw=[bytes([byte]) for byte in stream]) as fake:
        assert text(await asked(client, fake.server())) == "üx"


async def test_half_a_surrogate_pair_is_replaced(client: OpenAICompatible) -> None:
    raw = [b'data: {"choices":[{"delta":{"content":"a\\ud83d"}}]}\n\n', word("", "stop")]
    async with openai_server(raw=raw) as fake:
        assert text(await asked(client, fake.server())) == "a\ufffd"


# -- refusals


@pytest.mark.parametrize(
    ("status", "said", "kind", "told_status", "code"),
    [
        (404, "model not found", ModelNotFound, 404, "404"),
        (404, {"error": {"message": "model 'x' not found", "type": "api_error"}}, ModelNotFound, 404, "404"),
        (400, {"error": "model not loaded"}, InvalidRequest, 400, "400"),
        (422, {"detail": [{"msg": "temperature is wrong", "loc": []}]}, InvalidRequest, 422, "422"),
        (400, {"object": "error", "message": "bad logit_bias", "code": 400}, InvalidRequest, 400, "400"),
        (400, {"error": {"message": "no", "code": "unsupported_value"}}, InvalidRequest, 400, "unsupported_value"),
        (
            400,
            {"error": {"message": "This model's maximum context length is 4096 tokens"}},
            ContextLengthExceeded,
            400,
            "context_length_exceeded",
        ),
        (429, {"error": {"message": "too many requests"}}, HolderFull, 429, "holder_full"),
        (503, {"error": {"message": "loading model"}}, ModelUnavailable, 503, "503"),
        (500, {"error": {"message": "CUDA out of memory"}}, EngineError, 500, "500"),
        (502, "<html>bad gateway</html>", EngineError, 502, "502"),
        (504, "", EngineError, 504, "504"),
        (401, {"error": {"message": "invalid api key"}}, EngineError, 502, "401"),
        (403, "", EngineError, 502, "403"),
    ],
)
async def test_refusals_keep_their_status_and_their_words(
    client: OpenAICompatible,
    status: int,
    said: str | dict[str, Any],
    kind: type[InferenceError],
    told_status: int,
    code: str,
) -> None:
    async with openai_server(refusal=(status, said, {})) as fake:
        made, error = await read_until_error(client, fake.server())
    assert (made, type(error), error.status, error.code) == ("", kind, told_status, code)
    if not isinstance(error, HolderFull):
        assert error.type.endswith("_upstream_error")
    assert "attic-ollama" in error.message and f"HTTP {status}" in error.message
    words = said if isinstance(said, str) else json.dumps(said)
    assert any(text in error.message for text in _texts(words))
    assert "127.0.0.1" not in error.message and str(fake.port) not in error.message


def _texts(words: str) -> list[str]:
    try:
        value = json.loads(words)
    except ValueError:
        return [words]
    inner = value.get("error", value.get("detail", value))
    inner = inner[0]["msg"] if isinstance(inner, list) else inner
    return [inner if isinstance(inner, str) else inner["message"]]


@pytest.mark.parametrize(("header", "told"), [("7", 7), ("999999", 3600), ("Wed, 21 Oct 2026 07:28:00 GMT", None)])
async def test_retry_after_is_passed_on_within_reason(client: OpenAICompatible, header: str, told: int | None) -> None:
    async with openai_server(refusal=(503, "busy", {"Retry-After": header})) as fake:
        _, error = await read_until_error(client, fake.server())
    assert error.retry_after_s == told


async def test_what_an_error_says_is_short_and_fit_to_be_shown(client: OpenAICompatible) -> None:
    async with openai_server(refusal=(500, "\x1b[31m" + "x" * 5000 + "\x00", {})) as fake:
        _, error = await read_until_error(client, fake.server())
    assert error.message.isprintable() and len(error.message) < 1200


@pytest.mark.parametrize(
    ("said", "kind", "status"),
    [
        ({"error": {"message": "model not found", "code": 404}}, ModelNotFound, 404),
        ({"error": {"message": "slot is gone", "code": 500}}, EngineError, 500),
        ({"error": "something broke"}, EngineError, 502),
        ({"object": "error", "message": "too many", "code": 429}, HolderFull, 429),
    ],
)
async def test_an_error_among_the_events_before_any_text_is_a_refusal(
    client: OpenAICompatible, said: dict[str, Any], kind: type[InferenceError], status: int
) -> None:
    async with openai_server(raw=[event(said)]) as fake:
        made, error = await read_until_error(client, fake.server())
    assert (made, type(error), error.status) == ("", kind, status)


async def test_an_error_after_text_interrupts_the_stream_and_says_why(client: OpenAICompatible) -> None:
    async with openai_server(raw=[word("half "), event({"error": {"message": "GPU lost", "code": 500}})]) as fake:
        made, error = await read_until_error(client, fake.server())
    assert made == "half " and type(error) is StreamInterrupted and "GPU lost" in error.message


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_never_followed(client: OpenAICompatible, status: int) -> None:
    async with openai_server() as sink, openai_server() as fake:
        fake.redirect = (status, f"http://127.0.0.1:{sink.port}/v1/chat/completions")
        _, error = await read_until_error(client, fake.server())
        assert type(error) is PeerGone and "redirect" in error.message
        with pytest.raises(PeerGone, match="redirect"):
            await client.embed(fake.server(), EmbeddingRequest(id="e", model="m", inputs=("a",)))
        with pytest.raises(PeerGone, match="redirect"):
            await client.models(fake.server())
        assert not await client.is_peer(fake.server())
        assert (sink.bytes_in, sink.seen) == (0, [])
        assert len(fake.seen) == 4


# -- trouble


async def test_a_server_that_is_not_there_is_gone(client: OpenAICompatible) -> None:
    async with openai_server() as fake:
        server = fake.server()
    _, error = await read_until_error(client, server)
    assert type(error) is PeerGone and "cannot be reached" in error.message


@pytest.mark.parametrize("words", [0, 1, 2])
async def test_a_stream_that_breaks_can_be_made_elsewhere_only_before_its_first_text(
    client: OpenAICompatible, words: int
) -> None:
    async with openai_server(cut_after=words) as fake:
        made, error = await read_until_error(client, fake.server())
    assert made == "".join(fake.words[:words])
    assert type(error) is (StreamInterrupted if words else PeerGone)


@pytest.mark.parametrize(
    "raw",
    [
        [b"data: {nonsense\n\n"],
        [b"data: []\n\n"],
        [b"data: 7\n\n"],
        [event({"choices": [{"delta": {"content": 7}}]})],
        [event({"choices": [{"delta": {"content": "a"}, "finish_reason": 7}]})],
        [event({"choices": "x"})],
        [event({"hello": "world"})],
        [b"data: " + b"[" * 100_000 + b"\n\n"],
        [b"\x1f\x8b\x08\x00\x00\x00"],
        [b"<html>hello</html>"],
        [b"data: [DONE]\n\n"],
        [],
    ],
)
async def test_nonsense_is_a_server_that_is_gone(client: OpenAICompatible, raw: list[bytes]) -> None:
    async with openai_server(raw=raw) as fake:
        made, error = await read_until_error(client, fake.server())
    assert (made, type(error)) == ("", PeerGone)


async def test_nonsense_after_text_interrupts_the_stream(client: OpenAICompatible) -> None:
    async with openai_server(raw=[word("half "), b"data: {nonsense\n\n"]) as fake:
        made, error = await read_until_error(client, fake.server())
    assert (made, type(error)) == ("half ", StreamInterrupted)


async def test_an_event_without_an_end_is_cut_off(client: OpenAICompatible) -> None:
    async with openai_server(words=(), endless=b"x" * 65_536) as fake:
        _, error = await read_until_error(client, fake.server())
        assert type(error) is PeerGone and "an event that does not end" in error.message
        await asyncio.wait_for(fake.left.wait(), WAIT_S)


async def test_a_stream_that_says_nothing_without_an_end_is_cut_off(
    client: OpenAICompatible, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_compatible, "STREAM_BYTES_MAX", 1_000_000)
    async with openai_server(words=(), endless=b": I live\n\n" * 1000) as fake:
        _, error = await read_until_error(client, fake.server())
        assert type(error) is PeerGone and "does not end" in error.message
        await asyncio.wait_for(fake.left.wait(), WAIT_S)


async def test_a_server_that_writes_more_than_it_was_asked_for_is_cut_off(client: OpenAICompatible) -> None:
    async with openai_server(endless=word("blah " * 100)) as fake:
        made, error = await read_until_error(client, fake.server(), max_tokens=10)
        assert type(error) is StreamInterrupted and "more than it was asked for" in error.message
        assert len(made) < 20_000
        await asyncio.wait_for(fake.left.wait(), WAIT_S)


async def test_an_endless_answer_in_one_piece_is_cut_off(client: OpenAICompatible) -> None:
    async with openai_server(words=(), endless=b" " * 1_000_000, content_type="application/json") as fake:
        _, error = await read_until_error(client, fake.server())
        assert type(error) is PeerGone and "more than 16,777,216 bytes" in error.message


async def test_compressed_answers_are_refused(client: OpenAICompatible) -> None:
    async with openai_server(raw=[b"\x1f\x8b"], headers={"Content-Encoding": "gzip"}) as fake:
        _, error = await read_until_error(client, fake.server())
    assert type(error) is PeerGone and "compresses" in error.message
    assert fake.seen[0].headers["Accept-Encoding"] == "identity"


async def test_a_server_that_never_answers_is_silent() -> None:
    async with OpenAICompatible(QUICK) as client, openai_server(hold=asyncio.Event()) as fake:
        _, error = await read_until_error(client, fake.server())
        assert type(error) is PeerSilent
        await asyncio.wait_for(fake.left.wait(), WAIT_S)


async def test_a_server_that_falls_silent_after_text_interrupts_the_stream() -> None:
    async with OpenAICompatible(Patience(silent_s=0.3)) as client, openai_server(gate=asyncio.Event()) as fake:
        made, error = await read_until_error(client, fake.server())
        assert (made, type(error)) == ("Hello", StreamInterrupted) and "said nothing" in error.message


async def test_a_server_that_only_says_that_it_lives_is_stuck() -> None:
    patience = Patience(stuck_s=0.2)
    async with OpenAICompatible(patience) as client, openai_server(words=("a",), endless=b": still here\n\n") as fake:
        made, error = await read_until_error(client, fake.server())
        assert (made, type(error)) == ("a", StreamInterrupted) and "made nothing" in error.message


async def test_leaving_an_answer_reaches_the_server_at_once(client: OpenAICompatible) -> None:
    async with openai_server(gate=asyncio.Event()) as fake:
        chunks = client.generate(fake.server(), request())
        while not (await anext(chunks)).text:
            pass
        assert fake.active == 1
        await chunks.aclose()
        await asyncio.wait_for(fake.left.wait(), WAIT_S)
        assert fake.active == 0


async def test_cancelling_a_wait_reaches_the_server(client: OpenAICompatible) -> None:
    async with openai_server(hold=asyncio.Event()) as fake:
        waiting = asyncio.create_task(asked(client, fake.server()))
        async with asyncio.timeout(WAIT_S):
            while not fake.active:
                await asyncio.sleep(0.005)
        waiting.cancel()
        await asyncio.wait({waiting})
        assert waiting.cancelled()
        await asyncio.wait_for(fake.left.wait(), WAIT_S)


async def test_a_connection_that_the_server_closed_while_idle_is_no_failure(client: OpenAICompatible) -> None:
    async with openai_server() as fake:
        await asked(client, fake.server())
        port = fake.port
    async with openai_server(port) as again:
        assert text(await asked(client, again.server())) == "Hello there!"


# -- vectors


async def test_vectors_come_in_order_and_with_length_one(client: OpenAICompatible) -> None:
    async with openai_server() as fake:
        answer = await client.embed(fake.server(), EmbeddingRequest(id="e", model="m", inputs=("a", "b")))
    assert (answer.dim, len(answer.vectors), answer.prompt_tokens) == (2, 2, 11)
    for vector in answer.vectors:
        assert struct.unpack("<2f", vector) == pytest.approx((0.6, 0.8))


async def test_many_inputs_are_asked_for_in_several_questions(client: OpenAICompatible) -> None:
    inputs = tuple(f"text {n}" for n in range(INPUTS_MAX + 3))
    async with openai_server(usage={"prompt_tokens": 5, "completion_tokens": 0}) as fake:
        answer = await client.embed(fake.server(), EmbeddingRequest(id="e", model="m", inputs=inputs, dimensions=2))
    assert [len(body["input"]) for body in fake.bodies] == [INPUTS_MAX, 3]
    assert [text for body in fake.bodies for text in body["input"]] == list(inputs)
    assert fake.bodies[0]["dimensions"] == 2
    assert (len(answer.vectors), answer.prompt_tokens) == (len(inputs), 10)


@pytest.mark.parametrize("embedding", [(), (math.inf, 1.0), ("a", "b"), "no base64!", "AAAA"])
async def test_vectors_that_are_none_are_refused(client: OpenAICompatible, embedding: Any) -> None:
    async with openai_server() as fake:
        fake.embedding = embedding

        if isinstance(embedding, str):
            fake.embedding = ()
            fake.refusal = (200, {"data": [{"index": 0, "embedding": embedding}]}, {})
        with pytest.raises(PeerGone, match="vectors"):
            await client.embed(fake.server(), EmbeddingRequest(id="e", model="m", inputs=("a",)))


async def test_too_few_vectors_are_refused(client: OpenAICompatible) -> None:
    async with openai_server(refusal=(200, {"data": [{"index": 0, "embedding": [1.0]}]}, {})) as fake:
        with pytest.raises(PeerGone, match="1 vectors"):
            await client.embed(fake.server(), EmbeddingRequest(id="e", model="m", inputs=("a", "b")))


# -- what it is


async def test_models_are_as_the_server_names_them(client: OpenAICompatible) -> None:
    async with openai_server(models=["b", "a/b:c", "b"]) as fake:
        assert await client.models(fake.server()) == ("b", "a/b:c")


@pytest.mark.parametrize(
    "answer", [b"", b"{}", b"[]", b'{"data": 7}', b'{"data": [7]}', b'{"data": [{}]}', b"<html>", b"[" * 1000]
)
async def test_a_list_of_models_that_is_none_is_refused(client: OpenAICompatible, answer: bytes) -> None:
    async with openai_server(list_answer=answer) as fake:
        with pytest.raises(PeerGone, match="/v1/models"):
            await client.models(fake.server())


async def test_a_list_of_models_may_not_be_endless(client: OpenAICompatible, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_compatible, "LIST_BYTES_MAX", 1000)
    async with openai_server(list_answer=b" " * 100_000) as fake:
        with pytest.raises(PeerGone, match="more than 1,000 bytes"):
            await client.models(fake.server())


async def test_who_does_not_answer_a_probe_is_silent() -> None:
    async with OpenAICompatible(QUICK) as client, openai_server(hold=asyncio.Event()) as fake:
        with pytest.raises(PeerSilent):
            await client.models(fake.server())
        with pytest.raises(PeerSilent):
            await client.is_peer(fake.server())


@pytest.mark.parametrize(
    ("told", "is_peer"),
    [
        ({"version": "0.3.0", "mesh": "ab", "peer_port": 8081}, True),
        ({"version": "0.3.0", "mesh": "ab", "peer_port": None}, True),
        ({"version": "1"}, False),
        (None, False),
    ],
)
async def test_a_peer_is_known_by_what_it_says_of_itself(
    client: OpenAICompatible, told: dict[str, Any] | None, is_peer: bool
) -> None:
    async with openai_server(well_known=told) as fake:
        assert await client.is_peer(fake.server()) is is_peer


def test_a_server_is_called_by_its_name_and_asked_at_its_address() -> None:
    server = Server(id="a", name="n", scheme="https", host="gpu.lan", port=443, address="fd00::5")
    assert server.url("/v1/models") == "https://[fd00::5]:443/v1/models"
    assert server.authority == "gpu.lan"
    assert replace(server, port=8443).authority == "gpu.lan:8443"
    assert replace(server, host="fd00::5", scheme="http", port=80).authority == "[fd00::5]"
