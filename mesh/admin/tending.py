"""Rows that are written anew without anybody having edited them: after a wrong clock, a move, a long absence. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from gossip.identity import Identity
from mesh.admin.clock import Clock, HybridClock
from mesh.admin.map import AdminMap
from mesh.admin.rows import ENDED, Row, line_of, signed

OF_THE_MESH = frozenset({"setting", "mesh"})
"""Spaces that say how a mesh is: who moves to another one does not overrule it."""


def redated(rows: Iterable[Row], identity: Identity, mesh_id: str, clock: HybridClock, now_ms: int) -> list[Row]:
    """This peer's own rows that are dated ahead of a clock that is right now, with dates that the others take.

    Endings stay: they count whatever their date.
    """
    ahead = [row for row in rows if _is_mine(row, identity) and row.field != ENDED and row.clock.is_ahead(now_ms)]
    return [_again(row, identity, mesh_id, clock.tick(now_ms)) for row in sorted(ahead, key=_age)]


def brought(rows: Iterable[Row], identity: Identity, mesh_id: str, clock: HybridClock, now_ms: int) -> list[Row]:
    """What this peer wrote in its old mesh, signed for this one.

    Dated now, in the old order; but settings keep their dates, so that of two meshes' the newer one counts.
    """
    mine = sorted((row for row in rows if _is_mine(row, identity)), key=_age)
    return [
        _again(row, identity, mesh_id, row.clock if _is_of_the_mesh(row) else clock.tick(now_ms))
        for row in mine
        if not (_is_of_the_mesh(row) and row.clock.is_ahead(now_ms))
    ]


def made_since(rows: AdminMap, last_synced_ms: int) -> list[Row]:
    """The rows of living keys that were made after this map was last compared with another.

    A map that is too old to be merged keeps these: no ending of them can have been forgotten by the others.
    """
    return [
        row
        for key in rows.keys("")
        if all(row.clock.ms > last_synced_ms for row in rows.fields(key).values())
        for row in rows.fields(key).values()
    ]


def _again(row: Row, identity: Identity, mesh_id: str, clock: Clock) -> Row:
    over, before = line_of([row])
    return signed(
        identity, mesh_id, key=row.key, field=row.field, value=row.value, clock=clock, over=over, before=before
    )


def _is_mine(row: Row, identity: Identity) -> bool:
    return row.author == identity.peer_id


def _is_of_the_mesh(row: Row) -> bool:
    return row.key.partition("/")[0] in OF_THE_MESH


def _age(row: Row) -> tuple[Clock, str, str]:
    return row.clock, row.key, row.field
