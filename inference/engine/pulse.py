"""Tells a worker that computes from one that hangs, from outside. Pure: the time and what was seen come in.

A worker says nothing while it evaluates, and on a slow machine one evaluation of 512 tokens takes minutes: silence
alone means nothing. A thread of the worker that answered pings would prove no more than that this thread lives. What
a process that computes cannot hide is that it uses its processor, even while it waits for a slow disk. So it hangs when
it has requests and

    for STILL_S nothing was heard, and next to no processor time was used; or
    for SILENT_S nothing was heard, whatever it does.

Not here: the looking and the killing (inference.engine.client), and who goes on with its requests (mesh.dispatch).
"""

from __future__ import annotations

LOOK_EVERY_S = 5.0
# A GPU computes while its process waits; 512 tokens take it seconds, a minute where it is small and shared.
STILL_S = 120.0
# Whoever needs half an hour for 512 tokens is of no use, even if it should come to an end.
SILENT_S = 1800.0
# Less than this in STILL_S is what timers and signals cost, not a computation.
PROCESSOR_S = 0.1


class Pulse:
    """What was seen of one worker so far."""

    def __init__(self) -> None:
        self._looked_at = 0.0
        self._heard_at = 0.0
        self._processor_s = 0.0
        self._silent_s = 0.0
        self._still_s = 0.0

    def fault(self, now: float, *, is_busy: bool, heard_at: float, processor_s: float | None) -> str | None:
        """What is wrong with it, or None. Ask every LOOK_EVERY_S.

        `is_busy`: it has requests; `heard_at`: when it last sent anything; `processor_s`: what it has used in all, None
        when that cannot be known. A longer time between two looks counts as one: then it was this process that slept.
        """
        passed_s = min(now - self._looked_at, LOOK_EVERY_S)
        is_fine = not is_busy or heard_at != self._heard_at
        is_computing = processor_s is None or processor_s - self._processor_s >= PROCESSOR_S
        self._looked_at, self._heard_at = now, heard_at
        self._silent_s = 0.0 if is_fine else self._silent_s + passed_s
        if is_fine or is_computing:
            self._still_s, self._processor_s = 0.0, processor_s or 0.0
        else:
            self._still_s += passed_s
        if self._still_s >= STILL_S:
            return f"hung: it said and computed nothing for {STILL_S:g} s"
        if self._silent_s >= SILENT_S:
            return f"hung: it said nothing for {SILENT_S:g} s"
        return None
