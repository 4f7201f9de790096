"""A mesh with an admin map on virtual time: the product's Admin, Spread and Exchange, on disks and a network that fail.

Nothing happens by itself: who tells whom what, and when, is decided by the methods of `World`, which the state machine
of tests.sim.admin calls. Each ends when nothing is under way any more, and then tests.sim.admin_watch looks at every
map. One seed, one run. Not here: the loops that decide when maps are compared (tests.mesh.admin.test_spread).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import random
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from gossip.identity import PeerId
from gossip.roster import Roster
from inference.errors import PeerGone
from mesh.admin.admin import Admin
from mesh.admin.clock import NEVER, Clock
from mesh.admin.errors import ClockWrong, KeyEnded, NoSigner, NotDurable
from mesh.admin.exchange import ROWS_PATH
from mesh.admin.messages import CODEC, Push
from mesh.admin.rows import ENDED, Row, signed, written
from mesh.calls import Answer
from tests.fixtures.virtual_loop import Network, VirtualLoop
from tests.mesh.admin.house import EPOCH_MS, roster_of, who
from tests.sim.admin_peer import Peer
from tests.sim.admin_watch import DAY_S, Watch

DELAY_S = 0.002
ROUNDS = 7
ROUND_S = 20.0
"""Rows of departed members that nobody signs anew are dropped after a minute, once maps were compared again."""
STALE_S = 30 * DAY_S
FIELDS = ("name", "note")
SETTINGS = ("setting/a", "setting/b")
"""Keys that several peers make at the same time. All others are named by who makes them, and made once."""


class World:
    """All machines. The methods that change something are what may happen to a mesh."""

    def __init__(self, names: str, *, seed: int = 0, guest: str = "", skews_ms: Sequence[int] = ()) -> None:
        self.names = names
        self.rng = random.Random(seed)
        self.loop = VirtualLoop(Network(seed))
        self.roster = roster_of(names, guest)
        skews = [*skews_ms, *[0] * len(names)]
        self.peers = {name: Peer(self, name, skew) for name, skew in zip(names, skews, strict=False)}
        self.by_id = {peer.id: peer for peer in self.peers.values()}
        self.watch = Watch()
        self.numbers = 0
        self.messages_left: int | None = None
        self.deaf: frozenset[str] = frozenset()
        self.pushes: list[tuple[PeerId, bytes]] = []
        self.lie: Callable[[bytes], bytes] | None = None
        """What becomes of answers on their way."""
        self.stopped_ms: int | None = None
        self.has_wrong_clocks = False
        """Or somebody believes so: edits may be refused for that."""
        self.apart_s = 0.0
        """For how long some signers that run have not heard of each other, at most."""
        self.raised: list[str] = []
        self.log = logging.getLogger("mesh.admin")
        self._ear = _Ear(self.raised)
        self.log.addHandler(self._ear)
        for name in names:
            self.start(name)

    def close(self) -> None:
        self.log.removeHandler(self._ear)
        for name in self.names:
            self.stop(name)
        self.loop.close()

    def true_ms(self) -> int:
        return self.stopped_ms if self.stopped_ms is not None else EPOCH_MS + round(self.loop.now * 1000)

    @contextlib.contextmanager
    def same_moment(self) -> Iterator[None]:
        """All clocks show the same, and stand still, while the block runs."""
        skews_ms = {name: peer.skew_ms for name, peer in self.peers.items()}
        for peer in self.peers.values():
            peer.skew_ms = max(skews_ms.values())
        self.stopped_ms = self.true_ms()
        try:
            yield
        finally:
            self.stopped_ms = None
            for name, skew_ms in skews_ms.items():
                self.set_clock(name, skew_ms)

    # -- machines

    def start(self, name: str) -> None:
        peer = self.peers[name]
        if not peer.is_up:
            self.do(peer.start())
            self.check(name)

    def stop(self, name: str) -> None:
        self.do(self.peers[name].stop())

    def fill(self, name: str, *, is_full: bool = True) -> None:
        self.peers[name].disk.is_full = is_full

    def part(self, sides: Sequence[int]) -> None:
        for peer, side in zip(self.peers.values(), sides, strict=True):
            peer.side = side

    def time_passes(self, seconds: float) -> None:
        """Nobody does anything meanwhile."""
        self.loop.now += seconds

    def days_pass(self, days: float) -> None:
        """Those that reach each other compare their maps meanwhile, as they do every half minute."""
        for _ in range(max(1, round(days / 3))):
            self.loop.now += days * DAY_S / max(1, round(days / 3))
            up = [peer for peer in self.peers.values() if peer.is_up and peer.is_signer]
            if any(not self.reaches(one, other) for one in up for other in up if one is not other):
                self.apart_s += days * DAY_S / max(1, round(days / 3))
            self.all_compare()

    def set_clock(self, name: str, skew_ms: int) -> None:
        """Somebody, or a broken battery, sets that machine's clock."""
        peer = self.peers[name]
        self.watch.clock_set(peer, back=skew_ms < peer.skew_ms)
        peer.skew_ms = skew_ms
        self.has_wrong_clocks = self.has_wrong_clocks or abs(skew_ms - peer.base_skew_ms) > 0

    # -- people

    def new_key(self, name: str, space: str) -> str:
        self.numbers += 1
        return f"{space}/{name}{self.numbers}"

    def keys_known(self, name: str) -> list[str]:
        """What a person at that machine may edit."""
        admin = self.peers[name].admin
        return [] if admin is None else sorted({*admin.keys(""), *SETTINGS})

    def write(self, name: str, key: str, fields: dict[str, int], deaf: frozenset[str] = frozenset()) -> bool:
        """Somebody edits the key there; the `deaf` miss the news. True if it counts."""
        peer = self.peers[name]
        if peer.admin is None:
            return False
        values = {each: json.dumps(value).encode() for each, value in fields.items()}
        self.watch.written(peer, key, values)
        done = self._written(peer, peer.admin.put(key, fields), deaf)
        if done:
            found = peer.admin.get(key)
            assert found is not None and found.items() >= fields.items(), f"{name} does not read what it wrote"
        self.check(name)
        return done

    def end(self, name: str, key: str, deaf: frozenset[str] = frozenset()) -> bool:
        """Somebody ends the key there."""
        peer = self.peers[name]
        if peer.admin is None:
            return False
        self.watch.written(peer, key, {ENDED: b'"over"'})
        done = self._written(peer, peer.admin.end(key, "over"), deaf)
        if done:
            assert peer.admin.is_ended(key) and peer.admin.get(key) is None, f"{key} is not over where it was ended"
        self.check(name)
        return done

    def crash_in_write(self, name: str, key: str, value: int | None, after_s: float) -> None:
        """The machine loses power in the middle of it; None ends the key."""
        peer = self.peers[name]
        admin = peer.admin
        if admin is None:
            return
        if value is None:
            self.watch.written(peer, key, {ENDED: b'"over"'})
        else:
            self.watch.written(peer, key, {"name": json.dumps(value).encode()})

        async def cut() -> None:
            work = admin.end(key, "over") if value is None else admin.put(key, {"name": value})
            task = asyncio.create_task(work)
            await asyncio.sleep(after_s)
            await peer.stop()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self.do(cut())
        self.check()

    # -- who belongs

    def gossip(self, one: str, other: str) -> None:
        """Both know afterwards what either knew of members."""
        here, there = self.peers[one], self.peers[other]
        if self.reaches(here, there):
            self._know(here, there.roster)
            self._know(there, here.roster)

    def revoke(self, by: str, name: str) -> None:
        peer = self.peers[by]
        if peer.is_signer and self.peers[name].id in peer.roster.members:
            peer.roster = peer.roster.revoke(who(by), self.peers[name].id, self.loop.now)

    def demote(self, by: str, name: str) -> None:
        peer = self.peers[by]
        if peer.is_signer and self.peers[name].id in peer.roster.members:
            peer.roster = peer.roster.demote(who(by), self.peers[name].id, self.loop.now)

    def trust(self, by: str, name: str) -> None:
        peer = self.peers[by]
        if peer.is_signer and self.peers[name].id in peer.roster.members:
            peer.roster = peer.roster.trust(who(by), self.peers[name].id, self.loop.now)

    def _know(self, peer: Peer, roster: Roster) -> None:
        peer.roster = peer.roster.merged(roster.statements)

    # -- maps

    def compare(self, one: str, other: str, messages: int | None = None) -> None:
        """One compares its map with another's, as its own loop would; cut off after so many messages."""
        here, there = self.peers[one], self.peers[other]
        if here.spread is not None and there.id in here.signers and here is not there:
            self.messages_left = messages
            self.do(_quietly(here.spread.sync(there.id)))
            self.messages_left = None
            self.check()

    def tend(self, name: str) -> None:
        """What a peer does for its map every few seconds."""
        peer = self.peers[name]
        if peer.admin is not None:
            self.do(peer.admin.replica.tend())
            self.check(name)

    def all_compare(self) -> None:
        """Those that reach each other, as their loops and gossip do within half a minute."""
        for one in self.names:
            for other in self.names:
                self.gossip(one, other)
        for one in self.names:
            self.tend(one)
        for one in self.names:
            for other in self.names:
                if self.reaches(self.peers[one], self.peers[other]):
                    self.compare(one, other)

    def push(self, teller: str, target: str, rows: Sequence[Row]) -> None:
        """A member tells these rows, whatever they are."""
        there = self.peers[target]
        if there.admin is not None:
            replica = there.admin.replica
            push = Push(
                mesh=replica.map.mesh_id,
                now_ms=self.peers[teller].now_ms(),
                last_synced_ms=max(replica.last_synced_ms, replica.horizon_ms),
                rows=tuple(written(row) for row in rows),
            )
            self.deliver(self.peers[teller].id, target, ROWS_PATH, CODEC.encode(push))

    def replay(self, number: int, target: str) -> None:
        """A message that was sent some time ago arrives (again)."""
        if self.pushes:
            sender, body = self.pushes[number % len(self.pushes)]
            self.deliver(sender, target, ROWS_PATH, body)

    def deliver(self, sender: PeerId, to: str, path: str, body: bytes) -> bytes:
        """Over a connection of that member's. It must be answered, whatever it is: the answer, or nothing."""
        there = self.peers[to]
        if there.spread is None or sender not in there.roster.members:
            return b""
        exchange = there.spread.exchange
        self.has_wrong_clocks = True  # what it says of its sender's clock may be old, or made up
        _, data = self.do(self._answered(exchange.rows if path == ROWS_PATH else exchange.sync, sender, body))
        self.check()
        assert isinstance(data, bytes)
        return data

    def forged(self, claimed: str, by: str, key: str, ahead_ms: int) -> list[Row]:
        """Rows that name an author who did not write them for this mesh: wrong key, changed value, other mesh."""
        clock = Clock(self.true_ms() + ahead_ms, 0)
        mine = self.roster.mesh_id
        real = signed(who(claimed), mine, key=key, field="name", value=b"7", clock=clock, over=NEVER)
        other = signed(who(by), mine, key=key, field="note", value=b"8", clock=clock, over=NEVER)
        alien = signed(who(claimed), "m" * 52, key=key, field="note", value=b"9", clock=clock, over=NEVER)
        ending = signed(who(claimed), "m" * 52, key=key, field=ENDED, value=b'"alien"', clock=clock, over=NEVER)
        rows = [
            dataclasses.replace(real, value=b"6"),
            dataclasses.replace(real, clock=Clock(clock.ms + 1, 0)),
            dataclasses.replace(real, field=ENDED, value=b'"forged"'),
            *([dataclasses.replace(other, author=who(claimed).peer_id)] if by != claimed else []),
            alien,
            ending,
        ]
        self.watch.forged |= set(rows)
        return rows

    def of_a_stranger(self, name: str, key: str) -> list[Row]:
        """Well signed, by somebody who is no signer here."""
        clock = Clock(self.true_ms(), 0)
        rows = [
            signed(who(name), self.roster.mesh_id, key=key, field=each, value=value, clock=clock, over=NEVER)
            for each, value in (("name", b"5"), ("stray", b"5"), (ENDED, b'"by a stranger"'))
        ]
        self.watch.made |= set(rows)
        return rows

    # -- an end to all faults

    def settle(self) -> None:
        """Clocks are set, disks have room, all machines run and know of each other; then all compare."""
        self.part([0] * len(self.names))
        for name in self.names:
            peer = self.peers[name]
            self.set_clock(name, peer.base_skew_ms)
            self.fill(name, is_full=False)
            self.start(name)
        roster = self.roster.merged({s for peer in self.peers.values() for s in peer.roster.statements})
        for peer in self.peers.values():
            if peer.id in roster.members:
                self._know(peer, roster)
        members = [peer for peer in self.peers.values() if peer.id in roster.members]
        promise = self.watch.promise(members, self.true_ms(), is_apart_for_long=self.apart_s >= STALE_S - 2 * DAY_S)
        for _ in range(ROUNDS):
            self.loop.now += ROUND_S
            self.all_compare()
        self.watch.settled(members, promise, self.true_ms())
        self.has_wrong_clocks = False
        self.apart_s = 0.0
        for peer in members:
            if peer.is_signer:
                self._reads_everywhere(peer, members)

    def _reads_everywhere(self, writer: Peer, members: Sequence[Peer]) -> None:
        """What is written now is read by all at once."""
        self.numbers += 1
        if self.write(writer.name, SETTINGS[0], {"name": self.numbers}):
            for peer in members:
                found = peer.admin.get(SETTINGS[0]) if peer.admin is not None else None
                assert found is not None and found["name"] == self.numbers, (
                    f"{peer.name} does not read what {writer.name} wrote: {found}"
                )

    # -- how it looks

    def reaches(self, one: Peer, other: Peer) -> bool:
        """Both run, are on the same side, and take each other for members."""
        return (
            one is not other
            and one.is_up
            and other.is_up
            and one.side == other.side
            and other.id in one.roster.members
            and one.id in other.roster.members
        )

    def coordinator_of(self, peer: Peer) -> Peer | None:
        """Each side of a partition has its own: the first signer of those that see each other."""
        seen = [each for each in self.peers.values() if each is peer or self.reaches(peer, each)]
        return next((each for each in seen if each.id in peer.signers), None)

    def check(self, actor: str | None = None) -> None:
        """At any moment: see tests.sim.admin_watch."""
        first = [self.peers[actor]] if actor is not None else []
        self.watch.look([*first, *[peer for peer in self.peers.values() if peer not in first]])
        assert not self.raised, f"raised: {self.raised}"

    async def carried(self, sender: Peer, process: Admin, peer: PeerId, path: str, body: bytes) -> Answer:
        """A question over the network, and its answer. Either may be lost."""
        there = self.by_id[peer]
        await self._way(sender, process, there)
        if self.messages_left is not None:
            if self.messages_left <= 0:
                raise PeerGone("cut off")
            self.messages_left -= 1
        if path == ROWS_PATH and len(self.pushes) < 200:
            self.pushes.append((sender.id, body))
        assert there.spread is not None
        exchange, asked = there.spread.exchange, there.admin
        status, data = await self._answered(exchange.rows if path == ROWS_PATH else exchange.sync, sender.id, body)
        if there.admin is not asked:
            raise PeerGone("it died over it")
        await self._way(sender, process, there)
        if self.lie is not None:
            data, self.has_wrong_clocks = self.lie(data), True
        return Answer(status=status, headers={}, body=data)

    async def _way(self, sender: Peer, process: Admin, there: Peer) -> None:
        await asyncio.sleep(DELAY_S)
        if sender.admin is not process or not self.reaches(sender, there) or there.name in self.deaf:
            raise PeerGone(f"{there.name} is not to be reached")

    async def _answered(self, answer: Any, sender: PeerId, body: bytes) -> tuple[int, bytes]:
        try:
            found: tuple[int, bytes] = await answer(sender, body)
            assert found[0] in (200, 400, 403, 409), found[0]
            return found
        except Exception as error:  # noqa: BLE001 - whatever a member sends must be answered
            self.raised.append(repr(error))
            return 500, b""

    def garbled(self, data: bytes) -> bytes:
        """The same with a few bytes changed, cut off or added, or something else altogether."""
        kind = self.rng.randrange(4)
        if kind == 0:
            return self.rng.randbytes(self.rng.randrange(40))
        changed = bytearray(data)
        for _ in range(self.rng.randrange(1, 4)):
            if changed:
                changed[self.rng.randrange(len(changed))] = self.rng.randrange(256)
        return bytes(changed[: self.rng.randrange(len(changed) + 1)]) if kind == 1 else bytes(changed)

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Until nothing is under way any more."""

        async def whole() -> Any:
            try:
                return await work
            finally:
                rest = asyncio.all_tasks() - {asyncio.current_task()}
                await asyncio.gather(*rest, return_exceptions=True)

        return self.loop.run_until_complete(whole())

    def _written(self, peer: Peer, work: Coroutine[Any, Any, str], deaf: frozenset[str]) -> bool:
        self.deaf = deaf
        try:
            self.do(work)
            return True
        except NoSigner:
            assert not peer.is_signer, f"{peer.name} may sign, and was refused"
        except NotDurable:
            assert peer.disk.is_full, f"{peer.name} has room, and was refused"
        except ClockWrong as error:
            assert self.has_wrong_clocks, f"all clocks are right, and {peer.name} was refused: {error}"
        except KeyEnded:
            pass
        finally:
            self.deaf = frozenset()
        self.watch.not_written(peer)
        return False


async def _quietly(work: Coroutine[Any, Any, bool]) -> None:
    try:
        await work
    except PeerGone:
        pass


class _Ear(logging.Handler):
    """Hears what the product caught at a border: it goes on, and yet nothing should have been raised."""

    def __init__(self, raised: list[str]) -> None:
        super().__init__()
        self._raised = raised

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info is not None and record.exc_info[1] is not None:
            self._raised.append(repr(record.exc_info[1]))
