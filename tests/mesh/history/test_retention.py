"""Retention: what goes by age and by size, when nothing goes, and that the rest is whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiosqlite
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.history import retention as module
from mesh.history import schema
from mesh.history.entries import Audit, LogId, body_of, decode, encode
from mesh.history.errors import HistoryUnavailable
from mesh.history.query import HistoryQuery
from mesh.history.retention import Clock, Limits, Plan, Retention, plan
from mesh.history.store import HistoryStore
from tests.fixtures.recorded import ATTIC, NOW_MS, TOWER, end, mesh_of, start

DAY = 86_400_000
OTHER = LogId(TOWER, NOW_MS - 30 * DAY)
CLOCK = Clock(now_ms=NOW_MS)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[HistoryStore]:
    opened = await HistoryStore.open(tmp_path / "router.db", ATTIC, now_ms=lambda: NOW_MS - 20 * DAY)
    yield opened
    await opened.close()


@pytest.fixture
def retention(store: HistoryStore) -> Retention:
    return Retention(store)


async def ids(store: HistoryStore) -> list[str]:
    async with store.reading() as connection:
        return [id_ for (id_,) in await connection.execute_fetchall("SELECT id FROM records ORDER BY place")]


# What is decided.


def test_records_go_after_seven_days_and_copies_a_day_later() -> None:
    """F6: kept for 7 days."""
    decided = plan(Limits(), CLOCK, 0)
    assert decided.own_before_ms == NOW_MS - 7 * DAY
    assert decided.copies_before_ms == NOW_MS - 8 * DAY
    assert decided.audits_before_ms == NOW_MS - 90 * DAY
    assert plan(Limits(days=365), CLOCK, 0).audits_before_ms == NOW_MS - 365 * DAY
    assert plan(Limits(days=None), CLOCK, 0) == Plan()


@given(st.integers(-(10**12), 10**12), st.booleans(), st.integers(0, 1000))
def test_nothing_goes_by_age_while_the_clock_cannot_be_trusted(skew_ms: int, has_jumped: bool, used: int) -> None:
    decided = plan(Limits(bytes_max=500), Clock(now_ms=NOW_MS, skew_ms=skew_ms, has_jumped=has_jumped), used)
    is_trusted = abs(skew_ms) <= 300_000 and not has_jumped
    assert (decided.own_before_ms is not None) == is_trusted
    assert (decided.copies_before_ms is not None) == is_trusted
    assert bool(decided.paused) != is_trusted
    # By size it goes all the same: the disk does not wait for the clock.
    assert decided.bytes_to_drop == (used - 450 if used > 500 else 0)


# By age.


async def test_a_log_loses_what_is_older_than_its_first_young_record(store: HistoryStore, retention: Retention) -> None:
    await store.append([start("old", NOW_MS - 9 * DAY), end("old", NOW_MS - 9 * DAY)])
    await store.append([start("across", NOW_MS - 7 * DAY - 1)])
    await store.append([start("young", NOW_MS - 7 * DAY), end("across", NOW_MS), end("young", NOW_MS)])
    await store.append([start("odd", NOW_MS - 50 * DAY)])  # a clock that was wrong for a moment
    report = await retention.run(Limits(), CLOCK)
    assert report.retired == {store.own: 3}
    assert await ids(store) == ["young", "odd"]
    assert store.vector() == {store.own: (3, 7)}
    assert (await retention.run(Limits(), CLOCK)).retired == {}


async def test_a_log_with_nothing_young_loses_all_and_goes_on(store: HistoryStore, retention: Retention) -> None:
    await store.append([start("1", NOW_MS - 9 * DAY), end("1", NOW_MS - 9 * DAY)])
    await retention.run(Limits(), CLOCK)
    assert await ids(store) == []
    assert await store.append([start("2", NOW_MS)]) == 3


async def test_copies_go_by_their_own_clock_when_their_origin_never_comes_back(
    store: HistoryStore, retention: Retention
) -> None:
    await store.take(OTHER, 1, [start("1", NOW_MS - 9 * DAY), start("2", NOW_MS - 7 * DAY - 1)], 0)
    report = await retention.run(Limits(), CLOCK)
    assert report.retired == {OTHER: 1}
    assert await ids(store) == ["2"]


async def test_a_record_from_the_future_counts_from_the_start_of_its_log(
    store: HistoryStore, retention: Retention
) -> None:
    young = LogId(TOWER, NOW_MS - DAY)
    await store.take(OTHER, 1, [start("1", NOW_MS + 900 * DAY), start("2", NOW_MS - 9 * DAY)], 0)
    await store.take(young, 1, [start("3", NOW_MS + 900 * DAY)], 0)
    await retention.run(Limits(), CLOCK)
    assert await ids(store) == ["3"]


async def test_nothing_is_deleted_while_paused(store: HistoryStore, retention: Retention) -> None:
    await store.append([start("1", NOW_MS - 90 * DAY)])
    report = await retention.run(Limits(), Clock(now_ms=NOW_MS, skew_ms=-400_000))
    assert "400 s behind" in report.paused
    assert await ids(store) == ["1"]


async def test_what_was_done_by_whom_stays_for_ninety_days(store: HistoryStore, retention: Retention) -> None:
    history = HistoryQuery(store, mesh_of(store), now_ms=lambda: NOW_MS)
    for days in (100, 50, 1):
        audit = Audit(at_ms=NOW_MS - days * DAY, actor="ann", actor_kind="user", action=f"day.{days}")
        await store.append([encode(audit), start(str(days), NOW_MS - days * DAY)])
    await retention.run(Limits(), CLOCK)
    assert [entry["action"] for entry in (await history.audits({}))["entries"]] == ["day.1", "day.50"]
    assert await ids(store) == ["1"]


async def test_a_peer_that_only_did_things_keeps_its_young_entries(store: HistoryStore, retention: Retention) -> None:
    audits = [Audit(at_ms=NOW_MS - days * DAY, actor="ann", actor_kind="user", action="x") for days in (9, 8, 2)]
    await store.append([encode(audit) for audit in audits])
    assert (await retention.run(Limits(), CLOCK)).retired == {store.own: 2}


async def test_many_audits_go_in_pieces_but_never_before_their_entries(
    store: HistoryStore, retention: Retention
) -> None:
    audits = [Audit(at_ms=NOW_MS - 100 * DAY + n, actor="ann", actor_kind="user", action="x") for n in range(1200)]
    await store.append([start("young", NOW_MS)] + [encode(audit) for audit in audits[:600]])
    await store.take(OTHER, 1, [encode(audit) for audit in audits], 0)
    await retention.run(Limits(), CLOCK)
    async with store.reading() as connection:
        assert await schema.value(connection, "SELECT count(*) FROM audits") == 600


async def test_old_logs_of_which_nothing_is_left_are_forgotten(store: HistoryStore, retention: Retention) -> None:
    recent, ancient = LogId(TOWER, NOW_MS - 10 * DAY), LogId(TOWER, NOW_MS - 200 * DAY)
    for source in (recent, ancient):
        await store.take(source, 1, [start("1", NOW_MS - 9 * DAY)], 0)
    await retention.run(Limits(), CLOCK)
    assert store.vector() == {recent: (1, 1)}
    # It may come back, from a peer that did not hear: and goes again.
    assert await store.take(ancient, 1, [start("1", NOW_MS - 9 * DAY)], 0) == 1


# By size.


async def filled(store: HistoryStore, records: int, size: int = 2000) -> None:
    for number in range(records):
        at = NOW_MS - DAY + number * 1000
        await store.append([start(f"{number:03}", at, "x" * size), end(f"{number:03}", at, answer="y" * size)])


async def test_the_oldest_bodies_go_first_and_their_records_stay(store: HistoryStore, retention: Retention) -> None:
    await filled(store, 200)
    used = await retention.used_bytes()
    limit = used * 3 // 4
    report = await retention.run(Limits(bytes_max=limit), CLOCK)
    assert 0 < report.bodies_dropped < 200
    assert f"{limit:,} bytes" in report.alarm
    assert await retention.used_bytes() < limit
    assert len(await ids(store)) == 200
    history = HistoryQuery(store, mesh_of(store), now_ms=lambda: NOW_MS)
    pages = [await history.records({"bodies": "true", "per_page": "100", "page": page}) for page in "12"]
    records = [record for page in reversed(pages) for record in reversed(page["records"])]
    has_body = [record["request_body"] is not None and record["response_body"] is not None for record in records]
    assert has_body == sorted(has_body)
    assert [not record["bodies_dropped"] for record in records] == has_body
    assert has_body.count(False) == report.bodies_dropped
    again = await retention.run(Limits(bytes_max=limit), CLOCK)
    assert (again.bodies_dropped, again.alarm) == (0, "")


async def test_entries_without_their_bodies_are_still_the_log(store: HistoryStore, retention: Retention) -> None:
    await filled(store, 100)
    await retention.run(Limits(bytes_max=1), CLOCK)
    first, items = await store.read(store.own, 0, 10**9)
    assert (first, len(items)) == (1, 200)
    assert [body_of(decode(item)) for item in items] == [None] * 200


async def test_when_there_are_no_more_bodies_a_person_is_told(store: HistoryStore, retention: Retention) -> None:
    await filled(store, 20)
    report = await retention.run(Limits(bytes_max=1), CLOCK)
    assert report.bodies_dropped == 20
    assert "there are no more" in report.alarm
    assert (await retention.run(Limits(bytes_max=1), CLOCK)).bodies_dropped == 0


async def test_older_bodies_that_come_later_go_too(store: HistoryStore, retention: Retention) -> None:
    await filled(store, 20)
    await retention.run(Limits(bytes_max=1), CLOCK)
    await store.take(OTHER, 1, [start("late", NOW_MS - 2 * DAY, "x" * 100)], 0)
    assert (await retention.run(Limits(bytes_max=1), CLOCK)).bodies_dropped == 1


async def test_the_file_gives_room_back(
    store: HistoryStore, retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FREE_PAGES_KEPT", 10)
    await filled(store, 300, size=9000)
    before = await pages(store)
    await retention.run(Limits(bytes_max=1), CLOCK)
    assert await pages(store) < before / 4


async def pages(store: HistoryStore) -> int:
    async with store.reading() as connection:
        found = await schema.value(connection, "PRAGMA page_count")
    assert isinstance(found, int)
    return found


async def test_a_full_disk_is_told_and_the_next_run_goes_on(store: HistoryStore, retention: Retention) -> None:
    await filled(store, 50)

    async def refuse(connection: aiosqlite.Connection) -> None:
        await connection.execute(
            "CREATE TRIGGER refuse BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'the disk refuses'); END"
        )

    await store.change(refuse)
    with pytest.raises(HistoryUnavailable, match="refuses"):
        await retention.run(Limits(bytes_max=1), CLOCK)
    await store.change(lambda connection: connection.execute("DROP TRIGGER refuse"))
    assert (await retention.run(Limits(bytes_max=1), CLOCK)).bodies_dropped == 50
