"""Which row wins: the same whatever comes in which order, how often and in what company; and what is over is over."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.admin import map as map_module
from mesh.admin.clock import AHEAD_MS_MAX, NEVER, Clock
from mesh.admin.map import BUCKETS, DAY_MS, AdminMap, Signers, bucket_of, horizon, is_for_guests
from mesh.admin.rows import ENDED, Row, adopted, signed
from tests.mesh.admin.house import who

MESH = "m" * 52
NOW_MS = 1_790_000_000_000
SIGNERS: Signers = {who(name).peer_id: who(name).public_key for name in "abc"}
"""`d` is no member, or none any more."""


@functools.cache
def row(
    by: str = "a", key: str = "key/1", field: str = "name", value: bytes = b"1", at: int = 0, over: int | None = None
) -> Row:
    clock = Clock(NOW_MS + at, 0)
    return signed(
        who(by), MESH, key=key, field=field, value=value, clock=clock, over=NEVER if over is None else Clock(over, 0)
    )


@functools.cache
def forged(by: str, key: str, field: str, at: int) -> Row:
    return dataclasses.replace(row(by, key, field, at=at), value=b'"forged"')


times = st.integers(-3, 3) | st.sampled_from([AHEAD_MS_MAX, AHEAD_MS_MAX + 1, 10**9])
some_keys, some_fields = st.sampled_from(["key/1", "user/2"]), st.sampled_from(["name", "note", ENDED])
rows = st.lists(
    st.builds(row, st.sampled_from("abcd"), some_keys, some_fields, st.sampled_from([b"1", b"2"]), times)
    | st.builds(forged, st.sampled_from("abc"), some_keys, some_fields, times),
    max_size=14,
)


def contents(admin_map: AdminMap) -> set[Row]:
    return set(admin_map.all_rows())


def wins(rows: Sequence[Row]) -> set[Row]:
    """What should be in the map, said in another way."""
    valid = [
        r
        for r in rows
        if r.author in SIGNERS and r.value != b'"forged"' and (r.field == ENDED or r.clock.ms <= NOW_MS + AHEAD_MS_MAX)
    ]
    ended = {r.key for r in valid if r.field == ENDED}
    best: dict[tuple[str, str], Row] = {}
    for r in sorted(valid, key=lambda r: (r.clock, r.author, r.value)):
        if r.field == ENDED or r.key not in ended:
            best[r.key, r.field] = r
    return set(best.values())


@settings(max_examples=400, deadline=None)
@given(rows, st.randoms(use_true_random=False))
def test_the_end_depends_on_the_set_of_rows_alone(rows: list[Row], rng: random.Random) -> None:
    together = AdminMap(MESH)
    together.merge(rows, SIGNERS, NOW_MS)
    assert contents(together) == wins(rows)

    one_by_one = AdminMap(MESH)
    shuffled = [*rows, *rng.sample(rows, len(rows) // 2)]
    rng.shuffle(shuffled)
    for each in shuffled:
        one_by_one.merge([each], SIGNERS, NOW_MS)

    # two replicas with a part each, merged into each other
    left, right = AdminMap(MESH), AdminMap(MESH)
    cut = rng.randrange(len(rows) + 1)
    left.merge(rows[:cut], SIGNERS, NOW_MS)
    right.merge(rows[cut:], SIGNERS, NOW_MS)
    first = list(left.all_rows())
    left.merge(list(right.all_rows()), SIGNERS, NOW_MS)
    right.merge(first, SIGNERS, NOW_MS)

    for other in (one_by_one, left, right):
        assert contents(other) == contents(together)
        assert other.digest() == together.digest() and other.digests() == together.digests()


@settings(deadline=None)
@given(rows, rows)
def test_the_books_are_right_after_whatever_came_and_went(some: list[Row], more: list[Row]) -> None:
    admin_map = AdminMap(MESH)
    admin_map.merge(some, SIGNERS, NOW_MS)
    admin_map.apply(admin_map.change(admin_map.plan_without([r for r in admin_map.all_rows() if r.field == "note"])))
    admin_map.merge(more, SIGNERS, NOW_MS)
    fresh = AdminMap(MESH)
    fresh.apply(fresh.change(fresh.plan_with(list(admin_map.all_rows()))))
    assert contents(fresh) == contents(admin_map)
    assert (fresh.rows, fresh.bytes, fresh.authors) == (admin_map.rows, admin_map.bytes, admin_map.authors)
    assert fresh.rows == len(contents(admin_map))
    assert fresh.digests() == admin_map.digests()
    assert {row for _, row in admin_map.hashes(range(BUCKETS))} == contents(admin_map)


@settings(deadline=None)
@given(rows, rows)
def test_a_plan_made_in_two_parts_comes_to_the_same(some: list[Row], more: list[Row]) -> None:
    parted, whole = AdminMap(MESH), AdminMap(MESH)
    plan = parted.plan(some, SIGNERS, NOW_MS)
    parted.apply(parted.change(parted.plan(more, SIGNERS, NOW_MS, plan)))
    whole.merge([*some, *more], SIGNERS, NOW_MS)
    assert contents(parted) == contents(whole)
    assert (plan.rows_more, plan.bytes_more) == (parted.rows, parted.bytes)


def test_why_a_row_is_refused_is_said() -> None:
    admin_map = AdminMap(MESH)
    admin_map.merge([row(at=1), row(key="key/2", field=ENDED)], SIGNERS, NOW_MS)
    wrong = [
        (row(by="d", at=2), "author"),
        (forged("a", "key/1", "name", 2), "signature"),
        (row(at=AHEAD_MS_MAX + 1), "clock"),
        (row(at=0), "older"),
        (row(key="key/2", at=5), "ended"),
        (row(key="session/1", field=ENDED, at=-40 * DAY_MS), "expired"),
    ]
    plan = admin_map.merge([each for each, _ in wrong], SIGNERS, NOW_MS)
    assert plan.refused == wrong and not plan.accepted


def test_an_ending_counts_against_older_and_newer_writes_and_whatever_its_clock_says() -> None:
    for at in (-10, 10, AHEAD_MS_MAX + 10**9):
        admin_map = AdminMap(MESH)
        admin_map.merge([row(at=0), row(field="note", at=5)], SIGNERS, NOW_MS)
        admin_map.merge([row(by="b", field=ENDED, at=at)], SIGNERS, NOW_MS)
        assert admin_map.is_ended("key/1")
        assert [r.field for r in admin_map.all_rows()] == [ENDED]
        assert admin_map.merge([row(at=20)], SIGNERS, NOW_MS).refused[0][1] == "ended"
        assert admin_map.keys("key/") == []


@pytest.mark.parametrize(("gone", "stays"), [("c", "a"), ("a", "c"), ("a", "b"), ("b", "a")])
def test_a_present_signer_wins_a_tie_against_one_that_left(gone: str, stays: str) -> None:
    old = row(by=gone, value=b'"same"')
    (new,) = adopted([old], who(stays), MESH)
    admin_map = AdminMap(MESH)
    admin_map.merge([old], SIGNERS, NOW_MS)
    without = {peer: key for peer, key in SIGNERS.items() if peer != old.author}
    assert admin_map.orphans(SIGNERS) == [] and admin_map.orphans(without) == [old]
    assert not admin_map.merge([new], without, NOW_MS).lost
    assert contents(admin_map) == {new}
    assert admin_map.merge([old], without, NOW_MS).refused == [(old, "older")]


def test_an_edit_is_lost_only_to_one_that_had_not_seen_it() -> None:
    seen = AdminMap(MESH)
    seen.merge([row(at=0)], SIGNERS, NOW_MS)
    assert not seen.merge([row(by="b", value=b"2", at=2, over=NOW_MS)], SIGNERS, NOW_MS).lost
    unseen = AdminMap(MESH)
    unseen.merge([row(at=0)], SIGNERS, NOW_MS)
    newer = row(by="b", value=b"2", at=2, over=NOW_MS - 1)
    assert unseen.merge([newer], SIGNERS, NOW_MS).lost == [(row(at=0), newer)]
    ending = row(by="c", field=ENDED, at=1, over=NOW_MS)
    assert unseen.merge([ending], SIGNERS, NOW_MS).lost == [(newer, ending)]


def test_what_a_wrong_clock_let_in_yields_to_anything_once_the_clock_is_right() -> None:
    admin_map = AdminMap(MESH)
    far = row(at=9 * 3_600_000)
    admin_map.merge([far], SIGNERS, NOW_MS + 9 * 3_600_000)
    doubt = admin_map.plan([row(by="b", value=b"2", at=5)], SIGNERS, NOW_MS, is_clock_right=False)
    assert [why for _, why in doubt.refused] == ["older"], "as long as it may be the clock of now that is wrong"
    admin_map.merge([row(by="b", value=b"2", at=5)], SIGNERS, NOW_MS)
    assert contents(admin_map) == {row(by="b", value=b"2", at=5)}


def test_endings_are_collected_at_midnight_when_they_are_thirty_days_old_and_do_not_come_back() -> None:
    midnight = NOW_MS // DAY_MS * DAY_MS
    assert horizon(midnight) == midnight - 30 * DAY_MS
    assert horizon(midnight - 1) == midnight - 31 * DAY_MS
    keys = ("session/1", "agent/1", "setting/1", "key/1", "peer/1", "user/1")
    old = [row(key=key, field=ENDED, at=-31 * DAY_MS) for key in keys]
    young = row(key="session/2", field=ENDED, at=-29 * DAY_MS)
    admin_map = AdminMap(MESH)
    admin_map.merge([*old, young], SIGNERS, NOW_MS - 5 * DAY_MS)
    admin_map.apply(admin_map.change(admin_map.plan_collection(NOW_MS)))
    assert contents(admin_map) == {*old[3:], young}
    assert {why for _, why in admin_map.merge(old, SIGNERS, NOW_MS).refused} == {"expired"}
    # but a key that still lives here is over, however late that is heard
    admin_map.merge([row(key="agent/1")], SIGNERS, NOW_MS)
    admin_map.merge(old, SIGNERS, NOW_MS)
    assert admin_map.is_ended("agent/1")


def test_a_full_map_refuses_more_and_still_takes_endings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_module, "ROWS_MAX", 3)
    monkeypatch.setattr(map_module, "ENDED_RESERVE", 2)
    admin_map = AdminMap(MESH)
    plan = admin_map.merge([row(key=f"key/{n}") for n in range(5)], SIGNERS, NOW_MS)
    assert [why for _, why in plan.refused] == ["full", "full"] and admin_map.rows == 3
    assert not admin_map.merge([row(key="key/1", value=b"2", at=1)], SIGNERS, NOW_MS).refused, "no more than before"
    ends = [row(key=f"session/{n}", field=ENDED) for n in range(3)]
    assert [why for _, why in admin_map.merge(ends, SIGNERS, NOW_MS).refused] == ["full"]
    assert not admin_map.merge([row(key="key/0", field=ENDED)], SIGNERS, NOW_MS).refused


def test_values_together_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_module, "BYTES_MAX", 3000)
    admin_map = AdminMap(MESH)
    big = [row(key=f"key/{n}", value=b'"' + b"x" * 1000 + b'"') for n in range(4)]
    assert [why for _, why in admin_map.merge(big, SIGNERS, NOW_MS).refused] == ["full", "full"]


def test_what_guests_may_have_is_in_buckets_of_its_own() -> None:
    shown = [("key/1", "hash"), ("peer/1", "name"), ("agent/1", "url"), ("setting/1", "value"), ("session/1", ENDED)]
    hidden = [("user/1", "name"), ("user/1", ENDED), ("agent/1", "secret_token"), ("mesh/x", "y"), ("new/1", "name")]
    assert all(is_for_guests(*each) and bucket_of(*each) < BUCKETS // 2 for each in shown)
    assert not any(is_for_guests(*each) or bucket_of(*each) < BUCKETS // 2 for each in hidden)
    admin_map = AdminMap(MESH)
    before = admin_map.digest()
    admin_map.merge([row(key="user/1")], SIGNERS, NOW_MS)
    assert admin_map.digest()[0] == before[0] and admin_map.digest()[1] != before[1]
