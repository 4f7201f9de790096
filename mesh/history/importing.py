"""The history of the reference, `request_history.json`, taken over once.

The file is an array of records in the shape that the API still has. Each becomes a Start and an End in the own log, so
that it is copied and kept like any other; rows that are none are counted and left out. The file is read in pieces,
then renamed to `.imported`. Interrupted, it begins again where it was: what is there already is known by its id.
Source: LLM Router's `RequestResponseRecord`, as its README and its files have it.
"""

from __future__ import annotations

import asyncio
import datetime
import functools
import json
import logging
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import aiosqlite

from mesh.history.bodies import stored
from mesh.history.entries import End, Kind, Start, encode
from mesh.history.errors import BadEntry
from mesh.history.schema import value
from mesh.history.store import HistoryStore

log = logging.getLogger(__name__)

FILE_NAME = "request_history.json"
PIECE_CHARACTERS = 2**20
ROW_CHARACTERS_MAX = 64 * 2**20
"""A row that has no end after so many ends the file."""
RECORDS_AT_ONCE = 100
_KINDS: dict[str, Kind] = {"chat": "chat", "generate": "generate", "embeddings": "embeddings"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """How many records were taken over, were there already, and were none."""

    taken: int = 0
    known: int = 0
    bad: int = 0


class BadRow(Exception):
    """A row that is no record; says why."""


async def import_once(store: HistoryStore, path: Path, redact: Callable[[str], str]) -> Imported | None:
    """Takes over the file, if it is there and was not taken over before. None: there was nothing to do.

    Raises HistoryUnavailable: call it again later.
    """
    file = await asyncio.to_thread(_identity, path)
    if file is None:
        return None
    if await _is_marked(store, file):  # and this peer stopped before it renamed the file
        await asyncio.to_thread(_rename, path)
        return None
    taken = known = bad = 0
    rows = _rows(path)
    while some := await asyncio.to_thread(_some, rows):
        records, bad_here = await asyncio.to_thread(_records, some, redact)
        new = await _unknown(store, records)
        if new:
            await store.append([data for _, entries in new for data in entries])
        taken += len(new)
        known += len(records) - len(new)
        bad += bad_here
    done = Imported(taken=taken, known=known, bad=bad)
    await store.change(functools.partial(_mark, file=file, done=done))
    await asyncio.to_thread(_rename, path)
    extra = {"path": str(path), "taken": taken, "known": known, "left_out": bad}
    if bad:
        log.warning("The old history was taken over, but for rows that are no records", extra=extra)
    else:
        log.info("The old history was taken over", extra=extra)
    return done


def entries_of(row: object, redact: Callable[[str], str]) -> tuple[Start, End]:
    """The entries that stand for a row of the file. Raises BadRow."""
    if not isinstance(row, Mapping):
        raise BadRow("it is no object")
    kind = _KINDS.get(str(row.get("request_type")).lower())
    if kind is None:
        raise BadRow("its request_type is none of chat, generate, embeddings")
    at_ms, duration_ms = _ms(row.get("timestamp")), row.get("duration_ms")
    if type(duration_ms) is not int or duration_ms < 0:
        duration_ms = 0
    status = row.get("status")
    if not isinstance(status, Mapping) or status.get("type") not in ("success", "error"):
        raise BadRow("its status has no type success or error")
    is_success = status["type"] == "success"
    record_id, model = _text(row, "id"), _text(row, "model")
    if not record_id or not model:
        raise BadRow("it has no id or no model")
    start = Start(
        id=record_id,
        at_ms=at_ms,
        kind=kind,
        model=model,
        client_ip=_text(row, "client_ip"),
        request_body=_body(row.get("request_body"), redact),
    )
    end = End(
        id=record_id,
        at_ms=_ms(row.get("completed_at")) if row.get("completed_at") else at_ms + duration_ms,
        status="success" if is_success else "error",
        message="" if is_success else redact(_text(status, "message")),
        http_status=200 if is_success else 500,
        node=_text(row, "node_id") or _text(row, "agent_id"),
        node_name=_text(row, "agent_machine_name") or _text(row, "node_machine_name"),
        node_ip=_text(row, "agent_ip") or _text(row, "node_ip"),
        duration_ms=duration_ms,
        response_body=_body(row.get("response_body"), redact),
    )
    return start, end


def _text(row: Mapping[str, Any], name: str) -> str:
    found = row.get(name)
    return found if isinstance(found, str) else ""


def _ms(text: object) -> int:
    """Unix ms of RFC 3339, nanoseconds too. A time without a zone is UTC: that is what the reference wrote."""
    try:
        when = datetime.datetime.fromisoformat(str(text))
        if when.tzinfo is None:
            when = when.replace(tzinfo=datetime.UTC)
        ms = round(when.timestamp() * 1000)
    except (ValueError, OverflowError):
        raise BadRow("a time of it cannot be read") from None
    if ms < 0:
        raise BadRow("a time of it is before 1970")
    return ms


def _body(body: object, redact: Callable[[str], str]) -> bytes | None:
    if body is None:
        return None
    return stored(body if isinstance(body, Mapping) else {"text": body}, redact)


def _rows(path: Path) -> Iterator[object]:
    """The elements of the array in the file, one after the other. A part that is no JSON is one row that is none."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        yield from _elements(file)


def _elements(file: IO[str]) -> Iterator[object]:
    decoder = json.JSONDecoder()
    text, position, wanted = file.read(PIECE_CHARACTERS), 0, PIECE_CHARACTERS
    position = _skipped(text, 0, "[")
    while True:
        position = _skipped(text, position, ",")
        if text[position : position + 1] == "]":
            return
        try:
            row, end = decoder.raw_decode(text, position)
            if end == len(text) and text[end - 1] not in '}]"':  # a number, which may go on
                raise json.JSONDecodeError("cut", text, end)
        except (ValueError, RecursionError):
            more = file.read(wanted) if len(text) - position < ROW_CHARACTERS_MAX else ""
            if not more:
                if text[position:].strip():
                    yield BadRow("the file cannot be read any further")
                return
            text, position, wanted = text[position:] + more, 0, wanted * 2
            continue
        yield row
        position, wanted = end, PIECE_CHARACTERS
        if len(text) - position < PIECE_CHARACTERS // 4:
            text, position = text[position:] + file.read(PIECE_CHARACTERS), 0


def _skipped(text: str, position: int, mark: str) -> int:
    """Behind white space, and behind one mark with the white space after it."""
    while text[position : position + 1].isspace():
        position += 1
    if text[position : position + 1] == mark:
        position += 1
        while text[position : position + 1].isspace():
            position += 1
    return position


def _some(rows: Iterator[object]) -> list[object]:
    return [row for _, row in zip(range(RECORDS_AT_ONCE), rows, strict=False)]


def _records(rows: Sequence[object], redact: Callable[[str], str]) -> tuple[dict[str, tuple[bytes, bytes]], int]:
    """The entries of these rows by id, and how many rows are none."""
    records: dict[str, tuple[bytes, bytes]] = {}
    bad = 0
    for row in rows:
        try:
            start, end = entries_of(row, redact)
            records[start.id] = encode(start), encode(end)
        except (BadRow, BadEntry, OverflowError):
            bad += 1
    return records, bad


async def _unknown(
    store: HistoryStore, records: Mapping[str, tuple[bytes, bytes]]
) -> list[tuple[str, tuple[bytes, bytes]]]:
    """Those whose id the history does not have."""
    new = []
    async with store.reading() as connection:
        for record_id, entries in records.items():
            if await value(connection, "SELECT 1 FROM records WHERE id = ?", record_id) is None:
                new.append((record_id, entries))
    return new


def _identity(path: Path) -> str | None:
    """Tells this file from another one, and from what it was before it was changed; None without one."""
    try:
        status = path.stat()
    except OSError:
        return None
    return f"{path} {status.st_size} {status.st_mtime_ns}" if stat.S_ISREG(status.st_mode) else None


def _rename(path: Path) -> None:
    kept, number = path.with_name(f"{path.name}.imported"), 1
    while kept.exists():
        number += 1
        kept = path.with_name(f"{path.name}.imported-{number}")
    path.replace(kept)


async def _is_marked(store: HistoryStore, file: str) -> bool:
    async with store.reading() as connection:
        note = await value(connection, "SELECT value FROM meta WHERE name = 'imported'")
    return isinstance(note, str) and json.loads(note)["file"] == file


async def _mark(connection: aiosqlite.Connection, file: str, done: Imported) -> None:
    note = json.dumps({"file": file, "taken": done.taken, "known": done.known, "left_out": done.bad})
    await connection.execute("INSERT OR REPLACE INTO meta VALUES ('imported', ?)", (note,))
