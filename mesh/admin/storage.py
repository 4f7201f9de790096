"""The admin map on disk: `<data dir>/admin.db`, SQLite in WAL mode with synchronous=FULL, mode 0600.

What `write` was given is on the disk when it returns. The file belongs to one mesh. One that is damaged is set aside
and the map fetched anew from the others; one that a newer version of this program wrote is read and never written.
Source: the SQLite documentation, "Write-Ahead Logging", "PRAGMA synchronous" and "VACUUM INTO".
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import aiosqlite

from gossip.private import require_private
from mesh.admin.errors import MapReadOnly, NotDurable
from mesh.admin.rows import BadRow, Row, hash_of, read, written

log = logging.getLogger(__name__)

ADMIN_FILE = "admin.db"
SCHEMA = 1
"""Raised by one whenever an older program would misread the file. Columns are only ever added."""
BUSY_S = 5.0
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_BESIDE = ("", "-wal", "-shm")
_TABLES = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    # The hash tells a row that rotted on the disk: signatures of what is in the file are not checked again.
    "CREATE TABLE rows (key TEXT, field TEXT, row BLOB NOT NULL, hash BLOB NOT NULL, PRIMARY KEY (key, field))",
)
_DELETE = "DELETE FROM rows WHERE key = ? AND field = ?"
_PUT = "INSERT OR REPLACE INTO rows (key, field, row, hash) VALUES (?, ?, ?, ?)"
_SET = "INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)"
_Step = tuple[str, Sequence[tuple[object, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What the file held. `mesh_id` is empty for a new one; times are unix ms; `read_only` says why, or is empty."""

    mesh_id: str = ""
    rows: tuple[Row, ...] = ()
    last_synced_ms: int = 0
    horizon_ms: int = 0
    read_only: str = ""


class Store(Protocol):
    """Where a map is kept. The one that tests use in virtual time has no thread, and fails when told to."""

    async def load(self) -> Loaded: ...

    async def write(self, stored: Sequence[Row], gone: Sequence[tuple[str, str]]) -> None:
        """Raises NotDurable or MapReadOnly, and then nothing changed."""

    async def note(self, *, last_synced_ms: int, horizon_ms: int) -> None:
        """How far this map was compared with others', and how far endings were collected."""

    async def begin(self, mesh_id: str, rows: Sequence[Row], *, archive: str, last_synced_ms: int) -> None:
        """The map of this mesh, with these rows alone; what was there is kept under the name `archive`, if given."""

    async def close(self) -> None: ...


class AdminFile:
    """The file in one data folder, with one thread that writes it. One owner; its calls one after another."""

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
        except BaseException as error:
            await self.close()
            if not isinstance(error, _Damaged | sqlite3.Error):
                raise
            if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) not in _DAMAGED:
                raise NotDurable(f"{self.path} cannot be opened: {error}") from error
            reason = str(error)
        aside = self._free(f"{ADMIN_FILE}.corrupt-{int(time.time())}")
        await asyncio.to_thread(self._set_aside, aside)
        log.error(
            "the admin map is damaged and was set aside; it is fetched anew from the other machines",
            extra={"path": str(self.path), "set_aside": str(aside), "reason": reason},
        )
        return await self._load()

    async def write(self, stored: Sequence[Row], gone: Sequence[tuple[str, str]]) -> None:
        """In one transaction, durable when this returns. Not to be cancelled half way: the caller shields it."""
        await self._transaction((_DELETE, gone), (_PUT, _columns(stored)))

    async def note(self, *, last_synced_ms: int, horizon_ms: int) -> None:
        await self._transaction((_SET, [("last_synced_ms", str(last_synced_ms)), ("horizon_ms", str(horizon_ms))]))

    async def begin(self, mesh_id: str, rows: Sequence[Row], *, archive: str, last_synced_ms: int) -> None:
        """One transaction: after a crash it is the old map or the new one."""
        self._require_writable()
        if archive:
            await self._copy_to(self._free(archive))
        about = [("mesh_id", mesh_id), ("program", self._program), ("last_synced_ms", str(last_synced_ms))]
        await self._transaction(
            ("DELETE FROM rows WHERE ?", [(1,)]),
            ("DELETE FROM meta WHERE ?", [(1,)]),
            (_SET, about),
            (_PUT, _columns(rows)),
        )

    async def close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()

    # -- how

    async def _load(self) -> Loaded:
        connection = await self._open()
        (found,) = await _column(connection, "PRAGMA user_version")
        if found == 0:
            await self._run(("BEGIN IMMEDIATE", ()), *((table, ()) for table in _TABLES))
            await self._run((f"PRAGMA user_version = {SCHEMA}", ()), ("COMMIT", ()))
        meta: dict[str, str] = {}
        rows: tuple[Row, ...] = ()
        try:
            meta = {str(n): str(v) for n, v in await connection.execute_fetchall("SELECT name, value FROM meta")}
            table = await connection.execute_fetchall("SELECT row, hash FROM rows")
            rows = await asyncio.to_thread(_readable, table)
        except sqlite3.OperationalError as error:
            if found <= SCHEMA:
                raise _Damaged(str(error)) from None
        if found > SCHEMA:
            self._read_only = self._newer(found, meta.get("program", "unknown"))
            log.error("the admin map is read only", extra={"reason": self._read_only})
            await self._run(("PRAGMA query_only = ON", ()))
        else:
            await self._transaction((_SET, [("program", self._program)]))
        return Loaded(
            mesh_id=meta.get("mesh_id", ""),
            rows=rows,
            last_synced_ms=_number(meta.get("last_synced_ms", "")),
            horizon_ms=_number(meta.get("horizon_ms", "")),
            read_only=self._read_only,
        )

    async def _open(self) -> aiosqlite.Connection:
        require_private(self.path)
        await asyncio.to_thread(_make, self.path)
        self._connection = await aiosqlite.connect(self.path, isolation_level=None, timeout=BUSY_S)
        # What was deleted is overwritten: the hashes of passwords of a mesh that this machine left.
        await self._run(("PRAGMA secure_delete = ON", ()), ("PRAGMA synchronous = FULL", ()))
        await self._run(("PRAGMA journal_mode = WAL", ()))
        (answer,) = await _column(self._connection, "PRAGMA quick_check(1)")
        if answer != "ok":
            raise _Damaged(str(answer))
        return self._connection

    def _newer(self, found: int, program: str) -> str:
        return (
            f"{self.path} was written by version {program} of this program (schema {found}); this is {self._program}"
            f" (schema {SCHEMA}), which reads it and does not write to it. Install version {program} or newer"
        )

    async def _transaction(self, *steps: _Step) -> None:
        """All of it or nothing; a step without values is left out."""
        self._require_writable()
        try:
            await self._run(("BEGIN IMMEDIATE", ()))
            try:
                await self._run(*(step for step in steps if step[1]))
                await self._run(("COMMIT", ()))
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # after some errors SQLite has done so itself
                    await self._run(("ROLLBACK", ()))
                raise
        except sqlite3.Error as error:
            raise NotDurable(f"the admin map could not be written to {self.path}: {error}") from error

    def _require_writable(self) -> None:
        if self._read_only:
            raise MapReadOnly(self._read_only)
        if self._connection is None:
            raise NotDurable("the admin map is closed: this peer is stopping")

    async def _copy_to(self, target: Path) -> None:
        try:
            await asyncio.to_thread(_make, target)  # first: SQLite would give it whatever mode is usual here
            await self._run(("VACUUM INTO ?", [(str(target),)]))
        except sqlite3.Error as error:
            raise NotDurable(f"the admin map could not be copied to {target}: {error}") from error

    async def _run(self, *steps: _Step) -> None:
        assert self._connection is not None
        for statement, values in steps:
            if len(values) > 1:
                await self._connection.executemany(statement, values)
            else:
                await self._connection.execute(statement, *values)

    def _free(self, name: str) -> Path:
        """A path beside the file that nothing has."""
        stem, suffix = (name.removesuffix(".db"), ".db") if name.endswith(".db") else (name, "")
        names = (f"{stem}-{number}{suffix}" if number > 1 else name for number in range(1, 10_000))
        paths = (self.path.with_name(each) for each in names)
        return next(path for path in paths if not path.exists())

    def _set_aside(self, target: Path) -> None:
        for end in _BESIDE:
            old = self.path.with_name(ADMIN_FILE + end)
            if old.exists():
                old.replace(target.with_name(target.name + end))


class _Damaged(Exception):
    """A file that is no admin map any more."""


def _make(path: Path) -> None:
    """An empty file of mode 0600, unless there is one: SQLite gives its log the same mode."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise NotDurable(f"{path} cannot be made: {error.strerror}") from None


async def _column(connection: aiosqlite.Connection, question: str) -> list[Any]:
    return [row[0] for row in await connection.execute_fetchall(question)]


def _columns(rows: Iterable[Row]) -> list[tuple[object, ...]]:
    return [(row.key, row.field, written(row), hash_of(row)) for row in rows]


def _readable(table: Iterable[Any]) -> tuple[Row, ...]:
    rows: list[Row] = []
    lost = 0
    for data, known in table:
        try:
            row = read(data)
        except (BadRow, TypeError):
            lost += 1
            continue
        if hash_of(row) == known:
            rows.append(row)
        else:
            lost += 1
    if lost:
        log.error("rows of the admin map are damaged; they are fetched anew from the others", extra={"rows": lost})
    return tuple(rows)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
