"""The models folder on a real disk: found, imported, shared, damaged, attacked."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import stat
import threading
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.errors import ModelNotFound
from inference.models import index, shared_index
from inference.models.errors import (
    BadModelFile,
    BadModelName,
    DiskFull,
    ModelNameTaken,
    NotOurFile,
    StoreUnavailable,
)
from inference.models.lock import folder_lock
from inference.models.scan import scanned
from inference.models.store import Store
from tests.fixtures import make_gguf


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three different models, made once."""
    folder = tmp_path_factory.mktemp("made")
    make_gguf.tiny(folder / "tiny.gguf")
    make_gguf.tiny(folder / "other.gguf", seed=2)
    make_gguf.embed(folder / "embed.gguf")
    return folder


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def store(models: Path) -> Store:
    store = Store(models)
    store.rescan()
    return store


def ids(store: Store) -> list[str]:
    return [model.id for model in store.list()]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


# Importing


def test_an_imported_file_is_a_blob_named_by_its_content(store: Store, models: Path, made: Path) -> None:
    seen: list[tuple[int, int]] = []
    model = store.import_file(made / "tiny.gguf", progress=lambda done, total: seen.append((done, total)))
    digest = sha256(made / "tiny.gguf")
    assert (model.id, model.sha256, model.origin, model.counts) == ("tiny", digest, "import", True)
    assert model.path == models / "blobs" / f"sha256-{digest}"
    assert model.path.read_bytes() == (made / "tiny.gguf").read_bytes()
    assert model.header.name == "tiny-random"
    assert seen[-1] == (model.size_bytes, model.size_bytes)
    assert tree(models) == {".lock", "index.json", "blobs", f"blobs/sha256-{digest}"}
    assert store.list() == [model] and store.get("tiny") == model and store.get("Tiny") is None


def test_the_original_may_change_and_vanish_afterwards(store: Store, tmp_path: Path, made: Path) -> None:
    original = Path(shutil.copy(made / "tiny.gguf", tmp_path / "mine.gguf"))
    model = store.import_file(original)
    original.write_bytes(b"something else")
    original.unlink()
    assert sha256(model.path) == model.sha256


def test_a_chosen_name_is_the_id_and_the_files_own_name_an_alias(store: Store, made: Path) -> None:
    model = store.import_file(made / "tiny.gguf", "org/mine:q4")
    assert (model.id, model.aliases) == ("org/mine:q4", ("tiny",))


def test_the_same_content_twice_is_one_blob(store: Store, models: Path, made: Path) -> None:
    first = store.import_file(made / "tiny.gguf", "a")
    second = store.import_file(made / "tiny.gguf", "b")
    assert first.path == second.path
    assert store.import_file(made / "tiny.gguf", "a") == first
    assert store.import_file(made / "tiny.gguf") in (first, second)
    assert ids(store) == ["a", "b"]
    assert len(list((models / "blobs").iterdir())) == 1
    store.remove("a")
    assert second.path.exists()
    store.remove("b")
    assert not second.path.exists()
    assert ids(store) == []


def test_a_taken_name_is_refused_whatever_its_case_and_nothing_is_left(store: Store, models: Path, made: Path) -> None:
    store.import_file(made / "tiny.gguf", "mine")
    before = tree(models)
    for name, file in (("mine", "other.gguf"), ("MINE", "other.gguf"), ("Mine", "embed.gguf")):
        with pytest.raises(ModelNameTaken, match="--name") as caught:
            store.import_file(made / file, name)
        assert caught.value.status == 409
    assert tree(models) == before


def test_an_embedder_imported_does_not_count(store: Store, made: Path) -> None:
    assert not store.import_file(made / "embed.gguf").counts


def test_a_bad_file_is_refused_before_anything_is_written(
    store: Store, models: Path, tmp_path: Path, made: Path
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes((made / "tiny.gguf").read_bytes()[:-1])
    before = tree(models)
    for path in (cut, tmp_path / "absent.gguf", tmp_path, Path("zero\0byte")):
        with pytest.raises(BadModelFile):
            store.import_file(path)
    assert tree(models) == before


def test_a_file_that_grows_while_it_is_copied_is_refused(
    store: Store, models: Path, tmp_path: Path, made: Path
) -> None:
    growing = Path(shutil.copy(made / "tiny.gguf", tmp_path / "growing.gguf"))

    def grow(done: int, total: int) -> None:
        with growing.open("ab") as file:
            file.write(b"more")

    with pytest.raises(BadModelFile, match="changed while it was copied"):
        store.import_file(growing, progress=grow)
    assert list((models / "blobs").iterdir()) == []


def test_an_import_can_be_cancelled_and_leaves_nothing(store: Store, models: Path, made: Path) -> None:
    class Cancelled(Exception):
        pass

    def cancel(done: int, total: int) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        store.import_file(made / "tiny.gguf", progress=cancel)
    assert list((models / "blobs").iterdir()) == []
    assert ids(store) == []


def test_a_full_disk_is_told_with_both_numbers(store: Store, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 100_000_000))
    with pytest.raises(DiskFull, match=r"1 MB.*100 MB free") as caught:
        store.import_file(made / "tiny.gguf")
    assert caught.value.status == 507
    assert ids(store) == []


def test_a_damaged_blob_is_replaced_by_importing_the_file_again(store: Store, made: Path) -> None:
    model = store.import_file(made / "tiny.gguf", "a")
    model.path.write_bytes(b"short")
    again = store.import_file(made / "tiny.gguf", "b")
    assert sha256(again.path) == again.sha256 == model.sha256


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_importing_a_link_copies_what_it_points_to(store: Store, tmp_path: Path, made: Path) -> None:
    link = tmp_path / "link.gguf"
    link.symlink_to(made / "tiny.gguf")
    model = store.import_file(link)
    assert model.id == "tiny"
    assert not model.path.is_symlink()


# The user's own files


def test_files_in_the_folder_are_served_in_place(models: Path, made: Path) -> None:
    places = ["a.gguf", "pub/b.GGUF", "pub/repo/c.gguf", "llama_3b/model.gguf"]
    ignored = ["pub/repo/deep/d.gguf", ".hidden/e.gguf", "blobs/f.gguf", "readme.txt"]
    for place in places + ignored:
        (models / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(made / "tiny.gguf", models / place)
    store = Store(models)
    store.rescan()
    assert ids(store) == ["a", "b", "c", "llama_3b"]
    model = store.get("c")
    assert model is not None
    assert (model.path, model.origin, model.sha256) == (models / "pub/repo/c.gguf", "folder", None)
    reference = store.get("llama_3b")
    assert reference is not None and reference.aliases == ("llama:3b",)
    assert store.problems == []


def test_files_of_the_same_name_get_their_folders_in_front(models: Path, made: Path) -> None:
    for place in ("x.gguf", "one/x.gguf", "two/x.gguf", "hello.gguf"):
        (models / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(made / "tiny.gguf", models / place)
    store = Store(models)
    store.rescan()
    assert ids(store) == ["hello-2", "one/x", "two/x", "x"]


def test_hashes_of_the_users_files_come_later_and_survive(models: Path, store: Store, made: Path) -> None:
    shutil.copy(made / "tiny.gguf", models / "a.gguf")
    shutil.copy(made / "other.gguf", models / "b.gguf")
    store.rescan()
    assert store.hash_pending(should_stop=lambda: True) == 0
    assert store.hash_pending() == 2
    assert store.hash_pending() == 0
    again = Store(models)
    again.rescan()
    assert [model.sha256 for model in again.list()] == [sha256(models / "a.gguf"), sha256(models / "b.gguf")]


def test_a_changed_file_keeps_its_id_and_loses_its_hash(models: Path, store: Store, made: Path) -> None:
    shutil.copy(made / "tiny.gguf", models / "a.gguf")
    store.rescan()
    store.hash_pending()
    shutil.copy(made / "embed.gguf", models / "a.gguf")
    store.rescan()
    model = store.get("a")
    assert model is not None
    assert model.sha256 is None and model.header.is_embedding


def test_a_file_that_vanished_or_went_bad_is_no_model_any_more(models: Path, store: Store, made: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(made / "tiny.gguf", models / name)
    store.rescan()
    (models / "a.gguf").unlink()
    (models / "b.gguf").write_bytes(b"GGUF")
    store.rescan()
    assert ids(store) == []
    assert [path for path, _ in store.problems] == [models / "b.gguf"]


def test_bad_files_are_problems_and_the_good_ones_are_served(
    models: Path, store: Store, made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(made / "tiny.gguf", models / "good.gguf")
    (models / "bad.gguf").write_bytes(b"<!DOCTYPE html>")
    (models / "empty.gguf").touch()
    with caplog.at_level(logging.WARNING):
        store.rescan()
        store.rescan()
    assert ids(store) == ["good"]
    assert {path.name: reason for path, reason in store.problems}.keys() == {"bad.gguf", "empty.gguf"}
    assert "web page" in dict(store.problems)[models / "bad.gguf"]
    assert len(caplog.records) == 2, "a known problem is not told again"


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_links_and_pipes_in_the_folder_are_not_followed(models: Path, store: Store, made: Path) -> None:
    (models / "link.gguf").symlink_to(made / "tiny.gguf")
    (models / "linked").symlink_to(made, target_is_directory=True)
    (models / "blobs" / ("sha256-" + "0" * 64)).symlink_to(made / "tiny.gguf")
    os.mkfifo(models / "pipe.gguf")
    store.rescan()
    assert ids(store) == []
    reasons = dict(store.problems)
    assert "symbolic link" in reasons[models / "link.gguf"]
    assert "regular file" in reasons[models / "pipe.gguf"]


@pytest.mark.skipif(os.name == "nt", reason="not a file name there")
def test_a_file_name_that_cannot_be_shown_is_a_problem(models: Path, store: Store, made: Path) -> None:
    for name in ("a\nb.gguf", "a\\b.gguf", os.fsdecode(b"\xff.gguf")):
        shutil.copy(made / "tiny.gguf", models / name)
    store.rescan()
    assert ids(store) == []
    assert len(store.problems) == 3


def test_the_users_file_is_never_deleted(models: Path, store: Store, made: Path) -> None:
    shutil.copy(made / "tiny.gguf", models / "a.gguf")
    store.rescan()
    with pytest.raises(NotOurFile, match="delete it there") as caught:
        store.remove("a")
    assert caught.value.status == 409
    assert (models / "a.gguf").exists() and ids(store) == ["a"]


def test_importing_a_file_of_the_folder_only_names_it(models: Path, store: Store, made: Path) -> None:
    shutil.copy(made / "tiny.gguf", models / "a.gguf")
    model = store.import_file(models / "a.gguf", "better")
    assert (model.id, model.path, model.origin, model.aliases) == ("better", models / "a.gguf", "folder", ("a",))
    store.rescan()
    assert ids(store) == ["better"]
    assert list((models / "blobs").iterdir()) == []
    shutil.copy(made / "other.gguf", models / "b.gguf")
    with pytest.raises(ModelNameTaken):
        store.import_file(models / "b.gguf", "better")
    assert ids(store) == ["b", "better"]


# The index


def test_a_new_process_finds_what_was_there_without_reading_files_again(models: Path, store: Store, made: Path) -> None:
    store.import_file(made / "tiny.gguf", "mine")
    shutil.copy(made / "other.gguf", models / "a.gguf")
    store.rescan()
    assert Store(models).list() == store.list()
    before = (models / "index.json").stat()
    again = Store(models)
    again.rescan()
    assert again.list() == store.list()
    assert (models / "index.json").stat() == before, "nothing changed, nothing is written"


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"version": 2, "models": []}',
        b'{"version": 1, "models": [{}]}',
        b"\xff" * 100,
        b"[" * 100_000,
    ],
    ids=["empty", "cut", "list", "null", "newer", "fields", "binary", "deep"],
)
def test_a_damaged_index_is_set_aside_and_built_again(models: Path, store: Store, made: Path, damage: bytes) -> None:
    kept = store.import_file(made / "tiny.gguf", "mine")
    shutil.copy(made / "other.gguf", models / "a.gguf")
    store.rescan()
    (models / "index.json").write_bytes(damage)
    again = Store(models, now=lambda: 1234.5)
    again.rescan()
    assert ids(again) == ["a", "tiny-random"]
    rebuilt = again.get("tiny-random")
    assert rebuilt is not None and (rebuilt.path, rebuilt.sha256) == (kept.path, kept.sha256)
    assert (models / "index.json.corrupt-1234").read_bytes() == damage
    assert json.loads((models / "index.json").read_bytes())["version"] == 1


def test_a_running_process_keeps_its_names_when_the_index_is_damaged(models: Path, store: Store, made: Path) -> None:
    store.import_file(made / "tiny.gguf", "mine")
    (models / "index.json").write_bytes(b"damaged")
    assert ids(store) == ["mine"]
    store.rescan()
    assert ids(store) == ["mine"] == ids(Store(models))


@pytest.mark.parametrize("field", ["file", "origin", "sha256", "header", "size_bytes", "id"])
@pytest.mark.parametrize("lie", ["/etc/passwd", "../../x.gguf", "blobs/../x", "C:\\x", "", None, 1, True, [], {"a": 1}])
def test_an_index_that_lies_about_a_field_is_damaged(store: Store, made: Path, field: str, lie: object) -> None:
    store.import_file(made / "tiny.gguf", "mine")
    document = json.loads((store.folder / "index.json").read_bytes())
    if document["models"][0][field] == lie or (field == "id" and isinstance(lie, str)):
        lie = 2.5
    if field == "size_bytes" and lie == 1 and not isinstance(lie, bool):
        lie = "1"
    document["models"][0][field] = lie
    with pytest.raises(index.DamagedIndex):
        index.parsed(json.dumps(document).encode())


def test_a_vanished_blob_is_told_and_forgotten(store: Store, made: Path) -> None:
    model = store.import_file(made / "tiny.gguf", "mine")
    model.path.unlink()
    store.rescan()
    assert ids(store) == []
    assert "`mine` was forgotten" in store.problems[0].reason


def test_leftovers_of_killed_imports_are_deleted_after_an_hour(models: Path, store: Store) -> None:
    old, fresh = models / "blobs" / "a.part", models / "blobs" / "b.part"
    for part in (old, fresh):
        part.write_bytes(b"x")
    os.utime(old, (time.time() - 3700,) * 2)
    store.rescan()
    assert fresh.exists() and not old.exists()


def test_a_folder_that_cannot_be_written_is_served_from_memory(models: Path, made: Path) -> None:
    """A folder in the place of the lock file stands for a file system that may only be read (tests may run as root)."""
    models.mkdir()
    (models / ".lock").mkdir()
    shutil.copy(made / "tiny.gguf", models / "a.gguf")
    store = Store(models)
    store.rescan()
    assert store.hash_pending() == 1
    assert [(model.id, model.sha256) for model in store.list()] == [("a", sha256(models / "a.gguf"))]
    assert not (models / "index.json").exists()
    with pytest.raises(StoreUnavailable):
        store.import_file(made / "other.gguf")
    assert list((models / "blobs").iterdir()) == []
    with pytest.raises(NotOurFile):
        store.remove("a")


# Two processes


def test_two_stores_of_one_folder_see_each_others_changes(models: Path, store: Store, made: Path) -> None:
    other = Store(models)
    other.rescan()
    store.import_file(made / "tiny.gguf", "mine")
    assert ids(other) == ["mine"]
    other.import_file(made / "other.gguf", "theirs")
    assert ids(store) == ["mine", "theirs"]
    store.remove("theirs")
    assert ids(other) == ["mine"]
    with pytest.raises(ModelNotFound):
        other.remove("theirs")


def test_a_model_that_another_process_removes_during_a_scan_stays_removed(
    models: Path, store: Store, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.import_file(made / "tiny.gguf", "gone")
    scan = scanned

    def scan_then_removed(*args: Any) -> Any:
        found = scan(*args)
        Store(models).remove("gone")
        return found

    monkeypatch.setattr("inference.models.store.scanned", scan_then_removed)
    store.rescan()
    assert ids(store) == []


def _imports(models: Path, sources: list[Path], prefix: str) -> None:
    store = Store(models)
    for number, source in enumerate(sources):
        store.rescan()
        store.import_file(source, f"{prefix}-{number}")
    store.remove(f"{prefix}-0")


def test_processes_that_import_at_once_lose_nothing(models: Path, made: Path) -> None:
    sources = [made / "tiny.gguf", made / "other.gguf", made / "embed.gguf"]
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_imports, args=(models, sources, f"p{n}")) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    store = Store(models)
    store.rescan()
    assert ids(store) == sorted(f"p{n}-{number}" for n in range(3) for number in (1, 2))
    assert len(list((models / "blobs").iterdir())) == 2
    assert store.problems == []


def test_threads_that_import_and_list_at_once_lose_nothing(store: Store, made: Path) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            store.import_file(made / "tiny.gguf", f"t{number}")
            assert f"t{number}" in ids(store)
            store.rescan()
        except BaseException as error:  # noqa: BLE001 - told by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert ids(store) == [f"t{number}" for number in range(8)]


def test_a_change_waits_for_the_locks_holder_but_not_for_ever(
    store: Store, models: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_index, "LOCK_TIMEOUT_S", 0.0)
    with folder_lock(models / ".lock", timeout_s=0.0), pytest.raises(StoreUnavailable, match="held"):
        store.import_file(made / "tiny.gguf", "x")
    assert ids(store) == []
    store.import_file(made / "tiny.gguf", "x")


# Attacks


HOSTILE = st.sampled_from(
    [
        "../x", "../../etc/cron.d/x", "/tmp/x", "a/../../x", "..\\x", "C:\\x", "\\\\h\\s\\x", "a\0b", "CON", "nul.gguf",
        "%2e%2e%2fx", "..%2fx", "a/./b", "~/x", "$HOME/x", "`id`", "-rf", "a" * 300, "\u202egnp", "e\u0301", "ﬀ", "",
        "index.json", "blobs/x", ".lock", "sha256-" + "0" * 64,
    ]
)  # fmt: skip


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=HOSTILE | st.text(max_size=60) | st.text(alphabet="./\\a:~%\0", max_size=20))
def test_no_name_creates_or_reads_anything_outside_the_blobs(tmp_path: Path, made: Path, name: str) -> None:
    """Names from users become ids: the only files are blobs named by content, the index and the lock."""
    models = tmp_path / "models"
    ours = {"blobs", "index.json", ".lock"}
    blob = f"blobs/sha256-{sha256(made / 'tiny.gguf')}"
    outside = {file for file in tree(tmp_path) if not file.startswith("models")}
    store = Store(models)
    for missing in (name, f"{name}/../index.json"):
        assert store.get(missing) is None
        with pytest.raises(ModelNotFound):
            store.remove(missing)
    try:
        model = store.import_file(made / "tiny.gguf", name)
    except BadModelName:
        assert not models.exists() or tree(models) == ours
    else:
        assert (model.id, model.path) == (name, models / blob)
        assert tree(models) == {*ours, blob}
        store.remove(name)
        assert tree(models) == ours
    assert {file for file in tree(tmp_path) if not file.startswith("models")} == outside


@given(st.text(max_size=80) | st.text(alphabet="0123456789abcdefABCDEF./", min_size=60, max_size=70))
def test_a_digest_becomes_a_path_only_if_it_is_one(digest: str) -> None:
    try:
        file = index.blob_file(digest)
    except ValueError:
        return
    assert len(digest) == 64 and set(digest) <= set("0123456789abcdef")
    assert file == f"blobs/sha256-{digest}"


@given(st.text(max_size=80) | st.text(alphabet="./\\a:\0", max_size=12))
def test_a_file_of_the_index_stays_inside(file: str) -> None:
    if index.is_inside(file):
        root = Path("/models")
        assert os.path.normpath(root / file).startswith("/models/") or os.name == "nt"


@pytest.mark.skipif(os.name == "nt", reason="modes mean little there")
def test_blobs_are_not_executable(store: Store, made: Path) -> None:
    mode = store.import_file(made / "tiny.gguf").path.stat().st_mode
    assert not mode & (stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
