"""The models this peer has: the built-in one, the store's, and what of them is in memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from inference.errors import CapacityError, InvalidRequest
from inference.models import names
from inference.models.model import StoredModel, is_another_file
from inference.models.pool import Pool
from inference.models.store import Store
from web.services import ModelView

log = logging.getLogger(__name__)

RESCAN_S = 10.0
"""How soon a file put into the models folder is served."""


class Catalog:
    """Names to models. Reads of the index happen in the caller's thread (a stat); everything long in another."""

    def __init__(self, *, store: Store, builtin: StoredModel | None, pool: Pool, has_engine: bool) -> None:
        self._store = store
        self._builtin = builtin
        self._pool = pool
        self._has_engine = has_engine

    def models(self) -> list[StoredModel]:
        """All models, the built-in one last; it wins over a stored one of the same id."""
        stored = [m for m in self._store.list() if self._builtin is None or m.id != self._builtin.id]
        return names.in_order([*stored, *([self._builtin] if self._builtin else [])])

    def resolve(self, name: str) -> StoredModel:
        """Exact id, alias or unique file stem. Raises ModelNotFound."""
        return names.resolve(name, self.models())

    def views(self) -> list[ModelView]:
        """What `/v1/models` shows; never touches an engine."""
        contexts = {s.id: s.info.context for s in self._pool.states() if s.state == "loaded" and s.info}
        return [self._view(m, contexts.get(m.id)) for m in self.models()]

    def view(self, name: str) -> ModelView:
        """The model that `name` resolves to, as `views` shows it. Raises ModelNotFound."""
        model = self.resolve(name)
        return next(v for v in self.views() if v.id == model.id)

    async def load(self, model_id: str) -> None:
        """Has the model in memory. Raises as a request for it would."""
        await self._pool.load(self.resolve(model_id))

    async def unload(self, model_id: str) -> bool:
        """Has the model out of memory once it has answered what it serves; False: it was not in."""
        return await self._pool.unload(model_id)

    async def import_file(self, path: str, name: str | None) -> ModelView:
        """Takes a GGUF file of this machine into the store. Raises the errors of `Store.import_file`."""
        if not Path(path).is_absolute():
            raise InvalidRequest(f"Invalid 'path': {path!r} is not absolute.", param="path", code="invalid_value")
        model = await asyncio.to_thread(self._store.import_file, Path(path), name)
        self._pool.forgive(model.id)
        return self.view(model.id)

    async def remove(self, model_id: str) -> None:
        """Unloads the model and deletes its file. Raises ModelNotFound, NotOurFile, Overloaded while it serves."""
        if self._builtin is not None and model_id == self._builtin.id:
            raise InvalidRequest(
                f"`{model_id}` is built in and cannot be removed.", param="model", code="invalid_value"
            )
        await self._pool.unload(model_id)
        await asyncio.to_thread(self._store.remove, model_id)

    async def keep_fresh(self) -> None:
        """Until cancelled: looks for new, changed and vanished files, and hashes those that have no hash yet."""
        stopped = False
        try:
            while True:
                before = {m.id: m for m in self._store.list()}
                await asyncio.to_thread(look, self._store, lambda: stopped)
                for model in self._store.list():
                    if model.id in before and is_another_file(before[model.id], model):
                        self._pool.replaced(model.id)
                await asyncio.sleep(RESCAN_S)
        finally:
            stopped = True

    def _view(self, model: StoredModel, loaded_context: int | None) -> ModelView:
        header = model.header
        return ModelView(
            id=model.id,
            created=int(model.added_at),
            size_bytes=model.size_bytes,
            ready=self._has_engine,
            loaded=loaded_context is not None,
            context=loaded_context or header.context,
            capabilities=("embedding",) if header.is_embedding else ("chat", "completion"),
            quantization=header.quantization,
            sha256=model.sha256,
            aliases=model.aliases,
        )


def look(store: Store, should_stop: Callable[[], bool] | None = None) -> None:
    """Brings `store` up to date with its folder; with `should_stop` hashes what has no hash yet, which takes long.

    Trouble is logged and never raised: whatever is wrong with a folder, the peer serves what it knows, and looks again.
    """
    try:
        store.rescan()
        if should_stop is not None:
            store.hash_pending(should_stop)
    except CapacityError as error:  # another process holds the folder, or its disk is away
        log.warning("the models folder cannot be looked at now", extra={"reason": error.message})
    except Exception:  # border: of all that files can be, something was not foreseen
        log.exception("looking at the models folder failed")
