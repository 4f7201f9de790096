"""How many threads to compute with, found by trying while it runs. Pure.

Threads meet at a barrier hundreds of times a token. When another program takes one of their cores, all wait for the
one that has none: measured on two cores, two threads fell from 70 tokens/s to 2 beside one busy process, where one
thread made 45. So when steps become slow, fewer threads are tried, and the fastest number is kept; from time to time
all of them get another chance. OpenMP's wait policy stays at its default, a long spin: shorter ones cost 5 to 15 % of a
quiet machine's tokens and save little where threads are few enough (docs/performance.md).
"""

from __future__ import annotations

import statistics

SLOW = 2.5
"""A step that takes this many times the best known may be waiting for a core; less is a machine's ordinary noise."""

SLOW_STEPS = 4
VERY_SLOW = 8.0  # such a step counts twice: seconds are being lost
SAMPLES = 3  # steps timed for each candidate, after one that is not counted
GAIN = 0.9  # fewer threads must take less than this share of the time to be worth it
AGAIN_S, AGAIN_MAX_S = 5.0, 60.0
HOPELESS = 2.0  # a candidate whose step takes this many times the one in use is given up at once
DRIFT = 1.01  # the best time is forgotten slowly: contexts grow, clocks change


class ThreadTuner:
    """`threads` is the number to use for the next step."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._all = threads
        self._best: dict[int, float] = {}
        self._slow = 0
        self._again_at = 0.0
        self._again_s = AGAIN_S
        self._candidates: list[int] = []
        self._results: dict[int, float] = {}
        self._samples: list[float] = []
        self._rows = 0
        self._in_use_s = 0.0  # what a step took with the number in use, when it was chosen; 0: not known

    def decoded(self, rows: int, seconds: float, now: float) -> None:
        """A step made one token for each of `rows` requests and evaluated no prompt; it took `seconds`."""
        if self._all == 1:
            return
        if self._candidates:
            self._probed(rows, seconds, now)
        elif self.threads < self._all:
            if now >= self._again_at:
                self._probe(rows)
        else:
            best = min(self._best.get(rows, seconds) * DRIFT, seconds)
            self._best[rows] = best
            step = 2 if seconds > VERY_SLOW * best else 1
            self._slow = self._slow + step if seconds > SLOW * best else 0
            if self._slow >= SLOW_STEPS:
                self._probe(rows)

    def _probe(self, rows: int) -> None:
        """Try all threads, one fewer, half of them, one."""
        if rows != self._rows:
            self._in_use_s = 0.0
        self._slow, self._rows = 0, rows
        self._candidates = sorted({self._all, self._all - 1, self._all // 2, 1} - {0}, reverse=True)
        self._results, self._samples = {}, []
        self.threads = self._candidates[0]

    def _probed(self, rows: int, seconds: float, now: float) -> None:
        if rows != self._rows:  # times of different work cannot be compared
            self._probe(rows)
            return
        self._samples.append(seconds)
        best = self._best.get(rows, 0.0)
        is_hopeless = self._in_use_s > 0.0 and seconds > HOPELESS * self._in_use_s
        still_slow = self.threads == self._all and len(self._samples) == 2 and min(self._samples) > SLOW * best > 0.0
        if not (is_hopeless or still_slow or len(self._samples) > SAMPLES):
            return
        self._results[self.threads] = seconds if is_hopeless else statistics.median(self._samples[1:])
        self._samples = []
        if not self._in_use_s and self._results[self._all] <= SLOW * best:
            self._candidates = []  # it has passed: nothing is tried
            return
        left = [c for c in self._candidates if c not in self._results]
        if left:
            self.threads = left[0]
            return
        self._candidates = []
        self._settle(now)

    def _settle(self, now: float) -> None:
        choice = self._all
        for threads in sorted(self._results, reverse=True):
            if self._results[threads] < GAIN * self._results[choice]:
                choice = threads
        self.threads = choice
        if choice == self._all:
            self._best[self._rows] = self._results[choice]
            self._again_s, self._in_use_s = AGAIN_S, 0.0
        else:
            self._in_use_s = self._results[choice]
            self._again_at = now + self._again_s
            self._again_s = min(AGAIN_MAX_S, self._again_s * 2)
