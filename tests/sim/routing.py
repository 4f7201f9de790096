"""How long requests wait when ingresses route by old news: the product's router on virtual time, from seeds.

    python -m tests.sim.routing --seeds 20

Three scenes, each with `mesh.router.ranked` itself:

- `waits`: 8 holders of 4 slots, 4 ingresses, Poisson arrivals at 85 % load, lognormal service times of mean 4 s
  (sigma 1). Every ingress hears each holder's load `age` seconds late on average: a report every 2 x age, at a random
  phase. With the mesh's policy a holder without a free slot refuses (a 429 with its load), the ingress asks the next at
  most twice and then queues at the least bad; an answer's first and last event carry the holder's load too. Compared
  with round robin, least loaded as heard, join-shortest-queue by perfect knowledge, and one central queue, which no
  router can beat.
- `prompt_tokens`: chats of many turns over 4 peers, clients at two of them, with mesh.affinity against round robin:
  the tokens that had to be evaluated.
- `slow_share`: one of 8 holders becomes 40 times slower; what part of the requests still goes there 10 s later.

Not here: the network, failures (`python -m tests.sim` has them), tokens made one by one.
"""

from __future__ import annotations

import argparse
import functools
import heapq
import itertools
import math
import random
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from inference.chat import ChatPrompt, Message
from mesh.affinity import Affinity, estimated_tokens
from mesh.router import Ask, Candidate, ranked

POLICIES = ("mesh", "round robin", "least loaded as heard", "shortest queue, perfect knowledge", "central queue")
SERVICE_S_MEAN = 4.0
SERVICE_SIGMA = 1.0
REFUSALS_MAX = 2
# Weight of the newest service time in a holder's measured mean.
EWMA = 0.05
PREFILL_RATE = 1000.0
PREFILL_EWMA = 0.3
PROMPT_TOKENS = 200


@dataclass(slots=True)
class Job:
    """A request: who asked, when, how long it holds a slot, and when it began to."""

    ingress: int
    asked_at: float
    service_s: float
    started_at: float = -1.0


@dataclass(slots=True)
class Holder:
    """A machine with slots and a queue. `slowness` stretches every service."""

    slots: int = 4
    slowness: float = 1.0
    running: list[Job] = field(default_factory=list)
    waiting: deque[Job] = field(default_factory=deque)
    service_s: float = SERVICE_S_MEAN
    prefill_rate: float = PREFILL_RATE

    @property
    def is_full(self) -> bool:
        return len(self.running) >= self.slots

    @property
    def load(self) -> int:
        return len(self.running) + len(self.waiting)

    def measured_service_s(self, now: float) -> float:
        """The mean of finished ones, and no less than the age of those that run."""
        ages = [now - job.started_at for job in self.running]
        return max(self.service_s, statistics.fmean(ages)) if ages else self.service_s


@dataclass(frozen=True, slots=True)
class Report:
    """A holder's load as it told it."""

    made_at: float
    active: int
    queued: int
    service_s: float
    prefill_rate: float = PREFILL_RATE


@dataclass(slots=True)
class Ingress:
    """What one peer knows: the last report of each holder and its own requests there."""

    reports: list[Report]
    sent: list[list[Job]]
    turn: int = 0

    def candidates(self, now: float, name: Callable[[int], str]) -> list[Candidate]:
        return [
            Candidate(
                peer=name(index),
                active=report.active,
                queued=report.queued,
                in_flight=sum(1 for job in mine if job.asked_at > report.made_at),
                service_s=report.service_s,
                prefill_tokens_per_s=report.prefill_rate,
                metrics_age_s=now - report.made_at,
            )
            for index, (report, mine) in enumerate(zip(self.reports, self.sent, strict=True))
        ]


def _name(index: int) -> str:
    return f"holder-{index:02d}"


class Scene:
    """Holders and ingresses on an event heap; `waits` fills as requests get their slots."""

    def __init__(
        self,
        policy: str,
        *,
        age_s: float,
        seed: int,
        holders: int = 8,
        ingresses: int = 4,
        load: float = 0.85,
        answers_carry_load: bool = True,
        service_sigma: float = SERVICE_SIGMA,
    ) -> None:
        assert policy in POLICIES, policy
        self.policy, self.age_s, self.sigma = policy, age_s, service_sigma
        self.answers_carry_load = answers_carry_load and policy == "mesh"
        self.rng, self.router_rng = random.Random(seed), random.Random(seed + 1)
        self.holders = [Holder() for _ in range(holders)]
        slots = sum(holder.slots for holder in self.holders)
        if policy == "central queue":
            self.holders = [Holder(slots=slots)]
        self.rate = load * slots / SERVICE_S_MEAN
        empty = Report(0.0, 0, 0, SERVICE_S_MEAN)
        self.ingresses = [
            Ingress([empty] * len(self.holders), [[] for _ in self.holders], self.rng.randrange(1000))
            for _ in range(ingresses)
        ]
        self.waits: list[float] = []
        self.sent_to: list[tuple[float, int]] = []
        self.refusals = 0
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._tie = itertools.count()
        self._later(0.0, self._arrive)
        for ingress in self.ingresses:
            for index in range(len(self.holders)):
                self._later(self.rng.random() * 2 * age_s, functools.partial(self._tell, ingress, index))

    def run(self, *, requests: int | None = None, until_s: float = math.inf) -> None:
        while self._heap and (requests is None or len(self.waits) < requests):
            if self._heap[0][0] > until_s:
                break
            self.now, _, act = heapq.heappop(self._heap)
            act()

    def _later(self, delay_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + delay_s, next(self._tie), act))

    def _tell(self, ingress: Ingress, index: int) -> None:
        self._report(ingress, index)
        self._later(2 * self.age_s, lambda: self._tell(ingress, index))

    def _report(self, ingress: Ingress, index: int) -> None:
        holder = self.holders[index]
        ingress.reports[index] = Report(
            self.now,
            len(holder.running),
            len(holder.waiting),
            holder.measured_service_s(self.now),
            holder.prefill_rate,
        )

    def _arrive(self) -> None:
        self._later(self.rng.expovariate(self.rate), self._arrive)
        which = self.rng.randrange(len(self.ingresses))
        service_s = self.rng.lognormvariate(math.log(SERVICE_S_MEAN) - self.sigma**2 / 2, self.sigma)
        job = Job(which, self.now, service_s)
        index = self._chosen(self.ingresses[which])
        self.ingresses[which].turn += 1
        self.ingresses[which].sent[index].append(job)
        self.sent_to.append((self.now, index))
        holder = self.holders[index]
        if holder.is_full:
            holder.waiting.append(job)
        else:
            self._start(index, job)

    def _chosen(self, ingress: Ingress) -> int:
        everyone = range(len(self.holders))
        match self.policy:
            case "central queue":
                return 0
            case "round robin":
                return ingress.turn % len(self.holders)
            case "shortest queue, perfect knowledge":
                return min(everyone, key=lambda index: (self.holders[index].load, self.rng.random()))
            case "least loaded as heard":
                reports = ingress.reports
                return min(everyone, key=lambda i: (reports[i].active + reports[i].queued, self.rng.random()))
            case _:
                return self._routed(ingress)

    def _routed(self, ingress: Ingress) -> int:
        """As mesh.attempts does it: asked, refused, asked again, then the least bad."""
        ask = Ask(model_id="m", prompt_tokens=PROMPT_TOKENS)
        refused: set[int] = set()
        while True:
            known = ingress.candidates(self.now, _name)
            order = ranked(ask, known, rng=self.router_rng, turn=ingress.turn, is_sampled=not refused)
            ranking = [int(scored.candidate.peer[-2:]) for scored in order]
            if len(refused) == REFUSALS_MAX:
                return ranking[0]
            index = next(index for index in ranking if index not in refused)
            if not self.holders[index].is_full:
                return index
            self.refusals += 1
            refused.add(index)
            self._report(ingress, index)

    def _start(self, index: int, job: Job) -> None:
        holder = self.holders[index]
        job.started_at = self.now
        holder.running.append(job)
        self.waits.append(self.now - job.asked_at)
        if self.answers_carry_load:
            self._report(self.ingresses[job.ingress], index)
        rate = PREFILL_RATE / holder.slowness
        self._later(PROMPT_TOKENS / rate, lambda: self._prefilled(index, rate))
        self._later(job.service_s * holder.slowness, lambda: self._finish(index, job))

    def _prefilled(self, index: int, rate: float) -> None:
        holder = self.holders[index]
        holder.prefill_rate += PREFILL_EWMA * (rate - holder.prefill_rate)

    def _finish(self, index: int, job: Job) -> None:
        holder = self.holders[index]
        holder.running.remove(job)
        holder.service_s += EWMA * (self.now - job.started_at - holder.service_s)
        self.ingresses[job.ingress].sent[index].remove(job)
        if holder.waiting:
            self._start(index, holder.waiting.popleft())
        if self.answers_carry_load:
            self._report(self.ingresses[job.ingress], index)


def p99(values: Sequence[float]) -> float:
    return sorted(values)[int(0.99 * len(values))]


def waits(
    policy: str, *, age_s: float, seed: int, requests: int = 20_000, answers_carry_load: bool = True
) -> list[float]:
    """Seconds each request waited for its slot."""
    scene = Scene(policy, age_s=age_s, seed=seed, answers_carry_load=answers_carry_load)
    scene.run(requests=requests)
    return scene.waits


def slow_share(*, seed: int, load: float = 0.6, age_s: float = 1.0, slowness: float = 40.0) -> tuple[float, float]:
    """Which part of the requests one of 8 holders got in the minute before it became slow, and from 10 s after on."""
    scene = Scene("mesh", age_s=age_s, seed=seed, load=load)
    scene.run(until_s=120.0)
    scene.holders[0].slowness = slowness
    scene.run(until_s=190.0)

    def share(since_s: float, until_s: float) -> float:
        sent = [index for at, index in scene.sent_to if since_s <= at < until_s]
        return sent.count(0) / len(sent)

    return share(60.0, 120.0), share(130.0, 190.0)


# --- chats

PEERS = 4
CHATS = 48
TURNS = 12
PREFILL_TOKENS_PER_S = 400.0
DECODE_TOKENS_PER_S = 25.0
# What a peer's cache and shelf hold.
KEPT_TOKENS = 60_000
CHARACTERS_PER_TOKEN = 4


@dataclass(slots=True)
class Chatter:
    """One conversation at one ingress."""

    name: int
    ingress: int
    messages: list[Message] = field(default_factory=list)
    tokens: int = 0
    turn: int = 0


@dataclass(slots=True)
class Cache:
    """Chats a peer has evaluated, newest last: chat -> tokens."""

    kept: dict[int, int] = field(default_factory=dict)

    def take(self, chat: int) -> int:
        return self.kept.pop(chat, 0)

    def keep(self, chat: int, tokens: int) -> None:
        self.kept[chat] = tokens
        while sum(self.kept.values()) > KEPT_TOKENS:
            del self.kept[next(iter(self.kept))]


def prompt_tokens(policy: str, *, seed: int) -> tuple[int, int, float]:
    """Tokens evaluated, tokens asked, and the mean wait for a slot in seconds, of all chats together."""
    rng, router_rng = random.Random(seed), random.Random(seed + 1)
    caches, holders = [Cache() for _ in range(PEERS)], [Holder() for _ in range(PEERS)]
    affinities, turns = [Affinity() for _ in range(PEERS)], [0] * PEERS
    evaluated = asked = 0
    waited: list[float] = []
    heap: list[tuple[float, int, Chatter]] = []
    for name in range(CHATS):
        heapq.heappush(heap, (rng.uniform(0.0, 60.0), name, Chatter(name, rng.randrange(2))))
    # When each slot of each peer is free again.
    slots = [[0.0] * holder.slots for holder in holders]
    while heap:
        now, _, chat = heapq.heappop(heap)
        user, answer = rng.randrange(20, 160), rng.randrange(80, 320)
        chat.messages.append(_message("user", user, chat))
        prompt = ChatPrompt(messages=tuple(chat.messages))
        chat.tokens += user
        where = turns[chat.ingress] % PEERS
        if policy == "mesh":
            ask = Ask(
                model_id="m",
                prompt_tokens=estimated_tokens(prompt),
                affinity=affinities[chat.ingress].known("m", prompt),
            )
            candidates = [_candidate(index, chat.ingress, free, now) for index, free in enumerate(slots)]
            order = ranked(ask, candidates, rng=router_rng, turn=turns[chat.ingress])
            where = int(order[0].candidate.peer)
        turns[chat.ingress] += 1
        cached = min(caches[where].take(chat.name), chat.tokens - 1)
        evaluated, asked = evaluated + chat.tokens - cached, asked + chat.tokens
        slot = min(range(len(slots[where])), key=slots[where].__getitem__)
        start = max(now, slots[where][slot])
        end = start + (chat.tokens - cached) / PREFILL_TOKENS_PER_S + answer / DECODE_TOKENS_PER_S
        waited.append(start - now)
        slots[where][slot] = end
        affinities[chat.ingress].served("m", prompt, str(where), chat.tokens, answer)
        chat.messages.append(_message("assistant", answer, chat))
        chat.tokens += answer
        caches[where].keep(chat.name, chat.tokens)
        chat.turn += 1
        if chat.turn < TURNS:
            heapq.heappush(heap, (end + rng.expovariate(1 / 20.0), chat.name, chat))
    return evaluated, asked, statistics.fmean(waited)


def _message(role: Literal["user", "assistant"], tokens: int, chat: Chatter) -> Message:
    return Message(role=role, content=f"{chat.name}/{chat.turn} ".ljust(tokens * CHARACTERS_PER_TOKEN, "x"))


def _candidate(index: int, ingress: int, free: Sequence[float], now: float) -> Candidate:
    """Others' load is as of now, their news called a second old: this scene is about caches."""
    busy = [at for at in free if at > now]
    return Candidate(
        peer=str(index),
        is_local=index == ingress,
        active=len(busy),
        # The model here queues by time: a slot taken for long stands for those that wait.
        queued=sum(int((at - now) / 8.0) for at in busy),
        service_s=8.0,
        prefill_tokens_per_s=PREFILL_TOKENS_PER_S,
        forward_s=0.002,
        metrics_age_s=1.0,
    )


# --- the command


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.routing", description="How well the router routes.")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--requests", type=int, default=20_000)
    options = parser.parse_args()
    print(f"8 holders x 4 slots, 4 ingresses, load 0.85: wait for a slot in s, mean of {options.seeds} seeds")
    best = _row("shortest queue, perfect knowledge", 1.0, options)
    for policy in ("central queue", "round robin"):
        _row(policy, 1.0, options)
    for age_s in (1.0, 12.0):
        _row("least loaded as heard", age_s, options)
        ours = _row("mesh", age_s, options)
        print(f"    mesh, news {age_s:.0f} s old: p99 is {ours / best:.2f} x that of the shortest queue (goal: 1.6)")
        _row("mesh", age_s, options, answers_carry_load=False)
    _chats(options.seeds)
    for load in (0.2, 0.6, 0.85):
        shares = [slow_share(seed=seed, load=load) for seed in range(options.seeds)]
        before, after = (statistics.fmean(column) for column in zip(*shares, strict=True))
        print(f"a holder 40 x slower, load {load}: {before:.1%} of the requests before, {after:.1%} from 10 s after on")


def _chats(seeds: int) -> None:
    saved = []
    for seed in range(seeds):
        ours, asked, wait_s = prompt_tokens("mesh", seed=seed)
        theirs, _, their_wait_s = prompt_tokens("round robin", seed=seed)
        saved.append(1 - ours / theirs)
        if seed == 0:
            print(f"chats over 4 peers, seed 0: {asked} prompt tokens asked; evaluated {ours}, round robin {theirs}")
            print(f"    mean wait {wait_s:.2f} s, round robin {their_wait_s:.2f} s")
    print(f"    prompt time saved: mean {statistics.fmean(saved):.1%}, least {min(saved):.1%} (goal: 70 %)")


def _row(policy: str, age_s: float, options: argparse.Namespace, *, answers_carry_load: bool = True) -> float:
    p99s, means, refusals = [], [], 0
    for seed in range(options.seeds):
        scene = Scene(policy, age_s=age_s, seed=seed, answers_carry_load=answers_carry_load)
        scene.run(requests=options.requests)
        p99s.append(p99(scene.waits))
        means.append(statistics.fmean(scene.waits))
        refusals += scene.refusals
    note = "" if answers_carry_load else ", answers without load"
    print(
        f"  {policy + note:38s} news {age_s:4.1f} s: mean {statistics.fmean(means):5.2f}"
        f"  p99 {statistics.fmean(p99s):6.2f}  refusals {refusals / options.seeds / options.requests:.2f} a request",
        flush=True,
    )
    return statistics.fmean(p99s)


if __name__ == "__main__":
    main()
