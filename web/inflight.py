"""The requests that are running now, so that a stopping peer can let them end, and then end them; and one that must
end because its key was revoked.

Also how many bytes of bodies they hold that are still being read: thousands of connections could send 32 MiB each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from inference.errors import InferenceError, ModelUnavailable

# A cancelled request writes one last event and frees its slot; anything slower is stuck.
CANCELLED_S_MAX = 2.0


class InFlight:
    """Owned by one listener; every request enters it for as long as its handler runs."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object]] = set()
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        self._is_stopping = False
        self._cut: dict[asyncio.Task[object], InferenceError] = {}
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
            self._cut.pop(task, None)
            if not self._tasks:
                self._is_empty.set()

    def cut(self, task: asyncio.Task[object], why: InferenceError) -> None:
        """Ends one running request; its caller is told why."""
        if task in self._tasks and task not in self._cut:
            self._cut[task] = why
            task.cancel()

    def why_stopped(self, request: web.BaseRequest) -> InferenceError | None:
        """What to tell the caller of the current request, if it is being ended by `stop` or `cut` and still listens."""
        transport, task = request.transport, asyncio.current_task()
        if transport is None or transport.is_closing() or task is None:
            return None
        stopping = ModelUnavailable("This peer is stopping; try again.") if self._is_stopping else None
        return self._cut.get(task, stopping)

    def is_stopping(self, request: web.BaseRequest) -> bool:
        """True when the current request is being ended by `stop` or `cut`, and its caller still listens."""
        return self.why_stopped(request) is not None

    def was_stopped(self, request: web.BaseRequest) -> bool:
        """Tells, in a handler that was cancelled, that it was by `stop` or `cut` and the caller still listens.

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
