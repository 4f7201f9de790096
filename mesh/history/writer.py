"""Writes what is recorded: takes entries from the outbox to the store, batch by batch, as long as the peer lives.

`put` never waits and never fails. Whoever wants to know when an entry is on the disk gets a future of its place. A
commit costs as much as ten entries, so entries wait for company: those that nobody waits for 50 ms, the others 5 ms
while commits follow each other closely, and not at all when it is quiet. A store that cannot be opened yet is a disk
that fails. What can never be written (an entry that is none, or one that the store chokes on again and again) is
dropped, counted and logged, so that it does not keep the rest from the disk.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from mesh.history.entries import Entry, LogId, encode
from mesh.history.errors import BadEntry, HistoryUnavailable
from mesh.history.outbox import BYTES_MAX, Outbox, Waiting

log = logging.getLogger(__name__)

LINGER_S = 0.05
GROUP_S, BUSY_S = 0.005, 0.02
"""What clients wait for lingers so long when the last commit is no longer ago than that."""
SURPRISES_MAX = 3
"""After so many failures in a row that no disk explains, something in the batch is to blame."""


class OwnLog(Protocol):
    """The part of the store that is written here; the simulator has another one."""

    @property
    def own(self) -> LogId:
        """The log that `append` writes."""

    async def append(self, items: Sequence[bytes]) -> int:
        """On the disk when it returns: the number of the last one. Raises HistoryUnavailable or BadEntry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an entry is: its log, and no further than this number in it."""

    log: LogId
    seq: int


class Writer:
    """Owns the outbox. `run` writes until it is cancelled; nothing is written without it."""

    def __init__(
        self,
        *,
        store: Callable[[], OwnLog | None],
        committed: Callable[[], None] = lambda: None,
        clock: Callable[[], float],
        bytes_max: int = BYTES_MAX,
    ) -> None:
        """`store`: None while it cannot be opened. `committed` hears of each batch that is on the disk."""
        self._store = store
        self._committed = committed
        self._clock = clock
        self.outbox = Outbox(bytes_max)
        self._due = math.inf
        self._committed_at = -math.inf
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._place: Place | None = None
        self._surprises = 0
        self._told_dropped = (0, 0)

    @property
    def log(self) -> LogId | None:
        """The log that is written now; None before the store could be opened."""
        store = self._store()
        return store.own if store is not None and store.own.run else None

    def put(self, entry: Entry) -> None:
        """Queues `entry`; nobody waits for it."""
        self._put(entry, None, LINGER_S)

    def put_watched(self, entry: Entry) -> asyncio.Future[Place | None]:
        """Queues `entry`; the future tells where it is once it is on the disk, or None when it was dropped."""
        future: asyncio.Future[Place | None] = asyncio.get_running_loop().create_future()

        def ended(is_written: bool) -> None:
            if not future.done():
                future.set_result(self._place if is_written else None)

        is_busy = self._clock() - self._committed_at < BUSY_S
        self._put(entry, ended, GROUP_S if is_busy else 0.0)
        return future

    async def run(self) -> None:
        """Writes whatever comes."""
        while True:
            now = self._clock()
            due = max(self._due, self.outbox.retry_at) if len(self.outbox) else math.inf
            if due <= now and (batch := self.outbox.batch(now)):
                left = len(self.outbox) - len(batch)
                self._due = math.inf
                is_written = await self._write(batch)
                self._committed_at = self._clock()
                if left or not is_written:
                    self._due = self._committed_at
                continue
            if not len(self.outbox):
                self._due = math.inf
                self._idle.set()
            self._wake.clear()
            try:
                async with asyncio.timeout(None if due == math.inf else due - now):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def drained(self, timeout_s: float) -> bool:
        """Waits until all is written, at most that long; True if it is."""
        if len(self.outbox):
            self._due = -math.inf
            self._wake.set()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            log.error("the history stops with entries that are not on the disk", extra={"entries": len(self.outbox)})
            return False
        return True

    def _put(self, entry: Entry, ended: Callable[[bool], None] | None, linger_s: float) -> None:
        self._idle.clear()
        self.outbox.put(entry, ended)
        if (due := self._clock() + linger_s) < self._due:
            self._due = due
            self._wake.set()

    async def _write(self, batch: list[Waiting]) -> bool:
        """True if the batch is on the disk; else it, or what is left of it, is in the outbox again."""
        was_sick = self.outbox.is_sick
        store = self._store()
        try:
            if store is None:
                raise HistoryUnavailable("the history is not open")
            last = await store.append([encode(waiting.entry) for waiting in batch])
            self._place = Place(log=store.own, seq=last)
            self._surprises = 0
            self.outbox.written()
            if was_sick:
                log.info("the history is written again")
            self._committed()
            return True
        except HistoryUnavailable as error:
            self._failed(error.message, was_sick)
        except BadEntry as error:
            self._refused(str(error))
        except Exception as error:  # border: whatever the store raises, recording goes on
            log.exception("writing the history failed")
            self._surprises += 1
            if self._surprises < SURPRISES_MAX:
                self._failed(type(error).__name__, was_sick)
            else:
                self._refused(type(error).__name__)
        return False

    def _refused(self, reason: str) -> None:
        if self.outbox.refused():
            self._surprises = 0
            log.error("an entry of the history cannot be written and is dropped", extra={"reason": reason})

    def _failed(self, reason: str, was_sick: bool) -> None:
        self.outbox.failed(self._clock())
        if not was_sick:
            log.error("the history cannot be written; what is recorded waits in memory", extra={"reason": reason})
        dropped = (self.outbox.bodies_dropped, self.outbox.entries_dropped)
        if dropped != self._told_dropped:
            self._told_dropped = dropped
            log.error(
                "too much of the history waits in memory, and some of it was dropped",
                extra={"bodies": dropped[0], "entries": dropped[1]},
            )
