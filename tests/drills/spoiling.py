"""The file of the history is locked by another program, or damaged: at the start, and while the peer runs.

A locked file is a disk that waits. A damaged one is set aside, said so in the log, and what it held comes back from the
other peers; to be exact about that, records count as acknowledged when they are on two disks
(LLM_ROUTER_HISTORY_ACK=replicated).
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.drills.clients import Load
from tests.drills.figure import Figure, count, seconds
from tests.drills.filling import OUTBOX, UNACKNOWLEDGED, metrics
from tests.drills.house import House, waited
from tests.drills.ledger import Ledger, was_cut
from tests.fixtures.peer import Peer

EVERYBODY = ("h1", "h2", "h3")
CLIENTS = 8
TOKENS = 40
WORKER = f"--tokens {TOKENS} --rate 50"
ANSWER_S = TOKENS / 50
PAUSE_S = 0.2
WRITTEN_S = 10.0
NOTICED_S = 75.0
"""A damaged page is found when it is read: at the start, by a question, or when records are counted, once a minute."""
BACK_S = 15.0
SLOWEST_S = 3.0
PAGE_BYTES = 4096
REPLICATED = {"LLM_ROUTER_HISTORY_ACK": "replicated"}

_HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def _house(folder: Path, env: dict[str, str] | None = None) -> Iterator[House]:
    with House.built(folder, len(EVERYBODY), holders=EVERYBODY, worker=WORKER, env=env) as house:
        house.until_all_see_all()
        house.until_one_coordinator()
        house.until_all_know("tiny", holders=len(EVERYBODY))
        yield house


def _load(peers: Callable[[], list[Peer]]) -> Load:
    return Load(
        peers,
        model="tiny",
        tokens=TOKENS,
        clients=CLIENTS,
        pause_s=PAUSE_S,
        is_stream=lambda number: number % 2 == 0,
    )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process has a write transaction open in that database, as long as the block lasts."""
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        yield
    finally:
        holder.communicate()


def database(peer: Peer) -> Path:
    return peer.data_dir / "router.db"


def lock(folder: Path, for_s: float) -> list[Figure]:
    """The coordinator's file and an ingress's, both for `for_s` seconds."""
    with _house(folder) as house:
        coordinator = house.coordinator("h1")
        assert coordinator is not None
        third, ingress = (name for name in EVERYBODY if name != coordinator)
        ill = [house.peers[name] for name in (coordinator, ingress)]
        with _load(lambda: list(house.peers.values())) as load:
            ledger = Ledger(lambda: load.seen)
            time.sleep(1.0)
            before = len(load.seen)
            with contextlib.ExitStack() as locks:
                for peer in ill:
                    locks.enter_context(locked(database(peer)))
                waited(lambda: all(metrics(peer)[OUTBOX] > 0 for peer in ill), "both wait", 10.0)
                time.sleep(for_s)
                during = len(load.seen) - before
            free_at = time.monotonic()
            written_s = waited(lambda: all(_is_written_again(peer) for peer in ill), "it is written", 3 * WRITTEN_S)
            ledger.until_recorded(house.peers[third], 3 * WRITTEN_S)
            there_s = time.monotonic() - free_at
        assert not load.wrong(), load.wrong()[:5]
        ledger.until_closed(house.peers[third], 3 * WRITTEN_S)
        assert min(metrics(peer)[UNACKNOWLEDGED] for peer in ill) > 0
        slowest_s = max(a.ended_at - a.began_at for a in load.answers) - ANSWER_S
    asked = f"two of three databases locked for {for_s:g} s, {during} requests"
    return [
        count(f"{asked}: failed", 0, 0),
        count(f"{asked}: records lost or doubled", 0, 0),
        seconds(f"{asked}: slowest answer, beside the {ANSWER_S:g} s it takes", slowest_s, SLOWEST_S),
        seconds("from the end of the lock to an empty outbox", written_s, WRITTEN_S),
        seconds("from the end of the lock to the whole history at the coordinator", there_s, WRITTEN_S),
    ]


def _is_written_again(peer: Peer) -> bool:
    return "the history is written again" in peer.stderr and metrics(peer)[OUTBOX] < 64 * 1024


def overwritten(path: Path) -> None:
    """Every page but the first is something else: what a controller does that has lost its mind."""
    moved_into_file(path)
    with path.open("r+b") as file:
        file.seek(PAGE_BYTES)
        file.write(random.Random(1).randbytes(path.stat().st_size - PAGE_BYTES))


def no_database(path: Path) -> None:
    """It begins as no database does."""
    moved_into_file(path)
    with path.open("r+b") as file:
        file.write(b"\xff" * PAGE_BYTES)


def halved(path: Path) -> None:
    """Its end is gone."""
    moved_into_file(path)
    os.truncate(path, path.stat().st_size // 2 // PAGE_BYTES * PAGE_BYTES)


def moved_into_file(path: Path) -> None:
    """What SQLite keeps beside the file goes into it: what is damaged there is damaged then."""
    with contextlib.closing(sqlite3.connect(path, timeout=10)) as connection:
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    assert not busy and path.stat().st_size > 8 * PAGE_BYTES, path.stat().st_size


DAMAGES = (overwritten, no_database, halved)


def spoilt_at_start(folder: Path, times: int) -> list[Figure]:
    """A peer is killed, its file is damaged (each time in another way), and it starts: every peer in turn."""
    back, killed = list[float](), list[tuple[str, float]]()
    with _house(folder, REPLICATED) as house:
        out: set[str] = set()
        with _load(lambda: [house.peers[name] for name in EVERYBODY if name not in out]) as load:
            ledger = Ledger(lambda: load.seen)
            for number in range(times):
                time.sleep(2.0)
                victim, damage = EVERYBODY[number % len(EVERYBODY)], DAMAGES[number % len(DAMAGES)]
                told = _times_told(house.peers[victim])
                killed.append((victim, house.kill(victim)))
                out.add(victim)
                damage(database(house.peers[victim]))
                house.start(victim)
                started_at = time.monotonic()
                _until_told(house.peers[victim], told)
                house.until_all_see_all()
                ledger.until_recorded(house.peers[victim], 3 * BACK_S)
                back.append(time.monotonic() - started_at)
                out.discard(victim)
        _check(house, load, ledger, killed, times)
    return _figures(f"{times} times damaged at the start", load, back)


def spoilt_while_it_runs(folder: Path, times: int) -> list[Figure]:
    """The pages of a peer's file are overwritten under it, while it writes and is asked; the coordinator's first."""
    noticed, back = list[float](), list[float]()
    with _house(folder, REPLICATED) as house:
        with _load(lambda: list(house.peers.values())) as load:
            ledger = Ledger(lambda: load.seen)
            for number in range(times):
                time.sleep(2.0)
                coordinator = house.coordinator("h1") or "h1"
                victim = coordinator if number % 2 == 0 else next(name for name in EVERYBODY if name != coordinator)
                told = _times_told(house.peers[victim])
                overwritten(database(house.peers[victim]))
                noticed.append(_until_told(house.peers[victim], told))
                noticed_at = time.monotonic()
                ledger.until_recorded(house.peers[victim], 3 * BACK_S)
                back.append(time.monotonic() - noticed_at)
        _check(house, load, ledger, [], times)
    what = f"{times} times damaged while it ran"
    return [*_figures(what, load, back), seconds(f"{what}: until it is noticed, worst", max(noticed), NOTICED_S)]


def _until_told(peer: Peer, times: int) -> float:
    return waited(lambda: _times_told(peer) > times, "its log says that the file was damaged", 2 * NOTICED_S)


def _times_told(peer: Peer) -> int:
    """How often its log said that a file was damaged and where it is now, as an error."""
    return sum(
        '"level": "error"' in line and "is damaged and was set aside" in line for line in peer.stderr.splitlines()
    )


def _check(house: House, load: Load, ledger: Ledger, killed: list[tuple[str, float]], times: int) -> None:
    """Nobody else's request failed, nothing is lost, every file is whole again, and the damaged ones are kept."""
    harmed = [what for q, a in load.seen if (what := q.wrong(a)) and not was_cut(a, killed)]
    assert not harmed, harmed[:3]
    ledger.until_closed(house.peers["h1"], 3 * BACK_S)
    waited(lambda: len({vector(database(p)) for p in house.peers.values()}) == 1, "each file has all logs", 3 * BACK_S)
    aside = [path for p in house.peers.values() for path in p.data_dir.glob("router.db.corrupt-*[0-9]")]
    assert len(aside) == times, aside


def vector(path: Path) -> frozenset[tuple[str, int, int]]:
    """Up to where each log goes that this file holds."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return frozenset(connection.execute("SELECT peer, run, have FROM logs"))


def _figures(what: str, load: Load, back: list[float]) -> list[Figure]:
    asked = f"{what}, {len(load.seen)} requests"
    return [
        count(f"{asked}: failed at machines that were not killed", 0, 0),
        count(f"{asked}: acknowledged records lost or doubled", 0, 0),
        seconds(f"{what}: to the whole history, worst", max(back), BACK_S),
    ]
