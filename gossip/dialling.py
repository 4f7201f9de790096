"""Opens the channels: a task for each member without one, all its addresses raced, backing off while nobody answers.

Up to `channels_max` members every one has a channel; above, one is opened when there is something to send. Dead members
are tried every `retry_interval_s`, more often when they died a while ago only, as the other half of a network that fell
in two did, and at once on a hint (mDNS, a seed, an address heard). Racing: RFC 8305, section 5.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gossip.channel import Channel, Network, Unreachable
from gossip.config import GossipConfig
from gossip.identity import short
from gossip.probing import RETRY_SHARE

log = logging.getLogger(__name__)

DIAL_S = 4.0
"""A handshake on a slow machine with a busy radio."""
STAGGER_S = 0.25
BACKOFF_S_MIN = 0.2
BACKOFF_S_MAX = 15.0
BRIEF_S = 1.0
"""A channel that ended sooner is opened again after a pause: what ended it may do so each time."""
LARGER_WAITS_S = 0.3
"""Of two that start at once the larger id waits: one channel is enough."""
ADDRESSES_MAX = 8
HINTS_MAX = 4


def retry_s(dead_for_s: float, config: GossipConfig) -> float:
    """How long to wait before a member that is dead for so long is tried again, as often as it is probed."""
    return min(config.retry_interval_s, max(config.retry_min_s, dead_for_s * RETRY_SHARE))


@dataclass(slots=True)
class _Target:
    """One member: what is known, and whether a task should be dialling it."""

    is_dead: bool = False
    dead_at: float = -math.inf  # when it was found dead; not when it said goodbye
    is_linked: bool = False
    was_linked: bool = False  # since it was dialled last
    hints: list[str] = field(default_factory=list)
    wanted: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    serving: asyncio.Task[None] | None = None


class Dialler:
    """Owned by the agent. `opened` serves a channel until its end; `refused` hears of vain attempts."""

    def __init__(
        self,
        *,
        me: str,
        network: Network,
        addresses: Callable[[str], Sequence[str]],
        opened: Callable[[Channel], Awaitable[None]],
        refused: Callable[[str], None],
        config: GossipConfig,
        rng: random.Random,
    ) -> None:
        self._me = me
        self._network = network
        self._addresses = addresses
        self._opened = opened
        self._refused = refused
        self._config = config
        self._rng = rng
        self._targets: dict[str, _Target] = {}
        self._early: dict[str, list[str]] = {}
        self._tasks = asyncio.TaskGroup()
        self._is_running = False

    async def run(self) -> None:
        """Dials until cancelled."""
        async with self._tasks:
            self._is_running = True
            for peer, target in self._targets.items():
                self._begin(peer, target)
            await asyncio.get_running_loop().create_future()

    def members_are(self, peers: Iterable[str]) -> None:
        """Whom to have channels to."""
        wanted = set(peers)
        for peer in set(self._targets) - wanted:
            target = self._targets.pop(peer)
            if target.task is not None:
                target.task.cancel()
        for peer in sorted(wanted - set(self._targets)):
            target = self._targets[peer] = _Target(hints=self._early.pop(peer, []))
            if self._is_running:
                self._begin(peer, target)

    def state_is(self, peer: str, state: str) -> None:
        """What the core believes of it."""
        if (target := self._targets.get(peer)) is not None:
            was, target.is_dead = target.is_dead, state in ("dead", "left")
            if state == "dead" and not was:
                target.dead_at = asyncio.get_running_loop().time()
            elif state == "left":
                target.dead_at = -math.inf
            if was and not target.is_dead:
                target.wanted.set()

    def has(self, peer: str, is_linked: bool) -> None:
        """There is a channel, or no longer."""
        if (target := self._targets.get(peer)) is not None:
            target.is_linked = is_linked
            target.was_linked = target.was_linked or is_linked
            if is_linked or self._is_eager:  # in a large mesh an idle channel that was closed is not missed
                target.wanted.set()

    def want(self, peer: str) -> None:
        """Something is to be sent."""
        if (target := self._targets.get(peer)) is not None and not target.is_dead:
            target.wanted.set()

    def hint(self, peer: str, addresses: Sequence[str]) -> None:
        """It may be there: tried at once."""
        target = self._targets.get(peer)
        if target is None:  # not a member yet; it may be when its entry arrives
            if len(self._early) < 256:
                self._early[peer] = list(addresses)[:HINTS_MAX]
            return
        target.hints = list(dict.fromkeys([*addresses, *target.hints]))[:HINTS_MAX]
        target.wanted.set()

    def hinted(self, peer: str) -> Sequence[str]:
        target = self._targets.get(peer)
        return target.hints if target is not None else self._early.get(peer, [])

    def wake_all(self) -> None:
        """The network may be another one now."""
        for target in self._targets.values():
            target.wanted.set()

    @property
    def _is_eager(self) -> bool:
        """Is the mesh small enough for a channel to everybody?"""
        return len(self._targets) <= self._config.channels_max

    # -- one member

    def _begin(self, peer: str, target: _Target) -> None:
        target.task = self._tasks.create_task(self._keep(peer, target), name=f"dial {short(peer)}")

    async def _keep(self, peer: str, target: _Target) -> None:
        backoff = BACKOFF_S_MIN
        if self._me > peer:
            await asyncio.sleep(LARGER_WAITS_S)
        while True:
            if target.is_linked or not self._is_eager:
                backoff = BACKOFF_S_MIN
                target.wanted.clear()
                await target.wanted.wait()
                if target.is_linked:
                    continue
                if self._me > peer:
                    await asyncio.sleep(LARGER_WAITS_S * self._rng.random())
            began = asyncio.get_running_loop().time()
            is_taken = await self._dial(peer, target)
            if is_taken and (target.is_linked or asyncio.get_running_loop().time() - began >= BRIEF_S):
                backoff = BACKOFF_S_MIN
                continue
            if not is_taken:
                self._refused(peer)
            now = asyncio.get_running_loop().time()
            wait = retry_s(now - target.dead_at, self._config) if target.is_dead else backoff
            backoff = min(BACKOFF_S_MAX, backoff * 2)
            target.wanted.clear()
            try:
                async with asyncio.timeout(wait * (0.75 + 0.5 * self._rng.random())):
                    await target.wanted.wait()
                # what is wanted over and over, of somebody who does not answer, is not dialled more often than this
                await asyncio.sleep(BACKOFF_S_MIN * self._rng.random())
            except TimeoutError:
                pass

    async def _dial(self, peer: str, target: _Target) -> bool:
        """True when there was a channel that both sides took; returns at its end, unless another one took its place.

        One that a side did not take (its version, another mesh) is as vain as one that did not open.
        """
        addresses = list(self._addresses(peer))[:ADDRESSES_MAX]
        channel = await self._first(peer, addresses)
        if channel is None:
            return False
        target.was_linked = target.is_linked
        await self._opened(channel)
        return target.was_linked

    async def _first(self, peer: str, addresses: Sequence[str]) -> Channel | None:
        """The first address whose handshake proves the id; later ones are tried before earlier ones have failed."""
        won: asyncio.Future[Channel] = asyncio.get_running_loop().create_future()

        async def one(address: str, delay_s: float) -> None:
            await asyncio.sleep(delay_s)
            try:
                channel = await self._network.dial(peer, address, DIAL_S)
            except Unreachable as error:
                log.debug("not reached", extra={"peer": short(peer), "reason": str(error)[:200]})
                return
            if won.done():
                await channel.close()
            else:
                won.set_result(channel)

        tasks = [asyncio.create_task(one(address, n * STAGGER_S)) for n, address in enumerate(addresses)]
        try:
            waiting: set[asyncio.Future[Any]] = {won, *tasks}
            while not won.done() and len(waiting) > 1:
                _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            return won.result() if won.done() else None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
