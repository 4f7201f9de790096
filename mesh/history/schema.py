"""The SQLite file of the history: its tables, how it is opened, copied before a change, and set aside when damaged.

A step only ever adds (tables, columns, indexes); it never renumbers or touches rows, so that an older program can still
read what it knows. `PRAGMA user_version` counts the steps done, and `meta` says which program did the last one.

Places: entry `seq` of log number `no` is row `no << 40 | seq`, in `entries` and, for the Start of a request, in
`records`. A log is thus a range of rows, and needs no index.
Source: https://sqlite.org/pragma.html, https://sqlite.org/wal.html; measured in benchmarks/history_store.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiosqlite

from mesh.history.errors import HistoryUnavailable

log = logging.getLogger(__name__)

APPLICATION_ID = 0x6C6C6D68
"""`llmh`: tells our files from those of other programs."""
BUSY_TIMEOUT_S = 1.0
"""Longer than any commit of ours; whoever holds the file longer than this is not us."""
CHECKED_BYTES_MAX = 64 * 2**20
"""Files up to this size are checked whole when they are opened: less than half a second."""
SEQ_BITS = 40
SEQ_MAX = (1 << SEQ_BITS) - 1
HOUR_MS = 3_600_000

TABLES = frozenset({"meta", "logs", "entries", "words", "records", "early_ends", "hours", "bands", "audits"})

STEPS: tuple[str, ...] = (
    """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
    CREATE TABLE logs (
        no INTEGER PRIMARY KEY, peer TEXT NOT NULL, run INTEGER NOT NULL,
        low INTEGER NOT NULL, have INTEGER NOT NULL, UNIQUE (peer, run));
    CREATE TABLE entries (place INTEGER PRIMARY KEY, body_at INTEGER, body_bytes INTEGER, data BLOB NOT NULL);
    CREATE TABLE words (no INTEGER PRIMARY KEY, kind TEXT NOT NULL, text TEXT NOT NULL, UNIQUE (kind, text));
    CREATE TABLE records (
        place INTEGER PRIMARY KEY, id TEXT NOT NULL, arrived INTEGER NOT NULL, at INTEGER NOT NULL,
        kind INTEGER NOT NULL, model INTEGER NOT NULL, client_ip INTEGER NOT NULL, key INTEGER NOT NULL,
        key_name INTEGER NOT NULL, user INTEGER NOT NULL, stream INTEGER NOT NULL, recording INTEGER NOT NULL,
        state INTEGER NOT NULL, ended INTEGER, end_place INTEGER, ended_at INTEGER, message TEXT, code TEXT,
        http_status INTEGER, node INTEGER NOT NULL, node_name INTEGER NOT NULL, node_ip INTEGER NOT NULL,
        attempts INTEGER, continued_on TEXT, prompt_tokens INTEGER, completion_tokens INTEGER, cached_tokens INTEGER,
        ttft_ms INTEGER, duration_ms INTEGER, duration_band INTEGER, body_bytes INTEGER NOT NULL);
    CREATE TABLE early_ends (place INTEGER PRIMARY KEY, id TEXT NOT NULL);
    CREATE INDEX early_ends_id ON early_ends (id);
    CREATE INDEX records_id ON records (id);
    CREATE INDEX records_at ON records (
        at, place, state, model, node, node_name, key, key_name, arrived, ended,
        prompt_tokens, completion_tokens, duration_ms, duration_band);
    CREATE INDEX records_open ON records (at) WHERE state = 0;
    CREATE TABLE hours (
        hour INTEGER, model INTEGER, node INTEGER, node_name INTEGER, key INTEGER, key_name INTEGER, state INTEGER,
        requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
        duration_ms INTEGER NOT NULL,
        PRIMARY KEY (hour, model, node, node_name, key, key_name, state)) WITHOUT ROWID;
    CREATE TABLE bands (
        hour INTEGER, band INTEGER, requests INTEGER NOT NULL, PRIMARY KEY (hour, band)) WITHOUT ROWID;
    CREATE TABLE audits (
        place INTEGER PRIMARY KEY, arrived INTEGER NOT NULL, at INTEGER NOT NULL, actor TEXT NOT NULL,
        actor_kind TEXT NOT NULL, ip TEXT NOT NULL, action TEXT NOT NULL, target TEXT NOT NULL, detail TEXT NOT NULL);
    CREATE INDEX audits_at ON audits (at);

    -- `hours` and `bands` are the exact sums of the records that ended, whatever statement changes those. A record ends
    -- once. Those that did not end are few, and `records_open` is their index.
    CREATE TRIGGER records_ended AFTER UPDATE OF ended ON records BEGIN
        INSERT INTO hours VALUES (
            new.at / 3600000, new.model, new.node, new.node_name, new.key, new.key_name, new.state, 1,
            ifnull(new.prompt_tokens, 0), ifnull(new.completion_tokens, 0), ifnull(new.duration_ms, 0))
        ON CONFLICT (hour, model, node, node_name, key, key_name, state) DO UPDATE SET
            requests = requests + 1, prompt_tokens = prompt_tokens + excluded.prompt_tokens,
            completion_tokens = completion_tokens + excluded.completion_tokens,
            duration_ms = duration_ms + excluded.duration_ms;
        INSERT INTO bands VALUES (new.at / 3600000, new.duration_band, 1)
        ON CONFLICT (hour, band) DO UPDATE SET requests = requests + 1;
    END;
    CREATE TRIGGER records_deleted AFTER DELETE ON records WHEN old.ended NOT NULL BEGIN
        UPDATE hours SET
            requests = requests - 1, prompt_tokens = prompt_tokens - ifnull(old.prompt_tokens, 0),
            completion_tokens = completion_tokens - ifnull(old.completion_tokens, 0),
            duration_ms = duration_ms - ifnull(old.duration_ms, 0)
        WHERE (hour, model, node, node_name, key, key_name, state) = (
            old.at / 3600000, old.model, old.node, old.node_name, old.key, old.key_name, old.state);
        DELETE FROM hours WHERE requests = 0 AND (hour, model, node, node_name, key, key_name, state) = (
            old.at / 3600000, old.model, old.node, old.node_name, old.key, old.key_name, old.state);
        UPDATE bands SET requests = requests - 1 WHERE (hour, band) = (old.at / 3600000, old.duration_band);
        DELETE FROM bands WHERE requests = 0 AND (hour, band) = (old.at / 3600000, old.duration_band);
    END;
    """,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A connection that writes, or, with `refusal`, one that only reads and why."""

    connection: aiosqlite.Connection
    refusal: str = ""


class Damaged(sqlite3.DatabaseError):
    """The file is a database of ours, and not whole."""


async def open_writer(path: Path, program: str, *, is_checked: bool = False) -> Opened:
    """Opens the file, makes it or brings it to this program's version. `program` is our version.

    A database of another program is set aside. A small file is checked whole, unless it `is_checked`.
    Raises sqlite3.Error as it comes, and HistoryUnavailable when the folder cannot be used or the copy that comes
    before a change of the tables cannot be made.
    """
    _make_private(path)
    connection = await _connected(path)
    try:
        if await _is_foreign(connection):
            await connection.close()
            aside = set_aside(path, "foreign")
            log.warning(
                "Another program's database stood where the history is kept; it was set aside, unchanged",
                extra={"path": str(path), "set_aside": str(aside)},
            )
            return await open_writer(path, program)
        return await _prepared(connection, path, program, is_checked)
    except BaseException:
        await connection.close()
        raise


async def open_reader(path: Path) -> aiosqlite.Connection:
    """A connection for questions. It writes nothing and sees what was committed before each of them.

    Raises sqlite3.Error as it comes, HistoryUnavailable without a file: SQLite would make an empty one.
    """
    if not _exists(path):
        raise HistoryUnavailable(f"the history is kept in {path}, and there is no such file now")
    connection = await _connected(path)
    try:
        await connection.executescript("PRAGMA query_only=ON; PRAGMA cache_size=-4096; PRAGMA temp_store=MEMORY;")
    except BaseException:
        await connection.close()
        raise
    return connection


async def _connected(path: Path) -> aiosqlite.Connection:
    """A connection; when nobody wants it any more before it is there, its thread is ended all the same."""

    async def connect() -> aiosqlite.Connection:
        return await aiosqlite.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)

    connecting = asyncio.create_task(connect())
    try:
        return await asyncio.shield(connecting)
    except asyncio.CancelledError:
        with contextlib.suppress(sqlite3.Error):
            await (await connecting).close()
        raise


def set_aside(path: Path, word: str) -> Path:
    """Renames the file, with what SQLite keeps beside it, to `<name>.<word>-<unix time>`. Returns that name."""
    stamp = int(time.time())
    while (aside := path.with_name(f"{path.name}.{word}-{stamp}")).exists():
        stamp += 1
    for suffix in ("-wal", "-shm", ""):
        beside = path.with_name(path.name + suffix)
        if beside.exists():
            beside.replace(aside.with_name(aside.name + suffix))
    return aside


def place(no: int, seq: int) -> int:
    """The row of an entry: that of log number `no` with number `seq`."""
    return no << SEQ_BITS | seq


async def value(connection: aiosqlite.Connection, sql: str, *parameters: object) -> Any:
    """The first column of the first row, or None."""
    rows = list(await connection.execute_fetchall(sql, parameters))
    return rows[0][0] if rows else None


async def _is_foreign(connection: aiosqlite.Connection) -> bool:
    if await value(connection, "PRAGMA application_id") == APPLICATION_ID:
        return False
    return bool(await value(connection, "SELECT count(*) FROM sqlite_schema"))


async def _prepared(connection: aiosqlite.Connection, path: Path, program: str, is_checked: bool) -> Opened:
    version = await value(connection, "PRAGMA user_version")
    assert isinstance(version, int)
    if version > len(STEPS):
        written_by = await value(connection, "SELECT value FROM meta WHERE name = 'program'")
        await connection.execute("PRAGMA query_only=ON")
        return Opened(
            connection=connection,
            refusal=f"{path} was written by llm-router {written_by}, which is newer than this one ({program}): it is "
            f"only read, and nothing new is recorded; install llm-router {written_by} or newer",
        )
    await connection.executescript(
        # FULL: a commit is on the disk when it returns, on macOS too. What is deleted is overwritten where that costs
        # no further write. The WAL is cut back after a long reader made it grow.
        "PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA fullfsync=ON;"
        "PRAGMA checkpoint_fullfsync=ON; PRAGMA journal_size_limit=67108864; PRAGMA cache_size=-8192;"
        "PRAGMA secure_delete=FAST; PRAGMA temp_store=MEMORY;"
    )
    if version < len(STEPS):
        await _step(connection, path, version, program)
    tables = await connection.execute_fetchall("SELECT name FROM sqlite_schema WHERE type = 'table'")
    if missing := TABLES - {name for (name,) in tables}:
        raise Damaged(f"{path} lacks {', '.join(sorted(missing))}")
    if not is_checked and _size_bytes(path) <= CHECKED_BYTES_MAX:
        found = await value(connection, "PRAGMA quick_check(1)")
        if found != "ok":
            raise Damaged(f"{path} is damaged: {found}")
    return Opened(connection=connection)


async def _step(connection: aiosqlite.Connection, path: Path, version: int, program: str) -> None:
    """All steps that are missing, in one transaction; before it, a copy of a file that has rows."""
    if version:
        await _copy(connection, path.with_name(f"{path.name}.before-{len(STEPS)}"))
    script = "".join(STEPS[version:])
    await connection.executescript(
        f"BEGIN IMMEDIATE; {script} PRAGMA user_version={len(STEPS)}; PRAGMA application_id={APPLICATION_ID}; COMMIT;"
    )
    await connection.execute("INSERT OR REPLACE INTO meta VALUES ('program', ?)", (program,))
    await connection.execute("INSERT OR IGNORE INTO meta VALUES ('file', ?)", (secrets.token_hex(4),))


async def _copy(connection: aiosqlite.Connection, copy: Path) -> None:
    part = copy.with_name(f"{copy.name}.part")
    try:
        part.unlink(missing_ok=True)
        _make_private(part)
        await connection.execute("VACUUM INTO ?", (str(part),))
        part.replace(copy)
    except (sqlite3.Error, OSError) as error:
        raise HistoryUnavailable(
            f"the history needs a copy of itself, {copy}, before this version may change it, and it could not be "
            f"made: {error}; make room for it"
        ) from error
    log.info("The history was copied before its tables change", extra={"copy": str(copy)})


def _exists(path: Path) -> bool:
    return path.exists()


def _size_bytes(path: Path) -> int:
    return path.stat().st_size


def _make_private(path: Path) -> None:
    """Makes an empty file with mode 0600; SQLite gives what it keeps beside it the same mode."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise HistoryUnavailable(f"the history cannot be kept in {path}: {error.strerror}; make it writable") from None
