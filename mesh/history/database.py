"""The connections to the file of the history: one that writes, a few that read; opened again after trouble.

Not here: what is written (mesh.history.store), the tables (mesh.history.schema).
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import aiosqlite

from mesh.history import schema
from mesh.history.errors import HistoryUnavailable

T = TypeVar("T")

READERS_MAX = 3
READ_WAIT_S = 10.0
"""How long a question waits for one of the connections that read."""

_TRANSIENT = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


class Database:
    """The connections of one file. Belongs to one event loop; nothing is open before it is asked for."""

    def __init__(self, path: Path, program: str) -> None:
        self.path = path
        self._program = program
        self._writer: aiosqlite.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._wal_identity: tuple[int, int] | None = None
        self._is_checked = False
        self._idle: list[aiosqlite.Connection] = []
        self._generation = 0
        self._slots = asyncio.Semaphore(READERS_MAX)

    @property
    def writer(self) -> aiosqlite.Connection | None:
        """The connection that writes, if it is open and its file is still the one in the folder."""
        if self._writer is not None and file_identity(self.path) != self._identity:
            return None
        return self._writer

    async def open(self) -> schema.Opened:
        """Opens the file anew. Raises sqlite3.Error as it comes, HistoryUnavailable for what a person must mend."""
        is_another = self._writer is not None and file_identity(self.path) != self._identity
        await self.close()
        if is_another:
            self._remove_wal()
        opened = await schema.open_writer(self.path, self._program, is_checked=self._is_checked)
        self._is_checked = True
        self._writer = opened.connection
        self._identity = file_identity(self.path)
        self._wal_identity = file_identity(self._beside("-wal"))
        return opened

    def _remove_wal(self) -> None:
        """Removes what a file that is gone left beside it: SQLite would read the next file through it."""
        if file_identity(self._beside("-wal")) == self._wal_identity:
            for suffix in ("-wal", "-shm"):
                self._beside(suffix).unlink(missing_ok=True)

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    async def close(self) -> None:
        """Closes every connection that nobody uses; those in use are closed when they come back."""
        self._generation += 1
        connections, self._idle = self._idle, []
        if self._writer is not None:
            connections.append(self._writer)
            self._writer = None
        for connection in connections:
            await _closed(connection)

    async def set_aside(self, word: str) -> Path:
        """Closes the file and renames it. Raises HistoryUnavailable when that cannot be done."""
        await self.close()
        self._is_checked = False
        try:
            return schema.set_aside(self.path, word)
        except OSError as error:
            raise HistoryUnavailable(
                f"{self.path} is damaged and cannot be renamed: {error.strerror}; make its folder writable"
            ) from error

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[aiosqlite.Connection]:
        """A connection that only reads, as long as the block lasts. What still runs when it is left is interrupted.

        Raises sqlite3.Error as it comes; HistoryUnavailable when too many ask at once.
        """
        try:
            async with asyncio.timeout(READ_WAIT_S):
                await self._slots.acquire()
        except TimeoutError:
            raise HistoryUnavailable("too many ask for the history at once; ask again") from None
        connection = None
        try:
            generation = self._generation
            connection = self._idle.pop() if self._idle else await schema.open_reader(self.path)
            yield connection
            if generation == self._generation:
                self._idle.append(connection)
                connection = None
        finally:
            self._slots.release()
            if connection is not None:
                await connection.interrupt()
                await _closed(connection)


async def in_one_trip(connection: aiosqlite.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    """What `work` makes of the SQLite connection, in the thread that belongs to it.

    A commit has about ten statements, and each would be a trip to that thread and back: measured, a third of what a
    commit costs. aiosqlite has no public way for it; this is the one that all its own methods take.
    """
    result: T = await connection._execute(work, connection._conn)  # type: ignore[no-untyped-call]
    return result


def is_damage(error: Exception) -> bool:
    """True if the file is no database, or a broken one."""
    if isinstance(error, schema.Damaged):
        return True
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def is_transient(error: sqlite3.Error) -> bool:
    """True if the connection is fine and the same statement may work later: the disk is full, the file is locked."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _TRANSIENT


def explained(error: Exception, path: Path) -> str:
    """Why the history cannot be used now, and the way out."""
    if isinstance(error, HistoryUnavailable):
        return error.message
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return f"the disk of {path} is full: nothing can be recorded; make room, or set LLM_ROUTER_HISTORY_MAX_BYTES"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"another program holds {path} locked; close it"
    return f"the history in {path} cannot be used: {error}"


def file_identity(path: Path) -> tuple[int, int] | None:
    """Tells a file from another one of the same name; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


async def _closed(connection: aiosqlite.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):
        await connection.close()
