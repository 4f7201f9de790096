"""Who makes an answer is killed: before its first token, in the middle of it, with and without another holder."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.drills.clients import Answer, Asking, Question
from tests.drills.figure import Figure, count, seconds
from tests.drills.house import House
from tests.drills.models import STORY
from tests.fixtures.peer import Peer, chat_body, until

CLIENTS = 10
PREFILL_S = 1.5
ATTEMPTS_MAX = 2
FIRST_TOKEN_S = 5.0
SILENCE_S = 5.0
CLOSED_S = 2.0
SAMPLED_TOKENS = 150
NO_GPU = {"LLM_NODE_ALLOW_NO_GPU": "false"}
"""A peer that only routes: it has the built-in model as everybody has, and does not serve it."""


def _requests(peer: Peer) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = peer.ps()["requests"]
    return found


def _busiest(house: House, names: list[str], state: str) -> tuple[str, int]:
    """Which of `names` makes most answers that are in that state, and how many."""
    with ThreadPoolExecutor(len(names)) as pool:
        counts = list(pool.map(lambda n: sum(r["state"] == state for r in _requests(house.peers[n])), names))
    return max(zip(names, counts, strict=True), key=lambda found: found[1])


def before_first_token(folder: Path, rounds: int) -> list[Figure]:
    """Requests whose prompt is being read go elsewhere; their clients see nothing of it."""
    worker = f"--prefill {PREFILL_S} --tokens 20 --rate 200"
    waits: list[float] = []
    attempts = moved = 0
    with House.built(folder, 3, holders=("h2", "h3"), worker=worker) as house:
        house.until_all_see_all()
        for number in range(rounds):
            house.until_all_know("tiny", ("h1",), holders=2)
            questions = [Question("tiny", f"round {number}, question {n}", n, 20) for n in range(CLIENTS)]
            asking = [Asking(house.peers["h1"], q.body, is_stream=n % 2 == 0) for n, q in enumerate(questions)]
            victim = "h2" if number % 2 == 0 else "h3"
            until(lambda v=victim: _busiest(house, [v], "prefill")[1] >= 2, "it reads prompts")  # type: ignore[misc]
            killed_at = house.kill(victim)
            answers = [one.result() for one in asking]
            wrong = [what for q, a in zip(questions, answers, strict=True) if (what := q.wrong(a))]
            assert not wrong, wrong
            lost = [a for a in answers if a.attempts > 1]
            assert lost, "nobody was asked twice"
            moved += len(lost)
            waits += [a.first_at - killed_at for a in lost]
            attempts = max(attempts, *(a.attempts for a in answers))
            house.start(victim)
            house.until_all_see_all()
    return [
        count(f"attempts of any of {rounds * CLIENTS} requests", attempts, ATTEMPTS_MAX),
        seconds(f"kill to first token, worst of {moved}", max(waits), FIRST_TOKEN_S),
    ]


class Killing:
    """Kills one holder after the other while they answer, and starts each again."""

    def __init__(self, house: House, holders: list[str]) -> None:
        self._house = house
        self._holders = holders
        self._reviving: threading.Thread | None = None

    def begin(self) -> None:
        """All holders are there."""
        if self._reviving is not None:
            self._reviving.join(60)
        self._house.until_all_see_all()

    def kill_one(self) -> str:
        """The one that makes most of what runs now, in the middle of it."""
        found: list[str] = []

        def is_busy() -> bool:
            name, count = _busiest(self._house, self._holders, "generating")
            found[:] = [name]
            return count > 0

        until(is_busy, "somebody makes an answer")
        self._house.kill(found[0])
        self._reviving = threading.Thread(target=self._house.start, args=found)
        self._reviving.start()
        return found[0]

    def end(self) -> None:
        if self._reviving is not None:
            self._reviving.join(60)


def _in_the_middle(
    house: House, kills: int, asks: Callable[[int], list[tuple[Mapping[str, Any], Callable[[Answer], str]]]]
) -> tuple[int, float]:
    """(answers that went on at another peer, the longest silence of one). `asks`: bodies, and what is wrong then."""
    killing = Killing(house, ["h2", "h3", "h4"])
    continued, silence_s = 0, 0.0
    for number in range(kills):
        killing.begin()
        wanted = asks(number)
        asking = [Asking(house.peers["h1"], body, is_stream=n % 2 == 0) for n, (body, _) in enumerate(wanted)]
        streams = [one.answer for one in asking if one.answer.is_stream]
        until(lambda s=streams: all(len(a.text) > 60 for a in s), "streams say something")  # type: ignore[misc]
        killing.kill_one()
        answers = [one.result() for one in asking]
        wrong = [what for (_, check), a in zip(wanted, answers, strict=True) if (what := check(a))]
        assert not wrong, f"after {number} kills: {wrong}"
        went_on = [a for a in answers if _is_continued(a)]
        continued += len(went_on)
        silence_s = max(silence_s, *(a.silence_s for a in streams))
    killing.end()
    return continued, silence_s


def _is_continued(answer: Answer) -> bool:
    return "x-llm-router-continued-on" in answer.headers or any("continued-on" in c for c in answer.comments)


def greedy(folder: Path, kills: int) -> list[Figure]:
    """With the real engine: what comes is what an undisturbed run says, byte for byte."""
    hello = chat_body("hello", "Tell me all about yourself, and about this mesh.", max_tokens=400, ignore_eos=True)
    with House.built(folder, 4, holders=("h2", "h3", "h4"), env_of={"h1": NO_GPU}) as house:
        house.until_all_see_all()
        house.until_all_know("story", ("h1",), holders=3)
        undisturbed = Asking(house.peers["h1"], hello).result()
        assert not undisturbed.error and undisturbed.text, undisturbed
        turns = itertools.cycle((True, False))

        def asks(number: int) -> list[tuple[Mapping[str, Any], Callable[[Answer], str]]]:
            if next(turns):
                return [(chat_body("story", f"Story {n}"), lambda a: a.wrong(STORY)) for n in range(4)]
            return [(hello, lambda a: a.wrong(undisturbed.text, 400)) for _ in range(4)]

        continued, silence_s = _in_the_middle(house, kills, asks)
    return _continued_figures(f"real engine, {kills} kills", continued, kills, silence_s)


def sampled(folder: Path, kills: int) -> list[Figure]:
    """With the worker of the tests: every token is a random draw, and the draws go on where they were."""
    worker = f"--tokens {SAMPLED_TOKENS} --rate 100"
    with House.built(folder, 4, holders=("h2", "h3", "h4"), worker=worker) as house:
        house.until_all_see_all()
        house.until_all_know("tiny", ("h1",), holders=3)

        def asks(number: int) -> list[tuple[Mapping[str, Any], Callable[[Answer], str]]]:
            questions = [Question("tiny", f"{number}: {n}", 10 * number + n, SAMPLED_TOKENS) for n in range(8)]
            return [(q.body, q.wrong) for q in questions]

        continued, silence_s = _in_the_middle(house, kills, asks)
    return _continued_figures(f"sampled, {kills} kills", continued, kills, silence_s)


def _continued_figures(what: str, continued: int, kills: int, silence_s: float) -> list[Figure]:
    assert continued >= kills, f"only {continued} answers went on in {kills} kills"
    return [
        count(f"{what}: wrong answers, of {continued} that went on elsewhere", 0, 0),
        seconds(f"{what}: longest silence of a stream", silence_s, SILENCE_S),
    ]


def without_another(folder: Path) -> list[Figure]:
    """Nobody else has the model: an error in the stream, no `[DONE]`, and the end at once."""
    with House.built(folder, 2, holders=("h2",), worker="--tokens 1000 --rate 50") as house:
        house.until_all_see_all()
        house.until_all_know("tiny", ("h1",))
        questions = [Question("tiny", f"question {n}", n, 1000) for n in range(CLIENTS)]
        asking = [Asking(house.peers["h1"], q.body) for q in questions]
        until(lambda: sum(len(one.answer.text) > 60 for one in asking) >= 4, "streams say something")
        killed_at = house.kill("h2")
        answers = [one.result() for one in asking]
        begun = [a for a in answers if a.status == 200]
        for a in begun:
            assert a.error is not None and a.error["code"] == "stream_interrupted", (a.error, a.trouble)
            assert not a.is_done and not a.finishes and not a.trouble
        for a in answers:
            assert a.status == 200 or (a.status == 503 and a.error is not None), a
        ended_s = max(a.ended_at for a in answers) - killed_at
        refused = Asking(house.peers["h1"], questions[0].body).result()
        assert refused.status in (404, 503) and refused.error is not None, refused
        assert time.monotonic() - refused.began_at < FIRST_TOKEN_S
    return [seconds(f"kill to the last of {len(answers)} closed", ended_s, CLOSED_S)]
