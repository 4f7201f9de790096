"""Hybrid clocks: later than everything before, near to wall time, and not to be pulled into the future."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.admin.clock import AHEAD_MS_MAX, COUNT_MAX, Clock, HybridClock, RefusedClock

walls = st.integers(0, 10**6)
events = st.lists(st.tuples(walls, st.none() | st.builds(Clock, walls, st.integers(0, COUNT_MAX))), max_size=30)


@settings(deadline=None)
@given(events)
def test_each_time_is_later_than_all_that_were_given_or_heard_before(events: list[tuple[int, Clock | None]]) -> None:
    clock = HybridClock()
    known = Clock(0, 0)
    for now_ms, heard in events:
        if heard is None:
            given_ = clock.tick(now_ms)
            assert given_ > known and given_.ms >= now_ms
            known = given_
        else:
            try:
                clock.heard(heard, now_ms)
                known = max(known, heard)
            except RefusedClock as refused:
                assert heard.ms - now_ms == refused.ahead_ms > AHEAD_MS_MAX
        assert clock.last == known


def test_a_clock_more_than_a_minute_ahead_is_refused_and_moves_nothing() -> None:
    clock = HybridClock(Clock(5000, 7))
    clock.heard(Clock(5000 + AHEAD_MS_MAX, 0), 5000)
    with pytest.raises(RefusedClock, match="60 s ahead"):
        clock.heard(Clock(5001 + AHEAD_MS_MAX, 0), 5000)
    assert clock.last == Clock(5000 + AHEAD_MS_MAX, 0)


def test_more_edits_than_a_millisecond_can_count_are_dated_into_the_next() -> None:
    clock = HybridClock(Clock(5000, COUNT_MAX - 1))
    assert clock.tick(5000) == Clock(5000, COUNT_MAX)
    assert clock.tick(5000) == Clock(5001, 0)
    assert clock.tick(4000) == Clock(5001, 1)
