"""How fast the others notice: a crash, a machine without power, a lost coordinator. And what they must not notice."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from tests.drills.clients import Answer, Asking, Load, Question
from tests.drills.figure import Figure, count, seconds
from tests.drills.house import POLL_S, House, waited
from tests.fixtures.peer import ROOT

How = Literal["crash", "power-off"]

HOSTS = 5
ASK_EVERY_S = 0.1
AVOIDED_S: Mapping[How, float] = {"crash": 1.0, "power-off": 5.5}
COORDINATOR_S: Mapping[How, float] = {"crash": 3.0, "power-off": 8.0}
DEAD_S = 12.0
DEAD_LOSSY_S = 18.0
LAG_S = 0.1
LAG_PERIOD_S = 0.02


class Asked:
    """Asks a peer ten times a second whom it would choose, and keeps what it said of one of them."""

    def __init__(self, house: House, name: str, victim: str) -> None:
        self._house = house
        self._name = name
        self._victim = victim
        self._asking: list[Asking] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join(30)

    def _run(self) -> None:
        number = 0
        while not self._is_over.wait(ASK_EVERY_S):
            number += 1
            body = Question("tiny", f"{self._name} {number}", number, 2).body
            self._asking.append(Asking(self._house.peers[self._name], body, x_llm_router_explain="1"))

    @property
    def answers(self) -> list[Answer]:
        return [one.result() for one in self._asking]

    def last_believed_at(self) -> float:
        """When the last request was made in which the victim counted as one to be asked."""
        believed = [a.began_at for a in self.answers if self._is_believed(a)]
        return max(believed, default=0.0)

    def _is_believed(self, answer: Answer) -> bool:
        return any(c["peer"] == self._victim and c.get("reason") != "suspect" for c in answer.candidates)


def gone(folder: Path, how: How, loss: float = 0.0) -> list[Figure]:
    """The coordinator, which holds the model like all others, is no more."""
    everybody = tuple(f"h{number}" for number in range(1, HOSTS + 1))
    with House.built(folder, HOSTS, holders=everybody, worker="--tokens 2 --rate 200") as house:
        house.until_all_see_all()
        house.until_one_coordinator()
        house.until_all_know("tiny", holders=HOSTS)
        if loss:
            for number, name in enumerate(everybody):
                house.lan.shape(name, loss=loss, seed=number)
            time.sleep(2.0)
        victim = house.coordinator("h1")
        assert victim is not None
        others = [name for name in everybody if name != victim]
        askers = [Asked(house, name, victim) for name in others]
        for asker in askers:
            asker.__enter__()
        waited(lambda: all(any(map(a._is_believed, a.answers)) for a in askers), "everybody would ask it", 20.0)
        at = house.kill(victim) if how == "crash" else house.power_off(victim)
        dead_at, led_at = _until_buried(house, others, victim)
        for asker in askers:
            asker.__exit__(None, None, None)
        wrong = [a for asker in askers for a in asker.answers if a.status != 200]
        assert not wrong, wrong[:3]
        avoided_s = max(at, *(asker.last_believed_at() for asker in askers)) - at
    what = f"{how}{f', {loss:.0%} loss' if loss else ''}"
    figures = [
        seconds(f"{what}: dead everywhere", dead_at - at, DEAD_LOSSY_S if loss else DEAD_S),
        seconds(f"{what}: a new coordinator", led_at - at, COORDINATOR_S[how]),
    ]
    if not loss:
        avoided = seconds(f"{what}: avoided by all routers", avoided_s, AVOIDED_S[how])
        figures.insert(0, avoided)
    return figures


def _until_buried(house: House, others: Sequence[str], victim: str) -> tuple[float, float]:
    """When all others called it dead, and when all followed the same other coordinator."""
    dead_at = led_at = 0.0
    began = time.monotonic()
    while not (dead_at and led_at):
        assert time.monotonic() - began < 60, f"dead {bool(dead_at)}, a new coordinator {bool(led_at)}"
        meshes = house.meshes(others)
        now = time.monotonic()
        leaders = {(m["coordinator"] or {}).get("name") for m in meshes.values()}
        if not led_at and len(leaders) == 1 and leaders <= set(others):
            led_at = now
        states = {p["state"] for m in meshes.values() for p in m["peers"] if p["name"] == victim}
        if not dead_at and states <= {"dead"}:
            dead_at = now
        time.sleep(POLL_S)
    return dead_at, led_at


LAGGING = f"""
import asyncio.base_events, os, pathlib

class Lag:
    def __init__(self, loop):
        self.loop, self.lags, self.due = loop, [], 0.0
        self.file = pathlib.Path(os.environ["LAG_INTO"], str(os.getpid()))
        self.again()

    def again(self):
        self.due = self.loop.time() + {LAG_PERIOD_S}
        self.loop.call_at(self.due, self.look)

    def look(self):
        self.lags.append(self.loop.time() - self.due)
        if len(self.lags) == 25:
            with self.file.open("a") as file:
                file.writelines(f"{{lag}}\\n" for lag in self.lags)
            self.lags.clear()
        self.again()

def run_forever(self, run=asyncio.base_events.BaseEventLoop.run_forever):
    Lag(self)
    run(self)

asyncio.base_events.BaseEventLoop.run_forever = run_forever
"""
"""A sitecustomize.py: how much later than due the peer's loop does what is due, fifty times a second."""


def pegged(folder: Path, for_s: float) -> list[Figure]:
    """Other programs take every core, twice over: nobody is called dead for that, and every peer stays quick."""
    lags = folder / "lags"
    lags.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(LAGGING)
    env = {"PYTHONPATH": os.pathsep.join((str(folder), str(ROOT))), "LAG_INTO": str(lags)}
    with House.built(folder, 4, holders=("h3", "h4"), worker="--tokens 20 --rate 20", env=env) as house:
        house.until_all_see_all()
        house.until_all_know("tiny", ("h1", "h2"), holders=2)
        for file in lags.iterdir():
            file.write_text("")
        burners = [
            subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))
        ]
        try:
            peers = [house.peers["h1"], house.peers["h2"]]
            with Load(lambda: peers, model="tiny", tokens=20, clients=2, pause_s=0.2) as load:
                time.sleep(for_s)
        finally:
            for burner in burners:
                burner.kill()
                burner.wait()
        assert not load.wrong(), load.wrong()
        deaths = sum("peer is dead" in line for name in house.names for line in house.peers[name].stderr.splitlines())
        found = sorted(float(lag) for file in lags.iterdir() for lag in file.read_text().split())
        assert len(found) > for_s * 4 / LAG_PERIOD_S / 10, f"{len(found)} lags in {for_s} s"
    return [
        count(f"{for_s:g} s with every core pegged: false deaths", deaths, 0),
        seconds(
            f"{for_s:g} s with every core pegged: lag of the peers' loops, p99", found[len(found) * 99 // 100], LAG_S
        ),
    ]
