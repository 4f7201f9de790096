"""What was recorded in another mesh stays private, also after a restart and in a file that was begun anew."""

from __future__ import annotations

from pathlib import Path

from mesh.history.entries import Audit, LogId, encode
from mesh.history.past import Past
from mesh.history.store import HistoryStore

ME = "me"
ITEM = encode(Audit(at_ms=1, actor="ann", actor_kind="user", action="x"))


async def test_nothing_is_private_where_this_peer_always_was(tmp_path: Path) -> None:
    past = Past(ME)
    assert past.floors is None, "and nothing is known before the file was read"
    store = await HistoryStore.open(tmp_path / "router.db", ME)
    await store.append([ITEM])
    await past.read(store, "first")
    assert past.floors == {}
    await store.close()


async def test_what_was_there_before_a_move_is_private_after_a_restart_too(tmp_path: Path) -> None:
    store, past = await HistoryStore.open(tmp_path / "router.db", ME), Past(ME)
    await past.read(store, "first")
    await store.append([ITEM, ITEM])
    await store.take(LogId("other", 5), 1, [ITEM], 0)
    own = store.own
    await past.moved(store, "second", takes_along=False)
    await store.append([ITEM])
    assert past.floors == {own: 2}
    await store.close()
    store, past = await HistoryStore.open(tmp_path / "router.db", ME), Past(ME)
    await past.read(store, "second")
    assert past.floors == {own: 2}
    await store.close()


async def test_what_is_taken_along_is_not_private_but_what_was_stays_so(tmp_path: Path) -> None:
    store, past = await HistoryStore.open(tmp_path / "router.db", ME), Past(ME)
    await past.read(store, "first")
    await store.append([ITEM])
    await past.moved(store, "second", takes_along=False)
    await store.append([ITEM])
    await past.moved(store, "third", takes_along=True)
    assert past.floors == {store.own: 1}
    await store.close()


async def test_a_move_that_the_file_did_not_see_makes_all_of_it_private(tmp_path: Path) -> None:
    """The peer joined another mesh while the file could not be written."""
    store, past = await HistoryStore.open(tmp_path / "router.db", ME), Past(ME)
    await past.read(store, "first")
    await store.append([ITEM])
    own = store.own
    await store.close()
    store, past = await HistoryStore.open(tmp_path / "router.db", ME), Past(ME)
    await past.read(store, "second")
    assert past.floors == {own: 1}
    await store.close()


async def test_a_file_that_was_begun_anew_keeps_the_past_private(tmp_path: Path) -> None:
    """Its old logs come back from the damaged file, or from other peers."""
    past = Past(ME)
    store = await HistoryStore.open(tmp_path / "router.db", ME)
    await past.read(store, "first")
    await store.append([ITEM])
    own = store.own
    await past.moved(store, "second", takes_along=False)
    await store.close()
    store = await HistoryStore.open(tmp_path / "another.db", ME)
    await past.read(store, "second")
    assert past.floors == {own: 1}
    await store.close()
    store, past = await HistoryStore.open(tmp_path / "another.db", ME), Past(ME)
    await past.read(store, "second")
    assert past.floors == {own: 1}
    await store.close()
