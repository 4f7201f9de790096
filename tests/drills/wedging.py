"""Machines that do not die but are no use: stopped, wedged, or slow."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from tests.drills.clients import Answer, Asking, Load, Question, p95
from tests.drills.figure import Figure, count, seconds
from tests.drills.house import House, fake_worker, waited
from tests.fixtures.peer import until

STREAMS = 6
MOVED_S = 5.0
CONTINUED_S = 7.0
BACK_S = 30.0
PROMPT_S = 1.0
"""A short answer that begins later than this was in trouble."""
WEDGED_S = 6.5
AVOIDED_S = 8.0
SLOW_TIMES = 40
UNCHOSEN_S = 10.0
P95_TIMES = 1.5
NOISE_S = 0.05


def frozen(folder: Path, pause_s: float, streams_s: float = 12.0) -> list[Figure]:
    """SIGSTOP to everything on one holder: its kernel still answers, so nothing breaks; only silence tells."""
    rate = 50.0
    tokens = int(rate * streams_s)
    with House.built(folder, 4, holders=("h2", "h3", "h4"), worker=f"--tokens {tokens} --rate {rate}") as house:
        house.until_all_see_all()
        house.until_all_know("tiny", ("h1",), holders=3)
        h1 = house.peers["h1"]
        questions = [Question("tiny", f"long {n}", n, tokens) for n in range(STREAMS)]
        with Load(lambda: [h1], model="tiny", tokens=5, clients=3, pause_s=0.1) as load:
            asking = [Asking(h1, q.body) for q in questions]
            until(lambda: all(len(one.answer.text) > 100 for one in asking), "streams say something")
            frozen_at = time.monotonic()
            house.lan.freeze("h3")
            streams = [one.result() for one in asking]
            time.sleep(max(0.0, frozen_at + pause_s - time.monotonic()))
            house.lan.thaw("h3")
            back_s = house.until_all_see_all()
            waited(lambda: any(a.served_by == "h3" for a in load.answers[-20:]), "it serves again", BACK_S)
        wrong = load.wrong() + [what for q, a in zip(questions, streams, strict=True) if (what := q.wrong(a))]
        assert not wrong, wrong
        _assert_counted_once(house, "h1", len(load.seen) + STREAMS)
        moved = [a for a in streams if any("continued-on" in c for c in a.comments)]
        assert moved, "it made none of the streams"
        late = [a.began_at for a in load.answers if a.began_at > frozen_at and _was_in_trouble(a)]
    return [
        seconds("stopped to the last new request in trouble", max((0.0, *(at - frozen_at for at in late))), MOVED_S),
        seconds(f"longest silence of {len(moved)} streams that moved", max(a.silence_s for a in moved), CONTINUED_S),
        seconds(f"goes on after {pause_s:g} s: to alive everywhere", back_s, BACK_S),
    ]


def _was_in_trouble(answer: Answer) -> bool:
    return answer.attempts > 1 or answer.first_token_s > PROMPT_S


def _assert_counted_once(house: House, name: str, requests: int) -> None:
    """Its own count of requests that ended well is that of its clients."""
    lines = house.peers[name].get("/metrics").body.decode().splitlines()
    counts = [line.rsplit(" ", 1) for line in lines if line.startswith("llm_router_requests_total{")]
    ended_well = sum(float(value) for label, value in counts if 'status="2' in label)
    assert ended_well == requests, (ended_well, requests, counts)


def wedged(folder: Path) -> list[Figure]:
    """One holder takes requests, lives, and makes no token."""
    folder.mkdir(parents=True, exist_ok=True)
    sign = folder / "wedged"
    worker = "--tokens 10 --rate 200 --slots 8"
    env_of = {"h2": fake_worker(f"{worker} --hang-if {sign}")}
    with House.built(folder, 3, holders=("h2", "h3"), worker=worker, env_of=env_of) as house:
        house.until_all_see_all()
        house.until_all_know("tiny", ("h1",), holders=2)
        h1 = house.peers["h1"]
        with Load(lambda: [h1], model="tiny", tokens=10, clients=2, pause_s=0.05) as load:
            waited(lambda: {a.served_by for a in load.answers} == {"h2", "h3"}, "both have served", 30.0)
        sign.touch()
        questions = [Question("tiny", f"first {n}", n, 10) for n in range(8)]
        asking = [Asking(h1, q.body) for q in questions]
        answers = [one.result() for one in asking]
        wrong = [what for q, a in zip(questions, answers, strict=True) if (what := q.wrong(a))]
        assert not wrong, wrong
        moved = [a for a in answers if a.attempts > 1]
        assert moved and all(a.served_by == "h3" for a in answers), [a.served_by for a in answers]
        with Load(lambda: [h1], model="tiny", tokens=10, clients=2, pause_s=0.05) as load:
            time.sleep(AVOIDED_S)
        assert not load.wrong(), load.wrong()
        again = [a for a in load.answers if _was_in_trouble(a)]
    return [
        seconds(
            f"first token of {len(moved)} that were moved on, worst", max(a.first_token_s for a in moved), WEDGED_S
        ),
        count(f"of {len(load.seen)} requests in the next {AVOIDED_S:g} s: went there", len(again), 0),
    ]


def slowed(folder: Path, baseline_s: float, slow_s: float) -> list[Figure]:
    """One of three holders becomes forty times slower, as when another program takes its GPU."""
    folder.mkdir(parents=True, exist_ok=True)
    sign = folder / "slow"
    common = "--prefill 0.1 --rate 100 --tokens 30"
    env_of = {"h4": fake_worker(f"{common} --slow-if {sign} --slow-by {SLOW_TIMES}")}
    with House.built(folder, 4, holders=("h2", "h3", "h4"), worker=common, env_of=env_of) as house:
        house.until_all_see_all()
        house.until_all_know("tiny", ("h1",), holders=3)
        h1 = house.peers["h1"]
        with Load(lambda: [h1], model="tiny", tokens=30, clients=6, words=60) as load:
            waited(lambda: {a.served_by for a in load.answers} == {"h2", "h3", "h4"}, "all three serve", 30.0)
            before = len(load.seen)
            time.sleep(baseline_s)
            sign.touch()
            slow_at = time.monotonic()
            time.sleep(slow_s)
            sign.unlink()
        assert not load.wrong(), load.wrong()
        seen = load.answers[before:]
        baseline = [a.first_token_s for a in seen if a.ended_at < slow_at]
        slow = [a for a in seen if a.began_at >= slow_at]
        chosen_s = max((0.0, *(a.began_at - slow_at for a in slow if a.served_by == "h4")))
        times = _p95(slow) / max(NOISE_S, p95(baseline))
    return [
        seconds(f"slowed {SLOW_TIMES} times to the last request it got", chosen_s, UNCHOSEN_S),
        count(f"p95 to first token of {len(slow)}, times that of before", times, P95_TIMES),
    ]


def _p95(answers: Sequence[Answer]) -> float:
    return p95([a.first_token_s for a in answers])
