"""The disk is full, of the coordinator and of an ingress: answers go on, records wait, and are all there afterwards.

Every peer has its data folder on a small file system of its own (tmpfs), with everything that a peer keeps. Another
program's file fills it to the last byte, and goes away again; no peer is started anew.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.drills.clients import Load
from tests.drills.figure import Figure, count, seconds
from tests.drills.house import House, waited
from tests.drills.ledger import Ledger, control
from tests.fixtures.peer import Peer

EVERYBODY = ("h1", "h2", "h3")
DISK_MIB = 48
BLOCK = bytes(64 * 1024)
CLIENTS = 8
TOKENS = 40
WORKER = f"--tokens {TOKENS} --rate 50"
ANSWER_S = TOKENS / 50
PAUSE_S = 0.2
WAITING_S = 30.0
WRITTEN_S = 10.0
THERE_S = 10.0
SLOWEST_S = 3.0
OUTBOX = "llm_router_history_outbox_bytes"
UNACKNOWLEDGED = "llm_router_history_unacknowledged_total"
LOST = 'llm_router_history_lost_total{part="entry"}'


def full(folder: Path, for_s: float) -> list[Figure]:
    """Both disks are full for `for_s` seconds; a third peer's is not."""
    with contextlib.ExitStack() as disks:
        places = {name: disks.enter_context(_disk(folder / name / "data")) for name in EVERYBODY}
        house = disks.enter_context(House.built(folder, len(EVERYBODY), holders=EVERYBODY, worker=WORKER))
        house.until_all_see_all()
        house.until_one_coordinator()
        house.until_all_know("tiny", holders=len(EVERYBODY))
        coordinator = house.coordinator("h1")
        assert coordinator is not None
        ingress = next(name for name in EVERYBODY if name != coordinator)
        third = next(name for name in EVERYBODY if name not in (coordinator, ingress))
        peers = [house.peers[name] for name in EVERYBODY]
        with Load(
            lambda: peers,
            model="tiny",
            tokens=TOKENS,
            clients=CLIENTS,
            pause_s=PAUSE_S,
            is_stream=lambda number: number % 2 == 0,
        ) as load:
            ledger = Ledger(lambda: load.seen)
            time.sleep(1.0)
            fillers = [_filled(places[name]) for name in (coordinator, ingress)]
            ill = [house.peers[name] for name in (coordinator, ingress)]
            waited(lambda: all(metrics(peer)[OUTBOX] > 0 and _is_told(peer) for peer in ill), "both wait", WAITING_S)
            time.sleep(for_s)
            waiting_bytes = min(metrics(peer)[OUTBOX] for peer in ill)
            assert waiting_bytes > 0
            listed = control(house.peers[third], "GET", "/api/dashboard/request-responses?per_page=10")
            assert listed.status == 200, listed
            during = len(load.seen)
            for filler in fillers:
                filler.unlink()
            room_at = time.monotonic()
            written_s = waited(lambda: all(_is_well(peer) for peer in ill), "what waited is written", 3 * WRITTEN_S)
            ledger.until_recorded(house.peers[third], 3 * THERE_S)
            there_s = time.monotonic() - room_at
        assert not load.wrong(), load.wrong()[:5]
        ledger.until_closed(house.peers[third], 3 * THERE_S)
        counted = {name: metrics(house.peers[name]) for name in EVERYBODY}
        assert not counted[third][UNACKNOWLEDGED], counted
        assert min(counted[name][UNACKNOWLEDGED] for name in (coordinator, ingress)) > 0, counted
        assert not any(found[LOST] for found in counted.values()), counted
        assert not (raised := [name for name in EVERYBODY if "Traceback" in house.peers[name].stderr]), raised
        slowest_s = max(a.ended_at - a.began_at for a in load.answers) - ANSWER_S
    asked = f"two of three disks full for {for_s:g} s, {during} requests"
    return [
        count(f"{asked}: failed", 0, 0),
        count(f"{asked}: records lost or doubled", 0, 0),
        seconds(f"{asked}: slowest answer, beside the {ANSWER_S:g} s it takes", slowest_s, SLOWEST_S),
        seconds("from room on the disks to an empty outbox", written_s, WRITTEN_S),
        seconds("from room on the disks to the whole history at the coordinator", there_s, THERE_S),
    ]


@contextlib.contextmanager
def _disk(place: Path) -> Iterator[Path]:
    """A file system of DISK_MIB there, as long as the block lasts."""
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=0700", "drill", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def _filled(place: Path) -> Path:
    """A file that takes all the room there is."""
    path = place / "another program's file"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(BLOCK)
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x"):
            pass
    return path


def _is_told(peer: Peer) -> bool:
    """Its log says what the matter is, and how to mend it."""
    return "the history cannot be written" in peer.stderr and "is full" in peer.stderr


def _is_well(peer: Peer) -> bool:
    """Nothing waits that is older than a moment."""
    return "the history is written again" in peer.stderr and metrics(peer)[OUTBOX] < len(BLOCK)


def metrics(peer: Peer) -> Mapping[str, float]:
    """`/metrics`, by name and labels."""
    lines: Sequence[str] = peer.get("/metrics").body.decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}
