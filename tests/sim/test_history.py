"""The history holds under faults, and the checks that say so notice mistakes. More: `python -m tests.sim.history`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sim.history import DIRECTED, MUTANTS, Mutant, caught, explore, played
from tests.sim.history_world import World

EXAMPLES = 60


@pytest.mark.parametrize("scene", DIRECTED, ids=lambda scene: str(scene.__name__))
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nothing_acknowledged_is_lost_doubled_or_forked_in(scene: Callable[[World], None], seed: int) -> None:
    played(scene, seed)


def test_nothing_acknowledged_is_lost_doubled_or_forked_whatever_happens() -> None:
    explore(EXAMPLES)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: str(mutant.what))
def test_a_planted_mistake_is_noticed(mutant: Mutant) -> None:
    assert caught(mutant, EXAMPLES) is not None
