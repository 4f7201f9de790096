"""A token bucket of bytes: what may wait asks `has`, what may not is charged anyway and makes the rest wait longer."""

from __future__ import annotations

# In bursts.
DEBT_MAX = 4


class Bucket:
    """`rate` tokens a second, at most `burst` saved up; debt is bounded too, so that a storm passes."""

    def __init__(self, *, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._at = burst, now

    def has(self, now: float) -> float:
        if now > self._at:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now
        return self._tokens

    def charge(self, amount: float) -> None:
        self._tokens = max(-DEBT_MAX * self._burst, self._tokens - amount)
