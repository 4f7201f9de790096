"""Who runs next of one model: as many at a time as it has slots, the others in order, background work last.

The shell around mesh.admission: it waits and hands slots on. The engine has a queue of its own; keeping it empty
means that one who leaves, or whose deadline passes, costs the engine nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from inference.errors import DeadlineExceeded, Overloaded
from mesh.admission import Full, TooLate, admitted

# Weight of the newest request in the average time that a slot is held.
NEWEST_SHARE = 0.2


class Turns:
    """The slots of the model `name`."""

    def __init__(self, name: str, slots: int) -> None:
        self._name = name
        self._slots = slots
        self._delayed = 0
        self._foreground: deque[asyncio.Future[None]] = deque()
        self._background: deque[asyncio.Future[None]] = deque()
        self.running = 0
        self.service_s = 0.0

    @property
    def waiting(self) -> int:
        return self._delayed + len(self._foreground) + len(self._background)

    @property
    def slots(self) -> int:
        return self._slots

    @slots.setter
    def slots(self, slots: int) -> None:
        """The engine says how many it has, once it is loaded."""
        self._slots = slots
        self._hand_on()

    @asynccontextmanager
    async def turn(self, *, background: bool, deadline: float | None) -> AsyncGenerator[Turn, None]:
        """A slot, for as long as the block runs or until it is ended. `deadline`: the loop's clock.

        Raises Overloaded (at once) or DeadlineExceeded.
        """
        await self._enter(asyncio.get_running_loop(), background, deadline)
        turn = Turn(self)
        try:
            yield turn
        finally:
            turn.end()

    def served(self, seconds: float) -> None:
        """A slot was held this long; then the next one gets it."""
        self.service_s += (seconds - self.service_s) * (NEWEST_SHARE if self.service_s else 1.0)
        self._leave()

    async def _enter(self, loop: asyncio.AbstractEventLoop, background: bool, deadline: float | None) -> None:
        verdict = admitted(
            running=self.running,
            waiting=self.waiting,
            slots=self._slots,
            service_s=self.service_s,
            deadline_s=None if deadline is None else deadline - loop.time(),
        )
        if isinstance(verdict, Full):
            raise Overloaded(
                f"The model {self._name} has {self.waiting} requests waiting for its {self._slots} slots.",
                retry_after_s=verdict.retry_after_s,
            )
        if isinstance(verdict, TooLate):
            raise DeadlineExceeded(
                f"The model {self._name} has {self.waiting} requests waiting, about {verdict.expected_s:.1f} s; "
                "the deadline of this request is shorter."
            )
        if verdict.delay_s:  # before it takes its place: a slot is never kept free for one who sleeps
            self._delayed += 1
            try:
                await asyncio.sleep(verdict.delay_s)
            finally:
                self._delayed -= 1
        if self.running < self._slots and not self._foreground and not self._background:
            self.running += 1
            return
        await self._wait(loop, self._background if background else self._foreground, deadline)

    async def _wait(
        self, loop: asyncio.AbstractEventLoop, queue: deque[asyncio.Future[None]], deadline: float | None
    ) -> None:
        ticket: asyncio.Future[None] = loop.create_future()
        queue.append(ticket)
        got_it = False
        try:
            async with asyncio.timeout_at(deadline):
                await ticket
            got_it = True
        except TimeoutError:
            raise DeadlineExceeded(
                f"The request waited for a slot of the model {self._name} until its deadline passed."
            ) from None
        finally:
            if not got_it:
                if ticket.done() and not ticket.cancelled():
                    self._leave()  # it was handed over in the moment it gave up
                elif ticket in queue:
                    queue.remove(ticket)

    def _leave(self) -> None:
        self.running -= 1
        self._hand_on()

    def _hand_on(self) -> None:
        while self.running < self._slots and (queue := self._foreground or self._background):
            ticket = queue.popleft()
            if not ticket.done():
                self.running += 1
                ticket.set_result(None)


class Turn:
    """A slot that one request holds."""

    __slots__ = ("_began", "_is_held", "_turns")

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._is_held = True
        self.begin()

    def begin(self) -> None:
        """The model is there; loading it says nothing about how long a request takes."""
        self._began = asyncio.get_running_loop().time()

    def end(self) -> None:
        """Hands the slot on. Any time, any number of times."""
        if self._is_held:
            self._is_held = False
            self._turns.served(asyncio.get_running_loop().time() - self._began)
