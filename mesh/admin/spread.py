"""How rows of the admin map reach every member: told at once, and compared until all maps are equal.

    put, end  -> POST /mesh/admin/rows to every member that is here; whoever is slow or away catches up
    the fact "admin" of a member differs from mine -> POST /mesh/admin/sync: digests of buckets, then rows, both ways

The first is a push, the second anti-entropy (Demers et al.: Epidemic Algorithms for Replicated Database Maintenance,
PODC 1987, sections 1.2 and 1.3; the digests in buckets are Dynamo's, as in gossip.sync). Beside the facts each peer
compares with a random member every 30 s. The answering side is mesh.admin.exchange.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from gossip.identity import PeerId, short
from gossip.member import Fact, MemberView
from gossip.transport import PeerRoute
from inference.errors import PeerGone
from mesh.admin.admin import Admin
from mesh.admin.exchange import ROWS_PATH, SYNC_PATH, Exchange
from mesh.admin.map import AdminMap, is_for_guests
from mesh.admin.messages import (
    CODEC,
    NAME_BYTES,
    Compare,
    Compared,
    Push,
    Pushed,
    decoded,
    halves,
    on_the_wire,
    portions,
)
from mesh.admin.replica import Replica, Taken
from mesh.admin.rounds import IN_THE_WAY, IN_THE_WAY_OF_A_COPY, Rounds, differing
from mesh.admin.rows import BadRow, Row, hash_of, read, written
from mesh.calls import Answer

log = logging.getLogger(__name__)

ADMIN_FACT = "admin"
PUSH_WAIT_S = 0.5
"""How long a write waits for the others, all together."""
CALL_S = 5.0
ANSWER_BYTES_MAX = 1 << 20
PUBLISH_S = 0.2
"""After a change, so that a push is there before the news that there is something to ask for."""
PUBLISH_GAP_S = 1.0
TEND_S = 5.0
SYNC_S = 30.0
LOOK_S = 0.3
"""After another digest was heard of, so that a push on its way may arrive; with as much jitter on top."""
BACKOFF_S = 1.0
BACKOFF_S_MAX = 30.0


class Call(Protocol):
    """mesh.calls.PeerCalls.call, or a simulated network. Raises PeerGone."""

    async def __call__(
        self, peer: str, method: str, path: str, /, *, body: bytes, timeout_s: float, bytes_max: int
    ) -> Answer: ...


class SetFact(Protocol):
    """gossip.agent.Agent.set_fact."""

    def __call__(self, key: str, value: bytes, /) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SpreadStatus:
    """`differing`: members that are here and whose map is not this one."""

    differing: tuple[PeerId, ...]
    syncs: int
    failures: int


class Spread:
    """The asking side. `run` until cancelled; everything belongs to that loop."""

    def __init__(
        self,
        *,
        admin: Admin,
        call: Call,
        members: Callable[[], Sequence[MemberView]],
        fact: Callable[[PeerId, str], Fact | None],
        set_fact: SetFact,
        rng: random.Random,
    ) -> None:
        """`members`, `fact` and `set_fact` are the agent's."""
        self._replica = admin.replica
        self._call = call
        self._members = members
        self._fact = fact
        self._set_fact = set_fact
        self._rng = rng
        self._now = self._replica.now_s
        self._exchange = Exchange(self._replica, must_ask=lambda peer: self._look(peer, 0.0))
        self._due: dict[PeerId, float] = {}
        self._backoff: dict[PeerId, tuple[float, float]] = {}
        self._pushing: dict[PeerId, asyncio.Task[None]] = {}
        self._publish_at = self._now()
        self._publish = asyncio.Event()
        self._woken = asyncio.Event()
        self._changed = asyncio.Event()
        self._syncs = self._failures = 0
        self._replica.push = self.push
        self._replica.hurry = lambda peer: self._look(peer, 0.0)
        admin.watch(lambda keys: self._publish.set())

    def routes(self) -> Sequence[PeerRoute]:
        """For the peer port."""
        return self._exchange.routes()

    @property
    def exchange(self) -> Exchange:
        """The answering side."""
        return self._exchange

    async def run(self) -> None:
        """Keeps this map and the others' equal, until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_told(), name="admin digest")
                tasks.create_task(self._keep_tended(), name="admin upkeep")
                tasks.create_task(self._keep_synced(), name="admin sync")
        finally:
            pushing = list(self._pushing.values())
            for task in pushing:
                task.cancel()
            await asyncio.gather(*pushing, return_exceptions=True)

    # -- what gossip tells

    def fact_changed(self, peer: PeerId, key: str) -> None:
        """A member told a fact; those of other things are not looked at."""
        if key == ADMIN_FACT and self._differs(peer):
            self._look(peer, LOOK_S * (1 + self._rng.random()))

    def came_back(self, peer: PeerId) -> None:
        """A member lives, again or for the first time: what it missed is looked for at once."""
        self._backoff.pop(peer, None)
        self._look(peer, LOOK_S * (1 + self._rng.random()))

    def roster_changed(self) -> None:
        """Members came or went: their rows count, or are to be adopted."""
        self._changed.set()

    def status(self) -> SpreadStatus:
        """How far the others are."""
        differing = tuple(view.peer for view in self._here() if self._is_signer(view.peer) and self._differs(view.peer))
        return SpreadStatus(differing=differing, syncs=self._syncs, failures=self._failures)

    # -- telling

    async def push(self, rows: Sequence[Row]) -> None:
        """Tells these rows to all that are here. Waits for them half a second at most, and for suspects not at all."""
        awaited: list[asyncio.Task[None]] = []
        for view in self._here():
            peer = view.peer
            is_signer = self._is_signer(peer)
            wire = [written(row) for row in rows if is_signer or is_for_guests(row.key, row.field)]
            if not wire:
                continue
            if peer in self._pushing:  # it is slow: it hears of it when maps are compared
                self._look(peer, LOOK_S)
                continue
            task = self._pushing[peer] = asyncio.create_task(self._push_to(peer, wire))
            task.add_done_callback(partial(self._pushed, peer))
            if view.state == "alive":
                awaited.append(task)
        if awaited:
            await asyncio.wait(awaited, timeout=PUSH_WAIT_S)

    def _pushed(self, peer: PeerId, task: asyncio.Task[None]) -> None:
        del self._pushing[peer]

    async def _push_to(self, peer: PeerId, wire: Sequence[bytes]) -> None:
        try:
            await self._give(peer, wire)
        except PeerGone:
            pass  # its digest tells when it is back
        except Exception:  # border: one member's nonsense
            log.exception("rows could not be told", extra={"peer": short(peer)})

    async def _give(self, peer: PeerId, wire: Sequence[bytes]) -> int:
        """How many it took. Raises PeerGone."""
        replica, taken = self._replica, 0
        for portion in portions(wire):
            push = Push(
                mesh=replica.map.mesh_id,
                now_ms=replica.now_ms(),
                last_synced_ms=replica.last_synced_ms,
                rows=portion,
            )
            pushed = await self._asked(peer, ROWS_PATH, push)
            if not isinstance(pushed, Pushed):
                break
            replica.skew.heard(peer, pushed.now_ms, self._now())
            if pushed.is_stale:
                self._look(peer, 0.0)
                break
            taken += max(0, len(portion) - sum(count for _, count in pushed.refused))
        return taken

    # -- comparing

    async def sync(self, peer: PeerId) -> bool:
        """Makes this map and that of `peer` equal, as far as both take the rows. True if anything went either way.

        Raises PeerGone.
        """
        replica = self._replica
        asked = replica.map
        compared = await self._asked(
            peer,
            SYNC_PATH,
            Compare(
                mesh=asked.mesh_id,
                now_ms=replica.now_ms(),
                last_synced_ms=replica.last_synced_ms,
                horizon_ms=max(0, replica.horizon_ms),
                digest=on_the_wire(asked.digest()),
            ),
        )
        if not isinstance(compared, Compared) or replica.map is not asked:
            return False
        replica.skew.heard(peer, compared.now_ms, self._now())
        if replica.is_stale(compared.horizon_ms):
            if replica.trusts_its_clock():
                return await self._copy(peer, compared)
        elif compared.last_synced_ms < replica.horizon_ms:
            return False  # it asks for a copy, having heard how far endings were collected here
        buckets = differing(asked, compared.digests, with_closed=replica.is_signer)
        rounds = self._rounds(peer, asked, lambda wire: replica.take(wire, peer))
        is_whole = await rounds.run(buckets)
        if is_whole and replica.map is asked:
            replica.synced(compared.horizon_ms)
        return rounds.moved > 0

    async def _copy(self, peer: PeerId, compared: Compared) -> bool:
        """All that `peer` has, in place of what is here: endings that this map missed are forgotten there."""
        replica = self._replica
        if not compared.digests:
            replica.synced(compared.horizon_ms)
            return False
        fresh = AdminMap(replica.map.mesh_id)
        rounds = self._rounds(peer, fresh, lambda wire: _taken_into(fresh, replica, wire))
        if await rounds.run(differing(fresh, compared.digests, with_closed=replica.is_signer)):
            await replica.replace(fresh, replica.believed(compared.horizon_ms))
        return rounds.moved > 0

    def _rounds(self, peer: PeerId, admin_map: AdminMap, take: Callable[[Sequence[bytes]], Awaitable[Taken]]) -> Rounds:
        is_own = admin_map is self._replica.map
        return Rounds(
            admin_map,
            ask=lambda question: self._asked(peer, SYNC_PATH, question),
            give=(lambda wire: self._give(peer, wire)) if is_own and self._replica.is_signer else None,
            take=take,
            in_the_way=IN_THE_WAY if is_own else IN_THE_WAY_OF_A_COPY,
        )

    async def _asked(self, peer: PeerId, path: str, message: object) -> object | None:
        """What it answers; None for an answer that is none. Raises PeerGone."""
        answer = await self._call(
            peer, "POST", path, body=CODEC.encode(message), timeout_s=CALL_S, bytes_max=ANSWER_BYTES_MAX
        )
        return decoded(answer.body) if answer.status == 200 else None

    # -- loops

    async def _keep_told(self) -> None:
        """The fact by which others see that there is something to ask for."""
        while True:
            await asyncio.sleep(max(0.0, self._publish_at - self._now()))
            self._publish_at = self._now() + PUBLISH_GAP_S
            self._set_fact(ADMIN_FACT, on_the_wire(self._replica.map.digest()))
            self._publish.clear()
            await self._publish.wait()
            self._publish_at = max(self._publish_at, self._now() + PUBLISH_S)

    async def _keep_tended(self) -> None:
        while True:
            self._changed.clear()
            await self._replica.tend()
            try:
                async with asyncio.timeout(TEND_S):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _keep_synced(self) -> None:
        """One at a time: those whose digest differs, and now and then anybody."""
        anybody_at = self._now() + SYNC_S * self._rng.random()
        while True:
            self._woken.clear()
            peer = self._next()
            if peer is None and self._now() >= anybody_at:
                anybody_at = self._now() + SYNC_S * (0.75 + 0.5 * self._rng.random())
                others = [view.peer for view in self._here() if self._is_signer(view.peer)]
                peer = self._rng.choice(others) if others else None
            if peer is not None:
                await self._sync_with(peer)
                continue
            until = min([anybody_at, *self._due.values()])
            try:
                async with asyncio.timeout(max(0.0, until - self._now())):
                    await self._woken.wait()
            except TimeoutError:
                pass

    def _next(self) -> PeerId | None:
        """The next one that is due, forgetting those that are away or not different any more."""
        now = self._now()
        here = {view.peer for view in self._here()}
        for peer, at in sorted(self._due.items(), key=lambda item: (item[1], item[0])):
            if at > now:
                return None
            del self._due[peer]
            if peer in here and self._is_signer(peer):
                return peer
        return None

    async def _sync_with(self, peer: PeerId) -> None:
        self._syncs += 1
        was_useful = False
        try:
            was_useful = await self.sync(peer)
        except PeerGone:
            self._failures += 1
        except Exception:  # border: one member's nonsense must not end it for all
            self._failures += 1
            log.exception("the admin map could not be compared", extra={"peer": short(peer)})
        gap_s = self._backoff.get(peer, (0.0, BACKOFF_S / 2))[1]
        gap_s = BACKOFF_S if was_useful else min(BACKOFF_S_MAX, 2 * gap_s)
        self._backoff[peer] = self._now() + gap_s, gap_s
        if self._differs(peer):
            self._look(peer, gap_s)

    # -- who

    def _look(self, peer: PeerId, in_s: float) -> None:
        """Compares with this member before long, but not at once again when the last time was of no use."""
        at = max(self._now() + in_s, self._backoff.get(peer, (0.0, 0.0))[0])
        self._due[peer] = min(at, self._due.get(peer, at))
        self._woken.set()

    def _here(self) -> list[MemberView]:
        return [view for view in self._members() if view.state in ("alive", "suspect")]

    def _is_signer(self, peer: PeerId) -> bool:
        return peer in self._replica.signers()

    def _differs(self, peer: PeerId) -> bool:
        """By what it told last. A guest compares what it may have."""
        fact = self._fact(peer, ADMIN_FACT)
        if fact is None or not self._is_signer(peer):
            return False
        mine, theirs = halves(on_the_wire(self._replica.map.digest())), halves(fact.value)
        return mine != theirs if self._replica.is_signer else mine[0] != theirs[0]


async def _taken_into(fresh: AdminMap, replica: Replica, wire: Sequence[bytes]) -> Taken:
    """As Replica.take, for a map that nobody reads yet."""
    refused: Counter[str] = Counter()
    names: set[bytes] = set()
    accepted = 0
    for data in wire:
        try:
            plan = fresh.merge([read(data)], replica.signers(), replica.now_ms())
        except BadRow:
            refused["malformed"] += 1
            continue
        accepted += len(plan.accepted)
        refused.update(why for _, why in plan.refused)
        names.update(hash_of(row)[:NAME_BYTES] for row, _ in plan.refused)
        await asyncio.sleep(0)
    return Taken(accepted=accepted, refused=refused, names=frozenset(names))
