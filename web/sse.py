"""A response of server-sent events that is never silent for long.

Whoever fills it sends bytes; a task beside it sends a comment line when nothing was sent for `heartbeat_s`, and opens
the response for that if it must: until then an error can still be a real HTTP status. Wire format: the HTML standard,
"Server-sent events".
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType

from aiohttp import web

_WAITING = b": waiting\n\n"


class EventStream:
    """Use as `async with`; `is_open` tells whether headers are out."""

    def __init__(self, request: web.BaseRequest, heartbeat_s: float) -> None:
        self._request = request
        self._heartbeat_s = heartbeat_s
        self._opening = asyncio.Lock()
        self._sent_at = asyncio.get_running_loop().time()
        self._pulse: asyncio.Task[None] | None = None
        self.response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",  # nginx would hold the events back
            }
        )

    @property
    def is_open(self) -> bool:
        return self.response.prepared

    async def open(self, headers: Mapping[str, str] | None = None) -> None:
        """Sends the headers with the next bytes, once; later calls do nothing."""
        async with self._opening:
            if not self.response.prepared:
                self.response.headers.update(headers or {})
                await self.response.prepare(self._request)

    async def send(self, data: bytes) -> None:
        """Writes `data` at once, as one piece."""
        self._sent_at = asyncio.get_running_loop().time()
        await self.response.write(data)

    async def end(self, data: bytes) -> None:
        """Writes `data` and the end of the response as one piece, so that who reads it knows at once that it is all."""
        await self.open()
        await self.hush()
        await self.response.write_eof(data)

    async def __aenter__(self) -> EventStream:
        self._pulse = asyncio.create_task(self._beat())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.hush()

    async def hush(self) -> None:
        """Ends the heartbeat; `is_open` does not change by itself after this."""
        if self._pulse is not None:
            self._pulse.cancel()
            await asyncio.wait({self._pulse})
            self._pulse = None

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            silent_s = loop.time() - self._sent_at
            if silent_s < self._heartbeat_s:
                await asyncio.sleep(self._heartbeat_s - silent_s)
                continue
            try:
                await self.open()
                await self.send(_WAITING)
            except ConnectionError:
                return  # the handler of the request is being cancelled
