"""Facts of peers: (peer, key, version, bytes), each peer writes only its own, newer versions win.

Fast facts (load) ride on messages as space allows. Of slow ones (inventory) only the version spreads; the value is
fetched from whoever told of it. A version begins with the run, so what a restarted peer says is never old.
Source: the per-node namespaces of Cassandra's gossip (Lakshman, Malik 2010).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from gossip.broadcast import Broadcasts
from gossip.bucket import Bucket
from gossip.config import GossipConfig
from gossip.effects import FactChanged, PeerId
from gossip.members import Held, Member, Members
from gossip.messages import FactRow, Fetch, NewsRow, Values
from gossip.outbox import Outbox
from gossip.timers import Timers

# A version is at least run << 20: a run can change a fact a million times before it borrows from the next millisecond,
# and the result stays below 2^62 until the year 2109.
RUN_SHIFT = 20
# Nobody writes a version so high; one that was believed could never be followed by a newer one.
VERSION_MAX = 1 << 62
KEY_LENGTH_MAX = 64
# Beside its key and value: ref, version, age and msgpack's own bytes.
ROW_BYTES = 28
# Fast facts wait to be passed on this long, sorted this finely.
FRESH_S = 30.0
SLOTS_PER_S = 4
# Of one peer. Load is one; they travel in every table.
FAST_MAX = 8
FETCHES_MAX = 32
TELLERS_MAX = 3
SERVINGS_MAX = 512
VALUES_BYTES_MAX = 1 << 18


class Facts:
    def __init__(
        self,
        *,
        members: Members,
        config: GossipConfig,
        timers: Timers,
        outbox: Outbox,
        broadcasts: Broadcasts,
        bulk: Bucket,
    ) -> None:
        self._members, self._config, self._timers = members, config, timers
        self._outbox, self._broadcasts, self._bulk = outbox, broadcasts, bulk
        # The fast facts of others that I may still pass on, by when they were set, in slots of 1 / SLOTS_PER_S.
        self._fresh: dict[int, dict[Held, None]] = {}
        self._fresh_count = 0
        self._own_turn = 0
        self._told: dict[PeerId, int] = {}
        self._wanted: dict[tuple[str, str], _Wanted] = {}
        # How many of each owner's are wanted.
        self._wanting: dict[PeerId, int] = {}
        self._queue: deque[_Wanted] = deque()
        self._asking = 0
        self._servings: deque[tuple[PeerId, Held]] = deque()
        # Called with the run of a fact of mine that I have not written.
        self.outran: Callable[[int, float], None] = lambda run, now: None

    def set(self, key: str, value: bytes, now: float, *, fast: bool) -> None:
        """A fact of mine. Raises ValueError when it is too long."""
        limit = self._config.fast_fact_bytes_max if fast else self._config.fact_bytes_max
        if len(value) > limit or len(key) > KEY_LENGTH_MAX:
            raise ValueError(f"the fact {key[:KEY_LENGTH_MAX]!r} has {len(value)} bytes, {limit} is the limit")
        mine = self._members.mine
        held = mine.facts.get(key)
        if held is None:
            if len(mine.facts) >= self._config.facts_per_peer_max:
                raise ValueError(f"more than {self._config.facts_per_peer_max} facts")
            held = mine.facts[key] = Held(mine, key)
        elif held.value == value and held.is_fast == fast:
            return
        held.value, held.is_fast = value, fast
        self._reversion(held, held.version, now)

    def _reversion(self, held: Held, above: int, now: float) -> None:
        mine = self._members.mine
        # the run may be one that somebody made up
        first = min(mine.run << RUN_SHIFT, VERSION_MAX - 1)
        held.version, held.set_at, held.received_at = max(above + 1, first), now, now
        if held.is_fast:
            self._own_turn += 1
        else:
            self._members.hash(mine)
            self._broadcasts.news((mine.ref, held.key, held.version))

    # --- fast -------------------------------------------------------------------------------------

    def merge(self, rows: Iterable[FactRow], teller: Member, now: float) -> None:
        """Fast facts of anyone."""
        by_ref, tell, limit = self._members.by_ref, self._outbox.tell, self._config.fact_sends
        for ref, key, version, age, value in rows:
            member = by_ref.get(ref)
            if member is None or version >= VERSION_MAX:
                continue
            held = member.facts.get(key)
            if held is not None and version <= held.version:
                if version == held.version:
                    # it goes around without me
                    held.sent += 1
                    if held.sent >= limit:
                        self._not_fresh(held)
                continue
            if member is self._members.mine:
                self._heard_mine(key, version, held, now)
                continue
            if len(value) > self._config.fast_fact_bytes_max or not _may_be_fast(member, held):
                continue
            if held is None:
                held = self._new(member, key)
                if held is None:
                    continue
            held.version, held.value = version, value
            held.set_at, held.received_at = now - age / 1000, now
            held.is_fast, held.sent, held.teller = True, 0, teller.peer
            if held.set_at >= held.wave_at + self._wave_s(held):
                held.wave_at = held.set_at
                self._put_fresh(held, now)
            else:
                self._not_fresh(held)
            tell(FactChanged(peer=member.peer, key=key))

    def rows_for(self, target: Member, room: float, now: float) -> list[FactRow]:
        """What is worth telling this peer in so many bytes: mine if it has not got it from me, then the youngest.

        The youngest, because few have heard of it: it is likely to be news.
        """
        rows: list[FactRow] = []
        if self._own_turn and self._told.get(target.peer) != self._own_turn:
            for held in self._members.mine.facts.values():
                size = ROW_BYTES + len(held.key) + len(held.value)
                if held.is_fast and size <= room:
                    rows.append(held.row(now))
                    room -= size
            self._told[target.peer] = self._own_turn
        limit = self._config.fact_sends
        for slot in sorted(self._fresh, reverse=True):
            for held in list(self._fresh[slot]):
                if held.owner is target or held.teller == target.peer:
                    continue
                size = ROW_BYTES + len(held.key) + len(held.value)
                if size > room:
                    # it is full; a long one does not keep shorter ones out for long, being pushed out by age itself
                    return rows
                rows.append(held.row(now))
                room -= size
                held.sent += 1
                if held.sent >= limit:
                    self._not_fresh(held)
        return rows

    def _wave_s(self, held: Held) -> float:
        """How far apart versions are that everybody passes on: as often as the bytes allow all to hear of all."""
        row_bytes = ROW_BYTES + len(held.key) + len(held.value)
        return self._members.count * row_bytes * self._config.wave_share / self._config.bytes_per_s

    def _put_fresh(self, held: Held, now: float) -> None:
        self._not_fresh(held)
        # what is old, but new to me, waits at the end of the line
        held.slot = slot = max(0, int(max(held.set_at, now - FRESH_S / 2) * SLOTS_PER_S))
        self._fresh.setdefault(slot, {})[held] = None
        self._fresh_count += 1

    def _not_fresh(self, held: Held) -> None:
        if held.slot >= 0:
            waiting = self._fresh[held.slot]
            del waiting[held]
            if not waiting:
                del self._fresh[held.slot]
            held.slot = -1
            self._fresh_count -= 1

    def _age(self, now: float) -> None:
        """What is older than that is pushed out by younger ones for ever, and only in the way."""
        for slot in [slot for slot in self._fresh if slot < (now - FRESH_S) * SLOTS_PER_S]:
            for held in list(self._fresh[slot]):
                self._not_fresh(held)

    def pending_bytes(self) -> int:
        """About how much there is to pass on, enough to decide whether a message is worth its frame."""
        return (self._fresh_count + (1 if self._own_turn else 0)) * 64

    def is_news_to(self, target: Member) -> bool:
        """Would a message tell it anything?"""
        return self._fresh_count > 0 or (self._own_turn > 0 and self._told.get(target.peer) != self._own_turn)

    # --- slow -------------------------------------------------------------------------------------

    def hear_news(self, rows: Iterable[NewsRow], teller: Member, now: float) -> None:
        """There are new versions: wanted from whoever tells, unless already on the way."""
        for ref, key, version in rows:
            member = self._members.by_ref.get(ref)
            if member is None or version >= VERSION_MAX:
                continue
            held = member.facts.get(key)
            if held is not None and version <= held.version:
                if version == held.version:
                    self._broadcasts.heard_news((member.ref, key, version))
                continue
            if member is self._members.mine:
                self._heard_mine(key, version, held, now)
                continue
            wanted = self._wanted.get((member.peer, key))
            if held is None and wanted is None and not self._has_room(member, key):
                continue
            if wanted is None or wanted.version < version:
                self._want(_Wanted(member, key, version, teller))
            elif wanted.version == version and len(wanted.tellers) < TELLERS_MAX:
                wanted.tellers.append(teller)
        self.ask(now)

    def ask(self, now: float) -> None:
        """Fetches what is wanted, so much at a time; the owner is the last resort."""
        by_teller: dict[PeerId, list[NewsRow]] = {}
        while self._queue and self._asking < FETCHES_MAX:
            wanted = self._queue.popleft()
            if not self._is_wanted(wanted):
                continue
            wanted.is_asked = True
            self._asking += 1
            teller = wanted.tellers.pop(0)
            by_teller.setdefault(teller.peer, []).append((wanted.member.ref, wanted.key, wanted.version))
            self._timers.at(now + self._config.fetch_timeout_s, self._unanswered, wanted)
        for peer, rows in by_teller.items():
            self._outbox.send(peer, Fetch(wanted=tuple(rows)))

    def _unanswered(self, wanted: _Wanted, now: float) -> None:
        if not self._is_wanted(wanted):
            return
        wanted.is_asked = False
        self._asking -= 1
        if not wanted.tellers and not wanted.is_last:
            wanted.is_last = True
            wanted.tellers.append(wanted.member)
        if wanted.tellers:
            self._queue.append(wanted)
        else:
            # The next sync tells of it again.
            self._unwant(wanted.member, wanted.key)
        self.ask(now)

    def _want(self, wanted: _Wanted) -> None:
        self._unwant(wanted.member, wanted.key)
        self._wanted[wanted.member.peer, wanted.key] = wanted
        self._wanting[wanted.member.peer] = self._wanting.get(wanted.member.peer, 0) + 1
        self._queue.append(wanted)
        if len(self._queue) > 2 * len(self._wanted) + FETCHES_MAX:
            # most are out of date: somebody told of version after version
            self._queue = deque(each for each in self._queue if self._is_wanted(each))

    def _unwant(self, member: Member, key: str) -> None:
        wanted = self._wanted.pop((member.peer, key), None)
        if wanted is None:
            return
        self._asking -= wanted.is_asked
        self._wanting[member.peer] -= 1
        if not self._wanting[member.peer]:
            del self._wanting[member.peer]

    def _is_wanted(self, wanted: _Wanted) -> bool:
        return self._wanted.get((wanted.member.peer, wanted.key)) is wanted

    def _has_room(self, member: Member, key: str) -> bool:
        """For one fact more of this peer, those that are on the way counted."""
        count = len(member.facts) + self._wanting.get(member.peer, 0)
        return len(key) <= KEY_LENGTH_MAX and count < self._config.facts_per_peer_max

    def fetched(self, rows: Iterable[FactRow], teller: Member, now: float) -> None:
        for ref, key, version, age, value in rows:
            member = self._members.by_ref.get(ref)
            if member is None or member is self._members.mine or len(value) > self._config.fact_bytes_max:
                continue
            if version >= VERSION_MAX:
                continue
            held = member.facts.get(key) or self._new(member, key)
            wanted = self._wanted.get((member.peer, key))
            if wanted is not None and version >= wanted.version:
                self._unwant(member, key)
            if held is None or version <= held.version:
                continue
            held.version, held.value = version, value
            held.set_at, held.received_at = now - age / 1000, now
            held.is_fast, held.teller = False, teller.peer
            self._not_fresh(held)
            self._members.hash(member)
            # told on only now: whoever hears of it can fetch it here
            self._broadcasts.news((member.ref, key, version))
            self._outbox.tell(FactChanged(peer=member.peer, key=key))
        self.ask(now)

    def serve(self, rows: Iterable[NewsRow], asker: Member, now: float) -> None:
        for ref, key, version in rows:
            member = self._members.by_ref.get(ref)
            held = member.facts.get(key) if member else None
            if held is not None and held.version >= version and len(self._servings) < SERVINGS_MAX:
                self._servings.append((asker.peer, held))
        self.pump(now)

    def pump(self, now: float) -> None:
        """Sends fetched values as the bulk bucket allows (which is charged when they are encoded)."""
        self._age(now)
        room = self._bulk.has(now)
        while self._servings and room > 0:
            peer, rows, size = self._servings[0][0], [], 0
            while self._servings and self._servings[0][0] == peer and size < min(room, VALUES_BYTES_MAX):
                held = self._servings.popleft()[1]
                rows.append(held.row(now))
                size += ROW_BYTES + len(held.key) + len(held.value)
            room -= size
            self._outbox.send(peer, Values(facts=tuple(rows)))

    # ----------------------------------------------------------------------------------------------

    def forget(self, gone: Iterable[Member]) -> None:
        for member in gone:
            self._told.pop(member.peer, None)
            for held in member.facts.values():
                self._not_fresh(held)
            for key in [key for peer, key in self._wanted if peer == member.peer]:
                self._unwant(member, key)
        self._servings = deque((peer, held) for peer, held in self._servings if peer in self._members.by_peer)

    def reconnected(self, member: Member) -> None:
        """What went over the old channel may be lost: my own facts are told again."""
        self._told.pop(member.peer, None)

    def _new(self, member: Member, key: str) -> Held | None:
        if len(key) > KEY_LENGTH_MAX or len(member.facts) >= self._config.facts_per_peer_max:
            return None
        held = member.facts[key] = Held(member, key)
        return held

    def _heard_mine(self, key: str, version: int, held: Held | None, now: float) -> None:
        """A fact of mine that I have not written: of an earlier life whose clock was ahead. Mine must be newer."""
        self.outran(version >> RUN_SHIFT, now)
        if held is None:
            # not said in this life: emptied, so that all agree; half the room is for what I do say
            if len(self._members.mine.facts) >= self._config.facts_per_peer_max // 2:
                return
            held = self._new(self._members.mine, key)
            if held is None:
                return
        self._reversion(held, version, now)


def _may_be_fast(member: Member, held: Held | None) -> bool:
    """Whether this fact of the peer, or a new one, may be a fast one."""
    if held is not None and held.is_fast:
        return True
    return sum(each.is_fast for each in member.facts.values()) < FAST_MAX


class _Wanted:
    __slots__ = ("is_asked", "is_last", "key", "member", "tellers", "version")

    def __init__(self, member: Member, key: str, version: int, teller: Member) -> None:
        self.member, self.key, self.version, self.tellers = member, key, version, [teller]
        self.is_asked = self.is_last = False
