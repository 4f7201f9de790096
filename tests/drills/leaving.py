"""Machines that are switched off properly, while they work: nobody's request fails for it."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from tests.drills.clients import Asking, Load, Question
from tests.drills.figure import Figure, count, seconds
from tests.drills.house import House
from tests.fixtures.peer import until

STREAMS = 20
DRAINED_S = 30.0
TAKEN_OUT_S = 0.2
"""How long before it is stopped a machine gets no new clients: those that were about to connect have done so."""


def drained(folder: Path, tokens: int) -> list[Figure]:
    """SIGTERM to a holder with twenty streams: half are its own clients', half another peer's."""
    rate = 50.0
    worker = f"--tokens {tokens} --rate {rate} --slots 24"
    with House.built(folder, 3, holders=("h2", "h3"), worker=worker) as house:
        house.until_all_see_all()
        house.until_all_know("tiny", ("h1",), holders=2)
        questions = [Question("tiny", f"question {n}", n, tokens) for n in range(STREAMS)]
        asking = [Asking(house.peers["h1"], q.body) for q in questions[: STREAMS // 2]]
        until(lambda: all(len(one.answer.text) > 60 for one in asking), "streams say something")
        asking += [Asking(house.peers["h2"], q.body) for q in questions[STREAMS // 2 :]]
        until(lambda: all(len(one.answer.text) > 60 for one in asking), "streams say something")
        stopped_at = time.monotonic()
        house.peers["h2"].signal(signal.SIGTERM)
        answers = [one.result() for one in asking]
        code = house.peers["h2"].process.wait(60)
        ended_s = time.monotonic() - stopped_at
        failed = [what for q, a in zip(questions, answers, strict=True) if (what := q.wrong(a))]
        assert code == 0, (code, house.peers["h2"].stderr[-2000:])
        moved = sum(any("continued-on" in c for c in a.comments) for a in answers)
        assert moved, "it made nothing for others"
    return [
        count(f"SIGTERM with {STREAMS} streams, {moved} of which moved: client errors", _told(failed), 0),
        seconds(f"SIGTERM with {STREAMS} streams: to the end of the process", ended_s, DRAINED_S),
    ]


def rolling(folder: Path, hosts: int) -> list[Figure]:
    """Every peer is stopped and started again, as an update does, while clients ask all those that are there."""
    names = [f"h{number}" for number in range(1, hosts + 1)]
    with House.built(folder, len(names), holders=names, worker="--tokens 40 --rate 100") as house:
        house.until_all_see_all()
        house.until_all_know("tiny", holders=len(names))
        out: set[str] = set()
        waits: list[float] = []

        def taking() -> list[str]:
            return [name for name in names if name not in out]

        with Load(
            lambda: [house.peers[name] for name in taking()],
            model="tiny",
            tokens=40,
            clients=6,
            is_stream=lambda number: number % 2 == 0,
        ) as load:
            for name in names:
                time.sleep(1.0)
                out.add(name)
                time.sleep(TAKEN_OUT_S)
                stopped_at = time.monotonic()
                house.peers[name].signal(signal.SIGTERM)
                assert house.peers[name].process.wait(60) == 0, house.peers[name].stderr[-2000:]
                house.start(name)
                house.until_all_see_all()
                waits.append(time.monotonic() - stopped_at)
                out.remove(name)
        failed = load.wrong()
        assert len(load.seen) > 50
    return [
        count(f"rolling restart of {len(names)}, {len(load.seen)} requests: failed", _told(failed), 0),
        seconds("rolling restart: SIGTERM to back in every list, worst", max(waits), DRAINED_S),
    ]


def _told(failed: list[str]) -> int:
    assert not failed, failed[:5]
    return 0
