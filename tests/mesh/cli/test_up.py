"""`llm-router up` around the peer: the folder, the logs, and how a failed start ends."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mesh import control
from mesh.cli.entry import program
from mesh.cli.up import announce
from mesh.config import Config, Loaded
from mesh.errors import PortBusy

Peer = Callable[[Config, Callable[[str], None]], int]


@pytest.fixture
def up(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs `up` around a peer that is this function."""

    def up(peer: Peer, *flags: str) -> Result:
        async def run(loaded: Loaded, *, announce: Callable[[str], None]) -> int:
            return peer(loaded.config, announce)

        monkeypatch.setattr("mesh.node.run", run)
        before = (logging.getLogger().level, list(logging.getLogger().handlers))
        try:
            return CliRunner().invoke(program, ["up", *flags])
        finally:
            logging.getLogger().setLevel(before[0])
            logging.getLogger().handlers[:] = before[1]

    return up


def test_the_peer_runs_with_the_flags_inside_its_own_folder(up: Callable[..., Result], tmp_path: Path) -> None:
    def peer(config: Config, announce: Callable[[str], None]) -> int:
        assert config.port == 0 and config.open is True and config.mdns is False
        assert control.is_owned(tmp_path)
        logging.getLogger("mesh.test").info("running")
        announce("ready")
        return 7

    result = up(peer, "--port", "0", "--open", "--no-mdns")
    assert (result.exit_code, result.stdout) == (7, "ready\n")
    assert not control.is_owned(tmp_path)
    (log,) = (tmp_path / "logs").iterdir()
    assert '"message": "running"' in log.read_text(encoding="utf-8")


def test_a_folder_in_use_is_refused_before_anything_starts(up: Callable[..., Result], tmp_path: Path) -> None:
    def peer(config: Config, announce: Callable[[str], None]) -> int:
        raise AssertionError("a second peer started")

    with control.locked(tmp_path):
        result = up(peer)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: the data folder {tmp_path} is in use by another peer")


@pytest.mark.parametrize("wrap", [False, True])
def test_a_start_that_fails_says_why_even_from_inside_a_task_group(up: Callable[..., Result], wrap: bool) -> None:
    def peer(config: Config, announce: Callable[[str], None]) -> int:
        error = PortBusy("port 8080 is in use by ollama (process 812)", fix="--port 0")
        raise ExceptionGroup("tasks", [ExceptionGroup("more", [error])]) if wrap else error

    result = up(peer)
    assert result.exit_code == 1
    assert result.stderr == "error: port 8080 is in use by ollama (process 812)\n  fix: --port 0\n"


def test_warnings_of_the_settings_are_in_the_log(up: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_PORT", "0")
    assert "ROUTER_PORT is an old name: use LLM_ROUTER_PORT" in up(lambda config, announce: 0).stderr


def test_a_name_that_the_terminal_has_no_letters_for_ends_no_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows writes a log file of a service in cp1252, and machines are called what people like."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    announce("b\u00fcro \U0001f600 is back")
    assert written.getvalue().decode("cp1252").strip() == "b\u00fcro ? is back"


def test_a_reader_that_is_gone_ends_no_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """`llm-router | head -3`, or a terminal that was closed while the peer goes on behind it."""
    reader, writer = os.pipe()
    os.close(reader)
    with io.FileIO(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(pipe, write_through=True))
        announce("tower is back")
    announce("tower is back")  # and one that is closed
