"""The model that ships with the program, as a `StoredModel`. Not in the store: it cannot be removed or renamed."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from inference.models.errors import BadModelFile
from inference.models.gguf import read_header
from inference.models.model import HELLO, StoredModel

log = logging.getLogger(__name__)

FILE = Path(__file__).parent.parent / "hello" / "hello.gguf"


def hello_model(path: Path = FILE) -> StoredModel | None:
    """The embedded model; None when this installation lacks it or its file is damaged (a warning says so).

    Reads and hashes up to 4 MB: call it once, at start.
    """
    try:
        header = read_header(path)
        content = path.read_bytes()
        added_at = path.stat().st_mtime
    except (BadModelFile, OSError) as error:
        log.warning("the embedded model is not usable; install the program again: %s", error)
        return None
    return StoredModel(
        id=HELLO,
        path=path,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        header=header,
        origin="builtin",
        added_at=added_at,
        counts=False,
    )
