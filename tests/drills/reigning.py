"""The coordinator is killed while clients ask, again and again: nobody else's client notices, no record is gone.

What a client was told in full must be on record, once: at once where its ingress still lives, and as soon as it is back
where it was killed itself. What ran there when it was killed is closed as interrupted.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

from tests.drills.clients import Load
from tests.drills.figure import Figure, count, seconds
from tests.drills.house import POLL_S, House
from tests.drills.ledger import Ledger, is_acknowledged, was_cut

HOSTS = 4
INGRESSES = ("h1", "h2", "h3")
CLIENTS = 16
TOKENS = 40
RATE = 50
PAUSE_S = 0.3
"""Sixteen clients ask for some 12 answers a second: the two cores of a small machine, which also is all the clients and
all four peers, are half busy with that."""
REIGN_S = (0.5, 1.5)
COORDINATOR_S = 5.0
THERE_S = 5.0
BACK_S = 10.0
CLOSED_S = 30.0


def coordinator_kill(folder: Path, times: int) -> list[Figure]:
    """SIGKILL to whoever coordinates, `times` times; the next time it is another one."""
    everybody = tuple(f"h{number}" for number in range(1, HOSTS + 1))
    led, there, back = list[float](), list[float](), list[float]()
    killed: list[tuple[str, float]] = []
    chance = random.Random(1)
    with House.built(folder, HOSTS, holders=everybody, worker=f"--tokens {TOKENS} --rate {RATE}") as house:
        house.until_all_see_all()
        house.until_one_coordinator()
        house.until_all_know("tiny", holders=HOSTS)
        house.until_files_known()
        out: set[str] = set()
        with Load(
            lambda: [house.peers[name] for name in INGRESSES if name not in out],
            model="tiny",
            tokens=TOKENS,
            clients=CLIENTS,
            pause_s=PAUSE_S,
            is_stream=lambda number: number % 2 == 0,
        ) as load:
            ledger = Ledger(lambda: load.seen)
            for _ in range(times):
                time.sleep(chance.uniform(*REIGN_S))
                victim = house.coordinator("h1") or "h1"
                others = [name for name in everybody if name != victim]
                at = house.kill(victim)
                out.add(victim)
                killed.append((victim, at))
                led.append(_until_led(house, others) - at)
                asked = house.peers[chance.choice(others)]
                there.append(ledger.until_recorded(asked, 3 * THERE_S, of=lambda a, v=victim: a.asked != v))  # type: ignore[misc]
                house.start(victim)
                started_at = time.monotonic()
                house.until_all_see_all()
                ledger.until_recorded(house.peers[chance.choice(everybody)], 3 * BACK_S)
                back.append(time.monotonic() - started_at)
                ledger.turn_over()
                out.discard(victim)
        harmed = [a for q, a in load.seen if q.wrong(a) and not was_cut(a, killed)]
        assert not harmed, harmed[:3]
        records = ledger.until_closed(house.peers["h1"], CLOSED_S)
    asked_of = f"{times} kills, {len(load.seen)} requests"
    cut = sum(not is_acknowledged(answer) for answer in load.answers)
    interrupted = sum(record["state"] == "interrupted" for record in records)
    assert interrupted <= cut, (interrupted, cut)
    led.sort()
    return [
        count(f"{asked_of}: acknowledged records lost", 0, 0),
        count(f"{asked_of}: records doubled", 0, 0),
        count(f"{asked_of}: errors of clients of other machines ({cut} of the killed one's)", 0, 0),
        seconds(f"{times} kills: a new coordinator, p50", led[len(led) // 2], COORDINATOR_S),
        seconds(f"{times} kills: a new coordinator, p99", led[len(led) * 99 // 100], COORDINATOR_S),
        seconds("until the new one has all records of who lives, worst", max(there), THERE_S),
        seconds("until the killed one's own are there too, once it is ready, worst", max(back), BACK_S),
    ]


def _until_led(house: House, others: Sequence[str]) -> float:
    """When all of `others` followed the same one of them."""
    began = time.monotonic()
    while True:
        leaders = {(mesh["coordinator"] or {}).get("name") for mesh in house.meshes(others).values()}
        if len(leaders) == 1 and leaders <= set(others):
            return time.monotonic()
        assert time.monotonic() - began < 3 * COORDINATOR_S, f"no new coordinator: {leaders}"
        time.sleep(POLL_S)
