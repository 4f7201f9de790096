"""Takes a backup back: unpacks it beside the places, checked to the last byte, then puts it there in one go.

    check the manifest -> unpack, sizes and SHA-256 -> ask -> set the old files aside -> move the new ones in

Until the last two steps nothing of the data folder changes; if one of them fails, it is undone. A process that is
killed between them leaves a note, `restore-unfinished`, with which no peer starts (`require_whole`): the old files are
then in the folder that it names, and the same command finishes the work. Nothing that was there is ever deleted.

Where a file goes is decided by the settings, never by the backup's names; outside the data folder only router.db is
written, where the settings have it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gossip.identity import IDENTITY_FILE
from gossip.storage import MESH_FILE
from mesh.archive import Archive, Manifest, reading
from mesh.backup import CONFIG_FILE, DATABASES, NAMES, TLS_CERT, TLS_KEY, places, sync_folder, told
from mesh.config import Config, Loaded, load
from mesh.control import locked
from mesh.errors import BackupError, SettingError, StartError
from mesh.private import write_private

UNFINISHED = "restore-unfinished"
ASIDE = "before-restore-"
SPARE_BYTES = 16 * 1024 * 1024
"""Left free on the disk: a full one would stop the peer that starts next."""
_STAGE = ".restore-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What was done. `aside`: the folders with the old files. `notes`: what a person should know."""

    manifest: Manifest
    files: dict[str, Path]
    aside: tuple[Path, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is going to be done: `old` files are set aside, and each of the new ones goes to its place."""

    manifest: Manifest
    files: dict[str, Path]
    old: tuple[Path, ...]
    notes: tuple[str, ...]


def look(file: Path) -> Manifest:
    """What the backup says of itself. Raises BackupError when it is none, or made by a newer program."""
    with told(f"the backup {file} cannot be read"), reading(file, NAMES) as archive:
        return archive.manifest


def restore(
    file: Path,
    loaded: Loaded,
    *,
    new_identity: bool = False,
    confirm: Callable[[Plan], None] = lambda plan: None,
    environ: Mapping[str, str] | None = None,
) -> Restored:
    """Puts the backup in the place of what is there. Blocks.

    `loaded`: the settings as they are now, read from `environ`. `confirm` is asked when all is checked and nothing
    changed yet, and raises to stop. With `new_identity` the key and what it knows of its mesh are left out. Raises
    BackupError, and AlreadyRunning while a peer has the folder; then everything is as it was.
    """
    look(file)  # before a folder is made for it
    folder = loaded.config.data_dir
    left_out = (IDENTITY_FILE, MESH_FILE) if new_identity else ()
    with told(f"the backup cannot be put into {folder}"), locked(folder), contextlib.ExitStack() as stack:
        for left in folder.glob(f"{_STAGE}*"):  # of one that was killed; nobody else restores here now
            shutil.rmtree(left)
        stage = stack.enter_context(_stage(folder))
        with reading(file, NAMES) as archive:
            _unpack(archive, stage, left_out)
        names = [stored.name for stored in archive.manifest.files if stored.name not in left_out]
        plan = _planned(archive.manifest, names, _settings_after(loaded, stage, environ))
        confirm(plan)
        moves = [_near(stack, stage / name, goal) for name, goal in plan.files.items()]
        aside = _exchange(folder, plan.old, moves, note={"file": str(file.absolute())})
    return Restored(manifest=plan.manifest, files=plan.files, aside=aside, notes=plan.notes)


def require_whole(data_dir: Path) -> None:
    """Raises StartError when a restore into this folder was cut off in the middle."""
    try:
        note = json.loads((data_dir / UNFINISHED).read_bytes())
        aside, file = str(note["aside"]), str(note["file"])
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError):
        aside, file = str(data_dir / f"{ASIDE}..."), "FILE"
    raise StartError(
        f"a restore into {data_dir} was cut off: some of its files are new, the old ones are in {aside}",
        fix=f"finish it: llm-router restore {file} --yes",
    )


# -- what goes where


def _unpack(archive: Archive, stage: Path, left_out: Sequence[str]) -> None:
    wanted = [stored for stored in archive.manifest.files if stored.name not in left_out]
    _require_room(stage, sum(stored.size_bytes for stored in wanted))
    for stored in archive.manifest.files:
        archive.unpack(stored, stage / stored.name if stored in wanted else None)
    archive.end()


def _planned(manifest: Manifest, names: Sequence[str], settings: tuple[Config, list[str]]) -> Plan:
    config, notes = settings
    goals = {name: _goal(name, config, notes) for name in names}
    if len(set(goals.values())) < len(goals):
        raise BackupError("its settings put two files at one place", fix="give settings with --config FILE")
    old = dict.fromkeys([*_state(config), *goals.values()])
    return Plan(
        manifest=manifest,
        files=goals,
        old=tuple(path for path in old if path.exists() or path.is_symlink()),
        notes=tuple(notes),
    )


def _settings_after(loaded: Loaded, stage: Path, environ: Mapping[str, str] | None) -> tuple[Config, list[str]]:
    """The settings that the peer will have with the backup's config.toml, and what to say of them."""
    unpacked = stage / CONFIG_FILE
    if loaded.origins["config"].kind != "default":
        note = f"the backup's {CONFIG_FILE} is not in use: the settings come from {loaded.config.config}"
        return loaded.config, [note] if unpacked.exists() else []
    if not unpacked.exists():
        unpacked = stage / "none.toml"
        unpacked.touch(mode=0o600)
    try:
        return load({"data_dir": str(loaded.config.data_dir), "config": str(unpacked)}, environ).config, []
    except SettingError as error:
        raise BackupError(
            f"the backup's {CONFIG_FILE} cannot be used here: {error.what}",
            fix="give other settings with --config FILE",
        ) from None


def _goal(name: str, config: Config, notes: list[str]) -> Path:
    """Where a file of the backup goes."""
    folder = config.data_dir
    if name == CONFIG_FILE:
        return folder / CONFIG_FILE
    path = places(config)[name]
    if name in (TLS_CERT, TLS_KEY) and not path.resolve().is_relative_to(folder.resolve()):
        notes.append(f"{folder / name} belongs to {path}, which is left as it is")
        return folder / name
    return path


def _state(config: Config) -> list[Path]:
    """All that is the state of a peer, in the order in which it is set aside: a write-ahead log before its file."""
    found = places(config) | {CONFIG_FILE: config.data_dir / CONFIG_FILE}
    logs = [found[name].with_name(found[name].name + suffix) for name in DATABASES for suffix in ("-wal", "-shm")]
    return [*logs, *(path for name, path in found.items() if name not in (TLS_CERT, TLS_KEY))]


def _require_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size + SPARE_BYTES:
        raise BackupError(
            f"the backup takes {size:,} bytes, and there are {free:,} free at {folder.parent}",
            fix="make room, or choose another place with --data-dir",
        )


@contextlib.contextmanager
def _stage(parent: Path) -> Iterator[Path]:
    """A folder to unpack into, gone at the end."""
    folder = parent / f"{_STAGE}{secrets.token_hex(4)}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _near(stack: contextlib.ExitStack, source: Path, goal: Path) -> tuple[Path, Path]:
    """What to rename to `goal`: `source`, or a copy of it where the goal is on another disk."""
    goal.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    if goal.parent.stat().st_dev == source.stat().st_dev:
        return source, goal
    near = stack.enter_context(_stage(goal.parent)) / goal.name
    _require_room(near.parent, source.stat().st_size)
    shutil.copyfile(source, near)
    near.chmod(0o600)
    with near.open("rb+") as file:
        os.fsync(file.fileno())
    return near, goal


# -- the exchange


def _exchange(
    folder: Path, old: Sequence[Path], moves: Sequence[tuple[Path, Path]], *, note: dict[str, str]
) -> tuple[Path, ...]:
    """Sets `old` aside and moves the new ones in, or does nothing. Answers the folders with the old files."""
    stamp = _free_name({path.parent for path in old} | {folder})
    unfinished = folder / UNFINISHED
    before = unfinished.read_text(encoding="utf-8") if unfinished.exists() else None
    roots = {path: _root(path, folder) for path in old}
    away = [(path, root / stamp / path.relative_to(root)) for path, root in roots.items()]
    done: list[tuple[Path, Path]] = []
    try:
        write_private(unfinished, json.dumps(note | {"aside": str(folder / stamp)}))
        for source, goal in [*away, *moves]:
            goal.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
            done.append((source, goal))
            source.replace(goal)
        for changed in {path.parent for move in done for path in move}:
            sync_folder(changed)
    except BaseException:
        _undo(done, {goal.parent for _, goal in away} | {root / stamp for root in roots.values()})
        if before is None:
            unfinished.unlink(missing_ok=True)
        else:
            write_private(unfinished, before)
        raise
    unfinished.unlink()
    sync_folder(folder)
    return tuple(dict.fromkeys(root / stamp for root in roots.values()))


def _undo(done: Sequence[tuple[Path, Path]], made: set[Path]) -> None:
    """Moves everything back, and removes the folders that were made for it."""
    for source, goal in reversed(done):
        if not source.exists() and not source.is_symlink():  # the last one may not have been moved
            goal.replace(source)
    for folder in sorted(made, reverse=True):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _root(path: Path, folder: Path) -> Path:
    """In which folder an old file is set aside: the data folder, or its own when it lies elsewhere."""
    return folder if path.is_relative_to(folder) and ".." not in path.parts else path.parent


def _free_name(folders: set[Path]) -> str:
    """A name for the folder of the old files that none of these has yet."""
    first = found = ASIDE + time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    number = 2
    while any((folder / found).exists() for folder in folders):
        found, number = f"{first}-{number}", number + 1
    return found
