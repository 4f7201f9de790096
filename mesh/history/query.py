"""What people ask of the history: lists, single records, totals, and who did what; answers are JSON-ready.

Nothing but a search in bodies, and a record that is shown with them, reads entries. Lists are counted and paged on one
index that holds all that is filtered by; totals come from sums kept by the hour (mesh.history.totals).
Source: docs/performance.md has the figures for a million records.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from array import array
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiosqlite

from mesh.history import search, totals, view
from mesh.history.conditions import Condition, Mesh, Where, escaped, times, where
from mesh.history.entries import LogId
from mesh.history.errors import HistoryUnavailable
from mesh.history.filters import (
    AsOf,
    AuditFilters,
    Filters,
    Page,
    audit_filters_of,
    filters_of,
    page_of,
    span_of,
)
from mesh.history.projection import TIME_MS_MAX
from mesh.history.schema import SEQ_BITS, value
from mesh.history.store import HistoryStore
from mesh.moments import rfc_3339

SEARCH_S = 20.0
"""A search in bodies ends after this, with what it found."""
SEARCHES_MAX = 2
SEARCH_WAIT_S = 10.0
FOUND_MAX = 100_000
"""Records that a search lists. It counts all."""
REMEMBERED_MAX = 8
"""Searches whose pages can be turned without searching again."""
REMEMBERED_S = 120.0
_NEWEST = "SELECT max(at) FROM (SELECT max(at) AS at FROM records UNION ALL SELECT max(at) FROM audits)"
LIST_BODIES_BYTES_MAX = 16 * 2**20
"""Bodies in one list; records after that come without them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Records, newest first, and how many there are in all. `back_to_ms`: a search got no further than to this time."""

    places: Sequence[int]
    total: int
    back_to_ms: int | None
    ended: float


class HistoryQuery:
    """Answers from what one store holds. `query` is that of a URL, each name once. All raise HistoryUnavailable.

    Where a query cannot be meant they raise InvalidRequest, naming the parameter.
    """

    def __init__(
        self,
        store: HistoryStore,
        mesh: Mesh,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._mesh = mesh
        self._now_ms = now_ms
        self._clock = clock
        self._searches = asyncio.Semaphore(SEARCHES_MAX)
        self._found: OrderedDict[tuple[object, ...], Found] = OrderedDict()

    async def records(self, query: Mapping[str, str]) -> dict[str, Any]:
        """A page of records, newest first: `{records, total_count, page, per_page, as_of}`.

        With the `as_of` of an answer it is a page of the same list, whatever came since. Bodies are in it with
        `bodies=true`, as far as 16 MiB. A search that ran out of time adds `searched_back_to`; its list has at most
        100,000 records.
        """
        filters, page = filters_of(query, self._now_ms()), page_of(query)
        as_of = await self._as_of(page.as_of)
        meant = await self._meant(filters, as_of)
        found = await (self._searched(filters, meant, as_of) if filters.text else self._counted(meant.all(), page))
        places = found.places[page.offset : page.offset + page.size] if filters.text else found.places
        answer = {
            "records": await self.shown(places, with_bodies=query.get("bodies") == "true"),
            "total_count": found.total,
            "page": page.number,
            "per_page": page.size,
            "as_of": str(as_of),
        }
        if found.back_to_ms is not None:
            answer["searched_back_to"] = rfc_3339(found.back_to_ms / 1000)
        return answer

    async def record(self, record_id: str) -> dict[str, Any] | None:
        """The record of this id with its bodies, or None. Of two with one id, the later."""
        async with self._store.reading() as connection:
            rows = await connection.execute_fetchall(
                "SELECT place FROM records WHERE id = ? ORDER BY arrived DESC LIMIT 1", (record_id,)
            )
        shown = await self.shown([place for (place,) in rows], with_bodies=True)
        return shown[0] if shown else None

    async def stats(self, query: Mapping[str, str]) -> dict[str, Any]:
        """Sums of a time range (`from`, `to`), in all and by model, peer and key."""
        span = span_of(query, self._now_ms())
        logs = self._logs()
        async with self._store.reading() as connection:
            return await totals.totals(connection, span, self._mesh, logs.get)

    async def overview(self, query: Mapping[str, str]) -> dict[str, Any]:
        """`{stats, history}`: sums of a time range, and the last hour by minute (60 points, the oldest first)."""
        stats = await self.stats(query)
        async with self._store.reading() as connection:
            return {"stats": stats, "history": await totals.minutes(connection, self._now_ms())}

    async def audits(self, query: Mapping[str, str]) -> dict[str, Any]:
        """A page of what was done, newest first: `{entries, total_count, page, per_page, as_of}`."""
        filters, page = audit_filters_of(query, self._now_ms()), page_of(query)
        as_of = await self._as_of(page.as_of)
        meant = _audit_condition(filters, as_of)
        logs = self._logs()
        async with self._store.reading() as connection:
            total = await value(connection, f"SELECT count(*) FROM audits WHERE {meant.sql}", *meant.parameters)  # noqa: S608
            rows = await connection.execute_fetchall(
                "SELECT place, at, actor, actor_kind, ip, action, target, detail FROM audits"  # noqa: S608
                f" WHERE {meant.sql} ORDER BY at DESC, place DESC LIMIT ? OFFSET ?",
                (*meant.parameters, page.size, page.offset),
            )
        entries = [view.audit(row, log, self._mesh) for row in rows if (log := logs.get(row[0] >> SEQ_BITS))]
        return {
            "entries": entries,
            "total_count": total,
            "page": page.number,
            "per_page": page.size,
            "as_of": str(as_of),
        }

    async def walked(self, filters: Filters, size: int) -> AsyncGenerator[list[int], None]:
        """The places of all records that are meant, newest first, in lists; for exports. No list is long."""
        as_of = await self._as_of(None)
        meant = await self._meant(filters, as_of)
        if filters.text:
            async with (
                self._searching(),
                contextlib.aclosing(search.pieces(self._store.reading, meant, as_of, filters.text)) as pieces,
            ):
                async for piece in pieces:
                    for at in range(0, len(piece.places), size):
                        yield piece.places[at : at + size]
            return
        before = meant.newest
        while True:
            rest = meant.after(before)
            sql = (
                f"SELECT at, place FROM records INDEXED BY records_at WHERE {rest.sql}"  # noqa: S608
                " ORDER BY at DESC, place DESC LIMIT ?"
            )
            async with self._store.reading() as connection:
                rows = list(await connection.execute_fetchall(sql, (*rest.parameters, size)))
            if not rows:
                return
            yield [place for _, place in rows]
            before = tuple(rows[-1])

    async def shown(
        self, places: Sequence[int], *, with_bodies: bool, bytes_max: int = LIST_BODIES_BYTES_MAX
    ) -> list[dict[str, Any]]:
        """The records at these places, in this order, those that are still there. Bodies as far as `bytes_max`."""
        logs = self._logs()
        async with self._store.reading() as connection:
            found = await connection.execute_fetchall(f"{view.SELECT} WHERE place IN {_numbers(places)}")
            by_place = {row[0]: row for row in found}
            rows = [by_place[place] for place in places if place in by_place and place >> SEQ_BITS in logs]
            bodies = await _bodies(connection, rows, bytes_max) if with_bodies else {}
        records = [view.record(row, logs[row[0] >> SEQ_BITS], self._mesh) for row in rows]
        if bodies:
            await asyncio.to_thread(_put_in, records, rows, bodies)
        return records

    def _logs(self) -> dict[int, LogId]:
        return {no: log for log, no in self._store.numbers().items()}

    async def _as_of(self, asked: AsOf | None) -> AsOf:
        """The state that an answer shows. That of another file, made by another peer, is told by its time alone."""
        if asked is not None and asked.file == self._store.file:
            return asked
        arrived, until_ms = self._store.arrived, asked.until_ms if asked is not None else self._now_ms()
        if asked is None:
            async with self._store.reading() as connection:
                # Peers whose clocks are ahead have written records of times to come: they are here too.
                newest = await value(connection, _NEWEST)
            until_ms = max(until_ms, newest if isinstance(newest, int) else 0)
        return AsOf(arrived=arrived, file=self._store.file, until_ms=min(until_ms, TIME_MS_MAX))

    async def _meant(self, filters: Filters, as_of: AsOf) -> Where:
        async with self._store.reading() as connection:
            return await where(connection, filters, as_of, self._mesh, self._store.numbers())

    async def _counted(self, meant: Condition, page: Page) -> Found:
        """One page, and how many there are."""
        source = f"FROM records INDEXED BY records_at WHERE {meant.sql}"
        async with self._store.reading() as connection:
            total = await value(connection, f"SELECT count(*) {source}", *meant.parameters)
            rows = await connection.execute_fetchall(
                f"SELECT place {source} ORDER BY at DESC, place DESC LIMIT ? OFFSET ?",
                (*meant.parameters, page.size, page.offset),
            )
        assert isinstance(total, int)
        return Found(places=[place for (place,) in rows], total=total, back_to_ms=None, ended=self._clock())

    async def _searched(self, filters: Filters, meant: Where, as_of: AsOf) -> Found:
        """All that hold the text, as far as time allows. Remembered, so that pages can be turned."""
        key = (filters, as_of, meant)
        known = self._found.get(key)
        if known is not None and self._clock() - known.ended < REMEMBERED_S:
            return known
        async with self._searching():
            found = await self._search(filters, meant, as_of)
        self._found[key] = found
        self._found.move_to_end(key)
        while len(self._found) > REMEMBERED_MAX:
            self._found.popitem(last=False)
        return found

    async def _search(self, filters: Filters, meant: Where, as_of: AsOf) -> Found:
        places, total, back_to_ms, reached_ms = array("q"), 0, None, meant.to_ms
        ends = self._clock() + SEARCH_S
        async with contextlib.aclosing(search.pieces(self._store.reading, meant, as_of, filters.text)) as pieces:
            try:
                async with asyncio.timeout(SEARCH_S):  # one piece alone may take minutes: bodies and texts are long
                    async for piece in pieces:
                        total += len(piece.places)
                        places.extend(piece.places[: FOUND_MAX - len(places)])
                        reached_ms = piece.at
                        if self._clock() >= ends and piece.at:
                            back_to_ms = piece.at
                            break
            except TimeoutError:
                back_to_ms = reached_ms
        return Found(places=places, total=total, back_to_ms=back_to_ms, ended=self._clock())

    @contextlib.asynccontextmanager
    async def _searching(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(SEARCH_WAIT_S):
                await self._searches.acquire()
        except TimeoutError:
            raise HistoryUnavailable("others search in the history now; ask again") from None
        try:
            yield
        finally:
            self._searches.release()


def _audit_condition(filters: AuditFilters, as_of: AsOf) -> Condition:
    parts = [("arrived <= ?", as_of.arrived), *zip(("at >= ?", "at < ?"), times(filters.span, as_of), strict=True)]
    texts = [
        (column, text)
        for column, text in (
            ("actor", filters.actor),
            ("action", filters.action),
            ("actor || char(10) || action || char(10) || ip || char(10) || target || char(10) || detail", filters.text),
        )
        if text
    ]
    return Condition(
        sql=" AND ".join([sql for sql, _ in parts] + [f"{column} LIKE ? ESCAPE '\\'" for column, _ in texts]),
        parameters=(*(parameter for _, parameter in parts), *(f"%{escaped(text)}%" for _, text in texts)),
    )


async def _bodies(connection: aiosqlite.Connection, rows: Sequence[Sequence[Any]], bytes_max: int) -> dict[int, bytes]:
    """The bodies of the entries of these rows, by place, as long as they are together no more than `bytes_max`."""
    places = [place for row in rows for place in view.places(row) if place is not None]
    found = await connection.execute_fetchall(
        f"SELECT place, body_bytes FROM entries WHERE body_bytes > 0 AND place IN {_numbers(places)}"  # noqa: S608
    )
    sizes: dict[int, int] = dict(tuple(row) for row in found)
    wanted, total = [], 0
    for place in places:
        total += sizes.get(place, 0)
        if total > bytes_max:
            break
        if place in sizes:
            wanted.append(place)
    bodies = await connection.execute_fetchall(
        f"SELECT place, substr(data, body_at + 1, body_bytes) FROM entries WHERE place IN {_numbers(wanted)}"  # noqa: S608
    )
    return dict(tuple(row) for row in bodies)


def _numbers(places: Sequence[int]) -> str:
    """Numbers of ours, written out for IN."""
    return f"({', '.join(map(str, places))})"


def _put_in(records: list[dict[str, Any]], rows: Sequence[Sequence[Any]], bodies: Mapping[int, bytes]) -> None:
    for record, row in zip(records, rows, strict=True):
        asked, answered = view.places(row)
        record["request_body"] = view.body(bodies.get(asked))
        record["response_body"] = view.body(bodies.get(answered)) if answered is not None else None
