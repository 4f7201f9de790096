"""The models folder: which models are in it, adding one, removing one. Every call may block: run them in a thread.

    <models>/index.json            what is here; two peers may share the folder
    <models>/.lock                 held while index or blobs change
    <models>/blobs/sha256-<hex>    imported files, named by their content
    <models>/blobs/<random>.part   an import on its way
    <models>/**/*.gguf             the user's own files, three levels deep, served in place and never touched

A folder that may only be read is served as well. Files are never named by a user's or a peer's text. Not here: which
model a name means (names), what is loaded (pool), downloads.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from inference.models import index, names
from inference.models.errors import BadModelFile, DiskFull, ModelNameTaken, NotOurFile, StoreUnavailable
from inference.models.fit import shown
from inference.models.gguf import read_header
from inference.models.index import Entry
from inference.models.model import Header, StoredModel, does_count
from inference.models.scan import DEPTH_MAX, Problem, Scan, scanned
from inference.models.shared_index import SharedIndex, flush
from inference.models.shared_index import replace as replace_file

log = logging.getLogger(__name__)

CHUNK_BYTES = 4 * 1024 * 1024
DISK_HEADROOM_BYTES = 256 * 1024 * 1024  # a disk filled to the last byte hurts more than a missing model
PART_STALE_S = 3600.0  # a copy under way touches its part far more often

# Named here, as inside the class `list` is its method.
Models = list[StoredModel]
Problems = list[Problem]
Progress = Callable[[int, int], None]  # bytes done, bytes in all


class Store:
    """The models of one folder. Call `rescan` once before the first `list`. Safe from several threads and processes."""

    def __init__(self, models_dir: Path, *, now: Callable[[], float] = time.time) -> None:
        self.folder = models_dir.absolute()
        self.problems: Problems = []
        self._index = SharedIndex(self.folder, now=now)
        self._now = now

    def list(self) -> Models:
        """All models, ordered by id; picks up what another process changed."""
        return names.in_order(self._stored(entry) for entry in self._index.entries().values())

    def get(self, model_id: str) -> StoredModel | None:
        """The model with exactly this id."""
        entry = self._index.entries().get(model_id)
        return None if entry is None else self._stored(entry)

    def import_file(self, path: Path, name: str | None = None, progress: Progress | None = None) -> StoredModel:
        """Copies a model file into the store, under `name` or a name made from the file's.

        A copy, not a link: what the user does to the original later cannot change what we serve. A file that is in the
        models folder already stays where it is and only gets the name. The same content twice is one blob, and asking
        for a known content again answers the model that is there. An exception out of `progress` cancels.

        Raises `BadModelFile`, `BadModelName`, `ModelNameTaken`, `DiskFull`, `StoreUnavailable`.
        """
        if name is not None:
            names.checked(name)
        source = _resolved(path)
        read_header(source)  # a bad file is refused before gigabytes are copied
        try:
            if source.is_relative_to(self.folder.resolve()):
                return self._named_in_place(source, name)
            self._check_can_take(source.stat().st_size, name)
            with self._part() as part:
                digest = _copied(source, part, progress)
                header = read_header(part)  # of what was copied: the source may have changed meanwhile
                return self._added(part, digest, header, source, name)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(f"The disk of {self.folder} became full; nothing was kept.") from error
            raise StoreUnavailable(f"Importing {source} into {self.folder} failed: {error.strerror}.") from error

    def remove(self, model_id: str) -> None:
        """Forgets the model and deletes its blob, unless another model has the same content.

        Raises `ModelNotFound`, `StoreUnavailable`, and `NotOurFile` for a file that the user placed in the folder.
        """
        self._removable(model_id, self._index.entries())
        try:
            with self._index.changing() as entries:
                entry = self._removable(model_id, entries)
                del entries[model_id]
                if all(other.file != entry.file for other in entries.values()):
                    # The file first: after a crash in between, the next scan drops the entry. The other way round it
                    # would find a blob without one, and serve it again.
                    (self.folder / entry.file).unlink(missing_ok=True)
        except OSError as error:
            raise StoreUnavailable(f"`{model_id}` cannot be deleted now: {error.strerror}. Is it in use?") from error

    def rescan(self) -> None:
        """Brings the index up to date with the folder: new, changed and vanished files; fills `problems`.

        A damaged index is set aside as `index.json.corrupt-<time>` and built again from the files.
        """
        try:
            (self.folder / "blobs").mkdir(parents=True, exist_ok=True)
            self._delete_stale_parts()
        except OSError as error:
            log.warning("the models folder cannot be written: %s", error)
        known = {entry.file: entry for entry in self._index.entries().values()}
        scan = scanned(self.folder, known, self._now())
        try:
            with self._index.changing(or_in_memory=True) as entries:
                self._merge(entries, scan)
        except OSError as error:
            raise StoreUnavailable(f"The index of {self.folder} cannot be read: {error.strerror}.") from error
        for problem in scan.problems:
            if problem not in self.problems:
                log.warning("a file in the models folder cannot be served: %s: %s", problem.path, problem.reason)
        self.problems = scan.problems

    def hash_pending(self, should_stop: Callable[[], bool] = lambda: False) -> int:
        """Hashes the user's files that have no hash yet, one after another; how many were done. Takes long.

        `should_stop` is asked every few megabytes. Raises `StoreUnavailable`.
        """
        done = 0
        for entry in list(self._index.entries().values()):
            if entry.sha256 is not None:
                continue
            digest = self._hash(entry, should_stop)
            if should_stop():
                break
            if digest is None:
                continue  # it changed or vanished while it was read: the next scan sees to it
            with self._index.changing(or_in_memory=True) as entries:
                if entries.get(entry.id) == entry:
                    entries[entry.id] = replace(entry, sha256=digest)
                    done += 1
        return done

    def _stored(self, entry: Entry) -> StoredModel:
        return StoredModel(
            id=entry.id,
            path=self.folder / entry.file,
            size_bytes=entry.size_bytes,
            sha256=entry.sha256,
            header=entry.header,
            origin=entry.origin,
            added_at=entry.added_at,
            aliases=entry.aliases,
            counts=does_count(entry.header, entry.size_bytes),
        )

    def _removable(self, model_id: str, entries: Mapping[str, Entry]) -> Entry:
        entry = entries.get(model_id)
        if entry is None:
            raise names.absent(model_id, [self._stored(e) for e in entries.values()])
        if entry.origin != "import":
            raise NotOurFile(
                f"`{model_id}` is {self.folder / entry.file}, a file that you placed in the models folder; "
                "delete it there and it is gone here."
            )
        return entry

    # Importing

    def _named_in_place(self, source: Path, name: str | None) -> StoredModel:
        """The model of a file that is in the folder already, called `name` from now on."""
        self.rescan()
        file = source.relative_to(self.folder.resolve()).as_posix()
        with self._index.changing() as entries:
            entry = next((entry for entry in entries.values() if entry.file == file), None)
            if entry is None:
                raise BadModelFile(
                    source,
                    "is in the models folder, but not where models are looked for: named *.gguf, "
                    f"at most {DEPTH_MAX} levels deep, not in a hidden folder",
                )
            if name is not None and name != entry.id:
                del entries[entry.id]
                self._check_is_free(name, entries)
                entry = replace(entry, id=name, aliases=names.aliases_of(PurePosixPath(file), name))
                entries[name] = entry
        return self._stored(entry)

    def _check_can_take(self, size_bytes: int, name: str | None) -> None:
        """Refuses what is bound to fail after a long copy."""
        entries = self._index.entries()
        taken = entries.get(name or "")
        if name is not None and (taken is None or taken.size_bytes != size_bytes):
            self._check_is_free(name, entries)
        blobs = self.folder / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(blobs).free
        if size_bytes + DISK_HEADROOM_BYTES > free:
            raise DiskFull(
                f"The model has {shown(size_bytes)}; the disk of {self.folder} has {shown(free)} free, of which "
                f"{shown(DISK_HEADROOM_BYTES)} stay free. Remove a model, or put LLM_NODE_MODELS_DIR on another disk."
            )

    @contextlib.contextmanager
    def _part(self) -> Iterator[Path]:
        part = self.folder / "blobs" / f"{secrets.token_hex(16)}.part"
        try:
            yield part
        finally:
            part.unlink(missing_ok=True)

    def _added(self, part: Path, digest: str, header: Header, source: Path, name: str | None) -> StoredModel:
        """Makes `part` a blob and a model. Without a chosen `name`, a known content keeps the one it has."""
        file = index.blob_file(digest)
        origin = PurePosixPath(source.parent.name, source.name)
        model_id = name or names.derived(origin, ())
        with self._index.changing() as entries:
            for entry in entries.values():
                if entry.file == file and (name is None or entry.id == name):
                    return self._stored(entry)
            self._check_is_free(model_id, entries)
            blob = self.folder / file
            if not _is_regular(blob) or blob.stat().st_size != part.stat().st_size:
                replace_file(part, blob)
            found = blob.lstat()
            entry = Entry(
                id=model_id,
                file=file,
                size_bytes=found.st_size,
                modified_ns=found.st_mtime_ns,
                sha256=digest,
                origin="import",
                added_at=self._now(),
                header=header,
                aliases=names.aliases_of(origin, model_id),
            )
            entries[model_id] = entry
        return self._stored(entry)

    def _check_is_free(self, name: str, entries: Mapping[str, Entry]) -> None:
        for taken, entry in entries.items():
            if taken.casefold() == name.casefold():
                raise ModelNameTaken(
                    f"The name `{taken}` belongs to {self.folder / entry.file} ({shown(entry.size_bytes)}); "
                    "choose another with --name, or remove that model first."
                )

    # Scanning

    def _merge(self, entries: dict[str, Entry], scan: Scan) -> None:
        """Applies a scan to the entries, which another process may have changed since."""
        bad = {problem.path for problem in scan.problems}
        for entry in list(entries.values()):
            path = self.folder / entry.file
            if path in bad or not _is_regular(path):
                del entries[entry.id]
                if entry.origin == "import" and path not in bad:
                    scan.problems.append(Problem(path, f"is gone; `{entry.id}` was forgotten"))
        by_file: dict[str, list[Entry]] = {}
        for entry in entries.values():
            by_file.setdefault(entry.file, []).append(entry)
        for found in scan.entries:
            for old in by_file.get(found.file, ()):
                if (old.size_bytes, old.modified_ns) != (found.size_bytes, found.modified_ns):
                    entries[old.id] = replace(found, id=old.id, aliases=old.aliases, added_at=old.added_at)
            # Looked at again: another process may have removed the model since the scan, and its blob with it.
            if found.file not in by_file and _is_regular(self.folder / found.file):
                new = found if found.id and found.id not in entries else _named(found, entries)
                entries[new.id] = new

    def _delete_stale_parts(self) -> None:
        """Leftovers of imports that were killed."""
        for folder in (self.folder, self.folder / "blobs"):
            for part in folder.glob("*.part"):
                with contextlib.suppress(OSError):
                    if _is_regular(part) and self._now() - part.lstat().st_mtime > PART_STALE_S:
                        part.unlink()

    def _hash(self, entry: Entry, should_stop: Callable[[], bool]) -> str | None:
        digest = hashlib.sha256()
        try:
            with (self.folder / entry.file).open("rb") as file:
                while not should_stop() and (chunk := file.read(CHUNK_BYTES)):
                    digest.update(chunk)
                found = os.fstat(file.fileno())
        except OSError:
            return None
        is_unchanged = (found.st_size, found.st_mtime_ns) == (entry.size_bytes, entry.modified_ns)
        return digest.hexdigest() if is_unchanged else None


def _named(entry: Entry, entries: Mapping[str, Entry]) -> Entry:
    """A new entry with an id; a blob that no index knows is called as its header says."""
    file = PurePosixPath(entry.file)
    if entry.origin == "import":
        file = PurePosixPath((entry.header.name or entry.header.architecture).replace("/", "-"))
    model_id = names.derived(file, {taken.casefold() for taken in entries})
    return replace(entry, id=model_id, aliases=names.aliases_of(file, model_id))


def _resolved(path: Path) -> Path:
    try:
        return path.resolve(strict=True)
    except FileNotFoundError:
        raise BadModelFile(path, "there is no such file") from None
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle, until Python 3.13
        raise BadModelFile(path, f"cannot be read: {error}") from None


def _copied(source: Path, part: Path, progress: Progress | None) -> str:
    """Copies, flushed to the disk; the SHA-256 of what was written, in lower-case hex."""
    digest = hashlib.sha256()
    done = 0
    with source.open("rb") as reader, part.open("xb") as writer:
        size = os.fstat(reader.fileno()).st_size
        while chunk := reader.read(CHUNK_BYTES):
            digest.update(chunk)
            writer.write(chunk)
            done += len(chunk)
            if done > size:
                break
            if progress is not None:
                progress(done, size)
        if done != size:
            raise BadModelFile(source, "changed while it was copied; try again when nobody writes to it")
        flush(writer)
    return digest.hexdigest()


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False
