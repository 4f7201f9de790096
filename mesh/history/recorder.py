"""Records requests: one Start when a request is admitted and one End when it is over, in this peer's own log.

The Start is queued and nobody waits for it. The End is on the disk when `ended` returns, so that a client that got the
last chunk of an answer has a record of it. If the disk needs longer than 250 ms the chunk goes out all the same; the
record is counted as unacknowledged and waits in the outbox. With LLM_ROUTER_HISTORY_ACK=replicated it is on the disk of
another peer too by then; alone, or when the other is late, it does without, counts it and says so once.

How much is kept is the least of what the setting, the caller's key and the request (`store: false`) allow: all, all but
the bodies, or nothing. Recording never fails a request: what goes wrong in here is logged, and that is all.

Not here: when entries reach the disk (mesh.history.writer), what is kept of bodies (mesh.history.bodies).
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from inference.chat import Started
from mesh.history.bodies import is_light, stored, stored_at_once
from mesh.history.entries import ActorKind, Audit, End, LogId, Start
from mesh.history.writer import Place, Writer
from web.services import Asked, AuditNote, Caller, Outcome, Record, Recording

log = logging.getLogger(__name__)

WAIT_S_MAX = 0.25
"""A client waits this long for the disk at the most."""
DRAIN_S = 2.0
"""A stop waits this long for a disk that does not take what waits."""

Ack = Literal["local", "replicated"]
_STRICTNESS: dict[Recording, int] = {"full": 0, "metadata": 1, "off": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """`now_ms`: unix time, for people. `clock`: seconds that only go on, for durations."""

    now_ms: Callable[[], int]
    clock: Callable[[], float]


def strictest(*modes: Recording) -> Recording:
    """The one of them that keeps least."""
    return max(modes, key=_STRICTNESS.__getitem__)


def is_acknowledged(place: Place | None, ack: Ack, *, is_elsewhere: bool) -> bool:
    """True if a record is where it has to be before the client gets the last chunk.

    `place`: where it is on this disk, if it is; `is_elsewhere`: it is on the disk of another peer too.
    """
    return place is not None and (ack == "local" or is_elsewhere)


class Recorder:
    """`begin` and `audit` are what web.services.HistoryFacet asks for."""

    def __init__(
        self,
        *,
        writer: Writer,
        bodies: Callable[[], Recording],
        ack: Callable[[], Ack],
        replicated: Callable[[Place], Awaitable[bool]],
        redact: Callable[[str], str],
        ip_of: Callable[[str], str],
        new_id: Callable[[], str],
        clocks: Clocks,
    ) -> None:
        """`bodies` and `ack` are asked at every request: settings change. `replicated` answers True once another disk
        has an entry, and False when that cannot be. `ip_of` a peer's id."""
        self._writer = writer
        self._bodies = bodies
        self._ack = ack
        self._replicated = replicated
        self._redact = redact
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_degraded = False
        self.ip_of, self.new_id, self.clocks = ip_of, new_id, clocks
        self.unacknowledged = 0
        """Requests that ended before their record was on the disk."""
        self.unreplicated = 0
        """Requests that ended before their record was on another disk too, where that was wanted."""

    def begin(self, asked: Asked) -> Record:
        """The record of a request that was admitted."""
        try:
            kept = strictest(self._bodies(), asked.caller.recording or "full", "full" if asked.is_kept else "off")
            if kept != "off":
                return _Kept(self, asked, has_bodies=kept == "full")
        except Exception:  # border: recording never fails a request
            log.exception("a request is not recorded", extra={"request": asked.request_id})
        return _Nothing()

    def audit(self, note: AuditNote) -> None:
        """Writes down that somebody did something."""
        try:
            actor, kind = actor_of(note.caller)
            self._writer.put(
                Audit(
                    at_ms=self.clocks.now_ms(),
                    actor=actor,
                    actor_kind=kind,
                    action=note.action,
                    ip=note.caller.ip,
                    target=self.text(note.target),
                    detail=self.text(note.detail),
                )
            )
        except Exception:  # border: recording never fails a request
            log.exception("an action is not recorded", extra={"action": note.action})

    async def close(self) -> None:
        """Waits for what is still being recorded, and until it is on the disk, but not for long."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=DRAIN_S)
        await self._writer.drained(DRAIN_S)

    # -- for the records

    def put(self, start: Start) -> None:
        """Queues it."""
        self._writer.put(start)

    def put_watched(self, end: End) -> asyncio.Future[Place | None]:
        """Queues it; tells where it is once it is on the disk."""
        return self._writer.put_watched(end)

    @property
    def log(self) -> LogId | None:
        """The log that is written now, if there is one."""
        return self._writer.log

    def kept(self, body: Mapping[str, Any], *, is_light: bool) -> bytes:
        """What is kept of a body. Those that are not light take a while."""
        return (stored_at_once if is_light else stored)(body, self._redact)

    def text(self, said: str) -> str:
        """A name or a message as it is kept: people send their key as the name of a model."""
        return self._redact(said) if said else said

    def beside(self, work: Coroutine[Any, Any, Place | None]) -> asyncio.Task[Place | None]:
        """A task that goes on when whoever waits for it does not."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def acknowledged(self, written: asyncio.Future[Place | None]) -> bool:
        """Waits until the record is where it has to be, or it takes too long; counts what was not waited for."""
        ack, place, is_elsewhere = self._ack(), None, False
        if not self._writer.outbox.is_sick:  # else everything waits for the disk, and no client has to
            try:
                async with asyncio.timeout(WAIT_S_MAX):
                    place = await asyncio.shield(written)
                    if place is not None and ack == "replicated":
                        is_elsewhere = await self._replicated(place)
            except TimeoutError:
                pass
        is_done = is_acknowledged(place, ack, is_elsewhere=is_elsewhere)
        if is_done:
            self._is_degraded = self._is_degraded and ack != "replicated"
        elif place is None:
            self.unacknowledged += 1
        else:
            self.unreplicated += 1
            if not self._is_degraded:
                self._is_degraded = True
                log.warning("records are on this disk only: no other peer has them in time")
        return is_done


class _Kept:
    """A record that is kept. Made when its request is admitted."""

    def __init__(self, recorder: Recorder, asked: Asked, *, has_bodies: bool) -> None:
        self._recorder = recorder
        self._has_bodies = has_bodies
        self._began = recorder.clocks.clock()
        self._ttft_ms: int | None = None
        self._started: Started | None = None
        self._is_ended = False
        self._starting: asyncio.Task[Place | None] | None = None
        self._log = recorder.log
        caller, light = asked.caller, has_bodies and is_light(asked.body)
        self._start = Start(
            id=recorder.new_id(),
            at_ms=recorder.clocks.now_ms(),
            kind=asked.kind,
            model=recorder.text(asked.model),
            client_ip=caller.ip,
            key_id=caller.key_id or "",
            key_name=caller.key_name or "",
            user=caller.username or "",
            stream=asked.is_stream,
            recording="full" if has_bodies else "metadata",
            request_body=recorder.kept(asked.body, is_light=True) if light else None,
        )
        if has_bodies and not light:
            self._starting = recorder.beside(self._start_later(asked.body))
        else:
            recorder.put(self._start)

    def started(self, started: Started) -> None:
        self._started = started

    def first_token(self) -> None:
        if self._ttft_ms is None:
            self._ttft_ms = self._elapsed_ms()

    async def ended(self, outcome: Outcome) -> None:
        if self._is_ended:
            return
        self._is_ended = True
        try:
            await self._recorder.acknowledged(self._ending(outcome))
        except Exception:  # border: recording never fails a request
            log.exception("the end of a request is not recorded", extra={"record": self._start.id})

    def _ending(self, outcome: Outcome) -> asyncio.Future[Place | None]:
        """Queues the End: at once, or beside the request when something large has to be made first."""
        recorder, body = self._recorder, outcome.body if self._has_bodies else None
        if self._is_elsewhere(recorder.log):
            # The file was damaged and begun anew meanwhile: its Start may be lost.
            recorder.put(self._start)
            self._log = recorder.log
        if self._starting is not None or (body is not None and not is_light(body)):
            return recorder.beside(self._end_later(self._end(outcome, None), body))
        kept = recorder.kept(body, is_light=True) if body is not None else None
        return self._put_end(self._end(outcome, kept))

    def _put_end(self, end: End) -> asyncio.Future[Place | None]:
        written = self._recorder.put_watched(end)
        written.add_done_callback(partial(self._written, end))
        return written

    def _written(self, end: End, written: asyncio.Future[Place | None]) -> None:
        """The End is on the disk. If that is when the file was found damaged, both are written to the new log."""
        if written.cancelled() or (place := written.result()) is None or not self._is_elsewhere(place.log):
            return
        self._log = place.log
        self._recorder.put(self._start)
        self._put_end(end)

    def _is_elsewhere(self, log: LogId | None) -> bool:
        """True if that is not the log that has the Start: it may be lost, or come to a copy after its End."""
        return self._log is not None and log != self._log

    async def _start_later(self, body: Mapping[str, Any]) -> None:
        kept = await self._in_thread(body)
        self._recorder.put(replace(self._start, request_body=kept))

    async def _end_later(self, end: End, body: Mapping[str, Any] | None) -> Place | None:
        if self._starting is not None:
            await asyncio.wait({self._starting})
        kept = await self._in_thread(body) if body is not None else None
        return await self._put_end(replace(end, response_body=kept))

    async def _in_thread(self, body: Mapping[str, Any]) -> bytes | None:
        try:
            return await asyncio.to_thread(self._recorder.kept, body, is_light=False)
        except Exception:  # border: a record without its body is better than none
            log.exception("a body is not recorded", extra={"record": self._start.id})
            return None

    def _end(self, outcome: Outcome, body: bytes | None) -> End:
        started, usage = self._started, outcome.usage
        node = started.peer_id if started is not None else ""
        names = (started.peer, *started.continued_on) if started is not None else ("",)
        return End(
            id=self._start.id,
            at_ms=self._recorder.clocks.now_ms(),
            status=outcome.status,
            message=self._recorder.text(outcome.message or ""),
            code=outcome.code or "",
            http_status=outcome.http_status,
            node=node,
            node_name=names[-1],
            node_ip=self._recorder.ip_of(node) if node else "",
            attempts=started.attempts if started is not None else 1,
            continued_on=names[1:],
            prompt_tokens=usage.prompt_tokens if usage is not None else None,
            completion_tokens=usage.completion_tokens if usage is not None else None,
            cached_tokens=usage.cached_tokens if usage is not None else None,
            ttft_ms=self._ttft_ms,
            duration_ms=self._elapsed_ms(),
            response_body=body,
        )

    def _elapsed_ms(self) -> int:
        return max(0, round((self._recorder.clocks.clock() - self._began) * 1000))


class _Nothing:
    """The record of a request of which nothing is kept."""

    def started(self, started: Started) -> None:
        """Nothing is kept of it."""

    def first_token(self) -> None:
        """Nothing is kept of it."""

    async def ended(self, outcome: Outcome) -> None:
        """Nothing is kept of it."""


def actor_of(caller: Caller) -> tuple[str, ActorKind]:
    """Who did it, in the words of the audit log: a login, a key, somebody at this machine, or the peer itself."""
    if caller.username is not None:
        return caller.username, "user"
    if caller.key_id == "control":
        return "control", "control"
    if caller.key_id is not None:
        return caller.key_name or caller.key_id, "key"
    if caller.is_local:
        return "loopback", "control"
    return ("", "user") if caller.ip else ("", "system")


def record_ids(now_ms: Callable[[], int], rng: random.Random) -> Callable[[], str]:
    """Makes ids that sort by time and come twice never: UUIDs of version 7 (RFC 9562, 5.7), counting within a ms."""
    last_ms, count = 0, 0

    def new_id() -> str:
        nonlocal last_ms, count
        if (ms := now_ms()) > last_ms:
            last_ms, count = ms, rng.getrandbits(8)
        else:  # the same ms, or a clock that was set back
            count += 1
            if count >= 1 << 12:
                last_ms, count = last_ms + 1, 0
        value = (last_ms & ((1 << 48) - 1)) << 80 | 7 << 76 | count << 64 | 2 << 62 | rng.getrandbits(62)
        return str(uuid.UUID(int=value))

    return new_id
