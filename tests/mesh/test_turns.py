"""Slots handed on in order, and given back however a request ends."""

from __future__ import annotations

import asyncio

import pytest

from inference.errors import DeadlineExceeded, HolderFull, Overloaded
from mesh.turns import BACKGROUND_EVERY, Turns


class Line:
    """Requests of one model; `order` is who got a slot."""

    def __init__(self, slots: int) -> None:
        self.turns = Turns("m", slots)
        self.order: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.may_end: dict[str, asyncio.Event] = {}

    async def ask(
        self,
        name: str,
        *,
        background: bool = False,
        deadline_s: float | None = None,
        key: str = "",
        is_resumed: bool = False,
    ) -> None:
        async def run() -> None:
            deadline = None if deadline_s is None else asyncio.get_running_loop().time() + deadline_s
            async with self.turns.turn(background=background, deadline=deadline, key=key, is_resumed=is_resumed):
                self.order.append(name)
                await self.may_end[name].wait()

        self.may_end[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(run())
        await asyncio.sleep(0)

    async def end(self, name: str) -> None:
        self.may_end[name].set()
        await asyncio.wait([self.tasks[name]], timeout=10)
        await asyncio.sleep(0)


async def test_first_come_first_served_and_background_last() -> None:
    line = Line(2)  # three waiting are under half of its queue: nobody is slowed
    await line.ask("all along")
    await line.ask("a")
    await line.ask("behind", background=True)
    for name in ("b", "c"):
        await line.ask(name)
    assert (line.order, line.turns.waiting) == (["all along", "a"], 3)
    for name in ("a", "b", "c", "behind", "all along"):
        await line.end(name)
    assert line.order == ["all along", "a", "b", "c", "behind"]
    assert (line.turns.running, line.turns.waiting) == (0, 0)


async def test_one_who_leaves_the_queue_leaves_nothing_behind() -> None:
    line = Line(1)
    for name in ("a", "b", "c"):
        await line.ask(name)
    line.tasks["b"].cancel()
    await asyncio.wait([line.tasks["b"]], timeout=10)
    assert line.turns.waiting == 1
    await line.end("a")
    assert line.order == ["a", "c"]


async def test_slot_handed_to_one_who_leaves_in_that_moment_goes_on() -> None:
    line = Line(1)
    for name in ("a", "b", "c"):
        await line.ask(name)
    line.may_end["a"].set()
    await asyncio.sleep(0)  # a ends and hands its slot to b, which has not run yet
    assert line.turns.waiting == 1
    line.tasks["b"].cancel()
    await asyncio.wait([line.tasks["a"], line.tasks["b"]], timeout=10)
    await asyncio.sleep(0)
    assert line.order == ["a", "c"] and line.turns.running == 1
    await line.end("c")
    assert line.turns.running == 0


async def test_full_queue_refuses_at_once() -> None:
    line = Line(1)
    for n in range(6):
        await line.ask(str(n))
        await asyncio.sleep(0.12)  # those that are slowed are in the queue by then, and counted either way
    with pytest.raises(Overloaded) as caught:
        async with line.turns.turn(background=False, deadline=None):
            pass
    assert caught.value.retry_after_s == 1
    for task in line.tasks.values():
        task.cancel()
    await asyncio.wait(line.tasks.values(), timeout=10)
    assert (line.turns.running, line.turns.waiting) == (0, 0)


async def test_deadline_passes_in_the_queue() -> None:
    line = Line(1)
    await line.ask("a")
    await line.ask("b", deadline_s=0.05)
    with pytest.raises(DeadlineExceeded, match="until its deadline"):
        await line.tasks["b"]
    assert (line.turns.running, line.turns.waiting) == (1, 0)
    await line.end("a")


async def test_more_slots_let_the_next_ones_in() -> None:
    line = Line(1)
    for name in ("a", "b", "c"):
        await line.ask(name)
    line.turns.slots = 3
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert line.order == ["a", "b", "c"]
    line.turns.slots = 1
    for name in ("a", "b"):
        await line.end(name)
    await line.ask("d")
    assert line.order == ["a", "b", "c"]
    await line.end("c")
    assert line.order[-1] == "d"
    await line.end("d")


async def test_callers_take_turns_however_many_requests_one_of_them_has() -> None:
    line = Line(4)
    for n in range(4):
        await line.ask(f"now {n}")
    for n in range(5):
        await line.ask(f"greedy {n}", key="greedy")
    await line.ask("modest", key="modest")
    await line.ask("third", key="third")
    for n in range(4):
        await line.end(f"now {n}")
    assert line.order[4:] == ["greedy 0", "modest", "third", "greedy 1"]
    for name in ("greedy 0", "modest", "third", "greedy 1", "greedy 2", "greedy 3", "greedy 4"):
        await line.end(name)
    assert (line.turns.running, line.turns.waiting) == (0, 0)


async def test_background_work_is_passed_over_but_not_for_ever() -> None:
    line = Line(1)
    await line.ask("0")
    await line.ask("behind", background=True)
    for n in range(1, BACKGROUND_EVERY + 2):
        await line.ask(str(n))  # one waits at a time, beside the background
        await line.end(line.order[-1])
        if "behind" in line.order:
            break
    assert line.order == [*map(str, range(BACKGROUND_EVERY)), "behind"]
    await line.end("behind")
    await line.end(line.order[-1])


async def test_one_that_lost_its_slot_goes_first_and_is_never_refused() -> None:
    line = Line(1)
    for n in range(6):
        await line.ask(str(n))
        await asyncio.sleep(0.12)  # those that are slowed are in the queue by then
    with pytest.raises(Overloaded):
        async with line.turns.turn():
            pass
    await line.ask("resumed", is_resumed=True)
    await line.end("0")
    assert line.order == ["0", "resumed"]
    for name in ("resumed", *map(str, range(1, 6))):
        await line.end(name)


async def test_one_who_may_not_wait_is_told_at_once_that_it_is_full() -> None:
    line = Line(1)
    async with line.turns.turn(may_wait=False):
        with pytest.raises(HolderFull) as caught:
            async with line.turns.turn(may_wait=False):
                pass
    assert (caught.value.status, caught.value.code) == (429, "holder_full")
    assert (line.turns.running, line.turns.waiting) == (0, 0)
