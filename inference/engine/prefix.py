"""Which sequence a prompt should use, so that as little as possible is evaluated again; what is worth keeping. Pure.

Every sequence remembers the tokens whose KV it holds, while it runs and after (parked). A prompt may extend an
idle sequence in place, or share the cells of any sequence (with a unified KV cache, sharing copies nothing).

Parked prefixes are not free: attention looks at the mask of every cell that is in use. How many tokens may stay
parked therefore follows from what prompts turn out to have in common (`Parking`). Measured: 3,000 cells held for nobody
made a 0.5B model's prompts a tenth slower on two cores.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence as List
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]

_BLOCK = 4096  # compared at a time: some microseconds


PARKED_TOKENS_MIN = 1024
"""Tokens that may always stay parked: a short chat's next turn finds them."""

WORTH_KEEPING = 64
"""Fewer tokens in common than this (a template's opening) say nothing about whether prompts come back."""

GHOSTS = 32


@dataclass(slots=True, kw_only=True)
class Sequence:
    """A llama.cpp sequence: its id, the tokens it holds, whether a request uses it, when it was last used."""

    id: int
    tokens: array[int]
    busy: bool = False
    last_used: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Use sequence `id`, with the first `keep` tokens of the prompt already in it.

    `donor` None: they are its own. Otherwise they are shared from that sequence, and what `id` held goes.
    """

    id: int
    keep: int
    donor: int | None = None


def common_prefix(a: Tokens, b: Tokens | array[int]) -> int:
    """How many tokens `a` and `b` have in common at the start. Costs as much as that, not as much as they are long."""
    n = min(len(a), len(b))
    if n == 0 or a[0] != b[0]:
        return 0
    other = np.frombuffer(b, np.int32, n) if isinstance(b, array) else b
    for start in range(0, n, _BLOCK):
        end = min(start + _BLOCK, n)
        different = np.flatnonzero(a[start:end] != other[start:end])
        if different.size:
            return start + int(different[0])
    return n


def placed(prompt: Tokens, sequences: List[Sequence], *, can_rewind: bool) -> Placement:
    """The best place for `prompt`; at least one sequence must be idle.

    At most len(prompt) - 1 tokens are kept: the last one must be evaluated to have its logits. An idle sequence
    is extended in place only if that keeps half of what it holds: else a long parked prefix would be lost to
    every short request that begins alike. Models that cannot rewind (recurrent, hybrid) only ever extend a
    sequence that is wholly a prefix of the prompt.
    """
    limit = len(prompt) - 1
    idle = [s for s in sequences if not s.busy]
    oldest = min(idle, key=lambda s: (len(s.tokens) > 0, s.last_used))
    kept = {s.id: min(common_prefix(prompt, s.tokens), limit) for s in sequences}
    if not can_rewind:
        whole = [s for s in idle if s.tokens and kept[s.id] == len(s.tokens)]
        best = max(whole, key=lambda s: len(s.tokens), default=None)
        return Placement(id=best.id, keep=len(best.tokens)) if best else Placement(id=oldest.id, keep=0)
    best = max(idle, key=lambda s: (kept[s.id], -len(s.tokens), -s.last_used))
    target = best if kept[best.id] * 2 >= len(best.tokens) else oldest
    donor = max(sequences, key=lambda s: kept[s.id])
    if donor is not target and kept[donor.id] > kept[target.id]:
        return Placement(id=target.id, keep=kept[donor.id], donor=donor.id)
    return Placement(id=target.id, keep=kept[target.id])


class Parking:
    """How many tokens may stay parked: few, until prompts come back to what had to go; up to all cells then.

    What was given up is remembered for a while as bare tokens (the idea of ARC's ghost lists, Megiddo and Modha 2003):
    a prompt that would have found its prefix there makes the budget grow, one that finds nothing makes it shrink.
    """

    def __init__(self, ceiling: int) -> None:
        """`ceiling`: the number of KV cells."""
        self._floor, self._ceiling = min(PARKED_TOKENS_MIN, ceiling), ceiling
        self._ghosts: deque[array[int]] = deque(maxlen=GHOSTS)
        self.budget = min(2 * PARKED_TOKENS_MIN, ceiling)

    def admitted(self, prompt: Tokens, keep: int) -> None:
        """A prompt was placed and found `keep` of its tokens."""
        missed = max((common_prefix(prompt, ghost) for ghost in self._ghosts), default=0) - keep
        if missed >= WORTH_KEEPING:
            self.budget = min(self._ceiling, self.budget + max(self.budget, missed))
        elif keep < WORTH_KEEPING:
            self.budget = max(self._floor, self.budget - self.budget // 16)

    def given_up(self, tokens: array[int]) -> None:
        """A parked prefix had to go."""
        self._ghosts.append(tokens)

    def surplus(self, sequences: List[Sequence]) -> list[Sequence]:
        """The parked sequences to give up now, least recently used first; never the newest, however long."""
        parked = sorted((s for s in sequences if not s.busy and s.tokens), key=lambda s: s.last_used)
        over = sum(len(s.tokens) for s in parked) - self.budget
        out = []
        for sequence in parked[:-1]:
            if over <= 0:
                break
            out.append(sequence)
            over -= len(sequence.tokens)
        return out
