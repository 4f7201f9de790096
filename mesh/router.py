"""Who serves this request: every holder of the model, best first. Pure; mesh.dispatch tries them in this order.

This docstring is the one place where the formula stands.

`auto` (default): predicted time to first token, in seconds, lowest first.

    score     = queue_s + prefill_s + shared_s + load_s + evict_s + forward_s
    queue_s   = 0 while a slot is free, else (ahead - slots + 1) / slots * service_s
    ahead     = active + queued + in_flight        in_flight: ours, sent there after that report was made
    prefill_s = (prompt_tokens - cached) / prefill_tokens_per_s
    shared_s  = prefill_s * busy                   others take up to half of the machine meanwhile
    cached    = what prefix affinity says this holder has kept of the prompt, while the model is loaded there
    busy      = the largest of min(1, ahead / slots), CPU use of a CPU holder, GPU use of a GPU holder
    load_s    = 0 if loaded, half of the expected time while loading, else all of it
    evict_s   = load_s again if loading throws out another model (its next user pays it); tenfold for background work
    forward_s = one round trip to the holder, 0 for this machine

  What was not measured comes from the size of the file and from whether a GPU runs it (`prefill_rate`,
  `service_time`). This is affinity's load guard too: a full holder pays queue_s, a wedged one is penalized.

  Reports are late, so the lowest score is not simply taken: many ingresses that believe the same old news would all
  go to the same holder (tests/sim/routing.py shows it). A crowd heard of `age` seconds ago may have gone by that much:
  candidates whose score less min(queue_s + shared_s, age) is within a tie of the best are *comparable*. If there are
  more than two and not all of that news is fresh, the better of two of them is taken: one by turns, one at random
  (the power of two choices, Mitzenmacher 2001; Prequal, NSDI 2024). Always in the draw are this machine, whose own
  load is no rumour, and a holder that has kept the prompt's prefix. Else the best is taken.

  A tie is a difference under 20 ms or 10 %. Ties: least share of slots in use, this machine (an idle peer serves
  itself), CPU use, GPU use, response time, GPU capability, then by turns.

`metrics`: the contract's, exactly. score = cpu_usage + memory_usage + active_requests * 10, lowest first, loaded
before on disk. All over 80 % CPU: by turns. Ties: GPU use, GPU capability, then by turns. Metrics older than 120 s
are none; a holder with metrics comes before one without.

In both: healthy holders first, then penalized ones (failed or wedged a moment ago), then suspects; a context too
short for the prompt comes after everything. Nobody is left out: the last holder is asked, whatever is said of it.

Not here: the 429 of a full holder, retries, deadlines (mesh.dispatch); what is known of a peer (mesh.neighbours).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Mode = Literal["auto", "metrics"]

# A tie: a person does not feel it, and no estimate here is better than that.
TIE_S = 0.020
TIE_SHARE = 0.10
# News this young is as good as knowledge: less arrives in it than a slot's worth of requests.
FRESH_S = 0.25
PART_S_MAX = 1e6
METRICS_STALE_S = 120.0
CPU_HIGH_PERCENT = 80.0
# Bytes of weights per second, so that (rate / file size) is tokens per second. Prefill is bound by arithmetic: a file
# of 4 GB (7 G parameters at 4 bits) needs 14 GFLOP a token; 8 cores do about 20 tokens/s of it, a middling GPU 2,000.
# Decoding is bound by memory: every weight is read for every token, at about 30 and 300 GB/s.
CPU_PREFILL_BYTES_PER_S = 8e10
GPU_PREFILL_BYTES_PER_S = 8e12
CPU_DECODE_BYTES_PER_S = 3e10
GPU_DECODE_BYTES_PER_S = 3e11
ANSWER_TOKENS = 200
SIZE_BYTES_UNKNOWN = 2e9
# Reading a model: a worker's start, then a SATA SSD.
LOAD_S_MIN = 1.0
LOAD_BYTES_PER_S = 5e8
BACKGROUND_EVICTION = 10.0
# CPU and GPU use tell two idle peers apart only in steps: the rest is noise, and turns are fairer than noise.
USE_STEP_PERCENT = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What is wanted. `prompt_tokens` is an estimate; `affinity`: peer -> tokens of this prompt it has kept.

    `deadline_s` (seconds from now) does not rank: a late answer is late at every holder; the dispatcher refuses it.
    """

    model_id: str
    prompt_tokens: int = 0
    max_tokens: int | None = None
    affinity: Mapping[str, int] = field(default_factory=dict)
    is_background: bool = False
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A holder of the model, as this ingress knows it now. None: not measured, or never heard.

    `service_s`: how long a request holds a slot; no less than the mean age of those that run there now (else a holder
    that has become slow would go on reporting its good old days). `in_flight`: this ingress's requests there that the
    report does not include. `active_requests`: of the whole peer, all models, with this ingress's own.
    `metrics_age_s`: age of the report that `active` to `queued` and the percentages came in; 0 for this machine.
    `is_adopted`: a registered server that is no peer (mesh.adopted); nobody can go on with what it began.
    """

    peer: str
    name: str = ""
    is_local: bool = False
    is_adopted: bool = False
    is_suspect: bool = False
    is_penalized: bool = False
    is_loaded: bool = True
    is_loading: bool = False
    slots: int = 4
    active: int = 0
    queued: int = 0
    in_flight: int = 0
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    service_s: float | None = None
    load_s: float | None = None
    evicts: bool = False
    forward_s: float = 0.0
    size_bytes: int = 0
    gpu: bool = False
    gpu_capability: float = 0.0
    cpu_percent: float | None = None
    memory_percent: float | None = None
    gpu_percent: float | None = None
    active_requests: int = 0
    metrics_age_s: float | None = None
    response_ms: float | None = None
    sha256: str = ""
    context: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A candidate in its place. `score`: seconds in `auto`, points in `metrics`. `reason`: a few words for people."""

    candidate: Candidate
    score: float
    parts: Mapping[str, float]
    reason: str


def ranked(
    ask: Ask,
    candidates: Sequence[Candidate],
    *,
    mode: Mode = "auto",
    rng: random.Random,
    turn: int,
    is_sampled: bool = True,
) -> tuple[Scored, ...]:
    """All candidates, best first.

    `turn`: counts this ingress's requests for this model, from anywhere. `is_sampled=False` after holders have refused:
    the least bad one is wanted then, by the news those refusals brought.
    """
    order: list[Scored] = []
    for standing in sorted({_standing(ask, one) for one in candidates}):
        group = [one for one in candidates if _standing(ask, one) == standing]
        if mode == "metrics":
            order += _by_metrics(group, turn)
        else:
            order += _by_ttft(ask, group, rng=rng, turn=turn, is_sampled=is_sampled)
    return tuple(order)


def predicted_ttft_s(ask: Ask, candidate: Candidate) -> Scored:
    """`candidate` with its predicted time to first token, and what that is made of. The formula stands above."""
    one = candidate
    ahead = one.active + one.queued + one.in_flight
    slots = max(1, one.slots)
    queue_s = 0.0 if ahead < slots else (ahead - slots + 1) / slots * service_time(ask, one)
    cached = min(ask.affinity.get(one.peer, 0), ask.prompt_tokens) if one.is_loaded else 0
    prefill_s = (ask.prompt_tokens - cached) / prefill_rate(one)
    whole_load_s = one.load_s if one.load_s is not None else LOAD_S_MIN + _size(one) / LOAD_BYTES_PER_S
    load_s = 0.0 if one.is_loaded else whole_load_s / 2 if one.is_loading else whole_load_s
    is_evicting = one.evicts and not one.is_loaded and not one.is_loading
    evict_s = whole_load_s * (BACKGROUND_EVICTION if ask.is_background else 1.0) if is_evicting else 0.0
    parts = {
        "queue_s": queue_s,
        "prefill_s": prefill_s,
        "shared_s": prefill_s * _busy(one),
        "load_s": load_s,
        "evict_s": evict_s,
        "forward_s": 0.0 if one.is_local else one.forward_s,
    }
    # What a peer says of itself may be nonsense; it must not spoil the order of the others.
    parts = {name: min(PART_S_MAX, max(0.0, part)) for name, part in parts.items()}
    reason = "suspect" if one.is_suspect else "penalized" if one.is_penalized else "prefix kept" if cached else ""
    return Scored(candidate=one, score=sum(parts.values()), parts=parts, reason=reason)


def prefill_rate(candidate: Candidate) -> float:
    """Prompt tokens per second: as measured, else from the size of the file and who computes."""
    if candidate.prefill_tokens_per_s:
        return candidate.prefill_tokens_per_s
    return (GPU_PREFILL_BYTES_PER_S if candidate.gpu else CPU_PREFILL_BYTES_PER_S) / _size(candidate)


def service_time(ask: Ask, candidate: Candidate) -> float:
    """Seconds a request holds a slot: as measured, else the mean response time, else a typical answer's decoding."""
    if candidate.service_s:
        return candidate.service_s
    if candidate.response_ms:
        return candidate.response_ms / 1000.0
    decode = candidate.decode_tokens_per_s
    if not decode:
        decode = (GPU_DECODE_BYTES_PER_S if candidate.gpu else CPU_DECODE_BYTES_PER_S) / _size(candidate)
    return min(ask.max_tokens or ANSWER_TOKENS, ANSWER_TOKENS) / decode


def _size(candidate: Candidate) -> float:
    return float(candidate.size_bytes) or SIZE_BYTES_UNKNOWN


def _standing(ask: Ask, one: Candidate) -> int:
    """0: healthy, 1: penalized, 2: suspect, 3: both; 4 more if the prompt does not fit."""
    is_short = 0 < one.context < ask.prompt_tokens
    return 4 * is_short + 2 * one.is_suspect + one.is_penalized


def _has_metrics(one: Candidate) -> bool:
    if one.cpu_percent is None:
        return False
    return one.metrics_age_s is None or one.metrics_age_s <= METRICS_STALE_S


def _share(one: Candidate) -> float:
    return (one.active + one.queued + one.in_flight) / max(1, one.slots)


def _busy(one: Candidate) -> float:
    """0 to 1: how much of the machine is taken, by us or by other programs."""
    use = (one.gpu_percent if one.gpu else one.cpu_percent) or 0.0
    return max(min(1.0, _share(one)), min(1.0, use / 100.0) if _has_metrics(one) else 0.0)


def _age(one: Candidate) -> float:
    """Seconds since the news; what was never heard may be anything."""
    if one.is_local:
        return 0.0
    return one.metrics_age_s if one.metrics_age_s is not None else METRICS_STALE_S


def _by_ttft(ask: Ask, group: Sequence[Candidate], *, rng: random.Random, turn: int, is_sampled: bool) -> list[Scored]:
    scored = sorted((predicted_ttft_s(ask, one) for one in group), key=_score_then_peer)
    limit = _tie_limit(scored[0].score)
    ties = [one for one in scored if one.score <= limit]
    order = _ties_in_order(ties, turn) + scored[len(ties) :]
    comparable = [one for one in scored if one.score - _doubt_s(one) <= limit]
    is_fresh = all(_age(one.candidate) <= FRESH_S for one in comparable)
    if not is_sampled or len(comparable) <= 2 or is_fresh:
        return order
    drawn = _drawn(ask, sorted(comparable, key=_peer), rng, turn)
    better = [one for one in order if one in drawn]
    limit = _tie_limit(better[0].score)
    first = _ties_in_order([one for one in better if one.score <= limit], turn)[0]
    return [first, *(one for one in order if one is not first)]


def _doubt_s(one: Scored) -> float:
    """How much of the score may be over since the news was made."""
    return min(one.parts["queue_s"] + one.parts["shared_s"], _age(one.candidate))


def _drawn(ask: Ask, comparable: list[Scored], rng: random.Random, turn: int) -> list[Scored]:
    """This machine, who kept the prefix, one by turns and one at random."""
    count = len(comparable)
    by_turns = turn % count
    at_random = (by_turns + rng.randrange(1, count)) % count
    return [
        one
        for index, one in enumerate(comparable)
        if index in (by_turns, at_random) or one.candidate.is_local or ask.affinity.get(one.candidate.peer)
    ]


def _tie_limit(score: float) -> float:
    return score + max(TIE_S, TIE_SHARE * score)


def _ties_in_order(ties: Sequence[Scored], turn: int) -> list[Scored]:
    def key(one: Scored) -> tuple[float, ...]:
        candidate = one.candidate
        has_metrics = _has_metrics(candidate)
        return (
            _share(candidate),
            not candidate.is_local,
            (candidate.cpu_percent or 0.0) // USE_STEP_PERCENT if has_metrics else 0.0,
            (candidate.gpu_percent or 0.0) // USE_STEP_PERCENT if has_metrics else 0.0,
            candidate.response_ms or 0.0,
            -candidate.gpu_capability,
        )

    return _by_turns(ties, key, turn)


def _by_metrics(group: Sequence[Candidate], turn: int) -> list[Scored]:
    """The contract's order within one standing."""
    is_all_busy = all(_has_metrics(one) and (one.cpu_percent or 0.0) > CPU_HIGH_PERCENT for one in group)

    def key(one: Scored) -> tuple[float, ...]:
        candidate = one.candidate
        if not _has_metrics(candidate):
            return (not candidate.is_loaded, 1.0)
        if is_all_busy:
            return (not candidate.is_loaded, 0.0)
        gpu = candidate.gpu_percent or 0.0
        return (not candidate.is_loaded, 0.0, round(one.score, 6), gpu, -candidate.gpu_capability)

    return _by_turns([_points(one) for one in group], key, turn)


def _points(one: Candidate) -> Scored:
    parts = {
        "cpu": (one.cpu_percent or 0.0) if _has_metrics(one) else 0.0,
        "memory": (one.memory_percent or 0.0) if _has_metrics(one) else 0.0,
        "active": one.active_requests * 10.0,
    }
    reason = "suspect" if one.is_suspect else "penalized" if one.is_penalized else ""
    return Scored(candidate=one, score=sum(parts.values()), parts=parts, reason=reason or _news(one))


def _news(one: Candidate) -> str:
    return "" if _has_metrics(one) else "no metrics"


def _by_turns(scored: Sequence[Scored], key: Callable[[Scored], tuple[float, ...]], turn: int) -> list[Scored]:
    """Sorted by `key`; those with the same key by turns: each is first equally often."""
    order: list[Scored] = []
    for _, equal in itertools.groupby(sorted(sorted(scored, key=_peer), key=key), key):
        equals = list(equal)
        start = turn % len(equals)
        order += equals[start:] + equals[:start]
    return order


def _peer(one: Scored) -> str:
    return one.candidate.peer


def _score_then_peer(one: Scored) -> tuple[float, str]:
    return one.score, one.candidate.peer
