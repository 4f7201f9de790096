"""One peer with the real engine and small models, shared by the tests that do not need one of their own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.peer import Peer, placed

# Signals and symbolic links. A skip would not do: CI takes it for an engine that is missing.
collect_ignore = ["test_ending.py", "test_without_engine.py"] if sys.platform == "win32" else []


@pytest.fixture(scope="session")
def peer(
    tmp_path_factory: pytest.TempPathFactory, tiny_gguf: Path, scripted_gguf: Path, embed_gguf: Path
) -> Iterator[Peer]:
    """A peer that serves hello, tiny, scripted and embed."""
    home = tmp_path_factory.mktemp("peer")
    placed(home / "models", tiny=tiny_gguf, scripted=scripted_gguf, embed=embed_gguf)
    with Peer.started(home / "data", "--models-dir", str(home / "models"), "--max-loaded-models", "3") as running:
        yield running
