"""The admin map: the greatest row of each (key, field) wins, and what was ended is over for ever. Pure.

    rows from anywhere -> plan(...) -> Plan: accepted, refused and why, lost edits -> change(plan) -> apply(change)

A last-writer-wins register per field under a remove-wins set of keys (Shapiro, Preguiça, Baquero, Zawirski: A
comprehensive study of Convergent and Commutative Replicated Data Types, INRIA RR-7506, 2011, sections 3.2.1 and 3.3.2):
merging is the maximum of a total order, so it is commutative, associative and idempotent. Rows rank by clock, then a
present signer before one that is none any more, then author, value and signature; a key with an `ended` row is over,
whatever any clock says, and keeps that row alone. Only present signers' rows are taken in.

Digests are sums of row hashes modulo 2^256: of a set in any order, mended with each change. They find differences among
members; against somebody who makes up rows stand the signatures.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from gossip.identity import PeerId
from mesh.admin.clock import Clock
from mesh.admin.rows import ENDED, Row, hash_of, is_signed

ROWS_MAX = 100_000
BYTES_MAX = 64 * 2**20
"""All of it is in memory, on every peer."""
ENDED_RESERVE = 10_000
"""Rows beyond that, for endings only: a full map must not keep a key from being revoked, or a session from ending."""
BUCKETS = 256
"""The first half holds what guests may have, the second what they may not."""
DAY_MS = 86_400_000
TOMBSTONE_DAYS = 30
FOR_EVER = frozenset({"key", "peer", "user"})
"""Spaces whose endings are never collected: a machine that comes back after months must not bring them to life."""
GUESTS_MAY_HAVE = frozenset({"key", "peer", "agent", "setting", "session"})
"""A guest serves its own clients, so it checks their API keys: it has their hashes, which are of 256 random bits and
worth nothing to a thief, and it must hear what was revoked, logged out, renamed, cordoned or set. It has no use for
password hashes and roles (`user/`): who logs in at a guest is passed on. New spaces are closed until somebody opens
them here."""
SECRET = "secret"  # noqa: S105 - how names of fields begin that guests do not get, in whatever space
_MODULUS = 2**256
_Name = tuple[str, str]

Refusal = Literal["malformed", "author", "signature", "clock", "older", "ended", "expired", "full"]
Signers = Mapping[PeerId, bytes]
"""Raw public keys of the members whose rows count, by peer id."""


def is_for_guests(key: str, name: str) -> bool:
    """True if a guest may have this field of this key."""
    return key.partition("/")[0] in GUESTS_MAY_HAVE and not name.startswith(SECRET)


def bucket_of(key: str, name: str) -> int:
    """Where the digest of this row is summed."""
    half = BUCKETS // 2
    return zlib.crc32(key.encode()) % half + (0 if is_for_guests(key, name) else half)


def horizon(now_ms: int) -> int:
    """Endings dated before this are collected. It moves at midnight UTC, so that all peers collect together."""
    return (now_ms // DAY_MS - TOMBSTONE_DAYS) * DAY_MS


@dataclass(slots=True, kw_only=True)
class Plan:
    """What rows would do to the map. `lost`: an edit of a peer, and the row of somebody who had not seen it."""

    accepted: list[Row] = field(default_factory=list)
    refused: list[tuple[Row, Refusal]] = field(default_factory=list)
    lost: list[tuple[Row, Row]] = field(default_factory=list)
    keys: dict[str, dict[str, Row]] = field(default_factory=dict)
    """What the keys that change look like afterwards."""
    rows_more: int = 0
    bytes_more: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a plan comes to: rows that are new, and those that they replace or that go without being replaced."""

    stored: tuple[Row, ...]
    removed: tuple[Row, ...]
    gone: tuple[tuple[str, str], ...]
    keys: frozenset[str]


class AdminMap:
    """The rows of one mesh."""

    def __init__(self, mesh_id: str) -> None:
        self.mesh_id = mesh_id
        self.rows = 0
        self.bytes = 0
        self.authors: Counter[PeerId] = Counter()
        self._spaces: dict[str, dict[str, dict[str, Row]]] = {}
        # the hash of each row, by the bucket it is in
        self._hashes: list[dict[_Name, bytes]] = [{} for _ in range(BUCKETS)]
        self._sums = [0] * BUCKETS

    # -- what it says

    def fields(self, key: str) -> Mapping[str, Row]:
        """The rows of a key, by field; of an ended key that row alone."""
        return self._spaces.get(key.partition("/")[0], {}).get(key, {})

    def is_ended(self, key: str) -> bool:
        return ENDED in self.fields(key)

    def keys(self, prefix: str) -> list[str]:
        """The living keys that begin so, sorted."""
        space, slash, _ = prefix.partition("/")
        spaces = [self._spaces.get(space, {})] if slash else list(self._spaces.values())
        return sorted(
            key for each in spaces for key, fields in each.items() if key.startswith(prefix) and ENDED not in fields
        )

    def all_rows(self) -> Iterator[Row]:
        for space in self._spaces.values():
            for fields in space.values():
                yield from fields.values()

    def orphans(self, signers: Signers) -> list[Row]:
        """Rows whose authors are no signers any more. They stay in force until somebody adopts or drops them."""
        if self.authors.keys() <= signers.keys():
            return []
        return [row for row in self.all_rows() if row.author not in signers]

    def latest(self, key: str) -> Clock | None:
        """The clock of the newest row of this key."""
        return max((row.clock for row in self.fields(key).values()), default=None)

    # -- differences

    def digests(self) -> tuple[bytes, ...]:
        """One per bucket."""
        return tuple(each.to_bytes(32) for each in self._sums)

    def digest(self) -> tuple[bytes, bytes]:
        """Of what guests may have, and of the rest: 32 bytes each."""
        half = BUCKETS // 2
        return _folded(self._sums[:half]), _folded(self._sums[half:])

    def hashes(self, buckets: Iterable[int]) -> Iterator[tuple[bytes, Row]]:
        """The rows of these buckets, each with its hash."""
        for bucket in buckets:
            for (key, name), hashed in self._hashes[bucket].items():
                yield hashed, self.fields(key)[name]

    def hash(self, row: Row) -> bytes:
        """Of a row that is in the map."""
        return self._hashes[bucket_of(row.key, row.field)][row.key, row.field]

    def count(self, bucket: int) -> int:
        """How many rows a bucket has."""
        return len(self._hashes[bucket])

    # -- changes

    def plan(
        self,
        rows: Iterable[Row],
        signers: Signers,
        now_ms: int,
        plan: Plan | None = None,
        *,
        is_clock_right: bool = True,
    ) -> Plan:
        """What these rows would do, after what is in `plan` already. Checks signatures of those that would win.

        `is_clock_right`: what is here and dated ahead of `now_ms` was let in by a clock that was wrong then; it yields.
        """
        plan = plan or Plan()
        for row in rows:
            fields = self._planned(plan, row.key)
            if fields.get(row.field) == row:
                continue
            refusal = self._refusal(row, fields, signers, now_ms, plan, is_clock_right)
            if refusal is None:
                self._take(row, fields, plan)
            else:
                plan.refused.append((row, refusal))
        return plan

    def plan_collection(self, now_ms: int) -> Plan:
        """Without the endings that are due."""
        due = [
            row.key
            for space, keys in self._spaces.items()
            if space not in FOR_EVER
            for fields in keys.values()
            if (row := fields.get(ENDED)) is not None and row.clock.ms < horizon(now_ms)
        ]
        return Plan(keys={key: {} for key in due})

    def plan_without(self, rows: Iterable[Row]) -> Plan:
        """Without these rows."""
        plan = Plan()
        for row in rows:
            self._planned(plan, row.key).pop(row.field, None)
        return plan

    def plan_with(self, rows: Iterable[Row]) -> Plan:
        """With these rows, whatever is there: for what was read from the own disk, or dated anew."""
        plan = Plan()
        for row in rows:
            fields = self._planned(plan, row.key)
            if row.field == ENDED:
                fields.clear()
            fields[row.field] = row
        return plan

    def change(self, plan: Plan) -> Change:
        """What the plan comes to, as long as the map stays as it is."""
        stored: list[Row] = []
        removed: list[Row] = []
        gone: list[tuple[str, str]] = []
        keys: set[str] = set()
        for key, after in plan.keys.items():
            before = self.fields(key)
            fresh = [row for name, row in after.items() if before.get(name) != row]
            old = [row for name, row in before.items() if after.get(name) != row]
            if fresh or old:
                keys.add(key)
            stored.extend(fresh)
            removed.extend(old)
            gone.extend((key, row.field) for row in old if row.field not in after)
        return Change(stored=tuple(stored), removed=tuple(removed), gone=tuple(gone), keys=frozenset(keys))

    def apply(self, change: Change) -> None:
        """Makes it so. The map must not have changed since."""
        for row in change.removed:
            self._remove(row)
        for row in change.stored:
            self._add(row)

    def merge(self, rows: Iterable[Row], signers: Signers, now_ms: int) -> Plan:
        """Plans and applies at once: for those who keep nothing on a disk."""
        plan = self.plan(rows, signers, now_ms)
        self.apply(self.change(plan))
        return plan

    # -- how

    def _planned(self, plan: Plan, key: str) -> dict[str, Row]:
        fields = plan.keys.get(key)
        if fields is None:
            fields = plan.keys[key] = dict(self.fields(key))
        return fields

    def _refusal(
        self,
        row: Row,
        fields: Mapping[str, Row],
        signers: Signers,
        now_ms: int,
        plan: Plan,
        is_clock_right: bool,
    ) -> Refusal | None:
        """Why it is not taken; what is cheap to see comes first, its signature last."""
        held = fields.get(row.field)
        is_ending = row.field == ENDED
        if ENDED in fields and not is_ending:
            return "ended"
        if not is_ending and row.clock.is_ahead(now_ms):
            return "clock"
        if is_ending and not fields and _is_collected(row, now_ms):
            return "expired"
        is_wrong = held is not None and not is_ending and is_clock_right and held.clock.is_ahead(now_ms)
        if held is not None and not is_wrong and _rank(row, signers) <= _rank(held, signers):
            return "older"
        if row.author not in signers:
            return "author"
        if self._is_full(row, _replaced(row, fields), plan):
            return "full"
        if not is_signed(row, self.mesh_id, signers[row.author]):
            return "signature"
        return None

    def _is_full(self, row: Row, replaced: Collection[Row], plan: Plan) -> bool:
        rows_more = 1 - len(replaced)
        bytes_more = row.size - sum(each.size for each in replaced)
        reserve = ENDED_RESERVE if row.field == ENDED else 0
        return (rows_more > 0 and self.rows + plan.rows_more + rows_more > ROWS_MAX + reserve) or (
            bytes_more > 0 and self.bytes + plan.bytes_more + bytes_more > BYTES_MAX + reserve * 1024
        )

    def _take(self, row: Row, fields: dict[str, Row], plan: Plan) -> None:
        replaced = _replaced(row, fields)
        unseen = (
            each for each in replaced if each.field != ENDED and each.value != row.value and not row.had_seen(each)
        )
        plan.lost.extend((each, row) for each in unseen)
        plan.rows_more += 1 - len(replaced)
        plan.bytes_more += row.size - sum(each.size for each in replaced)
        if row.field == ENDED:
            fields.clear()
        fields[row.field] = row
        plan.accepted.append(row)

    def _add(self, row: Row) -> None:
        self._spaces.setdefault(row.key.partition("/")[0], {}).setdefault(row.key, {})[row.field] = row
        bucket = bucket_of(row.key, row.field)
        hashed = self._hashes[bucket][row.key, row.field] = hash_of(row)
        self._sums[bucket] = (self._sums[bucket] + int.from_bytes(hashed)) % _MODULUS
        self.authors[row.author] += 1
        self.rows += 1
        self.bytes += row.size

    def _remove(self, row: Row) -> None:
        keys = self._spaces[row.key.partition("/")[0]]
        del keys[row.key][row.field]
        if not keys[row.key]:
            del keys[row.key]
        bucket = bucket_of(row.key, row.field)
        hashed = self._hashes[bucket].pop((row.key, row.field))
        self._sums[bucket] = (self._sums[bucket] - int.from_bytes(hashed)) % _MODULUS
        self.authors[row.author] -= 1
        if not self.authors[row.author]:
            del self.authors[row.author]
        self.rows -= 1
        self.bytes -= row.size


def _replaced(row: Row, fields: Mapping[str, Row]) -> list[Row]:
    """The rows that go when this one comes."""
    if row.field == ENDED:
        return list(fields.values())
    return [fields[row.field]] if row.field in fields else []


def _folded(sums: Iterable[int]) -> bytes:
    return (sum(sums) % _MODULUS).to_bytes(32)


def _is_collected(row: Row, now_ms: int) -> bool:
    return row.key.partition("/")[0] not in FOR_EVER and row.clock.ms < horizon(now_ms)


def _rank(row: Row, signers: Signers) -> tuple[Clock, bool, PeerId, bytes, bytes]:
    return row.clock, row.author in signers, row.author, row.value, row.signature
