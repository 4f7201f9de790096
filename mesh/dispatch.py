"""The life of one request at its ingress: ranked, tried, repeated or continued elsewhere, recorded.

    resolve the name -> candidates, ranked (mesh.router) -> here (mesh.local) or at another peer (mesh.hop) -> chunks
                              ^                                                   |
                              +---- while something is left to try (mesh.attempts) --+

The ingress keeps every token of the answer with how many random numbers they took. When the machine or the worker that
makes it is lost, the next one gets them, replays them in silence and goes on: no token twice, none missing, and text
that was held back (a possible stop string, half a character) comes from the one that goes on. Nothing here needs a
coordinator.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

from inference.chat import Chunk, EmbeddingRequest, Embeddings, Generation, Produced, Started, Usage
from inference.errors import (
    DeadlineExceeded,
    HolderFull,
    InferenceError,
    ModelNotFound,
    ModelUnavailable,
    PeerGone,
    PeerSilent,
)
from mesh.adopted.holders import ALL_MODELS, ServerTarget
from mesh.affinity import Affinity, estimated_tokens
from mesh.attempts import WEDGED, Attempts, RetryBudget, Step
from mesh.hop import HopClient, Target
from mesh.inflight import InFlight
from mesh.local import ActiveRequest, LocalHolder, State, unable
from mesh.metrics import CLIENT_LEFT, Kind, Metrics
from mesh.router import Ask, Candidate, Mode
from web.services import Caller, Forwarder, ModelView

log = logging.getLogger(__name__)


class Holders(Protocol):
    """Who has which model, as this peer knows it: mesh.neighbours, or `OnlyHere`."""

    @property
    def in_flight(self) -> InFlight: ...

    def resolve(self, name: str) -> ModelView:
        """Over the whole mesh. Raises ModelNotFound."""

    def candidates(self, model_id: str, ask: Ask, now: float) -> list[Candidate]:
        """Every peer that has it. Raises ModelNotFound."""

    def target(self, peer: str, model_id: str) -> Target | ServerTarget | None:
        """How it is reached now, and its own name of the model."""

    def failed(self, peer: str, how: str) -> None:
        """`how`: "gone" (avoid it now, probe it now) or "wedged" (ranked last until it proves itself)."""

    def reported(self, peer: str, load: bytes) -> None:
        """A load that rode on an answer."""

    def proved(self, peer: str) -> None:
        """It made a token."""


class OnlyHere:
    """`Holders` of a peer that knows no other."""

    def __init__(self, view: Callable[[str], ModelView], *, me: str = "", name: str = "") -> None:
        """`view` raises ModelNotFound."""
        self._view = view
        self._me = Candidate(peer=me, name=name, is_local=True)
        self.in_flight = InFlight()

    def resolve(self, name: str) -> ModelView:
        return self._view(name)

    def candidates(self, model_id: str, ask: Ask, now: float) -> list[Candidate]:
        view = self._view(model_id)
        return [replace(self._me, is_loaded=view.loaded, size_bytes=view.size_bytes, sha256=view.sha256 or "")]

    def target(self, peer: str, model_id: str) -> Target | None:
        return None

    def failed(self, peer: str, how: str) -> None:
        """There is nobody to avoid."""

    def reported(self, peer: str, load: bytes) -> None:
        """Nobody reports."""

    def proved(self, peer: str) -> None:
        """Nobody was in doubt."""


class Dispatcher:
    """`generate` and `embed` are what web.services.ChatFacet asks for."""

    def __init__(
        self,
        *,
        local: LocalHolder,
        holders: Holders,
        metrics: Metrics,
        hop: HopClient | None = None,
        affinity: Affinity | None = None,
        mode: Mode | Callable[[], Mode] = "auto",
        rng: random.Random | None = None,
    ) -> None:
        """`hop` None: other peers are not asked. `mode` may change with the mesh's settings. `rng` draws between
        comparable holders."""
        self._local = local
        self._holders = holders
        self._metrics = metrics
        self._hop = hop
        self._affinity = affinity or Affinity()
        self._mode: Callable[[], Mode] = mode if callable(mode) else lambda: mode
        self._rng = rng or random.Random()
        self._budget = RetryBudget()
        self._turns: dict[str, int] = {}
        self._records: set[_Record] = set()
        self._is_draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def generate(self, request: Generation, caller: Caller) -> AsyncGenerator[Chunk, None]:
        """The chunks of one answer; `aclose` cancels down to the slot, wherever it is. Raises `inference.errors`."""
        with self._recorded(request.id, request.model, request.kind) as record:
            model = self._model(request.model, embeds=False)
            if request.sampling.seed is None:  # drawn here, so that a continuation has the same one
                request = replace(request, sampling=replace(request.sampling, seed=secrets.randbits(31)))
            record.produced, record.draws = list(request.produced.tokens), request.produced.draws
            ask = Ask(
                model_id=model.id,
                prompt_tokens=estimated_tokens(request.prompt),
                max_tokens=request.max_tokens,
                affinity=self._affinity.known(model.id, request.prompt),
                is_background=caller.background,
                deadline_s=caller.deadline_s,
            )
            tries = self._attempts(ask)
            while True:
                step = self._next(tries)
                rest = replace(request, produced=Produced(tokens=tuple(record.produced), draws=record.draws))
                try:
                    async with self._run(step, rest, tries, record, caller) as run:
                        while True:
                            chunk = await run.read()
                            if chunk.started is not None:
                                run.has_begun = step.candidate.is_adopted  # it says nothing before it computes
                                if (told := record.start(chunk.started, step, tries, caller)) is not None:
                                    yield Chunk(started=told)
                                continue
                            if chunk.tokens or (chunk.text and step.candidate.is_adopted):
                                self._took(chunk, run, tries, record)
                            record.draws = chunk.draws
                            record.count(chunk.usage)
                            record.is_complete = chunk.finish_reason is not None
                            yield chunk
                            if record.is_complete:
                                made = len(record.produced)
                                self._affinity.served(
                                    model.id, request.prompt, step.candidate.peer, record.prompt_tokens, made
                                )
                                return
                except InferenceError as error:
                    self._failed(tries, step, error, record)

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> Embeddings:
        """The vectors of one request. Raises `inference.errors`."""
        with self._recorded(request.id, request.model, "embeddings") as record:
            model = self._model(request.model, embeds=True)
            ask = Ask(
                model_id=model.id,
                prompt_tokens=sum(len(i) // 4 if isinstance(i, str) else len(i) for i in request.inputs),
                is_background=caller.background,
                deadline_s=caller.deadline_s,
            )
            tries = self._attempts(ask)
            while True:
                step = self._next(tries)
                try:
                    answer = await self._embedded(step, request, tries, record, caller)
                except InferenceError as error:
                    self._failed(tries, step, error, record)
                    continue
                record.prompt_tokens = answer.prompt_tokens
                record.is_complete = True
                candidate = step.candidate
                return replace(answer, peer=candidate.name, peer_id=candidate.peer, attempts=step.attempt)

    def active(self) -> list[ActiveRequest]:
        """What this peer is busy with, oldest first: its own clients' requests, then those of other peers."""
        own = [r.view() for r in sorted(self._records, key=lambda r: r.began)]
        return own + [r for r in self._local.active() if r.asked_by]

    def queued(self, model_id: str | None = None) -> int:
        """Requests that wait for a slot of this machine: of one model, or of all."""
        return self._local.queued(model_id)

    async def drain(self, timeout_s: float) -> bool:
        """Takes nothing new and waits for what runs; False if something still does after `timeout_s`."""
        self._is_draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(self._idle.wait(), self._local.drain(timeout_s))
            return not self._local.active()
        except TimeoutError:
            return False

    # -- where

    def _attempts(self, ask: Ask) -> Attempts:
        self._budget.request()
        turn = self._turns[ask.model_id] = self._turns.get(ask.model_id, -1) + 1
        deadline = None if ask.deadline_s is None else _now() + ask.deadline_s
        return Attempts(ask=ask, mode=self._mode(), rng=self._rng, turn=turn, budget=self._budget, deadline=deadline)

    def _next(self, tries: Attempts) -> Step:
        now = _now()
        try:
            candidates = self._holders.candidates(tries.ask.model_id, tries.ask, now)
        except ModelNotFound:
            if not tries.is_begun:
                raise
            candidates = []
        return tries.next(candidates, now)

    def _failed(self, tries: Attempts, step: Step, error: InferenceError, record: _Record) -> None:
        """Raises the error that ends the request, if this one does."""
        failure = tries.failed(step, error, _now())
        if failure.how is not None and not step.candidate.is_local:
            self._holders.failed(step.candidate.peer, failure.how)
        if failure.final is not None:
            raise failure.final
        self._metrics.request_moved(error.code, is_begun=record.tokens > 0)
        log.log(
            logging.DEBUG if isinstance(error, HolderFull) else logging.WARNING,
            "request goes on elsewhere",
            extra={
                "request": record.id,
                "model": tries.ask.model_id,
                "left": step.candidate.name or step.candidate.peer,
                "reason": error.code,
                "tokens": record.tokens,
            },
        )

    def _forwarder(self, step: Step, tries: Attempts, caller: Caller) -> Forwarder:
        return Forwarder(
            peer="",
            fairness_key=_fairness_key(caller),
            background=caller.background,
            deadline_s=None if tries.deadline is None else max(0.001, tries.deadline - _now()),
            attempt=step.attempt,
            may_refuse=step.may_refuse,
            is_resumed=step.is_resumed,
            sha256=(tries.made_by.sha256 or None) if tries.made_by is not None else None,
        )

    @contextmanager
    def _sent(self, step: Step, tries: Attempts) -> Generator[Target | ServerTarget, None, None]:
        """How the other machine is asked; counted as in flight there for as long as the block runs."""
        peer = step.candidate.peer
        target = self._holders.target(peer, tries.ask.model_id)
        if target is None:
            raise PeerGone(f"The peer {step.candidate.name} is not to be reached any more.")
        counted_as = ALL_MODELS if step.candidate.is_adopted else target.model_id
        ticket = self._holders.in_flight.begin(peer, counted_as, _now(), tries.deadline)
        try:
            yield target
        finally:
            self._holders.in_flight.end(ticket, _now())

    def _hop_to(self, target: Target) -> HopClient:
        if self._hop is None:
            raise PeerGone(f"The peer {target.name} is not to be reached from here.")
        return self._hop

    def _local_id(self, step: Step, tries: Attempts) -> str:
        """What this machine calls the model: another peer may have the same file under another name."""
        target = self._holders.target(step.candidate.peer, tries.ask.model_id)
        return tries.ask.model_id if target is None else target.model_id

    # -- one try

    @asynccontextmanager
    async def _run(
        self, step: Step, request: Generation, tries: Attempts, record: _Record, caller: Caller
    ) -> AsyncGenerator[_Run, None]:
        forwarder = self._forwarder(step, tries, caller)
        if step.candidate.is_local:
            asked = replace(request, model=self._local_id(step, tries))
            async with aclosing(self._local.generate(asked, forwarder, record.enter)) as chunks:
                yield _Run(chunks, step, None)  # the local holder keeps the deadline itself
            return
        record.enter("queued")
        with self._sent(step, tries) as target:
            if isinstance(target, ServerTarget):
                made = target.generate(request)
            else:
                made = self._hop_to(target).generate(target, request, forwarder)
            async with aclosing(made) as chunks:
                yield _Run(chunks, step, tries.deadline)

    async def _embedded(
        self, step: Step, request: EmbeddingRequest, tries: Attempts, record: _Record, caller: Caller
    ) -> Embeddings:
        forwarder = self._forwarder(step, tries, caller)
        if step.candidate.is_local:
            asked = replace(request, model=self._local_id(step, tries))
            return await self._local.embed(asked, forwarder, record.enter)
        record.enter("generating")
        with self._sent(step, tries) as target:
            try:
                async with asyncio.timeout_at(tries.deadline):
                    if isinstance(target, ServerTarget):
                        answer = await target.embed(request)
                    else:
                        answer = await self._hop_to(target).embed(target, request, forwarder)
            except TimeoutError:
                raise _too_late("The embeddings were not ready") from None
        self._holders.proved(step.candidate.peer)
        return answer

    def _took(self, chunk: Chunk, run: _Run, tries: Attempts, record: _Record) -> None:
        """Tokens have come."""
        candidate = run.step.candidate
        if not run.has_tokens:
            run.has_tokens = True
            record.enter("generating")
            if not candidate.is_local:
                self._holders.proved(candidate.peer)
            if tries.made_by is None:
                tries.made_by = replace(candidate, sha256=record.sha256 or candidate.sha256)
        record.take(chunk)
        tries.tokens = record.tokens

    # -- records

    def _model(self, name: str, *, embeds: bool) -> ModelView:
        if self._is_draining:
            raise ModelUnavailable("This peer is stopping and takes no new requests.", retry_after_s=5)
        view = self._holders.resolve(name)
        if ("embedding" in view.capabilities) is not embeds:
            raise unable(view.id, embeds=embeds)
        return view

    @contextmanager
    def _recorded(self, request_id: str, model: str, kind: Kind) -> Generator[_Record, None, None]:
        """Counts the request while it lives, and once when it ends, by how it ended."""
        record = _Record(id=request_id, model=model, kind=kind)
        self._records.add(record)
        self._idle.clear()
        status = 500
        try:
            yield record
            status = 200
        except InferenceError as error:
            status = error.status
            raise
        except (asyncio.CancelledError, GeneratorExit):
            status = 200 if record.is_complete else CLIENT_LEFT
            raise
        finally:
            self._records.discard(record)
            if not self._records:
                self._idle.set()
            self._metrics.request_ended(
                kind,
                status,
                duration_s=time.monotonic() - record.began,
                ttft_s=record.ttft_s,
                usage=record.usage,
            )


class _Run:
    """One try of a generation: its chunks, and how long to wait for each."""

    __slots__ = ("_chunks", "_deadline", "_patient_until", "has_begun", "has_tokens", "step")

    def __init__(self, chunks: AsyncGenerator[Chunk, None], step: Step, deadline: float | None) -> None:
        self._chunks = chunks
        self._deadline = deadline
        self._patient_until = None if step.patience_s is None else _now() + step.patience_s
        self.step = step
        self.has_begun = False  # it need not hurry with its first token any more
        self.has_tokens = False

    async def read(self) -> Chunk:
        """The next chunk. Raises DeadlineExceeded, PeerSilent when no first token comes, or what making it raises."""
        limit = self._limit
        try:
            if limit is None:
                return await anext(self._chunks)
            async with asyncio.timeout_at(limit):
                return await anext(self._chunks)
        except StopAsyncIteration:
            raise PeerGone("The answer ended before it was complete.") from None
        except TimeoutError:
            if limit == self._deadline:
                raise _too_late("The answer was not complete") from None
            name, waited_s = self.step.candidate.name, self.step.patience_s
            raise PeerSilent(f"The peer {name} made no token within {waited_s:.1f} s.", code=WEDGED) from None

    @property
    def _limit(self) -> float | None:
        if self.has_tokens or self.has_begun or self._patient_until is None:
            return self._deadline
        return self._patient_until if self._deadline is None else min(self._deadline, self._patient_until)


@dataclass(slots=True, kw_only=True, eq=False)
class _Record:
    """What is known of a running request. `produced` are all tokens of the answer, `tokens` counts those made here, or
    pieces of text where the tokens are not told."""

    id: str
    model: str
    kind: Kind
    state: State = "queued"
    began: float = field(default_factory=time.monotonic)
    started_at: float = field(default_factory=time.time)
    told: Started | None = None
    peer: str = ""
    sha256: str = ""
    is_complete: bool = False
    ttft_s: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    told_usage: Usage | None = None
    produced: list[int] = field(default_factory=list)
    draws: int = 0

    def enter(self, state: State) -> None:
        self.state = state

    def start(self, started: Started, step: Step, tries: Attempts, caller: Caller) -> Started | None:
        """It has a slot: what the caller is told; None if nothing is new."""
        peer, before = step.candidate, self.peer
        tries.had_slot = True
        self.enter("prefill")
        self.peer = peer.peer
        self.sha256 = started.sha256 or ""
        if self.told is not None and before == peer.peer:
            return None
        if self.told is not None and self.tokens:
            self.told = replace(self.told, peer_id=peer.peer, continued_on=(*self.told.continued_on, peer.name))
            return self.told
        self.prompt_tokens = tries.prompt_tokens = started.prompt_tokens
        self.cached_tokens = started.cached_tokens
        candidates = tries.explained() if caller.explain else None
        self.told = replace(started, peer=peer.name, peer_id=peer.peer, attempts=step.attempt, candidates=candidates)
        return self.told

    def take(self, chunk: Chunk) -> None:
        if self.ttft_s is None:
            self.ttft_s = time.monotonic() - self.began
        self.produced.extend(chunk.tokens)
        self.tokens += len(chunk.tokens) or 1  # a piece of text is about a token

    def count(self, usage: Usage | None) -> None:
        """A server that is no peer says how many tokens it was."""
        if usage is not None:
            self.told_usage = usage
            self.prompt_tokens, self.cached_tokens = usage.prompt_tokens, usage.cached_tokens

    @property
    def usage(self) -> Usage:
        return self.told_usage or Usage(
            prompt_tokens=self.prompt_tokens, completion_tokens=self.tokens, cached_tokens=self.cached_tokens
        )

    def view(self) -> ActiveRequest:
        return ActiveRequest(
            id=self.id,
            model=self.model,
            kind=self.kind,
            state=self.state,
            tokens=self.tokens,
            started_at=self.started_at,
            peer=self.peer,
        )


def _now() -> float:
    return asyncio.get_running_loop().time()


def _fairness_key(caller: Caller) -> str:
    """Names the caller to a holder without saying who it is. Clients on this machine share one key, unless they have
    keys."""
    return hashlib.blake2b(f"{caller.key_id or ''}@{caller.ip}".encode(), digest_size=8).hexdigest()


def _too_late(what: str) -> DeadlineExceeded:
    return DeadlineExceeded(f"{what} when the request's deadline passed (x-llm-router-timeout).")
