"""What this peer says of itself: `llm-router status` and `ps`, as JSON-ready values."""

from __future__ import annotations

import os
import time
from typing import Any

from inference.hardware import Hardware
from inference.models.pool import ModelState, Pool
from mesh.catalog import Catalog
from mesh.config import Config
from mesh.dispatch import Dispatcher
from mesh.local import ActiveRequest
from mesh.version import our_version


class State:
    """Reads the parts; owns only `is_ready` (listener and store are open)."""

    def __init__(
        self,
        *,
        config: Config,
        hardware: Hardware,
        engine: str | None,
        catalog: Catalog,
        dispatcher: Dispatcher,
        pool: Pool,
    ) -> None:
        self.is_ready = False
        self._pool = pool
        self._config = config
        self._hardware = hardware
        self._engine = engine
        self._catalog = catalog
        self._dispatcher = dispatcher
        self._began = time.monotonic()

    def status(self) -> dict[str, Any]:
        """The peer in a dozen fields; units are the ends of the names."""
        states = self._pool.states()
        return {
            "name": self._config.name,
            "version": our_version(),
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - self._began, 1),
            "ready": self.is_ready,
            "open_to_lan": self._config.open,
            "engine": f"llama-cpp-python {self._engine}" if self._engine else None,
            "gpus": [gpu.name for gpu in self._hardware.gpus],
            "cores": self._hardware.cores_logical,
            "memory_total_bytes": self._hardware.ram_total_bytes,
            "models": len(self._catalog.models()),
            "models_loaded": [s.id for s in states if s.state == "loaded"],
            "active_requests": len(self._dispatcher.active()),
            "queued": self._dispatcher.queued(),
            "data_dir": str(self._config.data_dir),
            "models_dir": str(self._config.models_dir),
        }

    def ps(self) -> dict[str, Any]:
        """What is in memory, and every request that runs or waits."""
        return {
            "models": [self._model(s) for s in self._pool.states()],
            "requests": [_request(r) for r in self._dispatcher.active()],
        }

    def _model(self, s: ModelState) -> dict[str, Any]:
        return {
            "model": s.id,
            "state": s.state,
            "progress": round(s.progress, 2),
            "active": s.active,
            "queued": self._dispatcher.queued(s.id),
            "slots": s.info.slots if s.info else None,
            "context": s.info.context if s.info else None,
            "threads": s.info.threads if s.info else None,
            "memory_bytes": s.bytes,
            "idle_s": round(s.idle_s, 1) if s.idle_s is not None else None,
            "pid": s.pid,
            "reason": s.reason,
        }


def _request(r: ActiveRequest) -> dict[str, Any]:
    return {
        "id": r.id,
        "model": r.model,
        "kind": r.kind,
        "state": r.state,
        "tokens": r.tokens,
        "running_s": round(max(0.0, time.time() - r.started_at), 1),
    }
