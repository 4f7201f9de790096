"""Slots handed on in order, and given back however a request ends."""

from __future__ import annotations

import asyncio

import pytest

from inference.errors import DeadlineExceeded, Overloaded
from mesh.turns import Turns


class Line:
    """Requests of one model; `order` is who got a slot."""

    def __init__(self, slots: int) -> None:
        self.turns = Turns("m", slots)
        self.order: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.may_end: dict[str, asyncio.Event] = {}

    async def ask(self, name: str, *, background: bool = False, deadline_s: float | None = None) -> None:
        async def run() -> None:
            deadline = None if deadline_s is None else asyncio.get_running_loop().time() + deadline_s
            async with self.turns.turn(background=background, deadline=deadline):
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
