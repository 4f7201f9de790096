"""Tests of the watchdog that ends a worker whose chat template does not end, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("llama_cpp", reason="the engine is not installed")

_ARMED = """
import os, re, time
from inference.engine import preparer
from inference.engine.channel import Channel

preparer.TEMPLATE_S = preparer.LOCKED_S = 0.1
preparer.Watchdog(Channel(os.open(os.devnull, os.O_WRONLY))).arm(1)
"""


def ended(template: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", _ARMED + template], capture_output=True, timeout=60, check=False)


def test_a_template_that_runs_too_long_ends_the_worker() -> None:
    assert ended("time.sleep(60)").returncode == 65


def test_so_does_one_that_keeps_the_interpreter_to_itself() -> None:
    """A regular expression that takes for ever lets no other thread of Python run."""
    found = ended("re.match('(a*)*b', 'a' * 40)")
    assert found.returncode == 1
    assert b"Timeout" in found.stderr
