"""How long a suspect has to refute: long at first, shorter with every member that suspects it independently.

Source: Lifeguard (arXiv 1707.00788) section 4.2, memberlist suspicion.go.
"""

from __future__ import annotations

import math

from gossip.config import GossipConfig


class Suspicion:
    """One suspicion, of one (run, incarnation) of one member. `members`: how many are alive, this peer included."""

    __slots__ = ("_from", "_longest_s", "_shortest_s", "_since", "_wanted")

    def __init__(self, *, config: GossipConfig, members: int, source: str, now: float) -> None:
        self._since = now
        self._from = {source}
        # the suspect and the first to suspect it cannot confirm
        self._wanted = max(0, min(config.confirmations, members - 2))
        self._shortest_s = config.suspicion_mult * max(1.0, math.log10(max(1, members))) * config.probe_interval_s
        self._longest_s = self._shortest_s * config.suspicion_max_mult

    def confirm(self, source: str) -> bool:
        """True if this is news that others should hear: another source, and not enough of them yet."""
        if source in self._from or len(self._from) > self._wanted:
            return False
        self._from.add(source)
        return True

    @property
    def expires_at(self) -> float:
        """since + max(shortest, longest - (longest - shortest) * log(c + 1) / log(k + 1)), c confirmations of k."""
        if self._wanted == 0:
            return self._since + self._shortest_s
        share = math.log(len(self._from)) / math.log(self._wanted + 1)
        return self._since + max(self._shortest_s, self._longest_s - (self._longest_s - self._shortest_s) * share)

    def defer(self, seconds: float) -> None:
        """This peer was stalled: the time does not count."""
        self._since += seconds
