"""This peer's part in the mesh, built and ended in order: identity, peer port, gossip, discovery, and what they tell.

    identity, home -> tls -> peer port -> agent -> meeting -> discovery, seeds, run dir
    stop: draining told, work handed over, goodbye, discovery, agent, peer port

Nothing is decided here: who belongs is gossip.roster's, who is alive gossip.core's, who joins whom gossip.admission's.
What people read of it is mesh.overview's, what they do to it mesh.governing's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossip import interfaces
from gossip.agent import Agent, Events
from gossip.config import LAN, GossipConfig
from gossip.discovery import Discovery
from gossip.effects import MemberChanged
from gossip.election import Claim
from gossip.errors import GossipError, UnusableIdentity
from gossip.frames import Hello
from gossip.hints import Hint
from gossip.home import Home, Move, word_in, word_out
from gossip.identity import Identity, load_or_create, short
from gossip.meeting import Meeting, Said
from gossip.member import About
from gossip.roster import Roster
from gossip.rundir import Housemate, RunDir
from gossip.seeds import Found, Own, Seeds, seeds_of
from gossip.storage import MeshFile
from gossip.tls import Tls
from gossip.transport import PeerPort, PeerRoute
from mesh.cli import news
from mesh.config import Config
from mesh.errors import PortBusy, StartError
from mesh.facts import DOOR
from mesh.governing import Governing
from mesh.hosts import MESH_NAME, only_address, peer_hosts
from mesh.neighbours import Neighbours
from mesh.overview import MeshOverview
from mesh.report import Report
from mesh.sleep import asleep_s
from mesh.version import our_version
from web.services import MeshFacet

log = logging.getLogger(__name__)

PORTS_TRIED = 20
ELIGIBILITY = {"never": 0, "allow": 1, "prefer": 2}
HOUSEMATES_S = 2.0
STRANGERS_S = 1.0
STRANGERS_OLD_S = 30.0
FLUSH_S = 30.0
GOODBYE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """Who else is told what gossip tells; each is called in the loop and must not wait.

    `coordinator`: somebody else coordinates, or (None) nobody is known to. `roster`: members came, went or changed.
    `fact`: a member's fact of that key is newer. `member`: one is alive, dead or gone. `moved`: this peer is in another
    mesh now, and how it came there.
    """

    coordinator: Callable[[Claim | None], None] = lambda claim: None
    roster: Callable[[Roster], None] = lambda roster: None
    fact: Callable[[str, str], None] = lambda peer, key: None
    member: Callable[[MemberChanged], None] = lambda event: None
    moved: Callable[[Move], None] = lambda move: None


class Copied(StartError):
    """This data folder is a copy: another machine has its identity, and was here first."""


class Peering:
    """Everything of the mesh that lives as long as the peer. Made by `peering`."""

    def __init__(
        self,
        *,
        config: Config,
        identity: Identity,
        home: Home,
        neighbours: Neighbours,
        report: Report,
        announce: Callable[[str], None],
        fail: Callable[[StartError], None],
        is_draining: Callable[[], bool],
        came_back: Callable[[str], None],
        gone: Callable[[str], None],
        gossip: GossipConfig = LAN,
        heard: Heard = Heard(),
        notes: Callable[[str], Mapping[str, Any]] = lambda peer: {},
    ) -> None:
        """`fail` ends the peer with an error; `came_back` and `gone` hear of members that live again, or no more;
        `heard` of all that gossip tells; `notes` are what people wrote about a peer."""
        self._heard = heard
        self._config = config
        self._neighbours = neighbours
        self._report = report
        self._announce = announce
        self._fail = fail
        self._came_back = came_back
        self._gone = gone
        self._rng = random.Random(secrets.randbits(64))
        self._loop = asyncio.get_running_loop()
        self._client_port = 0
        self._secret = secrets.token_urlsafe(32)
        self._only = only_address(ip=config.ip, bind=config.bind_address)
        self._choice = interfaces.read(self._only)
        self._discovery: Discovery | None = None
        self._seeds: Seeds | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._guests: set[str] = set()
        self._run_dir = RunDir(config.run_dir)
        self.identity = identity
        self.home = home
        self._known = set(self.home.roster.members)
        self._mesh_id = self.home.roster.mesh_id
        self.tls = Tls(identity)
        self.tls.update(self.home.roster)
        self.port = PeerPort(self.tls, roster=lambda: self.home.roster)
        self.agent = self._new_agent(gossip)
        self.meeting = self._new_meeting()
        self.port.add(self.meeting.routes())
        self.overview = MeshOverview(
            agent=self.agent,
            home=self.home,
            meeting=self.meeting,
            neighbours=neighbours,
            is_draining=is_draining,
            clock=self._loop.time,
            notes=notes,
        )
        self.governing = Governing(
            identity=identity,
            agent=self.agent,
            home=self.home,
            meeting=self.meeting,
            overview=self.overview,
            now_s=time.time,
            tell_door=self._tell_door,
        )

    def _new_agent(self, gossip: GossipConfig) -> Agent:
        return Agent(
            me=self.identity.peer_id,
            run=int(time.time() * 1000),
            home=self.home,
            network=self.port,
            about=About(version=our_version(), eligibility=ELIGIBILITY[self._config.coordinator]),
            config=gossip,
            rng=random.Random(self._rng.getrandbits(64)),
            asleep_s=asleep_s,
            events=Events(
                avoid=self._neighbours.avoid,
                regained=self._neighbours.regained,
                member=self._member_changed,
                fact=self._fact_changed,
                coordinator=self._coordinator_changed,
                roster=self._roster_changed,
                expelled=self._expelled,
                moved=self._moved,
                cloned=self._cloned,
                slept=self._slept,
                round_trip=self._neighbours.round_trip,
                wrong_version=self._wrong_version,
            ),
        )

    def _new_meeting(self) -> Meeting:
        return Meeting(
            identity=self.identity,
            name=self._config.name,
            home=self.home,
            agent=self.agent,
            network=self.port,
            secret=self._secret,
            addresses=self.addresses,
            said=Said(
                asking=lambda mesh, members, digits: self._say(news.found(mesh, members, digits)),
                not_joined=lambda mesh, reason: self._say(news.not_joined(mesh, reason)),
                joined=lambda mesh, members: self._say(news.joined(mesh, members)),
                asked=lambda name, digits, address: self._say(news.asked(name, digits, address)),
                admitted=lambda name, short_id, via: self._say(news.admitted(name, short_id, via)),
            ),
            now_s=time.time,
            rng=random.Random(self._rng.getrandbits(64)),
        )

    @property
    def facet(self) -> MeshFacet:
        """What the HTTP surface is given."""
        return MeshFacet(
            overview=self.overview.overview,
            agents=self.overview.agents,
            peer=self.overview.peer,
            identity=self.overview.identity,
            joins=self.overview.joins,
            door=self.governing.door,
            approve=self.governing.approve,
            deny=self.governing.deny,
            invite=self.governing.invite,
            join=self.governing.join,
            leave=self.governing.leave,
            rename=self.governing.rename,
            revoke=self.governing.revoke,
            trust=self.governing.trust,
            well_known=lambda: self.overview.well_known(self.port.port or None),
        )

    def addresses(self) -> tuple[str, ...]:
        """Where other machines reach this peer."""
        return tuple(interfaces.joined(host, self.port.port) for host in self._choice.advertised)

    def greeting(self) -> str:
        """Where this peer stands with other machines, in words."""
        members = len(self.home.roster.members)
        return news.together(self.home.mesh_name, members) if members > 1 else news.alone(self.home.door_seconds_left())

    # -- life

    @asynccontextmanager
    async def taking_part(self, client_port: int, routes: Sequence[PeerRoute]) -> AsyncIterator[None]:
        """In the mesh while the block runs; leaves with a goodbye. `routes`: what mesh serves to members."""
        config = self._config
        self._client_port = client_port
        self.port.add(routes)
        await self._listen(client_port)
        self.agent.about_is(addresses=self.addresses())
        self._neighbours.follow(self.agent)
        self._tell_door()
        tasks = [
            asyncio.create_task(self.agent.run(), name="gossip"),
            asyncio.create_task(self._report.keep_told(self.agent.set_fact, config.heartbeat_secs), name="report"),
            asyncio.create_task(self.meeting.run(), name="meeting"),
            asyncio.create_task(self._watch_interfaces(), name="interfaces"),
            asyncio.create_task(self._watch_house(), name="housemates"),
            asyncio.create_task(self._watch_strangers(), name="strangers"),
            asyncio.create_task(self._keep_written(), name="addresses"),
        ]
        for task in tasks:
            task.add_done_callback(self._task_ended)
        try:
            await self._discover(client_port)
            if self._seeds is not None:
                tasks.append(asyncio.create_task(self._seeds.run(self._offered), name="seeds"))
                tasks[-1].add_done_callback(self._task_ended)
            if config.join is not None:
                self.meeting.join_soon(config.join.reveal())
            yield
        finally:
            await self._goodbye(tasks)

    def drain(self) -> None:
        """Routers everywhere stop asking this peer."""
        self.agent.about_is(draining=True)

    async def _listen(self, client_port: int) -> None:
        config = self._config
        if config.mesh_port:
            ports: Sequence[int] = [config.mesh_port]
        else:
            ports = range(client_port + 1, min(65536, client_port + 1 + PORTS_TRIED)) if config.port else [0]
        try:
            await self.port.start(peer_hosts(config.bind_address), ports)
        except OSError as error:
            raise PortBusy(
                f"the peer port cannot be opened: {error.strerror or error}",
                fix="--mesh-port chooses another, or end the program that has it",
            ) from error

    async def _discover(self, client_port: int) -> None:
        config = self._config
        self._run_dir.publish(Housemate(peer=self.agent.me, port=self.port.port, pid=os.getpid(), secret=self._secret))
        if config.mdns:
            self._discovery = Discovery(
                me=self.agent.me,
                port=self.port.port,
                mesh=self.home.roster.mesh_id[:16],
                version=our_version(),
                choice=self._choice,
                on_hint=self._hinted,
                rng=random.Random(self._rng.getrandbits(64)),
            )
            await self._discovery.start()
        try:
            seeds = seeds_of(config.url)
        except ValueError as error:
            raise StartError(f"LLM_ROUTER_URL: {error}") from None
        if seeds:
            own = lambda: Own(  # noqa: E731
                hosts=frozenset((*self._choice.advertised, *self._choice.inner)),
                ports=frozenset((client_port, self.port.port)),
            )
            self._seeds = Seeds(seeds, own=own, rng=random.Random(self._rng.getrandbits(64)))

    async def _goodbye(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.remove_done_callback(self._task_ended)
        self._run_dir.withdraw()
        try:
            async with asyncio.timeout(GOODBYE_S):
                await self.agent.leave()
        except TimeoutError:
            log.warning("the goodbye was not heard by all")
        if self._discovery is not None:
            await self._discovery.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.port.close()
        await asyncio.to_thread(self.home.flush)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """A part of the mesh ended by itself: it must not, and a peer that is half there is worse than none."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a part of the mesh failed", extra={"part": task.get_name()}, exc_info=error)
            self._fail(StartError(f"the mesh failed ({task.get_name()}): {error!r}; the log says more"))

    # -- who may be there

    def _hinted(self, hint: Hint) -> None:
        """mDNS tells of somebody. It proves nothing."""
        if hint.peer_id == self.agent.me:
            elsewhere = [a for a in hint.addresses if a not in self.addresses()]
            self.meeting.suspect_clone(elsewhere)
        elif hint.peer_id in self.home.roster.members:
            self.agent.hinted(hint.peer_id, () if hint.is_removed else hint.addresses)
        elif not hint.is_removed:
            self.meeting.hinted(hint.addresses, hint.mesh)

    async def _offered(self, found: Found) -> bool:
        """A seed leads to this address."""
        return await self.meeting.offered(found.address)

    def _moved(self, mesh_id: str, addresses: Sequence[str]) -> None:
        """A member went to another mesh, which may be ours to join as well."""
        if addresses and mesh_id != self.home.roster.mesh_id:
            self.meeting.hinted(addresses, mesh_id[:16])

    async def _watch_house(self) -> None:
        while True:
            for mate in await asyncio.to_thread(self._run_dir.others, self.agent.me):
                if mate.peer in self.home.roster.members:
                    if not self.agent.is_connected(mate.peer):
                        self.agent.hinted(mate.peer, (mate.address,))
                else:
                    self.meeting.housemate(mate)
            await asyncio.sleep(HOUSEMATES_S)

    async def _watch_strangers(self) -> None:
        """A mesh that was not joined when it was heard of may be one to join now: it grew, or opened its door."""
        while True:
            await asyncio.sleep(STRANGERS_S if self.home.is_young else STRANGERS_OLD_S)
            for hint in self._discovery.hints if self._discovery is not None else ():
                if hint.peer_id not in self.home.roster.members:
                    self._hinted(hint)

    async def _watch_interfaces(self) -> None:
        async def changed(choice: interfaces.Choice) -> None:
            log.info("the addresses of this machine changed", extra={"addresses": list(choice.advertised)})
            self._choice = choice
            self.agent.interfaces_changed(self.addresses())
            if self._discovery is not None:
                await self._discovery.addresses_are(choice)
            if self._seeds is not None:
                self._seeds.wake()

        await interfaces.watch(changed, before=self._choice, node_ip=self._only)

    async def _keep_written(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            self.home.flush()

    # -- what gossip tells

    def _member_changed(self, event: MemberChanged) -> None:
        if event.before == event.after:
            return
        self._heard.member(event)
        name = self.overview.name_of(event.peer)
        log.info("peer is %s", event.after, extra={"peer": name, "id": short(event.peer), "before": event.before})
        if event.after == "alive":
            self.overview.wrong_versions.pop(event.peer, None)
            self._came_back(event.peer)
            if event.before == "dead":
                self._announce(news.back(name))
        if event.after in ("dead", "left"):
            self._gone(event.peer)
        if event.after == "dead":
            self._announce(news.lost(name))
        elif event.after == "left":
            self._announce(news.left(name))

    def _fact_changed(self, peer: str, key: str) -> None:
        if key == DOOR:
            fact = self.agent.fact(peer, key)
            word = word_in(fact.value) if fact is not None else None
            # a guest signs nothing, so it opens no door either
            if word is not None and self.home.roster.is_signer(peer) and self.home.heard(word):
                self._tell_door()
        else:
            self.meeting.askers.fact_changed(peer, key)
            self._neighbours.fact_changed(peer, key)
            self._heard.fact(peer, key)

    def _tell_door(self) -> None:
        self.agent.set_fact(DOOR, word_out(self.home.word))

    def _coordinator_changed(self, claim: Claim | None) -> None:
        is_this = claim is not None and claim.peer == self.agent.me
        self._heard.coordinator(claim)
        if claim is not None:
            name = self.overview.name_of(claim.peer)
            log.info("coordinator", extra={"peer": name, "term": claim.term, "is_this": is_this})
            if len(self.home.roster.members) > 1:
                self._announce(news.coordinator(name, claim.term, is_this=is_this))
        if self._discovery is not None:
            if is_this:
                self._discovery.publish_name(MESH_NAME, self._client_port)
            else:
                self._discovery.unpublish_name(MESH_NAME)

    def _roster_changed(self, roster: Roster) -> None:
        self.tls.update(roster)
        if roster.mesh_id != self._mesh_id:
            self._mesh_id = roster.mesh_id
            self._heard.moved(self.home.last_move)
        self._heard.roster(roster)
        guests = {peer for peer, member in roster.members.items() if member.state == "guest"}
        if guests - self._guests and roster.is_signer(self.agent.me):
            self._say(news.guests([roster.name_of(peer) for peer in sorted(guests)]))
        self._guests = guests
        self._tell_door()  # of another mesh: the old one's word must not open this one's door
        self._neighbours.forget(set(roster.members))
        for peer in self._known - set(roster.members):
            self._gone(peer)
        self._known = set(roster.members)
        self.meeting.askers.roster_changed(roster)
        if self._discovery is not None:
            self._discovery.update(mesh=roster.mesh_id[:16])

    def _expelled(self) -> None:
        """A member revoked this peer. It goes on, as a mesh of its own."""
        roster = self.home.roster
        by = roster.revoked_by(self.agent.me)
        self._say(news.this_was_revoked(self.home.mesh_name, roster.name_of(by) if by is not None else "a member"))
        self._leaving = self._loop.create_task(self.meeting.leave(), name="expelled")

    def _cloned(self, address: str) -> None:
        self._fail(
            Copied(
                news.same_identity(address).splitlines()[0],
                fix="make it a machine of its own: llm-router identity reset, then llm-router",
            )
        )

    def _slept(self) -> None:
        """The network may be another one, and others may have gone on without us."""
        if self._seeds is not None:
            self._seeds.wake()
        if self._discovery is not None:
            self._refreshing = self._loop.create_task(self._discovery.refresh(), name="mDNS after sleep")

    def _wrong_version(self, peer: str, hello: Hello) -> None:
        """Said once, though it is tried again and again: one of the two may be updated at any moment."""
        if self.overview.wrong_versions.get(peer) == hello.version:
            return
        self.overview.wrong_versions[peer] = hello.version
        line = news.wrong_version(self.overview.name_of(peer), hello.version, our_version())
        log.warning(line)
        self._announce(line)

    def _say(self, line: str) -> None:
        """What happened with strangers, in words."""
        log.info(line.splitlines()[0])
        self._announce(line)


def home_of(config: Config, identity: Identity) -> Home:
    """What this peer knows of its mesh, or a mesh of its own."""
    return Home(
        identity=identity,
        name=config.name,
        keeper=MeshFile(config.data_dir),
        now_s=time.time,
        door_s=config.door_minutes * 60.0,
        is_claimed=config.admin_password is not None,
    )


def identity_of(data_dir: Path) -> Identity:
    """The identity of this data folder, made at its first start. Raises StartError."""
    try:
        return load_or_create(data_dir)
    except UnusableIdentity as error:
        raise StartError(error.what, fix=error.fix) from None
    except GossipError as error:
        raise StartError(str(error)) from None
