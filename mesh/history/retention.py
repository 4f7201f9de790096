"""When history goes: records after some days, bodies before that when they take too much room.

By time, a log loses its entries up to its first one that is young enough; the low-water mark of that log then tells the
copies. Each peer does so with its own logs, and a day later with copies whose origin did not (a machine that was sold).
Nothing is deleted while this machine's clock cannot be trusted. By size, bodies go, the oldest first; records stay, and
a person is told. What was done by whom stays for 90 days.

Deleting is done in small pieces between which appends get their turn (mesh.history.store).
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass

import aiosqlite

from mesh.history import schema
from mesh.history.entries import LogId, without_body
from mesh.history.projection import BODIES_DROPPED
from mesh.history.schema import SEQ_BITS, place, value
from mesh.history.store import HistoryStore

log = logging.getLogger(__name__)

DAY_MS = 86_400_000
SKEW_MS_MAX = 300_000
"""A clock that differs more from the others' is not to be trusted with deletions."""
COPY_GRACE_MS = DAY_MS
"""Copies are kept this much longer, so that their origin may decide."""
AUDIT_DAYS = 90
EMPTY_LOG_DAYS = 30
"""A log of which nothing is left is remembered this long, against copies that come back."""
ROOM_KEPT = 0.9
"""Bodies go until the file is down to this share of its limit, so that they do not go one by one."""
PIECE_RECORDS = 64
PIECE_BYTES = 2 * 2**20
"""What is rewritten in one commit."""
FREE_PAGES_KEPT = 4_096
"""Free pages, 16 MiB, that stay in the file for what comes next."""
VACUUM_PAGES = 64
VACUUM_STEPS_MAX = 4_096
"""One call gives back no more than 1 GiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long, and how much. `days` None: for ever; `bytes_max` None: as much as there is."""

    days: float | None = 7.0
    bytes_max: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """This machine's clock. `skew_ms`: how far from the members' median, None when alone; `has_jumped`: lately."""

    now_ms: int
    skew_ms: int | None = None
    has_jumped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to go. `paused`: why nothing goes by time, or empty. `bytes_to_drop`: of bodies."""

    own_before_ms: int | None = None
    copies_before_ms: int | None = None
    audits_before_ms: int | None = None
    bytes_to_drop: int = 0
    paused: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What went. `alarm` is for a person: the limit in bytes was reached."""

    retired: dict[LogId, int]
    bodies_dropped: int
    paused: str
    alarm: str


def plan(limits: Limits, clock: Clock, used_bytes: int) -> Plan:
    """Decides what is to go, with this much in use."""
    to_drop = 0
    if limits.bytes_max is not None and used_bytes > limits.bytes_max:
        to_drop = used_bytes - int(limits.bytes_max * ROOM_KEPT)
    if clock.skew_ms is not None and abs(clock.skew_ms) > SKEW_MS_MAX:
        off = f"{abs(clock.skew_ms) // 1000} s {'ahead of' if clock.skew_ms > 0 else 'behind'} the other machines'"
        return Plan(bytes_to_drop=to_drop, paused=f"the clock of this machine is {off}; nothing is deleted by age")
    if clock.has_jumped:
        return Plan(bytes_to_drop=to_drop, paused="the clock of this machine jumped; nothing is deleted by age for now")
    if limits.days is None:
        return Plan(bytes_to_drop=to_drop)
    before_ms = clock.now_ms - int(limits.days * DAY_MS)
    return Plan(
        own_before_ms=before_ms,
        copies_before_ms=before_ms - COPY_GRACE_MS,
        audits_before_ms=min(before_ms, clock.now_ms - AUDIT_DAYS * DAY_MS),
        bytes_to_drop=to_drop,
    )


class Retention:
    """Does what is planned, on one store; one call at a time. Raises HistoryUnavailable."""

    def __init__(self, store: HistoryStore) -> None:
        self._store = store
        self._bodies_gone_to: tuple[int, int] = (0, 0)
        """Up to this time and place there are no bodies left: not looked at again."""
        self._file = ""

    async def run(self, limits: Limits, clock: Clock) -> Report:
        """Deletes what is to go now. To be called every few minutes."""
        decided = plan(limits, clock, await self.used_bytes())
        if decided.paused:
            log.warning("Old history is not deleted", extra={"reason": decided.paused})
        retired: dict[LogId, int] = {}
        for source, (low, have) in self._store.vector().items():
            before_ms = decided.own_before_ms if source.peer == self._store.own.peer else decided.copies_before_ms
            if before_ms is not None and (through := await self._old(source, low, have, before_ms, clock)) > low:
                await self._store.retire(source, through)
                retired[source] = through
        await self._store.settled()
        if decided.audits_before_ms is not None:
            await self._delete_audits(decided.audits_before_ms)
            await self._forget_empty(decided.audits_before_ms, clock)
        dropped, alarm = await self._make_room(limits, decided.bytes_to_drop)
        await self._shrink()
        return Report(retired=retired, bodies_dropped=dropped, paused=decided.paused, alarm=alarm)

    async def used_bytes(self) -> int:
        """What the file holds, free pages aside."""
        async with self._store.reading() as connection:
            return await _used_bytes(connection)

    async def _old(self, source: LogId, low: int, have: int, before_ms: int, clock: Clock) -> int:
        """Up to where the entries of this log are older than that. Where it holds nothing young, that is all of it.

        A time that is yet to come tells nothing; the start of the log does then.
        """
        no = self._store.numbers().get(source)
        if no is None:
            return low
        future = clock.now_ms + DAY_MS
        sql = (
            "SELECT min(place) FROM (SELECT place FROM {} WHERE place BETWEEN ? AND ?"
            " AND (CASE WHEN at > ? THEN ? ELSE at END) >= ? ORDER BY place LIMIT 1)"
        )
        parameters = (place(no, low + 1), place(no, have), future, source.run, before_ms)
        async with self._store.reading() as connection:
            found = [await value(connection, sql.format(table), *parameters) for table in ("records", "audits")]
        young = [row for row in found if isinstance(row, int)]
        return min(young) - place(no, 0) - 1 if young else have

    async def _delete_audits(self, before_ms: int) -> None:
        lows = {no: self._store.vector()[source][0] for source, no in self._store.numbers().items()}
        after = (0, 0)

        async def some(connection: aiosqlite.Connection) -> tuple[int, int] | None:
            rows = list(
                await connection.execute_fetchall(
                    "SELECT at, place FROM audits INDEXED BY audits_at WHERE at < ? AND (at, place) > (?, ?)"
                    " ORDER BY at, place LIMIT 500",
                    (before_ms, *after),
                )
            )
            # Only those whose entries are gone too: a row is never missing for an entry that is there.
            gone = [(row,) for _, row in rows if row & schema.SEQ_MAX <= lows.get(row >> SEQ_BITS, 0)]
            await connection.executemany("DELETE FROM audits WHERE place = ?", gone)
            return tuple(rows[-1]) if rows else None

        while (last := await self._store.change(some)) is not None:
            after = last

    async def _forget_empty(self, before_ms: int, clock: Clock) -> None:
        """Logs of old runs of which nothing is left at all."""
        run_max = min(before_ms, clock.now_ms - EMPTY_LOG_DAYS * DAY_MS)
        numbers = self._store.numbers()
        for source, (low, have) in self._store.vector().items():
            if low < have or source.run > run_max or source == self._store.own:
                continue
            ends = (place(numbers[source], 0), place(numbers[source] + 1, 0))
            async with self._store.reading() as connection:
                sql = "SELECT count(*) FROM audits WHERE place BETWEEN ? AND ?"
                has_audits = await value(connection, sql, *ends)
            if not has_audits:
                await self._store.forget(source)

    async def _make_room(self, limits: Limits, bytes_to_drop: int) -> tuple[int, str]:
        """Drops bodies, the oldest first. How many records lost theirs, and what a person should know."""
        if bytes_to_drop <= 0:
            return 0, ""
        if self._file != self._store.file:
            self._file, self._bodies_gone_to = self._store.file, (0, 0)
        dropped = freed = 0
        while freed < bytes_to_drop:
            piece = await self._oldest_with_bodies(bytes_to_drop - freed)
            if not piece and self._bodies_gone_to == (0, 0):
                break
            if not piece:  # but older ones may have come since, from another peer
                self._bodies_gone_to = (0, 0)
                continue
            await self._store.change(functools.partial(drop_bodies, rows=[(row, end) for _, row, end, _ in piece]))
            dropped += len(piece)
            freed += sum(size_bytes for *_, size_bytes in piece)
            self._bodies_gone_to = piece[-1][:2]
        rest = "" if freed >= bytes_to_drop else ", and there are no more: allow more room, or keep fewer days"
        alarm = (
            f"the history reached its limit of {limits.bytes_max:,} bytes (LLM_ROUTER_HISTORY_MAX_BYTES): the "
            f"{dropped:,} oldest requests that had bodies lost them{rest}"
        )
        log.warning("The history takes all the room it has", extra={"reason": alarm})
        return dropped, alarm

    async def _oldest_with_bodies(self, bytes_max: int) -> list[tuple[int, int, int | None, int]]:
        """Time, place, place of the end and bytes of bodies: of some records, until they have so many."""
        async with self._store.reading() as connection:
            rows = await connection.execute_fetchall(
                "SELECT at, place, end_place, body_bytes FROM records INDEXED BY records_at"
                " WHERE (at, place) > (?, ?) AND body_bytes > 0 ORDER BY at, place LIMIT ?",
                (*self._bodies_gone_to, PIECE_RECORDS),
            )
        piece, size_bytes = [], 0
        for at, row, end, body_bytes in rows:
            piece.append((at, row, end, body_bytes))
            size_bytes += body_bytes
            if size_bytes >= min(PIECE_BYTES, bytes_max):
                break
        return piece

    async def _shrink(self) -> None:
        """Gives pages back that nothing is in, beyond some for what comes next."""

        async def step(connection: aiosqlite.Connection) -> bool:
            free = await value(connection, "PRAGMA freelist_count")
            count = await value(connection, "PRAGMA page_count")
            assert isinstance(free, int)
            assert isinstance(count, int)
            if free <= max(FREE_PAGES_KEPT, count // 10):
                return False
            for _ in range(min(VACUUM_PAGES, free)):
                await connection.execute_fetchall("PRAGMA incremental_vacuum(1)")  # of more, it does one all the same
            return True

        for _ in range(VACUUM_STEPS_MAX):
            if not await self._store.change(step):
                return


async def drop_bodies(connection: aiosqlite.Connection, rows: list[tuple[int, int | None]]) -> None:
    """Rewrites entries without their bodies, inside a transaction; `rows` are the places of Start and End."""
    places = [row for pair in rows for row in pair if row is not None]
    found = await connection.execute_fetchall(
        f"SELECT place, data FROM entries WHERE body_bytes > 0 AND place IN ({', '.join(map(str, places))})"  # noqa: S608
    )
    stripped = [(row, without_body(data)) for row, data in found]
    # Deleted and inserted: an update would leave every page as empty as it becomes.
    await connection.executemany("DELETE FROM entries WHERE place = ?", [(row,) for row, _ in stripped])
    await connection.executemany("INSERT INTO entries VALUES (?, NULL, NULL, ?)", stripped)
    await connection.executemany(
        "UPDATE records SET body_bytes = ? WHERE place = ?", [(BODIES_DROPPED, start) for start, _ in rows]
    )


async def _used_bytes(connection: aiosqlite.Connection) -> int:
    sizes = [await value(connection, f"PRAGMA {name}") for name in ("page_count", "freelist_count", "page_size")]
    pages, free, size = (size if isinstance(size, int) else 0 for size in sizes)
    return (pages - free) * size
