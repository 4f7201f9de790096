"""What rides on messages, and the messages that exist only to carry it, within the bytes a peer may send.

Membership first: rumours, then news of slow facts, then fast facts fill what is left. Probes are sent whatever the
bucket says; everything else waits for it. Source: SWIM section 4.1; memberlist's gossip ticks.
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple

from gossip.broadcast import Broadcasts
from gossip.bucket import Bucket
from gossip.config import GossipConfig
from gossip.facts import Facts
from gossip.members import Member, Members
from gossip.messages import ALIVE, DEAD, FactRow, Gossip, NewsRow, Rumour
from gossip.outbox import Outbox
from gossip.timers import Timers

# On a ping or ack even when the bucket is empty, a few rumours: a suspicion must be able to travel.
ROOM_MIN = 128
# What a Gossip takes by itself.
EMPTY_BYTES = 16


class Carried(NamedTuple):
    rumours: tuple[Rumour, ...]
    facts: tuple[FactRow, ...]
    news: tuple[NewsRow, ...]
    claim: bytes


class Spreader:
    def __init__(
        self,
        *,
        members: Members,
        facts: Facts,
        config: GossipConfig,
        rng: random.Random,
        timers: Timers,
        outbox: Outbox,
        broadcasts: Broadcasts,
        bucket: Bucket,
        now: float,
    ) -> None:
        self._members, self._facts, self._config, self._rng = members, facts, config, rng
        self._timers, self._outbox, self._broadcasts, self._bucket = timers, outbox, broadcasts, bucket
        self._order: list[Member] = []
        self._claim, self._claim_sends = b"", 0
        timers.at(now + config.gossip_interval_s * rng.random(), self._again)

    def claim_is(self, claim: bytes) -> None:
        """The highest claim changed: it rides along for a while."""
        self._claim = claim
        self._claim_sends = self._config.retransmit_mult * math.ceil(math.log10(self._members.count + 1))

    def carried(self, target: Member, now: float) -> Carried:
        """What to put on a message to this peer."""
        has = self._bucket.has(now)
        in_deep_debt = has < -self._config.burst_s * self._config.bytes_per_s / 2
        room = 0.0 if in_deep_debt else min(self._config.message_bytes, max(ROOM_MIN, has))
        claim = b""
        if self._claim_sends > 0:
            self._claim_sends -= 1
            claim = self._claim
            room -= len(claim)
        rumours, news, used = self._broadcasts.taken(
            room, self._members.count, is_counted=target.rank == ALIVE and not target.avoided
        )
        facts = self._facts.rows_for(target, min(room, has) - used, now)
        return Carried(rumours, tuple(facts), news, claim)

    def _again(self, now: float) -> None:
        self._timers.at(now + self._config.gossip_interval_s, self._again)
        self._facts.pump(now)
        if self._broadcasts or self._claim_sends > 0:
            self._spread_rumours(now)
        else:
            self._spread_facts(now)

    def _spread_rumours(self, now: float) -> None:
        """To the next few, and one of those who may have died by mistake."""
        targets = [self._next_target() for _ in range(self._config.fanout)]
        dead = self._lately_dead(now)
        if dead:
            targets.append(self._rng.choice(dead))
        for member in dict.fromkeys(targets):
            if self._bucket.has(now) < ROOM_MIN + self._config.frame_overhead_bytes:
                return
            if member is not None:
                self._send(member, now)

    def _lately_dead(self, now: float) -> list[Member]:
        """They may not be dead at all, and refute."""
        since = now - self._config.gossip_to_dead_s
        return [
            each for each in self._members.by_peer.values()
            if each.rank == DEAD and each.since > since and self._members.is_near(each)
        ]  # fmt: skip

    def _spread_facts(self, now: float) -> None:
        """As many messages as the bucket pays for, each as full as there is something to tell."""
        for _ in range(self._config.fanout):
            pending = self._facts.pending_bytes()
            if not pending:
                return
            wanted = min(self._config.message_bytes, pending) + EMPTY_BYTES + self._config.frame_overhead_bytes
            if self._bucket.has(now) < wanted:
                return
            member = self._next_target(for_facts=True)
            if member is None:
                return
            self._send(member, now)

    def _next_target(self, *, for_facts: bool = False) -> Member | None:
        """Round robin, so that nobody is left out; for facts, past those who have nothing to learn."""
        for _ in range(2):
            while self._order:
                member = self._order.pop()
                if not member.is_live or (for_facts and not self._facts.is_news_to(member)):
                    continue
                return member
            self._order = list(self._members.near)
            self._rng.shuffle(self._order)
        return None

    def _send(self, member: Member, now: float) -> None:
        carried = self.carried(member, now)
        if any(carried):
            rumours, facts, news, claim = carried
            self._outbox.send(member.peer, Gossip(rumours=rumours, facts=facts, news=news, claim=claim))
