"""The file: what was written is there after a crash, damage is set aside, a newer version's file is left alone."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gossip.errors import NotPrivate
from mesh.admin import storage
from mesh.admin.clock import NEVER, Clock
from mesh.admin.errors import MapReadOnly, NotDurable
from mesh.admin.rows import Row, signed
from mesh.admin.storage import ADMIN_FILE, AdminFile, Loaded
from tests.fixtures.tree import ROOT
from tests.mesh.admin.house import who

MESH = "m" * 52


def row(number: int, value: bytes = b'"x"') -> Row:
    return signed(who("a"), MESH, key=f"key/{number}", field="name", value=value, clock=Clock(number, 0), over=NEVER)


@asynccontextmanager
async def opened(folder: Path, *, program: str = "0.3.0") -> AsyncIterator[AdminFile]:
    file = AdminFile(folder, program=program)
    try:
        await file.load()
        yield file
    finally:
        await file.close()


async def loaded(folder: Path, *, program: str = "0.3.0") -> Loaded:
    file = AdminFile(folder, program=program)
    try:
        return await file.load()
    finally:
        await file.close()


async def kept(folder: Path, *rows: Row) -> None:
    async with opened(folder) as file:
        await file.begin(MESH, rows, archive="", last_synced_ms=7)


def edit(folder: Path, *statements: str) -> None:
    connection = sqlite3.connect(folder / ADMIN_FILE, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


async def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    assert await loaded(tmp_path) == Loaded()
    async with opened(tmp_path) as file:
        await file.begin(MESH, [row(1), row(2), row(3)], archive="", last_synced_ms=5)
        await file.write([row(2, b"2"), row(4)], [("key/1", "name"), ("key/9", "name")])
        await file.note(last_synced_ms=8, horizon_ms=9)
    found = await loaded(tmp_path)
    assert set(found.rows) == {row(2, b"2"), row(3), row(4)}
    assert (found.mesh_id, found.last_synced_ms, found.horizon_ms, found.read_only) == (MESH, 8, 9, "")


@pytest.mark.skipif(os.name != "posix", reason="POSIX modes")
async def test_nobody_else_may_read_it_not_even_its_log(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with opened(tmp_path) as file:
            await file.begin(MESH, [row(1)], archive="", last_synced_ms=1)
            await file.begin("n" * 52, [], archive="admin-old.db", last_synced_ms=1)
            assert {path.name for path in tmp_path.iterdir()} >= {ADMIN_FILE, ADMIN_FILE + "-wal", "admin-old.db"}
            assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir())
    finally:
        os.umask(before)
    (tmp_path / ADMIN_FILE).chmod(0o644)
    with pytest.raises(NotPrivate):
        await loaded(tmp_path)


async def test_what_was_written_survives_a_kill(tmp_path: Path) -> None:
    code = (
        "import asyncio, pathlib, sys\n"
        "from mesh.admin.storage import AdminFile\n"
        "from tests.mesh.admin.test_storage import MESH, row\n"
        "async def main():\n"
        "    file = AdminFile(pathlib.Path(sys.argv[1]), program='0.3.0')\n"
        "    await file.load()\n"
        "    await file.begin(MESH, [], archive='', last_synced_ms=1)\n"
        "    for number in range(10_000):\n"
        "        await file.write([row(number)], [])\n"
        "        print(number, flush=True)\n"
        "asyncio.run(main())\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if line == "20\n":
            break
    child.send_signal(signal.SIGKILL)
    said = 20 + sum(1 for _ in child.stdout)
    child.wait()
    child.stdout.close()
    there = {found.clock.ms for found in (await loaded(tmp_path)).rows}
    assert there >= set(range(said + 1))
    assert there == set(range(len(there))), "nothing half"


async def test_the_disk_is_waited_for(tmp_path: Path) -> None:
    """What a kill cannot show, because the operating system lives on: SQLite is told to flush at every commit."""
    async with opened(tmp_path) as file:
        connection = file._connection
        assert connection is not None
        assert [tuple(each) for each in await connection.execute_fetchall("PRAGMA synchronous")] == [(2,)]
        assert [tuple(each) for each in await connection.execute_fetchall("PRAGMA journal_mode")] == [("wal",)]


@pytest.mark.parametrize("damage", ["not a database", "pages", "no tables"])
async def test_a_damaged_file_is_set_aside_and_a_new_one_begun(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    await kept(tmp_path, *(row(number, b'"' + b"x" * 3000 + b'"') for number in range(50)))
    path = tmp_path / ADMIN_FILE
    if damage == "no tables":
        edit(tmp_path, "DROP TABLE rows")
    else:
        data = bytearray(path.read_bytes())
        begin, end = (0, 100) if damage == "not a database" else (4096, len(data) - 4096)
        data[begin:end] = b"\xa5" * (end - begin)
        path.write_bytes(data)
    with caplog.at_level(logging.ERROR):
        found = await loaded(tmp_path)
    assert found == Loaded()
    assert "set aside" in caplog.text
    (aside,) = tmp_path.glob(f"{ADMIN_FILE}.corrupt-*[0-9]")
    assert aside.stat().st_size > 0
    await kept(tmp_path, row(1))
    assert (await loaded(tmp_path)).rows == (row(1),)


async def test_a_row_that_rotted_is_left_out_and_the_others_are_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await kept(tmp_path, row(1), row(2), row(3), row(4))
    edit(
        tmp_path,
        "UPDATE rows SET row = x'00' WHERE key = 'key/1'",
        "UPDATE rows SET hash = zeroblob(32) WHERE key = 'key/2'",
        "UPDATE rows SET row = 'text' WHERE key = 'key/4'",
    )
    assert (await loaded(tmp_path)).rows == (row(3),)
    assert "damaged" in caplog.text


@pytest.mark.parametrize("change", ["ALTER TABLE rows ADD COLUMN new TEXT", "ALTER TABLE rows RENAME TO other"])
async def test_a_file_of_a_newer_version_is_read_and_not_written(tmp_path: Path, change: str) -> None:
    await kept(tmp_path, row(1))
    edit(tmp_path, change, "PRAGMA user_version = 3", "UPDATE meta SET value = '0.9.1' WHERE name = 'program'")
    found = await loaded(tmp_path)
    assert list(found.rows) == ([row(1)] if "ADD" in change else [])
    assert "version 0.9.1" in found.read_only and "schema 3" in found.read_only and "0.3.0" in found.read_only
    async with opened(tmp_path) as file:
        with pytest.raises(MapReadOnly, match=r"0\.9\.1"):
            await file.write([row(2)], [])
        with pytest.raises(MapReadOnly):
            await file.begin("other", [], archive="x.db", last_synced_ms=0)
        with pytest.raises(MapReadOnly):
            await file.note(last_synced_ms=0, horizon_ms=0)
    connection = sqlite3.connect(tmp_path / ADMIN_FILE)
    assert ("program", "0.9.1") in connection.execute("SELECT * FROM meta").fetchall()
    connection.close()
    assert [path.name for path in tmp_path.iterdir()] == [ADMIN_FILE]


async def test_an_archive_never_replaces_another(tmp_path: Path) -> None:
    async with opened(tmp_path) as file:
        for number in range(3):
            await file.begin(MESH, [row(number)], archive="admin-old.db", last_synced_ms=1)
    archives = sorted(path.name for path in tmp_path.glob("admin-old*"))
    assert archives == ["admin-old-2.db", "admin-old-3.db", "admin-old.db"]
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    (tmp_path / "admin-old-3.db").rename(other / ADMIN_FILE)
    assert (await loaded(other)).rows == (row(1),)


async def test_a_file_that_somebody_else_locks_is_told_and_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "BUSY_S", 0.01)
    await kept(tmp_path, row(1))
    async with opened(tmp_path) as file:
        blocker = sqlite3.connect(tmp_path / ADMIN_FILE, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        with pytest.raises(NotDurable, match="locked"):
            await file.write([row(2)], [("key/1", "name")])
        blocker.execute("ROLLBACK")
        blocker.close()
        await file.write([row(3)], [])
    assert {found.key for found in (await loaded(tmp_path)).rows} == {"key/1", "key/3"}
    with pytest.raises(NotDurable, match="stopping"):
        await file.write([row(4)], [])


async def test_a_statement_that_fails_half_way_leaves_nothing_behind(tmp_path: Path) -> None:
    await kept(tmp_path, row(1))
    edit(
        tmp_path,
        "CREATE TRIGGER no BEFORE INSERT ON rows WHEN NEW.key = 'key/3' BEGIN SELECT RAISE(ABORT, 'disk full'); END",
    )
    async with opened(tmp_path) as file:
        with pytest.raises(NotDurable, match="disk full"):
            await file.write([row(2), row(3)], [("key/1", "name")])
        await file.write([row(4)], [])
    assert {found.key for found in (await loaded(tmp_path)).rows} == {"key/1", "key/4"}


async def test_what_was_forgotten_is_not_in_the_file_any_more(tmp_path: Path) -> None:
    await kept(tmp_path, row(1, b'"a canary in here"'))
    assert b"a canary" in (tmp_path / ADMIN_FILE).read_bytes()
    async with opened(tmp_path) as file:
        await file.begin("n" * 52, [], archive="", last_synced_ms=1)
    assert not [path for path in tmp_path.iterdir() if b"a canary" in path.read_bytes()]
