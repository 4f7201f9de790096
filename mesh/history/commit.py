"""One commit: entries of one or more logs, and all that follows from them, as statements for one transaction."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mesh.history import projection
from mesh.history.entries import End, Entry, LogId, Start, body_span, decode
from mesh.history.prefixes import Extent, extended
from mesh.history.projection import Word
from mesh.history.schema import place

WORDS_MAX = 8_192


@dataclass(slots=True, kw_only=True)
class Job:
    """Entries for one log, and who waits for them. `source` None: the own log, whichever that is when it is written.

    `first` is the number of the first entry; None: the next one. `low`: up to where the log is retired. `entries` are
    what the bytes mean, None where this program does not know.
    """

    source: LogId | None
    items: Sequence[bytes]
    entries: Sequence[Entry | None]
    first: int | None = None
    low: int = 0
    size_bytes: int
    done: asyncio.Future[int]


@dataclass(slots=True)
class Commit:
    """What one transaction changes. `logs` become the truth in memory once it is committed."""

    own: LogId
    before: Mapping[LogId, Extent]
    arrived: int
    logs: dict[LogId, Extent] = field(default_factory=dict)
    _rows: list[tuple[int, int | None, int | None, bytes]] = field(default_factory=list)
    _meanings: list[tuple[Entry, int, int]] = field(default_factory=list)  # with place and turn

    @property
    def entries(self) -> int:
        """How many entries go in."""
        return len(self._rows)

    def low_before(self, source: LogId) -> int:
        """Up to where this log was retired before."""
        known = self.before.get(source)
        return known.low if known else 0

    def plan(self, job: Job) -> int:
        """Puts in what the job may add. The number up to where its log goes afterwards."""
        source = job.source or self.own
        known = self.logs.get(source) or self.before.get(source)
        if known is None:
            known = Extent(
                no=1 + max((each.no for logs in (self.before, self.logs) for each in logs.values()), default=0)
            )
        first = known.have + 1 if job.first is None else job.first
        now, taken = extended(known, first=first, count=len(job.items), low=job.low)
        if now == known:
            return now.have
        self.logs[source] = now
        for number in range(taken):
            item, entry, row = job.items[number], job.entries[number], place(now.no, first + number)
            if entry is None:
                self._rows.append((row, None, None, item))
                continue
            self._rows.append((row, *body_span(item, entry), item))
            self.arrived += 1
            self._meanings.append((entry, row, self.arrived))
        return now.have

    def transact(self, connection: sqlite3.Connection, words: Words) -> float:
        """Commits it, or nothing of it; blocks, in the thread of the connection. Seconds that the statements took."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            began = time.monotonic()
            self._apply(connection, words)
            work_s = time.monotonic() - began
            connection.commit()
        except BaseException:
            words.forget()
            with contextlib.suppress(sqlite3.Error):
                connection.rollback()
            raise
        return work_s

    def _apply(self, connection: sqlite3.Connection, words: Words) -> None:
        connection.executemany(
            "INSERT INTO logs VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (no) DO UPDATE SET low = excluded.low, have = excluded.have",
            [(now.no, *source, now.low, now.have) for source, now in self.logs.items()],
        )
        rows = projection.Rows()
        numbers = words.numbers(
            connection, {word for entry, *_ in self._meanings for word in projection.words_of(entry)}
        )
        for entry, row, arrived in self._meanings:
            projection.add(rows, entry, row=row, arrived=arrived, numbers=numbers)
        connection.executemany("INSERT INTO entries VALUES (?, ?, ?, ?)", self._rows)
        if rows.starts:
            connection.executemany(projection.INSERT_RECORD, rows.starts)
            self._end_early_ended(connection, words)
        if rows.ends:
            cursor = connection.executemany(projection.END_RECORD, rows.ends)
            if cursor.rowcount < len(rows.ends):
                self._keep_early_ends(connection)
        if rows.audits:
            connection.executemany(projection.INSERT_AUDIT, rows.audits)
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('arrived', ?)", (self.arrived,))

    def _keep_early_ends(self, connection: sqlite3.Connection) -> None:
        """Ends whose Start is in a log that is yet to come wait for it; others were written twice."""
        for entry, row, _ in self._meanings:
            if isinstance(entry, End) and not _value(connection, projection.FIND_RECORD, entry.id, row):
                connection.execute(projection.KEEP_END, (row, entry.id))

    def _end_early_ended(self, connection: sqlite3.Connection, words: Words) -> None:
        """Starts whose End was there before them. There hardly ever are any."""
        if not _value(connection, "SELECT 1 FROM early_ends LIMIT 1"):
            return
        rows = projection.Rows()
        for entry, *_ in self._meanings:
            if not isinstance(entry, Start):
                continue
            for row, data in connection.execute(projection.FIND_ENDS, (entry.id,)).fetchall():
                end = decode(data)
                numbers = words.numbers(connection, set(projection.words_of(end)))
                self.arrived += 1
                projection.add(rows, end, row=row, arrived=self.arrived, numbers=numbers)
        if rows.ends:
            connection.executemany(projection.END_RECORD, rows.ends)
        connection.execute(
            "DELETE FROM early_ends WHERE EXISTS (SELECT 1 FROM records WHERE end_place = early_ends.place"
            " AND id = early_ends.id)"
        )


class Words:
    """The numbers of texts that come again and again, remembered within limits."""

    def __init__(self) -> None:
        self._numbers: dict[Word, int] = {}

    def forget(self) -> None:
        """After a rollback: some of them were never written."""
        self._numbers.clear()

    def numbers(self, connection: sqlite3.Connection, words: set[Word]) -> Mapping[Word, int]:
        """The number of each of these, at least. New ones get one, in the caller's transaction."""
        if len(self._numbers) + len(words) > WORDS_MAX:
            self._numbers.clear()
        for word in sorted(words - self._numbers.keys()):
            connection.execute("INSERT OR IGNORE INTO words (kind, text) VALUES (?, ?)", word)
            no = _value(connection, "SELECT no FROM words WHERE kind = ? AND text = ?", *word)
            assert isinstance(no, int)
            self._numbers[word] = no
        return self._numbers


def _value(connection: sqlite3.Connection, sql: str, *parameters: object) -> Any:
    """The first column of the first row, or None."""
    row = connection.execute(sql, parameters).fetchone()
    return row[0] if row else None
