"""What a peer is made of beside its listener: the engine, what it keeps, its part in the mesh, the office, dispatch.

    identity, home -> keeping -> neighbours -> mesh (peering) -> office -> dispatcher -> peer routes

They know each other through callables, because each is told what happens in the others. `mesh.node` starts and ends
them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gossip.home import Home
from gossip.identity import Identity
from gossip.transport import MEMBER, PeerRoute
from inference.hardware import Hardware
from inference.models.pool import Pool
from mesh import control
from mesh.adopted.holders import HopService
from mesh.affinity import Affinity
from mesh.catalog import Catalog
from mesh.config import Config, Loaded
from mesh.dispatch import Dispatcher
from mesh.hop import HopClient
from mesh.keeping import Keeping
from mesh.loading import Loading
from mesh.local import LocalHolder
from mesh.logs import hide
from mesh.metrics import Metrics
from mesh.neighbours import Neighbours
from mesh.office import Office
from mesh.peering import Heard, Peering, home_of, identity_of
from mesh.report import Report
from mesh.stop import Stop
from web.hop import hop_routes
from web.passed import PassedRoutes, passed_routes
from web.route import Route
from web.services import HopFacet, Limits, Services

DRAIN_S = 30.0
PASSED_S = 1.0
HAND_OVER_S = 5.0
"""What other peers asked for and what does not end by itself within this goes on elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What makes tokens on this machine. `version` of llama-cpp-python, None without it."""

    hardware: Hardware
    version: str | None
    loading: Loading
    pool: Pool
    catalog: Catalog
    local: LocalHolder

    def report(self, config: Config, client_port: Callable[[], int]) -> Report:
        """What this machine tells the others of itself."""
        has_gpu = any(gpu.is_usable for gpu in self.hardware.gpus)
        return Report(
            catalog=self.catalog,
            pool=self.pool,
            local=self.local,
            loading=self.loading,
            hardware=self.hardware,
            engine=self.version,
            max_loaded=config.max_loaded_models,
            serves=has_gpu or config.allow_no_gpu is not False,
            client_port=client_port,
        )


class Parts:
    """What a peer is made of, beside its listener."""

    def __init__(
        self, loaded: Loaded, engine: Engine, *, metrics: Metrics, stop: Stop, announce: Callable[[str], None]
    ) -> None:
        self.loaded, self.config = loaded, loaded.config
        self.engine, self.metrics, self.stop = engine, metrics, stop
        self.port = 0
        self.url = ""
        self.token = control.new_token()
        hide(self.token)
        identity = identity_of(self.config.data_dir)
        home = home_of(self.config, identity)
        affinity = Affinity()
        self.report = engine.report(self.config, client_port=lambda: self.port)
        self.keeping = self._new_keeping(identity, home)
        self.neighbours = self._new_neighbours(identity)
        self.peering = self._new_peering(identity, home, affinity, announce)
        self.office = Office(
            loaded=loaded,
            keeping=self.keeping,
            peering=self.peering,
            metrics=metrics,
            ports=lambda: frozenset({self.port, self.peering.port.port}),
            fail=stop.fail,
            announce=announce,
            url=lambda: self.url,
        )
        self.hop = HopClient(probe=self.peering.agent.probe, reported=self.neighbours.reported)
        self.dispatcher = Dispatcher(
            local=engine.local,
            holders=self.neighbours,
            metrics=metrics,
            hop=self.hop,
            affinity=affinity,
            mode=lambda: self.keeping.live.load_balancer_mode,
        )
        service = HopService(engine.local, self.keeping.servers)
        facet = HopFacet(generate=service.generate, embed=service.embed, load=self.report.load_bytes)
        self.hop_routes, self._routes = hop_routes(facet, Limits(), lambda request: request[MEMBER])
        self._passed: PassedRoutes | None = None
        self._watch()

    def _new_keeping(self, identity: Identity, home: Home) -> Keeping:
        return Keeping(
            loaded=self.loaded,
            identity=identity,
            home=home,
            coordinator=lambda: self.office.coordinator(),
            fact_of=lambda peer, key: self.peering.agent.fact(peer, key),
            is_there=self._is_there,
            superseded=lambda row, by: self.office.superseded(row, by),
        )

    def _new_neighbours(self, identity: Identity) -> Neighbours:
        return Neighbours(
            me=identity.peer_id,
            own=self.report,
            clock=asyncio.get_running_loop().time,
            name_of=lambda peer: self.peering.overview.name_of(peer),
            context_of=lambda peer: self.peering.tls.client_context(peer),
            cordoned=self.keeping.is_cordoned,
            adopted=self.keeping.servers,
        )

    def _new_peering(
        self, identity: Identity, home: Home, affinity: Affinity, announce: Callable[[str], None]
    ) -> Peering:
        return Peering(
            config=self.config,
            identity=identity,
            home=home,
            neighbours=self.neighbours,
            report=self.report,
            announce=announce,
            fail=self.stop.fail,
            is_draining=self.stop.asked.is_set,
            came_back=affinity.forget,
            gone=self._left,
            heard=Heard(
                coordinator=lambda claim: self.office.coordinator_changed(claim),
                roster=lambda roster: self.office.roster_changed(roster),
                fact=lambda peer, key: self.office.fact_changed(peer, key),
                member=lambda event: self.office.member_changed(event),
                moved=lambda move: self.office.moved(move),
            ),
            notes=self.keeping.notes,
        )

    def _watch(self) -> None:
        """What is counted and shown while the peer lives."""
        self.stop.running = lambda: len(self.dispatcher.active())
        self.metrics.watch(
            active=lambda: len(self.dispatcher.active()),
            queued=self.dispatcher.queued,
            models_loaded=lambda: sum(s.state == "loaded" for s in self.engine.pool.states()),
        )
        self.metrics.watch_mesh(
            members=self.peering.overview.counts,
            is_coordinator=lambda: self.peering.overview.is_coordinator,
            term=lambda: self.peering.overview.term,
        )
        self.metrics.watch_gossip(self.peering.agent.numbers)
        self.metrics.watch_slots(
            used=lambda: sum(s.active for s in self.engine.pool.states()),
            total=lambda: sum(s.info.slots for s in self.engine.pool.states() if s.info is not None),
        )
        self.office.watch()

    def _is_there(self, peer: str) -> bool:
        """Whether it may be asked now."""
        view = self.peering.agent.member(peer)
        return view is not None and view.state in ("alive", "suspect") and not view.about.draining

    def _left(self, peer: str) -> None:
        """Dead, gone, or no member any more: what it asked for here ends, and so does what it was asked for."""
        self.hop_routes.gone(peer)
        self.office.passing.gone(peer)
        if peer not in self.peering.home.roster.members:
            self.hop.gone(peer)

    def serve_passed(self, services: Services, table: Sequence[Route]) -> None:
        """What this peer answers for others who were asked is what it answers its own clients."""
        self._passed, routes = passed_routes(
            services,
            table,
            peer_of=lambda request: request[MEMBER],
            may_pass=lambda peer: self.peering.home.roster.is_signer(peer),
            is_confirmed=lambda peer: self.peering.home.roster.may_revoke(peer),
            version=lambda: self.keeping.admin.version,
        )
        self._routes.extend(routes)

    def peer_routes(self) -> list[PeerRoute]:
        """What other peers may ask of this one."""
        return [*self._routes, *self.office.peer_routes()]

    async def drained(self) -> None:
        """Lets what runs end, at most DRAIN_S, or until the second wish to stop; others' work goes on elsewhere."""
        self.peering.drain()
        drain = asyncio.create_task(self.dispatcher.drain(DRAIN_S))
        hurry = asyncio.create_task(self.stop.at_once.wait())
        await asyncio.wait({drain, hurry}, return_when=asyncio.FIRST_COMPLETED, timeout=HAND_OVER_S)
        self.engine.local.hand_over()
        await asyncio.wait({drain, hurry}, return_when=asyncio.FIRST_COMPLETED)
        for task in (drain, hurry):
            task.cancel()
        await asyncio.gather(drain, hurry, return_exceptions=True)
        if self._passed is not None:
            await self._passed.stop(PASSED_S)
        await self.office.history.handed_over()
