"""Who makes an answer is killed: before its first token, in the middle of it, with and without another holder."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from tests.drills.clients import Answer, Asking, Question
from tests.drills.figure import Figure, count, seconds
from tests.drills.house import House
from tests.drills.models import STORY
from tests.fixtures.peer import Peer, chat_body, until

How = Literal["crash", "power-off"]

CLIENTS = 10
PREFILL_S = 1.5
ATTEMPTS_MAX = 2
FIRST_TOKEN_S = 5.0
SILENCE_S = 5.0
SILENT_S = 7.0
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
    """Kills one holder after the other while they answer, and starts each again. Use as a context."""

    def __init__(self, house: House, how: How) -> None:
        self._house = house
        self._how = how
        self._reviving: threading.Thread | None = None
        self._dark = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._revived()

    def begin(self) -> None:
        """All holders are there."""
        self._revived()
        self._house.until_all_see_all()

    def kill(self, name: str) -> None:
        """A crashed peer is started again at once; a machine without power stays dark until `light_again`."""
        if self._how == "crash":
            self._house.kill(name)
            self._revive(self._house.start, name)
        else:
            self._house.power_off(name)
            self._dark = name

    def light_again(self) -> None:
        if self._dark:
            self._revive(self._house.power_on, self._dark)
            self._dark = ""

    def _revive(self, how: Callable[[str], Peer], name: str) -> None:
        self._reviving = threading.Thread(target=how, args=(name,))
        self._reviving.start()

    def _revived(self) -> None:
        if self._reviving is not None:
            self._reviving.join(60)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Something to ask, what is wrong with its answer, and how much of it must be there when its maker is killed."""

    body: Mapping[str, Any]
    wrong: Callable[[Answer], str]
    characters: int = 60


def _in_the_middle(
    house: House, kills: int, asks: Callable[[int], list[Wanted]], how: How = "crash"
) -> tuple[int, float]:
    """(answers that went on at another peer, the longest silence of one). Every other one is no stream."""
    continued, silence_s = 0, 0.0
    house.until_files_known()
    with Killing(house, how) as killing:
        for number in range(kills):
            killing.begin()
            wanted = asks(number)
            asking = [Asking(house.peers["h1"], one.body, is_stream=n % 2 == 0) for n, one in enumerate(wanted)]
            killing.kill(_who_is_in_the_middle(wanted, [one.answer for one in asking]))
            answers = [one.result() for one in asking]
            killing.light_again()
            wrong = [what for one, a in zip(wanted, answers, strict=True) if (what := one.wrong(a))]
            assert not wrong, f"after {number} kills: {wrong}"
            continued += sum(map(_is_continued, answers))
            silence_s = max(silence_s, *(a.silence_s for a in answers if a.is_stream))
    return continued, silence_s


def _who_is_in_the_middle(wanted: list[Wanted], answers: list[Answer]) -> str:
    """Who makes a stream of which enough is there, as soon as there is one: short answers take milliseconds."""
    began = time.monotonic()
    while time.monotonic() - began < 30.0:
        for one, answer in zip(wanted, answers, strict=True):
            if answer.is_stream and len(answer.text) >= one.characters:
                return answer.served_by
        time.sleep(0.001)
    raise AssertionError(f"no stream says anything: {answers}")


def _is_continued(answer: Answer) -> bool:
    return "x-llm-router-continued-on" in answer.headers or any("continued-on" in c for c in answer.comments)


def greedy(folder: Path, kills: int) -> list[Figure]:
    """With the real engine: what comes is what an undisturbed run says, byte for byte."""
    questions = ("How do I add another machine?", "What can you do? Please explain everything in detail.")
    hello = [chat_body("hello", question) for question in questions]
    with House.built(folder, 4, holders=("h2", "h3", "h4"), env_of={"h1": NO_GPU}) as house:
        house.until_all_see_all()
        house.until_all_know("story", ("h1",), holders=3)
        undisturbed = [Asking(house.peers["h1"], body, is_stream=False).result() for body in hello]
        assert all(a.status == 200 and len(a.text) > 100 for a in undisturbed), undisturbed

        def asks(number: int) -> list[Wanted]:
            if number % 2 == 0:
                return [Wanted(chat_body("story", f"Story {n}"), lambda a: a.wrong(STORY)) for n in range(4)]
            texts = [a.text for a in undisturbed]
            return [
                Wanted(body, lambda a, text=text: a.wrong(text), 1)  # type: ignore[misc]
                for body, text in zip(hello, texts, strict=True)
                for _ in range(4)
            ]

        continued, silence_s = _in_the_middle(house, kills, asks)
    return _continued_figures(f"real engine, {kills} times crash", continued, kills // 2, silence_s)


def sampled(folder: Path, kills: int, how: How = "crash") -> list[Figure]:
    """With the worker of the tests: every token is a random draw, and the draws go on where they were."""
    worker = f"--tokens {SAMPLED_TOKENS} --rate 100"
    with House.built(folder, 4, holders=("h2", "h3", "h4"), worker=worker) as house:
        house.until_all_see_all()
        house.until_all_know("tiny", ("h1",), holders=3)

        def asks(number: int) -> list[Wanted]:
            questions = [Question("tiny", f"{number}: {n}", 10 * number + n, SAMPLED_TOKENS) for n in range(8)]
            return [Wanted(q.body, q.wrong) for q in questions]

        continued, silence_s = _in_the_middle(house, kills, asks, how)
    what = f"sampled, {kills} times {how}"
    return _continued_figures(what, continued, kills, silence_s, SILENCE_S if how == "crash" else SILENT_S)


def _continued_figures(
    what: str, continued: int, least: int, silence_s: float, limit_s: float = SILENCE_S
) -> list[Figure]:
    assert continued >= least, f"only {continued} answers went on elsewhere"
    return [
        count(f"{what}: wrong answers, of {continued} that went on elsewhere", 0, 0),
        seconds(f"{what}: longest silence of a stream", silence_s, limit_s),
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
