"""Files and folders that only their owner may touch, with the errors of a peer that does not start.

The work is gossip.private's, which keeps the identity the same way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from gossip import private
from gossip.errors import NotPrivate as OpenToOthers
from gossip.errors import UnusableIdentity
from mesh.errors import NotPrivate, StartError


def private_folder(path: Path) -> None:
    """Makes the folder with mode 0700, or checks that it has it. An empty one of ours is given that mode.

    Raises NotPrivate when others may enter it, StartError when it cannot be made.
    """
    with _as_start_errors():
        private.private_folder(path)


def require_private(path: Path) -> None:
    """Raises NotPrivate when the file or folder exists and others have any right to it."""
    with _as_start_errors():
        private.require_private(path)


def write_private(path: Path, text: str) -> None:
    """Replaces the file in one step, mode 0600 from its first byte on, on disk when this returns."""
    private.write_private(path, text.encode())


@contextlib.contextmanager
def _as_start_errors() -> Iterator[None]:
    try:
        yield
    except UnusableIdentity as error:
        kind = NotPrivate if isinstance(error, OpenToOthers) else StartError
        raise kind(error.what, fix=error.fix) from None
