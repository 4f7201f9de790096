"""What can still be read of a damaged file: each log up to the first entry that cannot, as a copy takes it.

The other peers' copies are the real remedy; this is for a mesh of one, and for what was not copied yet.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import aiosqlite

from mesh.history import schema
from mesh.history.entries import LogId, decode
from mesh.history.errors import BadEntry, HistoryUnavailable

log = logging.getLogger(__name__)

ROWS = 64
RETRY_S = 1.0

Take: TypeAlias = Callable[[LogId, int, Sequence[bytes], int], Awaitable[int]]


async def salvage(path: Path, take: Take) -> int:
    """Gives what is readable to `take`, and tells how many entries that were. Changes nothing in the file."""
    entries = 0
    try:
        connection = await schema.open_reader(path)
    except (sqlite3.Error, HistoryUnavailable):
        return 0
    try:
        logs = await connection.execute_fetchall("SELECT peer, run, no, low, have FROM logs")
        for peer, run, no, low, have in logs:
            entries += await _log(connection, LogId(peer, run), no, low, have, take)
    except (sqlite3.Error, TypeError, ValueError) as error:
        log.warning("The damaged history cannot be read any further", extra={"path": str(path), "reason": str(error)})
    finally:
        await connection.close()
    log.warning("What could be read of the damaged history was kept", extra={"path": str(path), "entries": entries})
    return entries


async def _log(connection: aiosqlite.Connection, source: LogId, no: int, low: int, have: int, take: Take) -> int:
    """The entries of one log, in order, until one cannot be read."""
    seq, rows = low, ROWS
    while seq < have:
        try:
            found = await connection.execute_fetchall(
                "SELECT place, data FROM entries WHERE place BETWEEN ? AND ? ORDER BY place LIMIT ?",
                (schema.place(no, seq + 1), schema.place(no, have), rows),
            )
        except sqlite3.Error:
            if rows == 1:
                break
            rows = 1
            continue
        items = _readable(
            [data for number, (place, data) in enumerate(found, 1) if place == schema.place(no, seq + number)]
        )
        if not items:
            break
        await _taken(take, source, seq + 1, items, low)
        seq += len(items)
    return seq - low


def _readable(items: list[bytes]) -> list[bytes]:
    for number, data in enumerate(items):
        try:
            decode(data)
        except BadEntry:
            return items[:number]
    return items


async def _taken(take: Take, source: LogId, first: int, items: list[bytes], low: int) -> None:
    while True:
        try:
            await take(source, first, items, low)
            return
        except HistoryUnavailable:
            await asyncio.sleep(RETRY_S)
