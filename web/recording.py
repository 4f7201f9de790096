"""What history is told of a request for tokens: that it was admitted, who made its answer, and how it ended, once.

A request whose body could be parsed leaves one record, also when no such model exists. It ends before its last byte is
sent (the last chunk of a stream, an error event, the whole answer), so that what a client got is on record. A client
that left, an answer that failed and a peer that stopped are told apart.

Not here: what is kept of it, and where (services.history).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from inference.chat import Chunk, Started, Usage
from inference.errors import InferenceError
from web.border import STATUS_CLIENT_LEFT
from web.inflight import in_flight_of
from web.services import Asked, HistoryFacet, Outcome, Record


class Recorded:
    """The record of one request, or of none. It ends once; whatever is said after that changes nothing."""

    def __init__(self, record: Record | None) -> None:
        self._record = record
        self._started: Started | None = None
        self._tokens = 0
        self._usage: Usage | None = None
        self._has_token = self._is_ended = False

    def started(self, started: Started) -> None:
        """A peer makes the answer, or goes on with it."""
        self._started = started
        if self._record is not None:
            self._record.started(started)

    def saw(self, chunk: Chunk) -> None:
        """A piece of the answer came."""
        if chunk.started is not None:
            self.started(chunk.started)
        self._tokens += len(chunk.tokens)
        self._usage = chunk.usage or self._usage
        if not self._has_token and (chunk.tokens or chunk.text):
            self._has_token = True
            if self._record is not None:
                self._record.first_token()

    async def succeeded(self, body: Mapping[str, Any] | None, usage: Usage) -> None:
        """The answer is complete: `body`, or vectors, of which nothing is kept."""
        await self._ended(Outcome(status="success", http_status=200, body=body, usage=usage))

    async def failed(self, error: InferenceError, http_status: int | None = None) -> None:
        """The caller is told `error`; `http_status` is what it got, if that was said before."""
        status = error.status if http_status is None else http_status
        await self._ended(
            Outcome(status="error", http_status=status, message=error.message, code=error.code, usage=self._so_far)
        )

    async def left(self) -> None:
        """The client went before the answer was complete."""
        message = "The client left before the answer was complete."
        await self._ended(
            Outcome(status="cancelled", http_status=STATUS_CLIENT_LEFT, message=message, usage=self._so_far)
        )

    async def _ended(self, outcome: Outcome) -> None:
        if self._record is not None and not self._is_ended:
            self._is_ended = True
            await self._record.ended(outcome)

    @property
    def _so_far(self) -> Usage | None:
        """The tokens of an answer that is not complete."""
        if self._usage is not None or self._started is None:
            return self._usage
        return Usage(
            prompt_tokens=self._started.prompt_tokens,
            completion_tokens=self._tokens,
            cached_tokens=self._started.cached_tokens,
        )


@asynccontextmanager
async def recorded(request: web.Request, history: HistoryFacet | None, asked: Asked) -> AsyncIterator[Recorded]:
    """The record of `asked` while the block answers it; it ends by what leaves the block, unless it has ended."""
    record = Recorded(history.begin(asked) if history is not None else None)
    try:
        yield record
    except InferenceError as error:
        await record.failed(error)
        raise
    except asyncio.CancelledError:
        why = in_flight_of(request).why_stopped(request)
        await (record.left() if why is None else record.failed(why))
        raise
    except ConnectionError:
        await record.left()
        raise
    except BaseException as error:
        message = f"Something went wrong inside this peer ({type(error).__name__})."
        await record.failed(InferenceError(message, code="internal_error"))
        raise
