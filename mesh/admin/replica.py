"""One peer's copy of the admin map: on the disk and in memory, changed by one at a time.

    plan -> disk -> memory -> watchers          what this peer writes
    rows of others -> judged -> the same        but a full disk does not keep a revocation from counting here

It also does what nobody asks for: rows of departed members get new signatures, own rows that a wrong clock dated get
right dates, endings of long ago are collected. How rows travel is mesh.admin.spread's, which row wins mesh.admin.map's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from gossip.identity import Identity, PeerId, public_bytes
from gossip.roster import Roster
from mesh.admin import tending
from mesh.admin.clock import AHEAD_MS_MAX, NEVER, Clock, HybridClock, RefusedClock
from mesh.admin.errors import AdminError
from mesh.admin.map import BUCKETS, DAY_MS, AdminMap, Plan, Signers, horizon
from mesh.admin.messages import NAME_BYTES
from mesh.admin.rows import ENDED, BadRow, Row, adopted, hash_of, read
from mesh.admin.skew import Skew
from mesh.admin.storage import Store

log = logging.getLogger(__name__)

SLICE = 20
"""Rows whose signatures are checked or made before others get their turn: 2 ms."""
ORPHAN_S = 60.0
"""Rows of a departed member that nobody adopts: an election and a few comparisons pass in that time."""
NOTE_S = 3600.0
"""How far it was compared is written this often at most: what waits for 30 days needs no more."""
COLLECT_SKEW_MS = 5 * 60_000
"""Nothing is collected by a clock further than that from the others'."""
SANE_MS = 1_767_225_600_000
"""2026: a clock before that was never set."""
UNREAD_MAX = 1000
OF_THE_TRUSTED = frozenset({"key", "mesh", "user"})
"""Spaces that say who may do what. Of a machine that came by the door and left again unconfirmed they are not kept."""
_FAULTS = frozenset({"malformed", "author", "signature", "clock", "full"})

_T = TypeVar("_T")
Watcher = Callable[[frozenset[str]], None]
Push = Callable[[Sequence[Row]], Coroutine[Any, Any, None]]
Superseded = Callable[[Row, Row], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What became of rows from elsewhere. `refused`: how many for which reason; `names` of those not taken in."""

    accepted: int
    refused: Mapping[str, int]
    names: frozenset[bytes]


class Replica:
    """`start` first, `close` last. Whoever changes it holds `lock`, inside `whole`."""

    def __init__(
        self,
        *,
        identity: Identity,
        roster: Callable[[], Roster],
        store: Store,
        is_coordinator: Callable[[], bool],
        superseded: Superseded,
        now_ms: Callable[[], int],
        now_s: Callable[[], float],
    ) -> None:
        """`now_ms` is wall time, `now_s` monotonic."""
        self.identity = identity
        self.roster = roster
        self.now_ms = now_ms
        self.now_s = now_s
        self.map = AdminMap(roster().mesh_id)
        self.clock = HybridClock()
        self.skew = Skew()
        self.lock = asyncio.Lock()
        self.refused: Counter[str] = Counter()
        self.not_stored = 0
        self.read_only = ""
        self.last_synced_ms = 0
        self.horizon_ms = 0
        self.push: Push = _to_nobody
        self.hurry: Callable[[PeerId], None] = lambda peer: None
        self.watchers: list[Watcher] = []
        self._store = store
        self._is_coordinator = is_coordinator
        self._superseded = superseded
        self._tasks: set[asyncio.Task[Any]] = set()
        self._signers: tuple[Roster | None, Signers] = (None, {})
        self._unread: dict[str, Clock] = {}
        self._must_redate = True
        self._orphans_since: float | None = None
        self._synced_at: float | None = None
        self._noted_at = now_s()
        self._collected_ms = 0

    async def start(self, *, bring: bool = False) -> None:
        """Reads the disk. A map of another mesh is archived; with `bring` what this peer wrote comes along."""
        loaded = await self._store.load()
        self.read_only = loaded.read_only
        self.last_synced_ms, self.horizon_ms = loaded.last_synced_ms, loaded.horizon_ms
        mesh_id = self.map.mesh_id
        if loaded.mesh_id:
            self.map = AdminMap(loaded.mesh_id)
            self.map.apply(self.map.change(self.map.plan_with(loaded.rows)))
            self.hear(loaded.rows)
        if loaded.mesh_id != mesh_id:
            await self.move(mesh_id, bring=bring, keep=True)

    async def close(self) -> None:
        """What was begun is finished; then the file is closed."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self._note()
        except AdminError as error:
            self._unstored(error)
        await self._store.close()

    async def whole(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Not cut in half when who waits for it goes away: the disk and memory would differ."""
        return await asyncio.shield(self._spawn(work))

    def _spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- who

    def signers(self) -> Signers:
        """The members whose rows count."""
        roster = self.roster()
        known, signers = self._signers
        if known is not roster:
            signers = {peer: _key_of(m.certificate) for peer, m in roster.members.items() if m.state == "active"}
            self._signers = roster, signers
        return signers

    @property
    def is_signer(self) -> bool:
        """False for a guest."""
        return self.identity.peer_id in self.signers()

    # -- changes

    async def commit(self, plan: Plan) -> None:
        """To the disk, then to memory. Raises NotDurable or MapReadOnly; then nothing changed."""
        change = self.map.change(plan)
        if change.keys:
            await self._store.write(change.stored, change.gone)
            self.map.apply(change)
            self._changed(change.stored, change.keys)

    async def take(self, wire: Sequence[bytes], teller: PeerId) -> Taken:
        """Rows of other members, told by `teller`: each is judged by itself, whatever it holds."""
        return await self.whole(self._take(wire, teller))

    async def _take(self, wire: Sequence[bytes], teller: PeerId) -> Taken:
        async with self.lock:
            self.settle_clock()
            redated = await self._redate()  # before anything is compared with what a wrong clock dated
            plan, bad = Plan(), 0
            for at in range(0, len(wire), SLICE):
                rows: list[Row] = []
                for data in wire[at : at + SLICE]:
                    try:
                        rows.append(read(data))
                    except BadRow:
                        bad += 1
                trusts = self.trusts_its_clock()
                self.map.plan(rows, self.signers(), self.now_ms(), plan, is_clock_right=trusts)
                await asyncio.sleep(0)
            change = self.map.change(plan)
            if change.keys:
                try:
                    await self._store.write(change.stored, change.gone)
                except AdminError as error:
                    # It counts here all the same, and is asked for again after a restart.
                    self._unstored(error)
                self.map.apply(change)
                self._changed(change.stored, change.keys)
        if redated:
            self._spawn(self.push(redated))
        self._tell_lost(plan)
        refused = Counter(reason for _, reason in plan.refused) + Counter(malformed=bad)
        self._note_refused(plan, refused, teller)
        names = frozenset(hash_of(row)[:NAME_BYTES] for row, _ in plan.refused)
        return Taken(accepted=len(plan.accepted), refused=refused, names=names)

    async def replace(self, fresh: AdminMap, horizon_ms: int) -> None:
        """Another member's map instead of this one, which is too old to be merged. What was made and ended is kept."""
        await self.whole(self._replace(fresh, horizon_ms))

    async def _replace(self, fresh: AdminMap, horizon_ms: int) -> None:
        async with self.lock:
            if fresh.mesh_id != self.map.mesh_id:
                return
            self.settle_clock()
            await self._redate()  # what a wrong clock dated would not be taken over
            kept = tending.made_since(self.map, self.last_synced_ms)
            kept += await self._endings()
            fresh.merge(kept, self.signers(), self.now_ms())
            log.warning(
                "this machine was away for too long: its admin map was archived, and the others' is used",
                extra={"rows_before": self.map.rows, "rows": fresh.rows},
            )
            await self._begin(fresh, keep=True)
            self.horizon_ms = horizon_ms
            await self._note()

    async def _endings(self) -> list[Row]:
        """All that is here: what this machine ended while it was away is over, whatever the others' map says."""
        endings = [row for row in self.map.all_rows() if row.field == ENDED]
        orphans = [row for row in self._orphans()[0] if row.field == ENDED] if self.is_signer else []
        for at in range(0, len(orphans), SLICE):
            endings += adopted(orphans[at : at + SLICE], self.identity, self.map.mesh_id)
            await asyncio.sleep(0)
        return endings

    async def move(self, mesh_id: str, *, bring: bool, keep: bool) -> None:
        """To the map of another mesh: an empty one, or with `bring` with what this peer wrote, signed anew.

        The old one is archived if `keep`, else forgotten.
        """
        await self.whole(self._move(mesh_id, bring, keep))

    async def _move(self, mesh_id: str, bring: bool, keep: bool) -> None:
        async with self.lock:
            if mesh_id == self.map.mesh_id and self.last_synced_ms:
                return
            rows: list[Row] = []
            if bring and self.is_signer:
                self.settle_clock()
                rows = tending.brought(self.map.all_rows(), self.identity, mesh_id, self.clock, self.now_ms())
            fresh = AdminMap(mesh_id)
            fresh.apply(fresh.change(fresh.plan_with(rows)))
            await self._begin(fresh, keep=keep)
            self.horizon_ms = 0
            self._unread.clear()
        if rows:
            await self.push(rows)

    async def _begin(self, fresh: AdminMap, *, keep: bool) -> None:
        now_ms, old = self.mesh_ms(), self.map
        archive = f"admin-{old.mesh_id[:8]}-{time.strftime('%Y-%m-%d', time.gmtime(now_ms / 1000))}.db"
        rows = list(fresh.all_rows())
        try:
            await self._store.begin(
                fresh.mesh_id, rows, archive=archive if keep and old.rows else "", last_synced_ms=now_ms
            )
        except AdminError as error:
            self._unstored(error)
        self.map, self.last_synced_ms = fresh, now_ms
        self._changed(rows, frozenset(row.key for each in (old, fresh) for row in each.all_rows()))

    # -- clocks

    def hear(self, rows: Iterable[Row]) -> None:
        """What is written here from now on is later than these rows."""
        now_ms = self.now_ms()
        for row in rows:
            try:
                self.clock.heard(row.clock, now_ms)
            except RefusedClock:
                continue  # an ending counts whatever its clock says, but it moves no clock

    def unread(self, key: str) -> Clock:
        """The newest row of this key that was refused for its clock, as long as nothing as new is here."""
        if len(self._unread) >= UNREAD_MAX:
            return max(self._unread.values())  # of which keys is not known any more
        clock = self._unread.get(key, NEVER)
        return clock if clock > (self.map.latest(key) or NEVER) else NEVER

    def trusts_its_clock(self, within_ms: int = AHEAD_MS_MAX) -> bool:
        """True if the others' clocks show about the same; alone, if it was ever set."""
        lead = self.skew.lead_ms(self.now_ms(), self.now_s())
        if lead is not None:
            return abs(lead) <= within_ms
        return len(self.roster().members) <= 1 and self.now_ms() >= SANE_MS

    def mesh_ms(self) -> int:
        """Wall time by the others' clocks, when this one is far from them."""
        now_ms, now_s = self.now_ms(), self.now_s()
        others_ms = self.skew.others_ms(now_ms, now_s)
        return others_ms if abs(now_ms - others_ms) > AHEAD_MS_MAX else now_ms

    def settle_clock(self) -> None:
        """The wall clock was ahead and is right again: what is written now must not be dated ahead for ever."""
        now_ms = self.now_ms()
        if self.clock.last.is_ahead(now_ms):
            log.warning("this machine's clock was set back; what was dated ahead is dated anew")
            self._must_redate = True
            clocks = (row.clock for row in self.map.all_rows() if not row.clock.is_ahead(now_ms))
            self.clock = HybridClock(max(clocks, default=NEVER))

    # -- upkeep

    def synced(self, horizon_ms: int) -> None:
        """This map holds all that another signer's did, just now."""
        self._synced_at = self.now_s()
        self.last_synced_ms = max(self.last_synced_ms, self.mesh_ms())
        self.horizon_ms = max(self.horizon_ms, self.believed(horizon_ms))

    def is_stale(self, horizon_ms: int) -> bool:
        """True if a member that collected endings up to there forgot some that this map may not have seen."""
        return self.last_synced_ms < self.believed(horizon_ms)

    def believed(self, horizon_ms: int) -> int:
        """What another member says of endings that it has collected, but no more than both clocks allow, this one and
        the others': who believed a later one would take nothing from anybody any more."""
        return min(horizon_ms, horizon(min(self.now_ms(), self.mesh_ms())))

    def _settle_times(self) -> None:
        """What a wrong clock, here or elsewhere, made of them must not stay: no comparison was in the future."""
        self.skew.keep(self.roster().members)
        self.horizon_ms = self.believed(self.horizon_ms)
        latest_ms = max(self.now_ms(), self.mesh_ms())
        if self.last_synced_ms > latest_ms + DAY_MS:
            self.last_synced_ms = latest_ms

    @property
    def last_sync_age_s(self) -> float | None:
        """Since it was last equal to another signer's; None if not yet in this life."""
        return None if self._synced_at is None else self.now_s() - self._synced_at

    async def tend(self) -> None:
        """What is due; called every few seconds, and when the roster changed."""
        await self.whole(self._tend())

    async def _tend(self) -> None:
        rows: list[Row] = []
        async with self.lock:
            self.settle_clock()
            self._settle_times()
            try:
                await self._drop_fallen()
                if self.is_signer:
                    rows += await self._redate()
                    rows += await self._adopt()
                elif self.identity.peer_id in self.roster().members:
                    closed = [row for _, row in self.map.hashes(range(BUCKETS // 2, BUCKETS))]
                    await self.commit(self.map.plan_without(closed))  # a guest is not to have them
                await self._drop_orphans()
                await self._collect()
                if self.now_s() - self._noted_at > NOTE_S:
                    await self._note()
            except AdminError as error:
                self._unstored(error)
        if rows:
            await self.push(rows)

    async def _redate(self) -> list[Row]:
        if not self._must_redate or not self.trusts_its_clock():
            return []
        rows = tending.redated(self.map.all_rows(), self.identity, self.map.mesh_id, self.clock, self.now_ms())
        try:
            await self.commit(self.map.plan_with(rows if self.is_signer else ()))
        except AdminError as error:
            self._unstored(error)
            return []
        self._must_redate = False
        return rows if self.is_signer else []

    async def _adopt(self) -> list[Row]:
        """The coordinator answers for what departed members wrote. Others do so for endings, which nobody may lose."""
        orphans, _ = self._orphans()
        if orphans and not self._is_coordinator():
            is_late = self._orphans_for_s() >= ORPHAN_S
            orphans = [row for row in orphans if row.field == ENDED] if is_late else []
        rows: list[Row] = []
        for at in range(0, len(orphans), SLICE):
            rows += adopted(orphans[at : at + SLICE], self.identity, self.map.mesh_id)
            await asyncio.sleep(0)
        await self.commit(self.map.plan_with(rows))
        return rows

    async def _drop_fallen(self) -> None:
        _, fallen = self._orphans()
        if fallen:
            log.warning("rows of a machine that nobody confirmed are dropped", extra={"rows": len(fallen)})
            await self.commit(self.map.plan_without(fallen))

    async def _drop_orphans(self) -> None:
        """What nobody adopted although others were asked: its author is out, and who threw it out did not know it."""
        for_s, age_s = self._orphans_for_s(), self.last_sync_age_s
        if for_s < ORPHAN_S or age_s is None or age_s > for_s - ORPHAN_S / 2:
            return
        orphans = [row for row in self._orphans()[0] if row.field != ENDED]
        if orphans:
            log.warning("rows of a departed member, adopted by nobody, are dropped", extra={"rows": len(orphans)})
            await self.commit(self.map.plan_without(orphans))

    def _orphans(self) -> tuple[list[Row], list[Row]]:
        """What departed members wrote: what others may answer for, and what goes with them.

        The latter is what somebody wrote who came by the open door and whom nobody confirmed. If it was made a guest or
        put out nothing of it stays, no ending either: nobody wanted it here. One that left by itself leaves all but
        what it said of `OF_THE_TRUSTED`.
        """
        roster, orphans = self.roster(), self.map.orphans(self.signers())
        doubtful = {author for author in {row.author for row in orphans} if not roster.was_trusted(author)}
        left = {author for author in doubtful if roster.revoked_by(author) == author}
        kept: list[Row] = []
        fallen: list[Row] = []
        for row in orphans:
            has_left = row.author in left and row.key.partition("/")[0] not in OF_THE_TRUSTED
            (kept if row.author not in doubtful or has_left else fallen).append(row)
        return kept, fallen

    def _orphans_for_s(self) -> float:
        """How long there have been some."""
        if not self.map.orphans(self.signers()):
            self._orphans_since = None
            return 0.0
        if self._orphans_since is None:
            self._orphans_since = self.now_s()
        return self.now_s() - self._orphans_since

    async def _collect(self) -> None:
        due = horizon(self.now_ms())
        if due > self._collected_ms and self.trusts_its_clock(COLLECT_SKEW_MS):
            await self.commit(self.map.plan_collection(self.now_ms()))
            self._collected_ms = due
            self.horizon_ms = max(self.horizon_ms, due)
            await self._note()

    async def _note(self) -> None:
        self._noted_at = self.now_s()
        if not self.read_only:
            await self._store.note(last_synced_ms=self.last_synced_ms, horizon_ms=self.horizon_ms)

    # -- telling

    def _changed(self, rows: Sequence[Row], keys: frozenset[str]) -> None:
        self.hear(rows)
        for key in keys & self._unread.keys():
            if self._unread[key] <= (self.map.latest(key) or NEVER):
                del self._unread[key]
        for watcher in self.watchers:
            try:
                watcher(keys)
            except Exception:  # border: what watches must not keep a change from the others
                log.exception("a watcher of the admin map failed")

    def _tell_lost(self, plan: Plan) -> None:
        for row, by in plan.lost:
            if row.author == self.identity.peer_id:
                try:
                    self._superseded(row, by)
                except Exception:  # border: as above
                    log.exception("a lost edit could not be told")

    def _unstored(self, error: AdminError) -> None:
        self.not_stored += 1
        log.error("the admin map was not written to the disk", extra={"reason": error.message})

    def _note_refused(self, plan: Plan, refused: Counter[str], teller: PeerId) -> None:
        self.refused.update({reason: count for reason, count in refused.items() if reason in _FAULTS})
        for row, reason in plan.refused:
            if reason == "clock" and (row.key in self._unread or len(self._unread) < UNREAD_MAX):
                self._unread[row.key] = max(row.clock, self._unread.get(row.key, NEVER))


async def _to_nobody(rows: Sequence[Row]) -> None:
    """Until there is somebody."""


def _key_of(certificate: bytes) -> bytes:
    key = x509.load_der_x509_certificate(certificate).public_key()
    assert isinstance(key, Ed25519PublicKey), "the roster takes no other"
    return public_bytes(key)
