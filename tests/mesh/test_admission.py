"""The 50/80 % rule, by example and for every queue."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.admission import Accept, Full, TooLate, admitted


def answer(waiting: int, *, slots: int = 10, service_s: float = 2.0, deadline_s: float | None = None) -> object:
    return admitted(running=slots, waiting=waiting, slots=slots, service_s=service_s, deadline_s=deadline_s)


def test_short_queue_accepts_at_once() -> None:
    assert answer(0) == Accept(0.0) == answer(19)


@pytest.mark.parametrize(("waiting", "delay_s"), [(20, 0.010), (26, 0.055), (32, 0.100)])
def test_half_full_queue_slows_from_10_to_100_ms(waiting: int, delay_s: float) -> None:
    verdict = answer(waiting)
    assert isinstance(verdict, Accept) and verdict.delay_s == pytest.approx(delay_s)


def test_queue_over_80_percent_refuses_and_says_when_to_come_back() -> None:
    assert answer(33) == Full(7)  # 34 requests before it, ten at a time, 2 s each
    assert answer(33, service_s=0.0) == Full(1)
    assert answer(33, service_s=900.0) == Full(60)


def test_deadline_shorter_than_the_wait_is_told_at_once() -> None:
    assert answer(9, deadline_s=2.0) == TooLate(2.0)
    assert answer(9, deadline_s=2.1) == Accept(0.0)
    assert admitted(running=0, waiting=0, slots=1, service_s=99, deadline_s=0.5) == Accept(0.0)
    assert admitted(running=0, waiting=0, slots=1, service_s=99, deadline_s=0.0) == TooLate(0.0)


@given(st.integers(1, 64), st.integers(0, 300), st.floats(0, 1000), st.none() | st.floats(0.001, 1000))
def test_every_answer_is_within_its_bounds(
    slots: int, waiting: int, service_s: float, deadline_s: float | None
) -> None:
    verdict = admitted(running=slots, waiting=waiting, slots=slots, service_s=service_s, deadline_s=deadline_s)
    assert isinstance(verdict, Full) == (waiting > 0.8 * 4 * slots)
    if isinstance(verdict, Full):
        assert 1 <= verdict.retry_after_s <= 60
    elif isinstance(verdict, Accept):
        assert verdict.delay_s == 0 or 0.01 <= verdict.delay_s <= 0.1 + 1e-9
        assert (verdict.delay_s == 0) == (waiting < 2 * slots)
