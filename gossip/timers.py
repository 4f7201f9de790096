"""A heap of things to do later: pure, so it says when it wants to run and is told what time it is."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from typing import Any


class Timers:
    """Callbacks by due time; each is called with its arguments and `now`. One that is no longer wanted does nothing."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._tie = 0

    def at(self, due: float, call: Callable[..., None], *arguments: Any) -> None:
        self._tie += 1
        heapq.heappush(self._heap, (due, self._tie, call, arguments))

    @property
    def next_due(self) -> float:
        return self._heap[0][0] if self._heap else math.inf

    def run(self, now: float) -> None:
        """Everything due, in order. What a callback schedules for now or earlier runs too."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            _, _, call, arguments = heapq.heappop(heap)
            call(*arguments, now)

    def shift(self, seconds: float) -> None:
        """Everything this much later: the process was stalled, and nobody could have answered it meanwhile."""
        self._heap = [(due + seconds, tie, call, arguments) for due, tie, call, arguments in self._heap]
