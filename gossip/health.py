"""Lifeguard's local health: how much this peer should doubt itself before it doubts others.

Source: Lifeguard (arXiv 1707.00788) section 4.1, memberlist awareness.go.
"""

from __future__ import annotations


class Health:
    """0 is well; probe intervals and timeouts are stretched by `scale`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.value = 0

    @property
    def scale(self) -> int:
        return self.value + 1

    def better(self) -> None:
        self.value = max(0, self.value - 1)

    def worse(self, by: int = 1) -> None:
        self.value = min(self._most, self.value + by)
