"""The pool over real child processes (tests/fixtures/fake_worker.py)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from inference.engine.client import EngineClient
from inference.engine.spec import EngineSpec
from inference.errors import DeadlineExceeded, ModelUnavailable, Overloaded
from inference.models.model import StoredModel
from inference.models.pool import Pool, PoolEvent, PoolLimits
from tests.fixtures.stored_models import stored_model

WAIT_S = 20.0
A, B, C = stored_model("a"), stored_model("b"), stored_model("c")


class House:
    """A pool whose workers take the arguments of `arguments[model id]`, and a count of what was started."""

    def __init__(self, limits: PoolLimits, arguments: dict[str, str] | None = None) -> None:
        self.arguments = arguments or {}
        self.started: list[str] = []
        self.pids: list[int] = []
        self.events: list[PoolEvent] = []
        self.pool = Pool(
            start=self.start, bytes_needed=lambda m: m.size_bytes, limits=limits, observe=self.events.append
        )

    async def start(self, model: StoredModel, on_progress: Callable[[float], None]) -> EngineClient:
        self.started.append(model.id)
        client = await EngineClient.start(
            EngineSpec(path=str(model.path), slots=4, embedding=model.header.is_embedding),
            worker=f"tests.fixtures.fake_worker {self.arguments.get(model.id, '')}",
            timeout_s=WAIT_S,
            on_progress=on_progress,
        )
        self.pids.append(client.pid)
        return client

    def loaded(self) -> set[str]:
        return {s.id for s in self.pool.states() if s.state == "loaded"}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


async def use(pool: Pool, model: StoredModel) -> int:
    async with pool.lease(model, deadline=asyncio.get_running_loop().time() + WAIT_S) as engine:
        return engine.pid


async def test_one_load_however_many_ask() -> None:
    house = House(PoolLimits())
    async with house.pool as pool:
        pids = await asyncio.gather(*(use(pool, A) for _ in range(20)))
    assert len(set(pids)) == 1 and house.started == ["a"]
    assert not any(psutil.pid_exists(pid) for pid in house.pids)


async def test_cancelled_waiter_does_not_cancel_the_load_others_wait_for() -> None:
    house = House(PoolLimits(), {"a": "--slow-load 0.3"})
    async with house.pool as pool:
        first, second = asyncio.create_task(use(pool, A)), asyncio.create_task(use(pool, A))
        await until(lambda: bool(pool.states()))
        first.cancel()
        assert await second in house.pids
    assert house.started == ["a"] and first.cancelled()


async def test_failing_load_is_told_to_everybody_who_waits_and_not_tried_again_at_once() -> None:
    house = House(PoolLimits(), {"a": "--fail-load 'the file is too short'"})
    async with house.pool as pool:
        answers = await asyncio.gather(*(use(pool, A) for _ in range(5)), return_exceptions=True)
        answers += await asyncio.gather(use(pool, A), return_exceptions=True)
        for error in answers:
            assert isinstance(error, ModelUnavailable) and "the file is too short" in error.message
            assert error.retry_after_s is not None and 0 < error.retry_after_s <= 10
        assert house.started == ["a"] and house.events == ["load_failed"]
        assert [(s.id, s.state) for s in pool.states()] == [("a", "failed")]
        assert await use(pool, B) in house.pids  # other models are not affected


async def test_why_a_load_failed_is_told_without_the_folder_of_the_file() -> None:
    """Incident 2: what callers read says nothing of this machine's disk."""
    model = replace(A, path=Path("/home/somebody/models/a.gguf"))
    house = House(PoolLimits(), {"a": f'--fail-load "failed to open {model.path}"'})
    async with house.pool as pool:
        with pytest.raises(ModelUnavailable, match=r"failed to open a\.gguf") as caught:
            await use(pool, model)
        assert "somebody" not in caught.value.message


async def test_crash_while_loading_twice_is_a_quarantine() -> None:
    house = House(PoolLimits(), {"a": "--crash-load --crash-how segv"})
    async with house.pool as pool:
        for _ in range(2):
            with pytest.raises(ModelUnavailable, match="SIGSEGV"):
                await pool._acquire(A, None)
            resting = pool._quarantine._records["a"]
            if len(resting.crashed_at) == 1:
                resting.refusal = None  # the short rest after a failed load is over
        assert [(s.id, s.state) for s in pool.states()] == [("a", "quarantined")]
        with pytest.raises(ModelUnavailable) as caught:
            await use(pool, A)
        assert caught.value.retry_after_s is not None and caught.value.retry_after_s > 3500
        house.arguments["a"] = ""
        await pool.load(A)  # somebody put it right, and says so
        assert house.loaded() == {"a"}


async def test_least_recently_used_leaves_and_one_that_serves_stays() -> None:
    """F48: least recently used goes first; never one that is serving."""
    house = House(PoolLimits(max_loaded=2))
    async with house.pool as pool:
        async with pool.lease(A) as engine:
            await use(pool, B)
            await use(pool, C)
            assert house.loaded() == {"a", "c"} and engine.alive
        await use(pool, A)
        await use(pool, B)
        assert house.loaded() == {"a", "b"}
    assert house.started == ["a", "b", "c", "b"]


async def test_memory_budget_makes_room_before_a_load() -> None:
    """F49: budget for loaded models, enforced before a load."""
    sizes = [stored_model(i, size_bytes=n) for i, n in (("x", 60), ("y", 50), ("huge", 200))]
    house = House(PoolLimits(max_loaded=5, memory_budget_bytes=100))
    async with house.pool as pool:
        await use(pool, sizes[0])
        await use(pool, sizes[1])
        assert house.loaded() == {"y"}
        with pytest.raises(ModelUnavailable, match="LLM_NODE_MAX_MEMORY_BYTES"):
            await use(pool, sizes[2])
        assert house.loaded() == {"y"} and house.started == ["x", "y"]


async def test_models_that_do_not_count_stay_beside_the_others() -> None:
    house = House(PoolLimits(max_loaded=1))
    hello = stored_model("hello", counts=False)
    async with house.pool as pool:
        for model in (hello, A, B):
            await use(pool, model)
        assert house.loaded() == {"hello", "b"}


async def test_lease_waits_for_room_and_gives_up_in_time() -> None:
    house = House(PoolLimits(wait_s=0.2, patience_s=0.05))
    async with house.pool as pool:
        async with pool.lease(A):
            with pytest.raises(Overloaded, match="no room") as caught:
                await use(pool, B)
            assert caught.value.retry_after_s
            now = asyncio.get_running_loop().time()
            with pytest.raises(DeadlineExceeded):
                async with pool.lease(B, deadline=now + 0.05):
                    pass
            assert await use(pool, A) == house.pids[0]  # nobody waits any more: it takes new leases again
        assert house.started == ["a"]


async def test_model_that_is_always_busy_gives_way_to_one_that_waited_long_enough() -> None:
    house = House(PoolLimits(wait_s=WAIT_S, patience_s=0.05))
    async with house.pool as pool, contextlib.AsyncExitStack() as serving:
        await serving.enter_async_context(pool.lease(A))
        waiting = asyncio.create_task(use(pool, B))
        await until(lambda: any(r.retiring for r in pool._residents.values()))
        later = asyncio.create_task(use(pool, A))  # new work for the busy one: after b
        await serving.aclose()
        pid = await waiting
        await later
    assert house.started == ["a", "b", "a"]
    assert house.events == ["loaded", "unloaded"] * 3
    assert pid == house.pids[1]


async def test_room_goes_to_whoever_waits_longest() -> None:
    house = House(PoolLimits(wait_s=WAIT_S, patience_s=WAIT_S))
    others = [stored_model(f"other{n}") for n in range(6)]
    async with house.pool as pool:
        waiting = []
        async with pool.lease(A):
            for n, model in enumerate(others, 1):
                waiting.append(asyncio.create_task(use(pool, model)))
                await until(lambda n=n: len(pool._waiters) == n + 1)  # type: ignore[misc]  # and the idle timer
        await asyncio.gather(*waiting)
    assert house.started == ["a", *(m.id for m in others)]


async def test_idle_model_leaves_memory() -> None:
    """F47: unload a model idle this long."""
    house = House(PoolLimits(idle_s=0.1))
    hello = stored_model("hello", counts=False)
    async with house.pool as pool:
        await use(pool, hello)
        async with pool.lease(A):
            await until(lambda: house.loaded() == {"a"})
            assert pool.states()[-1].idle_s is None
        await until(lambda: not pool.states())
        assert not any(psutil.pid_exists(pid) for pid in house.pids)
    assert house.events.count("unloaded") == 2


async def test_idle_zero_means_never() -> None:
    house = House(PoolLimits(idle_s=0, max_loaded=2))
    async with house.pool as pool:
        await use(pool, A)
        pool._residents["a"].used_at -= 1e6
        await use(pool, B)  # wakes the timer
        assert house.loaded() == {"a", "b"}


async def test_dead_worker_is_dropped_and_the_next_lease_loads_again() -> None:
    house = House(PoolLimits())
    async with house.pool as pool:
        first = await use(pool, A)
        os.kill(first, signal.SIGKILL)
        await until(lambda: not pool.states())
        assert await use(pool, A) != first
    assert house.events == ["loaded", "crashed", "loaded", "unloaded"]


async def test_two_crashes_without_a_success_between_are_a_quarantine_and_kills_are_not() -> None:
    house = House(PoolLimits())
    async with house.pool as pool:

        async def end(how: signal.Signals) -> None:
            with pytest.raises(RuntimeError):
                async with pool.lease(A) as engine:
                    os.kill(engine.pid, how)
                    await engine.died
                    raise RuntimeError

        for how in (signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV):
            await end(how)
        await use(pool, A)
        await end(signal.SIGSEGV)
        await end(signal.SIGSEGV)
        with pytest.raises(ModelUnavailable, match="crashed 2 times") as caught:
            await use(pool, A)
        assert caught.value.retry_after_s is not None and caught.value.retry_after_s > 3500


async def test_answer_that_was_complete_before_the_crash_does_not_excuse_it() -> None:
    house = House(PoolLimits())
    async with house.pool as pool:
        for _ in range(2):
            async with pool.lease(A) as engine:
                os.kill(engine.pid, signal.SIGSEGV)
                await until(lambda: not pool._residents)
        with pytest.raises(ModelUnavailable, match="crashed 2 times"):
            await use(pool, A)


async def test_model_just_loaded_is_not_taken_from_those_who_waited_for_it() -> None:
    house = House(PoolLimits(wait_s=WAIT_S))
    newcomers: list[asyncio.Task[int]] = []

    def observe(event: PoolEvent) -> None:
        if not newcomers:  # its first step comes before those of the waiters
            newcomers.append(asyncio.create_task(use(house.pool, B)))

    house.pool._observe = observe
    async with house.pool as pool:
        await use(pool, A)
        await asyncio.gather(*newcomers)
    assert house.started == ["a", "b"]


async def test_room_made_for_one_who_waits_is_not_taken_by_a_newcomer(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(PoolLimits(wait_s=WAIT_S, patience_s=0.0))
    newcomers: list[asyncio.Task[int]] = []
    forget = house.pool._forget

    def forget_and_be_asked(resident: object) -> None:
        if not newcomers:  # its first step comes before that of the one who waits, and finds an empty pool
            newcomers.append(asyncio.create_task(use(house.pool, A)))
        forget(resident)  # type: ignore[arg-type]

    monkeypatch.setattr(house.pool, "_forget", forget_and_be_asked)
    async with house.pool as pool:
        await use(pool, A)
        await use(pool, B)
        await asyncio.gather(*newcomers)
    assert house.started == ["a", "b", "a"]


async def test_two_models_load_side_by_side_where_there_is_room_for_both() -> None:
    house = House(PoolLimits(max_loaded=2), {"a": "--slow-load 60"})
    async with house.pool as pool:
        slow = asyncio.create_task(use(pool, A))
        await until(lambda: house.started == ["a"])
        await use(pool, B)
        assert house.loaded() == {"b"} and not slow.done()
        slow.cancel()


async def test_one_who_gives_up_lets_those_behind_it_go_on() -> None:
    house = House(PoolLimits(max_loaded=5, memory_budget_bytes=100, wait_s=WAIT_S, patience_s=WAIT_S))
    half, whole, other_half = (stored_model(i, size_bytes=n) for i, n in (("x", 50), ("y", 100), ("z", 50)))
    async with house.pool as pool, pool.lease(half):
        first = asyncio.create_task(use(pool, whole))
        await until(lambda: len(pool._seekers) == 1)
        second = asyncio.create_task(use(pool, other_half))
        await until(lambda: len(pool._seekers) == 2)
        first.cancel()
        async with asyncio.timeout(WAIT_S / 2):
            await second
    assert house.started == ["x", "z"]


async def test_small_model_need_not_wait_behind_one_that_waits_for_a_place() -> None:
    house = House(PoolLimits(wait_s=WAIT_S, patience_s=WAIT_S))
    async with house.pool as pool:
        async with pool.lease(A):
            waiting = asyncio.create_task(use(pool, B))
            await until(lambda: len(pool._seekers) == 1)
            await use(pool, stored_model("hello", counts=False))
            assert house.loaded() == {"a", "hello"} and not waiting.done()
        await waiting


async def test_unload_waits_for_what_is_served() -> None:
    house = House(PoolLimits(wait_s=WAIT_S))
    async with house.pool as pool:
        assert await pool.unload("a") is False
        async with pool.lease(A):
            unloading = asyncio.create_task(pool.unload("a"))
            await until(lambda: pool._residents["a"].retiring)
            assert house.loaded() == {"a"}
        assert await unloading is True and pool.states() == []


async def test_model_whose_file_was_replaced_is_loaded_anew_after_what_it_serves() -> None:
    house = House(PoolLimits(wait_s=WAIT_S))
    async with house.pool as pool:
        async with pool.lease(A):
            pool.replaced("a")
            new = asyncio.create_task(use(pool, A))
            await until(lambda: len(pool._seekers) == 1)
            assert house.started == ["a"]
        assert await new == house.pids[1]
        pool.replaced("a")
        pool.replaced("never loaded")
        await until(lambda: not pool.states())
    assert house.started == ["a", "a"]


async def test_unload_that_takes_too_long_is_refused_and_changes_nothing() -> None:
    house = House(PoolLimits(wait_s=0.1))
    async with house.pool as pool, pool.lease(A):
        with pytest.raises(Overloaded, match="still serves 1"):
            await pool.unload("a")
        assert await use(pool, A) == house.pids[0]


async def test_states_tell_progress_and_what_is_loaded() -> None:
    house = House(PoolLimits(), {"a": "--slow-load 0.3"})
    async with house.pool as pool:
        loading = asyncio.create_task(use(pool, A))
        await until(lambda: any(0 < s.progress < 1 for s in pool.states()))
        assert pool.states()[0].state == "loading" and pool.states()[0].info is None
        await loading
        state = pool.states()[0]
        assert state.info is not None and state.info.slots == 4 and state.bytes == A.size_bytes
        assert (state.state, state.pid, state.active) == ("loaded", house.pids[0], 0)


async def test_deadline_passes_while_the_model_loads_and_the_load_goes_on() -> None:
    house = House(PoolLimits(), {"a": "--slow-load 0.5"})
    async with house.pool as pool:
        with pytest.raises(DeadlineExceeded, match="still loading"):
            async with pool.lease(A, deadline=asyncio.get_running_loop().time() + 0.1):
                pass
        await until(lambda: house.loaded() == {"a"})
    assert house.started == ["a"]


async def test_closing_ends_loads_and_workers_and_leaves_no_child() -> None:
    house = House(PoolLimits(max_loaded=3), {"b": "--slow-load 60"})
    before = {p.pid for p in psutil.Process().children()}
    async with house.pool as pool:
        await use(pool, A)
        waiting = asyncio.create_task(use(pool, B))
        await until(lambda: len({p.pid for p in psutil.Process().children()} - before) == 2)
    with pytest.raises(ModelUnavailable, match="stopping"):
        await waiting
    assert {p.pid for p in psutil.Process().children()} == before


async def test_error_of_the_block_comes_out_as_it_is_and_workers_are_gone() -> None:
    house = House(PoolLimits())
    with pytest.raises(ZeroDivisionError):
        async with house.pool as pool:
            await use(pool, A)
            raise ZeroDivisionError
    assert not any(psutil.pid_exists(pid) for pid in house.pids)


async def test_cancelled_block_closes_the_pool_and_stays_cancelled() -> None:
    house = House(PoolLimits())

    async def run() -> None:
        async with house.pool as pool:
            await use(pool, A)
            await asyncio.Event().wait()

    running = asyncio.create_task(run())
    await until(lambda: house.events == ["loaded"])
    running.cancel()
    await asyncio.wait([running], timeout=WAIT_S)
    assert running.cancelled() and not any(psutil.pid_exists(pid) for pid in house.pids)


async def test_unforeseen_error_of_a_load_stays_with_that_model() -> None:
    async def start(model: StoredModel, on_progress: Callable[[float], None]) -> EngineClient:
        raise ZeroDivisionError

    started: Callable[[StoredModel, Callable[[float], None]], Awaitable[EngineClient]] = start
    async with Pool(start=started, bytes_needed=lambda m: 1, limits=replace(PoolLimits(), idle_s=0)) as pool:
        with pytest.raises(ModelUnavailable, match="the log says more"):
            await use(pool, A)
