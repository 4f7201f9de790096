"""Who serves this request: every holder of the model, best first. Pure; mesh.dispatch tries them in this order.

This docstring is the one place where the formula stands.

`auto` (default): predicted time to first token, in seconds, lowest first.

    score     = queue_s + prefill_s + load_s + evict_s + forward_s
    queue_s   = 0 while a slot is free, else (ahead - slots + 1) / slots * service_s
    ahead     = active + queued + in_flight        in_flight: ours, sent there after that report was made
    prefill_s = (prompt_tokens - cached) / prefill_tokens_per_s * (1 + busy)
    cached    = what prefix affinity says this holder has kept of the prompt, while the model is loaded there
    busy      = the largest of min(1, ahead / slots), CPU use of a CPU holder, GPU use of a GPU holder
    load_s    = 0 if loaded, half of the expected time while loading, else all of it
    evict_s   = load_s again if loading throws out another model (whoever uses that one pays it), ten times for background
    forward_s = one round trip to the holder, 0 for this machine

  What was not measured comes from the size of the file and from whether a GPU runs it (`prefill_rate`, `service_time`).
  There is nothing else to affinity's load guard: a full holder pays queue_s, a wedged one is penalized.

  Reports are late, so the lowest score is not simply taken: many ingresses that believe the same old news would all go
  to the same holder (sketched and simulated: tests/sim/routing.py). A queue heard of `age` seconds ago may have drained by
  that much: candidates whose score less min(queue_s, age) is within a tie of the best are *comparable*. If there are more
  than two and not all news is fresh, the better of two of them is taken: one by turns, one at random (the power of two
  choices, Mitzenmacher 2001; Prequal, NSDI 2024); always in the draw are this machine, whose own load is no rumour, and a
  holder that has kept the prompt's prefix. With fresh news or one or two comparable ones, the best is taken.

  A tie is a difference under 20 ms or 10 %. Ties: least share of slots in use, this machine (an idle peer serves itself),
  CPU use, GPU use, response time, GPU capability, then by turns.

`metrics`: the contract's, exactly. score = cpu_usage + memory_usage + active_requests * 10, lowest first, loaded before on
disk. All over 80 % CPU: by turns. Ties: GPU use, GPU capability, then by turns. Metrics older than 120 s are none; a holder
with metrics comes before one without.

In both: healthy holders first, then penalized ones (failed or wedged a moment ago), then suspects; a context too short for
the prompt comes after everything. Nobody is left out: the last holder left is asked, whatever is said of it.

Not here: the 429 of a full holder, retries, deadlines (mesh.dispatch); what is known of a peer (mesh.neighbours).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Mode = Literal["auto", "metrics"]


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
    """

    peer: str
    name: str = ""
    is_local: bool = False
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
    raise NotImplementedError
