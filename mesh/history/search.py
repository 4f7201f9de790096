r"""Searching in bodies: every body that the other filters leave is looked at, the newest first, in pieces.

Why no index. Measured on two cores with 100,000 requests of 600 bytes and answers of 600 bytes (English and Japanese,
SQLite 3.40), beside a plain insert:

    way                                  CPU a record   file     slowest commit   a search
    none: LIKE over the stored bytes          9 us     151 MB         9 ms         200 ms
    a table of the texts, normalized         21 us     253 MB        10 ms         130 ms
    FTS5 trigram                            402 us     413 MB        99 ms           1 ms
    FTS5 trigram, detail=none               313 us     231 MB        85 ms           1 ms

A trigram index makes recording forty times as expensive, so that commits miss their 50 ms, and it finds nothing shorter
than three characters: most Japanese words have two. Looking at a million requests takes about two seconds, without the
interpreter's lock. So a search has a time limit; what it did not get to is said (`searched_back_to`), and a narrower
time range gets there.

Bodies are JSON text in UTF-8 (mesh.history.bodies). The text is looked for as JSON writes it, as it was typed and in
its Unicode normal forms (full-width letters, decomposed kana); ASCII letters match in either case.
"""

from __future__ import annotations

import asyncio
import json
import unicodedata
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TypeAlias

import aiosqlite

from mesh.history.conditions import Bound, Where, escaped
from mesh.history.filters import AsOf

PIECE_RECORDS = 4_096
PIECES_AT_ONCE = 2
Reading: TypeAlias = Callable[[], AbstractAsyncContextManager[aiosqlite.Connection]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The places of the records in one piece that match, newest first. `at`: the time of its oldest record."""

    places: list[int]
    at: int


def patterns(text: str) -> list[str]:
    """What LIKE looks for."""
    forms = dict.fromkeys((text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFKC"))))
    written = dict.fromkeys(variant for form in forms for variant in (form, json.dumps(form, ensure_ascii=False)[1:-1]))
    return [f"%{escaped(form)}%" for form in written]


async def pieces(reading: Reading, where: Where, as_of: AsOf, text: str) -> AsyncGenerator[Piece, None]:
    """The records that are meant and hold the text, piece by piece, newest first."""
    likes = patterns(text)
    matches = " OR ".join(
        f"CAST(substr({entry}.data, {entry}.body_at + 1, {entry}.body_bytes) AS TEXT) LIKE ? ESCAPE '\\'"
        for entry in ("asked", "answered")
        for _ in likes
    )

    async def matching(before: Bound, last: Bound) -> Piece:
        meant = where.after(before, last)
        sql = (
            "SELECT found.place FROM (SELECT place, at, end_place, ended FROM records INDEXED BY records_at"  # noqa: S608
            f" WHERE {meant.sql}) AS found"
            " JOIN entries AS asked ON asked.place = found.place"
            " LEFT JOIN entries AS answered ON answered.place = found.end_place AND found.ended <= ?"
            f" WHERE {matches} ORDER BY found.at DESC, found.place DESC"
        )
        async with reading() as connection:
            rows = await connection.execute_fetchall(sql, (*meant.parameters, as_of.arrived, *likes, *likes))
        return Piece(places=[place for (place,) in rows], at=last[0])

    waiting: list[asyncio.Task[Piece]] = []
    try:
        async for before, last in bounds(reading, where, PIECE_RECORDS):
            waiting.append(asyncio.create_task(matching(before, last)))
            if len(waiting) == PIECES_AT_ONCE:
                yield await waiting[0]
                del waiting[0]
        for task in waiting:
            yield await task
    finally:
        for task in waiting:
            # Cancelled a second time, it could not end what it had begun.
            if not task.cancelling():
                task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def bounds(reading: Reading, where: Where, records: int) -> AsyncGenerator[tuple[Bound, Bound], None]:
    """Cuts what is meant into pieces of so many records, newest first: after which one, up to which one."""
    before = where.newest
    while before != where.oldest:
        meant = where.after(before)
        sql = (
            f"SELECT at, place FROM records INDEXED BY records_at WHERE {meant.sql}"  # noqa: S608
            " ORDER BY at DESC, place DESC LIMIT 1 OFFSET ?"
        )
        async with reading() as connection:
            found = list(await connection.execute_fetchall(sql, (*meant.parameters, records - 1)))
        last: Bound = tuple(found[0]) if found else where.oldest
        yield before, last
        before = last
