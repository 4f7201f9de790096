"""Sums over the history: requests, tokens and durations, in all and by model, peer and key; the last hour by minute.

They come from `hours` and `bands` (mesh.history.schema), which hold the sums of each hour, and from the records of the
hours that a time range cuts. A request counts in the hour in which it came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import aiosqlite

from mesh.history.conditions import Mesh, node_uuid
from mesh.history.entries import LogId
from mesh.history.filters import Span
from mesh.history.projection import STATES, TIME_MS_MAX, duration_of
from mesh.history.schema import HOUR_MS, SEQ_BITS
from mesh.moments import rfc_3339

MINUTES = 60
MINUTE_MS = 60_000
ROWS_MAX = 100
"""Models, peers and keys in an answer, those with the most requests."""

_SUMMED = "model, node, node_name, key, key_name, state"
_ENDED = f"""
    SELECT {_SUMMED}, sum(requests), sum(prompt_tokens), sum(completion_tokens), sum(duration_ms) FROM (
        SELECT {_SUMMED}, requests, prompt_tokens, completion_tokens, duration_ms
        FROM hours WHERE hour >= ?1 AND hour < ?2
        UNION ALL
        SELECT {_SUMMED}, 1, ifnull(prompt_tokens, 0), ifnull(completion_tokens, 0), ifnull(duration_ms, 0)
        FROM records INDEXED BY records_at WHERE state <> 0 AND (at >= ?3 AND at < ?4)
        UNION ALL
        SELECT {_SUMMED}, 1, ifnull(prompt_tokens, 0), ifnull(completion_tokens, 0), ifnull(duration_ms, 0)
        FROM records INDEXED BY records_at WHERE state <> 0 AND (at >= ?5 AND at < ?6)
    ) GROUP BY {_SUMMED}
"""  # noqa: S608 - columns from above
_BANDS = """
    SELECT band, sum(requests) FROM (
        SELECT band, requests FROM bands WHERE hour >= ?1 AND hour < ?2
        UNION ALL
        SELECT duration_band, 1 FROM records INDEXED BY records_at WHERE state <> 0 AND (at >= ?3 AND at < ?4)
        UNION ALL
        SELECT duration_band, 1 FROM records INDEXED BY records_at WHERE state <> 0 AND (at >= ?5 AND at < ?6)
    ) GROUP BY band ORDER BY band
"""
# state = 0 as a literal: only so does SQLite use the index of the open ones.
_OPEN = f"""
    SELECT model, key, key_name, place >> {SEQ_BITS}, count(*) FROM records INDEXED BY records_open
    WHERE state = 0 AND at >= ? AND at < ? GROUP BY 1, 2, 3, 4
"""  # noqa: S608
_MINUTES = f"""
    SELECT at / {MINUTE_MS}, state, count(*), sum(ifnull(prompt_tokens, 0)), sum(ifnull(completion_tokens, 0))
    FROM records INDEXED BY records_at WHERE at >= ? AND at < ? GROUP BY 1, 2
"""  # noqa: S608

Group: TypeAlias = tuple[str, str]
"""An id and a name."""


@dataclass(slots=True)
class Sums:
    """Requests by how they ended, their tokens and durations."""

    success: int = 0
    error: int = 0
    cancelled: int = 0
    interrupted: int = 0
    running: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    duration_ms: int = 0

    def add(self, state: str, requests: int, prompt_tokens: int, completion_tokens: int, duration_ms: int) -> None:
        """Adds requests that are all in this state."""
        setattr(self, state, getattr(self, state) + requests)
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens
        self.duration_ms += duration_ms

    @property
    def failed(self) -> int:
        """What did not end well: as `status.type` of a record says `error` of all three."""
        return self.error + self.cancelled + self.interrupted

    @property
    def total(self) -> int:
        """All of them."""
        return self.success + self.failed + self.running

    def shown(self) -> dict[str, Any]:
        """As the API has it. `failed_requests` holds the cancelled and the interrupted ones too."""
        timed = self.success + self.error + self.cancelled
        return {
            "total_requests": self.total,
            "successful_requests": self.success,
            "failed_requests": self.failed,
            "cancelled_requests": self.cancelled,
            "interrupted_requests": self.interrupted,
            "running_requests": self.running,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "average_response_time_ms": round(self.duration_ms / timed, 1) if timed else None,
        }


async def totals(
    connection: aiosqlite.Connection, span: Span, mesh: Mesh, log_of: Callable[[int], LogId | None]
) -> dict[str, Any]:
    """The sums of a time range. `log_of` a log's number in this file."""
    parameters = _cut(span)
    all_of_them, models, peers, keys = Sums(), _Groups(), _Groups(), _Groups()
    texts = await _texts(connection)
    for model, node, node_name, key, key_name, state, *sums in await connection.execute_fetchall(_ENDED, parameters):
        name = mesh.name_of(texts.get(node, "")) or texts.get(node_name, "")
        for part in (
            all_of_them,
            models.of(texts.get(model, ""), ""),
            peers.of(texts.get(node, ""), name),
            keys.of(texts.get(key, ""), texts.get(key_name, "")),
        ):
            part.add(STATES[state], *sums)
    start, end = span.from_ms or 0, TIME_MS_MAX if span.to_ms is None else span.to_ms
    for model, key, key_name, no, requests in await connection.execute_fetchall(_OPEN, (start, end)):
        log = log_of(no)
        state = "running" if log is not None and mesh.is_living(log) else "interrupted"
        for part in (
            all_of_them,
            models.of(texts.get(model, ""), ""),
            keys.of(texts.get(key, ""), texts.get(key_name, "")),
        ):
            part.add(state, requests, 0, 0, 0)
    bands = [(band, count) for band, count in await connection.execute_fetchall(_BANDS, parameters) if band is not None]
    return {
        "from": None if span.from_ms is None else rfc_3339(span.from_ms / 1000),
        "to": None if span.to_ms is None else rfc_3339(span.to_ms / 1000),
        **all_of_them.shown(),
        "duration_ms_p50": percentile(bands, 0.5),
        "duration_ms_p95": percentile(bands, 0.95),
        "models": [{"model": id_} | sums.shown() for id_, _, sums in models.largest()],
        "peers": [
            {"node_id": node_uuid(id_), "agent_machine_name": name or None} | sums.shown()
            for id_, name, sums in peers.largest()
        ],
        "api_keys": [
            {"api_key_id": id_ or None, "api_key": name or None} | sums.shown() for id_, name, sums in keys.largest()
        ],
    }


async def minutes(connection: aiosqlite.Connection, now_ms: int) -> list[dict[str, Any]]:
    """Sixty points, one a minute, the oldest first; the last one is the minute that runs."""
    last = now_ms // MINUTE_MS
    points = {minute: Sums() for minute in range(last - MINUTES + 1, last + 1)}
    rows = await connection.execute_fetchall(_MINUTES, (min(points) * MINUTE_MS, (last + 1) * MINUTE_MS))
    for minute, state, requests, prompt_tokens, completion_tokens in rows:
        points[minute].add(STATES[state], requests, prompt_tokens, completion_tokens, 0)
    return [
        {
            "minute": rfc_3339(minute * MINUTE_MS / 1000),
            "requests": sums.total,
            "success": sums.success,
            "error": sums.failed,
            "prompt_tokens": sums.prompt_tokens,
            "completion_tokens": sums.completion_tokens,
        }
        for minute, sums in points.items()
    ]


def percentile(bands: Iterable[tuple[int, int]], share: float) -> int | None:
    """The duration in ms that this share of the requests stays under, to 5 %; `bands` with their requests, in order."""
    counted = list(bands)
    wanted = share * sum(requests for _, requests in counted)
    seen = 0
    for band, requests in counted:
        seen += requests
        if seen >= wanted:
            return round(duration_of(band))
    return None


class _Groups:
    """Sums by id. The name is the last one that was met."""

    def __init__(self) -> None:
        self._sums: dict[str, Sums] = {}
        self._names: dict[str, str] = {}

    def of(self, id_: str, name: str) -> Sums:
        if name:
            self._names[id_] = name
        return self._sums.setdefault(id_, Sums())

    def largest(self) -> list[tuple[str, str, Sums]]:
        ranked = sorted(self._sums.items(), key=lambda item: (-item[1].total, item[0]))
        return [(id_, self._names.get(id_, ""), sums) for id_, sums in ranked[:ROWS_MAX]]


def _cut(span: Span) -> tuple[int, int, int, int, int, int]:
    """The whole hours of a time range as hours, and what is before and after them as times."""
    start, end = span.from_ms or 0, TIME_MS_MAX if span.to_ms is None else span.to_ms
    first, last = -(-start // HOUR_MS), end // HOUR_MS
    if first >= last:  # not one whole hour
        return 0, 0, start, end, 0, 0
    return first, last, start, first * HOUR_MS, last * HOUR_MS, end


async def _texts(connection: aiosqlite.Connection) -> dict[int, str]:
    """The words that sums are by."""
    sql = "SELECT no, text FROM words WHERE kind IN ('model', 'node', 'name', 'key')"
    return dict(tuple(row) for row in await connection.execute_fetchall(sql))
