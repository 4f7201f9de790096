"""Peers that took a request and did nothing with it: ranked last until one of them proves itself. Pure.

A term ends by itself, and doubles each time, so that a wedged peer costs one request now and then and a healed one is
found again.
"""

from __future__ import annotations

TERM_S = 10.0
TERM_S_MAX = 600.0


class PenaltyBox:
    """Who sits in it, and until when."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._terms: dict[str, int] = {}

    def put(self, peer: str, now: float) -> None:
        """`peer` wedged."""
        terms = self._terms.get(peer, 0)
        if now >= self._until.get(peer, 0.0):  # several requests that wedge at once are one fault
            self._terms[peer] = terms = terms + 1
            self._until[peer] = now + min(TERM_S_MAX, TERM_S * 2 ** (terms - 1))

    def release(self, peer: str) -> None:
        """`peer` proved itself."""
        self._until.pop(peer, None)
        self._terms.pop(peer, None)

    def holds(self, peer: str, now: float) -> bool:
        return now < self._until.get(peer, 0.0)
