"""The index of a models folder: what `index.json` holds, to and from bytes. Pure; the store reads and writes the file.

    {"version": 1, "models": [{"id": ..., "file": "blobs/sha256-...", "size_bytes": ..., "header": {...}, ...}]}

Unknown fields are ignored, so that a newer program may add some; a change that an older one cannot read raises the
version. A file's header is kept with its size and modification time, and read again only when these change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import PurePosixPath, PureWindowsPath
from types import NoneType
from typing import Any

from inference.models.model import Header

VERSION = 1
INDEX_BYTES_MAX = 16 * 1024 * 1024  # 10,000 models of about 1 kB
_BLOB = re.compile(r"blobs/sha256-([0-9a-f]{64})")
_HEADER_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, NoneType),
    "int": (int,),
    "int | None": (int, NoneType),
    "bool": (bool,),
}


class DamagedIndex(Exception):
    """The bytes are no index that this program can read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One model of the folder. `file` is relative to it, with forward slashes, and stays inside it.

    `origin` is "import" (the file is our blob) or "folder" (the user's file, served in place). `added_at` is unix
    seconds. `sha256` is None until somebody hashed the file.
    """

    id: str
    file: str
    size_bytes: int
    modified_ns: int
    sha256: str | None
    origin: str
    added_at: float
    header: Header
    aliases: tuple[str, ...] = ()


def blob_file(sha256: str) -> str:
    """The file that holds the content with this hash. Raises ValueError unless it is one: it becomes a path."""
    file = f"blobs/sha256-{sha256}"
    if blob_hash(file) is None:
        raise ValueError(f"not a SHA-256 in lower-case hex: {sha256[:80]!r}")
    return file


def blob_hash(file: str) -> str | None:
    """The hash in a blob's name; None when `file` is no blob."""
    match = _BLOB.fullmatch(file)
    return match[1] if match else None


def is_inside(file: str) -> bool:
    """Whether `file`, relative to the folder, cannot lead out of it on any system, nor be mistaken in a message."""
    path = PurePosixPath(file)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and not PureWindowsPath(file).drive
        and "\\" not in file
        and file.isprintable()  # no control characters, nor what was no UTF-8
    )


def dumped(entries: Iterable[Entry]) -> bytes:
    """The bytes of `index.json`, sorted by id so that equal content is equal bytes."""
    models = [asdict(entry) for entry in sorted(entries, key=lambda entry: entry.id)]
    return json.dumps({"version": VERSION, "models": models}, indent=1).encode()


def parsed(data: bytes) -> dict[str, Entry]:
    """The entries by id. Raises `DamagedIndex` for anything that `dumped` could not have written."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedIndex(f"not JSON: {error}") from None
    version = _field(document, "version", (int,))
    if version != VERSION:
        raise DamagedIndex(f"has version {version!r}, this program reads version {VERSION}")
    entries: dict[str, Entry] = {}
    for item in _field(document, "models", (list,)):
        entry = _entry(item)
        if entry.id in entries:
            raise DamagedIndex(f"holds {entry.id!r} twice")
        entries[entry.id] = entry
    return entries


def _entry(item: object) -> Entry:
    aliases = _field(item, "aliases", (list,))
    if not all(isinstance(alias, str) for alias in aliases):
        raise DamagedIndex("an alias is not a string")
    entry = Entry(
        id=_field(item, "id", (str,)),
        file=_field(item, "file", (str,)),
        size_bytes=_field(item, "size_bytes", (int,)),
        modified_ns=_field(item, "modified_ns", (int,)),
        sha256=_field(item, "sha256", (str, NoneType)),
        origin=_field(item, "origin", (str,)),
        added_at=_field(item, "added_at", (int, float)),
        header=_header(_field(item, "header", (dict,))),
        aliases=tuple(aliases),
    )
    if not is_inside(entry.file):
        raise DamagedIndex(f"the file {entry.file[:80]!r} is not inside the folder")
    if entry.origin not in ("import", "folder") or (entry.origin == "import") != (blob_hash(entry.file) is not None):
        raise DamagedIndex(f"the origin of {entry.file[:80]!r} is {entry.origin[:80]!r}")
    if entry.origin == "import" and entry.sha256 != blob_hash(entry.file):
        raise DamagedIndex(f"the hash of {entry.file!r} is another")
    return entry


def _header(item: Mapping[str, object]) -> Header:
    return Header(**{f.name: _field(item, f.name, _HEADER_TYPES[str(f.type)]) for f in fields(Header)})


def _field(item: object, name: str, types: tuple[type, ...]) -> Any:
    """The value at `name`, of exactly one of `types` (a bool is no int)."""
    if not isinstance(item, dict) or name not in item:
        raise DamagedIndex(f"{name} is missing")
    value = item[name]
    if type(value) not in types:
        raise DamagedIndex(f"{name} is {str(value)[:80]!r}, not {' or '.join(t.__name__ for t in types)}")
    return value
