"""The store of the history on one machine: logs of opaque entries in SQLite, and the records that follow from them.

One task writes. What is appended while a commit runs goes into the next one (group commit), and `append` returns once
its entries are on the disk (WAL, synchronous=FULL). A copy of another peer's log is always a prefix of it
(mesh.history.prefixes). Records and totals (mesh.history.projection, mesh.history.schema) change in the same
transaction as the entries that they follow from.

A disk that is full or a file that is locked makes a call raise HistoryUnavailable and change nothing; the next call
tries again. A damaged file is set aside and a new one begun, under a new run: `was_rebuilt` tells the replication to
fetch what others hold, and what can still be read is kept (mesh.history.salvage).

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
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from mesh.history import schema
from mesh.history.commit import Commit, Job, Words
from mesh.history.database import Database, explained, in_one_trip, is_damage, is_transient
from mesh.history.entries import Entry, LogId, decode
from mesh.history.errors import BadEntry, HistoryUnavailable
from mesh.history.prefixes import Extent
from mesh.history.salvage import salvage
from mesh.history.schema import place
from mesh.version import our_version

log = logging.getLogger(__name__)

QUEUE_ENTRIES_MAX = 16_384
QUEUE_BYTES_MAX = 128 * 2**20
"""What may wait for the disk. Fuller, and appending raises at once."""
COMMIT_BYTES_MAX = 4 * 2**20
COMMIT_WORK_S = 0.025
COMMIT_ENTRIES = (32, 2048)
"""A commit's statements should take half of 50 ms, the other half is the disk's: entries a commit, least and most."""
PURGE_ENTRIES = 256
"""Entries deleted in one commit: few, because appends wait meanwhile."""
REOPEN_S = 1.0
"""A file that cannot be opened is tried again this often."""
CLOSE_S = 10.0
REBUILDS_MAX = 3
"""In one life of the process: a disk that damages more files than that is not to be filled with them."""

T = TypeVar("T")

_CLOSED = "the history is closed: this peer stops"
_NOTHING = Extent(no=0)


class HistoryStore:
    """The logs in one file. Made by `open`; belongs to one event loop; closed by who opened it."""

    def __init__(self, path: Path, me: str, *, above: int, now_ms: Callable[[], int]) -> None:
        self.path = path
        self.was_rebuilt = False
        """The file was damaged or gone, and a new one was begun: other peers may hold what it had."""
        self.trouble = ""
        """Why nothing can be written now; empty when all is well."""
        self.arrived = 0
        """How many records and endings came to this file, in the order of `arrived` and `ended` of its records."""
        self.file = ""
        """Names this file: another one has other numbers of logs, and other arrivals."""
        self._me = me
        self._run = 0
        self._above = above
        self._now_ms = now_ms
        self._database = Database(path, our_version())
        self._refusal = ""  # why nothing will be written in this life of the process
        self._reopen_at = 0.0
        self._rebuilds = 0
        self._damage = ""
        self._logs: dict[LogId, Extent] = {}
        self._words = Words()
        self._queue: deque[Job] = deque()
        self._queued_entries = 0
        self._queued_bytes = 0
        self._commit_entries = 256
        self._changes: deque[tuple[Callable[[aiosqlite.Connection], Awaitable[Any]], asyncio.Future[Any]]] = deque()
        self._purging: set[LogId] = set()
        self._wake = asyncio.Event()
        self._purged = asyncio.Event()
        self._is_closing = False
        self._tasks: list[asyncio.Task[Any]] = []

    @classmethod
    async def open(
        cls, path: Path, me: str, *, above: int = 0, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    ) -> HistoryStore:
        """The store in this file, which is made if it is not there; `me` writes its own log, with a run over `above`.

        Never raises for a file that cannot be used now: `trouble` says why, and later calls try again.
        """
        store = cls(path, me, above=above, now_ms=now_ms)
        with contextlib.suppress(HistoryUnavailable):
            await store._opened()
        store._tasks.append(asyncio.create_task(store._write(), name="history-writer"))
        return store

    async def close(self) -> None:
        """Writes what waits, at most ten seconds long, then closes the file."""
        self._is_closing = True
        self._wake.set()
        writer, *others = self._tasks
        for task in others:
            task.cancel()
        await asyncio.wait([writer], timeout=CLOSE_S)
        writer.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._refuse_waiting(_CLOSED)
        await self._database.close()

    @property
    def own(self) -> LogId:
        """The log that `append` writes. It changes when the file had to be begun anew."""
        return LogId(self._me, self._run)

    async def append(self, items: Sequence[bytes]) -> int:
        """Adds entries to the own log, all or none; they are on the disk when this returns the last one's number.

        Raises BadEntry for what is no entry, HistoryUnavailable when they cannot be written now.
        """
        return await self._queued(None, items, [decode(item) for item in items])

    async def take(self, source: LogId, first: int, items: Sequence[bytes], low: int) -> int:
        """Adds entries of another log, of which the first has number `first`; returns up to where this copy goes.

        Only what follows on what is here is taken (or on `low`, what its origin retired); anything else is ignored.
        Entries that this program does not know are kept as they are. Raises HistoryUnavailable.
        """
        return await self._queued(source, items, [_meaning(item) for item in items], first=first, low=low)

    async def retire(self, source: LogId, through: int) -> None:
        """Gives up the entries of this log up to number `through`, for ever; their rows go in the background.

        What was done by whom (Audit) stays as a row until mesh.history.retention lets it go. Raises HistoryUnavailable.
        """
        await self._queued(source, (), (), low=through)

    async def forget(self, source: LogId) -> None:
        """Removes a copy of a log as if it had never been here; not the own one. Raises HistoryUnavailable."""
        assert source != self.own
        await self.retire(source, schema.SEQ_MAX)
        await self.settled()

        async def remove(connection: aiosqlite.Connection) -> None:
            if (known := self._logs.get(source)) is None or source in self._purging:
                return
            ends = (place(known.no, 0), place(known.no, schema.SEQ_MAX))
            await connection.execute("DELETE FROM audits WHERE place BETWEEN ? AND ?", ends)
            await connection.execute("DELETE FROM logs WHERE no = ?", (known.no,))
            del self._logs[source]

        await self.change(remove)

    def vector(self) -> dict[LogId, tuple[int, int]]:
        """Each log that is here: up to where it was retired, and up to where it goes. From memory."""
        return {source: (known.low, known.have) for source, known in self._logs.items()}

    def numbers(self) -> dict[LogId, int]:
        """The number that each log has in this file, the upper bits of its places (mesh.history.schema)."""
        return {source: known.no for source, known in self._logs.items()}

    async def read(self, source: LogId, after: int, bytes_max: int) -> tuple[int, list[bytes]]:
        """The number of the first entry after number `after`, and it and those that follow: one, or `bytes_max` bytes.

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
            last, total = low - 1, 0
            for row, size in sizes:
                total += size
                if last >= low and total > bytes_max:
                    break
                last = row
            found = list(
                await connection.execute_fetchall(
                    "SELECT place, data FROM entries WHERE place BETWEEN ? AND ? ORDER BY place", (low, last)
                )
            )
        # Entries may have been retired since the question was asked: the rows themselves say which they are.
        return (found[0][0] - place(known.no, 0) if found else first), [data for _, data in found]

    async def change(self, work: Callable[[aiosqlite.Connection], Awaitable[T]]) -> T:
        """Lets `work` change tables, in a transaction between two commits; it must take less than 50 ms.

        Raises HistoryUnavailable.
        """
        self._check_open()
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._changes.append((work, done))
        self._wake.set()
        return await done

    async def settled(self) -> None:
        """Returns once all that waits now is written, and what was retired is deleted. Raises HistoryUnavailable."""
        await self._queued(None, (), ())
        await self._purged.wait()

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[aiosqlite.Connection]:
        """A connection that only reads, as long as the block lasts. Raises HistoryUnavailable."""
        self._check_open()
        try:
            async with self._database.reading() as connection:
                yield connection
        except sqlite3.Error as error:
            if is_damage(error):
                self._damage = str(error)
                self._wake.set()
            raise HistoryUnavailable(explained(error, self.path)) from error

    def _check_open(self) -> None:
        if self._is_closing:
            raise HistoryUnavailable(_CLOSED)

    async def _queued(
        self,
        source: LogId | None,
        items: Sequence[bytes],
        entries: Sequence[Entry | None],
        *,
        first: int | None = None,
        low: int = 0,
    ) -> int:
        self._check_open()
        size_bytes = sum(map(len, items))
        if self._queued_entries + len(items) > QUEUE_ENTRIES_MAX or self._queued_bytes + size_bytes > QUEUE_BYTES_MAX:
            raise HistoryUnavailable(
                f"{self._queued_entries} entries with {self._queued_bytes} bytes wait for the disk, the limits are "
                f"{QUEUE_ENTRIES_MAX} and {QUEUE_BYTES_MAX}; it is too slow, or stuck"
            )
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        job = Job(source=source, items=items, entries=entries, first=first, low=low, size_bytes=size_bytes, done=done)
        self._queue.append(job)
        self._queued_entries += len(items)
        self._queued_bytes += size_bytes
        self._wake.set()
        return await done

    # The rest runs in the one task that writes; `open` does the first step of it.

    async def _write(self) -> None:
        """Commits what waits; after each commit, one change or a few deletions. Ends when closing and done."""
        while True:
            is_idle = True
            try:
                if self._damage:
                    await self._begin_anew()
                if self._queue:
                    is_idle = False
                    await self._commit()
                if self._changes:
                    is_idle = False
                    await self._change()
                elif self._purging and not self.trouble and not self._is_closing:
                    is_idle = False
                    await self._purge(next(iter(self._purging)))
                if not self._purging or self.trouble:
                    self._purged.set()
                if is_idle and self._is_closing:
                    return
                if is_idle:
                    self._wake.clear()
                    await self._wake.wait()
            except HistoryUnavailable as error:
                self._refuse_waiting(error.message)
            except Exception:
                # The border of this task: a mistake of ours must not end all recording.
                log.exception("Writing the history failed; what waited was not recorded, and it goes on")
                self._refuse_waiting("the history cannot be written, see the log of this peer")
                await self._database.close()

    async def _commit(self) -> None:
        batch: list[Job] = []
        entries = size_bytes = 0
        for job in self._queue:
            if entries >= self._commit_entries or size_bytes >= COMMIT_BYTES_MAX:
                break
            batch.append(job)
            entries += len(job.items)
            size_bytes += job.size_bytes
        try:
            commit, haves = await self._committed(batch)
        except (sqlite3.Error, HistoryUnavailable) as error:
            await self._failed(error)
            if self._damage:
                return  # the batch stays in the queue, for the new file
            results: list[int | HistoryUnavailable] = [HistoryUnavailable(self.trouble)] * len(batch)
        else:
            if lowered := {source for source, now in commit.logs.items() if now.low > commit.low_before(source)}:
                self._purging |= lowered
                self._purged.clear()
            self._logs |= commit.logs
            self.arrived = commit.arrived
            self._recovered()
            results = [*haves]
        for job, result in zip(batch, results, strict=True):
            self._queue.popleft()
            _tell(job.done, result)
        self._queued_entries -= entries
        self._queued_bytes -= size_bytes

    async def _committed(self, batch: list[Job]) -> tuple[Commit, list[int]]:
        connection = await self._opened()
        commit = Commit(own=self.own, before=self._logs, arrived=self.arrived)
        haves = [commit.plan(job) for job in batch]
        if commit.logs:
            work_s = await in_one_trip(connection, lambda raw: commit.transact(raw, self._words))
            self._adapt(commit.entries, work_s)
        return commit, haves

    def _adapt(self, entries: int, work_s: float) -> None:
        """Commits get smaller on a machine where their statements take long, and larger while they do not."""
        least, most = COMMIT_ENTRIES
        if work_s > COMMIT_WORK_S:
            self._commit_entries = max(least, self._commit_entries // 2)
        elif entries >= self._commit_entries and work_s < COMMIT_WORK_S / 2:
            self._commit_entries = min(most, self._commit_entries * 2)

    async def _change(self) -> None:
        work, done = self._changes.popleft()
        try:
            connection = await self._opened()
            async with self._transaction(connection):
                result = await work(connection)
        except (sqlite3.Error, HistoryUnavailable) as error:
            await self._failed(error)
            _tell(done, HistoryUnavailable(explained(error, self.path)))
        except Exception as error:  # noqa: BLE001 - the caller's own mistake, and the caller is told
            _tell(done, error)
        else:
            self._recovered()
            _tell(done, result)

    async def _purge(self, source: LogId) -> None:
        """Deletes some of the rows of this log that were retired."""
        known = self._logs[source]
        try:
            connection = await self._opened()
            rows = list(
                await connection.execute_fetchall(
                    "SELECT place FROM entries WHERE place BETWEEN ? AND ? ORDER BY place LIMIT ?",
                    (place(known.no, 1), place(known.no, known.low), PURGE_ENTRIES),
                )
            )
            if not rows:
                self._purging.discard(source)
                return
            async with self._transaction(connection):
                for table in ("records", "early_ends", "entries"):
                    sql = f"DELETE FROM {table} WHERE place BETWEEN ? AND ?"  # noqa: S608 - a name from above
                    await connection.execute(sql, (place(known.no, 1), rows[-1][0]))
        except (sqlite3.Error, HistoryUnavailable) as error:
            await self._failed(error)

    @contextlib.asynccontextmanager
    async def _transaction(self, connection: aiosqlite.Connection) -> AsyncIterator[None]:
        """Committed when the block ends well; rolled back if not."""
        await connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            await connection.commit()
        except BaseException:
            self._words.forget()
            with contextlib.suppress(sqlite3.Error, ValueError):
                await connection.rollback()
            raise

    async def _failed(self, error: Exception) -> None:
        """Says why, to people; a file in an unknown state is closed, and opened again by the next call."""
        if is_damage(error):
            self._damage = str(error)
            return
        if isinstance(error, sqlite3.Error) and not is_transient(error):
            await self._database.close()
        self._in_trouble(explained(error, self.path))

    def _in_trouble(self, reason: str) -> None:
        if not self.trouble:
            log.warning("The history cannot be written; it tries again", extra={"reason": reason})
        self.trouble = reason

    def _recovered(self) -> None:
        if self.trouble:
            log.info("The history is written again", extra={"after": self.trouble})
            self.trouble = ""

    def _refuse_waiting(self, reason: str) -> None:
        """Nobody waits any longer for what cannot be done."""
        waiting = [job.done for job in self._queue] + [done for _, done in self._changes]
        self._queue.clear()
        self._changes.clear()
        self._queued_entries = self._queued_bytes = 0
        self._purged.set()
        for done in waiting:
            _tell(done, HistoryUnavailable(reason))

    async def _opened(self) -> aiosqlite.Connection:
        """The connection that writes. Raises HistoryUnavailable; tries at most once a second."""
        if (connection := self._database.writer) is not None:
            return connection
        if self._refusal or time.monotonic() < self._reopen_at:
            raise HistoryUnavailable(self._refusal or self.trouble)
        try:
            return await self._reopened()
        except (sqlite3.Error, HistoryUnavailable) as error:
            if is_damage(error):
                self._damage = str(error)
                return await self._begin_anew()
            await self._database.close()
            self._reopen_at = time.monotonic() + REOPEN_S
            self._in_trouble(explained(error, self.path))
            raise HistoryUnavailable(self.trouble) from error

    async def _reopened(self) -> aiosqlite.Connection:
        opened = await self._database.open()
        await self._load(opened.connection)
        if opened.refusal:
            self._refusal = self.trouble = opened.refusal
            log.error("The history is only read", extra={"reason": opened.refusal})
            raise HistoryUnavailable(opened.refusal)
        self._recovered()
        return opened.connection

    async def _load(self, connection: aiosqlite.Connection) -> None:
        """What the file says, into memory. A file with less than was committed is another one: see `was_rebuilt`."""
        rows = await connection.execute_fetchall("SELECT peer, run, no, low, have FROM logs")
        arrived = await schema.value(connection, "SELECT value FROM meta WHERE name = 'arrived'")
        self.file = str(await schema.value(connection, "SELECT value FROM meta WHERE name = 'file'"))
        found = {LogId(peer, run): Extent(no=no, low=low, have=have) for peer, run, no, low, have in rows}
        lost = [source for source, known in self._logs.items() if known.have > found.get(source, _NOTHING).have]
        if lost:
            log.error(
                "The file of the history is gone or older than it was; a new log is begun, and the other peers' copies "
                "fill it again",
                extra={"path": str(self.path), "logs": len(lost)},
            )
            self._end_run()
        runs = [run for peer, run in found if peer == self._me and (peer, run) not in self._logs]
        if self._run <= max(runs, default=0):
            self._run = max(self._now_ms(), self._above + 1, *(run + 1 for run in runs))
        self._logs = found
        self._words.forget()
        self.arrived = arrived if isinstance(arrived, int) else 0
        self._purging = {source for source, known in found.items() if known.low}

    def _end_run(self) -> None:
        """The next run is above all that were: what was appended to this one may still be somewhere else."""
        self.was_rebuilt = True
        self._above = max(self._above, self._run, *(run for peer, run in self._logs if peer == self._me))
        self._run = 0
        self._logs = {}

    async def _begin_anew(self) -> aiosqlite.Connection:
        """Sets the damaged file aside and begins a new one. Raises HistoryUnavailable."""
        reason, self._damage = self._damage, ""
        if self._rebuilds >= REBUILDS_MAX:
            self._refusal = self.trouble = (
                f"{self.path} was damaged again ({reason}), after {self._rebuilds} new files were begun: nothing more "
                "is recorded; check the disk, then start this peer again"
            )
            log.error("The history is given up", extra={"reason": self._refusal})
            await self._database.close()
            raise HistoryUnavailable(self._refusal)
        try:
            aside = await self._database.set_aside("corrupt")
        except HistoryUnavailable as error:
            self._reopen_at = time.monotonic() + REOPEN_S
            self._in_trouble(error.message)
            raise
        self._rebuilds += 1
        log.error(
            "The file of the history is damaged and was set aside; a new one is begun, and the other peers' copies and "
            "what can still be read fill it. Check the disk; delete the old file when you miss nothing",
            extra={"path": str(self.path), "set_aside": str(aside), "reason": reason},
        )
        self._end_run()
        self._reopen_at = 0.0
        connection = await self._opened()
        self._tasks.append(asyncio.create_task(salvage(aside, self.take), name="history-salvage"))
        return connection


def _tell(done: asyncio.Future[T], result: T | Exception) -> None:
    """Gives the result to whoever still waits for it."""
    if done.done():
        return
    if isinstance(result, Exception):
        done.set_exception(result)
    else:
        done.set_result(result)


def _meaning(item: bytes) -> Entry | None:
    try:
        return decode(item)
    except BadEntry as error:
        log.warning("A log holds an entry that this version cannot read; it is kept", extra={"reason": str(error)})
        return None
