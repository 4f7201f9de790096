"""Who runs next of one model: as many at a time as it has slots, the others in turn.

    first        requests that had a slot and lost it: their worker or their machine died
    foreground   one of each caller in turn (round-robin over fairness keys), each caller's own in order
    background   when nobody else waits, but at least every BACKGROUND_EVERY-th time

The shell around mesh.admission: it waits and hands slots on. The engine has a queue of its own; keeping it empty
means that one who leaves, or whose deadline passes, costs the engine nothing.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from inference.errors import DeadlineExceeded, HolderFull, Overloaded
from mesh.admission import Full, TooLate, admitted

# Weight of the newest request in the average time that a slot is held.
NEWEST_SHARE = 0.2
# Background work that waits gets every ninth slot at least: slow, but not for ever.
BACKGROUND_EVERY = 9

Ticket = asyncio.Future[None]


class Turns:
    """The slots of the model `name`."""

    def __init__(self, name: str, slots: int) -> None:
        self._name = name
        self._slots = slots
        self._delayed = 0
        self._resumed = _Line()
        self._foreground = _Line()
        self._background = _Line()
        self._passed_over = 0  # slots handed on since background work waits
        self._held: set[Turn] = set()
        self.running = 0
        self.service_s = 0.0

    @property
    def waiting(self) -> int:
        return self._delayed + len(self._resumed) + len(self._foreground) + len(self._background)

    @property
    def slots(self) -> int:
        return self._slots

    @slots.setter
    def slots(self, slots: int) -> None:
        """The engine says how many it has, once it is loaded."""
        self._slots = slots
        self._hand_on()

    @asynccontextmanager
    async def turn(
        self,
        *,
        background: bool = False,
        deadline: float | None = None,
        key: str = "",
        is_resumed: bool = False,
        may_wait: bool = True,
    ) -> AsyncGenerator[Turn, None]:
        """A slot, for as long as the block runs or until it is ended. `deadline`: the loop's clock.

        `key`: whose request it is. `is_resumed`: it had a slot before; it waits at the head, however long the queue is.
        Raises Overloaded (at once), HolderFull (at once, when it would have to wait and may not) or DeadlineExceeded.
        """
        await self._enter(asyncio.get_running_loop(), background, deadline, key, is_resumed, may_wait)
        turn = Turn(self)
        self._held.add(turn)
        try:
            yield turn
        finally:
            turn.end()

    def age_s(self) -> float:
        """How long those that hold a slot now have had it, on average; 0 when nobody has."""
        now = asyncio.get_running_loop().time()
        return sum(now - turn.began for turn in self._held) / len(self._held) if self._held else 0.0

    def served(self, turn: Turn, seconds: float) -> None:
        """A slot was held this long; then the next one gets it."""
        self._held.discard(turn)
        self.service_s += (seconds - self.service_s) * (NEWEST_SHARE if self.service_s else 1.0)
        self._leave()

    async def _enter(
        self,
        loop: asyncio.AbstractEventLoop,
        background: bool,
        deadline: float | None,
        key: str,
        is_resumed: bool,
        may_wait: bool,
    ) -> None:
        is_free = self.running < self._slots and not self.waiting
        if not is_free and not may_wait:
            raise HolderFull(f"The model {self._name} has {self.running} requests in its {self._slots} slots here.")
        if not is_resumed:
            await self._admit(loop, deadline)
        if self.running < self._slots and not (self._resumed or self._foreground or self._background):
            self.running += 1
            return
        line = self._resumed if is_resumed else self._background if background else self._foreground
        await self._wait(loop, line, key, deadline)

    async def _admit(self, loop: asyncio.AbstractEventLoop, deadline: float | None) -> None:
        """Lets it wait, perhaps after a delay, or raises."""
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

    async def _wait(self, loop: asyncio.AbstractEventLoop, line: _Line, key: str, deadline: float | None) -> None:
        ticket: Ticket = loop.create_future()
        line.add(key, ticket)
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
                else:
                    line.remove(key, ticket)

    def _leave(self) -> None:
        self.running -= 1
        self._hand_on()

    def _hand_on(self) -> None:
        while self.running < self._slots and (line := self._next_line()):
            ticket = line.next()
            if not ticket.done():
                self.running += 1
                ticket.set_result(None)

    def _next_line(self) -> _Line:
        """Where the next one comes from; an empty one when nobody waits."""
        if not self._background:
            self._passed_over = 0
        elif self._passed_over >= BACKGROUND_EVERY - 1 or not (self._resumed or self._foreground):
            self._passed_over = 0
            return self._background
        else:
            self._passed_over += 1
        return self._resumed or self._foreground


class _Line:
    """Those who wait, a queue for each key; the keys take turns."""

    def __init__(self) -> None:
        self._queues: OrderedDict[str, deque[Ticket]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __bool__(self) -> bool:
        return bool(self._queues)

    def add(self, key: str, ticket: Ticket) -> None:
        self._queues.setdefault(key, deque()).append(ticket)

    def next(self) -> Ticket:
        key, queue = self._queues.popitem(last=False)
        ticket = queue.popleft()
        if queue:
            self._queues[key] = queue  # behind all others
        return ticket

    def remove(self, key: str, ticket: Ticket) -> None:
        """Takes it out, if it is there."""
        queue = self._queues.get(key)
        if queue is not None and ticket in queue:
            queue.remove(ticket)
            if not queue:
                del self._queues[key]


class Turn:
    """A slot that one request holds."""

    __slots__ = ("_is_held", "_turns", "began")

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._is_held = True
        self.begin()

    def begin(self) -> None:
        """The model is there; loading it says nothing about how long a request takes."""
        self.began = asyncio.get_running_loop().time()

    def end(self) -> None:
        """Hands the slot on. Any time, any number of times."""
        if self._is_held:
            self._is_held = False
            self._turns.served(self, asyncio.get_running_loop().time() - self.began)
