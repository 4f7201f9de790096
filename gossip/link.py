"""One open channel to a member, with a writer of its own: who sends never waits, and a peer that does not read is left.

A message is queued, bounded in number and bytes; what overflows ends the channel, since messages on it are only useful
in order and in time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass

from gossip.channel import Channel, Unreachable

QUEUE_LENGTH_MAX = 2000
QUEUE_BYTES_MAX = 8 * 1024 * 1024
SEND_S = 20.0
"""For one message: who takes a megabyte no faster than this reads nothing."""


@dataclass(slots=True)
class Traffic:
    """What went over channels since the start, without what TLS and WebSockets add."""

    messages_in: int = 0
    messages_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


class Link:
    """A channel whose other end said Hello. `run` is the other process's; times are the loop's. It counts what it sends
    into `traffic`."""

    def __init__(self, channel: Channel, run: int, now: float, traffic: Traffic | None = None) -> None:
        self.channel = channel
        self.peer = channel.peer
        self.run = run
        self.heard_at = now
        self.used_at = now
        self.is_checked = False  # somebody waits for an answer on it
        self._traffic = traffic or Traffic()
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self.is_over = False

    def put(self, data: bytes, now: float | None = None) -> None:
        """Queues `data`; with `now`, as something the channel is there for."""
        if self.is_over:
            return
        if now is not None:
            self.used_at = now
        self._queue.append(data)
        self._bytes += len(data)
        if len(self._queue) > QUEUE_LENGTH_MAX or self._bytes > QUEUE_BYTES_MAX:
            self.end()
        self._filled.set()

    def end(self) -> None:
        """What is queued is not sent any more; the writer stops, and with it the channel."""
        self.is_over = True
        self._queue.clear()
        self._filled.set()
        self._emptied.set()

    async def flushed(self, timeout_s: float) -> None:
        """Returns when everything queued was handed to the network, or after `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                if self._queue and not self.is_over:
                    self._emptied.clear()
                    await self._emptied.wait()

    async def write(self) -> None:
        """Sends what is queued until the link ends or the channel is over; then it is over for both sides."""
        try:
            while not self.is_over:
                while self._queue:
                    data = self._queue[0]
                    async with asyncio.timeout(SEND_S):
                        await self.channel.send(data)
                    self._traffic.messages_out += 1
                    self._traffic.bytes_out += len(data)
                    if self._queue and self._queue[0] is data:
                        self._queue.popleft()
                        self._bytes -= len(data)
                self._emptied.set()
                self._filled.clear()
                if not self._queue and not self.is_over:
                    await self._filled.wait()
        except (Unreachable, TimeoutError):
            self.end()
        await self.channel.close()  # a reader waits on it, and would wait on
