"""The life of one request in this peer: admitted, given a slot and an engine, continued after a crash, recorded.

    resolve the name -> a turn (mesh.turns) -> a lease (inference.models.pool) -> the engine -> chunks
                                                  ^                                  |
                                                  +---- once, when the worker dies --+

A worker that dies costs its requests nothing but time: each goes on after one reload, from the tokens it has, so no
text is repeated and none is missing. Dying twice is an error. Other peers are not asked here yet.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

from inference.chat import Chunk, EmbeddingRequest, Embeddings, Generation, Produced, Started, Usage
from inference.engine.client import EngineClient
from inference.errors import (
    CapacityError,
    DeadlineExceeded,
    InferenceError,
    InvalidRequest,
    ModelUnavailable,
    StreamInterrupted,
    WorkerDied,
)
from inference.models.model import StoredModel
from inference.models.pool import Pool
from mesh.metrics import CLIENT_LEFT, Kind, Metrics
from mesh.turns import Turn, Turns
from web.services import Caller

log = logging.getLogger(__name__)

ATTEMPTS = 2
SLOTS_BEFORE_LOAD = 8  # EngineSpec's default; the engine says the truth once it is loaded
RETRY_AFTER_DEATH_S = 10

State = Literal["queued", "loading", "prefill", "generating"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveRequest:
    """A request that this peer is busy with. `started_at` is unix seconds; `tokens` made so far."""

    id: str
    model: str
    kind: Kind
    state: State
    tokens: int
    started_at: float


class Dispatcher:
    """`generate` and `embed` are what web.services.ChatFacet asks for."""

    def __init__(
        self,
        *,
        pool: Pool,
        resolve: Callable[[str], StoredModel],
        metrics: Metrics,
        peer: str = "",
        slots: int = SLOTS_BEFORE_LOAD,
    ) -> None:
        """`resolve` raises ModelNotFound; `peer` is this machine's name, told in `Started`."""
        self._pool = pool
        self._resolve = resolve
        self._metrics = metrics
        self._peer = peer
        self._slots = slots
        self._turns: dict[str, Turns] = {}
        self._records: set[_Record] = set()
        self._is_draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def generate(self, request: Generation, caller: Caller) -> AsyncGenerator[Chunk, None]:
        """The chunks of one answer; `aclose` cancels down to the slot. Raises `inference.errors`."""
        with self._recorded(request.id, request.model, request.kind) as record:
            model = self._model(request.model, embeds=False)
            if request.sampling.seed is None:  # drawn here, so that a continuation has the same one
                request = replace(request, sampling=replace(request.sampling, seed=secrets.randbits(31)))
            record.produced = list(request.produced.tokens)
            record.draws = request.produced.draws
            deadline = _deadline(caller)
            async with self._turns_of(model).turn(background=caller.background, deadline=deadline) as turn:
                for attempt in range(1, ATTEMPTS + 1):
                    record.attempt = attempt
                    try:
                        async with aclosing(self._attempt(request, model, record, deadline, turn)) as chunks:
                            async for chunk in chunks:
                                yield chunk
                        return
                    except WorkerDied as death:
                        if attempt == ATTEMPTS:
                            raise _given_up(model, record) from death
                        log.warning("request goes on after a crash", extra={"request": request.id, "model": model.id})
                    except CapacityError as error:
                        if attempt == 1 or not record.tokens or isinstance(error, DeadlineExceeded):
                            raise
                        raise _given_up(model, record) from error

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> Embeddings:
        """The vectors of one request. Raises `inference.errors`."""
        with self._recorded(request.id, request.model, "embeddings") as record:
            model = self._model(request.model, embeds=True)
            deadline = _deadline(caller)
            async with self._turns_of(model).turn(background=caller.background, deadline=deadline) as turn:
                for attempt in range(1, ATTEMPTS + 1):
                    try:
                        async with self._engine(model, record, turn, deadline) as engine:
                            _assert_able(model, embeds=True, able=engine.info.can_embed)
                            record.state = "generating"
                            async with _until(deadline, "The embeddings were not ready"):
                                answer = await engine.embed(request)
                        record.prompt_tokens = answer.prompt_tokens
                        record.is_complete = True
                        return answer
                    except WorkerDied as death:
                        if attempt == ATTEMPTS:
                            raise _given_up(model, record) from death
                        log.warning("request goes on after a crash", extra={"request": request.id, "model": model.id})
        raise AssertionError("every attempt returns or raises")

    def active(self) -> list[ActiveRequest]:
        """What this peer is busy with, oldest first."""
        return [r.view() for r in sorted(self._records, key=lambda r: r.began)]

    def queued(self, model_id: str | None = None) -> int:
        """Requests that wait for a slot: of one model, or of all."""
        return sum(t.waiting for name, t in self._turns.items() if model_id in (None, name))

    async def drain(self, timeout_s: float) -> bool:
        """Takes nothing new and waits for what runs; False if something still does after `timeout_s`."""
        self._is_draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
            return True
        except TimeoutError:
            return False

    # -- one request

    async def _attempt(
        self,
        request: Generation,
        model: StoredModel,
        record: _Record,
        deadline: float | None,
        turn: Turn,
    ) -> AsyncGenerator[Chunk, None]:
        """Chunks from one engine, after those that `record` has. Raises WorkerDied."""
        async with self._engine(model, record, turn, deadline) as engine:
            _assert_able(model, embeds=False, able=engine.info.can_chat)
            produced = Produced(tokens=tuple(record.produced), draws=record.draws)
            rest = replace(request, produced=produced)
            async with aclosing(engine.generate(rest, on_finish=turn.end)) as chunks:
                while True:
                    if deadline is None:
                        chunk = await anext(chunks)
                    else:
                        async with _until(deadline, f"The answer was not complete after {record.tokens} tokens"):
                            chunk = await anext(chunks)
                    if chunk.started is not None:
                        if (started := record.start(chunk.started, self._peer)) is not None:
                            yield Chunk(started=started)
                        continue
                    record.take(chunk)
                    yield chunk
                    if chunk.finish_reason is not None:
                        return

    @asynccontextmanager
    async def _engine(
        self, model: StoredModel, record: _Record, turn: Turn, deadline: float | None
    ) -> AsyncGenerator[EngineClient, None]:
        record.state = "loading"
        async with self._pool.lease(model, deadline=deadline) as engine:
            record.state = "prefill"
            turn.begin()
            self._turns_of(model).slots = engine.info.slots
            yield engine

    def _model(self, name: str, *, embeds: bool) -> StoredModel:
        if self._is_draining:
            raise ModelUnavailable("This peer is stopping and takes no new requests.", retry_after_s=5)
        model = self._resolve(name)
        _assert_able(model, embeds=embeds, able=model.header.is_embedding is embeds)
        return model

    def _turns_of(self, model: StoredModel) -> Turns:
        turns = self._turns.get(model.id)
        if turns is None:
            turns = self._turns[model.id] = Turns(model.id, self._slots)
        return turns

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


@dataclass(slots=True, kw_only=True, eq=False)
class _Record:
    """What is known of a running request. `produced` are all tokens of the answer, `tokens` those made here."""

    id: str
    model: str
    kind: Kind
    state: State = "queued"
    began: float = field(default_factory=time.monotonic)
    started_at: float = field(default_factory=time.time)
    attempt: int = 1
    is_started: bool = False
    is_complete: bool = False
    ttft_s: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    produced: list[int] = field(default_factory=list)
    draws: int = 0

    def start(self, started: Started, peer: str) -> Started | None:
        """What the caller is told; None if it was told before."""
        if self.is_started:
            return None
        self.is_started = True
        self.prompt_tokens, self.cached_tokens = started.prompt_tokens, started.cached_tokens
        return replace(started, peer=peer, attempts=self.attempt)

    def take(self, chunk: Chunk) -> None:
        if chunk.tokens:
            if self.ttft_s is None:
                self.ttft_s = time.monotonic() - self.began
            self.state = "generating"
            self.produced.extend(chunk.tokens)
            self.tokens += len(chunk.tokens)
        self.draws = chunk.draws
        self.is_complete = chunk.finish_reason is not None

    @property
    def usage(self) -> Usage:
        return Usage(prompt_tokens=self.prompt_tokens, completion_tokens=self.tokens, cached_tokens=self.cached_tokens)

    def view(self) -> ActiveRequest:
        return ActiveRequest(
            id=self.id,
            model=self.model,
            kind=self.kind,
            state=self.state,
            tokens=self.tokens,
            started_at=self.started_at,
        )


def _deadline(caller: Caller) -> float | None:
    """On the loop's clock."""
    return None if caller.deadline_s is None else asyncio.get_running_loop().time() + caller.deadline_s


@asynccontextmanager
async def _until(deadline: float | None, what: str) -> AsyncGenerator[None, None]:
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise DeadlineExceeded(f"{what} when the request's deadline passed (x-llm-router-timeout).") from None


def _assert_able(model: StoredModel, *, embeds: bool, able: bool) -> None:
    if able:
        return
    if embeds:
        message = f"The model {model.id} cannot make embeddings; it generates text (POST /v1/chat/completions)."
    else:
        message = f"The model {model.id} makes embeddings (POST /v1/embeddings); it cannot generate text."
    raise InvalidRequest(message, param="model", code="unsupported_model")


def _given_up(model: StoredModel, record: _Record) -> InferenceError:
    """The engine died again, or could not be loaded again."""
    if record.tokens:
        return StreamInterrupted(
            f"The engine of the model {model.id} crashed, and the answer could not be continued after "
            f"{record.tokens} tokens."
        )
    return ModelUnavailable(
        f"The engine of the model {model.id} crashed {ATTEMPTS} times before the first token.",
        retry_after_s=RETRY_AFTER_DEATH_S,
    )
