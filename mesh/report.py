"""What this peer says of itself: its inventory and its load, as values of mesh.facts, and told to the mesh.

Sampled twice a second (CPU, memory, GPU) and read from the pool and the local holder when asked. A load goes out when
it changed enough to matter to a router, and at least every `heartbeat_s`; an inventory only when it changed.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import ParamSpec, Protocol, TypeVar

import psutil

from inference.errors import InferenceError
from inference.hardware import Hardware, gpu_use_percent
from inference.models.model import StoredModel
from inference.models.pool import Pool
from mesh.catalog import Catalog
from mesh.facts import (
    INVENTORY,
    LOAD,
    MODELS_IN_INVENTORY_MAX,
    MODELS_IN_LOAD_MAX,
    GpuFact,
    Inventory,
    Load,
    ModelFact,
    ModelLoad,
    inventory_out,
    load_out,
)
from mesh.loading import SLOTS, Loading
from mesh.local import LocalHolder

P = ParamSpec("P")
T = TypeVar("T")

SAMPLE_S = 0.5
INVENTORY_S = 1.0
PERCENT_STEP = 5.0
"""Smaller changes of CPU, memory and GPU are noise to a router."""


class Tell(Protocol):
    """gossip.agent.Agent.set_fact."""

    def __call__(self, key: str, value: bytes, *, fast: bool = False) -> None: ...


class Report:
    """`Own` of mesh.neighbours. `serves` False: it only routes (LLM_NODE_ALLOW_NO_GPU=false and no GPU)."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        pool: Pool,
        local: LocalHolder,
        loading: Loading,
        hardware: Hardware,
        engine: str | None,
        max_loaded: int,
        serves: bool,
        client_port: Callable[[], int],
    ) -> None:
        self._catalog = catalog
        self._pool = pool
        self._local = local
        self._loading = loading
        self._hardware = hardware
        self._engine = engine
        self._max_loaded = max_loaded
        self._serves = serves
        self._client_port = client_port
        self._contexts: dict[tuple[str, int], int] = {}
        self._inventory: Inventory | None = None
        self._looked_at = -INVENTORY_S
        self._cpu = self._memory = self._gpu = 0.0

    # -- reads

    def inventory(self) -> Inventory:
        """What this machine has. Looked at anew once a second at most."""
        now = asyncio.get_running_loop().time()
        if self._inventory is None or now - self._looked_at >= INVENTORY_S:
            self._looked_at = now
            self._inventory = self._look()
        return self._inventory

    def after(self, call: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        """`call`, after which the inventory is looked at anew: whoever imported a model may ask it at once."""

        @functools.wraps(call)
        async def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return await call(*args, **kwargs)
            finally:
                self._inventory = None

        return wrapped

    def load(self) -> Load:
        """How busy it is at this moment."""
        active = self._local.active()
        states = {s.id: s.state for s in self._pool.states() if s.state in ("loaded", "loading")}
        waiting = {request.model for request in active} - set(states)  # for room in memory
        models = [self._model_load(model, is_loaded=state == "loaded") for model, state in states.items()]
        models += [self._model_load(model, is_loaded=False) for model in sorted(waiting)]
        busiest = max((m.service_s for m in models), default=0.0)
        return Load(
            cpu=self._cpu,
            memory=self._memory,
            gpu=self._gpu,
            active=len(active),
            queued=self._local.queued(),
            response_ms=round(1000 * busiest, 1),
            models=tuple(models[:MODELS_IN_LOAD_MAX]),
        )

    def load_bytes(self) -> bytes:
        return load_out(self.load())

    # -- tells

    async def keep_told(self, tell: Tell, heartbeat_s: float) -> None:
        """Until cancelled: tells the mesh whatever changed."""
        loop = asyncio.get_running_loop()
        psutil.cpu_percent(None)
        has_gpu = any(gpu.is_usable for gpu in self._hardware.gpus)
        told: Load | None = None
        told_at, beat = 0.0, 0
        told_inventory: Inventory | None = None
        while True:
            if has_gpu:
                self._gpu = await asyncio.to_thread(gpu_use_percent)
            self._cpu = _stepped(self._cpu, psutil.cpu_percent(None))
            self._memory = _stepped(self._memory, psutil.virtual_memory().percent)
            inventory = self.inventory()
            if inventory != told_inventory:
                told_inventory = inventory
                tell(INVENTORY, inventory_out(inventory))
            load = self.load()
            if load != told or loop.time() - told_at >= heartbeat_s:
                beat += load == told
                told, told_at = load, loop.time()
                tell(LOAD, load_out(replace(load, beat=beat)), fast=True)
            await asyncio.sleep(SAMPLE_S)

    # -- inside

    def _look(self) -> Inventory:
        models = self._catalog.models() if self._serves else []
        resting = {s.id for s in self._pool.states() if s.state in ("failed", "quarantined")}
        return Inventory(
            client_port=self._client_port(),
            engine=self._engine,
            cores=self._hardware.cores_logical,
            memory_bytes=self._hardware.ram_total_bytes,
            budget_bytes=self._loading.budget_bytes,
            max_loaded=self._max_loaded,
            gpus=tuple(
                GpuFact(
                    name=gpu.name,
                    memory_bytes=gpu.memory_total_bytes,
                    is_usable=gpu.is_usable,
                    capability=gpu.capability,
                )
                for gpu in self._hardware.gpus
            ),
            models=tuple(self._model(model, resting) for model in models[:MODELS_IN_INVENTORY_MAX]),
        )

    def _model(self, model: StoredModel, resting: set[str]) -> ModelFact:
        context = self._context(model)
        load_s = self._local.standing(model.id).load_s
        return ModelFact(
            id=model.id,
            sha256=model.sha256 or "",
            size_bytes=model.size_bytes,
            context=context,
            is_embedding=model.header.is_embedding,
            quantization=model.header.quantization,
            created=int(model.added_at),
            slots=self._loading.slots or SLOTS,
            load_s=round(load_s or 0.0, 2),
            is_usable=self._loading.has_engine and context > 0 and model.id not in resting,
            aliases=tuple(dict.fromkeys((*model.aliases, model.path.stem))),
        )

    def _context(self, model: StoredModel) -> int:
        """The longest request the model would take here; 0 when it does not fit this machine. Costly: remembered."""
        key = (model.id, model.size_bytes)
        if key not in self._contexts:
            try:
                spec = self._loading.spec(model)
                limit = spec.context_per_request or model.header.context
                self._contexts[key] = min(spec.context, limit, model.header.context)
            except InferenceError:
                self._contexts[key] = 0
        return self._contexts[key]

    def _model_load(self, model: str, *, is_loaded: bool) -> ModelLoad:
        standing = self._local.standing(model)
        return ModelLoad(
            model=model,
            is_loaded=is_loaded,
            active=standing.active,
            queued=standing.queued,
            slots=standing.slots,
            prefill_rate=round(standing.prefill_tokens_per_s or 0.0, 1),
            decode_rate=round(standing.decode_tokens_per_s or 0.0, 2),
            service_s=round(standing.service_s or 0.0, 2),
        )


def _stepped(before: float, now: float) -> float:
    """The new value if it differs enough to be told."""
    return round(now, 1) if abs(now - before) >= PERCENT_STEP else before
