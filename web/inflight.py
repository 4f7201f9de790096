"""The requests that are running now, so that a stopping peer can let them end, and then end them.

Also how many bytes of bodies they hold that are still being read: thousands of connections could send 32 MiB each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

# A cancelled request writes one last event and frees its slot; anything slower is stuck.
CANCELLED_S_MAX = 2.0


class InFlight:
    """Owned by one listener; every request enters it for as long as its handler runs."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object]] = set()
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        self._is_stopping = False
        self.body_bytes = 0

    def __len__(self) -> int:
        return len(self._tasks)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Counts the current task as a running request."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._is_empty.clear()
        try:
            yield
        finally:
            self._tasks.discard(task)
            if not self._tasks:
                self._is_empty.set()

    def is_stopping(self, request: web.BaseRequest) -> bool:
        """True when running requests are being ended by `stop`, and the caller of this one still listens."""
        transport = request.transport
        return self._is_stopping and transport is not None and not transport.is_closing()

    def was_stopped(self, request: web.BaseRequest) -> bool:
        """Tells, in a handler that was cancelled, that it was by `stop` and the caller still listens.

        The cancellation is taken back then: the handler goes on, to say so to the caller.
        """
        if not self.is_stopping(request):
            return False
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        return True

    async def stop(self, drain_s: float) -> None:
        """Returns when all requests have ended: by themselves within `drain_s` seconds, cancelled after that."""
        if await self._emptied(drain_s):
            return
        self._is_stopping = True
        for task in tuple(self._tasks):
            task.cancel()
        await self._emptied(CANCELLED_S_MAX)

    async def _emptied(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._is_empty.wait()
        except TimeoutError:
            return False
        return True


IN_FLIGHT = web.AppKey("in_flight", InFlight)
OWN_IN_FLIGHT = web.RequestKey("in_flight", InFlight)
"""Set on a request whose application, the peer port's, counts none itself."""


def in_flight_of(request: web.Request) -> InFlight:
    """What counts `request`."""
    own = request.get(OWN_IN_FLIGHT)
    return request.app[IN_FLIGHT] if own is None else own
