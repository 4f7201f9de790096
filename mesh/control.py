"""How the command line reaches the peer of its machine: `<data dir>/control.json`, and the lock of the data folder.

The file holds port, URL, process id, version and a token made at each start; it exists while the peer runs. The token
is an administrator's, on loopback only. The lock makes sure that one data folder has one peer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mesh.errors import AlreadyRunning, StartError
from mesh.private import private_folder, require_private, write_private

_FILE = "control.json"
_LOCK = "lock"
_LOCKED_BYTE = 1 << 30
"""Windows refuses to read a locked region: the lock lies far behind the process id that the file shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """What control.json says. `url` is how this machine reaches the peer, without a path at its end. `fingerprint`: the
    SHA-256 of its certificate, in hex, when that is https; by it alone the command line knows the peer."""

    port: int
    token: str = dataclasses.field(repr=False)
    pid: int
    url: str
    version: str
    fingerprint: str = ""


def new_token() -> str:
    """256 bits, fit for a header."""
    return secrets.token_urlsafe(32)


def local_url(host: str, port: int, *, is_https: bool = False) -> str:
    """The URL of a listener as seen from its own machine: any-address becomes loopback."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104 - compared, not bound
    scheme = "https" if is_https else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{scheme}://{host}:{port}"


def publish(data_dir: Path, *, port: int, url: str, version: str, token: str, fingerprint: str = "") -> Control:
    """Writes control.json for the running peer. Raises NotPrivate if one is there that others may read."""
    require_private(data_dir / _FILE)
    control = Control(port=port, token=token, pid=os.getpid(), url=url, version=version, fingerprint=fingerprint)
    write_private(data_dir / _FILE, json.dumps(dataclasses.asdict(control), indent=1) + "\n")
    return control


def withdraw(data_dir: Path, control: Control) -> None:
    """Removes control.json at a clean end, if it is still this peer's."""
    if read(data_dir) == control:
        (data_dir / _FILE).unlink(missing_ok=True)


def read(data_dir: Path) -> Control | None:
    """What the peer of this folder wrote, or None. It may be gone without a trace: only a connection tells.

    Raises NotPrivate when others may read the file: its token is not to be trusted.
    """
    path = data_dir / _FILE
    require_private(path)
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return Control(
            port=int(table["port"]),
            token=str(table["token"]),
            pid=int(table["pid"]),
            url=str(table["url"]),
            version=str(table["version"]),
            fingerprint=str(table.get("fingerprint", "")),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_owned(data_dir: Path) -> bool:
    """True while a peer has the folder: from before control.json is there until its process has ended."""
    try:
        with (data_dir / _LOCK).open("r+", encoding="ascii") as file:
            _lock(file)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


@contextlib.contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Owns the data folder, made if it is not there, until the block or the process ends.

    Raises AlreadyRunning naming the process that has it, NotPrivate when the folder is open to others.
    """
    private_folder(data_dir)
    path = data_dir / _LOCK
    try:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="ascii")
    except OSError as error:
        raise StartError(f"the data folder {data_dir} cannot be written: {error.strerror}") from None
    with file:
        try:
            _lock(file)
        except OSError:
            holder = file.read(20).strip()
            raise AlreadyRunning(
                f"the data folder {data_dir} is in use by another peer" + (f", process {holder}" if holder else ""),
                fix="`llm-router down` ends it; a second peer takes its own --data-dir and --port",
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


if os.name == "nt":
    import msvcrt

    def _lock(file: IO[str]) -> None:
        file.seek(_LOCKED_BYTE)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        finally:
            file.seek(0)

else:
    import fcntl

    def _lock(file: IO[str]) -> None:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
