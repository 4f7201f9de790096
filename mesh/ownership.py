"""Are the four packages ours? They have names that other distributions use too, and installers overwrite silently.

Ours lie in one folder beside each other and say so: each `__init__.py` has the line `__distribution__ =
"llm-router-mesh"`. The check reads that line without running the file.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from mesh.errors import ForeignPackage

PACKAGES = ("mesh", "inference", "gossip", "web")
_MARKER = '__distribution__ = "llm-router-mesh"'


def require_ours() -> None:
    """Raises ForeignPackage when an import of one of the four would not be ours."""
    home = Path(__file__).parent.parent
    found = {name: _location(name) for name in PACKAGES}
    if problem := foreign(found, home):
        name = problem[0]
        raise ForeignPackage(
            f"the package `{name}` {problem[1]}{_culprit(name)}",
            fix="install llm-router as an application of its own: `uv tool install llm-router-mesh`, or pipx",
        )


def foreign(found: Mapping[str, Path | None], home: Path) -> tuple[str, str] | None:
    """The first package that is not ours, and what is wrong with it.

    `found` is the `__init__.py` that each name leads to, `home` the folder where ours lie.
    """
    for name, path in found.items():
        if path is None:
            return name, "is missing"
        if path.parent.resolve() != (home / name).resolve():
            return name, f"is taken from {path.parent}, not from {home / name}"
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return name, f"cannot be read at {path}"
        if _MARKER not in text.splitlines():
            return name, f"at {path.parent} was overwritten"
    return None


def _location(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:
        return None
    return Path(spec.origin) if spec is not None and spec.origin else None


def _culprit(name: str) -> str:
    """Which other distribution brings a package of that name, as the end of a sentence."""
    from importlib import metadata

    others = {d for d in metadata.packages_distributions().get(name, []) if d != "llm-router-mesh"}
    return f" (by {', '.join(sorted(others))})" if others else ""
