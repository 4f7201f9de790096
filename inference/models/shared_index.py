"""The index file of a models folder, shared by the threads and processes that use the folder.

Reading needs no lock: the file is replaced as a whole, and a change by another process is seen by its inode, size and
time. Writing is under a lock file: `.lock`, beside it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from inference.models import index
from inference.models.index import Entry
from inference.models.lock import folder_lock

log = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 30.0  # under the lock are only renames and the writing of a small file
REPLACE_TRIES = 50  # Windows refuses to replace a file that somebody is reading just now
REPLACE_RETRY_S = 0.02

Signature = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _State:
    """The entries as last read or written, and what the file looked like then. Replaced as a whole."""

    signature: Signature | None
    entries: Mapping[str, Entry]


class SharedIndex:
    """`index.json` of one folder. Where the folder cannot be written, the entries live in memory."""

    def __init__(self, folder: Path, *, now: Callable[[], float]) -> None:
        self._folder = folder
        self._file = folder / "index.json"
        self._now = now
        self._state = _State(None, {})
        self._writing = threading.Lock()

    def entries(self) -> Mapping[str, Entry]:
        """The entries by id, read again if another process wrote them. A damaged file changes nothing until the next
        `changing`."""
        signature = _signature(self._file)
        if signature is not None and signature != self._state.signature:
            try:
                with self._file.open("rb") as file:
                    signature = _signature(file.fileno())
                    self._state = _State(signature, index.parsed(file.read(index.INDEX_BYTES_MAX)))
            except (OSError, index.DamagedIndex) as error:
                log.warning("the index of models cannot be read; the next scan builds it again: %s", error)
                self._state = _State(signature, self._state.entries)
        return self._state.entries

    @contextlib.contextmanager
    def changing(self, *, or_in_memory: bool = False) -> Iterator[dict[str, Entry]]:
        """The entries, to be changed and then saved, while no other thread or process does.

        `or_in_memory`: where the folder cannot be written, the change stays with this process; else `OSError` is
        raised. An exception out of the block saves nothing. Raises `StoreUnavailable` when the lock is held too long.
        """
        with self._writing, contextlib.ExitStack() as held:
            is_locked = True
            try:
                held.enter_context(folder_lock(self._folder / ".lock", timeout_s=LOCK_TIMEOUT_S))
            except OSError:
                if not or_in_memory:
                    raise
                is_locked = False
            before = self._read_or_set_aside() if is_locked else self._state.entries
            entries = dict(before)
            yield entries
            try:
                if is_locked and (entries != before or not self._file.exists()):
                    self._save(entries)
            except OSError as error:
                if not or_in_memory:
                    raise
                log.warning("the index of models cannot be written and is kept in memory: %s", error)
            self._state = _State(_signature(self._file), entries)

    def _read_or_set_aside(self) -> dict[str, Entry]:
        try:
            with self._file.open("rb") as file:
                data = file.read(index.INDEX_BYTES_MAX)
            return index.parsed(data)
        except FileNotFoundError:
            return {}
        except index.DamagedIndex as error:
            aside = self._file.with_name(f"index.json.corrupt-{int(self._now())}")
            log.warning("the index of models was damaged and is built again; the old one is %s: %s", aside, error)
            replace(self._file, aside)
            return {}

    def _save(self, entries: Mapping[str, Entry]) -> None:
        temporary = self._file.with_name(f"index.json.{secrets.token_hex(8)}.part")
        try:
            with temporary.open("xb") as file:
                file.write(index.dumped(entries.values()))
                flush(file)
            replace(temporary, self._file)
        finally:
            temporary.unlink(missing_ok=True)


def replace(source: Path, target: Path) -> None:
    """Renames `source` to `target`, atomically, so that it outlasts a power cut. Flush the file itself before."""
    for tries_left in reversed(range(REPLACE_TRIES)):
        try:
            source.replace(target)
            break
        except PermissionError:
            if os.name != "nt" or not tries_left:
                raise
            time.sleep(REPLACE_RETRY_S)
    if os.name != "nt":  # Windows cannot flush a folder, and needs not
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def flush(file: BinaryIO) -> None:
    """Puts what was written on the disk."""
    file.flush()
    os.fsync(file.fileno())


def _signature(file: Path | int) -> Signature | None:
    try:
        found = os.fstat(file) if isinstance(file, int) else file.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns)
