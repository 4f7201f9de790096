"""The shell around gossip.core: keeps a channel to every member, carries the core's effects, keeps the roster.

    channel bytes -> Core.receive -> effects -> sends, events
    clock         -> Core.tick    ----^

It decides nothing of who is alive or who coordinates (gossip.core), who belongs (gossip.roster), or how strangers are
met (gossip.meeting). Time is the loop's, chance is given: on a loop with virtual time it is deterministic.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from gossip.channel import Channel, Network, Unreachable
from gossip.channels import Channels, Handlers
from gossip.config import GossipConfig
from gossip.core import Core
from gossip.dialling import Dialler
from gossip.effects import (
    Avoid,
    CoordinatorChanged,
    Dial,
    Effect,
    FactChanged,
    MemberChanged,
    OutranMyself,
    Persist,
    Regained,
    Role,
    Transmit,
)
from gossip.election import Claim
from gossip.frames import (
    CORE,
    PROTO_MAX,
    PROTO_MIN,
    Cloned,
    Hello,
    Moved,
    Parting,
    Statements,
    common_version,
    framed,
)
from gossip.home import DoorWord, Home
from gossip.identity import short
from gossip.link import Link
from gossip.member import About, Fact, MemberView
from gossip.roster import Roster

log = logging.getLogger(__name__)

SLEPT_S = 5.0
"""A gap this long, whether the loop's clock counts it or not: the machine slept. Every channel is suspect, and
everybody is asked again."""
LATE_S = 0.25
TICK_S_MAX = 1.0
PENDING_S = 1.0
MEASURE_S = 10.0
IDLE_S = 5.0
PENDING_MAX = 32
STATEMENTS_PER_FRAME = 200
STATEMENT_BYTES_PER_FRAME = 512 * 1024
DIAL_S = 5.0
CLONE_ADDRESSES_MAX = 4
CLONE_AGAIN_S = 10.0
LEARN_S = 0.1
"""Statements are merged this often at most: each merge is a write to the disk and new TLS contexts."""
UNMERGED_MAX = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """What the agent tells; each is called in the loop and must not wait."""

    avoid: Callable[[str], None] = lambda peer: None
    regained: Callable[[str], None] = lambda peer: None
    member: Callable[[MemberChanged], None] = lambda event: None
    fact: Callable[[str, str], None] = lambda peer, key: None
    coordinator: Callable[[Claim | None], None] = lambda claim: None
    roster: Callable[[Roster], None] = lambda roster: None
    expelled: Callable[[], None] = lambda: None
    moved: Callable[[str, Sequence[str]], None] = lambda mesh_id, addresses: None
    cloned: Callable[[str], None] = lambda address: None
    slept: Callable[[], None] = lambda: None
    round_trip: Callable[[str, float], None] = lambda peer, seconds: None
    wrong_version: Callable[[str, Hello], None] = lambda peer, hello: None


class Agent:
    """One peer's part in its mesh. `run` until cancelled; all methods belong to that loop."""

    def __init__(
        self,
        *,
        me: str,
        run: int,
        home: Home,
        network: Network,
        about: About,
        config: GossipConfig,
        rng: random.Random,
        events: Events | None = None,
        versions: tuple[int, int] = (PROTO_MIN, PROTO_MAX),
        asleep_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`run`: ms since the epoch at the start of this process. `versions` of the wire that it speaks. `asleep_s`:
        how long the machine has slept in all, as far as the loop's clock stood still meanwhile."""
        self._versions = versions
        self._asleep_s = asleep_s
        self.me = me
        self.run_id = run
        self._home = home
        self._network = network
        self._about = about
        self._config = config
        self._rng = rng
        self._events = events or Events()
        self._loop = asyncio.get_running_loop()
        self._facts: dict[str, tuple[bytes, bool]] = {}
        self._pending: dict[str, list[tuple[float, bytes]]] = {}
        self._wake = asyncio.Event()
        self._unmerged: list[bytes] = []
        self._look_again_at = 0.0
        self._pinned: str | None = None
        self._parting: set[str] = set()
        self._tasks = asyncio.TaskGroup()
        self._channels = Channels(
            me=me,
            rng=rng,
            handlers=Handlers(
                hello=self._hello,
                takes=self._takes,
                opened=self._opened,
                closed=self._closed,
                core=lambda peer, data, now: self._carry(self._core.receive(peer, data, now)),
                framed=self._framed,
                where=self.addresses,
            ),
        )
        self._dialler = Dialler(
            me=me,
            network=network,
            addresses=self.addresses,
            opened=self._dialled,
            refused=self.gone,
            config=config,
            rng=rng,
        )
        self._core = self._new_core()
        self.is_leaving = False

    # -- life

    async def run(self) -> None:
        """Takes part until cancelled; then every channel is closed."""
        self._network.accept(self._channels.serve)
        try:
            async with self._tasks:
                self._tasks.create_task(self._drive(), name="gossip clock")
                self._tasks.create_task(self._dialler.run(), name="gossip dialler")
                self._tasks.create_task(self._measure(), name="gossip round trips")
                self._carry(self._core.members_are(self._roles(), self._now()))
                self._refresh()
        finally:
            await self._channels.close()

    async def leave(self) -> None:
        """Says goodbye to everybody; what is said is on its way when this returns."""
        self.is_leaving = True
        self._carry(self._core.leave(self._now()))
        await self._channels.flushed()

    async def adopt(self, roster: Roster, word: DoorWord | None = None) -> None:
        """Moves to the mesh of `roster`, which has this peer in it. The old members are told where to."""
        moved = framed(Moved(mesh_id=roster.mesh_id, addresses=self._about.addresses))
        for link in self._channels:
            link.put(moved, self._now())
        await self.leave_for(lambda: self._home.move(roster, word))

    async def leave_for(self, go: Callable[[], None]) -> None:
        """Out of this mesh; `go` puts the home into another one, also when the goodbye is cancelled on its way out:
        a core that has left takes part in nothing any more."""
        self._carry(self._core.leave(self._now()))
        try:
            await self._channels.flushed()
        finally:
            for link in self._channels:
                self._channels.drop(link)
            go()
            self._changed_mesh()

    def _changed_mesh(self) -> None:
        self._unmerged = []
        self.run_id += 1  # who comes back to a mesh that it left is not taken for the one that left
        self._core = self._new_core()
        self._changed_roster()

    # -- what others may ask

    @property
    def roster(self) -> Roster:
        return self._home.roster

    @property
    def coordinator(self) -> Claim | None:
        return self._core.coordinator

    def succession(self) -> Sequence[str]:
        """Everybody alive who may coordinate, this peer among them, first in the order first."""
        return self._core.succession()

    def members(self) -> Sequence[MemberView]:
        """Everybody of the roster but this peer."""
        return self._core.members()

    def member(self, peer: str) -> MemberView | None:
        return self._core.member(peer)

    def fact(self, peer: str, key: str) -> Fact | None:
        return self._core.fact(peer, key)

    def numbers(self) -> dict[str, int]:
        """What is counted: traffic since the start, and how it is now."""
        traffic = self._channels.traffic
        return {
            "messages_in": traffic.messages_in,
            "messages_out": traffic.messages_out,
            "bytes_in": traffic.bytes_in,
            "bytes_out": traffic.bytes_out,
            "rounds": self._core.probes,
            "channels": sum(1 for _ in self._channels),
            "health": self._core.health,
        }

    def is_connected(self, peer: str) -> bool:
        return self._channels.get(peer) is not None

    def addresses(self, peer: str) -> tuple[str, ...]:
        """Where `peer` may be reached, the best guess first."""
        view = self._core.member(peer)
        told = view.about.addresses if view is not None else ()
        link = self._channels.get(peer)
        here = (link.channel.address,) if link is not None and link.channel.is_dialled else ()
        if here and here[0] in told:
            told = (*here, *told)
        if link is not None and told:  # it is here and says where: one may wait long at an address of before
            return tuple(dict.fromkeys((*told, *here)))
        return tuple(dict.fromkeys((*here, *self._home.addresses(peer), *self._dialler.hinted(peer), *told)))

    def set_fact(self, key: str, value: bytes, *, fast: bool = False) -> None:
        """Tells everybody; a fact outlives a move to another mesh."""
        if self._facts.get(key) != (value, fast):
            self._facts[key] = (value, fast)
            self._carry(self._core.set_fact(key, value, self._now(), fast=fast))

    def about_is(self, **changes: object) -> None:
        """Addresses, draining, eligibility or copies changed."""
        about = replace(self._about, **changes)  # type: ignore[arg-type]
        if about != self._about:
            self._about = about
            self._carry(self._core.about_is(about, self._now()))

    @property
    def about(self) -> About:
        return self._about

    def set_roster(self, roster: Roster) -> None:
        """The roster of this mesh has new statements, made or admitted here: everybody hears of them at once."""
        before = set(self._home.roster.statements)
        if roster.mesh_id != self._home.roster.mesh_id:
            raise ValueError("another mesh: use adopt")
        fresh = [s for s in roster.statements if s not in before]
        if fresh:
            self._home.set_roster(roster)
            self._flood(fresh)
            self._changed_roster()

    def pinned_is(self, peer: str | None) -> None:
        """An admin wants `peer` to coordinate, or (None) nobody in particular."""
        if peer != self._pinned:
            self._pinned = peer
            self._carry(self._core.pinned_is(peer, self._now()))

    def hinted(self, peer: str, addresses: Sequence[str]) -> None:
        """Somebody says that the member may be there."""
        self._dialler.hint(peer, addresses)
        link = self._channels.get(peer)
        if link is not None and addresses and link.channel.is_dialled and link.channel.address not in addresses:
            self._channels.check(link)  # it may have moved
        if peer in self._home.roster.members:
            self._carry(self._core.hinted(peer, self._now()))

    def heard(self, peer: str) -> None:
        """`peer` did something that only a living one does."""
        self._carry(self._core.heard(peer, self._now()))

    def gone(self, peer: str) -> None:
        """A connection to `peer` failed elsewhere: it is probed now."""
        self._carry(self._core.disconnected(peer, self._now()))

    async def probe(self, peer: str, timeout_s: float = 1.0) -> bool:
        """Does it answer, now?"""
        return await self._channels.probe(peer, timeout_s)

    def interfaces_changed(self, addresses: tuple[str, ...]) -> None:
        """This machine has other addresses now; channels from an old one may be dead and not know it."""
        self.about_is(addresses=addresses)
        self._channels.check_all()
        self._dialler.wake_all()

    # -- the core

    def _now(self) -> float:
        return self._loop.time()

    def _new_core(self) -> Core:
        core = Core(
            me=self.me,
            run=self.run_id,
            about=self._about,
            config=self._config,
            rng=random.Random(self._rng.getrandbits(64)),
            now=self._now(),
            claim=self._home.claim,
        )
        for key, (value, fast) in self._facts.items():
            core.set_fact(key, value, self._now(), fast=fast)
        return core

    def _roles(self) -> Mapping[str, Role]:
        return {peer: member.state for peer, member in self._home.roster.members.items()}

    async def _drive(self) -> None:
        before, slept = self._now(), self._asleep_s()
        while True:
            wait = min(TICK_S_MAX, max(0.0, self._core.wake_at - self._now()))
            self._wake.clear()
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                pass
            now = self._now()
            slept_before, slept = slept, self._asleep_s()
            gap_s = now - before + slept - slept_before
            if gap_s > SLEPT_S:
                self._woke_up(gap_s)
            if now - self._core.wake_at > LATE_S:
                for _ in range(3):  # what has arrived meanwhile is heard before anybody is judged
                    await asyncio.sleep(0)
                now = self._now()
            before = now
            self._carry(self._core.tick(now))

    async def _measure(self) -> None:
        """How far the others are: one small question to each now and then."""
        while True:
            await asyncio.sleep(MEASURE_S * (0.75 + 0.5 * self._rng.random()))
            for link in self._channels:
                began = self._now()
                if await self._channels.probe(link.peer):
                    self._events.round_trip(link.peer, self._now() - began)
            self._part_with_idle(self._now())

    def _woke_up(self, gap_s: float) -> None:
        log.warning("the machine slept, or was stopped; joining again", extra={"seconds": round(gap_s, 1)})
        self._channels.check_all()
        self._dialler.wake_all()
        self._events.slept()

    def _carry(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Transmit(to=to, data=data):
                    self._send(to, CORE + data)
                case Persist(claim=claim):
                    self._home.set_claim(claim)
                case Dial(peer=peer):
                    self._dialler.want(peer)
                case Avoid(peer=peer):
                    self._events.avoid(peer)
                case Regained(peer=peer):
                    self._events.regained(peer)
                case MemberChanged():
                    self._dialler.state_is(effect.peer, effect.after)
                    self._member_changed(effect)
                    self._events.member(effect)
                case FactChanged(peer=peer, key=key):
                    self._events.fact(peer, key)
                case CoordinatorChanged(claim=claim):
                    self._events.coordinator(claim)
                case OutranMyself(run=run):
                    log.warning("a later start of this very peer was heard of; is its data folder a copy?")
                    self.run_id = run
        if effects:
            self._wake.set()

    def _member_changed(self, event: MemberChanged) -> None:
        """A channel to somebody who does not answer keeps a better one from being opened."""
        link = self._channels.get(event.peer)
        if link is not None and event.after == "dead":
            self._channels.drop(link)
        elif link is not None and event.after == "suspect":
            self._channels.check(link)
        elif event.after == "alive":
            self._remember(event.peer)

    def _remember(self, peer: str) -> None:
        """A member tells where it is: after a restart it may be for this peer to dial."""
        view = self._core.member(peer)
        if view is not None and view.state == "alive" and view.about.addresses and not self._home.addresses(peer):
            self._home.remember(peer, view.about.addresses[0])

    def _send(self, to: str, data: bytes) -> None:
        now = self._now()
        if self._channels.put(to, data):
            return
        waiting = self._pending.setdefault(to, [])
        waiting.append((now, data))
        del waiting[:-PENDING_MAX]
        self._dialler.want(to)

    # -- channels

    async def _dialled(self, channel: Channel) -> None:
        try:
            await self._channels.serve(channel)
        except Exception:  # border: a message that met a bug costs its channel, as where the other side had dialled
            log.exception("a channel failed and is opened anew", extra={"peer": short(channel.peer)})
        finally:
            await channel.close()

    def _hello(self) -> Hello:
        roster = self._home.roster
        return Hello(
            proto_min=self._versions[0],
            proto_max=self._versions[1],
            mesh_id=roster.mesh_id,
            run=self.run_id,
            version=self._about.version,
            digest=roster.digest,
        )

    def _takes(self, channel: Channel, hello: Hello) -> bool:
        """Whether this channel is for us: a version in common, this mesh, a member, and not ourselves."""
        if common_version(hello, self._versions) is None:
            log.debug("a peer speaks another version", extra={"peer": short(channel.peer), "version": hello.version})
            self._events.wrong_version(channel.peer, hello)
            return False
        if channel.peer == self.me:
            self._met_myself(channel, hello)
            return False
        if hello.mesh_id != self._home.roster.mesh_id:
            self._events.moved(hello.mesh_id, (channel.address,) if channel.is_dialled else ())
            return False
        return channel.peer in self._home.roster.members

    def _met_myself(self, channel: Channel, hello: Hello) -> None:
        """Another process proves my identity. The one that started later gives way."""
        if hello.run < self.run_id:
            self._events.cloned(channel.address)

    async def look_for_clone(self, address: str) -> None:
        """Whether another process with this peer's identity is there: its handshake proves it, or nothing does."""
        try:
            channel = await self._network.dial(self.me, address, DIAL_S)
        except Unreachable:
            return
        try:
            hello = await self._channels.greeted(channel)
            if hello is not None:
                self._met_myself(channel, hello)
        finally:
            await channel.close()

    def _opened(self, link: Link, hello: Hello) -> None:
        now = self._now()
        self._dialler.has(link.peer, True)
        if link.channel.is_dialled:
            self._home.remember(link.peer, link.channel.address)
        if hello.digest != self._home.roster.digest:
            self._tell(link, self._home.roster.statements)
        for at, data in self._pending.pop(link.peer, []):
            if now - at <= PENDING_S:
                link.put(data, now)
        self._carry(self._core.connected(link.peer, now))

    def _closed(self, peer: str) -> None:
        self._dialler.has(peer, False)
        if peer in self._parting:
            self._parting.discard(peer)
            self._carry(self._core.parted(peer, self._now()))
        else:
            self._carry(self._core.disconnected(peer, self._now()))

    def _part_with_idle(self, now: float) -> None:
        """Above `channels_max` the channels least recently used are closed, and both sides know why."""
        links = sorted(self._channels, key=lambda link: link.used_at)
        for link in links[: max(0, len(links) - self._config.channels_max)]:
            if now - link.used_at >= IDLE_S:
                link.put(framed(Parting()), now)
                self._part(link)

    def _part(self, link: Link) -> None:
        self._parting.add(link.peer)
        self._channels.dismiss(link)

    def _framed(self, link: Link, message: object) -> None:
        match message:
            case Statements(statements=statements):
                self._learned(statements)
            case Moved(mesh_id=mesh_id, addresses=addresses):
                self._events.moved(mesh_id, addresses)
            case Parting():
                self._part(link)
            case Cloned(addresses=addresses) if self._now() >= self._look_again_at:  # anybody can say so
                self._look_again_at = self._now() + CLONE_AGAIN_S
                for address in addresses[:CLONE_ADDRESSES_MAX]:
                    self._tasks.create_task(self.look_for_clone(address), name="looking for a clone")

    # -- the roster

    def _tell(self, link: Link, statements: Sequence[bytes]) -> None:
        for part in _parts(statements):
            link.put(framed(Statements(statements=part)), self._now())

    def _flood(self, statements: Sequence[bytes]) -> None:
        for link in self._channels:
            self._tell(link, statements)

    def _learned(self, statements: Sequence[bytes]) -> None:
        """Statements that the other side of a link believes we lack; merged a moment later, with others'."""
        if not self._unmerged:
            self._loop.call_later(LEARN_S, self._merge)
        if len(self._unmerged) < UNMERGED_MAX:
            self._unmerged.extend(statements)

    def _merge(self) -> None:
        before, statements = self._home.roster, self._unmerged
        self._unmerged = []
        known = set(before.statements)
        roster = before.merged(statements)
        fresh = [s for s in roster.statements if s not in known]
        if not fresh:
            return
        self._home.set_roster(roster)
        self._flood(fresh)
        self._changed_roster()
        if self.me not in roster.members:
            self._events.expelled()

    def _changed_roster(self) -> None:
        roster = self._home.roster
        self._events.roster(roster)  # first: new members must find their certificates trusted
        for link in self._channels:
            if link.peer not in roster.members:
                log.warning("a peer is no member any more", extra={"peer": short(link.peer)})
                self._channels.dismiss(link)
        self._carry(self._core.members_are(self._roles(), self._now()))
        self._refresh()

    def _refresh(self) -> None:
        others = [peer for peer in self._home.roster.members if peer != self.me]
        self._dialler.members_are(others)
        for peer in set(self._pending) - set(others):
            del self._pending[peer]


def _parts(statements: Sequence[bytes]) -> Iterator[tuple[bytes, ...]]:
    """All of them, in frames: most have a kilobyte, but some a hundred."""
    part: list[bytes] = []
    size = 0
    for statement in statements:
        if part and (len(part) >= STATEMENTS_PER_FRAME or size + len(statement) > STATEMENT_BYTES_PER_FRAME):
            yield tuple(part)
            part, size = [], 0
        part.append(statement)
        size += len(statement)
    if part:
        yield tuple(part)
