"""The peer port over real TLS on loopback: who gets in, who gets nothing, and how fast one is out.

Row 23 of the drills for what knocks there: strangers, foreign certificates, revoked peers, recordings, noise.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from gossip import doorway
from gossip.channel import Channel, Unreachable
from gossip.identity import Identity
from gossip.roster import Roster
from gossip.tls import Tls, stranger_context
from gossip.transport import CHANNEL_PATH, MEMBER, PeerPort

NOW = 1_700_000_000
Send = Callable[[aiohttp.ClientWebSocketResponse], Awaitable[None]]


class Side:
    """One peer: identity, its view of the roster, and its port."""

    def __init__(self, identity: Identity, roster: Roster) -> None:
        self.identity = identity
        self.roster = roster
        self.tls = Tls(identity)
        self.tls.update(roster)
        self.port = PeerPort(self.tls, roster=lambda: self.roster)
        self.heard: list[bytes] = []
        self.channels: list[Channel] = []
        self.open = asyncio.Event()

    @property
    def me(self) -> str:
        return self.identity.peer_id

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port.port}"

    def learn(self, roster: Roster) -> None:
        self.roster = roster
        self.tls.update(roster)

    async def accepted(self, channel: Channel) -> None:
        self.channels.append(channel)
        self.open.set()
        while (data := await channel.receive()) is not None:
            self.heard.append(data)
            await channel.send(b"heard " + data)


async def ping(request: web.Request) -> web.StreamResponse:
    return web.json_response({"peer": request[MEMBER]})


async def knock(request: web.Request) -> web.StreamResponse:
    return web.json_response({"stranger": MEMBER not in request})


async def broken(request: web.Request) -> web.StreamResponse:
    raise ZeroDivisionError


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Side, Side]]:
    """Two members of one mesh, both listening."""
    boss, other = Identity.generate(), Identity.generate()
    roster = Roster.found(boss, "boss", NOW).admit(boss, other.certificate_der, "other", "token", "active", NOW)
    sides = Side(boss, roster), Side(other, roster)
    for side in sides:
        side.port.accept(side.accepted)
        side.port.add([("GET", "/ping", ping), ("POST", "/join/knock", knock), ("GET", "/broken", broken)])
        await side.port.start(["127.0.0.1"], [0])
    try:
        yield sides
    finally:
        for side in sides:
            await side.port.close()


async def asked(side: Side, context: ssl.SSLContext, method: str, path: str) -> tuple[int, object]:
    """Status and JSON of one request on a fresh connection."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session,
        session.request(method, f"https://{side.address}{path}", ssl=context) as response,
    ):
        return response.status, await response.json()


async def test_members_talk_both_ways_over_a_channel_and_know_who_is_there() -> None:
    async with pair() as (boss, other):
        channel = await other.port.dial(boss.me, boss.address, 5.0)
        assert channel.peer == boss.me and channel.is_dialled
        await channel.send(b"one")
        await channel.send(b"x" * 900_000)
        assert await channel.receive() == b"heard one"
        assert len(await channel.receive() or b"") == 900_006
        (theirs,) = boss.channels
        assert theirs.peer == other.me and not theirs.is_dialled
        await channel.close()


async def test_a_members_request_carries_its_proven_id() -> None:
    async with pair() as (boss, other):
        assert await asked(boss, other.tls.client_context(boss.me), "GET", "/ping") == (200, {"peer": other.me})


async def test_an_error_of_a_handler_is_an_answer() -> None:
    async with pair() as (boss, other):
        status, _ = await asked(boss, other.tls.client_context(boss.me), "GET", "/broken")
        assert status == 500


@pytest.mark.parametrize(("method", "path"), [("GET", "/ping"), ("GET", CHANNEL_PATH), ("GET", "/"), ("POST", "/join")])
async def test_a_stranger_without_a_certificate_reaches_only_the_joining_paths(method: str, path: str) -> None:
    async with pair() as (boss, _):
        status, body = await asked(boss, stranger_context(), method, path)
        assert status == 403 and body == {"error": "members only"}
        assert await asked(boss, stranger_context(), "POST", "/join/knock") == (200, {"stranger": True})
        assert boss.channels == []


async def test_a_stranger_with_a_certificate_of_its_own_fails_the_handshake() -> None:
    async with pair() as (boss, other):
        stranger = Identity.generate()
        fooled = Roster.found(stranger, "s", NOW).admit(
            stranger, boss.identity.certificate_der, "boss", "token", "active", NOW
        )
        side = Side(stranger, fooled)
        try:
            with pytest.raises(Unreachable):
                await side.port.dial(boss.me, boss.address, 5.0)
        finally:
            await side.port.close()
        assert boss.channels == [] and other.channels == []


async def test_a_server_that_is_not_the_member_wanted_is_refused_before_anything_is_sent() -> None:
    async with pair() as (boss, other):
        with pytest.raises(Unreachable):
            await other.port.dial(other.me, boss.address, 5.0)


async def test_a_revoked_peer_gets_no_new_connection_and_no_answer_on_an_old_one() -> None:
    async with pair() as (boss, other):
        context = other.tls.client_context(boss.me)
        connector = aiohttp.TCPConnector(limit=1)
        async with aiohttp.ClientSession(connector=connector) as session:
            url = f"https://{boss.address}/ping"
            async with session.get(url, ssl=context) as response:
                assert response.status == 200
                await response.read()
            boss.learn(boss.roster.revoke(boss.identity, other.me, NOW + 1))
            async with session.get(url, ssl=context) as response:  # the same connection
                assert response.status == 403
        with pytest.raises(Unreachable):
            await other.port.dial(boss.me, boss.address, 5.0)
        with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
            await asked(boss, context, "GET", "/ping")


async def test_a_session_from_before_its_revocation_does_not_bring_a_peer_back() -> None:
    async with pair() as (boss, other):
        context = other.tls.client_context(boss.me)

        async def connected(session: ssl.SSLSession | None) -> tuple[bytes, ssl.SSLSession | None]:
            def talk() -> tuple[bytes, ssl.SSLSession | None]:
                with (
                    socket.create_connection(("127.0.0.1", boss.port.port), timeout=5) as raw,
                    context.wrap_socket(raw, session=session) as tls,
                ):
                    tls.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    data = b""
                    with contextlib.suppress(OSError):
                        while piece := tls.recv(4096):
                            data += piece
                    return data, tls.session

            return await asyncio.to_thread(talk)

        data, session = await connected(None)
        assert b"200 OK" in data
        boss.learn(boss.roster.revoke(boss.identity, other.me, NOW + 1))
        try:
            data, _ = await connected(session)
        except OSError:
            data = b""
        assert b"200 OK" not in data


async def test_random_bytes_and_half_handshakes_change_nothing() -> None:
    rng = random.Random(5)
    async with pair() as (boss, other):
        writers = []
        for _ in range(200):
            _, writer = await asyncio.open_connection("127.0.0.1", boss.port.port)
            with contextlib.suppress(ConnectionError):
                writer.write(rng.randbytes(rng.randrange(1, 600)))
                await writer.drain()
            writers.append(writer)
        for writer in writers:
            writer.close()
        channel = await other.port.dial(boss.me, boss.address, 5.0)
        await channel.send(b"still there?")
        assert await channel.receive() == b"heard still there?"
        assert len(boss.channels) == 1


async def test_a_recording_of_a_members_connection_is_noise_when_it_is_played_again() -> None:
    async with pair() as (boss, other):
        recorded: list[bytes] = []

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, to_boss = await asyncio.open_connection("127.0.0.1", boss.port.port)

            async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, keep: bool) -> None:
                while data := await source.read(65536):
                    if keep:
                        recorded.append(data)
                    sink.write(data)
                sink.close()

            await asyncio.gather(pump(reader, to_boss, True), pump(there, writer, False), return_exceptions=True)

        server = await asyncio.start_server(relay, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        channel = await other.port.dial(boss.me, f"127.0.0.1:{port}", 5.0)
        await channel.send(b"pay the bill")
        assert await channel.receive() == b"heard pay the bill"
        await channel.close()
        server.close()
        before = list(boss.heard), len(boss.channels)
        _, writer = await asyncio.open_connection("127.0.0.1", boss.port.port)
        for data in recorded:
            writer.write(data)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            await asyncio.sleep(0.02)
        writer.close()
        assert recorded and (list(boss.heard), len(boss.channels)) == before == ([b"pay the bill"], 1)


async def test_text_and_oversized_messages_end_a_channel() -> None:
    async with pair() as (boss, other):
        sends: list[Send] = [_text, _huge]
        for send in sends:
            boss.open.clear()
            async with aiohttp.ClientSession() as session:
                url = f"https://{boss.address}{CHANNEL_PATH}"
                web_socket = await session.ws_connect(url, ssl=other.tls.client_context(boss.me))
                await send(web_socket)
                message = await asyncio.wait_for(web_socket.receive(), 10)
                assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING)
        assert boss.heard == []


async def _text(socket: aiohttp.ClientWebSocketResponse) -> None:
    await socket.send_str("hello")


async def _huge(socket: aiohttp.ClientWebSocketResponse) -> None:
    with contextlib.suppress(ConnectionError, aiohttp.ClientError):
        await socket.send_bytes(os.urandom(3 * 1024 * 1024))


@asynccontextmanager
async def opened(side: Side, context: ssl.SSLContext | None) -> AsyncIterator[asyncio.StreamReader]:
    """A connection to its port that says nothing; without a context, not even TLS."""
    reader, writer = await asyncio.open_connection("127.0.0.1", side.port.port, ssl=context)
    try:
        yield reader
    finally:
        writer.transport.abort()


async def is_ended(reader: asyncio.StreamReader) -> bool:
    """True when the other side ends the connection within a few seconds."""
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(5.0):
            await reader.read()
    return reader.at_eof() or reader.exception() is not None


async def emptied(side: Side) -> None:
    async with asyncio.timeout(5.0):
        while side.port.connections:
            await asyncio.sleep(0.01)


async def test_who_connects_and_says_nothing_is_put_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorway, "HANDSHAKE_S", 0.2)
    monkeypatch.setattr(doorway, "HEAD_S", 0.2)
    monkeypatch.setattr(doorway, "LOOK_S", 0.02)
    async with pair() as (boss, other):
        for context in (None, stranger_context(), other.tls.client_context(boss.me)):
            async with opened(boss, context) as reader:
                assert await is_ended(reader), context
        async with opened(boss, stranger_context()) as reader:
            assert await is_ended(reader)
        await emptied(boss)


async def test_a_head_without_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorway, "HEAD_S", 0.3)
    monkeypatch.setattr(doorway, "LOOK_S", 0.02)
    async with pair() as (boss, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", boss.port.port, ssl=stranger_context())
        with contextlib.suppress(ConnectionError):
            writer.write(b"POST /join/knock HTTP/1.1\r\nHost: x\r\n")
            for number in range(500):
                writer.write(b"x-%d: y\r\n" % number)
                await writer.drain()
                await asyncio.sleep(0.01)
                if reader.at_eof():
                    break
        assert await is_ended(reader)
        writer.transport.abort()


async def test_strangers_are_few_and_members_get_in_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorway, "STRANGERS_MAX", 4)
    async with pair() as (boss, other), contextlib.AsyncExitStack() as stack:
        for _ in range(4):
            await stack.enter_async_context(opened(boss, stranger_context()))
        async with opened(boss, stranger_context()) as reader:
            assert await is_ended(reader)
        assert await asked(boss, other.tls.client_context(boss.me), "GET", "/ping") == (200, {"peer": other.me})
        await stack.aclose()
        await emptied(boss)
        assert await asked(boss, stranger_context(), "POST", "/join/knock") == (200, {"stranger": True})


async def test_handshakes_under_way_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorway, "SHAKING_FROM_ONE_MAX", 3)
    async with pair() as (boss, other), contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(opened(boss, None))
        async with opened(boss, None) as reader:
            assert await is_ended(reader)
        assert boss.port.connections == 3
        await stack.aclose()
        await emptied(boss)
        assert await asked(boss, other.tls.client_context(boss.me), "GET", "/ping") == (200, {"peer": other.me})


async def test_an_answer_that_is_still_being_made_ends_when_its_asker_is_revoked() -> None:
    ended = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"more\n")
                await asyncio.sleep(0.02)
        finally:
            ended.set()

    boss, other, third = (Identity.generate() for _ in range(3))
    roster = Roster.found(boss, "boss", NOW)
    for peer in (other, third):
        roster = roster.admit(boss, peer.certificate_der, "peer", "token", "active", NOW)
    side, stays = Side(boss, roster), Side(third, roster)
    side.port.add([("GET", "/endless", endless)])
    await side.port.start(["127.0.0.1"], [0])
    try:
        async with aiohttp.ClientSession() as session:
            url = f"https://{side.address}/endless"
            async with (
                session.get(url, ssl=Side(other, roster).tls.client_context(boss.peer_id)) as cut,
                session.get(url, ssl=stays.tls.client_context(boss.peer_id)) as kept,
            ):
                assert await cut.content.readline() == b"more\n" == await kept.content.readline()
                side.learn(roster.revoke(boss, other.peer_id, NOW + 1))
                async with asyncio.timeout(2.0):
                    with contextlib.suppress(aiohttp.ClientError):
                        while await cut.content.readany():
                            pass
                    await ended.wait()
                ended.clear()
                await kept.content.readany()
                assert not ended.is_set()
    finally:
        await side.port.close()


async def test_who_does_not_read_its_answer_is_put_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorway, "UNREAD_S", 0.3)
    monkeypatch.setattr(doorway, "LOOK_S", 0.02)
    ended = asyncio.Event()

    async def torrent(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 65_536)
        finally:
            ended.set()

    boss, other = Identity.generate(), Identity.generate()
    roster = Roster.found(boss, "boss", NOW).admit(boss, other.certificate_der, "other", "token", "active", NOW)
    side = Side(boss, roster)
    side.port.add([("GET", "/torrent", torrent)])
    await side.port.start(["127.0.0.1"], [0])
    try:
        context = Side(other, roster).tls.client_context(boss.peer_id)
        reader, writer = await asyncio.open_connection("127.0.0.1", side.port.port, ssl=context, limit=1024)
        writer.write(b"GET /torrent HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readline()
        async with asyncio.timeout(5.0):
            await ended.wait()
        writer.transport.abort()
    finally:
        await side.port.close()
