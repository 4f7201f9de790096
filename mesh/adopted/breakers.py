"""Registered servers that failed a request here: ranked last, and looked at until they answer again. Pure.

One breaker for each server, on each peer: what one peer cannot reach another may. `gone` (refused, broke off, answered
nonsense or a fault of its own) opens it until a probe succeeds; beside it the server sits in the penalty box, whose
terms double, since one may answer every probe and fail every request.
"""

from __future__ import annotations

from collections.abc import Callable

from mesh.penalty import PenaltyBox

PAUSE_S_MIN = 1.0
PAUSE_S_MAX = 30.0


class Breakers:
    """Times are the loop's. `opened` is called when a probe is wanted now."""

    def __init__(self) -> None:
        self.opened: Callable[[], None] = lambda: None
        self._box = PenaltyBox()
        self._open: dict[str, _Open] = {}

    def failed(self, agent: str, how: str, now: float) -> None:
        """`how`: "gone", or "wedged" (took a request and made nothing)."""
        self._box.put(agent, now)
        if how == "gone" and agent not in self._open:
            self._open[agent] = _Open(now)
            self.opened()

    def proved(self, agent: str) -> None:
        """It served a request."""
        self._box.release(agent)
        self._open.pop(agent, None)

    def probed(self, agent: str, is_there: bool, now: float) -> None:
        """A probe ended."""
        if is_there:
            self._open.pop(agent, None)
        elif (breaker := self._open.get(agent)) is not None:
            breaker.wait(now)

    def due(self, now: float) -> list[str]:
        """Whom to probe now; each is not due again before `probed` said so."""
        found = [agent for agent, breaker in self._open.items() if now >= breaker.due_at]
        for agent in found:
            self._open[agent].due_at = float("inf")
        return found

    def is_open(self, agent: str) -> bool:
        return agent in self._open

    def is_penalized(self, agent: str, now: float) -> bool:
        return self._box.holds(agent, now)

    def forget(self, agent: str) -> None:
        """It is registered no more, or anew."""
        self.proved(agent)


class _Open:
    __slots__ = ("_pause_s", "due_at")

    def __init__(self, now: float) -> None:
        self.due_at = now
        self._pause_s = PAUSE_S_MIN

    def wait(self, now: float) -> None:
        self.due_at = now + self._pause_s
        self._pause_s = min(PAUSE_S_MAX, 2 * self._pause_s)
