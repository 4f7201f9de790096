"""How far a log goes on this machine, and what may be added to it. Pure.

A copy of a log is a prefix of it: entries are taken in order, without gaps, each once. `low` is up to where the log was
retired (by its origin, and so everywhere); what is at or below it is gone and is never taken again.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Log number `no` of this file holds the entries after `low`, up to `have`."""

    no: int
    low: int = 0
    have: int = 0


def extended(known: Extent, *, first: int, count: int, low: int) -> tuple[Extent, int]:
    """The log after `count` entries from number `first` on came, and how many of them are taken: all or none.

    They are taken if they follow on what is here, or on `low`, which their sender says was retired: then what lies
    between is skipped. `low` counts even when they are not, as far as there is something here to retire.
    """
    is_next = first == known.have + 1 or (first == low + 1 and low > known.have)
    have = first - 1 + count if is_next else known.have
    return Extent(no=known.no, low=max(known.low, min(low, have)), have=have), count if is_next else 0
