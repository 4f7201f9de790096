"""How much a key may use, over all peers: what each used lately, and whether one more request fits. Pure.

Every peer admits by itself, so that no request waits for another machine; each tells the others, by gossip, what its
keys used. That news is a second or two old. What holds the limit meanwhile:

    room   = limit * SLACK - all that is known but for what this peer took itself in the last told_s
    a peer alone in the mesh, or the only one where the key is active:  all of the room
    several where it is active:   half of the room among all, the other half for one of them (by hash), so that a
                                  request that is larger than a small share finds a place
    a peer where it was not active lately:   COLD_SHARE of the limit among all other peers, until it has been active
                                  for told_s: by then everybody knows, and shares with it

What a peer took in the last told_s may not be more than its share, and all that is known never more than the limit.
A request that fits the limit but not the share is held until the share grows, at most HELD_S_MAX: a client sees that
it waits, not an error. Simulated with five peers, news 1 and 2 s old and clients that do their worst (all at once, from
peer to peer, ten times the limit): 0.9 to 1.0 times the limit gets through from 60 requests a minute on, never more
than 1.16 times. Spread over five peers at once, of a limit of 5 a minute half may be all, and of requests that take a
fifth of it each two thirds; a client that stays at one peer gets all of it. When news take longer than told_s, or do
not get through at all (a partition), each side has the whole limit.

A minute slides, in buckets of a second. A day is a day of UTC. Tokens are reserved at admission, as an estimate, and
corrected at the end of the request.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from gossip.codec import CodecError, pack, unpack

MINUTE_S = 60
TOLD_S = ((15, 2.5), (127, 4.0), (1 << 62, 20.0))
"""Within how many seconds everybody has heard, by the number of others. Gossip has brought 99 % of the news to the last
of 5 peers in 1.6 s, of 50 in 2.7, of 500 in 16; and this is told every half second."""
ACTIVE_S = 15.0
"""After so long without a request of the key a peer no longer counts as one where it is active."""
IDLE_STEP_S = 5
BEAT_S = 10.0
SLACK = 1.15
"""Shares that add up to the limit leave some of it unused: what one peer does not take, another may not."""
COLD_SHARE = 0.2
HELD_S_MAX = 5.0
"""How long a request waits for its share, all in all; a client that waits longer is better told to come back."""

TOLD_KEYS_MAX = 64
TOLD_BYTES_MAX = 1000
"""A fast fact may have 1,024 bytes."""
_KEYS_OF_A_PEER_MAX = 4096
_DAY_S = 86_400

Meter = Literal["requests", "tokens", "day"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What a key may use; None: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None

    @property
    def is_limited(self) -> bool:
        return any(
            limit is not None for limit in (self.requests_per_minute, self.tokens_per_minute, self.tokens_per_day)
        )

    def meters(self, tokens: int) -> Iterator[tuple[Meter, int, int]]:
        """Each limit there is, with what a request of so many tokens takes of it: never more than the whole."""
        for meter, limit, amount in (
            ("requests", self.requests_per_minute, 1),
            ("tokens", self.tokens_per_minute, tokens),
            ("day", self.tokens_per_day, tokens),
        ):
            if limit is not None:
                yield meter, limit, min(amount, limit)  # type: ignore[misc]  # the names are Meters


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What is left of one limit after a request was let in. `reset_s`: until all of it is there again, at most."""

    limit: int
    remaining: int
    reset_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """The request may go. `at` and `day` say where `tokens` were reserved, for `settle`."""

    key_id: str
    at: int
    day: int
    tokens: int
    left: dict[Meter, Left] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """It fits the limit, but not this peer's share of it: ask again at `until`."""

    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The limit is reached. `used` is what is known of all peers."""

    meter: Meter
    limit: int
    used: int
    retry_after_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUse:
    """What one peer used of one key: in the last minute, and of today. `idle_s` since its last request, in steps of
    IDLE_STEP_S and no more than matters."""

    key_id: str
    requests: int
    tokens: int
    day_tokens: int
    idle_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What one peer tells the others. `day` counts from 1970. `beat` makes it news while anything was used lately:
    gossip carries what is new, and what was heard long ago is forgotten."""

    day: int
    keys: tuple[KeyUse, ...]
    beat: int = 0


class Ledger:
    """The use of every limited key, as this peer knows it. `now` is monotonic seconds, `wall_s` unix seconds."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._own: dict[str, _Own] = {}
        self._told: dict[str, dict[str, _Told]] = {}  # by peer, by key
        self._days: dict[str, dict[str, int]] = {}  # likewise: tokens of the day that is `_day`
        self._day = 0

    def ask(
        self, key_id: str, quota: Quota, tokens: int, now: float, wall_s: float, others: Collection[str]
    ) -> Admitted | Held | Refused:
        """Whether a request of about so many tokens may go now; if so, it is counted. `others`: the living peers."""
        self._begin_day(wall_s)
        own = self._own.setdefault(key_id, _Own(active_since=now, active_at=now))
        own.expire(now)
        if now - own.active_at > ACTIVE_S:
            own.active_since = now
        own.active_at = now
        told_s = told_within_s(len(others))
        used = {meter: self._used(key_id, meter, now) for meter, _, _ in quota.meters(tokens)}
        for meter, limit, amount in quota.meters(tokens):
            if used[meter] + amount > limit:
                over = used[meter] + amount - limit
                wait_s = _day_left_s(wall_s) if meter == "day" else own.wait_s(meter, over, now)
                return Refused(meter=meter, limit=limit, used=used[meter], retry_after_s=wait_s)
        for meter, limit, amount in quota.meters(tokens):
            taken = own.since(meter, now - told_s)
            share = self._share(key_id, own, meter, limit=limit, known=used[meter] - taken, now=now, others=others)
            if taken + amount > share:
                is_new = now - own.active_since < told_s
                return Held(until=own.active_since + told_s if is_new else now + told_s / 2)
        own.take(int(now), 1, tokens)
        left = {
            meter: Left(
                limit=limit,
                remaining=limit - used[meter] - amount,
                reset_s=_day_left_s(wall_s) if meter == "day" else MINUTE_S,
            )
            for meter, limit, amount in quota.meters(tokens)
        }
        return Admitted(key_id=key_id, at=int(now), day=self._day, tokens=tokens, left=left)

    def settle(self, admitted: Admitted, tokens: int, now: float, wall_s: float) -> None:
        """The request ended, and took so many tokens. What was reserved too much is free at once."""
        self._begin_day(wall_s)
        own = self._own.get(admitted.key_id)
        if own is None:
            return
        more = tokens - admitted.tokens
        if more > 0:
            own.take(int(now), 0, more)
        else:
            own.give_back(admitted.at, -more, is_today=admitted.day == self._day)

    def told(self, now: float, wall_s: float) -> bytes:
        """What the others should know: of the 64 busiest keys, as many as fit into a fast fact."""
        self._begin_day(wall_s)
        for key_id, own in list(self._own.items()):
            own.expire(now)
            if own.is_forgotten(now):
                del self._own[key_id]
        busiest = sorted(self._own.items(), key=lambda item: item[1].rank(now), reverse=True)[:TOLD_KEYS_MAX]
        uses = tuple(own.told(key_id, now) for key_id, own in busiest)
        beat = int(now // BEAT_S) if any(use.requests or use.tokens for use in uses) else 0
        data = pack(Use(day=self._day, keys=uses, beat=beat))
        while len(data) > TOLD_BYTES_MAX:
            uses = uses[:-1]
            data = pack(Use(day=self._day, keys=uses, beat=beat))
        return data

    def heard(self, peer: str, data: bytes, now: float, wall_s: float) -> None:
        """What another peer told, `now`. What cannot be is ignored."""
        self._begin_day(wall_s)
        try:
            use = unpack(Use, data)
        except CodecError:
            return
        keys = use.keys[:TOLD_KEYS_MAX]
        self._told[peer] = {each.key_id: _Told(use=each, heard_at=now) for each in keys}
        if use.day == self._day:
            days = self._days.setdefault(peer, {})
            for each in keys:
                if each.key_id in days or len(days) < _KEYS_OF_A_PEER_MAX:
                    days[each.key_id] = each.day_tokens

    def forget(self, peer: str) -> None:
        """It is no member any more: what it told of the keys, true or not, limits nobody."""
        self._told.pop(peer, None)
        self._days.pop(peer, None)

    # -- what a restart should not forget

    def saved(self) -> tuple[int, dict[str, int]]:
        """The day, and what each key used of it here."""
        return self._day, {key_id: own.day_tokens for key_id, own in self._own.items() if own.day_tokens}

    def restore(self, day: int, tokens: Mapping[str, int], now: float, wall_s: float) -> None:
        """What `saved` said before a restart; yesterday's is forgotten."""
        self._begin_day(wall_s)
        if day != self._day:
            return
        for key_id, used in tokens.items():
            long_ago = now - ACTIVE_S - 1
            self._own.setdefault(key_id, _Own(active_since=long_ago, active_at=long_ago)).day_tokens += used

    # -- how

    def _used(self, key_id: str, meter: Meter, now: float) -> int:
        """By this peer, and by the others as they told."""
        own = self._own[key_id]
        if meter == "day":
            return own.day_tokens + sum(days.get(key_id, 0) for days in self._days.values())
        told = sum(each.of(meter) for each in self._heard_of(key_id, now).values())
        return own.since(meter, -math.inf) + told

    def _heard_of(self, key_id: str, now: float) -> dict[str, _Told]:
        """What the others told of the key that may still be so."""
        return {
            peer: keys[key_id]
            for peer, keys in self._told.items()
            if key_id in keys and now - keys[key_id].heard_at <= MINUTE_S
        }

    def _share(
        self, key_id: str, own: _Own, meter: Meter, *, limit: int, known: int, now: float, others: Collection[str]
    ) -> float:
        """How much this peer may take within `told_s`; `known` is what everybody took but for that."""
        told_s = told_within_s(len(others))
        room = limit * SLACK - known
        if not others:
            return room
        if now - own.active_since < told_s:
            return min(room, limit * COLD_SHARE / len(others))
        active = {p for p, told in self._heard_of(key_id, now).items() if told.is_active(now, told_s) and p in others}
        if not active:
            return room
        count = len(active) + 1
        if any(_rank(key_id, self._me) < _rank(key_id, peer) for peer in active):
            return room / (2 * count)
        taken = own.since(meter, now - told_s)
        lump = 0.0 if taken else room if meter == "requests" else 0.8 * room
        return max(lump, room / (2 * count) + room / 2)

    def _begin_day(self, wall_s: float) -> None:
        day = int(wall_s // _DAY_S)
        if day == self._day:
            return
        self._day = day
        self._days.clear()
        for own in self._own.values():
            own.day_tokens = 0


@dataclass(slots=True)
class _Bucket:
    """What was taken in one second."""

    second: int
    requests: int
    tokens: int


@dataclass(slots=True)
class _Own:
    """What this peer used of one key."""

    active_since: float
    active_at: float
    day_tokens: int = 0
    buckets: deque[_Bucket] = field(default_factory=deque)

    def expire(self, now: float) -> None:
        while self.buckets and self.buckets[0].second + 1 <= now - MINUTE_S:
            self.buckets.popleft()

    def since(self, meter: Meter, then: float) -> int:
        """Taken after `then`, all of the second that `then` is in included; in the last minute at most."""
        of: Callable[[_Bucket], int] = (lambda b: b.requests) if meter == "requests" else (lambda b: b.tokens)
        return sum(of(bucket) for bucket in self.buckets if bucket.second + 1 > then)

    def take(self, second: int, requests: int, tokens: int) -> None:
        if not self.buckets or self.buckets[-1].second != second:
            self.buckets.append(_Bucket(second, 0, 0))
        self.buckets[-1].requests += requests
        self.buckets[-1].tokens += tokens
        self.day_tokens += tokens

    def give_back(self, second: int, tokens: int, *, is_today: bool) -> None:
        if is_today:
            self.day_tokens = max(0, self.day_tokens - tokens)
        bucket = next((each for each in self.buckets if each.second == second), None)
        if bucket is not None:
            bucket.tokens = max(0, bucket.tokens - tokens)

    def wait_s(self, meter: Meter, needed: int, now: float) -> int:
        """Until so much has left the window, as far as this peer's own use goes."""
        for bucket in self.buckets:
            needed -= bucket.requests if meter == "requests" else bucket.tokens
            if needed <= 0:
                return max(1, math.ceil(bucket.second + 1 + MINUTE_S - now))
        return MINUTE_S if self.buckets else 5

    def rank(self, now: float) -> tuple[bool, int, int]:
        is_active = now - self.active_at <= ACTIVE_S
        return is_active, self.since("tokens", -math.inf) + self.since("requests", -math.inf), self.day_tokens

    def is_forgotten(self, now: float) -> bool:
        return not self.buckets and not self.day_tokens and now - self.active_at > MINUTE_S

    def told(self, key_id: str, now: float) -> KeyUse:
        return KeyUse(
            key_id=key_id,
            requests=self.since("requests", -math.inf),
            tokens=self.since("tokens", -math.inf),
            day_tokens=self.day_tokens,
            idle_s=min(int(ACTIVE_S + IDLE_STEP_S), int((now - self.active_at) // IDLE_STEP_S * IDLE_STEP_S)),
        )


@dataclass(frozen=True, slots=True)
class _Told:
    use: KeyUse
    heard_at: float

    def of(self, meter: Meter) -> int:
        return self.use.requests if meter == "requests" else self.use.tokens

    def is_active(self, now: float, told_s: float) -> bool:
        """Still so by its own reckoning, and until everybody knows that it is not."""
        return now - self.heard_at + self.use.idle_s <= ACTIVE_S + told_s


def told_within_s(others: int) -> float:
    """How long news take to all of so many other peers."""
    return next(seconds for count, seconds in TOLD_S if others <= count)


def _rank(key_id: str, peer: str) -> bytes:
    return hashlib.sha256(f"{key_id} {peer}".encode()).digest()


def _day_left_s(wall_s: float) -> int:
    return max(1, math.ceil(_DAY_S - wall_s % _DAY_S))
