"""Choosing the next token from a row of logits. Pure numpy: no native sampler, no global random.

Two things llama.cpp's sampler chains cannot do led to this. Random numbers are **counted**, not streamed: draw i
of a request is a function of (seed, i), so another machine that continues an answer after k tokens needs only
the seed and a number, not the state of a generator. And the work follows the shortlist, not the vocabulary: a
row of 152,000 logits is passed over two or three times with vector instructions, never sorted or copied whole.

The order of the filters is llama.cpp's, for which model cards recommend their values:

    bias -> penalties -> top_k -> top_p -> min_p -> temperature -> draw

    repeat penalty r, over the last n tokens of prompt and answer:  l > 0: l / r, else l * r
    frequency f and presence p, over the answer (as OpenAI):        l - count * f - (count > 0) * p
    top_p: the fewest tokens, likeliest first, whose probabilities (among the top_k) sum to at least top_p
    min_p: tokens at least min_p times as likely as the likeliest
    then softmax(l / temperature) over what is left, inverted at u(seed, draw)

Temperature 0 is argmax after bias and penalties and uses no draw.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from inference.chat import Sampling

Row = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

_MASK = (1 << 64) - 1
_BLOCK = 1024
# How far under the likeliest logit the shortlist begins to be looked for; doubled until it suffices. Tokens
# 12 below are e^-12 = 6e-6 as likely, so one pass nearly always does.
_DEPTH = 12.0


class NotFinite(ArithmeticError):
    """The model computed no usable logits (NaN or infinity): a broken file, or a broken build."""


def uniform(seed: int, draw: int) -> float:
    """Random number `draw` (0, 1, ...) of `seed`, in [0, 1), 53 bits: splitmix64 (Steele, Lea, Flood 2014)."""
    z = (seed * 0x9E3779B97F4A7C15 + (draw + 1) * 0xD1342543DE82EF95) & _MASK
    for _ in range(2):
        z = (z + 0x9E3779B97F4A7C15) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        z ^= z >> 31
    return (z >> 11) / (1 << 53)


class Sampler:
    """The state of one request's sampling: its counts, its history, its number of draws."""

    def __init__(self, sampling: Sampling, *, prompt: Iterable[int] = (), draws: int = 0) -> None:
        """`prompt` is the history the repeat penalty sees; `draws` were made before (a continuation)."""
        self.draws = draws
        self._s = sampling
        self._seed = sampling.seed or 0
        self._bias = dict(sampling.logit_bias)
        self._counts: Counter[int] = Counter()
        self._recent: deque[int] = deque(maxlen=max(sampling.repeat_last_n, 1))
        self._repeats = sampling.repeat_penalty != 1.0 and sampling.repeat_last_n > 0
        self._counted = sampling.frequency_penalty != 0.0 or sampling.presence_penalty != 0.0
        if self._repeats:
            self._recent.extend(prompt)
        self._touches = bool(self._bias) or self._repeats or self._counted

    def accept(self, token: int) -> None:
        """Tell the penalties that `token` is now part of the answer."""
        if self._repeats:
            self._recent.append(token)
        if self._counted:
            self._counts[token] += 1

    def pick(self, row: Row) -> int:
        """The next token id, given `row` (vocab,), which is not changed. Raises NotFinite."""
        if self._touches:
            row = self._adjusted(row)
        best = int(row.argmax())
        top = float(row[best])
        if not np.isfinite(top):
            raise NotFinite(f"the likeliest logit is {top}")
        s = self._s
        if s.temperature <= 0.0:
            return best
        u = uniform(self._seed, self.draws)
        self.draws += 1
        if s.top_k <= 0 and s.top_p >= 1.0 and s.min_p <= 0.0:
            return _drawn_from_all(row, top, s.temperature, u)
        ids = shortlist(row, top, s)
        weights = np.exp((row[ids].astype(np.float64) - top) / s.temperature)
        return int(ids[_inverted(weights, u)])

    def _adjusted(self, row: Row) -> Row:
        row = row.copy()
        s = self._s
        for token, bias in self._bias.items():
            if 0 <= token < len(row):
                row[token] += bias
        if self._repeats:
            seen = np.fromiter(set(self._recent), np.int64)
            values = row[seen]
            row[seen] = np.where(values > 0, values / s.repeat_penalty, values * s.repeat_penalty)
        if self._counted and self._counts:
            seen = np.fromiter(self._counts.keys(), np.int64)
            counts = np.fromiter(self._counts.values(), np.float32)
            row[seen] -= counts * np.float32(s.frequency_penalty) + np.float32(s.presence_penalty)
        return row


def shortlist(row: Row, top: float, s: Sampling) -> Ids:
    """Ids that pass top_k, top_p and min_p, likeliest first (ties: lower id first). `top` is row.max()."""
    mass = float(np.exp(row - np.float32(top)).sum(dtype=np.float64)) if s.top_k <= 0 and s.top_p < 1.0 else 0.0
    depth = _DEPTH
    while True:
        ids = np.flatnonzero(row >= top - depth)
        whole = len(ids) == len(row) or depth > 1e6
        if s.top_k > 0:
            if len(ids) >= s.top_k or whole:
                break
        elif s.top_p < 1.0:
            near = float(np.exp(row[ids] - np.float32(top)).sum(dtype=np.float64))
            if near >= s.top_p * mass or whole:
                break
        elif -depth <= np.log(s.min_p) or whole:
            break
        depth *= 4
    if s.top_k > 0 and len(ids) > 4 * s.top_k:  # sort only what can be among the first k, ties included
        kth = np.partition(row[ids], len(ids) - s.top_k)[len(ids) - s.top_k]
        ids = ids[row[ids] >= kth]
    ids = ids[np.argsort(-row[ids], kind="stable")]
    if s.top_k > 0:
        ids = ids[: s.top_k]
    p = np.exp(row[ids].astype(np.float64) - top)
    if s.top_p < 1.0:
        total = float(p.sum()) if s.top_k > 0 else mass
        keep = int(np.searchsorted(np.cumsum(p), s.top_p * total)) + 1
        ids, p = ids[:keep], p[:keep]
    if s.min_p > 0.0:
        ids = ids[: max(1, int(np.count_nonzero(p >= s.min_p)))]
    return ids


def _drawn_from_all(row: Row, top: float, temperature: float, u: float) -> int:
    """A draw from the whole vocabulary: first a block of 1,024 tokens, then one in it."""
    weights = np.exp((row - np.float32(top)) * np.float32(1.0 / max(temperature, 1e-6)))
    blocks = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK), dtype=np.float64)
    cumulative = np.cumsum(blocks)
    target = u * cumulative[-1]
    block = min(int(np.searchsorted(cumulative, target, side="right")), len(blocks) - 1)
    inside = weights[block * _BLOCK : (block + 1) * _BLOCK]
    rest = (target - (cumulative[block] - blocks[block])) / blocks[block]
    return block * _BLOCK + _inverted(inside.astype(np.float64), min(max(float(rest), 0.0), 1.0))


def _inverted(weights: npt.NDArray[np.float64], u: float) -> int:
    """The index at which the cumulative weights pass u times their sum; never one of weight 0."""
    cumulative = np.cumsum(weights)
    i = int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))
    if i >= len(weights):
        i = int(np.flatnonzero(weights)[-1])
    return i
