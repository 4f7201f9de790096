"""HTTPS on the client port: the same surface, and no way to hold a connection that never becomes one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest

from mesh.accounts.https import SelfSigned, self_signed, server_context
from web.listener import Listener
from web.services import Limits

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
Start = Callable[..., Awaitable[Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SelfSigned:
    return self_signed(tmp_path_factory.mktemp("tls") / "tls", ["localhost"], ["127.0.0.1"], datetime.now(UTC))


@pytest.fixture
def trusting(made: SelfSigned) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(made.cert))


@pytest.fixture
def secured(start: Start, made: SelfSigned) -> Start:
    """Starts surfaces that speak HTTPS."""

    async def secured(limits: Limits | None = None) -> Any:
        return await start(limits=limits, ssl_context=server_context(made.cert, made.key, datetime.now(UTC)))

    return secured


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def raw(
    listener: Listener, context: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port, ssl=context)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_the_whole_surface_answers_over_https(secured: Start, trusting: ssl.SSLContext) -> None:
    surface = await secured()
    url = f"https://localhost:{surface.listener.port}"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting)) as session:
        for _ in range(3):
            async with session.get(f"{url}/health") as answer:
                assert (answer.status, await answer.json()) == (200, {"status": "ok"})
        assert surface.listener.open_connections == 1, "kept alive"
        async with session.get(f"{url}/api/mesh") as answer:
            assert answer.status == 404
        chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        async with session.post(f"{url}/v1/chat/completions", json=chat) as answer:
            assert (await answer.text()).endswith("data: [DONE]\n\n")


async def test_data_that_came_with_the_end_of_the_handshake_is_not_lost(
    secured: Start, trusting: ssl.SSLContext
) -> None:
    """A client writes its request in the packet that ends the handshake; TLS 1.3 does so always."""
    surface = await secured()
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        trusting.minimum_version = trusting.maximum_version = version
        answers = await asyncio.gather(*(at_once(surface.listener, trusting) for _ in range(20)))
        assert all(answer.startswith(b"HTTP/1.1 200 OK") for answer in answers)


async def at_once(listener: Listener, context: ssl.SSLContext) -> bytes:
    """Everything a client says in as few packets as it can, and the answer: TLS by hand, over plain sockets."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    answer = b""
    is_sent = False
    async with asyncio.timeout(20):
        while True:
            try:
                if not is_sent:
                    tls.do_handshake()
                    tls.write(GET + b"Connection: close\r\n\r\n")
                    is_sent = True
                answer += tls.read(65536)
                if b"}" in answer:
                    break
                continue
            except ssl.SSLWantReadError:
                pass
            writer.write(outgoing.read())
            incoming.write(await reader.read(65536))
    writer.close()
    return answer


async def test_who_opens_a_connection_and_says_nothing_counts_and_is_closed(secured: Start) -> None:
    surface = await secured(Limits(headers_s=0.1))
    for beginning in (b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 20):
        async with raw(surface.listener) as (reader, writer):
            writer.write(beginning)
            await until(lambda: surface.listener.open_connections == 1)
            async with asyncio.timeout(10):
                assert await reader.read() == b""
        await until(lambda: surface.listener.open_connections == 0)


async def test_bytes_that_drip_do_not_make_a_handshake_last(secured: Start) -> None:
    surface = await secured(Limits(headers_s=0.2))
    async with raw(surface.listener) as (reader, writer):

        async def drip() -> None:
            for byte in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 10_000:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(10):
                assert await reader.read() == b""
        dripping.cancel()
    await until(lambda: surface.listener.open_connections == 0)


async def test_after_the_handshake_the_headers_have_their_own_time(secured: Start, trusting: ssl.SSLContext) -> None:
    surface = await secured(Limits(headers_s=0.2))
    async with raw(surface.listener, trusting) as (reader, writer):
        writer.write(GET)
        async with asyncio.timeout(10):
            assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
    await until(lambda: surface.listener.open_connections == 0)


async def test_connections_that_are_in_their_handshake_fill_the_limit(secured: Start, trusting: ssl.SSLContext) -> None:
    surface = await secured(Limits(connections=2))
    async with raw(surface.listener), raw(surface.listener):
        await until(lambda: surface.listener.open_connections == 2)
        with pytest.raises((ConnectionError, ssl.SSLError)):
            async with asyncio.timeout(10), raw(surface.listener, trusting):
                pass
        assert surface.listener.open_connections == 2
    await until(lambda: surface.listener.open_connections == 0)
    async with raw(surface.listener, trusting) as (reader, writer):
        writer.write(GET + b"Connection: close\r\n\r\n")
        async with asyncio.timeout(10):
            assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "data",
    [
        GET + b"\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x00" * 1000,
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"\x15\x03\x01\x00\x02\x02\x28",
        b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + b"\x01" * 40,
    ],
)
async def test_what_is_no_tls_is_closed_without_a_reset_and_without_an_error(
    secured: Start, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    surface = await secured()
    async with raw(surface.listener) as (reader, writer):
        writer.write(data)
        async with asyncio.timeout(10):
            answer = await reader.read()
    assert answer == b"" or answer[0] == 0x15, "at most an alert"
    await until(lambda: surface.listener.open_connections == 0)
    assert [r for r in caplog.records if r.levelname in ("WARNING", "ERROR")] == []


async def test_a_client_that_offers_only_old_tls_is_closed(secured: Start, made: SelfSigned) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    surface = await secured()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        async with asyncio.timeout(10), raw(surface.listener, old):
            pass
    await until(lambda: surface.listener.open_connections == 0)


async def test_what_is_no_http_inside_tls_is_400_that_does_not_talk_of_plain_http(
    secured: Start, trusting: ssl.SSLContext
) -> None:
    surface = await secured()
    async with raw(surface.listener, trusting) as (reader, writer):
        writer.write(b"hello\r\n\r\n")
        async with asyncio.timeout(10):
            answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    message = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
    assert "without TLS" not in message


async def test_an_answer_that_nobody_reads_ends_the_connection(secured: Start, trusting: ssl.SSLContext) -> None:
    surface = await secured(Limits(body_s=0.05))
    surface.script.pieces = ["x" * 1_000_000] * 50
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True}).encode()
    async with raw(surface.listener, trusting) as (_, writer):
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
        writer.write(head + body)
        async with asyncio.timeout(10):
            await surface.script.closed.wait()
        await until(lambda: surface.listener.open_connections == 0)
        writer.transport.abort()
    assert surface.script.observed[-1][2] == 499


async def test_an_answer_larger_than_every_buffer_arrives_whole(secured: Start, trusting: ssl.SSLContext) -> None:
    surface = await secured()
    surface.script.pieces = ["x" * 1_000_000] * 10
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    async with raw(surface.listener, trusting) as (reader, writer):
        writer.write(head % len(body) + body)
        async with asyncio.timeout(30):
            answer = await reader.read()
    assert answer.count(b"x") >= 10_000_000
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["usage"]


async def test_closing_ends_handshakes_idle_connections_and_goodbyes_at_once(
    secured: Start, trusting: ssl.SSLContext
) -> None:
    surface = await secured()
    async with raw(surface.listener) as (half, _), raw(surface.listener, trusting) as (idle, writer):
        writer.write(GET + b"\r\n")
        await idle.readuntil(b'{"status": "ok"}')
        await until(lambda: surface.listener.open_connections == 2)
        async with asyncio.timeout(10):  # goodbye alone may take body_s, 30 s
            await surface.listener.close(0)
            assert await half.read() == b""
            with contextlib.suppress(ConnectionError):
                assert await idle.read() == b""
            await until(lambda: surface.listener.open_connections == 0)


async def test_an_answer_that_runs_when_the_listener_closes_arrives_whole(
    secured: Start, trusting: ssl.SSLContext
) -> None:
    surface = await secured()
    surface.script.pieces = ["x" * 100_000] * 20
    surface.script.before_piece.clear()
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    url = f"https://localhost:{surface.listener.port}/v1/chat/completions"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting)) as session:
        answering = asyncio.create_task(whole(session, url, chat))
        await surface.script.started.wait()
        closing = asyncio.create_task(surface.listener.close(30))
        await asyncio.sleep(0)
        surface.script.before_piece.set()
        text = await asyncio.wait_for(answering, 30)
        await asyncio.wait_for(closing, 10)
    assert text.count("x" * 100_000) == 20
    assert text.endswith("data: [DONE]\n\n")


async def whole(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> str:
    async with session.post(url, json=body) as answer:
        return await answer.text()
