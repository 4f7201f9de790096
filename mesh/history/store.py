"""The store of the history on one machine: logs of opaque entries in SQLite, and the records that follow from them.

One task writes. What is appended while a commit runs goes into the next one (group commit), and `append` returns once
its entries are on the disk (WAL, synchronous=FULL). A copy of another peer's log takes entries in order only, so it is
always a prefix of that log; `low` says up to where a log was retired, here and at its origin. Records, words and audits
(mesh.history.projection) change in the same transaction as the entries that they follow from.

A disk that is full or a file that is locked makes `append` and `take` raise HistoryUnavailable and change nothing; the
next call tries again. A damaged file is set aside and a new one begun, under a new run: `was_rebuilt` tells the
replication to fetch what others hold.

Not here: what is asked (mesh.history.query), when entries go (mesh.history.retention).
Source: https://sqlite.org/wal.html; group commit: Gray and Reuter, Transaction Processing (1992), 9.4.7.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import aiosqlite

from mesh.history import projection, schema
from mesh.history.entries import Entry, LogId, decode
from mesh.history.errors import BadEntry, HistoryUnavailable
from mesh.history.projection import Word
from mesh.history.schema import place
from mesh.version import our_version

log = logging.getLogger(__name__)

QUEUE_ENTRIES_MAX = 16_384
QUEUE_BYTES_MAX = 128 * 2**20
"""What may wait for the disk. Fuller, and appending raises at once."""
COMMIT_ENTRIES_MAX = 512
COMMIT_BYTES_MAX = 4 * 2**20
"""What goes into one commit, so that it takes less than 50 ms: measured 22,000 entries/s of 600 bytes."""
CHORE_ROWS = 256
"""Rows that a chore deletes in one commit: few, so that appends between two of them do not wait."""
READERS = 3
READ_TIMEOUT_S = 30.0
REBUILDS_MAX = 3
"""In one life of the process: a disk that damages more files than that is not to be filled with them."""
WORDS_MAX = 8_192


@dataclass(slots=True)
class _Log:
    no: int
    low: int
    have: int


@dataclass(slots=True, kw_only=True)
class _Job:
    """Entries that wait for the disk: of the own log, or (`source`) from a copy of another one."""

    items: Sequence[bytes]
    entries: list[Entry | None]
    source: LogId | None = None
    first: int = 0
    low: int = 0
    done: asyncio.Future[int]
    size_bytes: int


Chore: TypeAlias = Callable[[aiosqlite.Connection], "asyncio.Future[bool]"]


@dataclass(slots=True)
class _Commit:
    """What one transaction changes; becomes the truth in memory when it is committed."""

    logs: dict[LogId, _Log]
    arrived: int
    entries: list[tuple[int, bytes]] = field(default_factory=list)
    projected: list[tuple[Entry, int, int, int]] = field(default_factory=list)  # entry, place, first place, arrived
    lowered: set[LogId] = field(default_factory=set)


class HistoryStore:
    """The logs in one file. Made by `open`; belongs to one event loop; closed by who opened it."""

    def __init__(self, path: Path, me: str, *, above: int, now_ms: Callable[[], int]) -> None:
        self.path = path
        self.was_rebuilt = False
        self.trouble = ""
        """Why nothing can be written now; empty when all is well."""
        self._me = me
        self._above = above
        self._now_ms = now_ms
        self._run = 0
        self._logs: dict[LogId, _Log] = {}
        self._arrived = 0
        self._words: dict[Word, int] = {}
        self._writer: aiosqlite.Connection | None = None
        self._readers: list[aiosqlite.Connection] = []
        self._read_slots = asyncio.Semaphore(READERS)
        self._queue: deque[_Job] = deque()
        self._queued_entries = 0
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._purging: set[LogId] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_closed = False
        self._rebuilds = 0
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls, path: Path, me: str, *, above: int = 0, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    ) -> HistoryStore:
        """The store in this file, which is made if it is not there; `me` writes its own log with a run above `above`.

        Never raises for a file that cannot be used now: `trouble` says why, and each later call tries again.
        """
        store = cls(path, me, above=above, now_ms=now_ms)
        try:
            await store._opened()
        except HistoryUnavailable as error:
            log.warning("The history cannot be written; it tries again", extra={"reason": error.message})
        store._task = asyncio.create_task(store._write(), name="history-writer")
        return store

    @property
    def own(self) -> LogId:
        """The log that `append` writes. It changes when the file had to be begun anew."""
        return LogId(self._me, self._run)

    async def append(self, items: Sequence[bytes]) -> int:
        """Adds entries to the own log, all or none; they are on the disk when this returns the last one's number.

        Raises BadEntry for what is no entry, HistoryUnavailable when it cannot be written now.
        """
        return await self._do(items, [decode(item) for item in items])

    async def take(self, source: LogId, first: int, items: Sequence[bytes], low: int) -> int:
        """Adds entries of another log, of which the first has number `first`; returns up to where this copy goes.

        Only what follows on what is here is taken (or on `low`, what its origin retired); anything else is ignored.
        Entries that this program does not know are kept as they are. Raises HistoryUnavailable.
        """
        entries: list[Entry | None] = []
        for item in items:
            try:
                entries.append(decode(item))
            except BadEntry as error:
                log.warning("A log holds an entry that this version cannot read", extra={"reason": str(error)})
                entries.append(None)
        return await self._do(items, entries, source=source, first=first, low=low)

    def vector(self) -> dict[LogId, tuple[int, int]]:
        """Each log that is here: up to where it was retired, and up to where it goes. From memory."""
        return {log_id: (known.low, known.have) for log_id, known in self._logs.items()}

    async def read(self, source: LogId, after: int, bytes_max: int) -> tuple[int, list[bytes]]:
        """The entries after number `after`, at most `bytes_max` bytes but at least one, and the number of the first.

        The first is above `after + 1` where entries were retired. No entries: there are none after that.
        """
        known = self._logs.get(source)
        if known is None:
            return after + 1, []
        first = max(after, known.low) + 1
        low, high = place(known.no, first), place(known.no, known.have)
        async with self.reading() as connection:
            sizes = await connection.execute_fetchall(
                "SELECT place, length(data) FROM entries WHERE place BETWEEN ? AND ? ORDER BY place LIMIT 4096",
                (low, high),
            )
            total, last = 0, low - 1
            for row, size in sizes:
                total += size
                if total > bytes_max and last >= low:
                    break
                last = row
            found = await connection.execute_fetchall(
                "SELECT data FROM entries WHERE place BETWEEN ? AND ? ORDER BY place", (low, last)
            )
        return first, [data for (data,) in found]

    async def retire(self, source: LogId, through: int) -> None:
        """Forgets the entries of this log up to number `through`, for ever; the rows go in the background."""
        await self._do((), [], source=source, first=-1, low=through)

    async def settled(self) -> None:
        """Returns once everything that waits for the disk, rows to delete too, is done."""
        await self._idle.wait()

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[aiosqlite.Connection]:
        """A connection that only reads, for a question. Raises HistoryUnavailable; heals a damaged file."""
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                await self._read_slots.acquire()
        except TimeoutError:
            raise HistoryUnavailable("the history has too many questions to answer at once; ask again") from None
        connection = None
        try:
            connection = self._readers.pop() if self._readers else await schema.open_reader(self.path)
            yield connection
            self._readers.append(connection)
            connection = None
        except sqlite3.Error as error:
            raise HistoryUnavailable(f"the history cannot be read: {error}") from error
        finally:
            self._read_slots.release()
            if connection is not None:
                await connection.close()

    async def close(self) -> None:
        """Writes what waits, then closes the file."""
        self._is_closed = True
        self._wake.set()
        if self._task is not None:
            await self._task
        for connection in self._readers:
            await connection.close()
        self._readers.clear()
        await self._disconnect()

    # What follows runs in the one task that writes.

    async def _do(
        self,
        items: Sequence[bytes],
        entries: list[Entry | None],
        *,
        source: LogId | None = None,
        first: int = 0,
        low: int = 0,
    ) -> int:
        size_bytes = sum(map(len, items))
        if self._is_closed:
            raise HistoryUnavailable("the history is closed: this peer stops")
        if self._queued_entries + len(items) > QUEUE_ENTRIES_MAX or self._queued_bytes + size_bytes > QUEUE_BYTES_MAX:
            raise HistoryUnavailable(
                f"{self._queued_entries} entries wait for the disk, {QUEUE_ENTRIES_MAX} or {QUEUE_BYTES_MAX} bytes "
                "are the limit; the disk is too slow or stuck"
            )
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._queue.append(
            _Job(items=items, entries=entries, source=source, first=first, low=low, done=done, size_bytes=size_bytes)
        )
        self._queued_entries += len(items)
        self._queued_bytes += size_bytes
        self._idle.clear()
        self._wake.set()
        return await done

    async def _write(self) -> None:
        while True:
            if batch := self._batch():
                await self._commit(batch)
            elif self._is_closed:
                return
            elif self._purging and not self.trouble:
                await self._purge(next(iter(self._purging)))
            else:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()

    def _batch(self) -> list[_Job]:
        batch: list[_Job] = []
        entries = size_bytes = 0
        while self._queue and entries < COMMIT_ENTRIES_MAX and size_bytes < COMMIT_BYTES_MAX:
            job = self._queue.popleft()
            batch.append(job)
            entries += len(job.items)
            size_bytes += job.size_bytes
        self._queued_entries -= entries
        self._queued_bytes -= size_bytes
        return batch

    async def _commit(self, batch: list[_Job]) -> None:
        try:
            connection = await self._opened()
            commit = _Commit(logs={}, arrived=self._arrived)
            haves = [self._planned(commit, job) for job in batch]
            if commit.logs:
                await self._apply(connection, commit)
        except (sqlite3.Error, HistoryUnavailable) as error:
            await self._failed(batch, error)
            return
        self._logs |= commit.logs
        self._arrived = commit.arrived
        self._purging |= commit.lowered
        for job, have in zip(batch, haves, strict=True):
            if not job.done.done():
                job.done.set_result(have)

    def _planned(self, commit: _Commit, job: _Job) -> int:
        """What the job does, put into the commit; the number up to where its log goes afterwards."""
        source = job.source or self.own
        known = commit.logs.get(source) or self._logs.get(source)
        low, have = (known.low, known.have) if known else (0, 0)
        first = have + 1 if job.source is None else job.first
        is_next = first == have + 1 or (first == job.low + 1 and job.low > have)
        items = job.items if is_next else ()
        if is_next:
            have = first - 1 + len(items)
        low = max(low, min(job.low, have))
        if (low, have) == ((known.low, known.have) if known else (0, 0)):
            return have
        no = known.no if known else 1 + max((each.no for each in (self._logs | commit.logs).values()), default=0)
        commit.logs[source] = _Log(no, low, have)
        if known and low > known.low:
            commit.lowered.add(source)
        for seq, item, entry in zip(range(first, first + len(items)), items, job.entries, strict=bool(items)):
            commit.entries.append((place(no, seq), item))
            if entry is not None:
                commit.arrived += 1
                commit.projected.append((entry, place(no, seq), place(no, 1), commit.arrived))
        return have

    async def _apply(self, connection: aiosqlite.Connection, commit: _Commit) -> None:
        await connection.execute("BEGIN IMMEDIATE")
        try:
            rows = projection.Rows()
            numbers = await self._numbers(connection, {w for e in commit.projected for w in projection.words_of(e[0])})
            for entry, row, first, arrived in commit.projected:
                projection.add(rows, entry, row=row, first=first, arrived=arrived, numbers=numbers)
            await connection.executemany("INSERT INTO entries VALUES (?, ?)", commit.entries)
            for sql, parameters in (
                (projection.INSERT_RECORD, rows.starts),
                (projection.END_RECORD, rows.ends),
                (projection.INSERT_AUDIT, rows.audits),
            ):
                if parameters:
                    await connection.executemany(sql, parameters)
            await connection.executemany(
                "INSERT INTO logs VALUES (?, ?, ?, ?, ?) ON CONFLICT (no) DO UPDATE SET low = excluded.low,"
                " have = excluded.have",
                [(known.no, *source, known.low, known.have) for source, known in commit.logs.items()],
            )
            await connection.execute("INSERT OR REPLACE INTO meta VALUES ('arrived', ?)", (commit.arrived,))
            await connection.commit()
        except BaseException:
            self._words.clear()
            raise

    async def _numbers(self, connection: aiosqlite.Connection, words: set[Word]) -> dict[Word, int]:
        """The number of each word; new ones are added. What was read before is remembered, within limits."""
        if len(self._words) + len(words) > WORDS_MAX:
            self._words.clear()
        for word in sorted(words - self._words.keys()):
            await connection.execute("INSERT OR IGNORE INTO words (kind, text) VALUES (?, ?)", word)
            no = await schema.value(connection, "SELECT no FROM words WHERE kind = ? AND text = ?", *word)
            assert isinstance(no, int)
            self._words[word] = no
        return self._words

    async def _purge(self, source: LogId) -> None:
        """Deletes some of the rows of this log that were retired."""
        known = self._logs[source]
        try:
            connection = await self._opened()
            bounds = (place(known.no, 1), place(known.no, known.low))
            last = await schema.value(
                connection,
                "SELECT max(place) FROM (SELECT place FROM entries WHERE place BETWEEN ? AND ? ORDER BY place LIMIT ?)",
                *bounds,
                CHORE_ROWS,
            )
            if last is None:
                self._purging.discard(source)
                return
            await connection.execute("BEGIN IMMEDIATE")
            for table in ("records", "entries"):
                await connection.execute(f"DELETE FROM {table} WHERE place BETWEEN ? AND ?", (bounds[0], last))  # noqa: S608
            await connection.commit()
        except (sqlite3.Error, HistoryUnavailable) as error:
            await self._failed([], error)

    async def _failed(self, batch: list[_Job], error: Exception) -> None:
        """Tells those who wait; the next call opens the file again."""
        reason = error.message if isinstance(error, HistoryUnavailable) else f"the history cannot be written: {error}"
        if not self.trouble:
            log.warning("The history cannot be written; it tries again", extra={"reason": reason})
        self.trouble = reason
        await self._disconnect()
        for job in batch:
            if not job.done.done():
                job.done.set_exception(HistoryUnavailable(reason))

    async def _opened(self) -> aiosqlite.Connection:
        if self._writer is None:
            opened = await self._open_file()
            if opened.refusal:
                await opened.connection.close()
                raise HistoryUnavailable(opened.refusal)
            self._writer = opened.connection
            await self._load(opened.connection)
            self.trouble = ""
        return self._writer

    async def _open_file(self) -> schema.Opened:
        try:
            return await schema.open_writer(self.path, our_version())
        except sqlite3.Error as error:
            raise HistoryUnavailable(f"the history cannot be opened: {error}") from error

    async def _load(self, connection: aiosqlite.Connection) -> None:
        rows = await connection.execute_fetchall("SELECT peer, run, no, low, have FROM logs")
        self._logs = {LogId(peer, run): _Log(no, low, have) for peer, run, no, low, have in rows}
        arrived = await schema.value(connection, "SELECT value FROM meta WHERE name = 'arrived'")
        self._arrived = max(self._arrived, arrived if isinstance(arrived, int) else 0)
        if not self._run:
            known = max((run for peer, run in self._logs if peer == self._me), default=0)
            self._run = max(self._now_ms(), known + 1, self._above + 1)
        self._purging = {source for source, known in self._logs.items() if known.low}

    async def _disconnect(self) -> None:
        connection, self._writer = self._writer, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                await connection.close()
