"""The admin map holds under faults, and the checks that say so notice mistakes. More: `python -m tests.sim.admin`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sim.admin import caught, explore
from tests.sim.admin_mutants import MUTANTS
from tests.sim.admin_scenes import DIRECTED, played
from tests.sim.admin_world import World
from tests.sim.history import Mutant

EXAMPLES = 40


@pytest.mark.parametrize("scene", DIRECTED, ids=lambda scene: str(scene.__name__))
def test_maps_are_equal_and_what_is_over_stays_over_in(scene: Callable[[World], None]) -> None:
    played(scene)


def test_maps_are_equal_and_what_is_over_stays_over_whatever_happens() -> None:
    explore(EXAMPLES)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: str(mutant.what))
def test_a_planted_mistake_is_noticed(mutant: Mutant) -> None:
    assert caught(mutant, EXAMPLES) is not None
