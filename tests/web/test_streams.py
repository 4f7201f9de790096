"""Streams and whole answers over real sockets: their shape, their heartbeat, their end."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from inference.chat import ChatPrompt, Message, TextPart, TextPrompt, TokenPrompt, ToolCall
from inference.errors import DeadlineExceeded, Overloaded, WorkerDied
from web.services import Limits

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "once"}


def _events(blocks: list[str]) -> list[Any]:
    return [json.loads(block.removeprefix("data: ")) for block in blocks if block.startswith("data: {")]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
async def test_a_chat_is_answered_with_openais_object(surface: Any, path: str) -> None:
    """F70, F71, F175, F178: both chat routes answer `chat.completion`."""
    status, body, headers = await surface.ask("POST", path, CHAT, x_request_id="abc")
    assert status == 200
    assert isinstance(body.pop("created"), int)
    assert body == {
        "id": "chatcmpl-abc",
        "object": "chat.completion",
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 1,
            "completion_tokens": 3,
            "total_tokens": 4,
            "prompt_tokens_details": {"cached_tokens": 1},
        },
    }
    assert headers["x-request-id"] == "abc"
    assert headers["x-llm-router-peer"] == "attic"
    assert headers["x-llm-router-attempts"] == "2"


@pytest.mark.parametrize(("path", "max_tokens"), [("/v1/completions", 16), ("/api/generate", None)])
async def test_a_completion_is_answered_with_openais_object(surface: Any, path: str, max_tokens: int | None) -> None:
    """F71, F176, F177, F178: both completion routes answer `text_completion`."""
    status, body, _ = await surface.ask("POST", path, TEXT, x_request_id="abc")
    assert status == 200
    assert (body["id"], body["object"]) == ("cmpl-abc", "text_completion")
    assert body["choices"] == [{"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "stop"}]
    (generation,) = surface.script.generations
    assert (generation.prompt, generation.kind) == (TextPrompt(text="once"), "generate")
    assert generation.max_tokens == max_tokens


async def test_a_chat_stream_has_role_text_reason_and_done(surface: Any) -> None:
    blocks = await surface.events("/v1/chat/completions", {**CHAT, "stream": True}, x_request_id="abc")
    events = _events(blocks)
    assert [event["choices"][0]["delta"] for event in events] == [
        {"role": "assistant", "content": ""},
        {"content": "Hel"},
        {"content": "lo"},
        {},
    ]
    assert [event["choices"][0]["finish_reason"] for event in events] == [None, None, None, "stop"]
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert {event["id"] for event in events} == {"chatcmpl-abc"}
    assert len({event["created"] for event in events}) == 1
    assert all("usage" not in event for event in events)
    assert blocks[-2:] == [": served-by attic", "data: [DONE]"]


async def test_usage_comes_in_a_last_chunk_without_choices_when_asked(surface: Any) -> None:
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    events = _events(await surface.events("/v1/chat/completions", body))
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["total_tokens"] == 4
    assert all(event["usage"] is None for event in events[:-1])


async def test_a_completion_stream_has_text_in_its_choices(surface: Any) -> None:
    blocks = await surface.events("/v1/completions", {**TEXT, "stream": True})
    choices = [event["choices"][0] for event in _events(blocks)]
    assert [choice["text"] for choice in choices] == ["Hel", "lo", ""]
    assert [choice["finish_reason"] for choice in choices] == [None, None, "stop"]
    assert blocks[-1] == "data: [DONE]"


async def test_text_of_any_kind_arrives_as_it_was_made(surface: Any) -> None:
    text = 'a"b\\c\n\r\x85\u2028\u2029\x00\U0001f600日本 data: [DONE]'
    surface.script.pieces = [text, text]
    blocks = await surface.events("/v1/chat/completions", {**CHAT, "stream": True})
    contents = [event["choices"][0]["delta"].get("content", "") for event in _events(blocks)]
    assert "".join(contents) == text + text
    assert all(block.isascii() for block in blocks)


async def test_a_step_is_sent_before_the_next_one_is_made(surface: Any) -> None:
    surface.script.before_piece.clear()
    async with surface.session.post(surface.url + "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
        first = await answer.content.readuntil(b"\n\n")
        assert b'"role":"assistant"' in first
        surface.script.before_piece.set()
        assert b'"Hel"' in await answer.content.readuntil(b"\n\n")


async def test_a_long_prefill_is_kept_alive_by_comments(start: Any) -> None:
    """A stream that is silent gets headers and comments; the answer follows all the same."""
    surface = await start(limits=Limits(heartbeat_s=0.02))
    surface.script.before_start.clear()
    async with surface.session.post(surface.url + "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
        assert answer.status == 200
        for _ in range(3):
            assert await answer.content.readuntil(b"\n\n") == b": waiting\n\n"
        surface.script.before_start.set()
        assert (await answer.text()).endswith("data: [DONE]\n\n")


async def test_an_error_before_the_first_token_is_a_status(surface: Any) -> None:
    surface.script.error_before = Overloaded("the queue is full", retry_after_s=3)
    status, body, headers = await surface.ask("POST", "/v1/chat/completions", {**CHAT, "stream": True})
    assert (status, body["error"]["code"], headers["retry-after"]) == (503, "overloaded", "3")
    assert "x-should-retry" not in headers


async def test_a_deadline_that_passed_is_504_and_not_to_be_repeated(surface: Any) -> None:
    surface.script.error_before = DeadlineExceeded("the queue is longer than 1 s")
    status, body, headers = await surface.ask("POST", "/v1/chat/completions", CHAT, x_llm_router_timeout="1")
    assert (status, body["error"]["code"], headers["x-should-retry"]) == (504, "timeout", "false")
    assert surface.script.callers[0].deadline_s == 1.0


async def test_an_error_after_the_headers_is_an_event_without_done(surface: Any) -> None:
    surface.script.error_after = WorkerDied("the worker ended")
    blocks = await surface.events("/v1/chat/completions", {**CHAT, "stream": True})
    assert _events(blocks)[-1] == {
        "error": {"message": "the worker ended", "type": "server_error", "param": None, "code": "worker_died"}
    }
    assert "data: [DONE]" not in blocks


async def test_an_error_after_a_heartbeat_opened_the_stream_is_an_event(start: Any) -> None:
    surface = await start(limits=Limits(heartbeat_s=0.01))
    surface.script.before_start.clear()
    surface.script.error_before = Overloaded("the queue is full")
    async with surface.session.post(surface.url + "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
        await answer.content.readuntil(b"\n\n")
        surface.script.before_start.set()
        text = await answer.text()
    assert '"code": "overloaded"' in text
    assert "[DONE]" not in text


@pytest.mark.parametrize("stream", [True, False])
async def test_an_unexpected_error_after_the_start_is_reported_without_its_text(
    surface: Any, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    surface.script.error_after = RuntimeError("secret detail")
    async with surface.session.post(
        surface.url + "/v1/chat/completions", json={**CHAT, "stream": stream}, headers={"x-request-id": "r1"}
    ) as answer:
        text = await answer.text()
        assert answer.status == (200 if stream else 500)
    assert ("stream_interrupted" if stream else "internal_error") in text
    assert "r1" in text
    assert "secret detail" not in text
    assert "secret detail" in caplog.text


async def test_an_answer_that_just_stops_is_an_error(surface: Any) -> None:
    surface.script.finish = None
    status, body, _ = await surface.ask("POST", "/v1/chat/completions", CHAT)
    assert (status, body["error"]["code"]) == (500, "stream_interrupted")
    blocks = await surface.events("/v1/chat/completions", {**CHAT, "stream": True})
    assert _events(blocks)[-1]["error"]["code"] == "stream_interrupted"
    assert blocks[-1] != "data: [DONE]"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("point", ["before_start", "before_piece"])
async def test_a_client_that_leaves_frees_its_slot(surface: Any, stream: bool, point: str) -> None:
    getattr(surface.script, point).clear()
    body = json.dumps({**CHAT, "stream": stream}).encode()
    _, writer = await surface.connect()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    async with asyncio.timeout(10):
        await surface.script.started.wait()
        assert not surface.script.closed.is_set()
        writer.close()
        await surface.script.closed.wait()
        while surface.listener.active_requests:
            await asyncio.sleep(0)
    assert surface.script.observed[-1][2] == 499


async def test_embeddings_come_as_floats_or_base64(surface: Any) -> None:
    """F178: /v1/embeddings, with strings, arrays of strings, token ids and arrays of them."""
    for value, count in (("a", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1], [2, 3]], 2)):
        status, body, _ = await surface.ask("POST", "/v1/embeddings", {"model": "embed", "input": value})
        assert status == 200
        assert [item["embedding"] for item in body["data"]] == [[1.0, 0.0]] * count
        assert [item["index"] for item in body["data"]] == list(range(count))
    assert (body["object"], body["model"]) == ("list", "embed")
    assert body["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    assert surface.script.embeddings[-1].inputs == ((1,), (2, 3))
    _, body, _ = await surface.ask(
        "POST", "/v1/embeddings", {"model": "embed", "input": "a", "encoding_format": "base64", "dimensions": 2}
    )
    assert body["data"][0]["embedding"] == "AACAPwAAAAA="
    assert surface.script.embeddings[-1].dimensions == 2


async def test_models_are_listed_and_found_by_an_id_with_slashes(surface: Any) -> None:
    """F178: /v1/models and /v1/models/{id}."""
    _, body, _ = await surface.ask("GET", "/v1/models")
    assert body["object"] == "list"
    assert [model["id"] for model in body["data"]] == ["tiny", "hf/a/b.gguf", "embed", "stuck"]
    assert {"id", "object", "created", "owned_by", "ready"} <= set(body["data"][0])
    for path in ("/v1/models/hf/a/b.gguf", "/v1/models/hf%2Fa%2Fb.gguf"):
        status, body, _ = await surface.ask("GET", path)
        assert (status, body["id"], body["object"]) == (200, "hf/a/b.gguf", "model")


async def test_everything_asked_for_reaches_the_engine(surface: Any) -> None:
    messages = [
        {"role": "developer", "content": "brief"},
        {"role": "user", "content": [{"type": "text", "text": "time?"}], "name": "eva"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    ]
    asked = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "repetition_penalty": 1.1,
        "seed": 7,
    }
    body = {"model": "tiny", "messages": messages, **asked, "logit_bias": {"5": -100}, "stop": "x", "max_tokens": 9}
    status, _, _ = await surface.ask("POST", "/v1/chat/completions", body)
    assert status == 200
    (made,) = surface.script.generations
    assert made.prompt == ChatPrompt(
        messages=(
            Message(role="developer", content="brief"),
            Message(role="user", content=(TextPart(text="time?"),), name="eva"),
            Message(role="assistant", content=None, tool_calls=(ToolCall(id="c1", name="clock", arguments="{}"),)),
            Message(role="tool", content="noon", tool_call_id="c1"),
        )
    )
    s = made.sampling
    assert (s.temperature, s.top_p, s.top_k, s.min_p, s.seed) == (0.5, 0.9, 40, 0.1, 7)
    assert (s.presence_penalty, s.frequency_penalty, s.repeat_penalty) == (0.2, 0.3, 1.1)
    assert (s.logit_bias, made.stop, made.max_tokens) == (((5, -100.0),), ("x",), 9)


async def test_token_ids_are_a_prompt(surface: Any) -> None:
    for prompt in ([1, 2], [[1, 2]]):
        await surface.ask("POST", "/v1/completions", {"model": "tiny", "prompt": prompt})
    assert [made.prompt for made in surface.script.generations] == [TokenPrompt(tokens=(1, 2))] * 2


@pytest.mark.parametrize(("offered", "is_kept"), [("a b~1", True), ("x" * 128, True), ("x" * 129, False), ("ü", False)])
async def test_a_sane_request_id_is_echoed(surface: Any, offered: str, is_kept: bool) -> None:
    _, _, headers = await surface.ask("GET", "/health", x_request_id=offered)
    assert (headers["x-request-id"] == offered) is is_kept


async def test_mesh_headers_mean_nothing_on_this_port(surface: Any) -> None:
    status, body, _ = await surface.ask(
        "POST", "/v1/chat/completions", CHAT, x_mesh_hop="1", x_mesh_context="e30", x_llm_router_priority="background"
    )
    assert (status, "mesh" in body) == (200, False)
    assert surface.script.callers[0].background is True


async def test_a_peer_name_of_any_script_fits_a_header(surface: Any) -> None:
    surface.script.peer = "研究室\r\nX: y"
    status, _, headers = await surface.ask("POST", "/v1/chat/completions", CHAT)
    assert status == 200
    assert headers["x-llm-router-peer"].startswith("%E7%A0%94")
    blocks = await surface.events("/v1/chat/completions", {**CHAT, "stream": True})
    assert blocks[-2].startswith(": served-by ")
    assert blocks[-1] == "data: [DONE]"


async def test_each_request_is_observed_under_its_route(surface: Any) -> None:
    await surface.ask("GET", "/v1/models/tiny")
    await surface.ask("GET", "/v1/nope")
    await surface.ask("POST", "/v1/chat/completions", CHAT)
    assert [row[:3] for row in surface.script.observed] == [
        ("/v1/models/{id}", "GET", 200),
        ("unknown", "GET", 404),
        ("/v1/chat/completions", "POST", 200),
    ]
    assert all(row[3] >= 0 for row in surface.script.observed)
