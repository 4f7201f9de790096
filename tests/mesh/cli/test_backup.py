"""`llm-router backup` and `restore`: what they ask, say and refuse. What they do is in tests/mesh/test_backup.py."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import Result

from gossip.identity import load_or_create, short
from mesh import control
from mesh.cli.failure import Exit
from mesh.version import our_version
from tests.fixtures.answering_peer import run_command

COMMANDS = {"backup": "mesh.cli.backup:backup", "restore": "mesh.cli.backup:restore"}


async def run(*arguments: str) -> Result:
    return await run_command(COMMANDS, *arguments)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A data folder with an identity and a history."""
    folder = tmp_path / "home"
    load_or_create(folder)
    (folder / "router.db").touch(mode=0o600)
    with closing(sqlite3.connect(folder / "router.db")) as connection:
        connection.execute("CREATE TABLE found (value)")
    return folder


@pytest.fixture
async def file(home: Path, tmp_path: Path) -> Path:
    made = tmp_path / "attic.backup"
    assert (await run("backup", str(made), "--data-dir", str(home))).exit_code == 0
    return made


async def test_backup_says_what_is_in_the_file_and_what_is_not(home: Path, tmp_path: Path) -> None:
    made = tmp_path / "b"
    done = await run("backup", str(made), "--data-dir", str(home))
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{made} (") and done.stdout.endswith("): identity.pem, router.db\n")
    assert "not in it: models, logs" in done.stderr and "can be this machine" in done.stderr
    done = await run("backup", str(made), "--data-dir", str(home), "--yes", "--json")
    answer = json.loads(done.stdout)
    assert answer["file"] == str(made) and answer["version"] == our_version()
    assert [stored["name"] for stored in answer["files"]] == ["identity.pem", "router.db"]


async def test_a_file_that_is_there_is_replaced_when_a_person_says_so(home: Path, file: Path) -> None:
    before = file.read_bytes()
    done = await run("backup", str(file), "--data-dir", str(home))
    assert done.exit_code == Exit.USAGE and "--yes" in done.stderr and file.read_bytes() == before
    assert (await run("backup", str(file), "--data-dir", str(home), "--yes")).exit_code == 0


async def test_nothing_to_back_up_is_an_error_of_one_line(tmp_path: Path) -> None:
    done = await run("backup", str(tmp_path / "b"), "--data-dir", str(tmp_path / "nothing"))
    assert done.exit_code == Exit.FAILED and done.stderr.startswith("error: there is nothing to back up in ")


async def test_restore_into_a_new_folder_asks_nothing_and_says_what_comes_next(
    home: Path, file: Path, tmp_path: Path
) -> None:
    done = await run("restore", str(file), "--data-dir", str(tmp_path / "new"))
    assert done.exit_code == 0, done.output
    whose = short(load_or_create(home).peer_id)
    assert f"({whose}), made " in done.stdout and done.stdout.endswith(": identity.pem, router.db\n")
    assert "must not run any more" in done.stderr and "models are not in a backup" in done.stderr
    done = await run("restore", str(file), "--data-dir", str(tmp_path / "other"), "--new-identity")
    assert "an identity of its own" in done.stderr and "must not run" not in done.stderr


async def test_restore_over_something_asks_and_says_where_it_is_kept(home: Path, file: Path) -> None:
    done = await run("restore", str(file), "--data-dir", str(home))
    assert done.exit_code == Exit.USAGE and "2 files would be set aside" in done.stderr
    assert "identity.pem, router.db" in done.stderr and "--yes" in done.stderr
    assert not list(home.glob("before-restore-*"))
    done = await run("restore", str(file), "--data-dir", str(home), "--yes", "--json")
    (aside,) = home.glob("before-restore-*")
    answer = json.loads(done.stdout)
    assert answer["set_aside"] == [str(aside)] and answer["files"]["router.db"] == str(home / "router.db")
    assert answer["backup"]["peer_id"] == load_or_create(home).peer_id


async def test_a_running_peer_is_named(home: Path, file: Path) -> None:
    with control.locked(home):
        done = await run("restore", str(file), "--data-dir", str(home), "--yes")
    assert (
        done.exit_code == Exit.FAILED and "in use by another peer" in done.stderr and "llm-router down" in done.stderr
    )


async def test_what_is_no_backup_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"hello")
    done = await run("restore", str(tmp_path / "b"), "--data-dir", str(tmp_path / "new"))
    assert done.exit_code == Exit.FAILED and "no whole backup" in done.stderr and not (tmp_path / "new").exists()


async def test_a_peer_does_not_start_in_a_folder_with_half_a_restore(home: Path, file: Path) -> None:
    (home / "restore-unfinished").write_text(json.dumps({"aside": f"{home}/before-restore-x", "file": str(file)}))
    done = await run_command({"up": "mesh.cli.up:up"}, "up", "--data-dir", str(home), "--port", "0", "--no-mdns")
    assert done.exit_code == Exit.FAILED and "was cut off" in done.stderr
    assert f"llm-router restore {file} --yes" in done.stderr
