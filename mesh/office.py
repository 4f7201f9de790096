"""What a peer does for its mesh beside inference: keeps and replicates the admin map, looks after registered servers,
passes on what the coordinator answers, and answers it when it coordinates itself.

Every peer has all of it: which of its parts act depends on who coordinates now. Built by mesh.node after the mesh
(mesh.peering), which tells it what changes; nothing is decided here.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from gossip.effects import MemberChanged
from gossip.election import Claim
from gossip.home import Move
from gossip.interfaces import split
from gossip.roster import Roster
from gossip.transport import PeerRoute
from inference.errors import InferenceError, ModelNotFound
from mesh.accounts.accounts import Accounts
from mesh.accounts.claim import Claim as SetUp
from mesh.admin.rows import Row
from mesh.admin.spread import Spread
from mesh.adopted.errors import UnknownAgent
from mesh.adopted.probe import Prober
from mesh.adopted.registry import Registry
from mesh.calls import PeerCalls
from mesh.cli import news
from mesh.config import Loaded
from mesh.errors import StartError
from mesh.history.history import Around, History, Policy
from mesh.history.membership import view_of
from mesh.history.redaction import redactor
from mesh.keeping import Keeping
from mesh.managing import Managing
from mesh.metrics import Metrics
from mesh.passing import Passing
from mesh.peering import Peering
from web.services import AgentsFacet, AuditNote, Caller, MeshFacet

log = logging.getLogger(__name__)

MOVE_S = 30.0
MERGE_S = 3.0
"""Machines that are started together have found each other by then."""
USED = "used"
USED_S = 0.5


class Office:
    """Use `open` around the life of the peer. The methods named for what happened are called by mesh.peering."""

    def __init__(
        self,
        *,
        loaded: Loaded,
        keeping: Keeping,
        peering: Peering,
        metrics: Metrics,
        ports: Callable[[], frozenset[int]],
        fail: Callable[[StartError], None],
        announce: Callable[[str], None],
        url: Callable[[], str],
    ) -> None:
        """`ports`: those that this peer listens on, `url` how this machine reaches it. `fail` ends the peer: a part of
        it ended by itself. `announce` gets what a person should read."""
        self._config = loaded.config
        self._announce = announce
        self._url = url
        self._keeping = keeping
        self._peering = peering
        self._metrics = metrics
        self._fail = fail
        self._loop = asyncio.get_running_loop()
        self._moving: asyncio.Task[None] | None = None
        self._greet = asyncio.Event()
        self._members = frozenset(peering.home.roster.members)
        agent, rng = peering.agent, random.Random(secrets.randbits(64))
        self.calls = PeerCalls(addresses=agent.addresses, context_of=peering.tls.client_context)
        self.spread = Spread(
            admin=keeping.admin,
            call=self.calls.call,
            members=agent.members,
            fact=agent.fact,
            set_fact=agent.set_fact,
            rng=rng,
        )
        self.registry = Registry(
            me=agent.me,
            admin=keeping.admin,
            agents=keeping.agents,
            breakers=keeping.breakers,
            prober=Prober(keeping.client),
            tell=agent.set_fact,
            clock=self._loop.time,
            allow_no_gpu=loaded.config.allow_no_gpu is True,
            interval_s=lambda: keeping.live.health_check_interval,
            timeout_s=lambda: keeping.live.node_timeout,
            peer_addresses=self._peer_addresses,
            own_ports=ports,
            rng=rng,
        )
        self.passing = Passing(
            calls=self.calls,
            me=agent.me,
            coordinator=self.coordinator,
            resolve=lambda who: peering.overview.found(who).peer,
            is_alone=lambda: len(peering.home.roster.members) == 1,
            caught_up=self._caught_up,
            is_confirmed=lambda peer: peering.home.roster.may_revoke(peer),
        )
        self.history = self._new_history(rng)
        self.accounts = self._new_accounts()
        self.managing = Managing(
            rows=keeping.admin,
            overview=peering.overview,
            servers=self.registry,
            live=keeping.live,
            revoke=peering.governing.revoke,
            audit=self.audit,
        )
        keeping.admin.watch(self._admin_changed)

    def _new_history(self, rng: random.Random) -> History:
        agent, live, config = self._peering.agent, self._keeping.live, self._config
        clouds = {
            "openai": config.openai_api_key,
            "anthropic": config.anthropic_api_key,
            "google": config.google_api_key,
        }
        return History(
            config.database_url,
            around=Around(
                me=agent.me,
                run=agent.run_id,
                mesh_id=lambda: self._peering.home.roster.mesh_id,
                view=lambda: view_of(agent, self._loop.time, _now_ms),
                call=self.calls.call,
                name_of=self._peering.overview.name_of,
                ip_of=self._ip_of,
                nodes=self._agents,
                redact=redactor(secret.reveal() for secret in config.secrets),
                copies=lambda count: agent.about_is(copies=count),
                clouds=lambda: {f"{name}_key_present": key is not None for name, key in clouds.items()},
                skew_ms=self._clock_lead_ms,
            ),
            policy=Policy(
                bodies=lambda: live.history_bodies,
                ack=lambda: live.history_ack,
                days=lambda: live.history_days,
                bytes_max=lambda: live.history_max_bytes,
            ),
            rng=rng,
        )

    def _clock_lead_ms(self) -> int | None:
        lead_s = self._keeping.admin.status().clock_lead_s
        return None if lead_s is None else round(lead_s * 1000)

    def _new_accounts(self) -> Accounts:
        peering = self._peering
        return Accounts(
            book=self._keeping.admin,
            identity=peering.identity,
            roster=lambda: peering.home.roster,
            data_dir=self._config.data_dir,
            others=lambda: [view.peer for view in peering.agent.members() if view.state in ("alive", "suspect")],
            claim=partial(
                SetUp,
                claim_mesh=peering.governing.claim,
                unconfirmed=peering.governing.unconfirmed,
                peer_of=lambda who: peering.overview.found(who).peer,
            ),
            jwt_secret=self._config.jwt_secret,
            clock=self._loop.time,
        )

    def watch(self) -> None:
        """What is counted while the peer lives."""
        admin, agents = self._keeping.admin, self._keeping.agents
        self._metrics.watch_admin(
            rows=lambda: admin.status().rows,
            refused=lambda: sum(admin.status().refused.values()),
            sync_age_s=lambda: admin.status().last_sync_age_s,
        )
        history = self.history
        self._metrics.watch_history(
            records=history.records,
            lag=history.lag,
            unacknowledged=history.unacknowledged,
            outbox_bytes=history.outbox_bytes,
            unreplicated=history.unreplicated,
            lost=history.lost,
            bodies_lost=history.bodies_lost,
        )
        self._metrics.watch_clock(lambda: admin.status().clock_lead_s)
        self._metrics.watch_adopted(
            lambda: Counter(
                "disconnected" if agent.is_cordoned else "online" if agents.is_online(agent) else "offline"
                for agent in agents
            )
        )

    # -- facets

    @property
    def agents(self) -> AgentsFacet:
        """The management API's."""
        return AgentsFacet(
            register=self._register,
            heartbeat=self.registry.heartbeat,
            metrics=self.managing.metrics,
            settings=self.managing.settings,
            disconnect=self.managing.disconnect,
            enable=self.managing.enable,
            delete=self.managing.delete,
            mesh_settings=self.managing.mesh_settings,
            change_mesh_settings=self.managing.change_mesh_settings,
        )

    def mesh(self, facet: MeshFacet) -> MeshFacet:
        """The mesh's, with the registered servers among its agents."""
        return replace(facet, agents=self._agents, peer=self._peer)

    def peer_routes(self) -> list[PeerRoute]:
        """What other peers may ask of this one."""
        return [*self.spread.routes(), *self.history.peer_routes()]

    # -- life

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Everything runs while the block does."""
        self._admin_changed(frozenset())
        async with self.calls, self.history.open(), self.accounts:
            tasks = [
                self._loop.create_task(work, name=name)
                for name, work in (
                    ("admin map", self.spread.run()),
                    ("registered servers", self.registry.run()),
                    ("limits of keys", self._keep_limits_told()),
                    ("first key and set-up", self._welcome()),
                )
            ]
            for task in tasks:
                task.add_done_callback(self._ended)
            try:
                yield
            finally:
                for task in tasks:
                    task.remove_done_callback(self._ended)
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                if self._moving is not None:
                    await asyncio.wait({self._moving}, timeout=MOVE_S)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a part of the peer failed", extra={"part": task.get_name()}, exc_info=error)
            self._fail(StartError(f"{task.get_name()} failed: {error!r}; the log says more"))

    # -- what the mesh tells

    def coordinator_changed(self, claim: Claim | None) -> None:
        self._metrics.coordinator_changed()
        self.history.changed()
        if claim is not None:
            self._greet.set()

    def roster_changed(self, roster: Roster) -> None:
        self._note_admitted(roster)
        self.spread.roster_changed()
        self.history.changed()
        self._greet.set()  # a first key that a machine made which is a guest now is gone, and another is made

    def fact_changed(self, peer: str, key: str) -> None:
        self.spread.fact_changed(peer, key)
        if key == USED and (fact := self._peering.agent.fact(peer, key)) is not None:
            self.accounts.used_in(peer, fact.value)

    def member_changed(self, event: MemberChanged) -> None:
        if event.after == "alive":
            self.spread.came_back(event.peer)
        elif event.after in ("dead", "left"):
            self.passing.gone(event.peer)
        self.history.changed()

    def _note_admitted(self, roster: Roster) -> None:
        """Who let a machine in writes it down: by the door they come without anybody asking."""
        me = self._peering.agent.me
        for peer in roster.members.keys() - self._members:
            member = roster.members[peer]
            if member.added_by == me and peer != me:
                detail = f"{member.state}, via {member.via}"
                self.audit(AuditNote(action="peer.join", caller=Caller(ip=""), target=member.name, detail=detail))
        for peer in self._members - roster.members.keys():
            self.accounts.left(peer)
        self._members = frozenset(roster.members)

    def moved(self, how: Move) -> None:
        """This peer is in another mesh."""
        before = self._moving

        async def move() -> None:
            if before is not None:
                await asyncio.wait({before})
            mesh_id = self._peering.home.roster.mesh_id
            await self._keeping.admin.move(mesh_id, bring=how.was_young, keep=not how.has_left)
            self._keeping.agents.refresh()
            await self.accounts.claim.start()
            self._greet.set()

        self.history.moved(how.was_young or how.brings_history)
        self._moving = self._loop.create_task(move(), name="moving the admin map")

    # -- small things

    def setup_link(self) -> str | None:
        """Where a person makes the first administrator; None when there is one, or when this machine came by the door:
        another one may claim the mesh."""
        may_claim = self._peering.home.roster.may_revoke(self._peering.agent.me)
        return self.accounts.claim.link(self._url()) if may_claim else None

    def coordinator(self) -> str | None:
        """The id of who coordinates, as far as this peer knows."""
        claim = self._peering.agent.coordinator
        return None if claim is None else claim.peer

    def audit(self, note: AuditNote) -> None:
        """Somebody did something."""
        self.history.facet().audit(note)

    def superseded(self, row: Row, by: Row) -> None:
        """An edit made here was lost to one that did not know of it. Its value may be a secret."""
        name = self._peering.overview.name_of(by.author)
        note = AuditNote(
            action="admin.superseded",
            caller=Caller(ip=""),
            target=row.key,
            detail=f"{row.field}: the edit made on {name} counts",
        )
        self.audit(note)

    async def _keep_limits_told(self) -> None:
        """What keys use here, for the limits that hold over all peers."""
        while True:
            await asyncio.sleep(USED_S)
            self._peering.agent.set_fact(USED, self.accounts.used_out(), fast=True)

    async def _welcome(self) -> None:
        """What a mesh begins with: its first administrator or the link to make one, made where the mesh may be claimed
        (not on a machine that came by the door), and its first key, made by the coordinator. All a moment after the
        mesh is one: two young meshes that meet in that moment have one first key."""
        told: set[str] = set()
        while True:
            await self._greet.wait()
            await asyncio.sleep(MERGE_S)
            self._greet.clear()
            try:
                await self._begun(told)
            except InferenceError as error:
                log.warning("the first key cannot be made now", extra={"reason": error.message})
                self._greet.set()
            except StartError as error:
                self._fail(error)
                return

    async def _begun(self, told: set[str]) -> None:
        me, accounts = self._peering.agent.me, self.accounts
        if self._peering.home.roster.may_revoke(me):
            await accounts.claim.first_admin(self._config.admin_username, self._config.admin_password)
            if (link := self.setup_link()) is not None and link not in told:
                told.add(link)
                self._announce(news.set_up(link))
        if self._keeps_keys() and (key := await accounts.ensure_first_key()) is not None:
            self._announce(news.first_key(key))

    def _keeps_keys(self) -> bool:
        """Who makes the first key: the coordinator. Instead of one that nobody confirmed, one of those that are."""
        roster, agent = self._peering.home.roster, self._peering.agent
        if not self.passing.keeps_accounts():
            return self.coordinator() == agent.me and roster.may_revoke(agent.me)
        here = [view.peer for view in agent.members() if view.state == "alive" and roster.may_revoke(view.peer)]
        return agent.me == min([agent.me, *here])

    async def _caught_up(self, version: str) -> None:
        await self._keeping.admin.reached(version, 1.0, teller=self.coordinator() or "")

    def _admin_changed(self, keys: frozenset[str]) -> None:
        self._peering.agent.pinned_is(self._keeping.live.pinned)

    def _peer_addresses(self) -> list[str]:
        agent = self._peering.agent
        return [*agent.about.addresses, *(a for view in agent.members() for a in agent.addresses(view.peer))]

    async def _register(self, body: Mapping[str, Any], caller: Caller) -> tuple[int, dict[str, Any]]:
        # that token on another machine is a person there: this machine's loopback is none of theirs
        is_here = caller.key_id == "control" and caller.is_local
        status, answer = await self.registry.register(body, allow_loopback=is_here)
        self.audit(AuditNote(action="agent.register", caller=caller, target=str(body.get("machine_name", ""))[:64]))
        return status, answer

    def _ip_of(self, peer: str) -> str:
        """Of a peer, or of a registered server."""
        if (server := self._keeping.agents.get(peer)) is not None:
            return server.ip_address
        agent = self._peering.agent
        addresses = agent.about.addresses if peer == agent.me else agent.addresses(peer)
        try:
            return split(addresses[0])[0] if addresses else ""
        except ValueError:  # what a member says of itself is no address
            return ""

    def _agents(self) -> list[dict[str, Any]]:
        return [*self._peering.overview.agents(), *self.registry.agents()]

    def _peer(self, who: str) -> dict[str, Any]:
        try:
            return self._peering.overview.peer(who)
        except ModelNotFound as unknown:
            try:
                agent = self._keeping.agents.found(who)
            except UnknownAgent:
                raise unknown from None
            row = next(row for row in self.registry.agents() if row["id"] == agent.id)
            return row | {"name": row["machine_name"]}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
