"""What a peer costs while nobody asks anything: time to start, and memory."""

from __future__ import annotations

import statistics
from pathlib import Path

import psutil

from tests.drills.figure import Figure
from tests.fixtures.peer import Peer

STARTS = 5
READY_S = 1.5
MEMORY_MB = 90.0


def idle(folder: Path) -> list[Figure]:
    """From the command to the first 200 of /ready, the interpreter's own start included; then its memory."""
    ready_s, megabytes = [], []
    for number in range(STARTS):
        with Peer.started(folder / f"data-{number}") as peer:
            ready_s.append(peer.ready_s)
            assert peer.get("/v1/models").status == 200
            megabytes.append(psutil.Process(peer.process.pid).memory_info().rss / 1e6)
    return [
        Figure(what="command to ready, median of 5", value=statistics.median(ready_s), limit=READY_S, unit="s"),
        Figure(what="memory of an idle peer", value=max(megabytes), limit=MEMORY_MB, unit="MB"),
    ]
