"""Backups and taking them back: what is in them, what they refuse, and that nothing is lost wherever it fails."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import hashlib
import io
import json
import os
import sqlite3
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.identity import IDENTITY_FILE, load_or_create
from gossip.storage import MESH_FILE, MeshFile, MeshState
from mesh import archive, control, restore
from mesh.archive import FORMAT, MANIFEST, Manifest, Stored, pack
from mesh.backup import NAMES, make
from mesh.config import Loaded, load
from mesh.errors import AlreadyRunning, BackupError, StartError
from mesh.history.entries import Start, encode
from mesh.history.store import HistoryStore
from mesh.restore import ASIDE, UNFINISHED, look, require_whole
from mesh.version import our_version
from tests.fixtures.tree import ROOT

Files = dict[str, bytes]


def settings_of(folder: Path, **variables: str) -> Loaded:
    return load({"data_dir": str(folder)}, variables)


def database(path: Path, *values: str) -> None:
    """A SQLite file with these values in it, as ours are: a write-ahead log, private."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE found (value TEXT)")
        connection.executemany("INSERT INTO found VALUES (?)", [(value,) for value in values])
        connection.commit()


def values(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        return [value for (value,) in connection.execute("SELECT value FROM found ORDER BY rowid")]


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o600)


def furnish(folder: Path, mark: str) -> Path:
    """A data folder as a peer leaves it; `mark` tells one from another."""
    load_or_create(folder)
    MeshFile(folder).save(MeshState(mesh_id=mark * 8, door_until=1.5))
    database(folder / "admin.db", f"admin of {mark}")
    database(folder / "router.db", *(f"record {number} of {mark}" for number in range(100)))
    write(folder / "config.toml", f'name = "{mark}"\n'.encode())
    write(folder / "models" / "big.gguf", b"GGUF" + mark.encode())
    write(folder / "control.json", b"{}")
    return folder


def tree(folder: Path) -> Files:
    """Every file but the lock, by its path, and its content; databases by what is in them."""
    found: Files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or path.name == "lock" or name.endswith(("-shm", "-wal")):
            continue
        is_database = path.read_bytes()[:15] == b"SQLite format 3"
        found[name] = repr(values(path)).encode() if is_database else path.read_bytes()
    return found


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("LLM_", "DATABASE_URL", "ROUTER_")):
            monkeypatch.delenv(name)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return furnish(tmp_path / "home", "attic")


@pytest.fixture
def backup(home: Path, tmp_path: Path) -> Path:
    file = tmp_path / "attic.tar.gz"
    make(settings_of(home).config, file)
    return file


def test_a_backup_comes_back_as_it_was_into_an_empty_folder(home: Path, backup: Path, tmp_path: Path) -> None:
    new = tmp_path / "new" / "home"
    done = restore.restore(backup, settings_of(new))
    kept = {name: data for name, data in tree(home).items() if name not in ("models/big.gguf", "control.json")}
    assert tree(new) == kept and done.aside == ()
    assert sorted(kept) == ["admin.db", "config.toml", "identity.pem", "mesh.json", "router.db"]
    assert load_or_create(new) == load_or_create(home)
    assert {path.name: stat.filemode(path.stat().st_mode) for path in new.iterdir() if path.is_file()} == dict.fromkeys(
        [*kept, "lock"], "-rw-------"
    )
    assert stat.filemode(new.stat().st_mode) == "drwx------"


def test_a_backup_says_what_it_is_and_belongs_to_its_owner_alone(home: Path, backup: Path) -> None:
    manifest = look(backup)
    assert manifest.version == our_version() and manifest.peer_id == load_or_create(home).peer_id
    assert manifest.name == "attic" and manifest.created_at.endswith("Z")
    mesh = next(file for file in manifest.files if file.name == "mesh.json")
    data = (home / "mesh.json").read_bytes()
    assert (mesh.size_bytes, mesh.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    with tarfile.open(backup) as tar:  # what anybody's tar can read
        assert tar.getnames() == ["manifest.json", "identity.pem", "mesh.json", "config.toml", "admin.db", "router.db"]


def test_a_backup_of_a_running_peer_is_of_one_moment_with_what_its_log_holds(home: Path, tmp_path: Path) -> None:
    """Each transaction changes both tables; a copy in which they differ is of no moment."""
    over = threading.Event()
    begun = threading.Event()

    def write_on() -> None:
        with closing(sqlite3.connect(home / "router.db")) as peer:
            peer.execute("PRAGMA wal_autocheckpoint=0")
            peer.execute("CREATE TABLE other (value TEXT)")
            peer.execute("DELETE FROM found")
            peer.commit()
            number = 0
            while not over.is_set():
                peer.execute("INSERT INTO found VALUES (?)", (f"{number}" * 50,))
                peer.execute("INSERT INTO other VALUES (?)", (f"{number}" * 50,))
                peer.commit()
                number += 1
                begun.set()

    peer = threading.Thread(target=write_on)
    peer.start()
    assert begun.wait(30)
    try:
        for number in range(5):
            file = tmp_path / f"{number}.tar.gz"
            make(settings_of(home).config, file)
            new = tmp_path / f"new{number}"
            restore.restore(file, settings_of(new))
            found = values(new / "router.db")
            with closing(sqlite3.connect(new / "router.db")) as connection:
                assert found == [value for (value,) in connection.execute("SELECT value FROM other ORDER BY rowid")]
            assert len(found) > 0
    finally:
        over.set()
        peer.join()


def test_what_a_killed_peer_left_in_its_log_is_in_the_backup(home: Path, tmp_path: Path) -> None:
    code = (
        "import os, sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1])\n"
        "c.execute(\"INSERT INTO found VALUES ('the last')\")\n"
        "c.commit()\n"
        "os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", code, home / "router.db"], check=False, timeout=60)
    assert (home / "router.db-wal").stat().st_size > 0
    make(settings_of(home).config, tmp_path / "b")
    restore.restore(tmp_path / "b", settings_of(tmp_path / "new"))
    assert values(tmp_path / "new" / "router.db")[-1] == "the last"


def test_the_history_may_lie_elsewhere_and_comes_back_there(home: Path, tmp_path: Path) -> None:
    """F23: LLM_ROUTER_DATABASE_URL."""
    there = tmp_path / "disk" / "history.db"
    there.parent.mkdir()
    database(there, "elsewhere")
    (home / "router.db").unlink()
    environ = {"LLM_ROUTER_DATABASE_URL": f"sqlite://{there}"}
    elsewhere = settings_of(home, **environ)
    make(elsewhere.config, tmp_path / "b")
    with closing(sqlite3.connect(there)) as peer:
        peer.execute("DELETE FROM found")
        peer.commit()
    done = restore.restore(tmp_path / "b", elsewhere, environ=environ)
    assert values(there) == ["elsewhere"]
    (kept,) = (path for path in done.aside if path.parent == there.parent)
    assert values(kept / "history.db") == [] and not (home / "router.db").exists()
    # and by settings that do not say so: into the data folder
    restore.restore(tmp_path / "b", settings_of(tmp_path / "new"))
    assert values(tmp_path / "new" / "router.db") == ["elsewhere"]


def test_a_history_on_another_disk_is_brought_there_before_anything_changes(
    home: Path, tmp_path: Path, elsewhere: Path
) -> None:
    there = elsewhere / "deep" / "history.db"
    environ = {"LLM_ROUTER_DATABASE_URL": f"sqlite://{there}"}
    make(settings_of(home).config, tmp_path / "b")
    new = settings_of(tmp_path / "new", **environ)
    restore.restore(tmp_path / "b", new, environ=environ)
    assert len(values(there)) == 100 and stat.S_IMODE(there.stat().st_mode) == 0o600
    assert sorted(path.name for path in there.parent.iterdir()) == ["history.db"]
    done = restore.restore(tmp_path / "b", new, environ=environ)
    assert {path.parent for path in done.aside} == {there.parent, tmp_path / "new"}


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another disk, where there is one that needs no preparation."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


def test_the_settings_in_a_backup_say_where_its_files_go(home: Path, tmp_path: Path) -> None:
    there = tmp_path / "disk" / "history.db"
    there.parent.mkdir()
    write(home / "config.toml", f'database_url = "sqlite://{there}"\n'.encode())
    (home / "router.db").rename(there)
    make(settings_of(home).config, tmp_path / "b")
    there.unlink()
    new = settings_of(tmp_path / "new")
    plans: list[restore.Plan] = []
    restore.restore(tmp_path / "b", new, confirm=plans.append)
    assert len(values(there)) == 100 and plans[0].files["router.db"] == there
    assert settings_of(tmp_path / "new").config.database_url == there


def test_certificates_go_where_the_settings_have_them_and_never_outside_of_the_folder(
    home: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "etc" / "key.pem"
    write(outside, b"the key")
    write(home / "my" / "cert.pem", b"the certificate")
    lines = f'tls_cert = "{home}/my/../my/cert.pem"\ntls_key = "{home}/my/../../etc/key.pem"\n'
    write(home / "config.toml", lines.encode())
    make(settings_of(home).config, tmp_path / "b")
    outside.write_bytes(b"of today")
    done = restore.restore(tmp_path / "b", settings_of(home))
    assert (home / "my" / "cert.pem").read_bytes() == b"the certificate"
    assert outside.read_bytes() == b"of today" and (home / "tls" / "key.pem").read_bytes() == b"the key"
    assert "tls/key.pem" in done.notes[0] and "left as it is" in done.notes[0]


def test_what_was_there_is_set_aside_and_what_is_no_state_stays(home: Path, tmp_path: Path, backup: Path) -> None:
    other = furnish(tmp_path / "other", "tower")
    write(other / "quarantine.json", b"[]")
    with closing(sqlite3.connect(other / "router.db")) as killed:
        killed.execute("INSERT INTO found VALUES ('in the log only')")
        killed.commit()
        write_ahead = (other / "router.db-wal").read_bytes()
        before = tree(other)
        done = restore.restore(backup, settings_of(other))
        (aside,) = done.aside
        assert (aside / "router.db-wal").read_bytes() == write_ahead and not (other / "router.db-wal").exists()
    after = tree(other)
    prefix = aside.name + "/"
    assert aside.name.startswith(ASIDE) and aside.parent == other
    stays = ("models/big.gguf", "control.json")
    assert {name.removeprefix(prefix): data for name, data in after.items() if name.startswith(prefix)} == {
        name: data for name, data in before.items() if name not in stays
    }
    assert {name: data for name, data in after.items() if name in stays} == {name: before[name] for name in stays}
    restored = {name: data for name, data in after.items() if not name.startswith(prefix) and name not in stays}
    assert restored == {name: data for name, data in tree(home).items() if name not in stays}
    assert values(aside / "router.db")[-1] == "in the log only"


def test_one_restore_after_the_other_keeps_both_states(home: Path, backup: Path) -> None:
    asides = {restore.restore(backup, settings_of(home)).aside for _ in range(3)}
    assert len(asides) == 3 and all(len(values(aside / "router.db")) == 100 for (aside,) in asides)


def test_a_person_is_asked_before_anything_changes(home: Path, backup: Path) -> None:
    before = tree(home)
    asked: list[restore.Plan] = []

    def no(plan: restore.Plan) -> None:
        asked.append(plan)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore.restore(backup, settings_of(home), confirm=no)
    assert tree(home) == before
    names = {path.name for path in asked[0].old}
    assert names == {"identity.pem", "mesh.json", "config.toml", "admin.db", "router.db"}


def test_with_a_new_identity_key_and_mesh_stay_out(home: Path, backup: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    done = restore.restore(backup, settings_of(new), new_identity=True)
    assert sorted(tree(new)) == ["admin.db", "config.toml", "router.db"] == sorted(done.files)
    assert load_or_create(new).peer_id != load_or_create(home).peer_id
    assert MeshFile(new).load() == MeshState() and len(values(new / "router.db")) == 100


def test_with_a_new_identity_the_old_one_of_the_folder_is_set_aside(home: Path, backup: Path) -> None:
    before = load_or_create(home)
    done = restore.restore(backup, settings_of(home), new_identity=True)
    assert load_or_create(home).peer_id != before.peer_id
    assert load_or_create(done.aside[0]) == before


async def test_a_history_that_came_back_goes_on_in_a_log_of_its_own(tmp_path: Path) -> None:
    """What was written after the backup may be on other machines under the same numbers: they are never used again."""
    home = tmp_path / "home"
    me = load_or_create(home).peer_id
    clock = [1_000]

    def started(number: int) -> bytes:
        return encode(Start(id=f"request {number}", at_ms=number, kind="chat", model="hello"))

    async def opened() -> HistoryStore:
        return await HistoryStore.open(home / "router.db", me, now_ms=lambda: clock[0])

    store = await opened()
    await store.append([started(1), started(2)])
    await asyncio.to_thread(make, settings_of(home).config, tmp_path / "b")  # while the peer runs
    await store.append([started(3)])
    before = store.own
    await store.close()
    await asyncio.to_thread(restore.restore, tmp_path / "b", settings_of(home))
    store = await opened()  # the clock shows the same millisecond, as after a change of the battery
    assert store.own.peer == me and store.own.run > before.run
    await store.append([started(4)])
    assert store.vector() == {before: (0, 2), store.own: (0, 1)}
    assert (await store.read(before, 0, 1 << 20))[1] == [started(1), started(2)]
    await store.close()


# What is refused


def test_there_must_be_something_to_back_up(tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="nothing to back up"):
        make(settings_of(tmp_path / "empty").config, tmp_path / "b")
    assert not (tmp_path / "b").exists() and not (tmp_path / "empty").exists()


def test_a_backup_that_fails_leaves_the_last_one_and_nothing_else(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "there" / "b"
    write(file, b"the last one")
    for damage in (b"not a database at all", (home / "router.db").read_bytes()[:4096] + b"\0" * 8192):
        for beside in ("-wal", "-shm"):
            (home / f"router.db{beside}").unlink(missing_ok=True)
        (home / "router.db").write_bytes(damage)
        with pytest.raises(BackupError, match=r"router\.db is damaged"):
            make(settings_of(home).config, file)
        assert tree(file.parent) == {"b": b"the last one"} and len(list(file.parent.iterdir())) == 1


def test_a_locked_database_is_said_to_be_locked(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.backup.BUSY_S", 0.0)
    with closing(sqlite3.connect(home / "admin.db", isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        other.execute("INSERT INTO found VALUES ('x')")
        with pytest.raises(BackupError, match=r"admin\.db .*locked"):
            make(settings_of(home).config, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_place_that_cannot_be_written_is_named(home: Path, tmp_path: Path) -> None:
    for file in (tmp_path / "nowhere" / "b", home):
        with pytest.raises(BackupError, match=f"the backup {file} cannot be written: "):
            make(settings_of(home).config, file)


def test_a_key_that_others_may_read_is_not_packed(home: Path, tmp_path: Path) -> None:
    (home / IDENTITY_FILE).chmod(0o644)
    with pytest.raises(BackupError, match="0644"):
        make(settings_of(home).config, tmp_path / "b")


def test_a_running_peer_is_left_alone(home: Path, backup: Path) -> None:
    before = tree(home)
    with control.locked(home), pytest.raises(AlreadyRunning):
        restore.restore(backup, settings_of(home))
    assert tree(home) == before


def packed(file: Path, contents: dict[str, bytes], **changes: object) -> Path:
    """A backup of these files; `changes` to its manifest."""
    files = tuple(Stored.of(name, content) for name, content in contents.items())
    manifest = Manifest(version=our_version(), created_at="2026-11-23T12:00:00.000Z", name="x", peer_id="", files=files)
    with file.open("wb") as out:
        pack(out, dataclasses.replace(manifest, **changes), contents)  # type: ignore[arg-type]
    return file


@pytest.mark.parametrize(("version", "number"), [("99.1.0", FORMAT), (our_version(), FORMAT + 1)])
def test_a_backup_of_a_newer_program_names_the_version_to_install(tmp_path: Path, version: str, number: int) -> None:
    file = packed(tmp_path / "b", {"mesh.json": b"{}"}, version=version, format=number)
    with pytest.raises(BackupError, match=f"made by llm-router {version}") as refused:
        restore.restore(file, settings_of(tmp_path / "new"))
    assert f"'llm-router-mesh>={version}'" in refused.value.fix
    assert not (tmp_path / "new").exists()


def test_a_newer_backup_is_told_by_its_version_whatever_else_is_in_it(tmp_path: Path) -> None:
    manifest = json.dumps({"format": 2, "version": "99.0.0", "files": {"a": "table"}}).encode()
    with tarfile.open(tmp_path / "b", "w:gz") as tar:
        entry = tarfile.TarInfo(MANIFEST)
        entry.size = len(manifest)
        tar.addfile(entry, io.BytesIO(manifest))
    with pytest.raises(BackupError, match=r"99\.0\.0"):
        look(tmp_path / "b")


@pytest.mark.parametrize("version", ["0.1.0", "0.0.1", "0+source", our_version(), "weird"])
def test_backups_of_older_programs_and_of_sources_are_taken(tmp_path: Path, version: str) -> None:
    file = packed(tmp_path / "b", {"mesh.json": b"{}"}, version=version)
    restore.restore(file, settings_of(tmp_path / "new"))
    assert (tmp_path / "new" / "mesh.json").read_bytes() == b"{}"


def entry(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    found = tarfile.TarInfo(name)
    found.size = len(data)
    for field, value in fields.items():
        setattr(found, field, value)
    return found, data


def forged(
    file: Path,
    entries: list[tuple[tarfile.TarInfo, bytes]],
    files: list[dict[str, object]],
    form: int = tarfile.GNU_FORMAT,
) -> Path:
    """An archive as somebody else made it."""
    table = {"format": FORMAT, "version": our_version(), "created_at": "", "name": "", "peer_id": "", "files": files}
    with tarfile.open(file, "w:gz", format=form) as tar:
        for found, data in [entry(MANIFEST, json.dumps(table).encode()), *entries]:
            tar.addfile(found, io.BytesIO(data))
    return file


def said(name: object, data: bytes = b"", size: object = None) -> dict[str, object]:
    return {
        "name": name,
        "size_bytes": len(data) if size is None else size,
        "sha256": hashlib.sha256(data).hexdigest(),
    }


TRICKS: dict[str, tuple[list[tuple[tarfile.TarInfo, bytes]], list[dict[str, object]]]] = {
    "a path upwards": ([entry("../evil", b"x")], [said("../evil", b"x")]),
    "an absolute path": ([entry("/tmp/evil", b"x")], [said("/tmp/evil", b"x")]),
    "a path through a known name": ([entry("tls/../../evil", b"x")], [said("tls/../../evil", b"x")]),
    "a backslash": ([entry("tls\\..\\evil", b"x")], [said("tls\\..\\evil", b"x")]),
    "a link by a known name": ([entry("mesh.json", type=tarfile.SYMTYPE, linkname="/etc/passwd")], [said("mesh.json")]),
    "a hard link": ([entry("mesh.json", type=tarfile.LNKTYPE, linkname="identity.pem")], [said("mesh.json")]),
    "a device": ([entry("mesh.json", type=tarfile.CHRTYPE)], [said("mesh.json")]),
    "a fifo": ([entry("mesh.json", type=tarfile.FIFOTYPE)], [said("mesh.json")]),
    "a folder": ([entry("tls", type=tarfile.DIRTYPE)], []),
    "a name longer than a header": ([entry("x" * 300, b"x")], [said("x" * 300, b"x")]),
    "a file that nobody told of": ([entry("mesh.json", b"x")], []),
    "another file first": ([entry("config.toml", b"x"), entry("mesh.json", b"x")], [said("mesh.json", b"x")]),
    "a file twice": ([entry("mesh.json", b"x"), entry("mesh.json", b"y")], [said("mesh.json", b"x")]),
    "a file told of twice": ([entry("mesh.json", b"x")] * 2, [said("mesh.json", b"x")] * 2),
    "a file that is missing": ([], [said("mesh.json", b"x")]),
    "another content": ([entry("mesh.json", b"y")], [said("mesh.json", b"x")]),
    "another size": ([entry("mesh.json", b"xy")], [said("mesh.json", b"x")]),
    "more than any disk holds": ([entry("mesh.json", b"x")], [said("mesh.json", b"x", 1 << 60)]),
    "a negative size": ([entry("mesh.json", b"x")], [said("mesh.json", b"x", -1)]),
    "a size that is no number": ([entry("mesh.json", b"x")], [said("mesh.json", b"x", "1")]),
    "a size that is a truth": ([entry("mesh.json", b"x")], [said("mesh.json", b"x", True)]),
    "a name that is no text": ([entry("mesh.json", b"x")], [said(["mesh.json"], b"x")]),
    "files that are no table": ([], ["mesh.json"]),  # type: ignore[list-item]
}  # fmt: skip


@pytest.mark.parametrize("trick", TRICKS)
def test_tricks_in_the_archive_change_nothing_anywhere(trick: str, home: Path, tmp_path: Path) -> None:
    """Lesson 1 of the neighbours: what an archive says is a path never forms one."""
    file = forged(tmp_path / "b", *TRICKS[trick])
    before = tree(tmp_path)
    with pytest.raises(BackupError):
        restore.restore(file, settings_of(home))
    assert tree(tmp_path) == before


def test_an_extended_header_is_not_followed(home: Path, tmp_path: Path) -> None:
    """A pax header can give the next file any name and size, and itself be as large as it likes."""
    found, data = entry("mesh.json", b"x")
    found.pax_headers = {"path": "../evil"}
    file = forged(tmp_path / "b", [(found, data)], [said("mesh.json", b"x")], tarfile.PAX_FORMAT)
    with pytest.raises(BackupError, match="no plain file"):
        restore.restore(file, settings_of(home))


def test_a_bomb_is_refused_by_what_it_says_before_it_is_unpacked(home: Path, tmp_path: Path) -> None:
    header = tarfile.TarInfo(MANIFEST)
    header.size = 1 << 40
    with gzip.open(tmp_path / "b", "wb") as packed_file:
        packed_file.write(header.tobuf(tarfile.GNU_FORMAT))
        for _ in range(64):
            packed_file.write(b"\0" * (1 << 20))
    with pytest.raises(BackupError, match="does not begin with"):
        restore.restore(tmp_path / "b", settings_of(home))


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"\x1f\x8b", gzip.compress(b"", mtime=0), gzip.compress(b"x" * 2000, mtime=0)],
    ids=["nothing", "text", "cut off", "empty", "no archive"],
)
def test_what_is_no_backup_is_refused(home: Path, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "b").write_bytes(data)
    with pytest.raises(BackupError, match="no whole backup"):
        look(tmp_path / "b")
    with pytest.raises(BackupError, match="cannot be read: No such file"):
        look(tmp_path / "nothing")


@given(at=st.floats(0, 1, exclude_max=True), change=st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_a_damaged_backup_is_refused_or_comes_back_whole(
    tmp_path_factory: pytest.TempPathFactory, at: float, change: int
) -> None:
    """Whatever byte is changed (0: it is cut there) and wherever: all of it, or nothing."""
    folder = tmp_path_factory.mktemp("damaged")
    contents = {"mesh.json": b'{"a": 1}' * 20, "config.toml": b"", "router.db": bytes(range(256)) * 4}
    file = packed(folder / "b", contents)
    whole = bytearray(file.read_bytes())
    place = int(at * len(whole))
    if change:
        whole[place] ^= change
    else:
        del whole[place:]
    file.write_bytes(whole)
    new = folder / "new"
    try:
        restore.restore(file, settings_of(new))
    except BackupError:
        assert not new.exists() or tree(new) == {}
    else:
        assert {path.name: path.read_bytes() for path in new.iterdir() if path.name != "lock"} == contents


def test_settings_that_cannot_be_used_here_stop_it_before_anything_changes(home: Path, tmp_path: Path) -> None:
    file = packed(tmp_path / "b", {"config.toml": b"port = 'none'\n"})
    before = tree(home)
    with pytest.raises(BackupError, match=r"config\.toml cannot be used here"):
        restore.restore(file, settings_of(home))
    assert tree(home) == before
    write(tmp_path / "mine.toml", b"port = 9000\n")
    mine = load({"data_dir": str(home), "config": str(tmp_path / "mine.toml")}, {})
    done = restore.restore(file, mine)
    assert "not in use" in done.notes[0] and (home / "config.toml").read_bytes() == b"port = 'none'\n"


def test_settings_that_put_two_files_at_one_place_are_refused(home: Path, tmp_path: Path) -> None:
    lines = f'database_url = "sqlite://{home}/mesh.json"\n'.encode()
    file = packed(tmp_path / "b", {"mesh.json": b"{}", "config.toml": lines, "router.db": b"x"})
    before = tree(home)
    with pytest.raises(BackupError, match="two files at one place"):
        restore.restore(file, settings_of(home))
    assert tree(home) == before


def test_too_little_room_is_said_before_it_is_filled(
    home: Path, backup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "SPARE_BYTES", 1 << 60)
    before = tree(home)
    with pytest.raises(BackupError, match="free") as refused:
        restore.restore(backup, settings_of(home))
    assert "make room" in refused.value.fix and tree(home) == before


# When it fails in the middle


def in_a_process(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {name: text for name, text in os.environ.items() if not name.startswith("LLM_")}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


FULL_DISK = """
import resource, sys
from pathlib import Path
from mesh.backup import make
from mesh.config import load
from mesh.restore import restore
from mesh.errors import BackupError
what, folder, file, limit = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
loaded = load({"data_dir": folder}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # no file may get larger: writing fails as on a full disk
try:
    make(loaded.config, file) if what == "backup" else restore(file, loaded)
except BackupError as error:
    print(error.what)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no RLIMIT_FSIZE")
@pytest.mark.parametrize("limit", [0, 100, 5000])
def test_a_disk_that_is_full_costs_neither_the_old_backup_nor_the_old_state(
    home: Path, backup: Path, tmp_path: Path, limit: int
) -> None:
    before = tree(tmp_path)
    for what in ("backup", "restore"):
        done = in_a_process(FULL_DISK, what, home, backup, limit)
        assert done.returncode == 0, done.stderr
        assert "cannot be" in done.stdout or "does not fit" in done.stdout, done.stdout
        assert tree(tmp_path) == before
        assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


@pytest.fixture
def failing_moves(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """`fail(k)`: the k-th file that is moved is not, as on a disk that cannot hold one more name."""
    moved = {"left": -1}
    replace = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if not self.name.endswith(".part"):
            moved["left"] -= 1
            if moved["left"] == 0:
                raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)

    def fail(number: int) -> None:
        moved["left"] = number

    yield fail


def test_a_move_that_fails_is_undone_wherever_it_is(
    home: Path, backup: Path, tmp_path: Path, failing_moves: Callable[[int], None]
) -> None:
    other = furnish(tmp_path / "other", "tower")
    before = tree(other)
    for number in range(1, 11):  # five files go, five come
        failing_moves(number)
        with pytest.raises(BackupError, match="No space left on device"):
            restore.restore(backup, settings_of(other))
        assert tree(other) == before, f"after {number} moves"
        assert not list(other.glob(f"{ASIDE}*")) and not list(other.glob(".*"))
        require_whole(other)
    failing_moves(11)
    restore.restore(backup, settings_of(other))
    assert tree(other)["router.db"] == tree(home)["router.db"]


KILLED = """
import os, sys
from pathlib import Path
from mesh.config import load
from mesh.restore import restore
left = int(sys.argv[3])
replace = Path.replace
def killed(self, target):
    global left
    left -= not self.name.endswith(".part")
    if left < 0:
        os._exit(9)
    return replace(self, target)
Path.replace = killed
restore(Path(sys.argv[2]), load({"data_dir": sys.argv[1]}, {}))
"""


@pytest.mark.parametrize("moves", [0, 1, 4, 5, 7, 9])
def test_a_restore_that_was_killed_starts_no_peer_and_can_be_finished(
    home: Path, backup: Path, tmp_path: Path, moves: int
) -> None:
    other = furnish(tmp_path / "other", "tower")
    before = tree(other)
    assert in_a_process(KILLED, other, backup, moves).returncode == 9
    with pytest.raises(StartError, match="cut off") as refused:
        require_whole(other)
    assert refused.value.fix.endswith(f"llm-router restore {backup} --yes")
    # all that was there is there, in its place or set aside
    assert set(before.values()) <= set(tree(other).values())
    restore.restore(backup, settings_of(other))
    require_whole(other)
    after = tree(other)
    assert set(before.values()) <= set(after.values())
    assert all(after[name] == data for name, data in tree(home).items() if name.endswith((".db", ".pem", ".json")))
    assert not list(other.glob(".*"))


def test_a_restore_that_fails_after_one_that_was_killed_still_starts_no_peer(
    home: Path, backup: Path, tmp_path: Path, failing_moves: Callable[[int], None]
) -> None:
    assert in_a_process(KILLED, home, backup, 7).returncode == 9
    failing_moves(3)
    with pytest.raises(BackupError):
        restore.restore(backup, settings_of(home))
    with pytest.raises(StartError, match="cut off"):
        require_whole(home)


def test_a_note_that_cannot_be_read_starts_no_peer_either(tmp_path: Path) -> None:
    require_whole(tmp_path)
    for note in (b"", b"[]", b"\xff", b"{}"):
        (tmp_path / UNFINISHED).write_bytes(note)
        with pytest.raises(StartError, match="cut off"):
            require_whole(tmp_path)


def test_the_names_of_a_backup_are_plain() -> None:
    """They are joined to folders when it is unpacked."""
    assert all(part not in ("", ".", "..") for name in NAMES for part in name.split("/"))
    assert MESH_FILE in NAMES and archive.MANIFEST not in NAMES
