"""The channels of one peer: one to each member, greeted, proven alive, replaced by a better one, closed.

Both sides may open a channel at once, a machine may restart or move while its old channel looks open, and a copied data
folder brings a second process with the same identity. Which channel stays is decided here; opening them is
gossip.dialling's business, what is said on them gossip.agent's.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from gossip.channel import Channel
from gossip.codec import CodecError
from gossip.errors import GossipError
from gossip.frames import CORE, FRAME, FRAMES, Cloned, Hello, Probe, ProbeAnswer, framed
from gossip.identity import short
from gossip.link import Link, Traffic

log = logging.getLogger(__name__)

HELLO_S = 5.0
ANSWER_S = 1.0
CHECK_S = 1.5
PARTING_S = 0.5
FLUSH_S = 1.0
QUIET_S = 3.0
"""A channel that was not heard for this long gives way to a new one of the same process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handlers:
    """Who hears what of the channels; all are called in the loop and must not wait.

    `hello` is what to greet with; `takes` whether a channel with that hello is for us (it says so to people if not);
    `core` gets gossip's own messages (peer, bytes, time), `framed` the others; `where` says how a member is reached.
    """

    hello: Callable[[], Hello]
    takes: Callable[[Channel, Hello], bool]
    opened: Callable[[Link, Hello], None]
    closed: Callable[[str], None]
    core: Callable[[str, bytes, float], None]
    framed: Callable[[Link, object], None]
    where: Callable[[str], tuple[str, ...]]


class Channels:
    """The open ones, by peer. All methods belong to the loop it was made in."""

    def __init__(self, *, me: str, rng: random.Random, handlers: Handlers) -> None:
        self._me = me
        self._rng = rng
        self._on = handlers
        self._loop = asyncio.get_running_loop()
        self.traffic = Traffic()
        self._links: dict[str, Link] = {}
        self._probes: dict[int, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[Link]:
        return iter(list(self._links.values()))

    def get(self, peer: str) -> Link | None:
        return self._links.get(peer)

    def put(self, peer: str, data: bytes) -> bool:
        """Sends; False when there is no channel to `peer`."""
        link = self._links.get(peer)
        if link is not None:
            link.put(data, self._loop.time())
        return link is not None

    async def serve(self, channel: Channel) -> None:
        """A channel from its first message to its end."""
        hello = await self.greeted(channel)
        if hello is None or not self._on.takes(channel, hello):
            return
        link = Link(channel, hello.run, self._loop.time(), self.traffic)
        writer = asyncio.create_task(link.write(), name=f"to {short(link.peer)}")
        try:
            if not await self._replaces(link) or not self._on.takes(channel, hello):
                await link.flushed(FLUSH_S)  # the second look: the roster may have changed while the old one was asked
                return
            if (other := self._links.get(link.peer)) is not None:
                self.drop(other)
            self._links[link.peer] = link
            self._on.opened(link, hello)
            await self._read(link)
        finally:
            link.end()
            writer.cancel()
            await asyncio.wait({writer})
            self._closed(link)

    async def greeted(self, channel: Channel) -> Hello | None:
        """Says hello and hears it; None when nothing that we understand comes."""
        try:
            async with asyncio.timeout(HELLO_S):
                await channel.send(framed(self._on.hello()))
                data = await channel.receive()
            message = FRAMES.decode(data[1:]) if data is not None and data[:1] == FRAME else None
        except (GossipError, CodecError, TimeoutError):
            return None
        return message if isinstance(message, Hello) else None

    # -- are they alive

    async def probe(self, peer: str, timeout_s: float = ANSWER_S) -> bool:
        """Does it answer, now?"""
        link = self._links.get(peer)
        return link is not None and await self._answers(link, timeout_s)

    def check(self, link: Link) -> None:
        """Drops the link unless it answers soon: a dead channel keeps a better one from being opened."""

        async def checked() -> None:
            try:
                if not await self._answers(link, CHECK_S) and self._links.get(link.peer) is link:
                    log.info("a channel is dead; another is opened", extra={"peer": short(link.peer)})
                    self.drop(link)
            finally:
                link.is_checked = False

        if not link.is_checked:
            link.is_checked = True
            self._spawn(checked())

    def check_all(self) -> None:
        """The network may be another one now."""
        for link in list(self._links.values()):
            self.check(link)

    async def _answers(self, link: Link, timeout_s: float) -> bool:
        nonce = self._rng.getrandbits(32)
        answer = self._probes[nonce] = self._loop.create_future()
        try:
            link.put(framed(Probe(nonce=nonce)))
            async with asyncio.timeout(timeout_s):
                await answer
            return True
        except TimeoutError:
            return False
        finally:
            del self._probes[nonce]

    # -- ends

    def drop(self, link: Link) -> None:
        """Ends a link from here; what is queued is not sent."""
        link.end()
        self._spawn(link.channel.close())
        self._closed(link)

    def dismiss(self, link: Link) -> None:
        """Hears nothing more on this link; what is on its way out (why it ends) still goes."""
        self._closed(link)

        async def parted() -> None:
            await link.flushed(PARTING_S)
            link.end()
            await link.channel.close()

        self._spawn(parted())

    async def flushed(self) -> None:
        """Returns when everything queued was handed to the network, or after a second."""
        await asyncio.gather(*(link.flushed(FLUSH_S) for link in list(self._links.values())))

    async def close(self) -> None:
        """Ends every channel."""
        await asyncio.gather(*(link.channel.close() for link in self._links.values()), return_exceptions=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _closed(self, link: Link) -> None:
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
            self._on.closed(link.peer)

    # -- which one stays

    async def _replaces(self, link: Link) -> bool:
        """Whether `link` becomes the channel to its peer, in the place of one that is there."""
        old = self._links.get(link.peer)
        if old is None:
            return True
        if old.run != link.run:
            # a restart, if the old process is silent; else two processes have one identity
            if await self._answers(old, ANSWER_S):
                return self._between_clones(old, link)
        elif self._loop.time() - old.heard_at <= QUIET_S and not self._is_better(link, old):
            return False
        self.drop(old)
        return True

    def _between_clones(self, old: Link, new: Link) -> bool:
        """The process that started later is told where the other one is, and finds out by itself that it is so."""
        log.error("two machines have the same identity", extra={"peer": short(new.peer)})
        later = new if new.run > old.run else old
        later.put(framed(Cloned(addresses=self._on.where(new.peer))), self._loop.time())
        if later is old:
            self.dismiss(old)
        return later is old

    def _is_better(self, new: Link, old: Link) -> bool:
        """Both sides opened one: the channel that the smaller id dialled stays. Of one side's two, the newer."""
        if new.channel.is_dialled == old.channel.is_dialled:
            return True
        return new.channel.is_dialled == (self._me < new.peer)

    async def _read(self, link: Link) -> None:
        while (data := await link.channel.receive()) is not None:
            if self._links.get(link.peer) is not link:
                return  # replaced or dropped; a channel of somebody revoked says nothing any more
            link.heard_at = self._loop.time()
            self.traffic.messages_in += 1
            self.traffic.bytes_in += len(data)
            kind, body = data[:1], data[1:]
            if kind == CORE:
                link.used_at = link.heard_at
                self._on.core(link.peer, body, link.heard_at)
            elif kind == FRAME:
                try:
                    self._framed(link, FRAMES.decode(body))
                except CodecError as error:
                    log.debug("not a frame", extra={"peer": short(link.peer), "reason": str(error)})

    def _framed(self, link: Link, message: object) -> None:
        match message:
            case Probe(nonce=nonce):
                link.put(framed(ProbeAnswer(nonce=nonce)))
            case ProbeAnswer(nonce=nonce):
                if (answer := self._probes.get(nonce)) is not None and not answer.done():
                    answer.set_result(None)
            case _:
                self._on.framed(link, message)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
