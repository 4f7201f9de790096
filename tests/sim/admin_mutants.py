"""Mistakes planted in the admin map, one decision each: tests.sim.admin must notice every one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

from gossip.identity import Identity
from mesh.admin import admin, exchange, replica, rounds, rows, spread
from mesh.admin import map as map_
from mesh.admin.clock import NEVER, Clock, HybridClock
from mesh.admin.map import AdminMap, Plan
from mesh.admin.replica import Replica, _key_of
from mesh.admin.rows import ENDED, Row
from mesh.admin.skew import Skew
from tests.sim.history import Mutant


def _returns(value: Any) -> Callable[[Any], Any]:
    """Instead of a function, or of a constant."""
    return lambda real: (lambda *given, **named: value) if callable(real) else value


def _does_nothing(real: Callable[..., Any]) -> Callable[..., Any]:
    async def nothing(*given: Any, **named: Any) -> list[Row]:
        return []

    return nothing


def _later_edits_revive(real: Callable[..., Any]) -> Callable[..., Any]:
    def refusal(self: AdminMap, row: Row, fields: dict[str, Row], *given: Any) -> Any:
        ending = fields.get(ENDED)
        if ending is not None and row.field != ENDED and row.clock > ending.clock:
            del fields[ENDED]
        return real(self, row, fields, *given)

    return refusal


def _older_endings_lose(real: Callable[..., Any]) -> Callable[..., Any]:
    def refusal(self: AdminMap, row: Row, fields: dict[str, Row], *given: Any) -> Any:
        if row.field == ENDED and any(row.clock < held.clock for held in fields.values()):
            return "older"
        return real(self, row, fields, *given)

    return refusal


def _first_come_first_served(real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda row, signers: (row.clock,)


def _larger_value_wins(real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda row, signers: (row.value, *real(row, signers))


def _any_mesh(real: Callable[..., bytes]) -> Callable[..., bytes]:
    return lambda row, mesh_id: real(row, "")


def _guests_sign(real: Callable[..., Any]) -> Callable[..., Any]:
    def signers(self: Replica) -> dict[str, bytes]:
        return {peer: _key_of(member.certificate) for peer, member in self.roster().members.items()}

    return signers


def _signers_for_ever(real: Callable[..., Any]) -> Callable[..., Any]:
    def signers(self: Replica) -> Any:
        _, known = self._signers
        found = {**known, **real(self)}
        self._signers = self.roster(), found
        return found

    return signers


def _hashes_names(real: Callable[..., bytes]) -> Callable[..., bytes]:
    return lambda row: real(dataclasses.replace(row, value=b"", clock=NEVER, over=NEVER, author="", signature=b""))


def _adopts_as_new(real: Callable[..., list[Row]]) -> Callable[..., list[Row]]:
    def adopted(rows: Sequence[Row], identity: Identity, mesh_id: str) -> list[Row]:
        later = [dataclasses.replace(row, clock=Clock(row.clock.ms + 1, 0)) for row in rows]
        return real(later, identity, mesh_id)

    return adopted


def _forgets_that_it_collected(real: Callable[..., Any]) -> Callable[..., Any]:
    async def collect(self: Replica) -> None:
        horizon_ms = self.horizon_ms
        await real(self)
        self.horizon_ms = horizon_ms

    return collect


def _takes_into_memory(real: Callable[..., Any]) -> Callable[..., Any]:
    async def take(self: Replica, wire: Sequence[bytes], teller: str) -> Any:
        store, self._store = self._store, mock.AsyncMock()
        try:
            return await real(self, wire, teller)
        finally:
            self._store = store

    return take


def _fails_with_the_disk(real: Callable[..., Any]) -> Callable[..., Any]:
    def unstored(self: Replica, error: Exception) -> None:
        raise error

    return unstored


def _tells_everybody(real: Callable[..., Any]) -> Callable[..., Any]:
    def tell_lost(self: Replica, plan: Plan) -> None:
        for row, by in plan.lost:
            self._superseded(row, by)

    return tell_lost


def _tells_twice(real: Callable[..., Any]) -> Callable[..., Any]:
    def tell_lost(self: Replica, plan: Plan) -> None:
        real(self, plan)
        real(self, plan)

    return tell_lost


def _had_seen_nothing(real: Callable[..., Row]) -> Callable[..., Row]:
    return lambda *given, **named: real(*given, **{**named, "over": NEVER, "before": ()})


def _remembers_one_edit(real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda rows: (real(rows)[0], ())


def _brings_no_endings(real: Callable[..., Any]) -> Callable[..., Any]:
    return _does_nothing(real)


def _copies_stop_at_departed(real: Any) -> Any:
    return rounds.IN_THE_WAY


def _hears_any_clock(real: Callable[..., int]) -> Callable[..., int]:
    return lambda self, horizon_ms: horizon_ms


MUTANTS = (
    Mutant(what="a later edit revives what was ended", owner=AdminMap, name="_refusal", make=_later_edits_revive),
    Mutant(what="an ending loses to a later edit", owner=AdminMap, name="_refusal", make=_older_endings_lose),
    Mutant(what="of two edits at once the first to come wins", owner=map_, name="_rank", make=_first_come_first_served),
    Mutant(what="the larger value wins, not the later", owner=map_, name="_rank", make=_larger_value_wins),
    Mutant(what="what is heard does not move the clock", owner=HybridClock, name="heard", make=_returns(None)),
    Mutant(what="signatures are not checked", owner=map_, name="is_signed", make=_returns(True)),
    Mutant(what="the mesh is not signed", owner=rows, name="_signed_bytes", make=_any_mesh),
    Mutant(what="rows of guests count", owner=Replica, name="signers", make=_guests_sign),
    Mutant(what="rows of the revoked count", owner=Replica, name="signers", make=_signers_for_ever),
    Mutant(what="rows dated ahead are taken", owner=Clock, name="is_ahead", make=_returns(False)),
    Mutant(what="digests look at names alone", owner=map_, name="hash_of", make=_hashes_names),
    Mutant(what="nobody answers for the departed", owner=Replica, name="_adopt", make=_does_nothing),
    Mutant(what="what the departed wrote is dated anew", owner=replica, name="adopted", make=_adopts_as_new),
    Mutant(what="rows of the departed are never dropped", owner=Replica, name="_drop_orphans", make=_does_nothing),
    Mutant(what="endings of keys are collected", owner=map_, name="FOR_EVER", make=_returns(frozenset())),
    Mutant(what="what was forgotten is brought back", owner=Replica, name="_collect", make=_forgets_that_it_collected),
    Mutant(what="a copy forgets what was ended", owner=Replica, name="_endings", make=_brings_no_endings),
    Mutant(
        what="a copy stops at the departed", owner=spread, name="IN_THE_WAY_OF_A_COPY", make=_copies_stop_at_departed
    ),
    Mutant(what="a lie about what was collected is believed", owner=Replica, name="believed", make=_hears_any_clock),
    Mutant(what="what is heard is not written to the disk", owner=Replica, name="_take", make=_takes_into_memory),
    Mutant(what="a full disk keeps news out", owner=Replica, name="_unstored", make=_fails_with_the_disk),
    Mutant(what="what a wrong clock dated stays so", owner=Replica, name="_redate", make=_does_nothing),
    Mutant(what="a clock that was ahead stays so", owner=Replica, name="settle_clock", make=_returns(None)),
    Mutant(what="guests are told what is closed to them", owner=spread, name="is_for_guests", make=_returns(True)),
    Mutant(what="guests may ask for everything", owner=exchange, name="is_for_guests", make=_returns(True)),
    Mutant(what="who is out has a say in what time it is", owner=Skew, name="keep", make=_returns(None)),
    Mutant(what="an ending gets any date that others tell", owner=admin, name="horizon", make=_returns(0)),
    Mutant(what="lost edits are not told", owner=Replica, name="_tell_lost", make=_returns(None)),
    Mutant(what="lost edits are told everywhere", owner=Replica, name="_tell_lost", make=_tells_everybody),
    Mutant(what="lost edits are told twice", owner=Replica, name="_tell_lost", make=_tells_twice),
    Mutant(what="edits do not say what they had seen", owner=admin, name="signed", make=_had_seen_nothing),
    Mutant(what="edits say the last that they had seen", owner=admin, name="line_of", make=_remembers_one_edit),
)
