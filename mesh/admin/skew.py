"""How far this machine's clock is from the other members', by what they said last. Pure.

The admin map refuses rows that are dated more than a minute ahead (mesh.admin.clock). So a machine whose clock is ahead
is told before it writes what the others would refuse, and people read on each side whose clock it is.
"""

from __future__ import annotations

from collections.abc import Container
from statistics import median_low

from gossip.identity import PeerId
from mesh.admin.clock import AHEAD_MS_MAX, MS_MAX

RECENT_S = 600.0
PEERS_MAX = 256
"""Remembered; the latest. A median needs no more."""


class Skew:
    """`now_s` is monotonic, `now_ms` this machine's wall clock: setting it shows at once."""

    def __init__(self) -> None:
        self._heard: dict[PeerId, tuple[int, float]] = {}

    def heard(self, peer: PeerId, their_ms: int, now_s: float) -> None:
        """The clock of `peer` shows this, now. What no clock shows was not heard."""
        if their_ms > MS_MAX:
            return
        self._heard.pop(peer, None)
        self._heard[peer] = their_ms, now_s
        if len(self._heard) > PEERS_MAX:
            del self._heard[next(iter(self._heard))]

    def keep(self, peers: Container[PeerId]) -> None:
        """Who is not among these has no say any more."""
        self._heard = {peer: heard for peer, heard in self._heard.items() if peer in peers}

    def leads_ms(self, now_ms: int, now_s: float) -> dict[PeerId, int]:
        """By how much this clock is ahead of each of those heard lately; negative: behind."""
        return {
            peer: now_ms - their_ms - round((now_s - at) * 1000)
            for peer, (their_ms, at) in self._heard.items()
            if now_s - at <= RECENT_S
        }

    def lead_ms(self, now_ms: int, now_s: float) -> int | None:
        """By how much it is ahead of most of them; None when nobody was heard lately."""
        leads = self.leads_ms(now_ms, now_s)
        return median_low(leads.values()) if leads else None

    def is_refused(self, now_ms: int, now_s: float) -> bool:
        """True if at least half of the others refuse what this machine dates now."""
        leads = self.leads_ms(now_ms, now_s).values()
        return bool(leads) and 2 * sum(lead > AHEAD_MS_MAX for lead in leads) >= len(leads)

    def others_ms(self, now_ms: int, now_s: float) -> int:
        """What the others' clocks show; the own one when nobody was heard."""
        return now_ms - (self.lead_ms(now_ms, now_s) or 0)
