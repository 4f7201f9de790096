"""Whatever a caller can get wrong is answered with its own fault, in OpenAI's shape, and reaches no engine."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import Any

import pytest

from web.services import Access, Limits

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "hi"}]
E = "invalid_request_error"


def chat(**members: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": USER, **members}


def say(content: Any) -> dict[str, Any]:
    return chat(messages=[{"role": "user", "content": content}])


def image(url: Any) -> dict[str, Any]:
    return say([{"type": "image_url", "image_url": {"url": url}}])


def embed(value: Any) -> dict[str, Any]:
    return {"model": "embed", "input": value}


def complete(prompt: Any, **members: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": prompt, **members}


TOOL = {"type": "function", "function": {"name": "clock", "parameters": {}}}
IMAGE = "messages[0].content[0].image_url.url"

# (body, status, code, param); the type is E unless the status says otherwise.
CHATS: list[tuple[Any, int, str | None, str | None]] = [
    ({"messages": USER}, 400, "missing_required_parameter", "model"),
    (chat(model=""), 400, "invalid_value", "model"),
    (chat(model="   "), 400, "invalid_value", "model"),
    (chat(model=5), 400, "invalid_type", "model"),
    (chat(model=None), 400, "invalid_type", "model"),
    (chat(model=[]), 400, "invalid_type", "model"),
    (chat(model="x" * 10_000), 400, "invalid_value", "model"),
    (chat(model="a\x00b"), 400, "invalid_value", "model"),
    (chat(model="a\nb"), 400, "invalid_value", "model"),
    (chat(model="nope"), 404, "model_not_found", "model"),
    (chat(model="openai:"), 404, "model_not_found", "model"),
    (chat(model="openai:gpt-4o"), 401, "provider_not_configured", "model"),
    (chat(model="embed"), 400, "unsupported_model", "model"),
    ({"model": "tiny"}, 400, "missing_required_parameter", "messages"),
    (chat(messages=None), 400, "missing_required_parameter", "messages"),
    (chat(messages=[]), 400, "empty_array", "messages"),
    (chat(messages="hi"), 400, "invalid_type", "messages"),
    (chat(messages={}), 400, "invalid_type", "messages"),
    (chat(messages=[None]), 400, "missing_required_parameter", "messages[0].role"),
    (chat(messages=[{"content": "x"}]), 400, "missing_required_parameter", "messages[0].role"),
    (chat(messages=[5]), 400, "invalid_type", "messages[0]"),
    (chat(messages=[{"role": "wizard", "content": "x"}]), 400, "invalid_value", "messages[0].role"),
    (chat(messages=[{"role": 5, "content": "x"}]), 400, "invalid_value", "messages[0].role"),
    (chat(messages=[{"role": ["user"], "content": "x"}]), 400, "invalid_value", "messages[0].role"),
    (chat(messages=[*USER, {"role": "user"}]), 400, "missing_required_parameter", "messages[1].content"),
    (say(None), 400, "invalid_type", "messages[0].content"),
    (say(5), 400, "invalid_type", "messages[0].content"),
    (say({}), 400, "invalid_type", "messages[0].content"),
    (say([]), 400, "empty_array", "messages[0].content"),
    (say(["hi"]), 400, "invalid_type", "messages[0].content[0]"),
    (say([{}]), 400, "missing_required_parameter", "messages[0].content[0].type"),
    (say([{"type": "hologram"}]), 400, "invalid_value", "messages[0].content[0].type"),
    (say([{"type": {}}]), 400, "invalid_value", "messages[0].content[0].type"),
    (say([{"type": "text"}]), 400, "missing_required_parameter", "messages[0].content[0].text"),
    (say([{"type": "text", "text": 5}]), 400, "invalid_type", "messages[0].content[0].text"),
    (say([{"type": "input_audio", "input_audio": {}}]), 400, "unsupported_content", "messages[0].content[0]"),
    (image("file:///etc/passwd"), 400, "invalid_image_url", IMAGE),
    (image("http://169.254.169.254/latest"), 400, "invalid_image_url", IMAGE),
    (image("https://example.com/cat.png"), 400, "invalid_image_url", IMAGE),
    (image("data:text/html;base64,AAAA"), 400, "invalid_image_url", IMAGE),
    (image("data:image/png;base64,!!"), 400, "invalid_image_url", IMAGE),
    (image("data:image/png;base64,"), 400, "invalid_image_url", IMAGE),
    (image("data:image/png;base64," + "A" * 28_000_000), 400, "invalid_image_url", IMAGE),
    (image(5), 400, "invalid_type", IMAGE),
    (image("data:image/png;base64,iVBORw0KGgo="), 400, "unsupported_content", "messages[0].content[0]"),
    (chat(messages=[{"role": "assistant", "content": None}]), 400, "invalid_type", "messages[0].content"),
    (chat(messages=[{"role": "tool", "content": "x"}]), 400, "missing_required_parameter", "messages[0].tool_call_id"),
    (
        chat(messages=[{"role": "assistant", "tool_calls": [{"id": "c"}]}]),
        400,
        "missing_required_parameter",
        "messages[0].tool_calls[0].function",
    ),
    (chat(temperature=-1), 400, "decimal_below_min_value", "temperature"),
    (chat(temperature=2.1), 400, "decimal_above_max_value", "temperature"),
    (chat(temperature="hot"), 400, "invalid_type", "temperature"),
    (chat(temperature=True), 400, "invalid_type", "temperature"),
    (chat(top_p=-0.1), 400, "decimal_below_min_value", "top_p"),
    (chat(top_p=1.5), 400, "decimal_above_max_value", "top_p"),
    (chat(min_p=1.5), 400, "decimal_above_max_value", "min_p"),
    (chat(top_k=-2), 400, "integer_below_min_value", "top_k"),
    (chat(top_k=1.5), 400, "invalid_type", "top_k"),
    (chat(presence_penalty=3), 400, "decimal_above_max_value", "presence_penalty"),
    (chat(frequency_penalty=-3), 400, "decimal_below_min_value", "frequency_penalty"),
    (chat(repeat_penalty=0), 400, "decimal_below_min_value", "repeat_penalty"),
    (chat(repeat_penalty=1.1, repetition_penalty=1.2), 400, "invalid_value", "repetition_penalty"),
    (chat(max_tokens=0), 400, "integer_below_min_value", "max_tokens"),
    (chat(max_tokens=-1), 400, "integer_below_min_value", "max_tokens"),
    (chat(max_tokens=1.5), 400, "invalid_type", "max_tokens"),
    (chat(max_tokens="10"), 400, "invalid_type", "max_tokens"),
    (chat(max_tokens=True), 400, "invalid_type", "max_tokens"),
    (chat(max_tokens=2**63), 400, "integer_above_max_value", "max_tokens"),
    (chat(max_completion_tokens=0), 400, "integer_below_min_value", "max_completion_tokens"),
    (chat(max_tokens=1, max_completion_tokens=2), 400, "invalid_value", "max_completion_tokens"),
    (chat(n=0), 400, "integer_below_min_value", "n"),
    (chat(n=1_000_000), 400, "integer_above_max_value", "n"),
    (chat(n=2), 400, "unsupported_parameter", "n"),
    (chat(seed=2**63), 400, "integer_above_max_value", "seed"),
    (chat(seed=1.5), 400, "invalid_type", "seed"),
    (chat(stop=["a"] * 5), 400, "array_above_max_length", "stop"),
    (chat(stop=""), 400, "invalid_value", "stop"),
    (chat(stop="x" * 10_000), 400, "invalid_value", "stop"),
    (chat(stop=[1]), 400, "invalid_value", "stop"),
    (chat(stop=["\x00"]), 400, "invalid_value", "stop"),
    (chat(stop=5), 400, "invalid_type", "stop"),
    (chat(user="\x00"), 400, "invalid_value", "user"),
    (chat(user=5), 400, "invalid_type", "user"),
    (chat(logit_bias=[]), 400, "invalid_type", "logit_bias"),
    (chat(logit_bias={"x": 1}), 400, "invalid_value", "logit_bias"),
    (chat(logit_bias={"-1": 1}), 400, "invalid_value", "logit_bias"),
    (chat(logit_bias={"\u0663": 1}), 400, "invalid_value", "logit_bias"),
    (chat(logit_bias={"1": 101}), 400, "decimal_above_max_value", "logit_bias"),
    (chat(logit_bias={"1": "x"}), 400, "invalid_type", "logit_bias"),
    (chat(logit_bias={str(i): 1 for i in range(2000)}), 400, "invalid_value", "logit_bias"),
    (chat(stream="yes"), 400, "invalid_type", "stream"),
    (chat(stream=1), 400, "invalid_type", "stream"),
    (chat(stream_options={"include_usage": True}), 400, "invalid_value", "stream_options"),
    (chat(stream=True, stream_options=5), 400, "invalid_type", "stream_options"),
    (chat(stream=True, stream_options={"include_usage": 1}), 400, "invalid_type", "stream_options.include_usage"),
    (chat(response_format={"type": "xml"}), 400, "invalid_value", "response_format.type"),
    (chat(response_format={}), 400, "missing_required_parameter", "response_format.type"),
    (chat(response_format="json"), 400, "invalid_type", "response_format"),
    (chat(response_format={"type": "json_object"}), 400, "unsupported_parameter", "response_format"),
    (chat(tools=[TOOL]), 400, "unsupported_parameter", "tools"),
    (chat(tools={}), 400, "invalid_type", "tools"),
    (chat(tools=[{"type": "function"}]), 400, "missing_required_parameter", "tools[0].function"),
    (
        chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "absent"}}),
        400,
        "invalid_value",
        "tool_choice",
    ),
    (chat(tool_choice="auto"), 400, "invalid_value", "tool_choice"),
    (chat(tool_choice="wizard"), 400, "invalid_value", "tool_choice"),
    (chat(tool_choice=5), 400, "invalid_type", "tool_choice"),
    (chat(functions=[]), 400, "unsupported_parameter", "functions"),
    (chat(logprobs=True), 400, "unsupported_parameter", "logprobs"),
    (chat(logprobs="yes"), 400, "invalid_type", "logprobs"),
    (chat(top_logprobs=3), 400, "unsupported_parameter", "top_logprobs"),
    (chat(top_logprobs=21), 400, "integer_above_max_value", "top_logprobs"),
    (chat(modalities=["audio"]), 400, "unsupported_parameter", "modalities"),
    (chat(audio={}), 400, "unsupported_parameter", "audio"),
    (chat(prediction={}), 400, "unsupported_parameter", "prediction"),
    (chat(n_discard=1), 400, "unsupported_parameter", "n_discard"),
    (chat(grammar="root ::= x"), 400, "unsupported_parameter", "grammar"),
    (chat(lora=[]), 400, "unsupported_parameter", "lora"),
    (chat(slot_id=0), 400, "unsupported_parameter", "slot_id"),
    (chat(model_path="/etc/passwd"), 400, "unsupported_parameter", "model_path"),
]
OTHERS: list[tuple[str, Any, str | None, str | None]] = [
    ("/v1/completions", {"model": "tiny"}, "missing_required_parameter", "prompt"),
    ("/v1/completions", complete(5), "invalid_type", "prompt"),
    ("/v1/completions", complete(""), "invalid_value", "prompt"),
    ("/v1/completions", complete([]), "empty_array", "prompt"),
    ("/v1/completions", complete(["a", "b"]), "unsupported_parameter", "prompt"),
    ("/v1/completions", complete([[1], [2]]), "unsupported_parameter", "prompt"),
    ("/v1/completions", complete([1, "a"]), "invalid_type", "prompt"),
    ("/v1/completions", complete([True]), "invalid_type", "prompt"),
    ("/v1/completions", complete([-1]), "integer_below_min_value", "prompt"),
    ("/v1/completions", complete([2**40]), "integer_above_max_value", "prompt"),
    ("/v1/completions", complete("x", suffix="y"), "unsupported_parameter", "suffix"),
    ("/v1/completions", complete("x", echo=True), "unsupported_parameter", "echo"),
    ("/v1/completions", complete("x", logprobs=0), "unsupported_parameter", "logprobs"),
    ("/v1/completions", complete("x", best_of=2), "unsupported_parameter", "best_of"),
    ("/v1/completions", complete("x", best_of=0), "integer_below_min_value", "best_of"),
    ("/api/generate", complete("x", max_tokens=0), "integer_below_min_value", "max_tokens"),
    ("/api/chat", chat(temperature=9), "decimal_above_max_value", "temperature"),
    ("/v1/embeddings", {"model": "embed"}, "missing_required_parameter", "input"),
    ("/v1/embeddings", embed(""), "invalid_value", "input"),
    ("/v1/embeddings", embed([]), "empty_array", "input"),
    ("/v1/embeddings", embed([[]]), "empty_array", "input"),
    ("/v1/embeddings", embed(["x"] * 2049), "array_above_max_length", "input"),
    ("/v1/embeddings", embed(["a", 1]), "invalid_type", "input"),
    ("/v1/embeddings", embed([1, "a"]), "invalid_type", "input"),
    ("/v1/embeddings", embed([[1], "a"]), "invalid_type", "input"),
    ("/v1/embeddings", embed([None]), "invalid_type", "input"),
    ("/v1/embeddings", embed({}), "invalid_type", "input"),
    ("/v1/embeddings", {"model": "embed", "input": "x", "encoding_format": "hex"}, "invalid_value", "encoding_format"),
    ("/v1/embeddings", {"model": "embed", "input": "x", "dimensions": 0}, "integer_below_min_value", "dimensions"),
    ("/v1/embeddings", {"model": "tiny", "input": "x"}, "unsupported_model", "model"),
]
# (bytes of the body, code, words of the message)
BODIES: list[tuple[bytes, str | None, str]] = [
    (b"", None, "empty"),
    (b"  ", None, "empty"),
    (b"{", None, "line 1"),
    (b'{"model": "tiny",}', None, "line 1"),
    (b"[]", "invalid_type", "an array"),
    (b"42", "invalid_type", "an integer"),
    (b"null", "invalid_type", "null"),
    (b'"x"', "invalid_type", "a string"),
    (b"true", "invalid_type", "a boolean"),
    (b"[" * 100_000, None, "nesting deeper than 64"),
    (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, None, "nesting deeper than 64"),
    (b'{"a":' + b"9" * 5000 + b"}", None, "5,000 digits"),
    (b'{"seed": -' + b"9" * 5000 + b"}", None, "digits"),
    (b'{"temperature": 1e999}', None, "too large"),
    (b'{"temperature": NaN}', None, "NaN"),
    (b'{"temperature": -Infinity}', None, "Infinity"),
    (b'{"model": "a", "model": "b"}', None, "twice"),
    (b'{"user": "\\ud800"}', "invalid_encoding", "surrogate"),
    (b'{"user": "\xff"}', "invalid_encoding", "UTF-8"),
    (b'{"user": "\xed\xa0\x80"}', "invalid_encoding", "UTF-8"),
    (json.dumps(chat()).encode("utf-16"), "invalid_encoding", "UTF-8"),
    (json.dumps(chat()).encode("utf-16-le"), "invalid_encoding", "UTF-8"),
    (json.dumps(chat()).encode("utf-32"), "invalid_encoding", "UTF-8"),
    (b'{"user": "a\nb"}', None, "control character"),
    (b"{'model': 'tiny'}", None, "line 1"),
]


def check_error(body: Any, error_type: str, code: str | None, param: str | None) -> str:
    """The message, after everything else was compared."""
    assert set(body) == {"error"}
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"], error["param"]) == (error_type, code, param)
    assert isinstance(error["message"], str)
    assert len(error["message"]) < 600
    return str(error["message"])


@pytest.mark.parametrize(("body", "status", "code", "param"), CHATS)
async def test_a_bad_chat_is_refused_by_name(
    surface: Any, body: Any, status: int, code: str | None, param: str | None
) -> None:
    found, answer, headers = await surface.ask("POST", CHAT, body)
    assert found == status, answer
    assert check_error(answer, E, code, param)
    assert headers["x-request-id"]
    assert surface.script.generations == []


@pytest.mark.parametrize(("path", "body", "code", "param"), OTHERS)
async def test_a_bad_body_of_another_route_is_refused_by_name(
    surface: Any, path: str, body: Any, code: str | None, param: str | None
) -> None:
    status, answer, _ = await surface.ask("POST", path, body)
    assert status == 400, answer
    assert check_error(answer, E, code, param)
    assert surface.script.generations == []
    assert surface.script.embeddings == []


@pytest.mark.parametrize(("data", "code", "words"), BODIES)
async def test_a_body_that_is_no_strict_json_object_is_refused(
    surface: Any, data: bytes, code: str | None, words: str
) -> None:
    status, answer, _ = await surface.ask("POST", CHAT, data=data)
    assert status == 400, answer
    assert words in check_error(answer, E, code, None)


@pytest.mark.parametrize(
    "body",
    [
        chat(some_future_field={"x": 1}),
        chat(temperature=None, stop=None, tools=None, response_format=None, stream=None, n=None, logit_bias=None),
        chat(
            temperature=0,
            top_p=1,
            n=1,
            max_tokens=2**31 - 1,
            stop=["a", "b", "c", "d"],
            response_format={"type": "text"},
        ),
        chat(tools=[], tool_choice="none", logprobs=False, top_logprobs=0, modalities=["text"]),
        chat(tools=[TOOL], tool_choice="none"),
        chat(store=True, metadata={"a": "b"}, service_tier="auto", parallel_tool_calls=True),
        say("a\x00b"),
        say([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
        chat(messages=[{"role": "developer", "content": "be brief"}, *USER]),
    ],
)
async def test_what_is_merely_unusual_is_answered(surface: Any, body: Any) -> None:
    status, answer, _ = await surface.ask("POST", CHAT, body)
    assert status == 200, answer


async def test_a_byte_order_mark_is_skipped(surface: Any) -> None:
    status, _, _ = await surface.ask("POST", CHAT, data=b"\xef\xbb\xbf" + json.dumps(chat()).encode())
    assert status == 200


@pytest.mark.parametrize(
    ("model", "variable"),
    [
        ("openai:gpt-4o", "OPENAI_API_KEY"),
        ("google:gemini", "GOOGLE_API_KEY"),
        ("anthropic:claude", "ANTHROPIC_API_KEY"),
        ("ahtnorpic:claude", "ANTHROPIC_API_KEY"),
    ],
)
async def test_a_cloud_without_key_names_the_variable(surface: Any, model: str, variable: str) -> None:
    """F180: the four prefixes are known."""
    status, answer, _ = await surface.ask("POST", CHAT, chat(model=model))
    assert status == 401
    assert variable in check_error(answer, E, "provider_not_configured", "model")


@pytest.mark.parametrize("browser", [{"Origin": "http://127.0.0.1:{port}"}, {"Sec-Fetch-Mode": "cors"}])
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x"])
async def test_a_browser_must_say_json(surface: Any, browser: dict[str, str], kind: str) -> None:
    names = {name: value.format(port=surface.listener.port) for name, value in browser.items()}
    status, answer, _ = await surface.ask("POST", CHAT, chat(), **{"content-type": kind, **names})
    assert status == 415
    check_error(answer, E, "unsupported_media_type", None)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-8"])
async def test_without_a_browser_json_is_taken_as_json(surface: Any, kind: str) -> None:
    status, _, _ = await surface.ask("POST", CHAT, chat(), **{"content-type": kind})
    assert status == 200


@pytest.mark.parametrize("encoding", ["br", "zstd", "x", "gzip, gzip"])
async def test_an_unknown_content_encoding_is_refused(surface: Any, encoding: str) -> None:
    status, answer, _ = await surface.ask("POST", CHAT, chat(), **{"content-encoding": encoding})
    assert status == 415
    check_error(answer, E, "unsupported_encoding", None)


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_a_compressed_body_is_read(surface: Any, encoding: str, pack: Any) -> None:
    data = pack(json.dumps(chat()).encode())
    status, _, _ = await surface.ask("POST", CHAT, data=data, **{"content-encoding": encoding})
    assert status == 200
    status, answer, _ = await surface.ask("POST", CHAT, data=data[:-3], **{"content-encoding": encoding})
    assert status == 400
    check_error(answer, E, "invalid_encoding", None)


async def test_a_gzip_bomb_is_too_large(surface: Any) -> None:
    bomb = gzip.compress(b" " * 40_000_000)
    status, answer, _ = await surface.ask("POST", CHAT, data=bomb, **{"content-encoding": "gzip"})
    assert status == 413
    check_error(answer, E, "request_too_large", None)


async def test_a_declared_body_that_is_too_large_is_refused_before_it_is_sent(surface: Any) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n"
    answer = await surface.raw(head.encode() + b"Expect: 100-continue\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"request_too_large" in answer


async def test_a_chunked_body_that_is_too_large_is_refused_and_closed(start: Any) -> None:
    surface = await start(limits=Limits(body_bytes=100_000))
    chunks = (b"10000\r\n" + b" " * 0x10000 + b"\r\n") * 3
    answer = await surface.raw(
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        + chunks
        + b"0\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()


async def test_a_client_that_asks_first_is_told_to_go_on(surface: Any) -> None:
    body = json.dumps(chat()).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    answer = await surface.raw(head.encode() + b"Expect: 100-continue\r\n\r\n" + body)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("PATCH", CHAT, 405, "method_not_allowed"),
        ("OPTIONS", CHAT, 405, "method_not_allowed"),
        ("GET", "/v1/nope", 404, "unknown_url"),
        ("POST", "/v1/", 404, "unknown_url"),
        ("GET", "/nope", 404, "unknown_url"),
        ("GET", "/v1/models/nope", 404, "model_not_found"),
    ],
)
async def test_a_wrong_url_or_method_says_so(surface: Any, method: str, path: str, status: int, code: str) -> None:
    found, answer, headers = await surface.ask(method, path)
    assert found == status
    message = check_error(answer, E, code, "model" if code == "model_not_found" else None)
    if status == 405:
        assert headers["allow"] in ("POST", "GET, HEAD")
    elif code == "unknown_url":
        assert f"Unknown request URL: {method} {path}" in message


async def test_our_own_routes_answer_errors_as_text(surface: Any, token: str) -> None:
    status, answer, _ = await surface.ask("GET", "/api/nope")
    assert (status, list(answer)) == (404, ["error"])
    status, answer, _ = await surface.ask(
        "POST", "/api/models/load", {"model": "nope"}, authorization=f"Bearer {token}"
    )
    assert status == 404
    assert "nope" in answer["error"]


async def test_a_model_nobody_can_load_is_503_with_retry_after(surface: Any) -> None:
    status, answer, headers = await surface.ask("POST", CHAT, chat(model="stuck"))
    assert (status, headers["retry-after"]) == (503, "7")
    check_error(answer, "server_error", "model_unavailable", None)


@pytest.mark.parametrize("value", ["0", "-1", "x", "nan", "inf", "1e9", ""])
async def test_a_senseless_deadline_is_refused(surface: Any, value: str) -> None:
    status, answer, _ = await surface.ask("POST", CHAT, chat(), x_llm_router_timeout=value)
    assert status == 400
    check_error(answer, E, "invalid_value", "x-llm-router-timeout")


async def test_a_websocket_upgrade_is_refused(surface: Any) -> None:
    answer = await surface.raw(
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 400 ")
    check_error(json.loads(answer.partition(b"\r\n\r\n")[2]), E, None, None)


def _wrong_keys() -> list[tuple[str, str]]:
    return [
        ("authorization", "Bearer sk-wrong-key-of-somebody"),
        ("authorization", "Bearer "),
        ("authorization", "Basic dXNlcjpwYXNz"),
        ("authorization", "Bearer " + "k" * 10_000),
        ("authorization", "Bearer ' OR 1=1 --"),
        ("authorization", "Bearer schl\u00fcssel"),
        ("x-api-key", "wrong-wrong-wrong"),
        ("api-key", "wrong-wrong-wrong"),
    ]


@pytest.mark.parametrize(("header", "value"), _wrong_keys())
async def test_a_wrong_key_is_401_and_never_echoed(start: Any, token: str, header: str, value: str) -> None:
    surface = await start(access=Access(hosts=frozenset(), loopback="key", control_token=token))
    status, answer, headers = await surface.ask("POST", CHAT, chat(), **{header: value})
    assert status == 401
    assert headers["www-authenticate"] == "Bearer"
    message = check_error(answer, E, "invalid_api_key", None)
    assert value[-9:] not in message


async def test_no_key_is_401_and_says_how(start: Any) -> None:
    surface = await start(access=Access(hosts=frozenset(), loopback="key"))
    status, answer, headers = await surface.ask("POST", CHAT, chat())
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert "llm-router keys create" in check_error(answer, E, None, None)


async def test_two_keys_that_differ_are_401(surface: Any) -> None:
    status, answer, _ = await surface.ask("GET", "/v1/models", authorization="Bearer a", x_api_key="b")
    assert status == 401
    check_error(answer, E, "invalid_api_key", None)


async def test_a_deep_body_does_not_hold_up_others(surface: Any) -> None:
    deep = asyncio.create_task(surface.ask("POST", CHAT, data=b"[" * 20_000_000))
    await surface.ask("GET", "/health")
    status, _, _ = await deep
    assert status == 400
