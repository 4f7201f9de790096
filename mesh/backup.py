"""A backup of what a peer cannot be given again, made while it runs or does not.

    identity.pem     the key: whoever has the backup can be this machine
    mesh.json        who belongs to the mesh
    admin.db         users, keys, settings          copied by SQLite itself, each at one moment, its WAL included
    router.db        history                        likewise
    config.toml, quarantine.json, tls/cert.pem, tls/key.pem    where there are any

Not in it: models, logs, and what the environment sets. The file appears under its name when it is whole and on the
disk, and only its owner can read it. Its form is mesh.archive's, taking it back mesh.restore's.
Source: https://sqlite.org/backup.html.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from gossip.errors import UnusableIdentity
from gossip.identity import IDENTITY_FILE, load_or_create
from gossip.storage import MESH_FILE
from mesh.admin.storage import ADMIN_FILE
from mesh.archive import Manifest, Stored, pack
from mesh.config import Config
from mesh.errors import BackupError
from mesh.moments import rfc_3339
from mesh.version import our_version

CONFIG_FILE = "config.toml"
HISTORY_FILE = "router.db"
TLS_CERT, TLS_KEY = "tls/cert.pem", "tls/key.pem"
DATABASES = (ADMIN_FILE, HISTORY_FILE)
NAMES = (IDENTITY_FILE, MESH_FILE, CONFIG_FILE, "quarantine.json", TLS_CERT, TLS_KEY, *DATABASES)
"""What a backup may hold, in this order: what is small comes first."""

SMALL_BYTES_MAX = 64 * 1024 * 1024
"""For what is no database: mesh.json has 32 MiB at most."""
BUSY_S = 30.0
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def places(config: Config) -> dict[str, Path]:
    """Where a peer with these settings keeps what a backup holds, whether it is there or not."""
    folder = config.data_dir
    return {
        IDENTITY_FILE: folder / IDENTITY_FILE,
        MESH_FILE: folder / MESH_FILE,
        CONFIG_FILE: config.config or folder / CONFIG_FILE,
        "quarantine.json": folder / "quarantine.json",
        TLS_CERT: config.tls_cert or folder / TLS_CERT,
        TLS_KEY: config.tls_key or folder / TLS_KEY,
        ADMIN_FILE: folder / ADMIN_FILE,
        HISTORY_FILE: config.database_url,
    }


def make(config: Config, file: Path, *, say: Callable[[str], None] = lambda line: None) -> Manifest:
    """Writes a backup of the peer with these settings to `file`, in the place of what is there.

    Blocks; `say` hears of what takes long. Raises BackupError, and then `file` is as it was.
    """
    found = {name: path for name, path in places(config).items() if path.is_file()}
    if not found.keys() & {IDENTITY_FILE, *DATABASES}:
        raise BackupError(f"there is nothing to back up in {config.data_dir}: a peer makes it at its first start")
    with told(f"the backup {file} cannot be written"), _workshop(file) as workshop:
        contents: dict[str, bytes | Path] = {}
        for name in NAMES:
            if name in found and name in DATABASES:
                say(f"copying {name}")
                contents[name] = copied(found[name], workshop / name)
            elif name in found:
                contents[name] = _read(found[name])
        manifest = _manifest(config, contents)
        say("packing")
        part = workshop / "backup"
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            pack(out, manifest, contents)
            out.flush()
            os.fsync(out.fileno())
        part.replace(file)
        sync_folder(file.parent)
    return manifest


def copied(source: Path, target: Path) -> Path:
    """A copy of a SQLite file as it is at one moment, checked; whoever writes to it goes on meanwhile.

    Raises BackupError when it is locked for BUSY_S, or damaged.
    """
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    deadline = time.monotonic() + BUSY_S

    def bounded(status: int, remaining: int, total: int) -> None:
        if status in _BUSY and time.monotonic() >= deadline:
            raise BackupError(f"{source} is locked by another program", fix="end that program, or try again later")

    try:
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=1.0)) as reader,
            closing(sqlite3.connect(target, isolation_level=None)) as writer,
        ):
            reader.backup(writer, progress=bounded)  # in one step: others' writes would begin it anew
            problem = str(writer.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.Error as error:
        raise _not_copied(source, error) from None
    if problem != "ok":
        raise _damaged(source, problem)
    return target


def sync_folder(folder: Path) -> None:
    """Makes renames in it durable. Windows cannot open folders and needs no such call."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Errors of the disk as BackupError, `what` before their reason."""
    try:
        yield
    except OSError as error:
        raise BackupError(f"{what}: {error.strerror or error}") from error


@contextlib.contextmanager
def _workshop(file: Path) -> Iterator[Path]:
    """A folder beside `file`, for nobody else, gone at the end with all that is in it."""
    folder = file.with_name(f".{file.name}.{secrets.token_hex(4)}.part")
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        for left in folder.iterdir():
            left.unlink(missing_ok=True)
        folder.rmdir()


def _manifest(config: Config, contents: dict[str, bytes | Path]) -> Manifest:
    try:
        peer_id = load_or_create(config.data_dir).peer_id if IDENTITY_FILE in contents else ""
    except UnusableIdentity as error:
        raise BackupError(error.what, fix=error.fix) from None
    return Manifest(
        version=our_version(),
        created_at=rfc_3339(time.time()),
        name=config.name,
        peer_id=peer_id,
        files=tuple(Stored.of(name, content) for name, content in contents.items()),
    )


def _read(path: Path) -> bytes:
    with told(f"{path} cannot be read"):
        if (size := path.stat().st_size) > SMALL_BYTES_MAX:
            raise BackupError(f"{path} has {size:,} bytes, at most {SMALL_BYTES_MAX:,} are backed up; is it ours?")
        return path.read_bytes()


def _not_copied(source: Path, error: sqlite3.Error) -> BackupError:
    code: int = getattr(error, "sqlite_errorcode", -1) & 0xFF  # the rest of an extended code says where
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return _damaged(source, str(error))
    if code == sqlite3.SQLITE_FULL:
        return BackupError(f"the copy of {source} does not fit: the disk is full")
    return BackupError(f"{source} cannot be copied: {error}", fix="try again later")


def _damaged(source: Path, problem: str) -> BackupError:
    return BackupError(
        f"{source} is damaged: {problem.splitlines()[0]}",
        fix="restart the peer: it sets the damaged file aside and fetches from others what it can; then back up again",
    )
