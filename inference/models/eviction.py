"""Whether a model may be loaded now, and whom it costs: a pure decision over what is in memory.

Least recently used goes first; one that serves, loads or already leaves is never chosen; no more leave than must;
nobody leaves unless that makes the room. Not here: how much memory a model needs (`inference.models.fit`), loading and
unloading (`inference.models.pool`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inference.models.fit import shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A model in memory. `counts`: one of the `max_loaded`. `busy`: it must stay. `leaving`: it is being unloaded."""

    id: str
    bytes: int
    counts: bool
    used_at: float
    busy: bool = False
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """There is room."""


@dataclass(frozen=True, slots=True)
class Evict:
    """Room comes when these are unloaded, in this order."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """No room now: what is in memory serves, or is on its way out."""


@dataclass(frozen=True, slots=True)
class Never:
    """It does not fit even alone."""

    reason: str


Plan = Load | Evict | Wait | Never


def room_for(
    needed_bytes: int, counts: bool, residents: Sequence[Resident], *, max_loaded: int, budget_bytes: int | None
) -> Plan:
    """What to do so that a model of `needed_bytes` can be loaded beside `residents`; `budget_bytes` None: no limit."""
    if budget_bytes is not None and needed_bytes > budget_bytes:
        return Never(
            f"it needs {shown(needed_bytes)}, {shown(budget_bytes)} may be used (LLM_NODE_MAX_MEMORY_BYTES); "
            "a smaller quantization, a shorter context or a smaller model is needed"
        )

    def fits(others: Sequence[Resident]) -> bool:
        if counts and sum(r.counts for r in others) >= max_loaded:
            return False
        return budget_bytes is None or sum(r.bytes for r in others) + needed_bytes <= budget_bytes

    if fits(residents):
        return Load()
    staying = [r for r in residents if not r.leaving]
    if fits(staying):
        return Wait()
    chosen: list[Resident] = []
    for resident in sorted(staying, key=lambda r: r.used_at):
        if not resident.busy:
            chosen.append(resident)
            if fits([r for r in staying if r not in chosen]):
                return Evict(_fewest(chosen, staying, fits))
    return Wait()


def _fewest(
    chosen: list[Resident], staying: list[Resident], fits: Callable[[Sequence[Resident]], bool]
) -> tuple[str, ...]:
    """`chosen` without those whose leaving turned out not to matter."""
    for resident in chosen[:]:
        rest = [r for r in chosen if r is not resident]
        if fits([r for r in staying if r not in rest]):
            chosen = rest
    return tuple(r.id for r in chosen)
