"""One channel with a writer of its own: the sender never waits, and what cannot be sent is bounded."""

from __future__ import annotations

import asyncio

from gossip.channel import Unreachable
from gossip.link import QUEUE_BYTES_MAX, QUEUE_LENGTH_MAX, Link, Traffic


class Wire:
    """A channel whose other end reads when it is told to."""

    peer = "a" * 52
    is_dialled = True
    address = "host:1"

    def __init__(self, *, is_read: bool = True) -> None:
        self.sent: list[bytes] = []
        self.is_read = asyncio.Event()
        self.is_broken = False
        if is_read:
            self.is_read.set()

    async def send(self, data: bytes) -> None:
        await self.is_read.wait()
        if self.is_broken:
            raise Unreachable("broken")
        self.sent.append(data)

    async def receive(self) -> bytes | None:
        return None

    async def close(self) -> None:
        self.is_broken = True


async def test_messages_go_out_in_order_and_flushed_says_when() -> None:
    wire = Wire(is_read=False)
    traffic = Traffic()
    link = Link(wire, 1, 0.0, traffic)
    writer = asyncio.create_task(link.write())
    for n in range(100):
        link.put(b"%d" % n, 1.0)
    await link.flushed(0.02)
    assert wire.sent == [] and link.used_at == 1.0
    wire.is_read.set()
    await link.flushed(10.0)
    assert wire.sent == [b"%d" % n for n in range(100)]
    assert (traffic.messages_out, traffic.bytes_out) == (100, 10 + 2 * 90)
    link.end()
    await asyncio.wait_for(writer, 10)


async def test_a_peer_that_does_not_read_is_left_before_it_costs_much() -> None:
    for size, count in ((1, QUEUE_LENGTH_MAX), (1 << 20, QUEUE_BYTES_MAX >> 20)):
        link = Link(Wire(is_read=False), 1, 0.0)
        writer = asyncio.create_task(link.write())
        data = bytes(size)
        for _ in range(count):
            link.put(data, 0.0)
        await asyncio.sleep(0)
        assert not link.is_over
        link.put(data, 0.0)
        link.put(data, 0.0)
        assert link.is_over
        writer.cancel()


async def test_a_channel_that_breaks_ends_its_link() -> None:
    wire = Wire()
    wire.is_broken = True
    link = Link(wire, 1, 0.0)
    link.put(b"x", 0.0)
    await asyncio.wait_for(link.write(), 10)
    assert link.is_over
    link.put(b"y", 0.0)
    await link.flushed(0.01)
    assert wire.sent == []
