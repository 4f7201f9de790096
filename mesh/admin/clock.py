"""Hybrid logical clocks: near to wall time, and yet later than everything that was heard before.

Kulkarni, Demirbas, Madappa, Avva, Leone: Logical Physical Clocks and Consistent Snapshots in Globally Distributed
Databases (2014), figure 5. `ms` is their `l`, `count` their `c`. Clocks from others that are more than a minute ahead
of the own wall clock are refused, as they propose for machines whose time is off: one wrong clock must not win every
edit for years, nor pull the others' clocks along.
"""

from __future__ import annotations

from dataclasses import dataclass

AHEAD_MS_MAX = 60_000
"""Far more than clocks of machines that ask a time server are apart, far less than a person would not notice."""
MS_MAX = 2**53
COUNT_MAX = 2**16 - 1
"""Edits in one millisecond; the next one is dated a millisecond later."""


class RefusedClock(Exception):
    """A clock too far ahead of this machine's. `ahead_ms`: how far."""

    def __init__(self, ahead_ms: int) -> None:
        super().__init__(f"dated {ahead_ms / 1000:.0f} s ahead of this machine's clock")
        self.ahead_ms = ahead_ms


@dataclass(frozen=True, slots=True, order=True)
class Clock:
    """When something was written: ms since the epoch, and the order within one."""

    ms: int
    count: int

    def is_ahead(self, now_ms: int) -> bool:
        """True if a machine whose clock shows `now_ms` refuses it."""
        return self.ms > now_ms + AHEAD_MS_MAX


NEVER = Clock(0, 0)


class HybridClock:
    """The clock of one peer. `last` is the latest that it gave or heard."""

    def __init__(self, last: Clock = NEVER) -> None:
        self.last = last

    def tick(self, now_ms: int) -> Clock:
        """The time of something that happens here: later than all before it."""
        if now_ms > self.last.ms:
            self.last = Clock(now_ms, 0)
        elif self.last.count < COUNT_MAX:
            self.last = Clock(self.last.ms, self.last.count + 1)
        else:
            self.last = Clock(self.last.ms + 1, 0)
        return self.last

    def heard(self, clock: Clock, now_ms: int) -> None:
        """What happens here from now on is later than `clock`. Raises RefusedClock, and then nothing changed."""
        if clock.is_ahead(now_ms):
            raise RefusedClock(clock.ms - now_ms)
        self.last = max(self.last, clock)
