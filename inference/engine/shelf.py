"""Prefixes in plain memory: the KV of sequences that had to leave the cache, until a prompt comes back to one. Pure.

A parked prefix in the cache is not free: attention looks at the mask of every cell in use (3,000 cells held for nobody
made a 0.5B model's prompts a tenth slower on two cores). On the shelf it costs a copy each way, some milliseconds;
evaluating it again takes seconds. The newest entries stay, within a budget of bytes.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Protocol

from inference.engine.prefix import Tokens, common_prefix


class State(Protocol):
    """What a context saved of a sequence; only its size matters here."""

    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Saved:
    """The tokens of a sequence, and its state as the context wrote it."""

    tokens: array[int]
    state: State


class Shelf:
    """Saved sequences, the most recently used last."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._saved: list[Saved] = []

    def __len__(self) -> int:
        return len(self._saved)

    @property
    def is_open(self) -> bool:
        """False when nothing can ever be put here."""
        return self._bytes_max > 0

    def holds(self, tokens: array[int]) -> bool:
        """Is all of `tokens` here already, as (the beginning of) an entry?"""
        return any(s.tokens[: len(tokens)] == tokens for s in self._saved)

    def put(self, tokens: array[int], state: State) -> None:
        """Keep `state`; entries that are its beginning go, then the oldest until the budget holds."""
        self._saved = [s for s in self._saved if tokens[: len(s.tokens)] != s.tokens]
        self._saved.append(Saved(tokens, state))
        total = sum(s.state.nbytes for s in self._saved)
        while total > self._bytes_max:
            total -= self._saved.pop(0).state.nbytes

    def best(self, prompt: Tokens, *, whole: bool) -> tuple[int, Saved | None]:
        """(tokens in common with the prompt, the entry that has most). `whole`: only entries used to their end."""
        found: tuple[int, Saved | None] = (0, None)
        for saved in self._saved:
            common = common_prefix(prompt, saved.tokens)
            if common > found[0] and not (whole and common < len(saved.tokens)):
                found = common, saved
        return found

    def used(self, saved: Saved) -> None:
        """A prompt came back to it: it is the last to go."""
        self._saved = [s for s in self._saved if s is not saved] + [saved]

    def drop(self, saved: Saved) -> None:
        """It could not be restored."""
        self._saved = [s for s in self._saved if s is not saved]
