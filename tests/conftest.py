"""What every test may ask for: whether the engine is there, and small models made from nothing."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

_MAKE_GGUF = Path(__file__).parent / "fixtures" / "make_gguf.py"
_HAS_ENGINE = importlib.util.find_spec("llama_cpp") is not None

SCRIPTED_ANSWER = "Hello from the mesh! How can I help you today?"


@pytest.fixture(scope="session")
def engine_available() -> bool:
    """True if the llama extra is installed. Tests that need it are marked `engine` instead of asking here."""
    return _HAS_ENGINE


def _made(folder: pytest.TempPathFactory, kind: str, *options: str) -> Path:
    path = folder.mktemp("gguf") / f"{kind}.gguf"
    subprocess.run([sys.executable, _MAKE_GGUF, kind, path, *options], check=True, timeout=60, capture_output=True)
    return path


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama of 545 KB: what it says depends on its whole context, so a wrong KV cache shows."""
    return _made(tmp_path_factory, "tiny")


@pytest.fixture(scope="session")
def scripted_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers every chat with SCRIPTED_ANSWER, whatever is asked."""
    return _made(tmp_path_factory, "scripted", "--say", SCRIPTED_ANSWER)


@pytest.fixture(scope="session")
def embed_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with mean pooling, 64 dimensions."""
    return _made(tmp_path_factory, "embed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if _HAS_ENGINE:
        return
    for item in items:
        if item.get_closest_marker("engine"):
            item.add_marker(pytest.mark.skip(reason="needs the engine: uv run --extra llama pytest"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under CI an engine or LAN test that skips has failed: a green run must mean that these ran.

    What was captured goes between xdist's processes as UTF-8: a file name that is none must not end the run.
    """
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    if os.environ.get("CI") and report.skipped and _must_run(item) and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow for an engine or LAN test: {report.longrepr}"
    return report


def _must_run(item: pytest.Item) -> bool:
    """A LAN is made on Linux by root only; CI has a job that is root, and others that are not."""
    if item.get_closest_marker("lan"):
        return sys.platform == "linux" and os.geteuid() == 0
    return item.get_closest_marker("engine") is not None
