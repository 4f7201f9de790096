"""What this machine makes: a turn for a slot, an engine in memory, chunks. For its own clients and for other peers.

    resolve the name -> a turn (mesh.turns) -> a lease (inference.models.pool) -> the engine -> chunks

One attempt and no more: whoever asks goes on after WorkerDied, here or elsewhere (mesh.dispatch, at the ingress).
Beside, it measures how fast this machine is, which others rank it by, and on the way out it hands over what it runs for
others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

from inference.chat import Chunk, EmbeddingRequest, Embeddings, Generation, Started
from inference.engine.client import EngineClient
from inference.errors import DeadlineExceeded, InferenceError, InvalidRequest, ModelUnavailable, PeerLeaving
from inference.models.model import StoredModel
from inference.models.pool import Pool
from mesh.metrics import Kind
from mesh.turns import NEWEST_SHARE, Turn, Turns
from web.services import Forwarder

SLOTS_BEFORE_LOAD = 8  # EngineSpec's default; the engine says the truth once it is loaded
# Fewer say nothing of a rate: the step that makes a token is one of other requests, too.
PREFILL_TOKENS_MIN = 32
DECODE_TOKENS_MIN = 8
MEASURED_S_MIN = 0.001

State = Literal["queued", "loading", "prefill", "generating"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveRequest:
    """A request that this peer is busy with. `started_at` is unix seconds; `tokens` made so far.

    `asked_by`: the id of the peer that forwarded it, "" for one of our own clients. `peer`: who makes it.
    """

    id: str
    model: str
    kind: Kind
    state: State
    tokens: int
    started_at: float
    asked_by: str = ""
    peer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How one model does on this machine. None: not measured yet.

    `prefill_tokens_per_s` of prompt tokens that had to be computed, `decode_tokens_per_s` of one answer, `service_s`
    how long a request holds a slot (no less than those that run now have held theirs), `load_s` how long a load takes.
    """

    active: int
    queued: int
    slots: int
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    service_s: float | None = None
    load_s: float | None = None


class LocalHolder:
    """`generate` and `embed` are what web.services.HopFacet asks for; `peer` "" in a Forwarder is this peer itself."""

    def __init__(self, *, pool: Pool, resolve: Callable[[str], StoredModel], slots: int = SLOTS_BEFORE_LOAD) -> None:
        """`resolve` raises ModelNotFound."""
        self._pool = pool
        self._resolve = resolve
        self._slots = slots
        self._turns: dict[str, Turns] = {}
        self._rates: dict[str, _Rates] = {}
        self._jobs: set[_Job] = set()
        self._is_draining = False
        self._has_left = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def generate(
        self, request: Generation, forwarder: Forwarder, on_state: Callable[[State], None] = lambda state: None
    ) -> AsyncGenerator[Chunk, None]:
        """The chunks of one answer, after what it has `produced`; `aclose` cancels down to the slot.

        Raises `inference.errors`, WorkerDied and PeerLeaving among them: what is missing can be made elsewhere.
        """
        with self._job(request.id, request.model, request.kind, forwarder, on_state) as job:
            model = self._model(request.model, forwarder, embeds=False)
            last: Chunk | None = None
            async with self._engine(model, job, forwarder) as (engine, turn):
                _assert_able(model, embeds=False, able=engine.info.can_chat)

                def finished() -> None:
                    job.finished_at = job.now()
                    turn.end()

                async with aclosing(engine.generate(request, on_begin=job.begin, on_finish=finished)) as chunks:
                    async for chunk in chunks:
                        if chunk.started is not None:
                            job.started_at = job.now()
                            job.started = chunk.started
                            yield Chunk(started=replace(chunk.started, sha256=model.sha256))
                            continue
                        job.take(chunk)
                        if chunk.finish_reason is not None:
                            self._rates_of(model).generated(job, len(request.produced.tokens))
                            last = chunk
                            break
                        yield chunk
            if last is not None:  # after the lease, whose success it is: who has read this reads no further
                yield last

    async def embed(
        self, request: EmbeddingRequest, forwarder: Forwarder, on_state: Callable[[State], None] = lambda state: None
    ) -> Embeddings:
        """The vectors of one request. Raises as `generate` does."""
        with self._job(request.id, request.model, "embeddings", forwarder, on_state) as job:
            model = self._model(request.model, forwarder, embeds=True)
            async with self._engine(model, job, forwarder) as (engine, _turn):
                _assert_able(model, embeds=True, able=engine.info.can_embed)
                job.enter("generating")
                began = job.now()
                async with job.leavable("The embeddings were not ready"):
                    answer = await engine.embed(request)
                self._rates_of(model).embedded(answer.prompt_tokens, job.now() - began)
                return answer

    def active(self) -> list[ActiveRequest]:
        """What this machine makes or will make, oldest first."""
        return [job.view() for job in sorted(self._jobs, key=lambda j: j.began)]

    def queued(self, model_id: str | None = None) -> int:
        """Requests that wait for a slot: of one model, or of all."""
        return sum(t.waiting for name, t in self._turns.items() if model_id in (None, name))

    def standing(self, model_id: str) -> Standing:
        """How the model does here; also of one that was never used."""
        turns = self._turns.get(model_id)
        rates = self._rates.get(model_id, _Rates())
        if turns is None:
            return Standing(active=0, queued=0, slots=self._slots, load_s=rates.load_s)
        return Standing(
            active=turns.running,
            queued=turns.waiting,
            slots=turns.slots,
            prefill_tokens_per_s=rates.prefill,
            decode_tokens_per_s=rates.decode,
            service_s=max(turns.service_s, turns.age_s()) or None,
            load_s=rates.load_s,
        )

    async def drain(self, timeout_s: float) -> bool:
        """Takes nothing new for others and waits for what runs; False if something still does after `timeout_s`."""
        self._is_draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
            return True
        except TimeoutError:
            return False

    def hand_over(self) -> None:
        """Ends all that runs or waits for other peers, with PeerLeaving: they go on elsewhere from where it was."""
        self._is_draining = self._has_left = True
        for job in self._jobs:
            job.leave()

    # -- one request

    @asynccontextmanager
    async def _engine(
        self, model: StoredModel, job: _Job, forwarder: Forwarder
    ) -> AsyncGenerator[tuple[EngineClient, Turn], None]:
        turns = self._turns_of(model)
        async with AsyncExitStack() as stack:
            async with job.leavable(None):
                turn = await stack.enter_async_context(
                    turns.turn(
                        background=forwarder.background,
                        deadline=job.deadline,
                        key=forwarder.fairness_key,
                        is_resumed=forwarder.is_resumed,
                        may_wait=not forwarder.may_refuse,
                    )
                )
                job.enter("loading")
                engine = await stack.enter_async_context(self._pool.lease(model, deadline=job.deadline))
            job.enter("prefill")
            turn.begin()
            turns.slots = engine.info.slots
            self._rates_of(model).load_s = engine.info.load_s
            yield engine, turn

    def _model(self, name: str, forwarder: Forwarder, *, embeds: bool) -> StoredModel:
        if self._is_draining and forwarder.peer:
            raise PeerLeaving("This peer is stopping and takes no new requests.")
        model = self._resolve(name)
        _assert_able(model, embeds=embeds, able=model.header.is_embedding is embeds)
        if forwarder.sha256 is not None and model.sha256 != forwarder.sha256:
            raise ModelUnavailable(f"The file of the model {model.id} is another one here.", code="model_changed")
        return model

    def _turns_of(self, model: StoredModel) -> Turns:
        turns = self._turns.get(model.id)
        if turns is None:
            turns = self._turns[model.id] = Turns(model.id, self._slots)
        return turns

    def _rates_of(self, model: StoredModel) -> _Rates:
        return self._rates.setdefault(model.id, _Rates())

    @contextmanager
    def _job(
        self, request_id: str, model: str, kind: Kind, forwarder: Forwarder, on_state: Callable[[State], None]
    ) -> Generator[_Job, None, None]:
        job = _Job(id=request_id, model=model, kind=kind, forwarder=forwarder, on_state=on_state)
        job.enter("queued")
        self._jobs.add(job)
        self._idle.clear()
        if self._has_left:
            job.leave()
        try:
            yield job
        finally:
            job.end()
            self._jobs.discard(job)
            if not self._jobs:
                self._idle.set()


@dataclass(slots=True, kw_only=True, eq=False)
class _Job:
    """One request on this machine. Times but `began_at` are the event loop's."""

    id: str
    model: str
    kind: Kind
    forwarder: Forwarder
    on_state: Callable[[State], None]
    now: Callable[[], float] = field(default_factory=lambda: asyncio.get_running_loop().time)
    began: float = 0.0
    began_at: float = field(default_factory=time.time)
    deadline: float | None = None
    state: State = "queued"
    started: Started | None = None
    started_at: float = 0.0
    first_token_at: float | None = None
    finished_at: float | None = None
    tokens: int = 0
    first_tokens: int = 0  # in the first chunk: several when it was read late
    _timeout: asyncio.Timeout | None = None
    _interrupt: Callable[[InferenceError], None] | None = None
    _timer: asyncio.TimerHandle | None = None
    _is_leaving: bool = False

    def __post_init__(self) -> None:
        self.began = self.now()
        if self.forwarder.deadline_s is not None:
            self.deadline = self.began + self.forwarder.deadline_s

    def enter(self, state: State) -> None:
        self.state = state
        self.on_state(state)

    def take(self, chunk: Chunk) -> None:
        if chunk.tokens:
            if self.first_token_at is None:
                self.first_token_at, self.first_tokens = self.now(), len(chunk.tokens)
                self.enter("generating")
            self.tokens += len(chunk.tokens)

    def begin(self, interrupt: Callable[[InferenceError], None]) -> None:
        """The engine has it; `interrupt` ends its answer."""
        self._interrupt = interrupt
        if self.deadline is not None:
            self._timer = asyncio.get_running_loop().call_at(self.deadline, self._late)
        if self._is_leaving:
            self.leave()

    def leave(self) -> None:
        """Interrupts what it waits for, if it is another peer's."""
        if self.forwarder.peer:
            self._is_leaving = True
            if self._timeout is not None:
                self._timeout.reschedule(self.now())
            if self._interrupt is not None:
                self._interrupt(PeerLeaving("This peer is stopping."))

    def end(self) -> None:
        """Nobody waits for it any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _late(self) -> None:
        if self._interrupt is not None:
            self._interrupt(_too_late(f"The answer was not complete after {self.tokens} tokens"))

    @asynccontextmanager
    async def leavable(self, what: str | None) -> AsyncGenerator[None, None]:
        """A wait that ends with the deadline (`what`: says so; None: whoever is waited for keeps it), or by `leave`."""
        if self._is_leaving:
            raise PeerLeaving("This peer is stopping.")
        try:
            async with asyncio.timeout_at(self.deadline if what else None) as self._timeout:
                yield
        except TimeoutError:
            if self._is_leaving:
                raise PeerLeaving("This peer is stopping.") from None
            raise _too_late(f"{what}") from None
        finally:
            self._timeout = None

    def view(self) -> ActiveRequest:
        return ActiveRequest(
            id=self.id,
            model=self.model,
            kind=self.kind,
            state=self.state,
            tokens=self.tokens,
            started_at=self.began_at,
            asked_by=self.forwarder.peer,
        )


@dataclass(slots=True, kw_only=True)
class _Rates:
    """Exponentially weighted: the newest answer counts NEWEST_SHARE. Tokens per second."""

    prefill: float | None = None
    decode: float | None = None
    load_s: float | None = None

    def generated(self, job: _Job, resumed_tokens: int) -> None:
        """An answer is complete."""
        if job.started is None or job.first_token_at is None:
            return
        computed = job.started.prompt_tokens + resumed_tokens - job.started.cached_tokens
        if computed >= PREFILL_TOKENS_MIN:
            self.prefill = _newer(self.prefill, computed, job.first_token_at - job.started_at)
        if job.tokens >= DECODE_TOKENS_MIN and job.finished_at is not None:
            after_first = job.tokens - job.first_tokens
            self.decode = _newer(self.decode, after_first, job.finished_at - job.first_token_at)

    def embedded(self, tokens: int, seconds: float) -> None:
        """An embedding model only ever prefills."""
        if tokens >= PREFILL_TOKENS_MIN:
            self.prefill = _newer(self.prefill, tokens, seconds)


def _too_late(what: str) -> DeadlineExceeded:
    return DeadlineExceeded(f"{what} when the request's deadline passed (x-llm-router-timeout).")


def _newer(before: float | None, count: int, seconds: float) -> float | None:
    if seconds < MEASURED_S_MIN or count <= 0:  # what came at once had waited to be read: nothing was measured
        return before
    rate = count / seconds
    return rate if before is None else before + (rate - before) * NEWEST_SHARE


def _assert_able(model: StoredModel, *, embeds: bool, able: bool) -> None:
    if not able:
        raise unable(model.id, embeds=embeds)


def unable(model_id: str, *, embeds: bool) -> InvalidRequest:
    """The model is of the other kind."""
    if embeds:
        message = f"The model {model_id} cannot make embeddings; it generates text (POST /v1/chat/completions)."
    else:
        message = f"The model {model_id} makes embeddings (POST /v1/embeddings); it cannot generate text."
    return InvalidRequest(message, param="model", code="unsupported_model")
