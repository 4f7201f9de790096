"""Looks for model files in a models folder: our blobs, and the user's own files up to three levels deep.

Reads the headers of new and changed files only, follows no links, and answers entries and problems; the store decides
what to do with them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from inference.models import index
from inference.models.errors import BadModelFile
from inference.models.gguf import read_header
from inference.models.index import Entry

DEPTH_MAX = 3  # <models>/publisher/repository/file.gguf, as other programs lay them out
ITEMS_MAX = 10_000  # of all folders together; more is no models folder, but a home directory


class Problem(NamedTuple):
    """A file of the folder that cannot be served, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Scan:
    """What was found. An entry is the known one, or a new one that has no id yet."""

    entries: list[Entry]
    problems: list[Problem]


def scanned(folder: Path, known: Mapping[str, Entry], now: float) -> Scan:
    """All model files of `folder`. `known` holds entries by file; the others are added at `now` (unix seconds)."""
    scan = Scan([], [])
    for file in _files(folder, scan.problems):
        entry = _entry(folder, file, known.get(file), now, scan.problems)
        if entry is not None:
            scan.entries.append(entry)
    return scan


def _files(root: Path, problems: list[Problem]) -> Iterator[str]:
    """Paths relative to `root`, with forward slashes, in a stable order: blobs first."""
    left = ITEMS_MAX
    folders = ["blobs", ""]
    while folders:
        folder = folders.pop(0)
        try:
            with os.scandir(root / folder) as scan:
                items = sorted(scan, key=lambda item: item.name)
        except OSError as error:
            if folder != "blobs":
                problems.append(Problem(root / folder, f"cannot be read: {error.strerror}"))
            continue
        left -= len(items)
        if left < 0:
            problems.append(Problem(root, f"holds more than {ITEMS_MAX:,} files and folders; not all were looked at"))
            return
        for item in items:
            file = f"{folder}/{item.name}" if folder else item.name
            if folder == "blobs":
                if index.blob_hash(file):
                    yield file
            elif item.is_dir(follow_symlinks=False):
                if file != "blobs" and not item.name.startswith(".") and file.count("/") < DEPTH_MAX - 1:
                    folders.append(file)
            elif item.name.casefold().endswith(".gguf"):
                yield file


def _entry(root: Path, file: str, old: Entry | None, now: float, problems: list[Problem]) -> Entry | None:
    path = root / file
    try:
        if not index.is_inside(file):
            raise BadModelFile(path, "has a name with unprintable characters, a backslash or a drive; rename it")
        found = path.lstat()
        if old and (old.size_bytes, old.modified_ns) == (found.st_size, found.st_mtime_ns):
            return old
        header = read_header(path, follow_symlinks=False)
    except BadModelFile as error:
        problems.append(Problem(path, error.reason))
        return None
    except OSError:
        return None  # gone since it was listed
    sha256 = index.blob_hash(file)
    return Entry(
        id="",
        file=file,
        size_bytes=found.st_size,
        modified_ns=found.st_mtime_ns,
        sha256=sha256,
        origin="import" if sha256 else "folder",
        added_at=now,
        header=header,
    )
