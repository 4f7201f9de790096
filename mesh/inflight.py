"""This peer's own requests at other peers: what their last report does not tell yet. Pure.

A report counts what runs at the holder when it is made. Requests sent since come on top; those that it counted and that
have ended since go off. Each is given back in a `finally`, and whatever is forgotten is reaped by its deadline: leaked
counters have turned healthy peers into full ones in every router that had them.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass

ENDED_MAX = 1000
"""Of one holder and model, since its last report; older ones are reported by then."""
REAP_S = 4 * 3600.0
"""For a request without a deadline; no answer takes this long."""

_Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class _Request:
    key: _Key
    began: float
    reap_at: float


class InFlight:
    """The ledger. Times are the loop's."""

    def __init__(self) -> None:
        self._running: dict[int, _Request] = {}
        self._of: dict[_Key, set[int]] = {}
        self._ended: dict[_Key, deque[tuple[float, float]]] = {}  # (began, ended)
        self._tickets = itertools.count(1)

    def begin(self, peer: str, model: str, now: float, deadline: float | None = None) -> int:
        """A request was sent; the ticket is for `end`."""
        ticket = next(self._tickets)
        key = (peer, model)
        self._reap(now)
        self._running[ticket] = _Request(key, now, now + REAP_S if deadline is None else deadline)
        self._of.setdefault(key, set()).add(ticket)
        return ticket

    def end(self, ticket: int, now: float) -> None:
        """It is over, however. Twice does no harm."""
        request = self._running.pop(ticket, None)
        if request is not None:
            self._of[request.key].discard(ticket)
            self._ended.setdefault(request.key, deque(maxlen=ENDED_MAX)).append((request.began, now))

    def unreported(self, peer: str, model: str, reported_at: float) -> int:
        """What to add to the count in a report that came at `reported_at`; negative when more ended than began."""
        key = (peer, model)
        count = sum(self._running[ticket].began > reported_at for ticket in self._of.get(key, ()))
        ended = self._ended.get(key)
        while ended and ended[0][1] <= reported_at:
            ended.popleft()
        return count - sum(began <= reported_at for began, _ in ended or ())

    def running(self, peer: str | None = None) -> int:
        """Requests that have not ended: at one peer, or at all."""
        if peer is None:
            return len(self._running)
        return sum(len(tickets) for (there, _), tickets in self._of.items() if there == peer)

    def _reap(self, now: float) -> None:
        """Once a request there are few enough to look at the oldest only: tickets are in the order of `began`."""
        for ticket in list(itertools.islice(self._running, 16)):
            request = self._running[ticket]
            if now > request.reap_at:
                self.end(ticket, now)
