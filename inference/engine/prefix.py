"""Which sequence a prompt should use, so that as little as possible is evaluated again; what leaves the cache. Pure.

Every sequence remembers the tokens whose KV it holds, while it runs and after (parked). A prompt may extend an
idle sequence in place, or share the cells of any sequence (with a unified KV cache, sharing copies nothing).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as List
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]

_BLOCK = 4096  # compared at a time: some microseconds


PARKED_TOKENS_MAX = 1024
"""Tokens that may stay parked beside the newest sequence; the rest goes to the shelf (inference.engine.shelf)."""


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


def surplus(sequences: List[Sequence]) -> list[Sequence]:
    """The parked sequences that should leave the cache, least recently used first; never the newest, however long."""
    parked = sorted((s for s in sequences if not s.busy and s.tokens), key=lambda s: s.last_used)
    over = sum(len(s.tokens) for s in parked) - PARKED_TOKENS_MAX
    out = []
    for sequence in parked[:-1]:
        if over <= 0:
            break
        out.append(sequence)
        over -= len(sequence.tokens)
    return out
