"""`llm-router identity`: on the data folder alone, and never under a running peer."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gossip.identity import IDENTITY_FILE, load_or_create, short, uuid_of
from gossip.storage import MESH_FILE
from mesh import control
from mesh.cli.entry import program
from mesh.cli.failure import Exit


def run(*arguments: str) -> Result:
    return CliRunner().invoke(program, ["identity", *arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The data folder of a machine that was in a mesh."""
    load_or_create(tmp_path)
    (tmp_path / MESH_FILE).write_text("{}", encoding="utf-8")
    return tmp_path


def test_show_tells_the_ids_and_where_the_key_is_and_never_the_key(folder: Path) -> None:
    peer_id = load_or_create(folder).peer_id
    expected = {
        "id": str(uuid_of(peer_id)),
        "short_id": short(peer_id),
        "peer_id": peer_id,
        "file": str(folder / IDENTITY_FILE),
    }
    assert json.loads(run("show", "--json").stdout) == expected
    shown = run()
    assert all(value in shown.stdout for value in expected.values())
    assert "PRIVATE" not in shown.output


@pytest.mark.parametrize("command", ["show", "reset"])
def test_a_machine_that_never_started_has_none_and_gets_none(tmp_path: Path, command: str) -> None:
    result = run(command)
    assert result.exit_code == Exit.NOT_FOUND
    assert "made at the first start" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_reset_makes_another_machine_of_it_that_knows_no_mesh(folder: Path) -> None:
    before = load_or_create(folder).peer_id
    result = run("reset", "--yes")
    after = load_or_create(folder).peer_id
    assert after != before
    assert (result.exit_code, result.stdout) == (0, f"this machine is {short(after)} now; start it: llm-router\n")
    assert not (folder / MESH_FILE).exists()


def test_reset_says_what_it_means_and_wants_a_yes(folder: Path) -> None:
    before = load_or_create(folder).peer_id
    result = run("reset")
    assert result.exit_code == Exit.USAGE
    assert "deletes the key" in result.stderr and "--yes" in result.stderr
    assert load_or_create(folder).peer_id == before


def test_reset_refuses_while_the_peer_runs(folder: Path) -> None:
    before = load_or_create(folder).peer_id
    with control.locked(folder):
        result = run("reset", "--yes")
    assert result.exit_code == Exit.FAILED
    assert "cannot change" in result.stderr and "fix: llm-router down" in result.stderr
    assert load_or_create(folder).peer_id == before
    assert (folder / MESH_FILE).exists()


def test_a_damaged_key_is_told_and_reset_mends_it(folder: Path) -> None:
    (folder / IDENTITY_FILE).write_text("no key", encoding="ascii")
    result = run("show")
    assert result.exit_code == Exit.FAILED
    assert "is damaged" in result.stderr and "llm-router identity reset" in result.stderr
    assert run("reset", "--yes").exit_code == 0
    assert run("show").exit_code == 0


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_a_key_that_others_may_read_is_not_used(folder: Path) -> None:
    (folder / IDENTITY_FILE).chmod(0o644)
    result = run("show")
    assert result.exit_code == Exit.FAILED
    assert "chmod" in result.stderr
