"""Files and folders that only their owner may touch: making them, and refusing those that are open to others.

POSIX modes only: on Windows the profile folder's own access list protects them, and these checks pass.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from gossip.errors import NotPrivate, UnusableIdentity


def private_folder(path: Path) -> None:
    """Makes the folder with mode 0700, or checks that it has it. An empty one of ours is given that mode.

    Raises NotPrivate when others may enter it, UnusableIdentity when it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        if os.name == "posix" and path.stat().st_mode & 0o077 and not any(path.iterdir()):
            path.chmod(0o700)
    except OSError as error:
        raise UnusableIdentity(
            f"the folder {path} cannot be used: {error.strerror}",
            fix="choose another with --data-dir, or make it yours",
        ) from None
    require_private(path)


def require_private(path: Path) -> None:
    """Raises NotPrivate when the file or folder exists and others have any right to it."""
    if os.name != "posix":
        return
    try:
        mode = path.stat().st_mode & 0o777
    except FileNotFoundError:
        return
    if mode & 0o077:
        wanted = 0o700 if path.is_dir() else 0o600
        raise NotPrivate(
            f"{path} holds secrets and has mode {mode:04o}; allowed is {wanted:04o}", fix=f"chmod {wanted:o} {path}"
        )


def write_private(path: Path, data: bytes) -> None:
    """Replaces the file in one step, mode 0600 from its first byte on, on disk when this returns."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself durable. Windows cannot open folders and needs no such call."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
