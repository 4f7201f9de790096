"""The file of a backup: a gzipped tar that begins with its manifest, written whole and read as a stranger's.

It is read by hand, plain files of known names only, so that no path, link or extended header in it means anything, and
nothing is larger than the manifest says. Sources: POSIX ustar, with GNU's sizes above 8 GiB (Python's tarfile).

Not here: what goes into a backup (mesh.backup) and where it goes back to (mesh.restore).
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import os
import re
import tarfile
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mesh.errors import BackupError
from mesh.version import our_version

FORMAT = 1
MANIFEST = "manifest.json"
MANIFEST_BYTES_MAX = 64 * 1024
PIECE_BYTES = 1024 * 1024
_BLOCK = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A file of a backup."""

    name: str
    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, name: str, content: bytes | Path) -> Stored:
        """As the manifest tells of a file with this content."""
        if isinstance(content, bytes):
            return cls(name=name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        with content.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return cls(name=name, size_bytes=file.tell(), sha256=digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a backup says of itself. `peer_id` is empty when there was no identity yet."""

    version: str
    created_at: str
    name: str
    peer_id: str
    files: tuple[Stored, ...]
    format: int = FORMAT

    @property
    def size_bytes(self) -> int:
        """All files together, unpacked."""
        return sum(file.size_bytes for file in self.files)


def pack(out: IO[bytes], manifest: Manifest, contents: Mapping[str, bytes | Path]) -> None:
    """Writes the archive. `contents` are the files of the manifest, in its order."""
    encoded = (json.dumps(dataclasses.asdict(manifest), indent=1) + "\n").encode()
    sizes = {MANIFEST: len(encoded)} | {file.name: file.size_bytes for file in manifest.files}
    with (
        gzip.GzipFile(fileobj=out, mode="wb", filename="", compresslevel=6) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for name, content in {MANIFEST: encoded, **contents}.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = sizes[name], 0o600, int(time.time())
            with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
                tar.addfile(entry, file)


@contextlib.contextmanager
def reading(file: Path, names: tuple[str, ...]) -> Iterator[Archive]:
    """The archive, its manifest read and checked. `names`: the files that it may hold.

    Raises BackupError when it is none, damaged, or made by a newer program; OSError when it cannot be read.
    """
    with file.open("rb") as raw, gzip.GzipFile(fileobj=raw, mode="rb") as stream:
        yield Archive(stream, file, names)


class Archive:
    """An archive being read: its files in the order of the manifest, each to its end."""

    def __init__(self, stream: gzip.GzipFile, file: Path, names: tuple[str, ...]) -> None:
        self._stream = stream
        self._file = file
        self.manifest = self._manifest(names)

    def unpack(self, stored: Stored, path: Path | None) -> None:
        """Writes the next file, which must be this one, to `path`, on disk and checked; None: it is only checked."""
        if self._next() != (stored.name, stored.size_bytes):
            raise self._damaged(f"{stored.name} is not where it should be, or not as large")
        digest = hashlib.sha256()
        with contextlib.ExitStack() as stack:
            out: IO[bytes] | None = None
            if path is not None:
                path.parent.mkdir(mode=0o700, exist_ok=True)
                out = stack.enter_context(os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"))
            for piece in self._pieces(stored.size_bytes):
                digest.update(piece)
                if out is not None:
                    out.write(piece)
            if out is not None:
                out.flush()
                os.fsync(out.fileno())
        if digest.hexdigest() != stored.sha256:
            raise self._damaged(f"{stored.name} does not have the SHA-256 that it should have")

    def end(self) -> None:
        """Raises BackupError unless the archive ends here."""
        if (entry := self._next()) is not None:
            raise self._damaged(f"it holds more than it says: {entry[0][:80]!r}")

    def _manifest(self, names: tuple[str, ...]) -> Manifest:
        entry = self._next()
        if entry is None or entry[0] != MANIFEST or entry[1] > MANIFEST_BYTES_MAX:
            raise self._damaged(f"it does not begin with {MANIFEST}")
        try:
            table = json.loads(b"".join(self._pieces(entry[1])))
            version, number = table["version"], table["format"]
            if isinstance(version, str) and isinstance(number, int):
                _require_not_newer(version, number)  # first: a newer one may have other fields
            manifest = _parsed(table)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._damaged(f"its {MANIFEST} is not understood ({type(error).__name__})") from None
        if unknown := {file.name for file in manifest.files} - set(names):
            raise self._damaged(f"it has files that no backup has: {sorted(unknown)[0][:80]!r}")
        return manifest

    def _next(self) -> tuple[str, int] | None:
        """Name and size of the next file; None at the end. Raises BackupError for anything but a plain file."""
        header = self._exactly(_BLOCK)
        if not header.strip(b"\0"):
            return None
        try:
            entry = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        except (tarfile.TarError, ValueError):
            raise self._damaged("a header is damaged") from None
        if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or entry.size < 0:
            raise self._damaged(f"it holds something that is no plain file: {entry.name[:80]!r}")
        return entry.name, entry.size

    def _pieces(self, size: int) -> Iterator[bytes]:
        left = size
        while left:
            piece = self._exactly(min(PIECE_BYTES, left))
            left -= len(piece)
            yield piece
        self._exactly(-size % _BLOCK)

    def _exactly(self, size: int) -> bytes:
        try:
            data = self._stream.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self._damaged(str(error)) from None
        if len(data) < size:
            raise self._damaged("it ends early")
        return data

    def _damaged(self, why: str) -> BackupError:
        return BackupError(f"{self._file} is no whole backup of llm-router: {why}", fix="take another backup")


def _parsed(table: dict[str, Any]) -> Manifest:
    """Raises ValueError, KeyError or TypeError."""
    texts = {name: table[name] for name in ("version", "created_at", "name", "peer_id")}
    files = tuple(
        Stored(name=file["name"], size_bytes=file["size_bytes"], sha256=file["sha256"]) for file in table["files"]
    )
    if table["format"] != FORMAT or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError("a field")
    if not all(type(file.size_bytes) is int and file.size_bytes >= 0 for file in files):
        raise ValueError("a size")
    if not all(re.fullmatch(r"[0-9a-f]{64}", file.sha256) for file in files):
        raise ValueError("a hash")
    if len({file.name for file in files}) != len(files) or not all(isinstance(file.name, str) for file in files):
        raise ValueError("a name")
    return Manifest(files=files, **texts)


def _require_not_newer(version: str, number: int) -> None:
    theirs, ours = _numbers(version), _numbers(our_version())
    if number > FORMAT or (theirs and ours and theirs > ours):
        shown = version if re.fullmatch(r"[0-9A-Za-z.+-]{1,40}", version) else "a newer version"
        raise BackupError(
            f"the backup was made by llm-router {shown}, and this is {our_version()}",
            fix=f"install {shown} or later: uv tool install 'llm-router-mesh>={shown}'",
        )


def _numbers(version: str) -> tuple[int, ...]:
    """For comparing; empty for a version that has none, such as that of a folder of sources."""
    match = re.match(r"(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?", version, re.ASCII)
    return tuple(int(part or 0) for part in match.groups()) if match else ()
