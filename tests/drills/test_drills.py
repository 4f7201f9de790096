"""The drills of one peer as tests: what must be exact is exact, figures may be three times as large as by command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.drills.__main__ import BEGIN, END, rewritten
from tests.drills.drills import ONE_PEER
from tests.drills.figure import LENIENCY_IN_CI, Figure, assert_holds, table
from tests.fixtures.tree import ROOT


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_PEER)
def test_drill_passes(name: str, tmp_path: Path) -> None:
    """F74: a worker that dies is replaced and nobody notices; and the other promises of the table of drills."""
    assert_holds(name, ONE_PEER[name](tmp_path / "drill"))


def test_figure_above_its_limit_does_not_hold_and_is_marked_in_the_table() -> None:
    figure = Figure(what="silence", value=4.0, limit=3.0, unit="s")
    assert not figure.holds() and figure.holds(LENIENCY_IN_CI)
    assert "| silence | 4 s | 3 s | TOO MUCH |" in table([("crash", figure)])


def test_only_what_stands_between_the_marks_is_rewritten() -> None:
    page = f"# Reliability\n\n{BEGIN}\nold\n{END}\n\nAfter.\n"
    assert rewritten(page, "new | table") == f"# Reliability\n\n{BEGIN}\nnew | table\n{END}\n\nAfter.\n"
    with pytest.raises(ValueError, match="marks"):
        rewritten("# Reliability\n", "new")


def test_the_page_has_the_marks() -> None:
    assert rewritten((ROOT / "docs" / "reliability.md").read_text(), "x")
