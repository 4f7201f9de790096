"""A house in trouble, from a seed: partitions, losses, plugs pulled, clocks apart; then peace, and what must hold.

After the heal all maps are equal; what was ended is over everywhere; and of all edits that returned, the one with the
latest date counts.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from inference.errors import InferenceError
from mesh.admin.map import AdminMap
from mesh.admin.rows import Row
from tests.fixtures.virtual_loop import Network, simulate
from tests.mesh.admin.house import House

NAMES = "abcde"
KEYS = [f"{space}/{number}" for space in ("key", "user", "setting") for number in range(4)]


class Trouble:
    """What was done, as those who did it remember."""

    def __init__(self, house: House, rng: random.Random) -> None:
        self.house, self.rng = house, rng
        self.ended: set[str] = set()
        self.written: dict[tuple[str, str], list[Row]] = {}

    async def step(self) -> None:
        house, rng = self.house, self.rng
        await asyncio.sleep(rng.expovariate(1.0))
        on = [name for name in NAMES if house[name].is_on]
        match rng.choice(["put"] * 8 + ["end", "cut", "heal", "off", "on", "on"]):
            case "put":
                await self.put(rng.choice(on), rng.choice(KEYS))
            case "end" if rng.random() < 0.3:
                await self.end(rng.choice(on), rng.choice(KEYS))
            case "cut":
                shuffled = "".join(rng.sample(NAMES, 5))
                at = rng.randrange(1, 5)
                house.partition(shuffled[:at], shuffled[at:])
            case "heal":
                house.heal()
            case "off" if len(on) > 2:
                await house.turn_off(rng.choice(on))
            case "on" if len(on) < 5:
                await house.turn_on(rng.choice([name for name in NAMES if name not in on]))

    async def put(self, name: str, key: str) -> None:
        peer, field = self.house[name], self.rng.choice(["name", "note"])
        try:
            await peer.admin.put(key, {field: self.rng.randrange(1000)})
        except InferenceError:
            return
        row = peer.admin.replica.map.fields(key).get(field)
        if row is not None:  # else it was ended meanwhile
            self.written.setdefault((key, field), []).append(row)

    async def end(self, name: str, key: str) -> None:
        try:
            await self.house[name].admin.end(key, f"by {name}")
        except InferenceError:
            return
        self.ended.add(key)

    async def peace(self) -> None:
        self.house.loss = 0.0
        for name in NAMES:
            if not self.house[name].is_on:
                await self.house.turn_on(name)
        self.house.heal()
        async with asyncio.timeout(20):
            while not self.house.all_equal():
                await asyncio.sleep(0.1)

    def check(self) -> None:
        for peer in self.house.peers.values():
            assert {key for key in KEYS if peer.admin.is_ended(key)} == self.ended
            for (key, field), rows in self.written.items():
                if key not in self.ended:
                    newest = max(rows, key=lambda row: (row.clock, row.author))
                    assert peer.admin.replica.map.fields(key)[field] == newest
            on_disk = AdminMap(self.house.roster.mesh_id)
            on_disk.apply(on_disk.change(on_disk.plan_with(list(peer.store.rows.values()))))
            assert on_disk.digest() == peer.digest, "and the disk has what memory has"


@pytest.mark.parametrize("seed", range(15))
def test_after_any_trouble_all_maps_are_equal_and_nothing_that_was_said_to_be_done_is_lost(seed: int) -> None:
    async def scenario() -> None:
        rng = random.Random(seed)
        skew = {name: rng.uniform(-20, 20) for name in NAMES}
        house = House(seed=seed, names=NAMES, loss=rng.choice([0.0, 0.05, 0.3]), skew_s=skew)
        async with house.running():
            trouble = Trouble(house, rng)
            for _ in range(150):
                await trouble.step()
            await trouble.peace()
            trouble.check()

    simulate(scenario(), Network(seed=seed), 36_000)
