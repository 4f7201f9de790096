"""Everything at once for a while: a random fault every few seconds, clients all the time, and then all must be right.

Faults come one after the other, each is over before the next, and each machine gets all of them; but one of the three
is never killed, so that there is a process whose memory can be watched from beginning to end.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import psutil

from tests.drills.clients import Load
from tests.drills.figure import Figure, count, seconds
from tests.drills.house import House, waited
from tests.drills.ledger import Ledger, control, was_cut
from tests.drills.spoiling import database, locked, vector
from tests.fixtures.peer import Peer

EVERYBODY = ("h1", "h2", "h3")
SPARED = "h3"
CLIENTS = 6
TOKENS = 40
WORKER = f"--tokens {TOKENS} --rate 50"
PAUSE_S = 0.3
STOPPED_S = 4.0
PARTED_S = 6.0
LOCKED_S = 3.0
DARK_S = 3.0
OVER_S = 15.0
GROWTH_MIB = 8.0

Fault = Literal["kill", "power-off", "stop", "partition", "lock"]
FAULTS: tuple[Fault, ...] = ("kill", "power-off", "stop", "partition", "lock")
KILLS: frozenset[Fault] = frozenset({"kill", "power-off"})


class _Soak:
    """What happens to the house, one fault after the other."""

    def __init__(self, house: House, seed: int) -> None:
        self._house = house
        self._chance = random.Random(seed)
        self._left: list[tuple[Fault, str]] = []
        self.out: set[str] = set()
        self.killed: list[tuple[str, float]] = []
        self.over_s: list[float] = []
        self.faults: list[tuple[Fault, str]] = []

    def peers(self) -> list[Peer]:
        """Those that clients are sent to now."""
        return [self._house.peers[name] for name in EVERYBODY if name not in self.out]

    def befall(self) -> None:
        """One fault, to its end: all are there again, with one coordinator."""
        if not self._left:  # each kind at each machine, in an order that is always another
            self._left = [(f, name) for f in FAULTS for name in EVERYBODY if f not in KILLS or name != SPARED]
            self._chance.shuffle(self._left)
        fault, name = self._left.pop()
        self.faults.append((fault, name))
        faults: Mapping[Fault, Callable[[str], None]] = {
            "kill": self._kill,
            "power-off": self._power_off,
            "stop": self._stop,
            "partition": self._partition,
            "lock": self._lock,
        }
        try:
            faults[fault](name)
            ended_at = time.monotonic()
            self._house.until_all_see_all()
            self._house.until_one_coordinator()
        except AssertionError as error:
            raise AssertionError(f"after {self.faults}: {error}") from error
        self.over_s.append(time.monotonic() - ended_at)
        self.out.discard(name)

    def _kill(self, name: str) -> None:
        self.killed.append((name, self._house.kill(name)))
        self.out.add(name)
        self._house.start(name)

    def _power_off(self, name: str) -> None:
        self.killed.append((name, self._house.power_off(name)))
        self.out.add(name)
        time.sleep(DARK_S)
        self._house.power_on(name)

    def _stop(self, name: str) -> None:
        self.out.add(name)
        self._house.lan.freeze(name)
        time.sleep(STOPPED_S)
        self._house.lan.thaw(name)

    def _partition(self, name: str) -> None:
        self._house.lan.partition([name])
        time.sleep(PARTED_S)
        self._house.lan.heal()

    def _lock(self, name: str) -> None:
        with locked(database(self._house.peers[name])):
            time.sleep(LOCKED_S)


def soak(folder: Path, minutes: float, every_s: float, seed: int = 1) -> list[Figure]:
    """A fault every `every_s` seconds, or as soon as the last one is over, for so many minutes."""
    with House.built(folder, len(EVERYBODY), holders=EVERYBODY, worker=WORKER) as house:
        house.until_all_see_all()
        house.until_one_coordinator()
        house.until_all_know("tiny", holders=len(EVERYBODY))
        house.until_files_known()
        faults = _Soak(house, seed)
        began, memory = time.monotonic(), list[float]()
        with Load(
            faults.peers,
            model="tiny",
            tokens=TOKENS,
            clients=CLIENTS,
            pause_s=PAUSE_S,
            is_stream=lambda number: number % 2 == 0,
        ) as load:
            ledger = Ledger(lambda: load.seen)
            while (now := time.monotonic()) < began + 60 * minutes:
                faults.befall()
                ledger.until_recorded(house.peers[SPARED], 3 * OVER_S)
                ledger.turn_over()
                memory.append(_memory_mib(house.peers[SPARED]))
                time.sleep(max(0.0, now + every_s - time.monotonic()))
        _check(house, load, ledger, faults)
    half = memory[len(memory) // 2 :]
    what = f"{minutes:g} min, {len(faults.faults)} faults, {len(load.seen)} requests"
    return [
        count(f"{what}: errors of clients of machines that were not killed", 0, 0),
        count(f"{what}: acknowledged records lost or doubled", 0, 0),
        count(f"{what}: unhandled exceptions", 0, 0),
        seconds("from the end of a fault to all there with one coordinator, worst", max(faults.over_s), OVER_S),
        Figure(
            what="growth of the peer that was never killed, over the last half",
            value=max(0.0, max(half) - half[0]),
            limit=GROWTH_MIB,
            unit="MiB",
        ),
    ]


def _check(house: House, load: Load, ledger: Ledger, faults: _Soak) -> None:
    """Nothing lost, nothing twice, the same everywhere, and nothing in the logs that nobody foresaw."""
    harmed = [what for q, a in load.seen if (what := q.wrong(a)) and not was_cut(a, faults.killed)]
    assert not harmed, (harmed[:3], faults.faults)
    ledger.until_closed(house.peers["h1"], 3 * OVER_S)
    peers = list(house.peers.values())
    waited(lambda: len({vector(database(peer)) for peer in peers}) == 1, "each file has all logs", 3 * OVER_S)
    waited(lambda: len({_admin(peer) for peer in peers}) == 1, "each peer knows the same keys", 3 * OVER_S)
    raised = {name: found for name in EVERYBODY if (found := unhandled(house.peers[name]))}
    assert not raised, raised


def _admin(peer: Peer) -> bytes:
    return control(peer, "GET", "/api/api-keys").body


def _memory_mib(peer: Peer) -> float:
    return psutil.Process(peer.process.pid).memory_info().rss / 2**20


def unhandled(peer: Peer) -> list[str]:
    """Lines of its log that tell of an exception that nobody foresaw."""
    signs = ('"traceback"', "Traceback (most recent", "never retrieved", "Logging error")
    found = [line for line in peer.stderr.splitlines() if any(sign in line for sign in signs)]
    return [f"{line[:200]} ... {line[-400:]}" for line in found]
