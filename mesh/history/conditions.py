"""Filters as SQL: conditions on `records` that its one index answers alone.

A record is asked for as it was at the time of `as_of`: what ended later still runs, and what came later is not there.
So a list stays the same while its pages are turned.
"""

from __future__ import annotations

import contextlib
import functools
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import aiosqlite

from gossip.identity import uuid_of
from mesh.history.entries import LogId
from mesh.history.filters import AsOf, Filters, Span
from mesh.history.projection import STATES
from mesh.history.schema import SEQ_BITS

PREFIX_MIN = 6
"""An id may be shortened to so many characters."""
Bound: TypeAlias = tuple[int, int]
"""A time and a place: where a record stands in the order of lists."""
_PEER_ID_LENGTH = 52
_OPEN = "(ended IS NULL OR ended > ?)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What stands after WHERE, with its parameters."""

    sql: str
    parameters: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """A condition, and apart from it the times that it leaves: `from_ms`, included, to `to_ms`, not included.

    Apart, because an index is searched by one bound only: that of a page or a piece must not compete with these.
    """

    condition: Condition
    from_ms: int
    to_ms: int

    def all(self) -> Condition:
        """The condition with its times."""
        return Condition(
            sql=f"{self.condition.sql} AND at >= ? AND at < ?",
            parameters=(*self.condition.parameters, self.from_ms, self.to_ms),
        )

    def after(self, before: Bound, last: Bound | None = None) -> Condition:
        """The condition for what comes after `before` in the order of lists, up to `last`, or to the oldest."""
        last = last or self.oldest
        return Condition(
            sql=f"{self.condition.sql} AND (at, place) < (?, ?) AND (at, place) >= (?, ?)",
            parameters=(*self.condition.parameters, *before, *last),
        )

    @property
    def newest(self) -> Bound:
        """Before all that is meant."""
        return self.to_ms, 0

    @property
    def oldest(self) -> Bound:
        """After all that is meant."""
        return self.from_ms, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """What the store cannot know: which logs are still written, and how peers are called now ("" for a stranger)."""

    is_living: Callable[[LogId], bool]
    name_of: Callable[[str], str]


async def where(
    connection: aiosqlite.Connection, filters: Filters, as_of: AsOf, mesh: Mesh, logs: Mapping[LogId, int]
) -> Where:
    """Which records are meant, `filters.text` aside. `logs` are the numbers of the logs in this file."""
    parts = [Condition(sql="arrived <= ?", parameters=(as_of.arrived,))]
    if filters.model:
        sql = r"model IN (SELECT no FROM words WHERE kind = 'model' AND text LIKE ? ESCAPE '\')"
        parts.append(Condition(sql=sql, parameters=(f"%{escaped(filters.model)}%",)))
    if filters.key:
        sql = (
            "(key IN (SELECT no FROM words WHERE kind = 'key' AND text = ?) OR"
            " key_name IN (SELECT no FROM words WHERE kind = 'name' AND text = ? COLLATE NOCASE))"
        )
        parts.append(Condition(sql=sql, parameters=(filters.key, filters.key)))
    if filters.agent:
        words = await connection.execute_fetchall("SELECT no, text FROM words WHERE kind = 'node' AND text <> ''")
        nodes = [no for no, node in words if is_meant(filters.agent, node, mesh.name_of(node))]
        by_name = "node_name IN (SELECT no FROM words WHERE kind = 'name' AND text = ? COLLATE NOCASE)"
        parts.append(Condition(sql=f"({_in('node', nodes)} OR {by_name})", parameters=(filters.agent,)))
        parts.append(_ended(as_of))
    if filters.ingress:
        written = [no for log, no in logs.items() if is_meant(filters.ingress, log.peer, mesh.name_of(log.peer))]
        parts.append(Condition(sql=_in(f"place >> {SEQ_BITS}", written)))
    if filters.status:
        parts.append(_status(filters.status, as_of, living(mesh, logs)))
    meant = Condition(
        sql=" AND ".join(part.sql for part in parts),
        parameters=tuple(parameter for part in parts for parameter in part.parameters),
    )
    from_ms, to_ms = times(filters.span, as_of)
    return Where(condition=meant, from_ms=from_ms, to_ms=to_ms)


def times(span: Span, as_of: AsOf) -> tuple[int, int]:
    """The first ms that is meant, and the first one that is not any more."""
    to_ms = as_of.until_ms + 1
    return span.from_ms or 0, to_ms if span.to_ms is None else min(span.to_ms, to_ms)


def living(mesh: Mesh, logs: Mapping[LogId, int]) -> list[int]:
    """The numbers of the logs that are still written: what is open in another one was interrupted."""
    return sorted(no for log, no in logs.items() if mesh.is_living(log))


def is_meant(wanted: str, peer: str, name: str) -> bool:
    """True if `wanted` is this peer's id, a prefix of it, its UUID, or its name."""
    wanted = wanted.lower()
    if name and wanted == name.lower():
        return True
    if wanted == peer or (len(wanted) >= PREFIX_MIN and peer.startswith(wanted)):
        return True
    return wanted == node_uuid(peer)


@functools.lru_cache(maxsize=4096)
def node_uuid(peer: str) -> str | None:
    """The UUID by which the API names this peer. What is a UUID already (a registered server) stays as it is."""
    if not peer:
        return None
    with contextlib.suppress(ValueError):
        return str(uuid_of(peer) if len(peer) == _PEER_ID_LENGTH else uuid.UUID(peer))
    return peer


def escaped(text: str) -> str:
    r"""The text for LIKE ... ESCAPE '\', in which it means itself."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _status(status: str, as_of: AsOf, living_logs: list[int]) -> Condition:
    is_open = Condition(sql=_OPEN, parameters=(as_of.arrived,))
    in_living = _in(f"place >> {SEQ_BITS}", living_logs)
    if status == "running":
        return Condition(sql=f"{is_open.sql} AND {in_living}", parameters=is_open.parameters)
    if status == "success":
        ended = _ended(as_of)
        return Condition(sql=f"state = {STATES.index(status)} AND {ended.sql}", parameters=ended.parameters)
    # An error is whatever did not end well: that is what `status.type` says of all three.
    states = [
        STATES.index(state) for state in (("error", "cancelled", "interrupted") if status == "error" else (status,))
    ]
    ended = _ended(as_of)
    sql = f"({_in('state', states)} AND {ended.sql}"
    if status == "cancelled":
        return Condition(sql=f"{sql})", parameters=ended.parameters)
    return Condition(
        sql=f"{sql} OR {is_open.sql} AND NOT {in_living})", parameters=ended.parameters + is_open.parameters
    )


def _ended(as_of: AsOf) -> Condition:
    return Condition(sql="ended <= ?", parameters=(as_of.arrived,))


def _in(column: str, numbers: Iterable[int]) -> str:
    """Numbers of ours, written out: there may be more of them than parameters are allowed."""
    return f"{column} IN ({', '.join(map(str, numbers))})"
