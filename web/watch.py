"""Ends running requests of a key or a login that was revoked: at once when that is known, else within LOOK_S.

A stream lives longer than the answer to who may begin one. Nothing is remembered of who was let in; it is asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aiohttp import web

from web.errors import HttpRefusal
from web.inflight import InFlight
from web.services import Caller

LOOK_S = 0.5
"""A key may be revoked, or expire, without anybody saying so; two seconds are promised."""


@dataclass(frozen=True, slots=True)
class Recheck:
    """Asked of a request: whether its caller was revoked since the guards let it in."""

    is_revoked: Callable[[], bool]


RECHECK = web.RequestKey("recheck", Recheck)
"""Not there when the caller showed no secret."""


def check_not_revoked(request: web.BaseRequest) -> None:
    """To be asked when a body has arrived, with which a client may take its time. Raises HttpRefusal 401."""
    recheck = request.get(RECHECK)
    if recheck is not None and recheck.is_revoked():
        raise HttpRefusal(401, "That key or login was revoked while it was used.", code="invalid_api_key")


class Watch:
    """Of one listener. `revoked` is asked about each caller while its request runs."""

    def __init__(self, in_flight: InFlight, revoked: Callable[[Caller], bool]) -> None:
        self._in_flight = in_flight
        self._revoked = revoked
        self._watched: dict[asyncio.Task[object], Caller] = {}
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def watching(self, caller: Caller) -> Iterator[None]:
        """The current task serves this caller, until the block ends."""
        task = asyncio.current_task()
        assert task is not None
        self._watched[task] = caller
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look_again)
        try:
            yield
        finally:
            self._watched.pop(task, None)

    def look(self) -> None:
        """Asks about each of them now; about two requests of one key once."""
        answers: dict[tuple[str | None, str | None], bool] = {}
        for task, caller in list(self._watched.items()):
            who = (caller.key_id, caller.session_id)
            if who not in answers:
                answers[who] = self._revoked(caller)
            if answers[who]:
                self._in_flight.cut(
                    task, HttpRefusal(401, "That key or login was revoked while it was used.", code="invalid_api_key")
                )

    def _look_again(self) -> None:
        self._timer = None
        self.look()
        if self._watched:
            self._timer = asyncio.get_running_loop().call_later(LOOK_S, self._look_again)
