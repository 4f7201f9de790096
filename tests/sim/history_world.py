"""A mesh that records, on virtual time: the product's recorder, outbox, writer and replication, over disks that lose
what was not made durable and a network that may be cut. One seed, one run.

Clients ask peers, and note which of their requests were acknowledged: what they then know must never be forgotten. The
checks are `check` (at any moment) and `check_settled` (after a while without faults); both raise AssertionError.
Not here: gossip and elections. Who is alive is known at once; each side of a partition has the first in its line as its
coordinator, as mesh members would find out after some seconds.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import parse_qsl, urlsplit

from inference.errors import PeerGone
from mesh.calls import Answer
from mesh.history import replicas
from mesh.history.entries import End, LogId, Start, decode
from mesh.history.recorder import Ack, Clocks, Recorder, record_ids
from mesh.history.replicas import Mate, View
from mesh.history.replication import PULL_S, Replication
from mesh.history.writer import Place, Writer
from tests.fixtures.history_disk import Copy, Disk, FakeStore
from tests.fixtures.virtual_loop import Network, VirtualLoop
from web.services import Asked, Caller, Outcome

T = TypeVar("T")

EPOCH_MS = 1_700_000_000_000
WRITE_S = 0.004
DELAY_S = (0.0005, 0.02)
SETTLE_S = 3 * PULL_S + 10
OUTBOX_BYTES = 2**20


class Peer:
    """A machine: its disk, and its process while one runs."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.disk = Disk(name, world.now_ms())
        self.is_guest, self.is_eligible = False, True
        self.is_full = False
        self.floors: dict[LogId, int] = {}
        self.backup: dict[LogId, Copy] | None = None
        self.is_destroyed = False
        self.tasks: list[asyncio.Task[None]] = []
        self.store: FakeStore | None = None
        self.recorder: Recorder | None = None
        self.replication: Replication | None = None
        self.writer: Writer | None = None
        self.acks: dict[asyncio.Task[object] | None, bool] = {}

    @property
    def is_up(self) -> bool:
        return self.store is not None

    def start(self) -> None:
        """A process begins on this disk. Call it inside the loop."""
        world = self.world
        self.disk.begin_run(world.now_ms())
        self.store = store = FakeStore(self.name, disk=self.disk)
        store.is_full, store.write_s = self.is_full, WRITE_S
        clock = world.loop.time
        rng = random.Random(world.rng.getrandbits(32))
        self.replication = replication = Replication(
            store=lambda: store,
            view=lambda: world.view(self.name),
            call=lambda peer, method, path, **more: world.carried(self, store, peer, path, more),
            floors=lambda: self.floors,
            now_ms=world.now_ms,
            rng=rng,
        )
        self.writer = Writer(store=lambda: store, committed=replication.committed, clock=clock, bytes_max=OUTBOX_BYTES)
        self.recorder = recorder = Recorder(
            writer=self.writer,
            bodies=lambda: "full",
            ack=lambda: world.ack,
            replicated=replication.replicated,
            redact=str,
            ip_of=str,
            new_id=record_ids(world.now_ms, rng),
            clocks=Clocks(now_ms=world.now_ms, clock=clock),
        )
        waited = recorder.acknowledged

        async def noted(written: asyncio.Future[Place | None]) -> bool:
            is_acknowledged = await waited(written)
            self.acks[asyncio.current_task()] = is_acknowledged
            return is_acknowledged

        recorder.acknowledged = noted  # type: ignore[method-assign]
        self.tasks = [asyncio.create_task(self.writer.run()), asyncio.create_task(replication.run())]

    async def stop(self) -> None:
        """The process is killed, or the machine loses power: what was not durable is gone."""
        self.store = self.recorder = self.replication = self.writer = None
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks = []
        self.disk.lose_power()


@dataclass(slots=True, kw_only=True)
class Known:
    """What clients were told: this request is recorded."""

    ingress: str
    ack: Ack


@dataclass(slots=True)
class World:
    """All machines and clients. The methods that change something are what may happen to a mesh."""

    names: Sequence[str]
    seed: int = 0
    ack: Ack = "local"
    loop: VirtualLoop = field(init=False)
    rng: random.Random = field(init=False)
    peers: dict[str, Peer] = field(init=False)
    side: dict[str, int] = field(init=False)
    acknowledged: dict[str, Known] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)
    seen: dict[tuple[LogId, int], bytes] = field(default_factory=dict)
    lows: dict[LogId, int] = field(default_factory=dict)
    private: set[bytes] = field(default_factory=set)
    waiting: dict[str, Recorder] = field(default_factory=dict)
    retired: set[str] = field(default_factory=set)
    uncertain: int = 0
    numbers: itertools.count[int] = field(default_factory=itertools.count)
    clients: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.loop = VirtualLoop(Network(self.seed))
        self.rng = random.Random(self.seed)
        self.side = dict.fromkeys(self.names, 0)
        self.peers = {name: Peer(self, name) for name in self.names}
        for name in self.names:
            self.start(name)

    def close(self) -> None:
        self._do(self._closed)
        self.loop.close()

    def now_ms(self) -> int:
        return EPOCH_MS + int(self.loop.now * 1000)

    # -- what happens

    def run(self, seconds: float) -> None:
        """Time passes."""
        self.loop.run_until_complete(asyncio.sleep(seconds))
        self.check()

    def request(self, name: str, took_s: float = 0.01, *, leaves: bool = False) -> None:
        """A client asks that peer; the answer takes so long. `leaves`: it is gone just as the answer is complete."""
        if self.peers[name].is_up:
            number = next(self.numbers)

            async def begin() -> None:
                task = asyncio.create_task(self._asked(self.peers[name], number, took_s, leaves=leaves))
                self.clients.add(task)
                task.add_done_callback(self.clients.discard)

            self._do(begin)

    def stop(self, name: str) -> None:
        """SIGKILL, or no power."""
        if self.peers[name].is_up:
            self._do(self.peers[name].stop)
            self._turned()

    def start(self, name: str) -> None:
        peer = self.peers[name]
        if not peer.is_up:
            self.loop.now += 0.002  # no process starts twice in the same millisecond

            async def begin() -> None:
                peer.start()

            self._do(begin)
            self._turned()

    def destroy(self, name: str) -> None:
        """The disk dies, and a new one is put in."""
        self.stop(name)
        peer = self.peers[name]
        peer.is_destroyed, peer.backup = True, None
        peer.disk = Disk(name, self.now_ms())

    def back_up(self, name: str) -> None:
        self.peers[name].backup = self.peers[name].disk.backup()

    def restore(self, name: str) -> None:
        """An older copy of its file is put back. What was acknowledged since is where it was replicated, if it was."""
        peer = self.peers[name]
        if peer.backup is not None:
            self.stop(name)
            peer.is_destroyed = True
            peer.disk.restore(peer.backup)

    def fill(self, name: str, *, is_full: bool = True) -> None:
        """The disk is full, or has room again."""
        peer = self.peers[name]
        peer.is_full = is_full
        if peer.store is not None:
            peer.store.is_full = is_full

    def blink(self, name: str) -> None:
        """The next commit succeeds, and the disk says that it did not."""
        store = self.peers[name].store
        if store is not None and not store.fails_after_commit:
            store.fails_after_commit = True
            self.uncertain += 1

    def partition(self, sides: Sequence[int]) -> None:
        self.side = dict(zip(self.names, sides, strict=True))
        self._turned()

    def retire(self, name: str, share: float) -> None:
        """The origin gives up the oldest part of its own log."""
        peer = self.peers[name]
        if peer.store is None or peer.is_full:
            return
        store, log = peer.store, peer.store.own
        low, have = store.vector().get(log, (0, 0))
        through = int(have * share)
        if through <= low:
            return
        self.lows[log] = through
        for entry in map(decode, peer.disk.read(log, low, 2**30)[1][: through - low]):
            if isinstance(entry, End):
                self.retired.add(entry.id)

        async def retired() -> None:
            await store.retire(log, through)
            assert peer.replication is not None
            peer.replication.committed()

        self._do(retired)

    def demote(self, name: str) -> None:
        """From now on it is a guest (and loses what a guest may not hold: nothing comes to it any more)."""
        self.peers[name].is_guest = True
        self._turned()

    def never(self, name: str) -> None:
        """It never coordinates from now on."""
        self.peers[name].is_eligible = False
        self._turned()

    def move(self, name: str) -> None:
        """What it wrote so far was written in another mesh, and is nobody's business here."""
        peer = self.peers[name]
        for log, (low, have) in peer.disk.vector().items():
            if log.peer == name and low < have:
                peer.floors[log] = have
                self.private |= set(peer.disk.read(log, low, 2**30)[1])

    def settle(self, but: Sequence[str] = ()) -> None:
        """All faults end, all machines but some are on, and some time passes without requests."""
        self.partition([0] * len(self.names))
        for name in self.names:
            self.fill(name, is_full=False)
            if name in but:
                self.stop(name)
            else:
                self.start(name)
        self.run(SETTLE_S)
        self.check_settled()

    # -- what must hold

    def check(self) -> None:
        """At any moment."""
        disks = {name: peer.disk.vector() for name, peer in self.peers.items()}
        here: set[str] = set()
        for name, vector in disks.items():
            for log, (low, have) in vector.items():
                self._check_place(name, log, low)
                for seq, item in enumerate(self.peers[name].disk.read(log, low, 2**40)[1], low + 1):
                    known = self.seen.setdefault((log, seq), item)
                    assert known == item, f"{log} has two entries number {seq}: a log forked"
                    assert item not in self.private or log.peer == name, f"{name} holds what is private to {log.peer}"
                    entry = decode(item)
                    if isinstance(entry, End):
                        here.add(entry.id)
                assert low <= have
        self._check_ends()
        for record, known_of in self.acknowledged.items():
            assert record in here or record in self.retired or self._is_lost(known_of), (
                f"{record} was acknowledged and is gone"
            )

    def _check_place(self, name: str, log: LogId, low: int) -> None:
        peer = self.peers[name]
        assert low <= max(self.lows.get(log, 0), self.peers[log.peer].floors.get(log, 0)), (
            f"{name} retired {log} up to {low}, above what its origin gave up"
        )
        if log.peer != name and (peer.is_guest or not peer.is_eligible):
            raise AssertionError(f"{name} holds a log of {log.peer}, which it may not")

    def _check_ends(self) -> None:
        """Each request has one end, in the log that has its start, and behind it."""
        starts: dict[str, tuple[LogId, int]] = {}
        ends: dict[str, list[tuple[LogId, int, bytes]]] = {}
        for (log, seq), item in sorted(self.seen.items()):
            entry = decode(item)
            if isinstance(entry, Start):
                starts.setdefault(entry.id, (log, seq))
            elif isinstance(entry, End):
                ends.setdefault(entry.id, []).append((log, seq, item))
        again = 0
        for record, found in ends.items():
            assert len({item for _, _, item in found}) == 1, f"{record} has two different ends"
            again += len(found) - 1
            log, seq, _ = found[0]
            assert record not in starts or starts[record] < (log, seq), f"{record} ends before it starts"
        assert again <= self.uncertain * 2**10 and (self.uncertain or not again), f"{again} ends were written twice"

    def check_settled(self) -> None:
        """After a while without faults."""
        recorded = {entry.id for item in self.seen.values() if isinstance(entry := decode(item), End)}
        for record, recorder in self.waiting.items():
            is_alive = any(peer.recorder is recorder for peer in self.peers.values())
            assert record in recorded or not is_alive, f"{record} was never written, and its ingress lived on"
        self.waiting.clear()
        up = [peer for peer in self.peers.values() if peer.is_up]
        for peer in up:
            assert peer.writer is not None
            assert len(peer.writer.outbox) == 0, f"{peer.name} still has something in its outbox"
        vectors = {peer.name: peer.disk.vector() for peer in up}
        for log in {log for vector in vectors.values() for log in vector}:
            self._check_copies(log, vectors)

    def _check_copies(self, log: LogId, vectors: dict[str, dict[LogId, tuple[int, int]]]) -> None:
        """Each log is wherever it should be, as far as anybody who is there has it."""
        origin = self.peers[log.peer]
        if origin.is_guest or (origin.is_up and origin.is_destroyed and log != origin.disk.own):
            return  # a guest's stays with it; what a lost disk had comes back with other means than these
        best = max(vector[log] for vector in vectors.values() if log in vector)
        if origin.is_up:
            low, have = vectors[log.peer].get(log, (0, 0))
            best = replicas.shown(log, (low, have), origin.floors)
            if best[0] >= best[1]:
                return
        for keeper in replicas.keepers(log.peer, self.view(next(iter(vectors)))):
            assert vectors[keeper].get(log, (0, 0))[1] >= best[1], f"{keeper} has not all of {log}"
            if origin.is_up:
                assert vectors[keeper][log][0] == best[0], f"{keeper} does not know what of {log} was retired"

    # -- how it looks

    def view(self, me: str) -> View:
        """The mesh as one peer sees it: everybody up on its side of the network.

        All of them are in the line of succession, as after news that came late: who may hold what is not its business.
        """
        mine = self.peers[me]
        alive = [n for n in self.names if n == me or (self.peers[n].is_up and self.side[n] == self.side[me])]
        fit = [n for n in alive if self.peers[n].is_eligible and not self.peers[n].is_guest]
        mates = {
            name: Mate(
                peer=name,
                is_alive=name in alive,
                is_guest=self.peers[name].is_guest,
                is_eligible=self.peers[name].is_eligible,
            )
            for name in self.names
            if name != me
        }
        return View(
            me=me,
            is_guest=mine.is_guest,
            is_eligible=mine.is_eligible,
            mates=mates,
            coordinator=fit[0] if fit else None,
            succession=tuple(alive),
        )

    async def carried(self, sender: Peer, store: FakeStore, peer: str, path: str, more: dict[str, object]) -> Answer:
        """A question over the network, and its answer. Either may be lost."""
        target = self.peers[peer]
        await self._way(sender, store, target)
        replication = target.replication
        if replication is None:
            raise PeerGone(f"{peer} is off")
        asked, body = urlsplit(path), more.get("body", b"")
        assert isinstance(body, bytes)
        there = target.store
        status, data = await replication.serving.answer(sender.name, asked.path, dict(parse_qsl(asked.query)), body)
        if there is not target.store:
            raise PeerGone(f"{peer} died over it")
        await self._way(sender, store, target)
        return Answer(status=status, headers={}, body=data)

    async def _way(self, sender: Peer, store: FakeStore, target: Peer) -> None:
        await asyncio.sleep(self.rng.uniform(*DELAY_S))
        if sender.store is not store or not target.is_up or self.side[sender.name] != self.side[target.name]:
            raise PeerGone(f"{target.name} is not to be reached")

    # -- inside

    async def _asked(self, peer: Peer, number: int, took_s: float, *, leaves: bool) -> None:
        recorder, ack = peer.recorder, self.ack
        assert recorder is not None
        asked = Asked(
            request_id=str(number),
            kind="chat",
            model="m",
            body={"n": number},
            is_stream=True,
            caller=Caller(ip="10.0.0.1"),
        )
        ids = recorder.new_id
        made: list[str] = []
        recorder.new_id = lambda: made.append(ids()) or made[-1]  # type: ignore[func-returns-value]
        record = recorder.begin(asked)
        recorder.new_id = ids
        await asyncio.sleep(took_s)
        if peer.recorder is not recorder:
            return  # the process is gone, and the client got nothing
        task = asyncio.current_task()
        await record.ended(Outcome(status="success", http_status=200, body={"answer": number}))
        if leaves:
            await record.ended(Outcome(status="cancelled", http_status=499))
        if peer.recorder is recorder:
            self.waiting[made[0]] = recorder
            if peer.acks.pop(task, False):
                self.acknowledged[made[0]] = Known(ingress=peer.name, ack=ack)

    def _is_lost(self, known: Known) -> bool:
        """True if it may be gone: its only promised place is gone."""
        gone = [peer.name for peer in self.peers.values() if peer.is_destroyed]
        return known.ingress in gone if known.ack == "local" else len(gone) > 1

    def _turned(self) -> None:
        async def told() -> None:
            for peer in self.peers.values():
                if peer.replication is not None:
                    peer.replication.changed()

        self._do(told)

    def _do(self, work: Callable[[], Awaitable[None]]) -> None:
        async def wrapped() -> None:
            await work()

        self.loop.run_until_complete(wrapped())

    async def _closed(self) -> None:
        for peer in self.peers.values():
            await peer.stop()
        for task in tuple(self.clients):
            task.cancel()
        await asyncio.gather(*self.clients, return_exceptions=True)
