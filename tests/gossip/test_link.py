"""The writer of a channel: who does not read, or has too much waiting for it, is left on both sides."""

from __future__ import annotations

import asyncio

import pytest

from gossip import link as link_module
from gossip.channel import Unreachable
from gossip.link import QUEUE_BYTES_MAX, Link


class Stuck:
    """A channel whose other end takes `takes` messages and then no more; `breaks`: it says so."""

    peer, is_dialled, address = "peer", True, "10.0.0.1:1"

    def __init__(self, takes: int, *, breaks: bool = False) -> None:
        self.sent: list[bytes] = []
        self.closed = asyncio.Event()
        self._takes = takes
        self._breaks = breaks

    async def send(self, data: bytes) -> None:
        if len(self.sent) >= self._takes:
            if self._breaks:
                raise Unreachable("reset")
            await asyncio.get_running_loop().create_future()
        self.sent.append(data)

    async def receive(self) -> bytes | None:
        await self.closed.wait()
        return None

    async def close(self) -> None:
        self.closed.set()


async def test_who_does_not_read_is_left_and_the_reader_here_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "SEND_S", 0.02)
    channel = Stuck(takes=1)
    link = Link(channel, 1, 0.0)
    for data in (b"one", b"two"):
        link.put(data, 0.0)
    async with asyncio.timeout(5.0):
        await link.write()
        assert await channel.receive() is None
    assert channel.sent == [b"one"]


async def test_a_channel_that_breaks_or_overflows_is_closed() -> None:
    for channel in (Stuck(takes=0, breaks=True), Stuck(takes=100)):
        link = Link(channel, 1, 0.0)
        link.put(b"x", 0.0)
        if channel._takes:
            link.put(b"x" * QUEUE_BYTES_MAX, 0.0)
        async with asyncio.timeout(5.0):
            await link.write()
        assert channel.closed.is_set() and channel.sent == []


async def test_a_link_stays_open_for_who_reads() -> None:
    channel = Stuck(takes=100)
    link = Link(channel, 1, 0.0)
    writer = asyncio.create_task(link.write())
    for number in range(50):
        link.put(b"%d" % number, 0.0)
    await link.flushed(5.0)
    assert channel.sent == [b"%d" % number for number in range(50)] and not channel.closed.is_set()
    link.end()
    await writer
    assert channel.closed.is_set()
