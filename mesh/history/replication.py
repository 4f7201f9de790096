"""Carries logs between the members: pushes this peer's own as soon as it grows, pulls what this peer should hold.

Each target (mesh.history.replicas.targets) has a task of its own with one message on its way at a time; what is written
meanwhile goes into the next one, 50 ms later, or at once when somebody waits for it. A target that does not answer is
tried again after 0.2 to 5 s. The coordinator, and its successors from it, look every five seconds what others hold, and
at once when the roles change. What each member last said of its own logs is remembered, so that a list can say which
peers' newest records are missing in it.

Not here: who should hold what (mesh.history.replicas), the other side (mesh.history.serving).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from inference.errors import PeerGone
from mesh.calls import Answer
from mesh.history import replicas
from mesh.history.entries import LogId
from mesh.history.errors import HistoryUnavailable
from mesh.history.messages import (
    BATCH_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    PULL_PATH,
    PUSH_PATH,
    VECTOR_PATH,
    WANTS_MAX,
    BadMessage,
    Batch,
    Told,
    batch_out,
    batches_in,
    span_in,
    told_in,
    wants_out,
)
from mesh.history.replicas import Behind, Span, Vector, View, Want
from mesh.history.serving import Logs, Serving
from mesh.history.writer import Place

log = logging.getLogger(__name__)

PULL_S = 5.0
ASK_AGAIN_S = 30.0
"""A target that lost its disk without this peer noticing is found out by then."""
LINGER_S = 0.05
"""A busy peer would send two hundred messages a second to each target, at a millisecond of CPU on both sides."""
RETRY_S, RETRY_S_MAX = 0.2, 5.0
VECTOR_S, MESSAGE_S = 3.0, 20.0
ON_ITS_WAY_MS = 3000
PULLS_AT_ONCE = 8
SHUN_MS = 30_000
ROUNDS_MAX = 10_000
"""Messages of one source in one look: ten gigabytes."""


class Call(Protocol):
    """mesh.calls.PeerCalls.call; the tests have another one."""

    def __call__(
        self, peer: str, method: str, path: str, *, body: bytes = ..., timeout_s: float = ..., bytes_max: int = ...
    ) -> Awaitable[Answer]:
        """Raises PeerGone."""


class Refused(Exception):
    """The other peer answered, but not with what was asked for."""


class Replication:
    """`run` it for as long as the peer lives. `serving` has the routes for the other side."""

    def __init__(
        self,
        *,
        store: Callable[[], Logs | None],
        view: Callable[[], View],
        call: Call,
        floors: Callable[[], Mapping[LogId, int]],
        now_ms: Callable[[], int],
        rng: random.Random,
    ) -> None:
        """`view` is asked anew each time; `changed` says when it changes. `floors` of this peer's private entries."""
        self._store = store
        self._view = view
        self._call = call
        self._floors = floors
        self._now_ms = now_ms
        self._rng = rng
        self._pushers: dict[str, _Pusher] = {}
        self._told: dict[str, dict[LogId, Span]] = {}
        self._rest: dict[str, tuple[bytes, Vector]] = {}
        self._debts: dict[str, tuple[Vector, int]] = {}  # what was told and did not all come yet, and when
        self._silent: set[str] = set()
        self._shunned: dict[str, int] = {}  # until when others are asked for what these hold of others' logs
        self._behind_since: dict[str, int] = {}
        self._role: tuple[str, ...] | None = None
        self._look_now = asyncio.Event()
        self._is_running = False
        self.serving = Serving(store=store, view=view, floors=floors, heard=self._heard)

    # -- what others are told

    def committed(self) -> None:
        """The own log has grown."""
        for pusher in self._pushers.values():
            pusher.poke()

    def changed(self) -> None:
        """Members came, went or changed, or the coordinator did; or the store was opened."""
        if not self._is_running:
            return
        self._appoint()
        view = self._view()
        for peer in self._told.keys() - view.mates.keys():
            del self._told[peer]
        self._silent &= view.mates.keys()
        self._debts = {peer: debt for peer, debt in self._debts.items() if peer in view.mates}
        self._shunned = {peer: until for peer, until in self._shunned.items() if peer in view.mates}
        role = replicas.sources(view, recovers=self._recovers)
        if role != self._role:
            self._role = role
            self._look_now.set()

    async def replicated(self, place: Place) -> bool:
        """True once another disk has what is at `place`; False at once when nobody is there to hold it."""
        waiting = [asyncio.ensure_future(pusher.holds(place)) for pusher in self._pushers.values()]
        if not waiting:
            return False
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            return True
        finally:
            for each in waiting:
                each.cancel()

    def behind(self) -> list[Behind]:
        """The members whose newest records may be missing here, and since when.

        What was told less than three seconds ago is on its way.
        """
        store, view, now_ms = self._store(), self._view(), self._now_ms()
        mine = store.vector() if store is not None else {}
        silent = {peer for peer in self._silent if replicas.is_alive(peer, view)}
        told = {peer: vector for peer, vector in self._told.items() if peer not in silent}
        found = []
        for each in replicas.behind(mine, told, view):
            owed = self._owed(each.peer, mine, now_ms) if each.reason == "behind" and each.peer in told else None
            if owed is None or now_ms - owed > ON_ITS_WAY_MS:
                found.append(each if owed is None else replace(each, since_ms=owed))
        self._behind_since = {each.peer: self._behind_since.get(each.peer, now_ms) for each in found}
        return [
            each if each.since_ms is not None else replace(each, since_ms=self._behind_since[each.peer])
            for each in found
        ]

    def _owed(self, peer: str, mine: Vector, now_ms: int) -> int:
        """Since when something is missing of what this peer told: a busy one always has told more by now."""
        told, since_ms = self._debts.get(peer, ({}, now_ms))
        if all(mine.get(log, (0, 0))[1] >= have for log, (_, have) in told.items()):
            told, since_ms = dict(self._told.get(peer, {})), now_ms
        self._debts[peer] = told, since_ms
        return since_ms

    # -- life

    async def run(self) -> None:
        """Pushes and pulls until it is cancelled."""
        self._is_running = True
        try:
            while True:
                self.changed()
                self._look_now.clear()
                looking = asyncio.create_task(self._look(), name="history look")
                turned = asyncio.create_task(self._look_now.wait())
                try:
                    await asyncio.wait({looking, turned}, return_when=asyncio.FIRST_COMPLETED)
                    if looking.done():
                        looking.result()
                        await asyncio.wait({turned}, timeout=PULL_S)
                finally:
                    for task in (looking, turned):
                        task.cancel()
                    await asyncio.gather(looking, turned, return_exceptions=True)
        finally:
            self._is_running = False
            await self._dismiss(list(self._pushers))

    async def drained(self, timeout_s: float) -> bool:
        """Waits until the targets have all of the own logs, at most that long; True if they do."""
        idle = [asyncio.create_task(pusher.idle.wait()) for pusher in self._pushers.values()]
        if not idle:
            return True
        _, late = await asyncio.wait(idle, timeout=timeout_s)
        for task in late:
            task.cancel()
        return not late

    @property
    def _recovers(self) -> bool:
        store = self._store()
        return store is not None and store.was_rebuilt

    def _appoint(self) -> None:
        wanted = replicas.targets(self._view()) if self._store() is not None else ()
        for target in self._pushers.keys() - set(wanted):
            self._pushers.pop(target).cancel()
        for target in wanted:
            if target not in self._pushers:
                self._pushers[target] = _Pusher(self, target)

    async def _dismiss(self, targets: Sequence[str]) -> None:
        tasks = [self._pushers.pop(target).cancel() for target in targets]
        await asyncio.gather(*tasks, return_exceptions=True)

    def _heard(self, batch: Batch) -> None:
        """An origin pushed: from this it is known how far its log goes."""
        peer, store = batch.log.peer, self._store()
        self._silent.discard(peer)
        self._told.setdefault(peer, {})[batch.log] = (batch.low, batch.have)
        if store is not None:
            self._owed(peer, store.vector(), self._now_ms())

    # -- pushing, for the pushers

    async def holding_of(self, target: str) -> dict[LogId, Span]:
        """What `target` has of this peer's logs."""
        me = self._view().me
        told = await self._ask(target, {"of": me})
        return {log: span for log, span in (told.rest or {}).items() if log.peer == me}

    def next_push(self, holding: Vector) -> Want | None:
        store = self._store()
        if store is None:
            return None
        return replicas.to_push(store.vector(), holding, self._view().me, self._floors())

    async def push(self, target: str, want: Want) -> tuple[Span, bool]:
        """Sends what follows there; where the copy begins and ends afterwards, and whether the message was full."""
        store = self._store()
        if store is None:
            raise HistoryUnavailable("the history is not open")
        first, items = await store.read(want.log, want.after, BATCH_BYTES_MAX)
        low, have = replicas.shown(want.log, store.vector()[want.log], self._floors())
        batch = Batch(log=want.log, low=low, have=have, first=first, items=tuple(items))
        data = await self._answered(target, "POST", PUSH_PATH, batch_out(batch), MESSAGE_S)
        return span_in(data), sum(map(len, items)) > BATCH_BYTES_MAX // 2

    def backoff_s(self, failures: int) -> float:
        """How long to wait after so many failures in a row."""
        return min(RETRY_S_MAX, RETRY_S * 2.0 ** min(failures, 10)) * self._rng.uniform(0.75, 1.25)

    # -- pulling

    async def _look(self) -> None:
        """Asks whom this peer should ask what they hold, then for what it should hold itself."""
        view = self._view()
        sources = replicas.sources(view, recovers=self._recovers)
        if self._store() is None or not sources:
            return
        slots = asyncio.Semaphore(PULLS_AT_ONCE)

        async def one(source: str, work: Callable[[str], Awaitable[None]]) -> None:
            async with slots:
                try:
                    await work(source)
                except HistoryUnavailable:
                    return  # this peer's own disk
                except (PeerGone, Refused, BadMessage) as error:
                    if work == self._learn:
                        self._rest.pop(source, None)
                        self._silent.add(source)
                    self._shunned[source] = self._now_ms() + SHUN_MS
                    log.debug("no history from a peer", extra={"peer": source[:8], "reason": str(error)})

        for gone in self._rest.keys() - set(sources):
            del self._rest[gone]
        await asyncio.gather(*(one(source, self._learn) for source in sources))
        # Only now is it known who is the best source of each log.
        await asyncio.gather(*(one(source, self._pull) for source in list(self._rest)))

    async def _learn(self, source: str) -> None:
        digest, rest = self._rest.get(source, (b"", {}))
        told = await self._ask(source, {"rest": digest.hex()})
        self._silent.discard(source)
        self._told[source] = dict(told.own)
        if (store := self._store()) is not None:
            self._owed(source, store.vector(), self._now_ms())
        self._rest[source] = (told.digest, rest if told.rest is None else told.rest)

    async def _pull(self, source: str) -> None:
        before: list[Want] = []
        for _ in range(ROUNDS_MAX):
            wants = self._wants(source)
            if not wants:
                return
            if wants == before:
                raise Refused("it has less than it says")
            data = await self._answered(source, "POST", PULL_PATH, wants_out(wants), MESSAGE_S)
            asked = {want.log for want in wants}
            for batch in batches_in(data).batches:
                if batch.log in asked:
                    await self._take(source, batch)
            before = wants

    def _wants(self, source: str) -> list[Want]:
        store, view = self._store(), self._view()
        if store is None:
            return []
        now_ms = self._now_ms()
        offers = {
            peer: {**self._told.get(peer, {}), **(rest if self._shunned.get(peer, 0) <= now_ms else {})}
            for peer, (_, rest) in self._rest.items()
        }
        wanted = replicas.wanted(store.vector(), offers, view, own=store.own, recovers=self._recovers)
        return wanted.get(source, [])[:WANTS_MAX]

    async def _take(self, source: str, batch: Batch) -> None:
        store, view = self._store(), self._view()
        if store is not None and replicas.accepts(batch.log, source, view, own=store.own, recovers=self._recovers):
            span = store.vector().get(batch.log, (0, 0))
            low = replicas.believed_low(batch.log, source, span, batch.first, batch.low)
            await store.take(batch.log, batch.first, batch.items, low)

    # -- asking

    async def _ask(self, peer: str, query: Mapping[str, str]) -> Told:
        path = VECTOR_PATH + "?" + "&".join(f"{name}={value}" for name, value in query.items())
        return told_in(await self._answered(peer, "GET", path, b"", VECTOR_S), peer)

    async def _answered(self, peer: str, method: str, path: str, body: bytes, timeout_s: float) -> bytes:
        answer = await self._call(peer, method, path, body=body, timeout_s=timeout_s, bytes_max=MESSAGE_BYTES_MAX)
        if answer.status != 200:
            raise Refused(f"status {answer.status}")
        return answer.body


class _Pusher:
    """Keeps one target up to date with the own logs of this peer."""

    def __init__(self, replication: Replication, target: str) -> None:
        self._replication = replication
        self._target = target
        self._holding: dict[LogId, Span] | None = None
        self._moved = asyncio.Condition()
        self._waiting = 0
        self._urgent = asyncio.Event()
        self.wake = asyncio.Event()
        self.idle = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"history to {target[:8]}")

    def poke(self) -> None:
        """There is something new."""
        self.wake.set()
        self.idle.clear()

    def cancel(self) -> asyncio.Task[None]:
        self._task.cancel()
        return self._task

    async def holds(self, place: Place) -> None:
        """Returns once the target has what is at `place`."""
        self._waiting += 1
        self._urgent.set()
        try:
            async with self._moved:
                await self._moved.wait_for(lambda: (self._holding or {}).get(place.log, (0, 0))[1] >= place.seq)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._urgent.clear()

    async def _run(self) -> None:
        failures = 0
        while True:
            self.wake.clear()
            try:
                await self._bring_up_to_date()
                failures = 0
            except (PeerGone, Refused, BadMessage, HistoryUnavailable) as error:
                self._holding = None  # whatever is over there, it is asked again
                failures += 1
                log.debug("history not pushed", extra={"peer": self._target[:8], "reason": str(error)})
                await asyncio.sleep(self._replication.backoff_s(failures - 1))
                continue
            self.idle.set()
            try:
                async with asyncio.timeout(ASK_AGAIN_S):
                    await self.wake.wait()
            except TimeoutError:
                self._holding = None
            self.idle.clear()

    async def _bring_up_to_date(self) -> None:
        if self._holding is None:
            self._holding = await self._replication.holding_of(self._target)
            await self._tell()
        while (want := self._replication.next_push(self._holding)) is not None:
            before = self._holding.get(want.log, (0, 0))
            after, was_full = await self._replication.push(self._target, want)
            self._holding[want.log] = after
            if after == before:
                raise Refused("the copy did not move")
            await self._tell()
            if not was_full:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LINGER_S):
                        await self._urgent.wait()

    async def _tell(self) -> None:
        async with self._moved:
            self._moved.notify_all()
