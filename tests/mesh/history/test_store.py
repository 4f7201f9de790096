"""The store: what is acknowledged is kept, copies are prefixes, and trouble with the file passes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiosqlite
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.history import schema, store
from mesh.history.commit import Commit, Job
from mesh.history.entries import Audit, End, LogId, Start, Status, encode
from mesh.history.errors import BadEntry, HistoryUnavailable
from mesh.history.store import HistoryStore
from mesh.version import our_version
from tests.fixtures.tree import ROOT

ME = "a" * 52
OTHER = LogId("b" * 52, 1000)


@pytest.fixture
async def history(tmp_path: Path) -> AsyncIterator[HistoryStore]:
    opened = await HistoryStore.open(tmp_path / "router.db", ME)
    yield opened
    await opened.close()


def start(id_: str, at_ms: int = 1, body: bytes | None = b"{}") -> bytes:
    return encode(Start(id=id_, at_ms=at_ms, kind="chat", model="m", request_body=body))


def end(id_: str, at_ms: int = 2, status: Status = "success", body: bytes | None = b"{}") -> bytes:
    return encode(End(id=id_, at_ms=at_ms, status=status, duration_ms=1, response_body=body))


async def rows(history: HistoryStore, sql: str, *parameters: object) -> list[tuple[object, ...]]:
    async with history.reading() as connection:
        return [tuple(row) for row in await connection.execute_fetchall(sql, parameters)]


async def everything(history: HistoryStore, log: LogId) -> list[bytes]:
    found: list[bytes] = []
    after = 0
    while True:
        first, items = await history.read(log, after, 1000)
        if not items:
            return found
        found += items
        after = first - 1 + len(items)


async def test_what_is_appended_is_read_back_in_order(history: HistoryStore) -> None:
    assert await history.append([start("1"), start("2")]) == 2
    assert await history.append([end("1")]) == 3
    assert await everything(history, history.own) == [start("1"), start("2"), end("1")]
    assert history.vector() == {history.own: (0, 3)}


async def test_two_that_append_at_once_get_numbers_in_the_order_in_which_they_asked(history: HistoryStore) -> None:
    numbers = await asyncio.gather(*(history.append([start(str(number))]) for number in range(300)))
    assert numbers == list(range(1, 301))
    assert await everything(history, history.own) == [start(str(number)) for number in range(300)]


async def test_what_arrives_during_a_commit_goes_into_the_next_one(
    history: HistoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    committed = HistoryStore._committed

    async def counted(self: HistoryStore, batch: list[Job]) -> tuple[Commit, list[int]]:
        sizes.append(len(batch))
        return await committed(self, batch)

    monkeypatch.setattr(HistoryStore, "_committed", counted)
    first = asyncio.create_task(history.append([start("0")]))
    while not sizes:
        await asyncio.sleep(0)
    await asyncio.gather(first, *(history.append([start(str(number))]) for number in range(1, 100)))
    assert sizes == [1, 99]


async def test_a_read_is_bounded_but_gives_at_least_one_entry(history: HistoryStore) -> None:
    await history.append([start(str(number), body=b"x" * 1000) for number in range(10)])
    assert (await history.read(history.own, 0, 1))[1] == [start("0", body=b"x" * 1000)]
    assert len((await history.read(history.own, 3, 3500))[1]) == 3
    assert await history.read(history.own, 10, 1000) == (11, [])
    assert await history.read(OTHER, 0, 1000) == (1, [])


async def test_bytes_that_are_no_entry_are_not_appended(history: HistoryStore) -> None:
    with pytest.raises(BadEntry):
        await history.append([start("1"), b"nonsense"])
    assert history.vector() == {}


async def test_a_queue_that_is_full_answers_at_once(history: HistoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "QUEUE_ENTRIES_MAX", 3)
    waiting = [asyncio.create_task(history.append([start(str(number))])) for number in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(HistoryUnavailable, match="the limits are 3"):
        await history.append([start("4")])
    assert await asyncio.gather(*waiting) == [1, 2, 3]
    assert await history.append([start("4")]) == 4


async def test_an_append_that_nobody_waits_for_any_more_is_written_all_the_same(history: HistoryStore) -> None:
    waiting = asyncio.create_task(history.append([start("1")]))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert await history.append([start("2")]) == 2


async def test_closing_writes_what_waits_and_then_refuses(tmp_path: Path) -> None:
    history = await HistoryStore.open(tmp_path / "router.db", ME)
    waiting = [asyncio.create_task(history.append([start(str(number))])) for number in range(5)]
    await asyncio.sleep(0)
    await history.close()
    assert await asyncio.gather(*waiting) == [1, 2, 3, 4, 5]
    for refused in (history.append([start("9")]), history.read(history.own, 0, 1), history.settled()):
        with pytest.raises(HistoryUnavailable, match="closed"):
            await refused


# Copies of other peers' logs.


async def test_a_copy_takes_what_follows_and_ignores_the_rest(history: HistoryStore) -> None:
    items = [start(str(number)) for number in range(6)]
    assert await history.take(OTHER, 1, items[:2], 0) == 2
    assert await history.take(OTHER, 4, items[3:], 0) == 2  # a gap
    assert await history.take(OTHER, 2, items[1:4], 0) == 2  # known already
    assert await history.take(OTHER, 3, items[2:], 0) == 6
    assert await everything(history, OTHER) == items


PIECES = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12), st.integers(0, 12)), max_size=25)


@settings(max_examples=40, deadline=None)
@given(PIECES)
def test_a_copy_is_a_prefix_whatever_comes_in_whatever_order(pieces: list[tuple[int, int, int]]) -> None:
    """Pieces of a log, in any order, doubled, from senders that retired more or less of it."""
    items = [start(str(number)) for number in range(12)]

    async def run(folder: Path) -> None:
        history = await HistoryStore.open(folder / "router.db", ME)
        before = 0
        for first, count, retired in pieces:
            have = await history.take(OTHER, first, items[first - 1 : first - 1 + count], min(retired, first - 1))
            assert have >= before
            before = have
            await history.settled()
            low = history.vector().get(OTHER, (0, 0))[0]
            assert await everything(history, OTHER) == items[low:have]
            kept = await rows(history, "SELECT id FROM records ORDER BY place")
            assert kept == [(str(number),) for number in range(low, have)]
        await history.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))


async def test_entries_of_a_newer_program_are_copied_as_they_are(
    history: HistoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    items = [start("1"), b"\x91\x63", end("1")]
    assert await history.take(OTHER, 1, items, 0) == 3
    assert await everything(history, OTHER) == items
    assert await rows(history, "SELECT id, state FROM records") == [("1", 1)]
    assert "cannot read" in caplog.text


async def test_the_same_id_in_the_logs_of_two_peers_is_two_requests(history: HistoryStore) -> None:
    await history.append([start("1", at_ms=10)])
    await history.take(OTHER, 1, [start("1", at_ms=20), end("1", status="error")], 0)
    assert await rows(history, "SELECT at, state FROM records ORDER BY at") == [(10, 0), (20, 2)]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["older log first", "newer log first"])
@pytest.mark.parametrize("older", [[start("1")], [start("1"), end("1")]], ids=["open", "ended"])
async def test_a_request_that_two_logs_of_one_peer_have_is_one(
    history: HistoryStore, order: Sequence[int], older: list[bytes]
) -> None:
    logs = [(OTHER, older), (LogId(OTHER.peer, OTHER.run + 1), [start("1"), end("1")])]
    for number in order:
        log, items = logs[number]
        await history.take(log, 1, items, 0)
    assert await rows(history, "SELECT id, state FROM records") == [("1", 1)]
    assert await rows(history, "SELECT sum(requests) FROM hours") == [(1,)]


async def test_an_end_that_comes_before_its_start_waits_for_it(history: HistoryStore) -> None:
    """The file was damaged while requests ran: their ends are in the next log, and that may be copied first."""
    newer = LogId(OTHER.peer, OTHER.run + 1)
    stranger = LogId("c" * 52, 1)
    await history.take(newer, 1, [end("1", body=b"answer"), end("2"), end("3"), start("4"), end("4")], 0)
    await history.take(stranger, 1, [start("1")], 0)  # another peer's request of that name
    assert await rows(history, "SELECT id FROM early_ends ORDER BY id") == [("1",), ("2",), ("3",)]
    await history.take(OTHER, 1, [start("1"), start("2"), start("5")], 0)
    assert await rows(history, "SELECT id, state FROM records ORDER BY id, state") == [
        ("1", 0), ("1", 1), ("2", 1), ("4", 1), ("5", 0),
    ]  # fmt: skip
    assert await rows(history, "SELECT sum(requests) FROM hours") == [(3,)]
    assert await rows(history, "SELECT id FROM early_ends") == [("3",)]
    assert await rows(history, "SELECT count(*) FROM records WHERE ended > ?", history.arrived) == [(0,)]
    await history.retire(newer, 5)
    await history.settled()
    assert await rows(history, "SELECT count(*) FROM early_ends") == [(0,)]


async def test_a_start_or_an_end_that_was_written_twice_counts_once(history: HistoryStore) -> None:
    await history.append([start("1"), start("1"), end("1"), end("1", status="error")])
    assert await rows(history, "SELECT id, state FROM records") == [("1", 1)]
    assert await rows(history, "SELECT sum(requests) FROM hours") == [(1,)]


# Retirement.


async def test_retired_entries_are_gone_and_stay_gone(history: HistoryStore) -> None:
    items = [start("1"), end("1"), start("2"), end("2")]
    await history.take(OTHER, 1, items, 0)
    await history.retire(OTHER, 2)
    await history.settled()
    assert history.vector() == {OTHER: (2, 4)}
    assert await history.read(OTHER, 0, 1000) == (3, items[2:])
    assert await rows(history, "SELECT id FROM records") == [("2",)]
    assert await history.take(OTHER, 1, items, 0) == 4
    assert await rows(history, "SELECT count(*) FROM entries") == [(2,)]


async def test_a_log_can_be_retired_no_further_than_it_goes(history: HistoryStore) -> None:
    await history.append([start("1")])
    await history.retire(history.own, 99)
    await history.retire(OTHER, 99)
    assert history.vector() == {history.own: (1, 1)}
    assert await history.append([start("2")]) == 2


async def test_rows_that_were_to_be_deleted_go_after_a_restart_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = await HistoryStore.open(tmp_path / "router.db", ME)
    await history.append([start(str(number)) for number in range(50)])
    with monkeypatch.context() as patched:
        patched.setattr(HistoryStore, "_purge", lambda self, source: asyncio.sleep(0))
        await history.retire(history.own, 30)
        await history.close()
    history = await HistoryStore.open(tmp_path / "router.db", ME)
    await history.settled()
    assert await rows(history, "SELECT count(*) FROM entries") == [(20,)]
    await history.close()


async def test_appends_go_on_between_the_deletions_of_many_rows(
    history: HistoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PURGE_ENTRIES", 10)
    await history.append([start(str(number)) for number in range(1000)])
    await history.retire(history.own, 1000)
    left = []
    for number in range(5):
        await history.append([start(f"new {number}")])
        left += await rows(history, "SELECT count(*) FROM entries WHERE place & 0xffff <= 1000")
    assert left[-1] > (0,), "all was deleted before the appends got their turn"
    await history.settled()
    assert await rows(history, "SELECT count(*) FROM entries") == [(5,)]


async def test_what_is_retired_goes_although_appends_never_stop(
    history: HistoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PURGE_ENTRIES", 10)
    await history.append([start(str(number)) for number in range(300)])
    await history.retire(history.own, 300)
    settling = asyncio.create_task(history.settled())

    async def append(writer: int) -> None:
        number = 0
        while not settling.done():
            number += 1
            await history.append([start(f"{writer} {number}")])

    async with asyncio.timeout(60):
        await asyncio.gather(*(append(writer) for writer in range(20)))
    assert await rows(history, "SELECT count(*) FROM entries WHERE place & 0xffff <= 300") == [(0,)]


async def test_a_forgotten_log_leaves_nothing_and_may_come_again(history: HistoryStore) -> None:
    audit = encode(Audit(at_ms=1, actor="ann", actor_kind="user", action="key.create"))
    await history.take(OTHER, 1, [start("1"), audit], 0)
    await history.forget(OTHER)
    assert history.vector() == {}
    for table in ("entries", "records", "audits", "logs"):
        assert await rows(history, f"SELECT count(*) FROM {table}") == [(0,)]
    assert await history.take(OTHER, 1, [start("1")], 0) == 1
    assert await everything(history, OTHER) == [start("1")]


async def test_the_totals_are_those_of_the_records_that_are_there(history: HistoryStore) -> None:
    """They follow every ending, and every deletion."""
    hour = schema.HOUR_MS
    for number in range(40):
        await history.append([start(str(number), at_ms=number * hour // 7)])
        if number % 5:
            done = End(
                id=str(number),
                at_ms=number * hour,
                status="error" if number % 3 == 0 else "success",
                node=f"peer {number % 4}",
                prompt_tokens=number,
                completion_tokens=None if number % 2 else 7,
                duration_ms=number * 100,
            )
            await history.append([encode(done)])
    for through in (0, 17, 50):
        await history.retire(history.own, through)
        await history.settled()
        assert await rows(history, "SELECT * FROM hours ORDER BY 1, 2, 3, 4, 5, 6, 7") == await rows(
            history,
            "SELECT at / 3600000, model, node, node_name, key, key_name, state, count(*), sum(prompt_tokens),"
            " sum(ifnull(completion_tokens, 0)), sum(duration_ms) FROM records WHERE ended NOT NULL"
            " GROUP BY 1, 2, 3, 4, 5, 6, 7 ORDER BY 1, 2, 3, 4, 5, 6, 7",
        )
        assert await rows(history, "SELECT * FROM bands ORDER BY 1, 2") == await rows(
            history,
            "SELECT at / 3600000, duration_band, count(*) FROM records WHERE ended NOT NULL GROUP BY 1, 2",
        )


# Runs: a new one each time, above all that are known.


async def test_each_opening_writes_a_new_log(tmp_path: Path) -> None:
    clock = [5000]
    history = await HistoryStore.open(tmp_path / "router.db", ME, now_ms=lambda: clock[0])
    assert history.own == LogId(ME, 5000)
    await history.append([start("1")])
    await history.close()
    clock[0] = 4000  # the clock was set back
    history = await HistoryStore.open(tmp_path / "router.db", ME, now_ms=lambda: clock[0])
    assert history.own == LogId(ME, 5001)
    await history.append([start("2")])
    await history.close()
    history = await HistoryStore.open(tmp_path / "router.db", ME, above=9000, now_ms=lambda: clock[0])
    assert history.own == LogId(ME, 9001)
    assert history.vector() == {LogId(ME, 5000): (0, 1), LogId(ME, 5001): (0, 1)}
    await history.close()


async def test_a_restored_copy_of_the_file_continues_no_log_that_went_on_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "router.db"
    history = await HistoryStore.open(path, ME, now_ms=lambda: 5000)
    await history.append([start("1")])
    await history.close()
    copy = path.read_bytes()
    history = await HistoryStore.open(path, ME, now_ms=lambda: 6000)
    await history.append([start("2")])
    await history.close()
    path.write_bytes(copy)
    history = await HistoryStore.open(path, ME, now_ms=lambda: 6001)
    assert history.own == LogId(ME, 6001)
    # The log of the run that the copy does not know comes from the other peers.
    assert await history.take(LogId(ME, 6000), 1, [start("2")], 0) == 1
    await history.close()


# Crashes.


@pytest.mark.slow
@pytest.mark.parametrize("acknowledged", [1, 40, 400])
async def test_what_a_killed_process_acknowledged_is_there(tmp_path: Path, acknowledged: int) -> None:
    path = tmp_path / "router.db"
    command = [sys.executable, "-m", "tests.fixtures.appending", str(path), ME]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(1 + acknowledged)]
        os.kill(child.pid, signal.SIGKILL)
        lines += child.stdout.readlines()
    said = [(word, int(number)) for word, number in (line.split() for line in lines if line.endswith("\n"))]
    acks = [number for word, number in said if word == "ack"]
    lows = [number for word, number in said if word == "low"]
    history = await HistoryStore.open(path, ME)
    await history.settled()
    own = LogId(ME, said[0][1])
    low, have = history.vector()[own]
    assert have >= max(acks)
    assert low >= max(lows, default=0)
    assert len(await everything(history, own)) == have - low
    assert await rows(history, "PRAGMA integrity_check") == [("ok",)]
    await history.close()


# Trouble with the disk.


async def fill(history: HistoryStore) -> None:
    """The disk is full: the file may have no more pages than it has."""

    async def cap(connection: aiosqlite.Connection) -> None:
        pages = await schema.value(connection, "PRAGMA page_count")
        await connection.execute(f"PRAGMA max_page_count = {pages}")

    await history.change(cap)


async def make_room(history: HistoryStore) -> None:
    async def uncap(connection: aiosqlite.Connection) -> None:
        await connection.execute("PRAGMA max_page_count = 1000000")

    await history.change(uncap)


async def test_a_full_disk_is_told_and_nothing_is_half_written(history: HistoryStore) -> None:
    await history.append([start("1")])
    await fill(history)
    for _ in range(3):
        with pytest.raises(HistoryUnavailable, match="full"):
            await history.append([end("1"), start("2", body=b"x" * 100_000)])
        assert "full" in history.trouble
    with pytest.raises(HistoryUnavailable, match="full"):
        await history.take(OTHER, 1, [start("3", body=b"x" * 100_000)], 0)
    assert history.vector() == {history.own: (0, 1)}
    assert await everything(history, history.own) == [start("1")]
    assert await rows(history, "SELECT id, state FROM records") == [("1", 0)]


async def test_once_there_is_room_again_the_same_store_goes_on(history: HistoryStore) -> None:
    await history.append([start("1")])
    await fill(history)
    with pytest.raises(HistoryUnavailable):
        await history.append([start("2", body=b"x" * 100_000)])
    await make_room(history)
    assert await history.append([start("2", body=b"x" * 100_000)]) == 2
    assert history.trouble == ""
    assert not history.was_rebuilt


async def test_a_locked_file_is_told_and_used_again_when_it_is_free(
    history: HistoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await history.append([start("1")])
    await history.change(lambda connection: connection.execute("PRAGMA busy_timeout = 1"))
    other = sqlite3.connect(history.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(HistoryUnavailable, match="locked"):
        await history.append([end("1")])
    assert await everything(history, history.own) == [start("1")]  # reading goes on meanwhile
    other.rollback()
    other.close()
    assert await history.append([end("1")]) == 2
    assert await rows(history, "SELECT id, state FROM records") == [("1", 1)]


async def test_a_file_that_is_locked_at_the_start_is_used_once_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "router.db"
    history = await HistoryStore.open(path, ME, now_ms=lambda: 5000)
    await history.append([start("1")])
    await history.close()
    monkeypatch.setattr(schema, "BUSY_TIMEOUT_S", 0.01)
    monkeypatch.setattr(store, "REOPEN_S", 0.0)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    history = await HistoryStore.open(path, ME, now_ms=lambda: 4000)
    with pytest.raises(HistoryUnavailable, match="locked"):
        await history.append([start("2")])
    other.rollback()
    other.close()
    assert await history.append([start("2")]) == 1
    assert history.own == LogId(ME, 5001)
    assert history.vector() == {LogId(ME, 5000): (0, 1), LogId(ME, 5001): (0, 1)}
    await history.close()


async def test_a_folder_that_cannot_be_made_is_told_by_every_call(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    history = await HistoryStore.open(tmp_path / "file" / "router.db", ME)
    with pytest.raises(HistoryUnavailable, match="make it writable"):
        await history.append([start("1")])
    await history.close()


async def test_a_mistake_in_a_change_is_its_callers_and_is_rolled_back(history: HistoryStore) -> None:
    async def wrong(connection: aiosqlite.Connection) -> None:
        await connection.execute("INSERT INTO meta VALUES ('a', 1)")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await history.change(wrong)
    assert await history.append([start("1")]) == 1
    assert await rows(history, "SELECT count(*) FROM meta WHERE name = 'a'") == [(0,)]


async def test_a_mistake_of_ours_costs_what_waits_and_not_the_recording(
    history: HistoryStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Commit, "plan", lambda self, job: 1 / 0)
        with pytest.raises(HistoryUnavailable, match="see the log"):
            await history.append([start("1")])
    assert "ZeroDivisionError" in caplog.text
    assert await history.append([start("1")]) == 1


# Damage.


def spoil(path: Path, word: bytes = b"\xff" * 40) -> None:
    """Overwrites something in the middle of each page but the first."""
    with path.open("r+b") as file:
        for page in range(1, path.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(word)


def aside(folder: Path, word: str = "corrupt") -> list[Path]:
    return sorted(path for path in folder.glob(f"router.db.{word}-*") if not path.name.endswith(("-wal", "-shm")))


async def test_a_damaged_file_is_set_aside_at_the_start_and_a_new_log_begins(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "router.db"
    history = await HistoryStore.open(path, ME)
    await history.append([start(str(number)) for number in range(100)])
    await history.close()
    spoil(path)
    damaged = path.read_bytes()
    history = await HistoryStore.open(path, ME)
    assert history.was_rebuilt
    assert history.trouble == ""
    assert await history.append([start("new")]) == 1
    assert aside(tmp_path)[0].read_bytes() == damaged
    assert [record.levelno for record in caplog.records if "damaged and was set aside" in record.message] == [
        logging.ERROR
    ]
    await history.close()


async def test_a_file_of_nonsense_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "router.db"
    path.write_bytes(b"this is no database" * 1000)
    history = await HistoryStore.open(path, ME)
    assert await history.append([start("1")]) == 1
    assert len(aside(tmp_path)) == 1
    await history.close()


async def test_what_can_be_read_of_a_damaged_file_is_kept(tmp_path: Path) -> None:
    """An index is broken: all entries are there. The old run of this peer is then a copy like others."""
    path = tmp_path / "router.db"
    history = await HistoryStore.open(path, ME, now_ms=lambda: 5000)
    items = [start(str(number), body=b"x" * 500) for number in range(200)]
    await history.append(items)
    await history.take(OTHER, 1, items[:50], 0)
    await history.retire(OTHER, 10)
    await history.close()
    connection = sqlite3.connect(path)
    (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'records_id'").fetchone()
    connection.close()
    with path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xff" * 100)
    history = await HistoryStore.open(path, ME)
    async with asyncio.timeout(30):
        while history.vector().get(OTHER) != (10, 50) or history.vector().get(LogId(ME, 5000)) != (0, 200):
            await asyncio.sleep(0.01)
    assert await everything(history, LogId(ME, 5000)) == items
    assert history.own.run > 5000
    await history.close()


async def test_damage_while_running_loses_no_append(history: HistoryStore, tmp_path: Path) -> None:
    items = [start(str(number), body=b"x" * 500) for number in range(2000)]
    await history.append(items)
    old = history.own
    await history.change(_checkpoint)
    spoil(history.path)
    # What SQLite still remembers of the pages is forgotten.
    await history.change(lambda connection: connection.execute("PRAGMA cache_size = 1"))
    last = 0
    async with asyncio.timeout(60):
        while not history.was_rebuilt:
            last = await history.append([start(f"new {last}", body=b"x" * 500)])
    assert history.own.run > old.run
    assert history.vector()[history.own] == (0, last)
    assert await everything(history, history.own) == [start("new 0", body=b"x" * 500)][:last] or last == 1
    assert len(aside(tmp_path)) == 1


async def _checkpoint(connection: aiosqlite.Connection) -> None:
    await connection.commit()
    await connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    await connection.execute("BEGIN IMMEDIATE")


async def test_damage_that_a_question_meets_is_mended_too(history: HistoryStore, tmp_path: Path) -> None:
    await history.append([start(str(number), body=b"x" * 500) for number in range(2000)])
    await history.change(_checkpoint)
    spoil(history.path)
    with pytest.raises(HistoryUnavailable):
        await rows(history, "SELECT sum(length(data)) FROM entries")
    async with asyncio.timeout(30):
        while not history.was_rebuilt:
            await asyncio.sleep(0.01)
    assert await history.append([start("new")]) == 1
    assert len(aside(tmp_path)) == 1


async def test_a_disk_that_damages_file_after_file_is_not_filled_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "REBUILDS_MAX", 2)
    path = tmp_path / "router.db"
    path.write_bytes(b"nonsense" * 1000)
    history = await HistoryStore.open(path, ME)
    for _ in range(2):
        path.unlink()  # not the same file any more: it is opened again
        path.write_bytes(b"nonsense" * 1000)
        with contextlib.suppress(HistoryUnavailable):
            await history.append([start("1")])
    with pytest.raises(HistoryUnavailable, match="check the disk"):
        await history.append([start("1")])
    assert len(aside(tmp_path)) == 2
    await history.close()


async def test_a_file_that_vanishes_is_made_anew_under_a_new_run(
    history: HistoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    await history.append([start("1")])
    old = history.own
    history.path.unlink()
    assert await history.append([start("2")]) == 1
    assert history.was_rebuilt
    assert history.own.run > old.run
    assert history.vector() == {history.own: (0, 1)}
    assert "gone or older" in caplog.text


async def test_the_database_of_another_program_is_set_aside_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "router.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE records (a)")
    connection.commit()
    connection.close()
    theirs = path.read_bytes()
    history = await HistoryStore.open(path, ME)
    assert await history.append([start("1")]) == 1
    assert aside(tmp_path, "foreign")[0].read_bytes() == theirs
    assert not history.was_rebuilt
    await history.close()


# Versions.


async def test_a_change_of_the_tables_is_made_once_after_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "router.db"
    history = await HistoryStore.open(path, ME)
    await history.append([start("1")])
    own = history.own
    await history.close()
    monkeypatch.setattr(schema, "STEPS", (*schema.STEPS, "ALTER TABLE records ADD COLUMN colour TEXT;"))
    history = await HistoryStore.open(path, ME)
    assert await rows(history, "SELECT id, colour FROM records") == [("1", None)]
    assert await everything(history, own) == [start("1")]
    await history.close()
    copy = sqlite3.connect(tmp_path / "router.db.before-2")
    assert copy.execute("PRAGMA user_version").fetchone() == (1,)
    assert copy.execute("SELECT id FROM records").fetchone() == ("1",)
    copy.close()
    if os.name == "posix":
        assert (tmp_path / "router.db.before-2").stat().st_mode & 0o777 == 0o600


async def test_tables_are_not_changed_without_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "router.db"
    await (await HistoryStore.open(path, ME)).close()
    (tmp_path / "router.db.before-2.part").mkdir()  # in the way
    (tmp_path / "router.db.before-2.part" / "file").touch()
    monkeypatch.setattr(schema, "STEPS", (*schema.STEPS, "ALTER TABLE records ADD COLUMN colour TEXT;"))
    history = await HistoryStore.open(path, ME)
    with pytest.raises(HistoryUnavailable, match="needs a copy of itself"):
        await history.append([start("1")])
    await history.close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    connection.close()


async def test_a_file_of_a_newer_program_is_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "router.db"
    with monkeypatch.context() as newer:
        newer.setattr(schema, "STEPS", (*schema.STEPS, "ALTER TABLE records ADD COLUMN colour TEXT;"))
        newer.setattr(store, "our_version", lambda: "9.9.9")
        history = await HistoryStore.open(path, ME)
        await history.append([start("1")])
        own = history.own
        await history.close()
    history = await HistoryStore.open(path, ME)
    with pytest.raises(HistoryUnavailable, match=f"newer than this one .{our_version()}.*install llm-router 9.9.9"):
        await history.append([start("2")])
    with pytest.raises(HistoryUnavailable, match=r"install llm-router 9\.9\.9"):
        await history.change(lambda connection: connection.execute("DELETE FROM records"))
    assert await everything(history, own) == [start("1")]
    assert history.vector() == {own: (0, 1)}
    await history.close()


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
async def test_others_cannot_read_the_file(history: HistoryStore) -> None:
    await history.append([start("1")])
    modes: Sequence[int] = [path.stat().st_mode & 0o777 for path in history.path.parent.iterdir()]
    assert set(modes) == {0o600}
