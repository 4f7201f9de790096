"""The admin map on disk: `<data dir>/admin.db`, SQLite in WAL mode with synchronous=FULL, mode 0600.

What `write` was given is on the disk when it returns. The file belongs to one mesh. One that is damaged is set aside
and the map fetched anew from the others; one that a newer version of this program wrote is read and never written.
Source: the SQLite documentation, "Write-Ahead Logging" and "PRAGMA synchronous".
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import aiosqlite

from gossip.private import require_private
from mesh.admin.errors import MapReadOnly, NotDurable
from mesh.admin.rows import BadRow, Row, hash_of, read, written

log = logging.getLogger(__name__)

ADMIN_FILE = "admin.db"
SCHEMA = 1
"""Raised by one whenever an older program would misread the file. Columns are only ever added."""
BUSY_MS = 5000
_BESIDE = ("", "-wal", "-shm")
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_TABLES = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    # The hash tells a row that rotted on the disk: signatures of what is in the file are not checked again.
    "CREATE TABLE rows (key TEXT, field TEXT, row BLOB NOT NULL, hash BLOB NOT NULL, PRIMARY KEY (key, field))",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What the file held. `mesh_id` is empty for a new one; times are unix ms; `read_only` says why, or is empty."""

    mesh_id: str = ""
    rows: Sequence[Row] = ()
    last_synced_ms: int = 0
    horizon_ms: int = 0
    read_only: str = ""


class Store(Protocol):
    """Where a map is kept. The simulated one of the tests loses what was not on its disk."""

    async def load(self) -> Loaded: ...

    async def write(self, stored: Sequence[Row], gone: Sequence[tuple[str, str]]) -> None:
        """Raises NotDurable or MapReadOnly, and then nothing changed."""

    async def note(self, *, last_synced_ms: int, horizon_ms: int) -> None:
        """How far this map was compared with others', and how far endings were collected."""

    async def begin(self, mesh_id: str, *, archive: str) -> None:
        """An empty map of this mesh; the old file is kept under the name `archive`, or not if that is empty."""

    async def close(self) -> None: ...


class AdminFile:
    """The file in one data folder, with one thread that writes it."""

    def __init__(self, folder: Path, *, program: str) -> None:
        """`program`: the version that writes, for whoever opens the file with an older one."""
        self.path = folder / ADMIN_FILE
        self._program = program
        self._connection: aiosqlite.Connection | None = None
        self._read_only = ""

    async def load(self) -> Loaded:
        """Opens it, making it if there is none.

        Raises NotPrivate when others may read it, NotDurable when it cannot be opened at all: it may be whole.
        """
        try:
            return await self._load()
        except sqlite3.DatabaseError as error:
            await self.close()
            if getattr(error, "sqlite_errorcode", None) not in _DAMAGED:
                raise NotDurable(f"{self.path} cannot be opened: {error}") from error
            aside = f"{ADMIN_FILE}.corrupt-{int(time.time())}"
            await asyncio.to_thread(self._rename, aside)
            log.error(
                "the admin map is damaged and was set aside; it is fetched anew from the other machines",
                extra={"path": str(self.path), "set_aside": aside, "reason": str(error)},
            )
            return await self._load()

    async def write(self, stored: Sequence[Row], gone: Sequence[tuple[str, str]]) -> None:
        """In one transaction, durable when this returns. Not to be cancelled half way: the caller shields it."""
        kept = [(row.key, row.field, written(row), hash_of(row)) for row in stored]
        steps = ((_DELETE, gone), ("INSERT OR REPLACE INTO rows (key, field, row, hash) VALUES (?, ?, ?, ?)", kept))
        await self._transaction(*(step for step in steps if step[1]))

    async def note(self, *, last_synced_ms: int, horizon_ms: int) -> None:
        await self._transaction(
            (_SET, [("last_synced_ms", str(last_synced_ms)), ("horizon_ms", str(horizon_ms))]),
        )

    async def begin(self, mesh_id: str, *, archive: str) -> None:
        if archive:
            await self.close()
            await asyncio.to_thread(self._rename, archive)
            await self._open()
        await self._transaction(
            ("DELETE FROM rows", ()), ("DELETE FROM meta", ()), (_SET, [("mesh_id", mesh_id), *self._about()])
        )

    async def close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()

    # -- how

    async def _load(self) -> Loaded:
        connection = await self._open()
        meta = {str(name): str(value) for name, value in await connection.execute_fetchall("SELECT * FROM meta")}
        table = await connection.execute_fetchall("SELECT key, field, row, hash FROM rows")
        rows = await asyncio.to_thread(_readable, table)
        self._read_only = await self._newer(connection, meta.get("program", ""))
        if not self._read_only:
            await self._transaction((_SET, self._about()))
        return Loaded(
            mesh_id=meta.get("mesh_id", ""),
            rows=rows,
            last_synced_ms=_number(meta.get("last_synced_ms", "")),
            horizon_ms=_number(meta.get("horizon_ms", "")),
            read_only=self._read_only,
        )

    async def _open(self) -> aiosqlite.Connection:
        await asyncio.to_thread(self._make)
        connection = self._connection = await aiosqlite.connect(self.path, isolation_level=None, timeout=BUSY_MS / 1000)
        await connection.execute("PRAGMA journal_mode = WAL")
        await connection.execute("PRAGMA synchronous = FULL")
        for (answer,) in await connection.execute_fetchall("PRAGMA quick_check(1)"):
            if answer != "ok":
                error = sqlite3.DatabaseError(str(answer))
                error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
                raise error
        if await _schema_of(connection) == 0:
            await self._transaction(*((table, ()) for table in _TABLES), (f"PRAGMA user_version = {SCHEMA}", ()))
        return connection

    async def _newer(self, connection: aiosqlite.Connection, program: str) -> str:
        """Why the file is not written to, or nothing."""
        found = await _schema_of(connection)
        if found <= SCHEMA:
            return ""
        await connection.execute("PRAGMA query_only = ON")
        return (
            f"{self.path} was written by version {program or 'unknown'} of this program (schema {found}); this is"
            f" {self._program} (schema {SCHEMA}), which reads it and does not write to it. Install version"
            f" {program or 'that wrote it'} or newer"
        )

    def _about(self) -> list[tuple[str, str]]:
        return [("program", self._program)]

    async def _transaction(self, *steps: tuple[str, Sequence[tuple[object, ...]]]) -> None:
        if self._read_only:
            raise MapReadOnly(self._read_only)
        if self._connection is None:
            raise NotDurable("the admin map is closed: this peer is stopping")
        connection = self._connection
        try:
            await connection.execute("BEGIN IMMEDIATE")
            try:
                for statement, values in steps:
                    if values:
                        await connection.executemany(statement, values)
                    else:
                        await connection.execute(statement)
                await connection.execute("COMMIT")
            except BaseException:
                await connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise NotDurable(f"the admin map could not be written to {self.path}: {error}") from error

    def _make(self) -> None:
        """An empty file of mode 0600: SQLite gives its log the same."""
        require_private(self.path)
        try:
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            pass
        except OSError as error:
            raise NotDurable(f"{self.path} cannot be made: {error.strerror}") from None

    def _rename(self, name: str) -> None:
        free = name
        for number in range(2, 1000):
            if not self.path.with_name(free).exists():
                break
            free = f"{name}-{number}"
        for end in _BESIDE:
            old = self.path.with_name(ADMIN_FILE + end)
            if old.exists():
                old.replace(self.path.with_name(free + end))


_DELETE = "DELETE FROM rows WHERE key = ? AND field = ?"
_SET = "INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)"


async def _schema_of(connection: aiosqlite.Connection) -> int:
    (row,) = await connection.execute_fetchall("PRAGMA user_version")
    return int(row[0])


def _readable(table: Iterable[sqlite3.Row]) -> list[Row]:
    rows: list[Row] = []
    lost = 0
    for key, name, data, known in table:
        try:
            row = read(data)
        except (BadRow, TypeError):
            lost += 1
            continue
        if (row.key, row.field) == (key, name) and hash_of(row) == known:
            rows.append(row)
        else:
            lost += 1
    if lost:
        log.error("rows of the admin map are damaged; they are fetched anew from the others", extra={"rows": lost})
    return rows


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
