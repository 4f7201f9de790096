"""Whether one more request may wait for a model: a pure decision.

    waiting, of 4 x slots      answer
    under 50 %                 accepted
    50 to 80 %                 accepted, slowed by 10 to 100 ms, linear
    above 80 %                 refused at once, with Retry-After

A caller whose own deadline is shorter than the expected wait is told so at once. Not here: the waiting (mesh.turns).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

QUEUE_PER_SLOT = 4
SLOW_FROM = 0.5
FULL_FROM = 0.8
DELAY_S_MIN = 0.010
DELAY_S_MAX = 0.100
# The estimate is coarse; nobody should be sent away for longer than it is good for.
RETRY_AFTER_S_MAX = 60


@dataclass(frozen=True, slots=True)
class Accept:
    """It may wait, after `delay_s`."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Full:
    """The queue is too long."""

    retry_after_s: int


@dataclass(frozen=True, slots=True)
class TooLate:
    """It would not get a slot before its deadline."""

    expected_s: float


def admitted(
    *, running: int, waiting: int, slots: int, service_s: float, deadline_s: float | None
) -> Accept | Full | TooLate:
    """What one more request is told.

    `waiting` without it; `service_s`: how long a slot is held on average (0: not known yet); `deadline_s` from now.
    """
    expected_s = 0.0 if running + waiting < slots else (waiting + 1) / slots * service_s
    share = waiting / (QUEUE_PER_SLOT * slots)
    if share > FULL_FROM:
        return Full(min(RETRY_AFTER_S_MAX, max(1, math.ceil(expected_s))))
    if deadline_s is not None and deadline_s <= expected_s:
        return TooLate(expected_s)
    if share < SLOW_FROM:
        return Accept(0.0)
    return Accept(DELAY_S_MIN + (share - SLOW_FROM) / (FULL_FROM - SLOW_FROM) * (DELAY_S_MAX - DELAY_S_MIN))
