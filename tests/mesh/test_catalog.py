"""Tests of the models a peer shows, with a real store and a pool that never has to load."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import mesh.catalog
from inference.engine.client import EngineClient
from inference.errors import InvalidRequest, ModelNotFound
from inference.models.builtin import hello_model
from inference.models.errors import NotOurFile, StoreUnavailable
from inference.models.model import StoredModel
from inference.models.pool import Pool, PoolLimits
from inference.models.store import Store
from mesh.catalog import Catalog


async def _never(model: StoredModel, on_progress: Callable[[float], None]) -> EngineClient:
    raise AssertionError("nothing in these tests loads a model")


def pool() -> Pool:
    return Pool(start=_never, bytes_needed=lambda model: model.size_bytes, limits=PoolLimits())


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    store = Store(tmp_path / "models")
    store.rescan()
    return Catalog(store=store, builtin=hello_model(), pool=pool(), has_engine=True)


async def test_the_built_in_model_is_always_there_and_last(catalog: Catalog, tiny_gguf: Path) -> None:
    assert [m.id for m in catalog.models()] == ["hello"]
    await catalog.import_file(str(tiny_gguf), "zebra")
    assert [v.id for v in catalog.views()] == ["zebra", "hello"]


async def test_an_imported_file_is_shown_with_what_its_header_says(catalog: Catalog, embed_gguf: Path) -> None:
    view = await catalog.import_file(str(embed_gguf), None)
    assert view.capabilities == ("embedding",)
    assert view.size_bytes == embed_gguf.stat().st_size
    assert view.ready
    assert not view.loaded
    assert view.sha256


async def test_a_relative_path_is_refused_because_the_peer_runs_elsewhere(catalog: Catalog) -> None:
    with pytest.raises(InvalidRequest, match="not absolute"):
        await catalog.import_file("model.gguf", None)


async def test_the_built_in_model_cannot_be_removed_and_an_imported_one_can(catalog: Catalog, tiny_gguf: Path) -> None:
    with pytest.raises(InvalidRequest, match="built in"):
        await catalog.remove("hello")
    view = await catalog.import_file(str(tiny_gguf), "gone")
    await catalog.remove(view.id)
    with pytest.raises(ModelNotFound):
        catalog.resolve("gone")


async def test_a_file_put_into_the_folder_is_served_and_never_deleted(tmp_path: Path, tiny_gguf: Path) -> None:
    """F40: the models folder is the user's; what lies there is served in place."""
    store = Store(tmp_path / "models")
    store.rescan()
    catalog = Catalog(store=store, builtin=None, pool=pool(), has_engine=True)
    shutil.copyfile(tiny_gguf, tmp_path / "models" / "dropped.gguf")
    await asyncio.to_thread(store.rescan)
    assert [m.id for m in catalog.models()] == ["dropped"]
    with pytest.raises(NotOurFile):
        await catalog.remove("dropped")
    assert (tmp_path / "models" / "dropped.gguf").exists()


async def test_without_an_engine_models_are_shown_as_not_ready(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    store.rescan()
    catalog = Catalog(store=store, builtin=hello_model(), pool=pool(), has_engine=False)
    assert [v.ready for v in catalog.views()] == [False]


async def test_file_put_in_the_place_of_another_is_told_to_the_pool(
    tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh.catalog, "RESCAN_S", 0.01)
    store = Store(tmp_path / "models")
    store.rescan()
    there, kept = tmp_path / "models" / "there.gguf", tmp_path / "models" / "kept.gguf"
    shutil.copyfile(tiny_gguf, there)
    shutil.copyfile(tiny_gguf, kept)
    told: list[str] = []
    everything = pool()
    monkeypatch.setattr(everything, "replaced", told.append)
    fresh = asyncio.create_task(Catalog(store=store, builtin=None, pool=everything, has_engine=True).keep_fresh())
    async with asyncio.timeout(20):
        while not all(m.sha256 for m in store.list()) or len(store.list()) != 2:
            await asyncio.sleep(0.01)
        content = bytearray(tiny_gguf.read_bytes())
        content[-1] ^= 1  # as long as before
        (tmp_path / "new").write_bytes(content)
        (tmp_path / "new").replace(there)
        while not told:
            await asyncio.sleep(0.01)
    fresh.cancel()
    await asyncio.wait({fresh})
    assert told == ["there"]


@pytest.mark.parametrize(
    "trouble", [StoreUnavailable("Another process holds the folder."), OSError("the disk is gone"), ValueError("?")]
)
async def test_trouble_with_the_folder_passes_and_the_next_look_finds_what_is_new(
    trouble: Exception, tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh.catalog, "RESCAN_S", 0.01)
    store = Store(tmp_path / "models")
    store.rescan()
    catalog = Catalog(store=store, builtin=None, pool=pool(), has_engine=True)
    folder_is_away = True
    tries: list[bool] = []
    rescan = store.rescan

    def tried() -> None:
        tries.append(folder_is_away)
        if folder_is_away:
            raise trouble
        rescan()

    monkeypatch.setattr(store, "rescan", tried)
    mesh.catalog.look(store)  # as a peer does when it starts
    fresh = asyncio.create_task(catalog.keep_fresh())
    async with asyncio.timeout(20):
        while len(tries) < 3:
            assert not fresh.done()
            await asyncio.sleep(0.01)
        shutil.copyfile(tiny_gguf, tmp_path / "models" / "new.gguf")
        folder_is_away = False
        while not catalog.models():
            assert not fresh.done()
            await asyncio.sleep(0.01)
    assert [m.id for m in catalog.models()] == ["new"]
    fresh.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fresh
