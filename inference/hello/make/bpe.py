"""A byte-level BPE, the same that llama.cpp's "gpt-2" pre-tokenizer and merges give; `export.check` compares the two.

Sennrich, Haddow and Birch 2016 (arXiv:1508.07909); bytes as in GPT-2. Digits are never merged, so that numbers are
read digit by digit.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from itertools import pairwise

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
END, IM_START, IM_END = range(3)  # the specials are the first ids
# Bytes of a token. Japanese has no spaces, so without a bound a whole clause becomes one token, and some
# detokenizers have a buffer of 32 bytes.
LONGEST = 18
# GPT-2's pre-tokenizer without \p: a letter is [^\W\d_], anything not letter, digit or space is the rest.
WORD = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")


def _alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in keep}
    for b in range(256):
        table.setdefault(b, chr(256 + len(table) - len(keep)))
    return table


BYTE = _alphabet()


def _couples(word: list[str]) -> list[tuple[str, str]]:
    return [p for p in pairwise(word) if len(p[0]) + len(p[1]) <= LONGEST]


def _merged(word: list[str], a: str, b: str) -> list[str]:
    out: list[str] = []
    i = 0
    while i < len(word):
        hit = word[i : i + 2] == [a, b]
        out.append(a + b if hit else word[i])
        i += 2 if hit else 1
    return out


def learn(counts: Counter[str], size: int) -> list[str]:
    """Merges ("a b") for a vocabulary of `size` tokens, from words and how often each occurs."""
    words = [([BYTE[b] for b in w.encode()], n) for w, n in sorted(counts.items()) if not re.search(r"\d", w)]
    pairs: Counter[tuple[str, str]] = Counter()
    where: dict[tuple[str, str], set[int]] = defaultdict(set)
    for i, (word, n) in enumerate(words):
        for p in _couples(word):
            pairs[p] += n
            where[p].add(i)
    merges: list[str] = []
    while len(merges) < size - 256 - len(SPECIALS):
        a, b = max(pairs, key=lambda p: (pairs[p], p))
        merges.append(f"{a} {b}")
        for i in sorted(where[a, b]):
            word, n = words[i]
            for p in _couples(word):
                pairs[p] -= n
            word = _merged(word, a, b)
            words[i] = word, n
            for p in _couples(word):
                pairs[p] += n
                where[p].add(i)
        del pairs[a, b]
    return merges


class Bpe:
    """Text to token ids."""

    def __init__(self, merges: list[str]) -> None:
        self.merges = merges
        self.tokens = [*SPECIALS, *(BYTE[b] for b in range(256)), *(m.replace(" ", "") for m in merges)]
        self._ids = {t: i for i, t in enumerate(self.tokens)}
        self._rank = {tuple(m.split(" ")): i for i, m in enumerate(merges)}
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """The token ids of `text`."""
        out: list[int] = []
        for w in WORD.findall(text):
            if w not in self._cache:
                self._cache[w] = self._word(w, 0.0, None)
            out += self._cache[w]
        return out

    def encode_roughly(self, text: str, drop: float, rng: random.Random) -> list[int]:
        """As `encode`, but in half of the words each merge is skipped with chance `drop`.

        BPE-dropout (Provilkov, Emelianenko and Voita 2020, arXiv:1910.13267): what a typo does to a word's tokens
        is then nothing new to the model.
        """
        out: list[int] = []
        for w in WORD.findall(text):
            out += self._word(w, drop, rng) if rng.random() < 0.5 else self.encode(w)
        return out

    def _word(self, text: str, drop: float, rng: random.Random | None) -> list[int]:
        never = 1 << 30
        word = [BYTE[b] for b in text.encode()]
        while len(word) > 1:
            ranks = [never if rng and rng.random() < drop else self._rank.get(p, never) for p in pairwise(word)]
            best = min(range(len(ranks)), key=ranks.__getitem__)
            if ranks[best] == never:
                break
            word[best : best + 2] = [word[best] + word[best + 1]]
        return [self._ids[t] for t in word]
