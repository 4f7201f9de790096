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
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from urllib.parse import urlsplit

from inference.engine.client import DEFAULT_WORKER, EngineClient
from inference.hardware import GpuClaim, Hardware, detect
from inference.models.builtin import hello_model
from inference.models.model import StoredModel
from inference.models.pool import Pool, PoolLimits
from inference.models.store import Store
from mesh import control
from mesh.accounts.https import fingerprint_of, server_context
from mesh.catalog import Catalog, look
from mesh.cli.greeting import Start, greeting
from mesh.config import Config, Loaded
from mesh.descriptors import room_for_connections
from mesh.errors import StartError
from mesh.hosts import allowed_hosts, bound, check_open, is_loopback, lan_name, own_addresses
from mesh.lag import watched_lag
from mesh.loading import SLOTS, Loading
from mesh.local import LocalHolder
from mesh.log_lines import LogLines
from mesh.metrics import Metrics
from mesh.parts import Engine, Parts
from mesh.ports import port_busy
from mesh.state import State
from mesh.stop import Announce, Stop
from mesh.version import engine_version, our_version
from web.app import route_table
from web.listener import Listener
from web.services import Access, ChatFacet, Limits, LogsFacet, ModelsFacet, Services, StateFacet

log = logging.getLogger(__name__)

LOAD_S = 600.0
"""A model of 70 GB from a slow disk takes minutes; more than this is a fault."""


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
        made = Engine(hardware=hardware, version=engine, loading=loading, pool=pool, catalog=catalog, local=local)
        parts = Parts(loaded, made, metrics=metrics, stop=stop, announce=announce)
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


async def _started(
    model: StoredModel, on_progress: Callable[[float], None], *, loading: Loading, worker: str
) -> EngineClient:
    return await EngineClient.start(loading.spec(model), worker=worker, timeout_s=LOAD_S, on_progress=on_progress)


@contextlib.asynccontextmanager
async def _listening(parts: Parts) -> AsyncIterator[tuple[Listener, State]]:
    """The listener for clients, open; and what the peer says of itself."""
    config = parts.config
    state = State(
        config=config,
        hardware=parts.engine.hardware,
        engine=parts.engine.version,
        catalog=parts.engine.catalog,
        dispatcher=parts.dispatcher,
        pool=parts.engine.pool,
    )
    also = (config.bind_address, config.node_port) if config.node_port else None
    if config.open:
        check_open([config.host, also[0] if also else config.host], own_addresses())
    addresses = bound(host=config.host, port=config.port, also=also)
    services = _services(parts, state)
    table = route_table(services)
    parts.serve_passed(services, table)
    listener = Listener(services, addresses, table, ssl_context=_https(config))
    try:
        await listener.start()
    except OSError as error:
        port = next((p for _, p in addresses if p), config.port)
        raise await asyncio.to_thread(port_busy, port) from error
    parts.port = listener.port
    parts.url = _url(config, listener)
    try:
        yield listener, state
    finally:
        await listener.close(0)


def _url(config: Config, listener: Listener) -> str:
    """How this machine reaches the peer: loopback is bound beside another address, unless any free port was asked."""
    host = "127.0.0.1" if config.port else config.host
    return control.local_url(host, listener.port, is_https=config.tls_cert is not None)


def _https(config: Config) -> ssl.SSLContext | None:
    """Raises StartError for a certificate or key that cannot be used."""
    if config.tls_cert is None or config.tls_key is None:
        return None
    return server_context(config.tls_cert, config.tls_key, datetime.now(UTC))


def _published(config: Config, listener: Listener, token: str) -> control.Control:
    return control.publish(
        config.data_dir,
        port=listener.port,
        url=_url(config, listener),
        fingerprint=fingerprint_of(config.tls_cert) if config.tls_cert is not None else "",
        version=our_version(),
        token=token,
    )


def _services(parts: Parts, state: State) -> Services:
    """What the HTTP surface is given."""
    config, catalog, report = parts.config, parts.engine.catalog, parts.report
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
            setup_link=parts.office.setup_link,
            key_refused=parts.metrics.key_refused,
            login_ended=parts.metrics.login_ended,
            passed_on=parts.metrics.request_passed,
        ),
        access=Access(
            hosts=allowed_hosts([*config.allowed_hosts, config.ip or "", config.host], own_addresses()),
            origins=frozenset(config.allowed_origins),
            loopback=config.loopback,
            open_to_lan=config.open,
            control_token=parts.token,
            is_https=config.tls_cert is not None,
        ),
        mesh=parts.office.mesh(parts.peering.facet),
        agents=parts.office.agents,
        history=parts.office.history.facet(),
        accounts=parts.office.accounts.facet,
        logs=LogsFacet(lines=LogLines(config.log_dir).lines),
        passing=parts.office.passing.facet,
        limits=Limits(connections=room_for_connections(Limits().connections)),
        stop=parts.stop.ask,
    )


def _start(config: Config, hardware: Hardware, engine: str | None, url: str, port: int, models: int) -> Start:
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
        lan_url=None if is_loopback(config.host) else f"{urlsplit(url).scheme}://{lan_name(config.host)}:{port}",
        is_open=config.open,
    )
