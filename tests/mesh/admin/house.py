"""Several peers with an admin map each, in one process: real maps and messages, a made-up network, disk and gossip.

    house = House(seed=1, names="abcde")          # on tests.fixtures.virtual_loop
    async with house.running(): ...

Peers may be cut off from each other, calls are late or lost, each machine has its own clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gossip.identity import Identity
from gossip.member import About, Fact, MemberView
from gossip.roster import Roster
from gossip.statements import State
from inference.errors import PeerGone
from mesh.admin.admin import Admin
from mesh.admin.errors import NotDurable
from mesh.admin.exchange import ROWS_PATH
from mesh.admin.rows import Row
from mesh.admin.spread import Spread
from mesh.admin.storage import Loaded
from mesh.calls import Answer

EPOCH_MS = 1_790_000_000_000
"""Some day in September 2026; all that matters is that it is no 30 days old when a clock shows it."""


@functools.cache
def who(name: str) -> Identity:
    """The same few peers in every test."""
    return Identity.of(Ed25519PrivateKey.from_private_bytes(name.encode().ljust(32, b"\0")))


def roster_of(names: Sequence[str], guests: Collection[str] = ()) -> Roster:
    """The first one founded the mesh and let the others in."""
    roster = Roster.found(who(names[0]), names[0], 0)
    for name in names[1:]:
        state: State = "guest" if name in guests else "active"
        roster = roster.admit(who(names[0]), who(name).certificate_der, name, "ask", state, 1)
    return roster


class MemoryStore:
    """A disk that keeps what it was given, unless it is full."""

    def __init__(self) -> None:
        self.mesh_id = ""
        self.rows: dict[tuple[str, str], Row] = {}
        self.last_synced_ms = self.horizon_ms = 0
        self.archives: list[tuple[str, list[Row]]] = []
        self.is_full = False

    async def load(self) -> Loaded:
        return Loaded(
            mesh_id=self.mesh_id,
            rows=tuple(self.rows.values()),
            last_synced_ms=self.last_synced_ms,
            horizon_ms=self.horizon_ms,
        )

    async def write(self, stored: Sequence[Row], gone: Sequence[tuple[str, str]]) -> None:
        await asyncio.sleep(0.001)
        if self.is_full:
            raise NotDurable("the disk is full")
        for name in gone:
            del self.rows[name]
        self.rows.update({(row.key, row.field): row for row in stored})

    async def note(self, *, last_synced_ms: int, horizon_ms: int) -> None:
        self.last_synced_ms, self.horizon_ms = last_synced_ms, horizon_ms

    async def begin(self, mesh_id: str, rows: Sequence[Row], *, archive: str, last_synced_ms: int) -> None:
        if archive:
            self.archives.append((archive, list(self.rows.values())))
        self.mesh_id, self.last_synced_ms, self.horizon_ms = mesh_id, last_synced_ms, 0
        self.rows = {(row.key, row.field): row for row in rows}

    async def close(self) -> None:
        pass


class Peer:
    """One machine."""

    def __init__(self, house: House, name: str, skew_ms: int) -> None:
        self.house = house
        self.name = name
        self.id = who(name).peer_id
        self.skew_ms = skew_ms
        self.roster = house.roster
        self.store = MemoryStore()
        self.facts: dict[tuple[str, str], Fact] = {}
        self.lost: list[tuple[Row, Row]] = []
        self.is_on = False
        self.boot()

    def boot(self) -> None:
        """Memory is empty, the disk is not."""
        self.admin = Admin(
            identity=who(self.name),
            roster=lambda: self.roster,
            store=self.store,
            is_coordinator=lambda: self.house.coordinator_of(self) is self,
            superseded=lambda row, by: self.lost.append((row, by)),
            now_ms=self.now_ms,
        )
        self.spread = Spread(
            admin=self.admin,
            call=functools.partial(self.house.call, self),
            members=self.members,
            fact=lambda peer, key: self.facts.get((peer, key)),
            set_fact=self.set_fact,
            rng=random.Random(self.house.rng.getrandbits(32)),
        )

    def now_ms(self) -> int:
        return EPOCH_MS + self.house.passed_ms + round(asyncio.get_running_loop().time() * 1000) + self.skew_ms

    def members(self) -> list[MemberView]:
        return [
            MemberView(
                peer=member.peer_id,
                role=member.state,
                state="alive" if self.house.reaches(self.name, member.name) else "dead",
                run=1,
                incarnation=1,
                about=About(),
                since=0.0,
                is_connected=True,
            )
            for member in self.roster.members.values()
            if member.peer_id != self.id
        ]

    def set_fact(self, key: str, value: bytes) -> None:
        self.facts[self.id, key] = Fact(version=1, value=value, received_at=0.0, set_at=0.0)
        for other in self.house.peers.values():
            self.house.tell(self, other)

    @property
    def rows(self) -> set[Row]:
        return set(self.admin.replica.map.all_rows())

    @property
    def digest(self) -> tuple[bytes, bytes]:
        return self.admin.replica.map.digest()


class House:
    """The machines and the wires between them."""

    def __init__(
        self,
        *,
        seed: int,
        names: str,
        guests: str = "",
        skew_s: dict[str, float] | None = None,
        loss: float = 0.0,
        delay_s: tuple[float, float] = (0.0005, 0.02),
    ) -> None:
        self.rng = random.Random(seed)
        self.roster = roster_of(names, guests)
        self.loss, self.delay_s = loss, delay_s
        self.groups: list[str] = []
        self.frozen: set[str] = set()
        self.liars: dict[str, Callable[[], bytes]] = {}
        self.coordinators = names[0]
        self.calls = 0
        self.passed_ms = 0
        self.peers: dict[str, Peer] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        for name in names:
            self.peers[name] = Peer(self, name, round((skew_s or {}).get(name, 0) * 1000))

    def add(self, name: str, roster: Roster) -> Peer:
        """A machine of another mesh, to be turned on."""
        peer = self.peers[name] = Peer(self, name, 0)
        peer.roster = roster
        peer.boot()
        return peer

    def __getitem__(self, name: str) -> Peer:
        return self.peers[name]

    def coordinator_of(self, peer: Peer) -> Peer | None:
        """Each side of a partition may have its own: the first that it reaches."""
        seen = [c for c in self.coordinators if c == peer.name or self.reaches(peer.name, c)]
        return self.peers[seen[0]] if seen else None

    # -- wires

    def reaches(self, one: str, other: str) -> bool:
        if not (self.peers[one].is_on and self.peers[other].is_on):
            return False
        return not self.groups or any(one in group and other in group for group in self.groups)

    def partition(self, *groups: str) -> None:
        self.groups = list(groups)

    def heal(self) -> None:
        """Gossip finds out within a moment, and tells what was missed."""
        self.groups = []
        for one in self.peers.values():
            for other in self.peers.values():
                self.greet(one, other)

    def greet(self, one: Peer, other: Peer) -> None:
        if one is not other and self.reaches(one.name, other.name):
            self.tell(one, other)
            asyncio.get_running_loop().call_later(1.0, other.spread.came_back, one.id)

    def tell(self, one: Peer, other: Peer) -> None:
        """The fact of one reaches the other as gossip does it: late."""
        if one is not other and (one.id, "admin") in self.facts_of(one):
            asyncio.get_running_loop().call_later(self.rng.uniform(0.05, 1.5), self._told, one, other)

    def facts_of(self, peer: Peer) -> dict[tuple[str, str], Fact]:
        return peer.facts

    def _told(self, one: Peer, other: Peer) -> None:
        if self.reaches(one.name, other.name) and one.id in other.roster.members:
            other.facts[one.id, "admin"] = one.facts[one.id, "admin"]
            other.spread.fact_changed(one.id, "admin")

    async def call(
        self, source: Peer, peer: str, method: str, path: str, /, *, body: bytes, timeout_s: float, bytes_max: int
    ) -> Answer:
        self.calls += 1
        target = next(each for each in self.peers.values() if each.id == peer)
        try:
            async with asyncio.timeout(timeout_s):
                await self._carry(source, target)
                if target.name in self.frozen:
                    await asyncio.sleep(3600)
                if source.id not in target.roster.members:
                    return Answer(status=403, headers={}, body=b"")
                answering = target.spread.exchange
                status, data = await (answering.rows if path == ROWS_PATH else answering.sync)(source.id, body)
                await self._carry(target, source)
                if target.name in self.liars:
                    status, data = 200, self.liars[target.name]()
        except TimeoutError:
            raise PeerGone("too late") from None
        assert len(data) <= bytes_max
        return Answer(status=status, headers={}, body=data)

    async def _carry(self, source: Peer, target: Peer) -> None:
        await asyncio.sleep(self.rng.uniform(*self.delay_s))
        if not self.reaches(source.name, target.name):
            await asyncio.sleep(1)
            raise PeerGone("cut off")
        if self.rng.random() < self.loss:
            await asyncio.sleep(3600)

    # -- machines

    async def days(self, count: float) -> None:
        """They pass, and all that happens is that everybody compares maps with somebody."""
        self.passed_ms += round(count * 86_400_000)
        await asyncio.sleep(100)

    async def turn_on(self, name: str) -> None:
        peer = self.peers[name]
        if name in self._tasks:
            peer.boot()
        await peer.admin.start()
        peer.is_on = True
        self._tasks[name] = asyncio.create_task(peer.spread.run())
        for other in self.peers.values():
            self.greet(peer, other)
            self.greet(other, peer)

    async def turn_off(self, name: str) -> None:
        """As if somebody pulled the plug."""
        peer = self.peers[name]
        peer.is_on = False
        self._tasks[name].cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._tasks[name]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        for name in self.peers:
            await self.turn_on(name)
        try:
            yield
        finally:
            for name in self.peers:
                if self.peers[name].is_on:
                    await self.turn_off(name)
                    await self.peers[name].admin.close()

    def revoke(self, by: str, name: str) -> None:
        """The statement reaches whom `by` reaches."""
        roster = self.peers[by].roster.revoke(who(by), who(name).peer_id, 5)
        self.learn(roster, [each for each in self.peers if each == by or self.reaches(by, each)])

    def learn(self, roster: Roster, names: Iterable[str]) -> None:
        for name in names:
            peer = self.peers[name]
            peer.roster = peer.roster.merged(roster.statements)
            peer.spread.roster_changed()

    def all_equal(self, names: Iterable[str] = ()) -> bool:
        return len({self.peers[name].digest for name in names or self.peers}) == 1
