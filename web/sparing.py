"""Writing down what anybody may cause, without letting anybody fill the disk by it: so many in a time, then a count."""

from __future__ import annotations

import asyncio


class Sparing:
    """How many were written down lately, and how many were not."""

    def __init__(self) -> None:
        self._since = 0.0
        self._noted = 0
        self._missed = 0

    def may_note(self, count_max: int, window_s: float) -> int:
        """0: not this one; else how many this note stands for. At most `count_max` are noted in `window_s` seconds."""
        now = asyncio.get_running_loop().time()
        if now - self._since >= window_s:
            self._since, self._noted = now, 0
        self._missed += 1
        if self._noted >= count_max:
            return 0
        self._noted += 1
        missed, self._missed = self._missed, 0
        return missed
