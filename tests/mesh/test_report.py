"""What a peer tells of itself, and when."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gossip.config import LAN, TEST, GossipConfig
from inference.hardware import Gpu, Hardware
from inference.models.pool import Pool, PoolLimits
from inference.models.store import Store
from mesh import report as module
from mesh.catalog import Catalog
from mesh.facts import (
    INVENTORY,
    INVENTORY_BYTES_MAX,
    LOAD,
    LOAD_BYTES_MAX,
    MODELS_IN_INVENTORY_MAX,
    MODELS_IN_LOAD_MAX,
    Inventory,
    Load,
    ModelFact,
    ModelLoad,
    inventory_in,
    inventory_out,
    load_in,
    load_out,
)
from mesh.loading import Loading
from mesh.local import LocalHolder
from mesh.report import Report
from tests.fixtures.make_gguf import embed, tiny

GIB = 1024**3


class Heard:
    """What the mesh was told, in order."""

    def __init__(self) -> None:
        self.facts: list[tuple[str, bytes, bool]] = []

    def __call__(self, key: str, value: bytes, *, fast: bool = False) -> None:
        self.facts.append((key, value, fast))

    def loads(self) -> list[Load]:
        return [load for key, value, _ in self.facts if key == LOAD and (load := load_in(value)) is not None]

    def inventories(self) -> list[Inventory]:
        return [i for key, value, _ in self.facts if key == INVENTORY and (i := inventory_in(value)) is not None]


def made(folder: Path, *, serves: bool = True, has_engine: bool = True, budget: int = 8 * GIB) -> Report:
    hardware = Hardware(
        ram_total_bytes=16 * GIB,
        ram_available_bytes=8 * GIB,
        cores_physical=4,
        cores_logical=8,
        gpus=(Gpu(name="RTX", memory_total_bytes=24 * GIB, memory_free_bytes=0, is_usable=False, capability=8.9),),
    )
    loading = Loading.on(hardware, context=0, slots=4, threads=1, max_memory_bytes=budget, has_engine=has_engine)

    async def never(*_: object) -> object:
        raise AssertionError("nothing is loaded here")

    pool = Pool(start=never, bytes_needed=loading.bytes_needed, limits=PoolLimits())  # type: ignore[arg-type]
    store = Store(folder)
    store.rescan()
    catalog = Catalog(store=store, builtin=None, pool=pool, has_engine=has_engine)
    local = LocalHolder(pool=pool, resolve=catalog.resolve, slots=4)
    return Report(
        catalog=catalog,
        pool=pool,
        local=local,
        loading=loading,
        hardware=hardware,
        engine="0.3.36",
        max_loaded=2,
        serves=serves,
        client_port=lambda: 8080,
    )


@pytest.fixture
def models(tmp_path: Path) -> Path:
    tiny(tmp_path / "tiny.gguf")
    embed(tmp_path / "embed.gguf")
    return tmp_path


async def test_the_inventory_says_what_a_machine_is_and_has(models: Path) -> None:
    found = made(models).inventory()
    assert (found.client_port, found.engine, found.cores, found.max_loaded) == (8080, "0.3.36", 8, 2)
    (gpu,) = found.gpus
    assert (gpu.name, gpu.is_usable) == ("RTX", False)
    facts = {m.id: m for m in found.models}
    assert set(facts) == {"tiny", "embed"} and facts["embed"].is_embedding and not facts["tiny"].is_embedding
    assert facts["tiny"].is_usable and facts["tiny"].context > 0 and facts["tiny"].slots == 4


async def test_a_model_that_does_not_fit_or_cannot_run_is_told_as_unusable(models: Path) -> None:
    assert not any(m.is_usable for m in made(models, budget=1024).inventory().models)
    assert not any(m.is_usable for m in made(models, has_engine=False).inventory().models)
    assert made(models, serves=False).inventory().models == ()


async def test_an_inventory_is_looked_at_anew_after_a_change_that_was_asked_for(models: Path) -> None:
    report = made(models)
    assert len(report.inventory().models) == 2

    async def remove(name: str) -> None:
        (models / f"{name}.gguf").unlink()
        report._catalog._store.rescan()

    await report.after(remove)("tiny")
    assert [m.id for m in report.inventory().models] == ["embed"]


async def test_a_load_is_told_at_least_every_heartbeat_though_nothing_changed(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F42: a full report of the load at least this often."""
    monkeypatch.setattr(module, "SAMPLE_S", 0.01)
    monkeypatch.setattr(module, "PERCENT_STEP", 1000.0)
    report, often, seldom = made(models), Heard(), Heard()
    tasks = [asyncio.create_task(report.keep_told(often, 0.05)), asyncio.create_task(report.keep_told(seldom, 1000.0))]
    async with asyncio.timeout(20):
        while len(often.loads()) < 4:
            await asyncio.sleep(0.01)
    for task in tasks:
        task.cancel()
    assert len(seldom.loads()) == 1
    told = [value for key, value, _ in often.facts if key == LOAD]
    assert len(set(told)) == len(told), "gossip carries only what is new"
    assert all(fast for key, _, fast in often.facts if key == LOAD)
    assert not any(fast for key, _, fast in often.facts if key == INVENTORY)
    assert often.inventories()[0].models == report.inventory().models


def test_many_models_with_long_names_are_told_as_far_as_gossip_carries_them() -> None:
    """A fact that is too long is refused with an error, which ends what tells it, and with it the peer."""
    busy = [
        ModelLoad(model=f"{n:0200}", is_loaded=True, active=9, queued=9, slots=8, prefill_rate=1.5, decode_rate=2.5)
        for n in range(MODELS_IN_LOAD_MAX)
    ]
    load = Load(cpu=1.0, memory=2.0, gpu=0.0, active=0, queued=0, response_ms=0.0, models=tuple(busy))
    heard = load_in(load_out(load))
    assert heard is not None and 0 < len(heard.models) < MODELS_IN_LOAD_MAX
    assert heard.models == load.models[: len(heard.models)]
    assert len(load_out(load)) <= LOAD_BYTES_MAX

    files = [
        ModelFact(
            id=f"{n:0200}",
            sha256="0" * 64,
            size_bytes=1 << 33,
            context=1 << 17,
            is_embedding=False,
            quantization="Q4_K_M",
            created=1_700_000_000,
            slots=8,
            load_s=1.5,
            is_usable=True,
            aliases=("a" * 100,),
        )
        for n in range(MODELS_IN_INVENTORY_MAX)
    ]
    inventory = Inventory(
        client_port=1, engine=None, cores=1, memory_bytes=1, budget_bytes=1, max_loaded=1, models=tuple(files)
    )
    found = inventory_in(inventory_out(inventory))
    assert found is not None and 500 < len(found.models) < MODELS_IN_INVENTORY_MAX
    assert found.models == inventory.models[: len(found.models)]
    assert len(inventory_out(inventory)) <= INVENTORY_BYTES_MAX


@pytest.mark.parametrize("config", [LAN, TEST])
def test_what_is_told_is_what_gossip_carries(config: GossipConfig) -> None:
    assert (config.fast_fact_bytes_max, config.fact_bytes_max) == (LOAD_BYTES_MAX, INVENTORY_BYTES_MAX)
