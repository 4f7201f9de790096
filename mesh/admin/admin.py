"""The admin map as the rest of the peer sees it: users, keys, settings; read from memory, written durably, watched.

Callers see to it that put and end run on the coordinator; they work without one too. The map is one for all members of
a mesh (mesh.admin.replica, mesh.admin.spread): what is written here is everywhere in a moment, and of two edits that
did not know of each other the later one counts.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gossip.identity import Identity, PeerId, short
from gossip.roster import Roster
from inference.errors import InvalidRequest
from mesh.admin.clock import AHEAD_MS_MAX, MS_MAX, NEVER, Clock
from mesh.admin.errors import ClockWrong, KeyEnded, MapFull, NoSigner
from mesh.admin.map import Plan, horizon, is_for_guests
from mesh.admin.replica import Replica, Superseded, Watcher
from mesh.admin.rows import ENDED, KEY_LENGTH_MAX, BadRow, Row, check_names, line_of, signed
from mesh.admin.storage import Store

MARK_S = 10.0
"""How long a write is named in `version`: a person reads what they wrote within seconds, or is not in a hurry."""
MARKS_MAX = 16
_MARK = re.compile(r"([0-9a-f]{1,14})\.([0-9a-f]{1,4})\.([^,]{1,200})")
VERSION_LENGTH_MAX = MARKS_MAX * (KEY_LENGTH_MAX + 24)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminStatus:
    """For people and metrics. `refused`: rows of others by reason; `clock` and `read_only` are sentences, or empty."""

    rows: int
    bytes: int
    digest: str
    refused: Mapping[str, int]
    not_stored: int
    clock: str
    clock_lead_s: float | None
    read_only: str
    last_sync_age_s: float | None


class Admin:
    """The map of one peer. All methods belong to one loop; `start` before, `close` after."""

    def __init__(
        self,
        *,
        identity: Identity,
        roster: Callable[[], Roster],
        store: Store,
        is_coordinator: Callable[[], bool] = lambda: False,
        superseded: Superseded = lambda row, by: None,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        """`superseded(row, by)`: an edit made here was lost to one that did not know of it, for the audit log.

        It is called on the machine that wrote it, once. Values may be secrets: write down key, field and author.
        """
        self.replica = Replica(
            identity=identity,
            roster=roster,
            store=store,
            is_coordinator=is_coordinator,
            superseded=superseded,
            now_ms=now_ms,
            now_s=asyncio.get_running_loop().time,
        )
        self._marks: deque[tuple[float, str]] = deque(maxlen=MARKS_MAX)
        self._moved = asyncio.Event()
        self.watch(self._wake)

    async def start(self, *, bring: bool = False) -> None:
        """Reads the map from the disk; one of another mesh is archived, with `bring` the own part of it comes along."""
        await self.replica.start(bring=bring)

    async def close(self) -> None:
        """What was begun is finished; then the file is closed."""
        await self.replica.close()

    async def move(self, mesh_id: str, *, bring: bool = False, keep: bool = True) -> None:
        """This peer belongs to another mesh now: its map is empty, or with `bring` (two young meshes became one) has
        what this peer wrote. The old one is archived beside it, or with `keep=False` (`leave`) deleted."""
        await self.replica.move(mesh_id, bring=bring, keep=keep)

    # -- reading

    def get(self, key: str) -> dict[str, Any] | None:
        """The fields of a living key, None for one that is unknown or ended. The values are the caller's to change."""
        fields = self.replica.map.fields(key)
        if not fields or ENDED in fields:
            return None
        return {name: json.loads(row.value) for name, row in fields.items()}

    def is_ended(self, key: str) -> bool:
        """True for what is over for ever."""
        return self.replica.map.is_ended(key)

    def ended(self, key: str) -> dict[str, Any] | None:
        """Why a key is over, `reason`, with the fields that were kept; None for one that is not."""
        row = self.replica.map.fields(key).get(ENDED)
        if row is None:
            return None
        value = json.loads(row.value)
        return value if isinstance(value, dict) else {"reason": value}

    def author(self, key: str, field: str) -> PeerId | None:
        """Who wrote that field last, or answers for who did; None when there is none."""
        row = self.replica.map.fields(key).get(field)
        return row.author if row is not None else None

    def is_vouched(self, key: str) -> bool:
        """True if nobody wrote on it who came by the open door and whom nobody confirmed: such a machine says nothing
        of who administers the mesh."""
        roster = self.replica.roster()
        return all(roster.was_trusted(row.author) for row in self.replica.map.fields(key).values())

    @property
    def vouches(self) -> bool:
        """Whether what this peer writes is vouched for."""
        replica = self.replica
        return replica.roster().may_revoke(replica.identity.peer_id)

    def keys(self, prefix: str) -> list[str]:
        """The living keys that begin so, sorted."""
        return self.replica.map.keys(prefix)

    def changed_at_ms(self, key: str) -> int | None:
        """When the key was last written, or ended; unix ms by the clock of who did."""
        latest = self.replica.map.latest(key)
        return latest.ms if latest is not None else None

    def watch(self, callback: Watcher) -> None:
        """Called with the keys that changed, from here or from elsewhere, when they have. Must not wait."""
        self.replica.watchers.append(callback)

    # -- writing

    async def put(self, key: str, fields: Mapping[str, Any]) -> str:
        """Sets these fields and leaves the others; on the disk, and told to the others, when it returns.

        Gives the version for `reached`. Values are JSON. Raises KeyEnded, NoSigner, MapFull, NotDurable, MapReadOnly,
        ClockWrong, InvalidRequest; then nothing changed.
        """
        if ENDED in fields:
            raise ValueError("keys are ended with `end`")
        return await self.replica.whole(self._write(key, {name: _json(name, v) for name, v in fields.items()}))

    async def end(self, key: str, reason: str, *, keep: Sequence[str] = ()) -> str:
        """Ends the key for ever, here and everywhere, also one that nobody knows (yet). Raises as `put` does, but for
        ClockWrong: what is over is over, whatever any clock says.

        `keep`: fields to remember, as they are now (the name of a revoked key). Ending again changes nothing.
        """
        return await self.replica.whole(self._end(key, reason, keep))

    @property
    def version(self) -> str:
        """What was written here in the last seconds, for `reached` elsewhere; fit for a header. Empty for nothing."""
        now = self.replica.now_s()
        return ",".join(mark for at, mark in self._marks if now - at <= MARK_S)

    async def reached(self, version: str, timeout_s: float, *, teller: str = "") -> bool:
        """True once this map holds what `version` names, or something newer; False after `timeout_s`.

        For a peer that passed a write on: it answers when its own readers see the write. `teller` is who wrote it: it
        is asked when the rows do not come by themselves.
        """
        marks = _marks_in(version)
        if marks is None:
            return False
        if teller and not all(self._has(mark) for mark in marks):
            self.replica.hurry(teller)
        try:
            async with asyncio.timeout(timeout_s):
                while not all(self._has(mark) for mark in marks):
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            return False
        return True

    def status(self) -> AdminStatus:
        """How the map is."""
        replica = self.replica
        lead_ms = replica.skew.lead_ms(replica.now_ms(), replica.now_s())
        return AdminStatus(
            rows=replica.map.rows,
            bytes=replica.map.bytes,
            digest=b"".join(part[:4] for part in replica.map.digest()).hex(),
            refused=dict(replica.refused),
            not_stored=replica.not_stored,
            clock=self._clock_note(),
            clock_lead_s=None if lead_ms is None else lead_ms / 1000,
            read_only=replica.read_only,
            last_sync_age_s=replica.last_sync_age_s,
        )

    # -- how

    async def _end(self, key: str, reason: str, keep: Sequence[str]) -> str:
        kept = {name: value for name, value in (self.get(key) or {}).items() if name in keep}
        return await self._write(key, {ENDED: _json(ENDED, {"reason": reason, **kept} if kept else reason)})

    async def _write(self, key: str, values: Mapping[str, bytes]) -> str:
        replica = self.replica
        async with replica.lock:
            replica.settle_clock()
            rows = self._rows_of(key, values)
            await replica.commit(self._judged(rows))
            clock = replica.map.latest(key) or NEVER
        mark = f"{clock.ms:x}.{clock.count:x}.{key}"
        if rows:
            self._marks.append((replica.now_s(), mark))
            await replica.push(rows)
        return mark

    def _rows_of(self, key: str, values: Mapping[str, bytes]) -> list[Row]:
        """Rows of this peer for what differs from what is there."""
        replica, signers = self.replica, self.replica.signers()
        if not replica.is_signer:
            raise NoSigner("this machine is a guest of its mesh: it changes nothing until a member trusts it")
        held = replica.map.fields(key)
        if ENDED in held:
            if ENDED in values:
                return []
            raise KeyEnded(f"{key} was ended and does not come back: make a new one")
        changed = {
            name: value
            for name, value in values.items()
            if name not in held or held[name].value != value or held[name].author not in signers
        }
        if not changed:
            return []
        clock = self._date(key, held, is_ending=ENDED in values)
        lines = {name: line_of(held.values() if name == ENDED else _only(held.get(name))) for name in changed}
        try:
            check_names(key, changed)
            return [
                signed(
                    replica.identity,
                    replica.map.mesh_id,
                    key=key,
                    field=name,
                    value=value,
                    clock=clock,
                    over=lines[name][0],
                    before=lines[name][1],
                )
                for name, value in changed.items()
            ]
        except BadRow as error:
            raise InvalidRequest(str(error)) from None

    def _date(self, key: str, held: Mapping[str, Row], *, is_ending: bool) -> Clock:
        """When what is written now was written. Raises ClockWrong when the others would not take it."""
        replica = self.replica
        now_ms, now_s = replica.now_ms(), replica.now_s()
        lead_ms = replica.skew.lead_ms(now_ms, now_s)
        if is_ending and lead_ms is not None and abs(lead_ms) > AHEAD_MS_MAX:
            # It counts in any case; but endings are collected by their dates, so this one gets the others', unless it
            # would be collected here at once: a machine whose clock was never set must not keep keys from ending.
            others_ms = now_ms - lead_ms
            if others_ms >= horizon(now_ms):
                return Clock(min(others_ms, MS_MAX), 0)
        if not is_ending:
            if replica.skew.is_refused(now_ms, now_s):
                raise ClockWrong(self._clock_note())
            others = [row.clock for row in held.values() if row.author != replica.identity.peer_id]
            hidden = max([replica.unread(key), *(clock for clock in others if clock.is_ahead(now_ms))])
            if hidden != NEVER and not replica.trusts_its_clock():
                raise ClockWrong(
                    f"{key} was written by a machine whose clock is {(hidden.ms - now_ms) / 1000:.0f} s ahead of this"
                    " one's: one of the two clocks is wrong. Set it, then try again"
                )
        return replica.clock.tick(now_ms)

    def _judged(self, rows: Sequence[Row]) -> Plan:
        replica = self.replica
        plan = replica.map.plan(rows, replica.signers(), replica.now_ms())
        for row, refusal in plan.refused:
            if refusal == "full":
                raise MapFull(
                    f"the admin map is full ({replica.map.rows:,} rows, {replica.map.bytes:,} bytes): delete what"
                    " nobody needs, such as old agents"
                )
            raise ClockWrong(
                f"{row.key} has an entry that is newer than this machine's clock ({refusal}): set the clock"
            )
        return plan

    def _clock_note(self) -> str:
        replica = self.replica
        leads = replica.skew.leads_ms(replica.now_ms(), replica.now_s())
        far = {peer: lead for peer, lead in leads.items() if abs(lead) > AHEAD_MS_MAX}
        if not far:
            return ""
        roster = replica.roster()
        names = ", ".join(sorted(roster.name_of(peer) or short(peer) for peer in far)[:5])
        if 2 * len(far) < len(leads) or (len(far) < 2 and len(leads) > 1):
            return f"the clock of {names} differs from this machine's by more than a minute: set it there"
        lead_s = round((replica.skew.lead_ms(replica.now_ms(), replica.now_s()) or 0) / 1000)
        way = "ahead of" if lead_s > 0 else "behind"
        return (
            f"the clock of this machine is {abs(lead_s)} s {way} that of {names}: what is written on a machine whose"
            " clock is ahead is refused by the others. Set the clock (a time server does it by itself), then try again"
        )

    def _has(self, mark: tuple[Clock, str]) -> bool:
        clock, key = mark
        replica = self.replica
        is_hidden = not replica.is_signer and not is_for_guests(key, "")
        return is_hidden or self.is_ended(key) or (replica.map.latest(key) or NEVER) >= clock

    def _wake(self, keys: frozenset[str]) -> None:
        self._moved.set()


def _only(row: Row | None) -> tuple[Row, ...]:
    return () if row is None else (row,)


def _marks_in(version: str) -> list[tuple[Clock, str]] | None:
    """What a version names, None for what is none."""
    if len(version) > VERSION_LENGTH_MAX:
        return None
    found = [_MARK.fullmatch(part) for part in version.split(",")] if version else []
    marks = [(Clock(int(m[1], 16), int(m[2], 16)), m[3]) for m in found if m is not None]
    return marks if len(marks) == len(found) and all(clock.ms <= MS_MAX for clock, _ in marks) else None


def _json(name: str, value: object) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name} cannot be kept: {error}") from None
