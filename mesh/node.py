"""One peer, from start to stop: builds every part, wires them, and ends them in the opposite order.

    hardware, store -> pool -> local holder, neighbours, dispatcher -> mesh -> services -> listener -> control.json
    stop: others stop asking, drain or hand over what runs, goodbye, close the listener, the pool (its workers)

Nothing here decides: follow `mesh.dispatch` for how a request is served, `web.app` for what can be asked, and
`mesh.peering` for how this peer finds and joins the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from gossip.transport import MEMBER, PeerRoute
from inference.engine.client import DEFAULT_WORKER, EngineClient
from inference.hardware import GpuClaim, Hardware, detect
from inference.models.builtin import hello_model
from inference.models.model import StoredModel
from inference.models.pool import Pool, PoolLimits
from inference.models.store import Store
from mesh import control
from mesh.adopted.holders import HopService
from mesh.affinity import Affinity
from mesh.catalog import Catalog, look
from mesh.cli.greeting import Start, draining, greeting
from mesh.config import Config, Loaded
from mesh.descriptors import room_for_connections
from mesh.dispatch import Dispatcher
from mesh.errors import StartError
from mesh.hop import HopClient
from mesh.hosts import allowed_hosts, bound, is_loopback, lan_name, own_addresses
from mesh.keeping import Keeping
from mesh.lag import watched_lag
from mesh.loading import SLOTS, Loading
from mesh.local import LocalHolder
from mesh.logs import hide
from mesh.metrics import Metrics
from mesh.neighbours import Neighbours
from mesh.office import Office
from mesh.peering import Heard, Peering, home_of, identity_of
from mesh.ports import port_busy
from mesh.report import Report
from mesh.state import State
from mesh.version import engine_version, our_version
from web.app import route_table
from web.hop import hop_routes
from web.listener import Listener
from web.passed import passed_routes
from web.services import Access, ChatFacet, HopFacet, Limits, ModelsFacet, Services, StateFacet

log = logging.getLogger(__name__)

DRAIN_S = 30.0
HAND_OVER_S = 5.0
"""What other peers asked for and what does not end by itself within this goes on elsewhere."""
LOAD_S = 600.0
"""A model of 70 GB from a slow disk takes minutes; more than this is a fault."""

Announce = Callable[[str], None]


async def run(loaded: Loaded, *, announce: Announce) -> int:
    """A peer with these settings, until SIGINT, SIGTERM or `llm-router down`; answers the exit code.

    `announce` gets what a person should read. Raises StartError when it cannot start.
    """
    failure: StartError | None = None
    stop = Stop()
    with stop.on_signals(announce):
        try:
            async with asyncio.TaskGroup() as tasks, _peer(loaded, tasks, stop, announce):
                await stop.asked.wait()
        except* StartError as group:  # a TaskGroup wraps what leaves it
            failure = _first(group)
    failure = failure or stop.failure
    if failure is not None:
        raise failure
    return 0


def _first(group: BaseExceptionGroup[StartError]) -> StartError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


class Stop:
    """The wish to end: the first one drains, the second one does not wait. `failure`: why it ends, if not by a wish."""

    def __init__(self) -> None:
        self.failure: StartError | None = None
        self.asked = asyncio.Event()
        self.at_once = asyncio.Event()
        self.running: Callable[[], int] = lambda: 0

    def ask(self) -> None:
        """Ends the peer: gently, then at once."""
        (self.at_once if self.asked.is_set() else self.asked).set()

    def fail(self, error: StartError) -> None:
        """Ends the peer at once: it must not go on."""
        self.failure = self.failure or error
        self.asked.set()
        self.at_once.set()

    @contextlib.contextmanager
    def on_signals(self, announce: Announce) -> Iterator[None]:
        """SIGINT and SIGTERM ask to stop, while the block runs."""
        loop = asyncio.get_running_loop()

        def received() -> None:
            self.ask()
            if not self.at_once.is_set() and (count := self.running()):
                announce(draining(count))

        before: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            if sys.platform == "win32":
                before[number] = signal.signal(number, lambda *_: loop.call_soon_threadsafe(received))
            else:
                loop.add_signal_handler(number, received)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                if sys.platform == "win32":
                    signal.signal(number, before[number])
                else:
                    loop.remove_signal_handler(number)


@contextlib.asynccontextmanager
async def _peer(loaded: Loaded, tasks: asyncio.TaskGroup, stop: Stop, announce: Announce) -> AsyncIterator[None]:
    """Everything started; ended when the block ends."""
    config = loaded.config
    engine = engine_version()
    claim = GpuClaim(is_available=bool(config.gpu_available), model=config.gpu_model, count=config.gpu_count)
    store = Store(config.models_dir)
    hardware, _ = await asyncio.gather(asyncio.to_thread(detect, claim), asyncio.to_thread(look, store))
    loading = Loading.on(
        hardware,
        context=config.context,
        slots=config.slots,
        threads=config.threads,
        max_memory_bytes=config.max_memory_bytes,
        has_engine=engine is not None or config.worker is not None,
    )
    metrics = Metrics()
    limits = PoolLimits(
        max_loaded=config.max_loaded_models,
        memory_budget_bytes=loading.budget_bytes,
        idle_s=config.model_idle_timeout,
    )
    start = partial(_started, loading=loading, worker=config.worker or DEFAULT_WORKER)
    async with Pool(start=start, bytes_needed=loading.bytes_needed, limits=limits, observe=metrics.pool_event) as pool:
        catalog = Catalog(store=store, builtin=hello_model(), pool=pool, has_engine=loading.has_engine)
        local = LocalHolder(pool=pool, resolve=catalog.resolve, slots=config.slots or SLOTS)
        parts = _Parts(loaded, hardware, engine, loading, pool, catalog, local, metrics, stop, announce)
        async with parts.keeping, parts.hop, parts.office.open(), _listening(parts) as (listener, state):
            beside = [
                tasks.create_task(catalog.keep_fresh(), name="catalog"),
                tasks.create_task(watched_lag(metrics.loop_lagged), name="loop lag"),
            ]
            try:
                async with parts.peering.taking_part(listener.port, parts.peer_routes()):
                    found = _published(config, listener, parts.token)
                    state.is_ready = True
                    start_of = _start(config, hardware, engine, found.url, listener.port, len(store.list()))
                    announce(greeting(replace(start_of, mesh=parts.peering.greeting())))
                    log.info("ready", extra={"url": found.url, "version": our_version(), "engine": engine})
                    try:
                        yield
                    finally:
                        state.is_ready = False
                        await parts.drained()
                        await listener.close(0 if stop.at_once.is_set() else 1.0)
                        control.withdraw(config.data_dir, found)
            finally:
                for task in beside:
                    task.cancel()
        log.info("stopped")


class _Parts:
    """What a peer is made of, beside its listener."""

    def __init__(
        self,
        loaded: Loaded,
        hardware: Hardware,
        engine: str | None,
        loading: Loading,
        pool: Pool,
        catalog: Catalog,
        local: LocalHolder,
        metrics: Metrics,
        stop: Stop,
        announce: Announce,
    ) -> None:
        config = loaded.config
        identity = identity_of(config.data_dir)
        home = home_of(config, identity)
        self.config, self.hardware, self.engine, self.metrics = config, hardware, engine, metrics
        self.pool, self.catalog, self.local, self.stop = pool, catalog, local, stop
        self.port = 0
        has_gpu = any(gpu.is_usable for gpu in hardware.gpus)
        self.report = Report(
            catalog=catalog,
            pool=pool,
            local=local,
            loading=loading,
            hardware=hardware,
            engine=engine,
            max_loaded=config.max_loaded_models,
            serves=has_gpu or config.allow_no_gpu is not False,
            client_port=lambda: self.port,
        )
        self.keeping = Keeping(
            loaded=loaded,
            identity=identity,
            home=home,
            coordinator=lambda: self.office.coordinator(),
            fact_of=lambda peer, key: self.peering.agent.fact(peer, key),
            is_there=lambda peer: self.peering.agent.is_connected(peer),
            superseded=lambda row, by: self.office.superseded(row, by),
        )
        self.neighbours = Neighbours(
            me=identity.peer_id,
            own=self.report,
            clock=asyncio.get_running_loop().time,
            name_of=lambda peer: self.peering.overview.name_of(peer),
            context_of=lambda peer: self.peering.tls.client_context(peer),
            cordoned=self.keeping.is_cordoned,
            adopted=self.keeping.servers,
        )
        affinity = Affinity()
        self.peering = Peering(
            config=config,
            identity=identity,
            home=home,
            neighbours=self.neighbours,
            report=self.report,
            announce=announce,
            fail=stop.fail,
            is_draining=stop.asked.is_set,
            came_back=affinity.forget,
            gone=self._left,
            heard=Heard(
                coordinator=lambda claim: self.office.coordinator_changed(claim),
                roster=lambda roster: self.office.roster_changed(roster),
                fact=lambda peer, key: self.office.fact_changed(peer, key),
                member=lambda event: self.office.member_changed(event),
                moved=lambda takes_along: self.office.moved(takes_along),
            ),
            notes=self.keeping.notes,
        )
        self.office = Office(
            loaded=loaded,
            keeping=self.keeping,
            peering=self.peering,
            metrics=metrics,
            ports=lambda: frozenset({self.port, self.peering.port.port}),
            fail=stop.fail,
        )
        self.hop = HopClient(probe=self.peering.agent.probe, reported=self.neighbours.reported)
        self.dispatcher = Dispatcher(
            local=local,
            holders=self.neighbours,
            metrics=metrics,
            hop=self.hop,
            affinity=affinity,
            mode=lambda: self.keeping.live.load_balancer_mode,
        )
        service = HopService(local, self.keeping.servers)
        facet = HopFacet(generate=service.generate, embed=service.embed, load=self.report.load_bytes)
        self.hop_routes, self._routes = hop_routes(facet, Limits(), lambda request: request[MEMBER])
        self._watch()
        self.token = control.new_token()
        hide(self.token)

    def _watch(self) -> None:
        """What is counted and shown while the peer lives."""
        self.stop.running = lambda: len(self.dispatcher.active())
        self.metrics.watch(
            active=lambda: len(self.dispatcher.active()),
            queued=self.dispatcher.queued,
            models_loaded=lambda: sum(s.state == "loaded" for s in self.pool.states()),
        )
        self.metrics.watch_mesh(
            members=self.peering.overview.counts,
            is_coordinator=lambda: self.peering.overview.is_coordinator,
            term=lambda: self.peering.overview.term,
        )

    def _left(self, peer: str) -> None:
        """Dead, gone, or no member any more: what it asked for here ends, and so does what it was asked for."""
        self.hop_routes.gone(peer)
        if peer not in self.peering.home.roster.members:
            self.hop.gone(peer)

    def serve_passed(self, services: Services) -> None:
        """What this peer answers for others who were asked is what it answers its own clients."""
        _, routes = passed_routes(
            services,
            route_table(services),
            peer_of=lambda request: request[MEMBER],
            may_pass=lambda peer: self.peering.home.roster.is_signer(peer),
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
        self.local.hand_over()
        await asyncio.wait({drain, hurry}, return_when=asyncio.FIRST_COMPLETED)
        for task in (drain, hurry):
            task.cancel()
        await asyncio.gather(drain, hurry, return_exceptions=True)


async def _started(
    model: StoredModel, on_progress: Callable[[float], None], *, loading: Loading, worker: str
) -> EngineClient:
    return await EngineClient.start(loading.spec(model), worker=worker, timeout_s=LOAD_S, on_progress=on_progress)


@contextlib.asynccontextmanager
async def _listening(parts: _Parts) -> AsyncIterator[tuple[Listener, State]]:
    """The listener for clients, open; and what the peer says of itself."""
    config = parts.config
    state = State(
        config=config,
        hardware=parts.hardware,
        engine=parts.engine,
        catalog=parts.catalog,
        dispatcher=parts.dispatcher,
        pool=parts.pool,
    )
    also = (config.bind_address, config.node_port) if config.node_port else None
    addresses = bound(host=config.host, port=config.port, is_open=config.open, also=also)
    services = _services(parts, state)
    parts.serve_passed(services)
    listener = Listener(services, addresses)
    try:
        await listener.start()
    except OSError as error:
        port = next((p for _, p in addresses if p), config.port)
        raise await asyncio.to_thread(port_busy, port) from error
    parts.port = listener.port
    try:
        yield listener, state
    finally:
        await listener.close(0)


def _published(config: Config, listener: Listener, token: str) -> control.Control:
    return control.publish(
        config.data_dir,
        port=listener.port,
        # loopback is always bound beside another address, unless any free port was asked for
        url=control.local_url("127.0.0.1" if config.port or not config.open else config.host, listener.port),
        version=our_version(),
        token=token,
    )


def _services(parts: _Parts, state: State) -> Services:
    """What the HTTP surface is given."""
    config, catalog, report = parts.config, parts.catalog, parts.report
    return Services(
        chat=ChatFacet(generate=parts.dispatcher.generate, embed=parts.dispatcher.embed),
        models=ModelsFacet(
            list=parts.neighbours.views,
            resolve=parts.neighbours.resolve,
            load=report.after(catalog.load),
            unload=report.after(catalog.unload),
            import_file=report.after(catalog.import_file),
            remove=report.after(catalog.remove),
        ),
        state=StateFacet(
            name=config.name,
            version=our_version(),
            ready=lambda: state.is_ready,
            status=state.status,
            ps=state.ps,
            metrics=parts.metrics.render,
            observe=parts.metrics.http_request,
        ),
        access=Access(
            hosts=allowed_hosts([*config.allowed_hosts, config.ip or "", config.host], own_addresses()),
            origins=frozenset(config.allowed_origins),
            loopback=config.loopback,
            open_to_lan=config.open,
            control_token=parts.token,
        ),
        mesh=parts.office.mesh(parts.peering.facet),
        agents=parts.office.agents,
        passing=parts.office.passing.facet,
        limits=Limits(connections=room_for_connections(Limits().connections)),
        stop=parts.stop.ask,
    )


def _start(config: Config, hardware: Hardware, engine: str | None, url: str, port: int, models: int) -> Start:
    warnings = []
    if not config.open and not is_loopback(config.host) and config.host != "0.0.0.0":  # noqa: S104 - compared
        warnings.append(f"--host {config.host} takes effect with --open only: this version has no keys for the LAN yet")
    return Start(
        name=config.name,
        version=our_version(),
        engine=engine,
        gpus=tuple(gpu.name for gpu in hardware.gpus),
        cores=hardware.cores_logical,
        memory_bytes=hardware.ram_total_bytes,
        models=models,
        models_dir=config.models_dir,
        url=url,
        lan_url=f"http://{lan_name(config.host)}:{port}" if config.open else None,
        warnings=warnings,
    )
