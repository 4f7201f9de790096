"""The admin map of one peer: what is written is there, also after a restart; what was ended stays so."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gossip.roster import Roster
from inference.errors import InvalidRequest
from mesh.admin import map as map_module
from mesh.admin.admin import Admin
from mesh.admin.errors import KeyEnded, MapFull, MapReadOnly, NoSigner
from mesh.admin.rows import VALUE_BYTES_MAX
from mesh.admin.storage import AdminFile
from tests.mesh.admin.house import MemoryStore, roster_of, who


@asynccontextmanager
async def admin_in(folder: Path, roster: Roster | None = None, *, bring: bool = False) -> AsyncIterator[Admin]:
    found = roster or roster_of("a")
    admin = Admin(identity=who("a"), roster=lambda: found, store=AdminFile(folder, program="0.3.0"))
    await admin.start(bring=bring)
    try:
        yield admin
    finally:
        await admin.close()


async def test_what_was_put_is_there_after_a_restart_and_what_was_ended_stays_ended(tmp_path: Path) -> None:
    async with admin_in(tmp_path) as admin:
        await admin.put("key/one", {"name": "laptop", "scopes": ["inference"], "expires_at": None})
        await admin.put("key/one", {"name": "notebook"})
        await admin.put("key/two", {"name": "x", "hash": "y"})
        await admin.end("key/two", "lost", keep=["name"])
        await admin.end("session/abc", "logged out")
    async with admin_in(tmp_path) as again:
        assert again.get("key/one") == {"name": "notebook", "scopes": ["inference"], "expires_at": None}
        assert again.keys("key/") == ["key/one"] == again.keys("")
        assert again.get("key/two") is None
        assert again.ended("key/two") == {"reason": "lost", "name": "x"}
        assert again.ended("session/abc") == {"reason": "logged out"}
        assert again.ended("key/one") is None and again.ended("key/never") is None
        assert again.is_ended("session/abc") and not again.is_ended("key/never")
        with pytest.raises(KeyEnded):
            await again.put("key/two", {"name": "back"})
        await again.end("key/two", "another reason")
        assert again.ended("key/two") == {"reason": "lost", "name": "x"}


async def test_who_watches_hears_of_what_changed_and_of_nothing_else(tmp_path: Path) -> None:
    async with admin_in(tmp_path) as admin:
        seen: list[frozenset[str]] = []

        def fails(keys: frozenset[str]) -> None:
            raise ZeroDivisionError

        admin.watch(fails)
        admin.watch(seen.append)
        first = await admin.put("key/1", {"name": "x"})
        assert await admin.put("key/1", {"name": "x"}) == first
        await admin.put("key/1", {})
        await admin.end("key/1", "over")
        await admin.end("key/1", "over")
        assert seen == [{"key/1"}, {"key/1"}]


async def test_what_a_reader_does_with_a_value_changes_nothing(tmp_path: Path) -> None:
    async with admin_in(tmp_path) as admin:
        await admin.put("key/1", {"scopes": ["a"]})
        found = admin.get("key/1")
        assert found is not None
        found["scopes"].append("admin")
        assert admin.get("key/1") == {"scopes": ["a"]}


async def test_writers_at_the_same_time_take_turns_and_each_write_is_whole(tmp_path: Path) -> None:
    async with admin_in(tmp_path) as admin:

        async def write(number: int) -> None:
            await admin.put("setting/x", {"left": number, "right": number})

        await asyncio.gather(*(write(number) for number in range(30)))
        found = admin.get("setting/x")
        assert found is not None and found["left"] == found["right"]
        before = [found]
    async with admin_in(tmp_path) as again:
        assert [again.get("setting/x")] == before


async def test_a_write_whose_caller_goes_away_is_done_all_the_same() -> None:
    roster, store = roster_of("a"), MemoryStore()
    admin = Admin(identity=who("a"), roster=lambda: roster, store=store)
    await admin.start()
    task = asyncio.create_task(admin.put("key/1", {"name": "x"}))
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await admin.close()
    assert admin.get("key/1") == {"name": "x"} and ("key/1", "name") in store.rows


@pytest.mark.parametrize(
    ("key", "fields"),
    [
        ("nokey", {"a": 1}),
        ("key/" + "x" * 200, {"a": 1}),
        ("key/1", {"A": 1}),
        ("key/1", {"a": float("nan")}),
        ("key/1", {"a": "\ud800"}),
        ("key/1", {"a": "x" * VALUE_BYTES_MAX}),
    ],
)
async def test_what_cannot_be_kept_is_refused_with_a_reason(tmp_path: Path, key: str, fields: dict[str, Any]) -> None:
    async with admin_in(tmp_path) as admin:
        with pytest.raises(InvalidRequest):
            await admin.put(key, {"fine": 1, **fields})
        assert admin.keys("") == []
        with pytest.raises(ValueError, match="end"):
            await admin.put("key/1", {"ended": "x"})


async def test_a_full_map_says_so_and_a_key_can_still_be_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(map_module, "ROWS_MAX", 3)
    async with admin_in(tmp_path) as admin:
        for number in range(3):
            await admin.put(f"key/{number}", {"name": "x"})
        with pytest.raises(MapFull, match="3 rows"):
            await admin.put("key/3", {"name": "x"})
        await admin.put("key/1", {"name": "y"})
        await admin.end("key/1", "stolen")
        assert admin.status().rows == 3


async def test_a_guest_of_the_mesh_writes_nothing(tmp_path: Path) -> None:
    async with admin_in(tmp_path, roster_of("ba", guests="a")) as admin:
        with pytest.raises(NoSigner):
            await admin.put("key/1", {"name": "x"})


async def test_a_map_of_a_newer_version_is_shown_and_not_written(tmp_path: Path) -> None:
    async with admin_in(tmp_path) as admin:
        await admin.put("key/1", {"name": "x"})
    other = sqlite3.connect(tmp_path / "admin.db", isolation_level=None)
    other.execute("PRAGMA user_version = 2")
    other.close()
    async with admin_in(tmp_path) as admin:
        assert admin.get("key/1") == {"name": "x"}
        assert "schema 2" in admin.status().read_only
        with pytest.raises(MapReadOnly):
            await admin.put("key/1", {"name": "y"})
        assert admin.get("key/1") == {"name": "x"}


@pytest.mark.parametrize("bring", [True, False])
async def test_a_map_of_another_mesh_is_archived_and_with_a_word_comes_along(tmp_path: Path, bring: bool) -> None:
    async with admin_in(tmp_path) as admin:
        await admin.put("key/1", {"name": "x"})
        await admin.end("key/2", "over")
    other = roster_of("ba")
    async with admin_in(tmp_path, other, bring=bring) as admin:
        assert admin.get("key/1") == ({"name": "x"} if bring else None)
        assert admin.is_ended("key/2") is bring
        assert len(list(tmp_path.glob(f"admin-{roster_of('a').mesh_id[:8]}-*.db"))) == 1
    async with admin_in(tmp_path, other) as admin:
        assert admin.get("key/1") == ({"name": "x"} if bring else None)
        await admin.move(other.mesh_id, keep=False)
        assert admin.get("key/1") == ({"name": "x"} if bring else None), "it is in that mesh already"


async def test_who_leaves_a_mesh_keeps_nothing_of_its_map(tmp_path: Path) -> None:
    rosters = [roster_of("ba"), roster_of("a")]
    admin = Admin(identity=who("a"), roster=lambda: rosters[0], store=AdminFile(tmp_path, program="0.3.0"))
    await admin.start()
    await admin.put("user/1", {"password": "a canary"})
    del rosters[0]
    await admin.move(rosters[0].mesh_id, keep=False)
    assert admin.keys("") == []
    await admin.close()
    assert not list(tmp_path.glob("admin-*"))
    assert not [path for path in tmp_path.iterdir() if b"a canary" in path.read_bytes()]
