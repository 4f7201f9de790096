"""How a stored model is loaded on this machine: context, slots, threads, and what that takes in memory.

Pure. The formula of the memory is `inference.models.fit`; whom to evict for it is the pool's decision.
"""

from __future__ import annotations

from dataclasses import dataclass

from inference.engine.spec import EngineSpec
from inference.errors import ModelUnavailable
from inference.hardware import Hardware, default_threads, memory_budget_bytes
from inference.models.fit import bytes_needed, context_that_fits, fits, kv_bytes
from inference.models.model import StoredModel
from mesh.version import ADD_ENGINE

SLOTS = 8
"""Requests at once when nobody chose: slots share one KV cache, so an unused one costs next to nothing."""

SHELF_BYTES = 256 * 1024 * 1024
"""Twenty conversations of 1,000 tokens of a 0.5B model, two of an 8B one."""

ONE_THREAD_BYTES = 32 * 1024 * 1024
"""Below this a token takes less time than threads need to meet at every layer's barriers."""

BESIDE_BYTES = 1024 * 1024 * 1024
"""Left free for a small model beside, if that costs at most half of the context. A chat whose context took all there
was would be unloaded for every text that somebody embeds, and loaded again."""

ENGINE_MISSING = (
    f"No model can run on this peer: the engine is not installed. To add it, {ADD_ENGINE} "
    "(it is compiled: minutes, and a C++ compiler); see INSTALL.md."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """What this machine and its user allow. `context` (of one request), `slots` and `threads` 0: chosen here."""

    budget_bytes: int
    cores: int
    context: int = 0
    slots: int = 0
    threads: int = 0
    has_engine: bool = True

    @classmethod
    def on(
        cls,
        hardware: Hardware,
        *,
        context: int,
        slots: int,
        threads: int,
        max_memory_bytes: int | None,
        has_engine: bool,
    ) -> Loading:
        """The allowances of `hardware`; `max_memory_bytes` None: what the machine can spare."""
        return cls(
            budget_bytes=memory_budget_bytes(hardware) if max_memory_bytes is None else max_memory_bytes,
            cores=hardware.cores_physical,
            context=context,
            slots=slots,
            threads=threads,
            has_engine=has_engine,
        )

    def spec(self, model: StoredModel) -> EngineSpec:
        """How to load `model`. Raises ModelUnavailable when it cannot fit this machine at all."""
        if not self.has_engine:
            raise ModelUnavailable(ENGINE_MISSING)
        slots = self.slots or SLOTS
        cells = self._cells(model, slots)
        return EngineSpec(
            path=str(model.path),
            slots=slots,
            parked=slots,
            context=cells,
            shelf_bytes=self._shelf_bytes(model, cells, slots),
            context_per_request=self.context,
            threads=self.threads or (1 if model.size_bytes < ONE_THREAD_BYTES else default_threads(self.cores)),
            embedding=model.header.is_embedding,
        )

    def bytes_needed(self, model: StoredModel) -> int:
        """Memory the worker will take; of a model that cannot fit, what its smallest context would take."""
        slots = self.slots or SLOTS
        try:
            cells = self._cells(model, slots)
        except ModelUnavailable:
            cells = 0
        needed = bytes_needed(model.header, model.size_bytes, cells, slots)
        return needed + self._shelf_bytes(model, cells, slots)

    def _shelf_bytes(self, model: StoredModel, cells: int, slots: int) -> int:
        """Plain memory for prefixes that leave the cache: at most as much as the cache, and as is left."""
        if model.header.is_embedding:
            return 0
        left = self.budget_bytes - bytes_needed(model.header, model.size_bytes, cells, slots)
        return max(0, min(SHELF_BYTES, kv_bytes(model.header, cells), left))

    def _cells(self, model: StoredModel, slots: int) -> int:
        """KV cells for all slots: as many as useful and possible, never fewer than one request was promised."""
        header, size = model.header, model.size_bytes
        best = context_that_fits(header, size, budget_bytes=self.budget_bytes, slots=slots)
        modest = context_that_fits(header, size, budget_bytes=self.budget_bytes - BESIDE_BYTES, slots=slots)
        if modest.fits and modest.context * 2 >= best.context:
            best = modest
        asked = min(self.context, header.context) if self.context else 0
        if asked > best.context:
            best = fits(header, size, asked, budget_bytes=self.budget_bytes, slots=slots)
            if best.fits:
                return asked
        if not best.fits:
            raise ModelUnavailable(f"The model `{model.id}` does not fit this machine: it {best.reason}.")
        return best.context
