"""A peer is killed while it writes, again and again: its databases are whole each time, and have all it acknowledged.

SIGKILL keeps what the kernel already has; that a commit is on the disk when it is acknowledged is up to SQLite
(synchronous=FULL), and is not what this shows.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import sqlite3
import threading
import time
from pathlib import Path

from tests.drills.clients import Load
from tests.drills.figure import Figure, count, seconds
from tests.drills.house import fake_worker
from tests.drills.ledger import Ledger, control, is_acknowledged, was_cut
from tests.drills.models import made
from tests.fixtures.peer import Peer, until

CLIENTS = 8
TOKENS = 4
WRITES_S = (0.0, 0.4)
THERE_S = 5.0
READY_S = 10.0


def while_it_writes(folder: Path, times: int) -> list[Figure]:
    """`times` kills at random moments of a second full of requests, a key made in the middle of each."""
    flags = ["--name", "attic", "--models-dir", str(made(folder / "models"))]
    env = fake_worker(f"--tokens {TOKENS} --slots {CLIENTS}")
    chance, seen, keys, killed = random.Random(1), list[Load](), list[str](), list[tuple[str, float]]()
    ready, there = list[float](), list[float]()
    ledger = Ledger(lambda: [one for load in seen for one in load.seen])
    peer = Peer.spawned(folder / "data", *flags, env=env)
    try:
        for number in range(times):
            peer.wait_until_ready()
            ready.append(peer.ready_s)
            if number:
                there.append(ledger.until_recorded(peer, 3 * THERE_S))
                ledger.turn_over()
            killed.append(("", _killed(peer, number, chance.uniform(*WRITES_S), seen, keys)))
            for name in ("router.db", "admin.db"):
                _check_whole(peer.data_dir / name, folder / "copy")
            peer = Peer.spawned(folder / "data", *flags, env=env)
        peer.wait_until_ready()
        everything = [one for load in seen for one in load.seen]
        wrong = [what for q, a in everything if (what := q.wrong(a)) and not was_cut(a, killed)]
        assert not wrong, wrong[:3]
        ledger.until_closed(peer, 3 * THERE_S)
        known = {key["id"] for key in control(peer, "GET", "/api/api-keys").json}
        assert set(keys) <= known, set(keys) - known
    finally:
        peer.stop()
    told = sum(is_acknowledged(a) for _, a in everything)
    assert told >= times and keys, (told, len(keys))
    return [
        count(f"{times} kills while it wrote: databases that are not whole", 0, 0),
        count(f"{times} kills: of {told} acknowledged records lost or doubled", 0, 0),
        count(f"{times} kills: of {len(keys)} keys made lost", 0, 0),
        seconds(f"{times} kills: command to ready, worst", max(ready), READY_S),
        seconds(f"{times} kills: from ready to all of its records shown, worst", max(there, default=0.0), THERE_S),
    ]


def _killed(peer: Peer, number: int, writes_s: float, seen: list[Load], keys: list[str]) -> float:
    """Asks it from all sides, and kills it in the midst of that. When that was."""
    load = Load(
        lambda: [peer] if peer.process.poll() is None else [],
        model="tiny",
        tokens=TOKENS,
        clients=CLIENTS,
        is_stream=lambda n: n % 2 == 0,
        name=f"life {number}, question",
    )
    seen.append(load)
    with load:
        until(lambda: bool(load.seen), "it answers")
        making = threading.Thread(target=_make_key, args=(peer, f"life {number}", keys))
        time.sleep(writes_s / 2)
        making.start()
        time.sleep(writes_s / 2)
        at = time.monotonic()
        peer.signal(signal.SIGKILL)
        peer.process.wait(10)
        making.join(10)
    return at


def _make_key(peer: Peer, name: str, keys: list[str]) -> None:
    with contextlib.suppress(OSError):
        reply = control(peer, "POST", "/api/api-keys", {"name": name})
        assert reply.status == 201, reply
        keys.append(reply.json["id"])


def _check_whole(path: Path, copy: Path) -> None:
    """SQLite finds nothing wrong with it. In a copy, so that the peer finds it as the kill left it."""
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for file in path.parent.glob(f"{path.name}*"):
        if file.suffix != ".db-shm":
            shutil.copy(file, copy)
    with contextlib.closing(sqlite3.connect(copy / path.name)) as connection:
        found = connection.execute("PRAGMA integrity_check").fetchall()
    assert found == [("ok",)], (path.name, found)
