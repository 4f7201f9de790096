"""Where one request is tried, and what its failures mean: the decisions of mesh.dispatch. Pure.

Before its first token a request is repeated elsewhere unseen; after it, another holder of the same file goes on from
the tokens that are there. The rules:

    refused (429)           the next one; after REFUSALS_MAX of them it waits at the least bad one
    the machine is gone     elsewhere; the same machine again only when there is no other (once)
    its worker died         elsewhere, or here again; twice in all: a prompt that kills engines must not kill every one
    it cannot, now          elsewhere, out of a budget: retries must not make an overload worse
    the caller's fault      told to the caller; a prompt too long for one holder may fit a larger one
    the deadline passed     told to the caller

A registered server that is no peer tells no token ids: it goes on with nobody's answer, and nobody with its own, once
that has text. Its own faults (5xx, nonsense) count as those of a machine that is gone: it is avoided until it is seen
to answer.

At most ATTEMPTS_MAX tries a request. What the caller gets in the end is `final`: StreamInterrupted once it has tokens.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from inference.errors import (
    CallerError,
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineError,
    HolderFull,
    HolderLost,
    InferenceError,
    ModelNotFound,
    ModelUnavailable,
    Overloaded,
    PeerGone,
    PeerSilent,
    StreamInterrupted,
    WorkerDied,
)
from mesh.router import Ask, Candidate, Mode, Scored, predicted_ttft_s, ranked

ATTEMPTS_MAX = 4
REFUSALS_MAX = 2
DEATHS_MAX = 2
LOST_MAX = 2  # of one machine
RETRY_AFTER_S = 5
RETRY_AFTER_DEATH_S = 10
# A holder that makes no token is left after PATIENCE times what was predicted, and a little for what nobody predicts.
PATIENCE = 3.0
PATIENCE_S = 5.0
# A server that is no peer may load a model first, and tells nobody: Ollama does so for up to half a minute.
PATIENCE_ADOPTED_S = 30.0
BUDGET_SHARE = 0.2
BUDGET_MIN = 10.0
BUDGET_MAX = 100.0
EXPLAIN_BYTES_MAX = 2048

WEDGED = "wedged"  # the code of a PeerSilent whose connection is alive


class RetryBudget:
    """How many retries all requests of this ingress may cause together: a fifth of them, and ten."""

    def __init__(self) -> None:
        self._left = BUDGET_MIN

    def request(self) -> None:
        """A request began."""
        self._left = min(BUDGET_MAX, self._left + BUDGET_SHARE)

    def take(self) -> bool:
        """Whether one more may be tried again."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Where to try next. `patience_s`: how long to wait for a token; None: as long as the caller does."""

    candidate: Candidate
    attempt: int
    may_refuse: bool
    is_resumed: bool
    patience_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What a failed try means. `how`: what to tell of that holder; `final`: the request ends with this error."""

    how: Literal["gone", "wedged"] | None = None
    final: InferenceError | None = None


@dataclass(slots=True, kw_only=True)
class Attempts:
    """One request's tries. Times are the loop's; the fields from `had_slot` on tell what is there of its answer."""

    ask: Ask
    mode: Mode
    rng: random.Random
    turn: int
    budget: RetryBudget
    deadline: float | None = None
    had_slot: bool = False
    tokens: int = 0
    prompt_tokens: int = 0
    made_by: Candidate | None = None  # of its first token
    attempt: int = 1
    order: tuple[Scored, ...] = ()  # the first ranking, for who wants to see it
    _refused: set[str] = field(default_factory=set)
    _lost: dict[str, int] = field(default_factory=dict)
    _out: set[str] = field(default_factory=set)
    _deaths: int = 0
    _error: InferenceError | None = None
    _context_min: int = 0
    _is_budgeted: bool = False  # the next try comes out of the budget

    @property
    def is_begun(self) -> bool:
        """Somebody was asked."""
        return bool(self._error or self._refused)

    def next(self, candidates: Sequence[Candidate], now: float) -> Step:
        """The best of `candidates` that may still be tried. Raises the error that ends the request."""
        if self.deadline is not None and now >= self.deadline:
            raise DeadlineExceeded(f"The answer was not complete after {self.tokens} tokens when its deadline passed.")
        able = [c for c in candidates if c.peer not in self._out and self._fits(c)]
        if self.made_by is not None:  # who has not told which file it has is asked when nobody else can go on
            able = [c for c in able if c.sha256] or able
        if not able or (self._is_budgeted and not self.budget.take()):
            raise self.final(self._error)
        self._is_budgeted = False
        order = ranked(self.ask, able, mode=self.mode, rng=self.rng, turn=self.turn, is_sampled=not self._refused)
        self.order = self.order or order
        fresh = [s.candidate for s in order if s.candidate.peer not in self._lost]
        unasked = [c for c in fresh if c.peer not in self._refused]
        may_refuse = len(self._refused) < REFUSALS_MAX and bool(unasked)
        chosen = unasked[0] if may_refuse else fresh[0] if fresh else order[0].candidate
        is_waited_for = chosen.is_local or len(able) == 1
        patience_s = PATIENCE * predicted_ttft_s(self.ask, chosen).score
        patience_s += PATIENCE_ADOPTED_S if chosen.is_adopted else PATIENCE_S
        return Step(
            candidate=chosen,
            attempt=self.attempt,
            may_refuse=may_refuse and len(able) > 1 and not self.had_slot,
            is_resumed=self.had_slot,
            patience_s=None if is_waited_for else patience_s,
        )

    def failed(self, step: Step, error: InferenceError, now: float) -> Failure:
        """What to make of a try that ended with `error`."""
        peer = step.candidate.peer
        if isinstance(error, HolderFull) and step.may_refuse:
            self._refused.add(peer)
            return Failure()
        self._error = error
        is_adopted = step.candidate.is_adopted
        # its connection may be what is dead
        is_silent = isinstance(error, PeerSilent) and error.code != WEDGED and not is_adopted
        if isinstance(error, WorkerDied | PeerGone) or is_silent:
            self._deaths += isinstance(error, WorkerDied)
            self._lost[peer] = self._lost.get(peer, 0) + 1
            if self._lost[peer] >= LOST_MAX:
                self._out.add(peer)
        else:
            self._out.add(peer)
        how: Literal["gone", "wedged"] | None = None
        if isinstance(error, PeerGone | PeerSilent) or (is_adopted and isinstance(error, EngineError)):
            how = "wedged" if error.code == WEDGED else "gone"
        if self._is_final(step, error, now) or self.attempt >= ATTEMPTS_MAX:
            return Failure(how=how, final=self.final(error))
        self.attempt += 1
        return Failure(how=how)

    def _is_final(self, step: Step, error: InferenceError, now: float) -> bool:
        if isinstance(error, StreamInterrupted) or (self.made_by is not None and self.made_by.is_adopted):
            return True
        if isinstance(error, DeadlineExceeded):
            return self.deadline is not None and now >= self.deadline
        if isinstance(error, WorkerDied):
            return self._deaths >= DEATHS_MAX
        if isinstance(error, HolderLost):
            return False  # nobody asks a machine that is gone: no budget is needed
        if isinstance(error, ContextLengthExceeded):
            self._context_min = max(self._context_min, step.candidate.context + 1)
        elif isinstance(error, CallerError) and not isinstance(error, ModelNotFound) and not self.tokens:
            return True
        self._is_budgeted = True
        return False

    def _fits(self, candidate: Candidate) -> bool:
        """Whether `candidate` can make it, or go on with what is there."""
        if candidate.context and candidate.context < self._context_min:
            return False
        if self.made_by is None:
            return True
        if candidate.is_adopted:
            return False
        asked = self.ask.max_tokens
        needed = self.prompt_tokens + (asked if asked is not None else self.tokens + 1)
        if self.made_by.context:  # the answer ends there, whoever makes it
            needed = min(needed, self.made_by.context)
        if candidate.context and candidate.context < needed:
            return False
        if not self.made_by.sha256:  # nobody knows whether it is the same file, but for the one who began
            return candidate.peer == self.made_by.peer
        # A file is served before it is hashed, and its hash is news for a second or two: a holder that has not told it
        # says no by itself when it is another file (mesh.local), and what comes is looked at (mesh.hop).
        return candidate.sha256 in ("", self.made_by.sha256)

    def final(self, error: InferenceError | None) -> InferenceError:
        """What the caller is told of `error`, which nobody can mend."""
        if isinstance(error, DeadlineExceeded | StreamInterrupted):
            return error
        told: InferenceError
        if self.tokens:
            why = f": {error.message}" if error is not None else "."
            told = StreamInterrupted(f"The answer could not be continued after {self.tokens} tokens{why}")
        elif isinstance(error, WorkerDied):
            told = ModelUnavailable(
                f"The engine of the model {self.ask.model_id} crashed {self._deaths} times before the first token.",
                retry_after_s=RETRY_AFTER_DEATH_S,
            )
        elif isinstance(error, HolderLost):
            told = ModelUnavailable(
                f"No peer that has the model {self.ask.model_id} could answer: {error.message}",
                retry_after_s=RETRY_AFTER_S,
            )
        elif isinstance(error, HolderFull):  # though it was asked to let us wait
            told = Overloaded(error.message, retry_after_s=error.retry_after_s)
        elif error is None:
            told = ModelUnavailable(
                f"No peer can serve the model {self.ask.model_id} now.", retry_after_s=RETRY_AFTER_S
            )
        else:
            return error
        told.__cause__ = error
        return told

    def explained(self) -> str:
        """The first ranking as JSON, at most EXPLAIN_BYTES_MAX of it; worst candidates are left out first."""
        rows = [
            {
                "peer": s.candidate.name,
                "score": round(s.score, 4),
                **{name: round(value, 4) for name, value in s.parts.items() if value},
                **({"reason": s.reason} if s.reason else {}),
            }
            for s in self.order
        ]
        while len(text := json.dumps(rows, separators=(",", ":"))) > EXPLAIN_BYTES_MAX:
            rows.pop()
        return text
