"""The check that the four packages are ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mesh.ownership import PACKAGES, foreign, require_ours

ROOT = Path(__file__).parents[2]
MARKER = '__distribution__ = "llm-router-mesh"\n'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f'"""A package."""\n\n{MARKER}')
    return tmp_path


def found(home: Path) -> dict[str, Path | None]:
    return {name: home / name / "__init__.py" for name in PACKAGES}


def test_the_packages_of_this_tree_are_ours() -> None:
    require_ours()


def test_four_marked_packages_beside_each_other_are_ours(home: Path) -> None:
    assert foreign(found(home), home) is None


def test_a_package_that_is_missing_moved_or_overwritten_is_named(home: Path, tmp_path: Path) -> None:
    assert foreign(found(home) | {"gossip": None}, home) == ("gossip", "is missing")

    elsewhere = tmp_path / "site-packages" / "web" / "__init__.py"
    problem = foreign(found(home) | {"web": elsewhere}, home)
    assert problem == ("web", f"is taken from {elsewhere.parent}, not from {home / 'web'}")

    (home / "inference" / "__init__.py").write_text("from .server import *\n")
    assert foreign(found(home), home) == ("inference", f"at {home / 'inference'} was overwritten")


def test_a_foreign_package_that_comes_first_stops_the_program_naming_it(tmp_path: Path) -> None:
    (tmp_path / "gossip").mkdir()
    (tmp_path / "gossip" / "__init__.py").write_text("")
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
        "from mesh.errors import ForeignPackage; from mesh.ownership import require_ours\n"
        "try: require_ours()\n"
        "except ForeignPackage as error: print(error.what, '|', error.fix)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout.startswith(f"the package `gossip` is taken from {tmp_path / 'gossip'}")
    assert "uv tool install llm-router-mesh" in done.stdout
