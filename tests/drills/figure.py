"""What a drill measured, and the limit it has. What must be exact is asserted by the drill itself, not measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LENIENCY_IN_CI = 3.0
"""Machines of CI are busy: they may take three times as much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """`value` may not be above `limit`, both in `unit`."""

    what: str
    value: float
    limit: float
    unit: str

    def holds(self, leniency: float = 1.0) -> bool:
        return self.value <= self.limit * leniency


def seconds(what: str, value: float, limit: float) -> Figure:
    return Figure(what=what, value=value, limit=limit, unit="s")


def count(what: str, value: float, limit: float) -> Figure:
    """Of anything, or a ratio."""
    return Figure(what=what, value=value, limit=limit, unit="")


def table(rows: Sequence[tuple[str, Figure]]) -> str:
    """Markdown, for docs/reliability.md."""
    lines = ["| drill | figure | measured | limit | |", "|---|---|---|---|---|"]
    for drill, f in rows:
        verdict = "ok" if f.holds() else "TOO MUCH"
        lines.append(f"| {drill} | {f.what} | {f.value:.3g} {f.unit} | {f.limit:g} {f.unit} | {verdict} |")
    return "\n".join(lines)


def assert_holds(drill: str, figures: Sequence[Figure]) -> None:
    """As CI asserts them: with its leniency."""
    rows = [(drill, figure) for figure in figures]
    assert rows and all(figure.holds(LENIENCY_IN_CI) for figure in figures), "\n" + table(rows)
