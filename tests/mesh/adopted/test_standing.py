"""Online, offline, online again; and how the watcher's word reaches everybody."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.adopted.agent import AGENTS_MAX
from mesh.adopted.bodies import Report
from mesh.adopted.breakers import PAUSE_S_MAX, Breakers
from mesh.adopted.standing import (
    FACT_BYTES_MAX,
    POINTS_MAX,
    STALE_S,
    Sight,
    Standing,
    news_in,
    news_out,
    seen,
    together,
)

ID = "0b5d9f3e-6a51-4e0c-9f41-1d2c3b4a5e6f"
LOAD = Report(cpu_percent=20.0, memory_percent=30.0, active_requests=1, response_ms=120.0)
TIMEOUT_S = 60.0


def test_a_silent_server_is_offline_only_when_a_probe_fails_too() -> None:
    """F25: offline after LLM_ROUTER_NODE_TIMEOUT without a sign of life."""
    one = Standing.registered(100.0)
    assert not one.probed(False, 160.0, TIMEOUT_S) and one.is_online  # silent for the timeout, not longer
    assert not one.probed(True, 200.0, TIMEOUT_S) and one.is_online  # Ollama sends no heartbeats
    assert one.probed(False, 201.0, TIMEOUT_S) and not one.is_online
    assert not one.probed(False, 231.0, TIMEOUT_S)  # it is told once
    assert one.probed(True, 261.0, TIMEOUT_S) and (one.is_online, one.online_since) == (True, 261.0)


def test_heartbeats_keep_a_server_online_that_cannot_be_probed_and_bring_it_back() -> None:
    one = Standing.registered(0.0)
    for now in range(10, 200, 10):
        one.heartbeat(Report(), float(now), 0.0)
        assert not one.probed(False, now + 5.0, TIMEOUT_S) and one.is_online
    assert one.probed(False, 251.0, TIMEOUT_S)
    assert one.heartbeat(LOAD, 300.0, 0.0) and (one.is_online, one.online_since, one.seen_at) == (True, 300.0, 300.0)


def test_what_a_report_leaves_out_stays_unless_it_is_stale() -> None:
    one = Standing.registered(0.0)
    one.heartbeat(LOAD, 1.0, 0.0)
    one.heartbeat(Report(cpu_percent=50.0), 2.0, 0.0)
    assert one.report == replace(LOAD, cpu_percent=50.0)
    one.heartbeat(Report(), 3.0, 0.0)  # says only that it lives
    assert one.reported_at == 2.0
    one.heartbeat(Report(cpu_percent=60.0), 2.0 + STALE_S + 1, 0.0)
    assert one.report == Report(cpu_percent=60.0)


def test_370_points_pushed_keep_360_the_newest_last() -> None:
    """Case 73."""
    one = Standing.registered(0.0)
    for number in range(370):
        one.heartbeat(replace(LOAD, active_requests=number), float(number), float(number))
    assert len(one.points) == POINTS_MAX == 360
    assert [one.points[0].report.active_requests, one.points[-1].report.active_requests] == [10, 369]


def test_a_report_is_stale_after_two_minutes() -> None:
    sight = Sight(is_online=True, online_since=0.0, seen_at=0.0, report=LOAD, reported_at=100.0)
    assert sight.fresh(100.0 + STALE_S) == LOAD and sight.fresh(100.1 + STALE_S) is None
    assert replace(sight, reported_at=None).fresh(0.0) is None


def test_what_the_watcher_knows_arrives_with_its_ages() -> None:
    one = Standing.registered(10.0)
    one.heartbeat(LOAD, 90.0, 0.0)
    told = news_in(news_out({ID: one}, 100.0), 5000.0)
    assert told == {ID: Sight(is_online=True, online_since=4910.0, seen_at=4990.0, report=LOAD, reported_at=4990.0)}
    silent = Standing.registered(10.0)
    assert news_in(news_out({ID: silent}, 10.0), 1.0)[ID].reported_at is None


def test_the_next_watcher_goes_on_where_the_last_one_was() -> None:
    one = Standing.registered(0.0)
    one.heartbeat(LOAD, 1.0, 0.0)
    one.probed(False, 100.0, TIMEOUT_S)
    sight = news_in(news_out({ID: one}, 100.0), 100.0)[ID]
    assert seen(Standing.found(sight)) == sight and not sight.is_online


def test_who_lives_for_one_watcher_lives() -> None:
    gone = Sight(is_online=False, online_since=1.0, seen_at=5.0, report=LOAD, reported_at=5.0)
    alive = Sight(is_online=True, online_since=2.0, seen_at=4.0, report=Report(), reported_at=None)
    assert together([gone, alive]) == Sight(is_online=True, online_since=2.0, seen_at=5.0, report=LOAD, reported_at=5.0)
    assert together([gone]) == gone and together([]) is None


def test_the_fact_of_as_many_servers_as_there_may_be_fits() -> None:
    one = Standing.registered(0.0)
    one.heartbeat(replace(LOAD, gpu_percent=33.3), 1.0, 0.0)
    many = {f"{n:08d}" + ID[8:]: one for n in range(AGENTS_MAX + 10)}
    data = news_out(many, 1e9)
    assert len(data) <= FACT_BYTES_MAX and len(news_in(data, 0.0)) == AGENTS_MAX


@pytest.mark.parametrize(
    "row",
    [
        {"cpu_percent": 200.0},
        {"memory_percent": -1.0},
        {"active_requests": 1 << 60},
        {"response_ms": -5.0},
    ],
)
def test_nonsense_about_a_server_is_not_heard(row: dict[str, float]) -> None:
    one = Standing.registered(0.0)
    one.report, one.reported_at = Report(**row), 0.0  # type: ignore[arg-type]
    assert news_in(news_out({ID: one}, 0.0), 0.0) == {}


@given(st.binary(max_size=200))
def test_garbage_is_no_news(data: bytes) -> None:
    assert news_in(data, 0.0) == {}


def test_a_fact_that_is_too_long_is_not_read() -> None:
    assert news_in(b"\x92\x01" + b"\x90" * (FACT_BYTES_MAX + 1), 0.0) == {}


# -- breakers


def test_a_server_that_is_gone_is_looked_at_with_longer_and_longer_pauses_until_it_answers() -> None:
    breakers, wishes = Breakers(), []
    breakers.opened = lambda: wishes.append(1)
    breakers.failed(ID, "gone", 100.0)
    assert breakers.is_open(ID) and wishes == [1]
    assert breakers.due(100.0) == [ID] and breakers.due(200.0) == []  # not twice at once
    pauses, now = [], 100.0
    for _ in range(8):
        breakers.probed(ID, False, now)
        before = now
        while not breakers.due(now):
            now += 0.5
        pauses.append(now - before)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, PAUSE_S_MAX]
    breakers.probed(ID, True, now)
    assert not breakers.is_open(ID) and breakers.due(now + 100) == []


def test_a_server_that_answers_probes_and_fails_requests_stays_in_the_penalty_box() -> None:
    breakers = Breakers()
    for now in (0.0, 100.0, 200.0):
        breakers.failed(ID, "gone", now)
        breakers.probed(ID, True, now)
    assert not breakers.is_open(ID) and breakers.is_penalized(ID, 239.0) and not breakers.is_penalized(ID, 241.0)
    breakers.proved(ID)
    assert not breakers.is_penalized(ID, 201.0)


def test_a_wedged_server_is_only_penalized() -> None:
    breakers = Breakers()
    breakers.failed(ID, "wedged", 0.0)
    assert breakers.is_penalized(ID, 1.0) and not breakers.is_open(ID) and breakers.due(1.0) == []
    breakers.forget(ID)
    assert not breakers.is_penalized(ID, 1.0)
