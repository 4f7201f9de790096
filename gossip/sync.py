"""Push-pull: two peers compare hashes of what they know, then exchange what differs. The safety net under gossip.

Digest opens, Table answers with the buckets that differ, a second Table with what was newer on the other side.
Source: memberlist's push/pull state exchange; the hashes are Dynamo's (section 4.7), one level of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from gossip.bucket import Bucket
from gossip.config import GossipConfig
from gossip.facts import ROW_BYTES, Facts
from gossip.members import LEAVES, NOBODY, UNKNOWN, Member, Members, fast_of, news_of
from gossip.membership import Membership
from gossip.messages import ALIVE, SUSPECT, Digest, FactRow, NewsRow, Rumour, Table
from gossip.outbox import Outbox
from gossip.timers import Timers

# About what a member takes in a table, for choosing how many buckets fit.
MEMBER_BYTES = 150
TABLE_BYTES_MAX = 1 << 18
# A table with more changes than this is a stranger's whole world: telling it on would only repeat old news.
SPREAD_MAX = 32


class Sync:
    def __init__(
        self,
        *,
        members: Members,
        membership: Membership,
        facts: Facts,
        config: GossipConfig,
        rng: random.Random,
        timers: Timers,
        outbox: Outbox,
        bulk: Bucket,
        now: float,
    ) -> None:
        self._members, self._membership, self._facts = members, membership, facts
        self._config, self._rng, self._timers = config, rng, timers
        self._outbox, self._bulk = outbox, bulk
        timers.at(now + config.sync_interval_s * (0.2 + 0.8 * rng.random()), self._again)

    def open(self, member: Member, now: float) -> None:
        """Compares with this peer, at most once a probe interval, and not while the bulk bucket is empty."""
        if now - member.asked_at >= self._config.probe_interval_s and self._bulk.has(now) > 0:
            member.asked_at = now
            self._outbox.send(member.peer, Digest(digests=self._members.digests()))

    def _again(self, now: float) -> None:
        self._timers.at(now + self._config.sync_interval_s * (0.9 + 0.2 * self._rng.random()), self._again)
        near = self._members.near
        if near:
            self.open(self._rng.choice(near), now)

    def digest(self, message: Digest, sender: Member, now: float) -> None:
        width = len(message.digests)
        if not _is_width(width):
            return
        mine = self._members.folded(width)
        differing = [at for at, (a, b) in enumerate(zip(mine, message.digests, strict=True)) if a != b]
        self._send_table(width, differing, sender, now)

    def _send_table(self, width: int, differing: list[int], sender: Member, now: float) -> None:
        """As many of the buckets as the bytes allow; the rest waits for another sync."""
        room = min(TABLE_BYTES_MAX, self._bulk.has(now))
        if room <= 0:
            return
        self._rng.shuffle(differing)
        most = max(1, int(room * width / (MEMBER_BYTES * len(self._members.by_peer))))
        buckets = tuple(differing[:most])
        if buckets:
            rumours, news, facts = self._rows(self._of(width, buckets), now)
            self._outbox.send(sender.peer, Table(width=width, buckets=buckets, rumours=rumours, news=news, facts=facts))

    def table(self, message: Table, sender: Member, now: float) -> None:
        spread = len(message.rumours) <= SPREAD_MAX
        for rumour in message.rumours:
            self._membership.hear(rumour, sender, now, in_sync=True, spread=spread)
        self._facts.merge(message.facts, sender, now)
        self._facts.hear_news(message.news, sender, now)
        if (
            message.is_answer
            or self._bulk.has(now) <= 0
            or not _is_width(message.width)
            or len(message.buckets) > message.width
        ):
            return
        told = {rumour.peer: rumour for rumour in message.rumours}
        versions = {(ref, key): version for ref, key, version in message.news}
        newer = [
            member
            for member in self._of(message.width, message.buckets)
            if _is_newer(member, told.get(member.ref))
            or any(version > versions.get((ref, key), -1) for ref, key, version in news_of(member))
        ]
        if newer:
            rumours, news, facts = self._rows(newer, now)
            self._outbox.send(
                sender.peer,
                Table(
                    width=message.width, buckets=message.buckets, rumours=rumours, news=news, facts=facts,
                    is_answer=True,
                ),
            )  # fmt: skip

    def _of(self, width: int, buckets: Iterable[int]) -> list[Member]:
        chosen = set(buckets)
        return [
            member
            for member in self._members.by_peer.values()
            if member.rank != UNKNOWN and member.bucket % width in chosen
        ]

    def _rows(
        self, members: Sequence[Member], now: float
    ) -> tuple[tuple[Rumour, ...], tuple[NewsRow, ...], tuple[FactRow, ...]]:
        rumours: list[Rumour] = []
        news: list[NewsRow] = []
        facts: list[FactRow] = []
        mine = self._members.mine.ref
        for member in self._fitting(members):
            rumours.append(member.rumour(source=mine if member.rank == SUSPECT else ""))
            news += news_of(member)
            facts += fast_of(member, now)
        return tuple(rumours), tuple(news), tuple(facts)

    def _fitting(self, members: Sequence[Member]) -> Sequence[Member]:
        """As many as a table holds: most take little, but nobody is kept from telling much."""
        sizes = {member: _size(member) for member in members}
        if sum(sizes.values()) <= 2 * TABLE_BYTES_MAX:
            return members
        shuffled, room = list(members), 2 * TABLE_BYTES_MAX
        self._rng.shuffle(shuffled)
        return [member for member in shuffled if (room := room - sizes[member]) >= 0]


def _size(member: Member) -> int:
    """What it takes in a table at most."""
    facts = sum(ROW_BYTES + 4 * len(f.key) + len(f.value) * f.is_fast for f in member.facts.values())
    return MEMBER_BYTES + 4 * member.about.size + facts


def _is_width(width: int) -> bool:
    return 1 <= width <= LEAVES and width & (width - 1) == 0


def _is_newer(member: Member, told: Rumour | None) -> bool:
    if told is None or (told.about is None and member.about is not NOBODY):
        return True
    rank = ALIVE if member.rank == SUSPECT else member.rank
    return (member.run, member.incarnation, rank) > (told.run, told.incarnation, told.rank)
