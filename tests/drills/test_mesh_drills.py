"""The drills of a mesh as tests, in a smaller size: figures may be three times as large as by command.

A file of their own, because CI gives each process whole files.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.drills.drills import MESH, MESH_IN_CI
from tests.drills.figure import assert_holds
from tests.fixtures.lan import needs_lan

WAIT_S = 240


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.lan
@needs_lan()
@pytest.mark.timeout(WAIT_S)
@pytest.mark.parametrize("name", MESH_IN_CI)
def test_drill_of_a_mesh_passes(name: str, tmp_path: Path) -> None:
    """Peers that die, freeze, slow down, leave or are lied to: their clients see nothing of it, or a proper error."""
    assert_holds(name, MESH_IN_CI[name](tmp_path / "drill"))


def test_ci_runs_drills_that_are_in_the_table() -> None:
    assert set(MESH_IN_CI) <= set(MESH)
