"""Peers of one user on one machine find each other by a folder that only that user can read.

`<run dir>/<peer id>.json`, mode 0600 in a folder of 0700: `{"peer_id", "port", "pid", "secret"}`. Who can read it is
the same user, so its secret admits without a door or a question, over loopback alone. Files of processes that are gone
are removed by whoever sees them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

import psutil

log = logging.getLogger(__name__)

FILE_BYTES_MAX = 4096
FILES_MAX = 64
PID_MAX = 2**31
"""What operating systems count to; a larger number cannot be asked for."""
_PEER_ID = re.compile(r"[a-z2-7]{52}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Housemate:
    """Another peer of this user on this machine."""

    peer: str
    port: int
    pid: int
    secret: str = field(repr=False)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


class RunDir:
    """The folder. Trouble with it is logged once and never raised: it is one way of several to be found."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own: Path | None = None
        self._has_complained = False

    def publish(self, mate: Housemate) -> None:
        """Writes this peer's file."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not self._is_private():
                self._complain(f"{self._folder} is open to others: chmod 700 it")
                return
            own = self._folder / f"{mate.peer}.json"
            part = own.with_suffix(f".{os.getpid()}.part")
            body = {"peer_id": mate.peer, "port": mate.port, "pid": mate.pid, "secret": mate.secret}
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
                json.dump(body, file)
            part.replace(own)
            self._own = own
        except OSError as error:
            self._complain(f"{self._folder}: {error.strerror}")

    def withdraw(self) -> None:
        """Removes this peer's file, if it is still this process's."""
        if self._own is not None:
            mate = _read(self._own)
            if mate is not None and mate.pid == os.getpid():
                with contextlib.suppress(OSError):
                    self._own.unlink()
            self._own = None

    def others(self, me: str) -> list[Housemate]:
        """The living others. Blocks for a few file reads."""
        found: list[Housemate] = []
        try:
            if not self._folder.is_dir() or not self._is_private():
                return []
            paths = sorted(self._folder.glob("*.json"))[:FILES_MAX]
        except OSError as error:
            self._complain(f"{self._folder}: {error.strerror}")
            return []
        for path in paths:
            mate = _read(path)
            if mate is None or mate.peer == me or mate.pid == os.getpid():
                continue
            if not psutil.pid_exists(mate.pid):
                with contextlib.suppress(OSError):
                    path.unlink()
                continue
            found.append(mate)
        return found

    def _is_private(self) -> bool:
        if os.name != "posix":
            return True
        info = self._folder.stat()
        return info.st_uid == os.getuid() and not stat.S_IMODE(info.st_mode) & 0o077

    def _complain(self, reason: str) -> None:
        if not self._has_complained:
            self._has_complained = True
            log.warning("peers of this user on this machine cannot find each other: %s", reason)


def _read(path: Path) -> Housemate | None:
    try:
        info = path.stat(follow_symlinks=False)
        if not stat.S_ISREG(info.st_mode) or info.st_size > FILE_BYTES_MAX:
            return None
        if os.name == "posix" and (info.st_uid != os.getuid() or stat.S_IMODE(info.st_mode) & 0o077):
            return None
        table = json.loads(path.read_text(encoding="ascii"))
        peer, port, pid, secret = table["peer_id"], table["port"], table["pid"], table["secret"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not (isinstance(peer, str) and _PEER_ID.fullmatch(peer) and isinstance(secret, str)):
        return None
    if type(port) is not int or not 0 < port < 65536 or type(pid) is not int or not 0 < pid < PID_MAX:
        return None
    return Housemate(peer=peer, port=port, pid=pid, secret=secret)
