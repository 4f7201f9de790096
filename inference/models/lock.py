"""A lock file that keeps two processes from writing one folder at once. The system drops it when its holder dies."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from inference.models.errors import StoreUnavailable

RETRY_S = 0.02


@contextlib.contextmanager
def folder_lock(file: Path, *, timeout_s: float) -> Iterator[None]:
    """Holds the lock `file` (made if absent, never deleted), waiting up to `timeout_s`. Blocks: call it in a thread.

    Not reentrant. Raises `StoreUnavailable` when another holder does not let go in time, `OSError` when the file cannot
    be opened, as in a folder that may only be read.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
    try:
        deadline = time.monotonic() + timeout_s
        while not _acquired(descriptor):
            if time.monotonic() >= deadline:
                raise StoreUnavailable(f"Another process has held {file} for more than {timeout_s:g} s; try again.")
            time.sleep(RETRY_S)
        try:
            yield
        finally:
            _release(descriptor)
    finally:
        os.close(descriptor)


if sys.platform == "win32":
    import msvcrt

    def _acquired(descriptor: int) -> bool:
        try:
            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _release(descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _acquired(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _release(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
