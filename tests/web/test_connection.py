"""Bytes that are no HTTP, clients that are slow, connections that end: over raw sockets."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from web.services import Limits

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"GET /health\r\n\r\n",
        b"GET /\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,
        b"\x00\x01\x02\r\n\r\n",
        b"GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n",
        GET + b"X: " + b"a" * 20_000 + b"\r\n\r\n",
        GET + b"".join(b"X-%d: 1\r\n" % number for number in range(2000)) + b"\r\n",
        GET + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        GET + b"Host: localhost\r\n\r\n",
        GET + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        GET + b"Content-Length: +4\r\n\r\nabcd",
        GET + b"Content-Length: -1\r\n\r\n",
        GET + b"X: a\r\n b\r\n\r\n",
        GET + b"X: a\x00b\r\n\r\n",
        GET + b"X : a\r\n\r\n",
        GET + b": a\r\n\r\n",
        b"GET /health HTTP/1.1\nHost: localhost\n\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        GET + b"".join(b"X-%d: %b\r\n" % (number, b"a" * 900) for number in range(20)) + b"\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_not_http_is_400_and_closed(surface: Any, data: bytes) -> None:
    answer = await surface.raw(data)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 ")), answer[:200]
    assert b"x-request-id" in head.lower()
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    assert b"aaaa" not in body


@pytest.mark.parametrize(
    "data",
    [
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /%ff%00 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /v1/models/%ff%00 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\xff\r\nConnection: close\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nx-api-key: \xfe\r\nConnection: close\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nx-request-id: \xff\r\nConnection: close\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nExpect: miracles\r\nConnection: close\r\n\r\n",
    ],
)
async def test_odd_but_legal_bytes_never_make_a_5xx(surface: Any, data: bytes) -> None:
    answer = await surface.raw(data)
    status = int(answer.split(b" ", 2)[1])
    assert 200 <= status < 500, answer


@pytest.mark.parametrize(
    ("method", "path"), [(b"GET", b"/nope"), (b"GET", b"/v1/chat/completions"), (b"POST", b"/v1/models")]
)
async def test_an_expectation_nobody_can_meet_is_refused_in_our_shape(surface: Any, method: bytes, path: bytes) -> None:
    answer = await surface.raw(
        method + b" " + path + b" HTTP/1.1\r\nHost: localhost\r\nExpect: miracles\r\nConnection: close\r\n\r\n"
    )
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 417 ")
    assert b"x-request-id" in head.lower()
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "header", [b"Authorization: Bearer a", b"x-api-key: a", b"api-key: a", b"Origin: http://localhost"]
)
async def test_a_header_that_decides_is_there_once(surface: Any, header: bytes) -> None:
    """Incident 16: which of two counts would depend on who reads them."""
    answer = await surface.raw(GET + header + b"\r\n" + header + b"\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"more than one header" in answer


async def test_a_foreign_host_is_misdirected(surface: Any) -> None:
    answer = await surface.raw(b"GET /health HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 421 ")
    assert b'"wrong_host"' in answer


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_a_foreign_page_is_refused(surface: Any, method: str) -> None:
    status, body, headers = await surface.ask(method, "/v1/models", Origin="https://evil.example")
    assert (status, body["error"]["type"], body["error"]["code"]) == (403, "permission_error", "origin_not_allowed")
    assert "access-control-allow-origin" not in headers


async def test_a_thousand_pipelined_requests_are_served_in_order(surface: Any) -> None:
    requests = b"".join(GET + b"x-request-id: r%d\r\n\r\n" % number for number in range(999))
    answer = await surface.raw(requests + GET + b"x-request-id: r999\r\nConnection: close\r\n\r\n", timeout_s=60)
    ids = [line.partition(b": ")[2] for line in answer.split(b"\r\n") if line.startswith(b"x-request-id")]
    assert ids == [b"r%d" % number for number in range(1000)]
    assert answer.count(b"HTTP/1.1 200 OK") == 1000


@pytest.mark.parametrize("beginning", [b"", b"G", GET, GET + b"\r\n" + b"G"])
async def test_headers_that_do_not_come_end_the_connection(start: Any, beginning: bytes) -> None:
    """The reaper: nothing at all, half a line, half a request, and half a request after a whole one."""
    surface = await start(limits=Limits(headers_s=0.05))
    reader, writer = await surface.connect()
    writer.write(beginning)
    async with asyncio.timeout(10):
        if beginning.endswith(b"\r\n\r\nG"):
            await reader.readuntil(b'{"status": "ok"}')
            writer.write(b"E")  # one more byte of the second request starts its clock
        answer = await _rest(reader)
    assert answer.startswith(b"HTTP/1.1 408 ") if beginning else answer == b""


async def test_dripping_header_bytes_does_not_help(start: Any) -> None:
    surface = await start(limits=Limits(headers_s=0.1))
    reader, writer = await surface.connect()

    writer.write(GET + b"X: ")

    async def drip() -> None:
        while True:
            writer.write(b"a")
            await asyncio.sleep(0.01)

    dripping = asyncio.create_task(drip())
    async with asyncio.timeout(10):
        rest = await _rest(reader)
    # What is written to a closed connection resets it, and the answer may be lost with that; that it ends counts.
    assert rest == b"" or rest.startswith(b"HTTP/1.1 408 ")
    dripping.cancel()


async def test_an_idle_connection_between_requests_lives_on(start: Any) -> None:
    surface = await start(limits=Limits(headers_s=0.05))
    reader, writer = await surface.connect()
    for _ in range(2):
        writer.write(GET + b"\r\n")
        await reader.readuntil(b'{"status": "ok"}')
        await asyncio.sleep(0.15)  # three times as long as headers may take
    assert not reader.at_eof()


async def test_a_body_that_does_not_come_is_408_and_closed(start: Any) -> None:
    surface = await start(limits=Limits(body_s=0.05))
    answer = await surface.raw(
        b'POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"model"'
    )
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"x-should-retry: false" in answer.lower()


async def test_bodies_that_do_not_end_cannot_fill_the_memory_together(start: Any) -> None:
    surface = await start(limits=Limits(body_bytes=100_000, bodies_bytes=150_000))
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 100000\r\n\r\n"
    )
    connections = [await surface.connect() for _ in range(2)]
    for _, writer in connections:
        writer.write(head + b" " * 90_000)
    answers = [asyncio.create_task(reader.read()) for reader, _ in connections]
    async with asyncio.timeout(10):
        (refused,), (waiting,) = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
        assert refused.result().startswith(b"HTTP/1.1 503 ")
        assert b"retry-after" in refused.result().lower()
        _, writer = connections[answers.index(waiting)]
        writer.write(b"x" * 10_000)
        assert (await waiting).startswith(b"HTTP/1.1 400 ")
    status, _, _ = await surface.ask("POST", "/v1/chat/completions", {"model": "tiny", "messages": "x" * 80_000})
    assert status == 400


async def test_a_slow_body_is_not_taken_for_slow_headers(start: Any) -> None:
    surface = await start(limits=Limits(headers_s=0.05, body_s=10))
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}).encode()
    reader, writer = await surface.connect()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    writer.write(head + body[:10])
    for number in range(10, 20):
        await asyncio.sleep(0.02)
        writer.write(body[number : number + 1])
    writer.write(body[20:])
    assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"


async def test_an_answer_that_nobody_reads_ends_the_connection(start: Any) -> None:
    surface = await start(limits=Limits(body_s=0.05))
    surface.script.pieces = ["x" * 1_000_000] * 50
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True}).encode()
    _, writer = await surface.connect()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    writer.write(head + body)
    async with asyncio.timeout(10):
        await surface.script.closed.wait()
        while surface.listener.active_requests:
            await asyncio.sleep(0)
    assert surface.script.observed[-1][2] == 499


async def test_a_chunk_that_is_none_after_a_good_beginning_is_400(surface: Any) -> None:
    reader, writer = await surface.connect()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"
    )
    async with asyncio.timeout(10):
        while not surface.listener.active_requests:
            await asyncio.sleep(0)
        writer.write(b"zz\r\n")
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1


async def test_mixed_requests_leave_nothing_behind(surface: Any) -> None:
    """Good, bad, cancelled and refused ones: in the end no request, no connection and no task is left."""
    tasks_before = len(asyncio.all_tasks())
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}

    async def leave_early(stream: bool) -> None:
        body = json.dumps({**chat, "stream": stream}).encode()
        _, writer = await surface.connect()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
        writer.write(head + body)
        await writer.drain()
        writer.transport.abort()

    for _ in range(25):
        await asyncio.gather(
            surface.ask("POST", "/v1/chat/completions", chat),
            surface.ask("POST", "/v1/chat/completions", {**chat, "n": 0}),
            surface.events("/v1/chat/completions", {**chat, "stream": True}),
            surface.ask("GET", "/v1/nope"),
            leave_early(True),
            leave_early(False),
            surface.raw(b"nonsense\r\n\r\n"),
        )
    await surface.session.close()
    async with asyncio.timeout(10):
        while surface.listener.open_connections or len(asyncio.all_tasks()) > tasks_before:
            await asyncio.sleep(0)
    assert surface.listener.active_requests == 0


async def test_more_connections_than_allowed_are_refused(start: Any) -> None:
    surface = await start(limits=Limits(connections=2))
    held = [await surface.connect() for _ in range(2)]
    assert await surface.raw_or_reset(GET + b"\r\n") == b""
    held[0][1].close()
    async with asyncio.timeout(10):
        while surface.listener.open_connections > 1:
            await asyncio.sleep(0)
    assert (await surface.raw(GET + b"Connection: close\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
    held[1][1].close()


async def _rest(reader: asyncio.StreamReader) -> bytes:
    """What comes until the end; a reset is an end too."""
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
