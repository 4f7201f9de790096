"""One peer, from start to stop: builds every part, wires them, and ends them in the opposite order.

    hardware, store -> pool -> catalog, dispatcher -> services -> listener -> control.json -> greeting
    stop: no new connections, drain what runs, close the listener, the pool (its workers), control.json

Everything that runs beside is a task of one TaskGroup. Nothing here decides how a request is served: follow
`mesh.dispatch` for that, and `web.app` for what can be asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

from inference.engine.client import DEFAULT_WORKER, EngineClient
from inference.hardware import GpuClaim, Hardware, detect
from inference.models.builtin import hello_model
from inference.models.model import StoredModel
from inference.models.pool import Pool, PoolLimits
from inference.models.store import Store
from mesh import control
from mesh.catalog import Catalog, look
from mesh.cli.greeting import Start, draining, greeting
from mesh.config import Config
from mesh.descriptors import room_for_connections
from mesh.dispatch import Dispatcher, OnlyHere
from mesh.errors import StartError
from mesh.hosts import allowed_hosts, bound, is_loopback, lan_name, own_addresses
from mesh.loading import SLOTS, Loading
from mesh.local import LocalHolder
from mesh.logs import hide
from mesh.metrics import Metrics
from mesh.ports import port_busy
from mesh.state import State
from mesh.version import engine_version, our_version
from web.listener import Listener
from web.services import Access, ChatFacet, Limits, ModelsFacet, Services, StateFacet

log = logging.getLogger(__name__)

DRAIN_S = 30.0
LOAD_S = 600.0
"""A model of 70 GB from a slow disk takes minutes; more than this is a fault."""

Announce = Callable[[str], None]


async def run(config: Config, *, announce: Announce) -> int:
    """A peer with `config`, until SIGINT, SIGTERM or `llm-router down`; answers the exit code.

    `announce` gets what a person should read. Raises StartError when it cannot start.
    """
    failure: StartError | None = None
    stop = Stop()
    with stop.on_signals(announce):
        try:
            async with asyncio.TaskGroup() as tasks, _peer(config, tasks, stop, announce):
                await stop.asked.wait()
        except* StartError as group:  # a TaskGroup wraps what leaves it
            failure = _first(group)
    if failure is not None:
        raise failure
    return 0


def _first(group: BaseExceptionGroup[StartError]) -> StartError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


class Stop:
    """The wish to end: the first one drains, the second one does not wait."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.at_once = asyncio.Event()
        self.running: Callable[[], int] = lambda: 0

    def ask(self) -> None:
        """Ends the peer: gently, then at once."""
        (self.at_once if self.asked.is_set() else self.asked).set()

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
async def _peer(config: Config, tasks: asyncio.TaskGroup, stop: Stop, announce: Announce) -> AsyncIterator[None]:
    """Everything started; ended when the block ends."""
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
        dispatcher = Dispatcher(local=local, holders=OnlyHere(catalog.view, name=config.name), metrics=metrics)
        stop.running = lambda: len(dispatcher.active())
        state = State(
            config=config, hardware=hardware, engine=engine, catalog=catalog, dispatcher=dispatcher, pool=pool
        )
        metrics.watch(
            active=lambda: len(dispatcher.active()),
            queued=dispatcher.queued,
            models_loaded=lambda: sum(s.state == "loaded" for s in pool.states()),
        )
        token = control.new_token()
        hide(token)
        services = _services(config, dispatcher, catalog, state, metrics, token, stop)
        listener = await _listening(config, services)
        fresh = tasks.create_task(catalog.keep_fresh(), name="catalog")
        found = control.publish(
            config.data_dir,
            port=listener.port,
            # loopback is always bound beside another address, unless any free port was asked for
            url=control.local_url("127.0.0.1" if config.port or not config.open else config.host, listener.port),
            version=our_version(),
            token=token,
        )
        state.is_ready = True
        announce(greeting(_start(config, hardware, engine, found.url, listener.port, len(store.list()))))
        log.info("ready", extra={"url": found.url, "version": our_version(), "engine": engine})
        try:
            yield
        finally:
            state.is_ready = False
            await _drained(dispatcher, stop)
            await listener.close(0 if stop.at_once.is_set() else 1.0)
            fresh.cancel()
            control.withdraw(config.data_dir, found)
            log.info("stopped")


async def _started(
    model: StoredModel, on_progress: Callable[[float], None], *, loading: Loading, worker: str
) -> EngineClient:
    return await EngineClient.start(loading.spec(model), worker=worker, timeout_s=LOAD_S, on_progress=on_progress)


async def _listening(config: Config, services: Services) -> Listener:
    also = (config.bind_address, config.node_port) if config.node_port else None
    addresses = bound(host=config.host, port=config.port, is_open=config.open, also=also)
    listener = Listener(services, addresses)
    try:
        await listener.start()
    except OSError as error:
        port = next((p for _, p in addresses if p), config.port)
        raise await asyncio.to_thread(port_busy, port) from error
    return listener


async def _drained(dispatcher: Dispatcher, stop: Stop) -> None:
    """Lets what runs end, at most DRAIN_S, or until the second wish to stop."""
    drain = asyncio.create_task(dispatcher.drain(DRAIN_S))
    hurry = asyncio.create_task(stop.at_once.wait())
    await asyncio.wait({drain, hurry}, return_when=asyncio.FIRST_COMPLETED)
    for task in (drain, hurry):
        task.cancel()
    await asyncio.gather(drain, hurry, return_exceptions=True)


def _services(
    config: Config, dispatcher: Dispatcher, catalog: Catalog, state: State, metrics: Metrics, token: str, stop: Stop
) -> Services:
    """What the HTTP surface is given."""
    return Services(
        chat=ChatFacet(generate=dispatcher.generate, embed=dispatcher.embed),
        models=ModelsFacet(
            list=catalog.views,
            resolve=catalog.view,
            load=catalog.load,
            unload=catalog.unload,
            import_file=catalog.import_file,
            remove=catalog.remove,
        ),
        state=StateFacet(
            name=config.name,
            version=our_version(),
            ready=lambda: state.is_ready,
            status=state.status,
            ps=state.ps,
            metrics=metrics.render,
            observe=metrics.http_request,
        ),
        access=Access(
            hosts=allowed_hosts([*config.allowed_hosts, config.ip or "", config.host], own_addresses()),
            origins=frozenset(config.allowed_origins),
            loopback=config.loopback,
            open_to_lan=config.open,
            control_token=token,
        ),
        limits=Limits(connections=room_for_connections(Limits().connections)),
        stop=stop.ask,
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
