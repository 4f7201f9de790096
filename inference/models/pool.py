"""The models in memory: loads on demand, once however many ask; unloads the idle; forgets what crashed.

    async with Pool(start=..., bytes_needed=..., limits=...) as pool:
        async with pool.lease(model) as engine:
            ...

A resident goes loading -> loaded -> unloading -> gone, and one task lives that life from beginning to end. Whom to
evict is decided in `inference.models.eviction`, who may not be loaded in `inference.models.quarantine`. The pool does
not queue requests, count slots, or continue an answer after a crash (mesh.admission, mesh.dispatch).

Room is given in the order it was asked for: what a newcomer wants is planned as if those before it had theirs already.
A model that never stops serving would keep every other one out. Whoever has waited `patience_s` for room therefore
has the least recently used ones retired: they end what they serve and get no new lease.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

from inference.engine.client import EngineClient, LoadCrashed
from inference.engine.spec import EngineInfo
from inference.errors import DeadlineExceeded, InferenceError, ModelUnavailable, Overloaded
from inference.models.eviction import Evict, Load, Never, Plan, Resident, room_for
from inference.models.model import StoredModel
from inference.models.quarantine import Quarantine

log = logging.getLogger(__name__)

Start = Callable[[StoredModel, Callable[[float], None]], Awaitable[EngineClient]]
PoolEvent = Literal["loaded", "load_failed", "crashed", "unloaded"]
State = Literal["loading", "loaded", "unloading", "failed", "quarantined"]

CLOSE_GRACE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """`max_loaded` counts models with `counts` only. `memory_budget_bytes` None: no limit. `idle_s` 0: never unload.

    `wait_s`: how long a lease waits for room; `patience_s`: after how much of it others are retired.
    """

    max_loaded: int = 1
    memory_budget_bytes: int | None = None
    idle_s: float = 300.0
    wait_s: float = 30.0
    patience_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """One model in memory, or one that may not be loaded now (`failed`, `quarantined`: `reason` says why).

    `progress` 0..1 of the load; `active` leases; `idle_s` None while it serves.
    """

    id: str
    state: State
    progress: float = 1.0
    pid: int | None = None
    info: EngineInfo | None = None
    active: int = 0
    idle_s: float | None = None
    bytes: int = 0
    reason: str | None = None


class Pool:
    """Every engine of this peer. All methods belong to the event loop it was entered in."""

    def __init__(
        self,
        *,
        start: Start,
        bytes_needed: Callable[[StoredModel], int],
        limits: PoolLimits,
        observe: Callable[[PoolEvent], None] = lambda event: None,
    ) -> None:
        """`start` loads a model (and bounds the time of it); `bytes_needed` is what it will take in memory."""
        self._start = start
        self._bytes_needed = bytes_needed
        self._limits = limits
        self._observe = observe
        self._residents: dict[str, _Resident] = {}
        self._quarantine = Quarantine()
        self._seekers: dict[_Seeker, None] = {}  # in the order they came
        self._waiters: set[asyncio.Future[None]] = set()
        self._is_closing = False
        self._tasks = asyncio.TaskGroup()
        self._idle_task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._idle_task = self._tasks.create_task(self._unload_idle(), name="pool idle")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._begin_closing()
        # Not told of an error of the block: it would come out wrapped in a group.
        await self._tasks.__aexit__(None, None, None)

    @asynccontextmanager
    async def lease(self, model: StoredModel, *, deadline: float | None = None) -> AsyncGenerator[EngineClient, None]:
        """An engine with `model` loaded, which stays while the block runs; leaving it without error is a success.

        `deadline` is a time of the event loop's clock. Raises ModelUnavailable (it cannot be loaded, or may not now),
        Overloaded (no room within `wait_s`), DeadlineExceeded.
        """
        resident = await self._acquire(model, deadline)
        assert resident.engine is not None
        try:
            yield resident.engine
            if resident.engine.alive:
                self._quarantine.succeeded(model.id)
        finally:
            self._release(resident)

    async def load(self, model: StoredModel, *, deadline: float | None = None) -> None:
        """Has `model` in memory, as a lease would, even if it was resting after a failure."""
        self._quarantine.forgive(model.id)
        self._release(await self._acquire(model, deadline))

    async def unload(self, model_id: str) -> bool:
        """Unloads once it has answered what it serves; False: not in memory. Raises Overloaded after `wait_s`."""
        resident = self._residents.get(model_id)
        if resident is None:
            return False
        self._retire(resident)
        until = self._now() + self._limits.wait_s
        while self._residents.get(model_id) is resident:
            if not await self._change(until) and not resident.leave.is_set():
                self._take_back({resident})
                raise Overloaded(f"The model {model_id} still serves {resident.leases} requests.", retry_after_s=5)
        return True

    def states(self) -> list[ModelState]:
        """What is in memory, then what may not be loaded now."""
        now = self._now()
        resting = self._quarantine.resting(now)
        refused = [
            ModelState(id=i, state="quarantined" if r.is_quarantined else "failed", progress=0.0, reason=r.reason)
            for i, r in resting.items()
            if i not in self._residents
        ]
        return [r.view(now) for r in self._residents.values()] + refused

    def forgive(self, model_id: str) -> None:
        """Forgets failures and crashes of this model: its file was replaced, or somebody wants to try again."""
        self._quarantine.forgive(model_id)

    def replaced(self, model_id: str) -> None:
        """The file of this model is another one now: what the old one did is forgotten, and if it is in memory it
        leaves once it has answered what it serves."""
        self._quarantine.forgive(model_id)
        resident = self._residents.get(model_id)
        if resident is not None:
            log.info("model file was replaced", extra={"model": model_id})
            self._retire(resident)

    # -- leases

    async def _acquire(self, model: StoredModel, deadline: float | None) -> _Resident:
        resident = self._residents.get(model.id)
        if resident is None or not resident.is_open:
            resident = await self._sought(model, deadline)
        resident.leases += 1
        return resident

    async def _sought(self, model: StoredModel, deadline: float | None) -> _Resident:
        """The resident of `model`, open for leases; loaded if need be."""
        seeker = _Seeker(model=model, bytes=self._bytes_needed(model), since=self._now())
        self._seekers[seeker] = None
        try:
            while True:
                resident = self._residents.get(model.id)
                if resident is not None and resident.is_open:
                    return resident
                if resident is None:
                    self._make_room(seeker)
                    resident = self._residents.get(model.id)
                await self._wait(seeker, resident, deadline)
        finally:
            del self._seekers[seeker]
            self._take_back(seeker.retired)

    def _make_room(self, seeker: _Seeker) -> None:
        """Begins to load its model, or to unload others for it, or does nothing yet. Raises if it may not be loaded."""
        now = self._now()
        model = seeker.model
        if self._is_closing:
            raise ModelUnavailable("This peer is stopping.", retry_after_s=5)
        if refusal := self._quarantine.refusal(model.id, now):
            raise ModelUnavailable(
                f"The model {model.id} cannot be served now: {refusal.reason}",
                retry_after_s=math.ceil(refusal.until - now),
            )
        match self._plan(seeker, others_must_stay=True):
            case Load():
                resident = _Resident(model=model, bytes=seeker.bytes, used_at=now)
                self._residents[model.id] = resident
                resident.task = self._tasks.create_task(self._live(resident), name=f"model {model.id}")
            case Evict(ids=ids):
                for i in ids:
                    log.info("model makes room", extra={"model": i, "room_for": model.id})
                    self._retire(self._residents[i])
            case Never(reason=reason):
                raise ModelUnavailable(f"The model {model.id} cannot be loaded: {reason}", retry_after_s=60)
            case _ if now >= seeker.since + self._limits.patience_s:
                plan = self._plan(seeker, others_must_stay=False)
                for i in plan.ids if isinstance(plan, Evict) else ():
                    seeker.retired.add(self._residents[i])
                    self._retire(self._residents[i])

    def _plan(self, seeker: _Seeker, *, others_must_stay: bool) -> Plan:
        residents = [
            Resident(
                id=r.model.id,
                bytes=r.bytes,
                counts=r.model.counts,
                used_at=r.used_at,
                busy=r.state == "loading" or r.wanted > 0 or (r.leases > 0 and others_must_stay),
                leaving=r.state == "unloading" or r.retiring,
            )
            for r in self._residents.values()
        ]
        limits = self._limits
        return room_for(
            seeker.bytes,
            seeker.model.counts,
            residents + self._promised(seeker),
            max_loaded=limits.max_loaded,
            budget_bytes=limits.memory_budget_bytes,
        )

    def _promised(self, seeker: _Seeker) -> list[Resident]:
        """What those who came before `seeker` are going to load, as if it were there."""
        promised: dict[str, Resident] = {}
        for other in self._seekers:
            if other is seeker:
                break
            i = other.model.id
            there = self._residents.get(i)
            if i != seeker.model.id and (there is None or there.retiring or there.state == "unloading"):
                promised[i] = Resident(id=i, bytes=other.bytes, counts=other.model.counts, used_at=0.0, busy=True)
        return list(promised.values())

    async def _wait(self, seeker: _Seeker, resident: _Resident | None, deadline: float | None) -> None:
        """Until something changes. Raises when the caller's deadline passes, or there was no room for too long."""
        now = self._now()
        model = seeker.model
        is_loading = resident is not None and resident.state == "loading"
        no_room = math.inf if is_loading else seeker.since + self._limits.wait_s
        if deadline is not None and now >= deadline:
            doing = f"is still loading ({resident.progress:.0%})" if resident and is_loading else "waits for room"
            raise DeadlineExceeded(f"The model {model.id} {doing}, and the request's deadline has passed.")
        if now >= no_room:
            raise Overloaded(
                f"The model {model.id} found no room in memory within {self._limits.wait_s:g} s: what is loaded is "
                "serving (LLM_NODE_MAX_LOADED_MODELS, LLM_NODE_MAX_MEMORY_BYTES).",
                retry_after_s=10,
            )
        patience = seeker.since + self._limits.patience_s
        until = min(no_room, math.inf if deadline is None else deadline, patience if patience > now else math.inf)
        if resident is not None:
            resident.wanted += 1
        try:
            await self._change(until)
        finally:
            if resident is not None:
                resident.wanted -= 1

    def _release(self, resident: _Resident) -> None:
        resident.leases -= 1
        resident.used_at = self._now()
        if resident.leases == 0:
            if resident.retiring:
                resident.leave.set()
            self._notify()

    def _retire(self, resident: _Resident) -> None:
        resident.retiring = True
        if resident.leases == 0 and resident.state == "loaded":
            resident.leave.set()

    def _take_back(self, retired: set[_Resident]) -> None:
        """Whoever had them retired goes: those that still serve may go on."""
        for resident in retired:
            if resident.state == "loaded" and not resident.leave.is_set():
                resident.retiring = False
        self._notify()  # those behind it may have their turn

    # -- residents

    async def _live(self, resident: _Resident) -> None:
        """Loading to gone, of one model."""
        model = resident.model
        try:
            engine = await self._begin(resident)
            if engine is None:
                return
            try:
                await resident.leave.wait()
                if engine.alive:
                    resident.state = "unloading"
                    self._observe("unloaded")
                else:
                    self._crashed(resident, engine)
            finally:
                await engine.close(CLOSE_GRACE_S)
                log.info("model unloaded", extra={"model": model.id})
        finally:
            self._forget(resident)

    async def _begin(self, resident: _Resident) -> EngineClient | None:
        """The engine, loaded; None if that failed, which is then in the records."""
        model = resident.model
        try:
            engine = await self._start(model, resident.progressed)
        except LoadCrashed as error:
            if error.death.blames_model:
                self._quarantine.crashed(model.id, error.death.reason, self._now())
            self._load_failed(model, error)
            return None
        except InferenceError as error:
            self._load_failed(model, error)
            return None
        except Exception:  # border: a load that fails in a way we did not foresee is that model's failure only
            log.exception("load failed unexpectedly", extra={"model": model.id})
            self._quarantine.load_failed(model.id, "it could not be loaded; the log says more", self._now())
            self._observe("load_failed")
            return None
        resident.engine = engine
        resident.state = "loaded"
        resident.used_at = self._now()
        engine.died.add_done_callback(lambda _: resident.leave.set())
        if resident.retiring:
            resident.leave.set()
        self._observe("loaded")
        log.info("model loaded", extra={"model": model.id, "pid": engine.pid, "load_s": engine.info.load_s})
        self._notify()
        return engine

    def _load_failed(self, model: StoredModel, error: InferenceError) -> None:
        notes = "\n".join(getattr(error, "__notes__", ()))
        log.warning("model cannot be loaded", extra={"model": model.id, "reason": error.message, "stderr": notes})
        # llama.cpp names the file. Callers from other machines are told the reason, not where files lie here.
        reason = error.message.replace(f"{model.path.parent}{os.sep}", "")
        self._quarantine.load_failed(model.id, reason, self._now())
        self._observe("load_failed")

    def _crashed(self, resident: _Resident, engine: EngineClient) -> None:
        death = engine.died.result()
        self._forget(resident)
        record = self._quarantine.crashed if death.blames_model else self._quarantine.killed
        record(resident.model.id, death.reason, self._now())
        self._observe("crashed")
        log.error(
            "worker crashed",
            extra={"model": resident.model.id, "reason": death.reason, "stderr": "\n".join(engine.stderr_lines)},
        )

    def _forget(self, resident: _Resident) -> None:
        if self._residents.get(resident.model.id) is resident:
            del self._residents[resident.model.id]
        self._notify()

    async def _unload_idle(self) -> None:
        while True:
            now = self._now()
            due = math.inf
            for r in self._residents.values():
                if self._limits.idle_s and r.is_open and r.leases == 0 and r.wanted == 0:
                    if now >= r.used_at + self._limits.idle_s:
                        self._retire(r)
                    else:
                        due = min(due, r.used_at + self._limits.idle_s)
            await self._change(due)

    def _begin_closing(self) -> None:
        self._is_closing = True
        if self._idle_task is not None:
            self._idle_task.cancel()
        for resident in self._residents.values():
            if resident.state == "loading" and resident.task is not None:
                resident.task.cancel()
            resident.leave.set()
        self._notify()

    # -- changes

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _notify(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _change(self, until: float) -> bool:
        """Waits for any change of any resident; False if there was none until then."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout_at(None if until == math.inf else until):
                await waiter
            return True
        except TimeoutError:
            return False
        finally:
            self._waiters.discard(waiter)


@dataclass(slots=True, kw_only=True, eq=False)
class _Seeker:
    """Somebody who wants a model that is not open for leases; `retired` are those who must go for it."""

    model: StoredModel
    bytes: int
    since: float
    retired: set[_Resident] = field(default_factory=set)


@dataclass(slots=True, kw_only=True, eq=False)
class _Resident:
    """A model in memory, or on its way in or out. `wanted` counts who waits for it to be loaded."""

    model: StoredModel
    bytes: int
    used_at: float
    state: Literal["loading", "loaded", "unloading"] = "loading"
    progress: float = 0.0
    engine: EngineClient | None = None
    leases: int = 0
    wanted: int = 0
    retiring: bool = False  # no new leases; leaves with the last one
    leave: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """New leases may be given."""
        return (
            self.state == "loaded"
            and not self.retiring
            and not self.leave.is_set()
            and self.engine is not None
            and self.engine.alive
        )

    def progressed(self, fraction: float) -> None:
        self.progress = fraction

    def view(self, now: float) -> ModelState:
        return ModelState(
            id=self.model.id,
            state=self.state,
            progress=1.0 if self.state == "loaded" else self.progress,
            pid=self.engine.pid if self.engine else None,
            info=self.engine.info if self.engine else None,
            active=self.leases,
            idle_s=max(0.0, now - self.used_at) if self.state == "loaded" and not self.leases else None,
            bytes=self.bytes,
        )
