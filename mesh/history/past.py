"""What this peer recorded in meshes that it left: that stays on its disk, and is nobody's business where it is now.

Its own logs are private up to a number each (`floors`), which the replication honours. Both that and the mesh in which
the file was last used stand in the file itself, so that they are copied and restored with it. A file that could not be
read yet keeps everything private: `floors` is None.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import aiosqlite

from mesh.history import schema
from mesh.history.entries import LogId

MESH, PRIVATE = "mesh", "private"
LOGS_MAX = 4096


class File(Protocol):
    """The part of the store that is used here; the simulator has another one."""

    def vector(self) -> Mapping[LogId, tuple[int, int]]:
        """All logs that are here."""

    def reading(self) -> AbstractAsyncContextManager[aiosqlite.Connection]:
        """A connection that only reads."""

    async def change(self, work: Callable[[aiosqlite.Connection], Awaitable[Any]]) -> Any:
        """Lets `work` change tables."""


class Past:
    """Belongs to one file at a time."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._floors: dict[LogId, int] | None = None
        self._mesh = ""

    @property
    def floors(self) -> Mapping[LogId, int] | None:
        """Up to where each of this peer's logs is private; None before it is known."""
        return self._floors

    async def read(self, file: File, mesh: str) -> None:
        """Takes what the file says. Used in another mesh before, all of it is private. Raises HistoryUnavailable."""
        async with file.reading() as connection:
            used_in = await schema.value(connection, "SELECT value FROM meta WHERE name = ?", MESH)
            private = await schema.value(connection, "SELECT value FROM meta WHERE name = ?", PRIVATE)
        floors = {LogId(self._me, run): seq for run, seq in json.loads(private)} if isinstance(private, str) else {}
        self._floors, self._mesh = floors | (self._floors or {}), str(used_in or "")
        if self._mesh != mesh:
            await self.moved(file, mesh, takes_along=not self._mesh)
        elif self._floors != floors:
            await self._write(file)

    async def moved(self, file: File, mesh: str, *, takes_along: bool) -> None:
        """This peer is in another mesh now. Raises HistoryUnavailable, and is as good as done all the same."""
        floors = dict(self._floors or {})
        if not takes_along:
            floors |= {log: have for log, (_, have) in file.vector().items() if log.peer == self._me}
        self._floors, self._mesh = floors, mesh
        await self._write(file)

    async def _write(self, file: File) -> None:
        rows = [[log.run, seq] for log, seq in sorted((self._floors or {}).items())[-LOGS_MAX:]]

        async def work(connection: aiosqlite.Connection) -> None:
            for name, value in ((MESH, self._mesh), (PRIVATE, json.dumps(rows))):
                await connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

        await file.change(work)
