"""The admin map as the rest of the peer sees it: read from memory, written durably, watched.

    put, end -> signed rows -> disk -> memory -> watchers -> other members
    rows of others -> judged -> disk -> memory -> watchers

All changes go one after another, so that two writers here cannot pass each other. Callers see to it that put and end
run on the coordinator; they work without one too. How rows travel is mesh.admin.spread's, which row wins
mesh.admin.map's.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from gossip.identity import Identity, public_bytes
from gossip.roster import Roster
from inference.errors import InvalidRequest
from mesh.admin.clock import NEVER, HybridClock, RefusedClock
from mesh.admin.errors import KeyEnded, MapFull, NoSigner
from mesh.admin.map import AdminMap, Plan, Signers
from mesh.admin.rows import ENDED, BadRow, Row, check_names, signed
from mesh.admin.storage import Store

log = logging.getLogger(__name__)

_T = TypeVar("_T")
Watcher = Callable[[frozenset[str]], None]
Push = Callable[[Sequence[Row]], Awaitable[None]]


def _wall_ms() -> int:
    return int(time.time() * 1000)


class Admin:
    """The map of one peer. All methods belong to one loop; `start` before, `close` after."""

    def __init__(
        self,
        *,
        identity: Identity,
        roster: Callable[[], Roster],
        store: Store,
        now_ms: Callable[[], int] = _wall_ms,
    ) -> None:
        self._identity = identity
        self._roster = roster
        self._store = store
        self._now_ms = now_ms
        self._map = AdminMap(roster().mesh_id)
        self._clock = HybridClock()
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._watchers: list[Watcher] = []
        self._signers_of: tuple[Roster | None, Signers] = (None, {})
        self._push: Push | None = None

    async def start(self) -> None:
        """Reads the map from the disk."""
        loaded = await self._store.load()
        if loaded.mesh_id != self._map.mesh_id:
            await self._store.begin(self._map.mesh_id, archive="")
        else:
            self._map.apply(self._map.change(self._map.plan_with(loaded.rows)))
            self._heard(loaded.rows)

    async def close(self) -> None:
        """What was begun is finished; then the file is closed."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._store.close()

    # -- reading

    def get(self, key: str) -> dict[str, Any] | None:
        """The fields of a living key, None for one that is unknown or ended. The values are the caller's to change."""
        fields = self._map.fields(key)
        if not fields or ENDED in fields:
            return None
        return {name: json.loads(row.value) for name, row in fields.items()}

    def is_ended(self, key: str) -> bool:
        """True for what is over for ever."""
        return self._map.is_ended(key)

    def ended(self, key: str) -> dict[str, Any] | None:
        """Why a key is over, `reason`, with the fields that were kept; None for one that is not."""
        row = self._map.fields(key).get(ENDED)
        if row is None:
            return None
        value = json.loads(row.value)
        return value if isinstance(value, dict) else {"reason": value}

    def keys(self, prefix: str) -> list[str]:
        """The living keys that begin so, sorted."""
        return self._map.keys(prefix)

    def watch(self, callback: Watcher) -> None:
        """Called with the keys that changed, from here or from elsewhere, once it is on the disk. Must not wait."""
        self._watchers.append(callback)

    # -- writing

    async def put(self, key: str, fields: Mapping[str, Any]) -> str:
        """Sets these fields and leaves the others; on the disk, and told to the others, when it returns.

        Gives the version for `reached`. Values are JSON. Raises KeyEnded, NoSigner, MapFull, NotDurable, MapReadOnly,
        ClockWrong, InvalidRequest; then nothing changed.
        """
        if ENDED in fields:
            raise ValueError("keys are ended with `end`")
        return await self._whole(self._write(key, {name: _json(name, value) for name, value in fields.items()}))

    async def end(self, key: str, reason: str, *, keep: Sequence[str] = ()) -> str:
        """Ends the key for ever, here and everywhere, also one that nobody knows (yet). Raises as `put` does.

        `keep`: fields to remember, as they are now (the name of a revoked key). Ending again changes nothing.
        """
        kept = {name: value for name, value in (self.get(key) or {}).items() if name in keep}
        value: object = {"reason": reason, **kept} if kept else reason
        return await self._whole(self._write(key, {ENDED: _json(ENDED, value)}))

    # -- how

    async def _write(self, key: str, values: Mapping[str, bytes]) -> str:
        async with self._lock:
            rows = self._rows_of(key, values)
            if rows:
                await self._commit(self._own(rows))
        if rows and self._push is not None:
            await self._push(rows)
        return ""

    def _rows_of(self, key: str, values: Mapping[str, bytes]) -> list[Row]:
        """Rows of this peer for what differs from what is there."""
        signers = self._signers()
        if self._identity.peer_id not in signers:
            raise NoSigner("this machine is a guest of its mesh: it changes nothing until a member trusts it")
        held = self._map.fields(key)
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
        before = max((row.clock for row in held.values()), default=NEVER)
        clock = self._clock.tick(self._now_ms())
        try:
            check_names(key, changed)
            return [
                signed(
                    self._identity,
                    self._map.mesh_id,
                    key=key,
                    field=name,
                    value=value,
                    clock=clock,
                    over=before if name == ENDED else held[name].clock if name in held else NEVER,
                )
                for name, value in changed.items()
            ]
        except BadRow as error:
            raise InvalidRequest(str(error)) from None

    def _own(self, rows: Sequence[Row]) -> Plan:
        plan = self._map.plan(rows, self._signers(), self._now_ms())
        for row, refusal in plan.refused:
            if refusal == "full":
                raise MapFull(
                    f"the admin map is full ({self._map.rows} rows, {self._map.bytes} bytes): delete what nobody needs,"
                    " such as old keys and agents"
                )
            raise AssertionError(f"own row of {row.key} refused: {refusal}")
        return plan

    async def _commit(self, plan: Plan) -> None:
        """To the disk, then to memory. With the lock held."""
        change = self._map.change(plan)
        if not change.keys:
            return
        await self._store.write(change.stored, change.gone)
        self._map.apply(change)
        self._heard(change.stored)
        for watcher in self._watchers:
            try:
                watcher(change.keys)
            except Exception:  # border: what watches must not keep a change from the others
                log.exception("a watcher of the admin map failed")

    def _heard(self, rows: Sequence[Row]) -> None:
        now_ms = self._now_ms()
        for row in rows:
            try:
                self._clock.heard(row.clock, now_ms)
            except RefusedClock:
                continue  # an ending counts whatever its clock says, and moves ours no more than another row would

    def _signers(self) -> Signers:
        roster = self._roster()
        known, signers = self._signers_of
        if known is not roster:
            signers = {p: _key_of(m.certificate) for p, m in roster.members.items() if m.state == "active"}
            self._signers_of = roster, signers
        return signers

    async def _whole(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Not cut in half when the caller goes away: the disk and memory would differ."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)


def _json(name: str, value: object) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name} cannot be kept: {error}") from None


def _key_of(certificate: bytes) -> bytes:
    key = x509.load_der_x509_certificate(certificate).public_key()
    assert isinstance(key, Ed25519PublicKey), "the roster takes no other"
    return public_bytes(key)
