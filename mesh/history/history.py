"""The history of one peer, whole: what it records, what it holds of the others', and what people ask of it.

    recorder -> outbox, writer -> store -> query          (this machine)
                                  store <-> replication   (the others)

A store that cannot be opened or written now keeps nobody from serving: what is recorded waits in the outbox, questions
get a 503 that says why, and it is tried again. `open` it for as long as the peer lives; nothing is decided here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossip.transport import PeerRoute
from mesh.history.conditions import Mesh, node_uuid
from mesh.history.entries import LogId
from mesh.history.errors import HistoryUnavailable
from mesh.history.export import export
from mesh.history.importing import FILE_NAME, import_once
from mesh.history.past import Past
from mesh.history.query import HistoryQuery
from mesh.history.recorder import Ack, Clocks, Recorder, record_ids
from mesh.history.replicas import Behind, View, is_written
from mesh.history.replication import Call, Replication
from mesh.history.retention import SKEW_MS_MAX, Clock, Limits, Retention
from mesh.history.store import HistoryStore
from mesh.history.writer import Writer
from mesh.moments import rfc_3339
from mesh.sleep import asleep_s
from web.services import Export, HistoryFacet, Query, Recording

log = logging.getLogger(__name__)

RETENTION_S = 600.0
JUMPED_S = 3600.0
TICK_S = 60.0
RETRY_S = 2.0
OPEN_S = 5.0
"""The peer starts without its history when opening it takes longer."""
GOODBYE_S = 2.0
DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The settings, as they count now: they may change while the peer runs."""

    bodies: Callable[[], Recording] = lambda: "full"
    ack: Callable[[], Ack] = lambda: "local"
    days: Callable[[], int] = lambda: 7
    bytes_max: Callable[[], int | None] = lambda: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What the rest of the peer tells its history. Peers are named by their ids.

    `run`: of this process, as gossip has it. `copies` is told how many logs of others are here, when that changes.
    `clouds`: which clouds have a key here, for the totals (`openai_key_present`). `skew_ms`: how far this machine's
    clock is from the others' (None: alone). `asleep_s`: how long the machine has slept in all.
    """

    me: str
    run: int
    mesh_id: Callable[[], str]
    view: Callable[[], View]
    call: Call
    name_of: Callable[[str], str]
    ip_of: Callable[[str], str]
    nodes: Callable[[], list[dict[str, Any]]]
    redact: Callable[[str], str]
    copies: Callable[[int], None] = lambda count: None
    clouds: Callable[[], Mapping[str, bool]] = dict
    skew_ms: Callable[[], int | None] = lambda: None
    asleep_s: Callable[[], float] = asleep_s


class History:
    """`facet` is what the HTTP surface is given, `peer_routes` what the peer port is."""

    def __init__(
        self,
        path: Path,
        *,
        around: Around,
        policy: Policy,
        rng: random.Random,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._path = path
        self._around = around
        self._policy = policy
        self._now_ms = now_ms
        self._clock = loop.time
        self._store: HistoryStore | None = None
        self._query: HistoryQuery | None = None
        self._past = Past(around.me)
        self._file = ""
        self._records = 0
        self._copies = 0
        self._moves: list[bool] = []
        self._retention: Retention | None = None
        self._retention_at = 0.0
        self._alarm = ""
        self._jumps = Jumps()
        self._wake = asyncio.Event()
        self._opened = asyncio.Event()
        self._replication = Replication(
            store=self._shared,
            view=around.view,
            call=around.call,
            floors=lambda: self._past.floors or {},
            now_ms=now_ms,
            rng=rng,
        )
        self._writer = Writer(store=lambda: self._store, committed=self._replication.committed, clock=loop.time)
        self._recorder = Recorder(
            writer=self._writer,
            bodies=policy.bodies,
            ack=policy.ack,
            replicated=self._replication.replicated,
            redact=around.redact,
            ip_of=around.ip_of,
            new_id=record_ids(now_ms, rng),
            clocks=Clocks(now_ms=now_ms, clock=loop.time),
        )

    # -- what others are given

    def facet(self) -> HistoryFacet:
        """For the HTTP surface."""
        return HistoryFacet(
            begin=self._recorder.begin,
            audit=self._recorder.audit,
            records=self._listed,
            record=lambda record_id: self._asked.record(record_id),
            export=self._exported,
            stats=self._stats,
            overview=self._overview,
            audits=lambda query: self._asked.audits(query),
        )

    def peer_routes(self) -> list[PeerRoute]:
        """For the peer port."""
        return self._replication.serving.routes()

    # -- what is counted

    def records(self) -> int:
        """Records held here, as of a minute ago at the most."""
        return self._records

    def lag(self) -> dict[str, int]:
        """Entries of each peer's logs, by its name, that should be here and are not yet."""
        if not self._around.view().is_coordinator:
            return {}
        return {self._around.name_of(each.peer): each.entries for each in self._replication.behind()}

    def unacknowledged(self) -> int:
        """Answers that were sent before their record was where it has to be."""
        return self._recorder.unacknowledged

    def unreplicated(self) -> int:
        """Answers that were sent before their record was on a second disk, where that was wanted."""
        return self._recorder.unreplicated

    def bodies_lost(self) -> int:
        """Bodies that found the outbox full; their records are kept."""
        return self._writer.outbox.bodies_dropped

    def outbox_bytes(self) -> int:
        """What waits for the disk."""
        return self._writer.outbox.size_bytes

    def lost(self) -> int:
        """Entries that found the outbox full, or could not be written at all."""
        return self._writer.outbox.entries_dropped

    # -- what the mesh tells

    def changed(self) -> None:
        """Members came, went or changed, or the coordinator did."""
        self._replication.changed()

    def moved(self, takes_along: bool) -> None:
        """This peer is in another mesh. What it recorded before stays here, unless it takes that along."""
        self._moves.append(takes_along)
        self._replication.changed()  # nothing is shared until that is settled
        self._wake.set()

    # -- life

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Everything runs while the block does; what it recorded is on the disk when it ends, if the disk takes it."""
        tasks = [
            asyncio.create_task(_kept_running(work), name=name)
            for name, work in (
                ("history writer", self._writer.run),
                ("history replication", self._replication.run),
                ("history", self._keep),
                ("history of before", self._import),
            )
        ]
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(OPEN_S):
                    await self._opened.wait()
            yield
        finally:
            await self._recorder.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._store is not None:
                await self._store.close()

    async def handed_over(self) -> None:
        """Before the goodbye: what was recorded is on the disk, and where it is copied to, or two seconds passed."""
        await self._recorder.close()
        if not await self._replication.drained(GOODBYE_S):
            log.info("the newest records are on this machine only, until it is back")

    async def _keep(self) -> None:
        """Opens the store, and does what is due again and again: whose past it is, retention, counting."""
        while self._store is None:
            self._store = await HistoryStore.open(
                self._path, self._around.me, above=self._around.run, now_ms=self._now_ms
            )
        store = self._store
        mesh = Mesh(is_living=self._is_living, name_of=self._around.name_of)
        self._query = HistoryQuery(store, mesh, now_ms=self._now_ms, clock=self._clock)
        self._opened.set()
        while True:
            self._wake.clear()
            wait_s = TICK_S
            try:
                await self._settle_past(store)
                await self._count(store)
                await self._retain(store)
            except HistoryUnavailable as error:
                wait_s = RETRY_S
                log.debug("the history cannot be looked after now", extra={"reason": error.message})
            self._replication.changed()
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _shared(self) -> HistoryStore | None:
        """The store, when it is known what of it others may see."""
        is_settled = self._past.floors is not None and not self._moves
        return self._store if is_settled else None

    async def _settle_past(self, store: HistoryStore) -> None:
        if self._past.floors is None or self._file != store.file:
            await self._past.read(store, self._around.mesh_id())
            self._file = store.file
        while self._moves:
            await self._writer.drained(GOODBYE_S)
            takes_along = all(self._moves)
            count = len(self._moves)
            await self._past.moved(store, self._around.mesh_id(), takes_along=takes_along)
            if not takes_along:
                for source in [each for each in store.vector() if each.peer != self._around.me]:
                    await store.forget(source)
            del self._moves[:count]

    async def _count(self, store: HistoryStore) -> None:
        async with store.reading() as connection:
            rows = await connection.execute_fetchall("SELECT count(*) FROM records INDEXED BY records_at")
        self._records = next(iter(rows))[0]
        copies = sum(each.peer != self._around.me for each in store.vector())
        if copies != self._copies:
            self._copies = copies
            self._around.copies(copies)

    async def _retain(self, store: HistoryStore) -> None:
        now_s, now_ms = self._clock(), self._now_ms()
        has_jumped = self._jumps.seen(now_ms, now_s + self._around.asleep_s())
        if now_s < self._retention_at:
            return
        self._retention_at = now_s + RETENTION_S
        self._retention = self._retention or Retention(store)
        report = await self._retention.run(
            Limits(days=self._policy.days(), bytes_max=self._policy.bytes_max()),
            Clock(now_ms=now_ms, skew_ms=self._around.skew_ms(), has_jumped=has_jumped),
        )
        self._alarm = report.alarm
        if any(source.peer == self._around.me for source in report.retired):
            self._replication.committed()

    async def _import(self) -> None:
        """Takes over what the program that this one follows has recorded, if that is there."""
        while True:
            await self._opened.wait()
            try:
                if self._store is not None:
                    await import_once(self._store, self._path.with_name(FILE_NAME), self._around.redact)
                    self._replication.committed()
                    return
            except HistoryUnavailable as error:
                log.debug("an older history cannot be taken over now", extra={"reason": error.message})
            await asyncio.sleep(RETRY_S)

    def _is_living(self, source: LogId) -> bool:
        store = self._store
        assert store is not None
        return is_written(source, store.vector(), self._around.view(), own=store.own)

    # -- what people ask

    @property
    def _asked(self) -> HistoryQuery:
        if self._query is None:
            raise HistoryUnavailable("the history is being opened; ask again")
        return self._query

    async def _listed(self, query: Query) -> dict[str, Any]:
        return await self._asked.records(query) | {"incomplete": self.incomplete()}

    async def _stats(self, query: Query) -> dict[str, Any]:
        return await self._asked.stats(query) | self._beside()

    async def _overview(self, query: Query) -> dict[str, Any]:
        began = self._clock()
        found = await self._asked.overview(query)
        return {
            "nodes": self._around.nodes(),
            "stats": found["stats"] | self._beside(),
            "history": found["history"],
            "generated_at": rfc_3339(self._now_ms() / 1000),
            "generation_time_ms": round((self._clock() - began) * 1000, 1),
        }

    async def _exported(self, query: Query) -> Export:
        return export(self._asked, query, self._now_ms())

    def _beside(self) -> dict[str, Any]:
        return {**self._around.clouds(), "incomplete": self.incomplete(), "alarm": self._alarm or None}

    def incomplete(self) -> list[dict[str, Any]]:
        """The peers whose newest records may be missing here: `{peer, name, since, reason, entries}`.

        One that is off for longer than records are kept has none left to miss.
        """
        oldest_ms = self._now_ms() - self._policy.days() * DAY_MS
        return [
            {
                "peer": node_uuid(each.peer),
                "name": self._around.name_of(each.peer),
                "since": None if each.since_ms is None else rfc_3339(each.since_ms / 1000),
                "reason": each.reason,
                "entries": each.entries,
            }
            for each in self._replication.behind()
            if not _is_forgotten(each, oldest_ms)
        ]


class Jumps:
    """Tells whether the wall clock was set lately: it went another way than the clock that only goes on."""

    def __init__(self) -> None:
        self._drift_ms: float | None = None
        self._until_s = 0.0

    def seen(self, wall_ms: int, steady_s: float) -> bool:
        """True for an hour after a jump of more than five minutes. `steady_s` counts the machine's sleep."""
        drift_ms = wall_ms - steady_s * 1000
        if self._drift_ms is not None and abs(drift_ms - self._drift_ms) > SKEW_MS_MAX:
            self._until_s = steady_s + JUMPED_S
        self._drift_ms = drift_ms
        return steady_s < self._until_s


def _is_forgotten(behind: Behind, oldest_ms: int) -> bool:
    return behind.reason == "offline" and behind.since_ms is not None and behind.since_ms < oldest_ms


async def _kept_running(work: Callable[[], Awaitable[None]]) -> None:
    """The border of a task: a mistake of ours must not end all recording."""
    while True:
        try:
            return await work()
        except Exception:
            log.exception("a part of the history failed and begins anew")
        await asyncio.sleep(RETRY_S)
