"""Tests of finding the number of threads, on machines that exist only as formulas."""

from __future__ import annotations

import random
from collections.abc import Callable

from inference.engine.threads import AGAIN_MAX_S, ThreadTuner

Machine = Callable[[int, int], float]


def quiet(threads: int, rows: int) -> float:
    return float((0.02 + 0.002 * rows) / threads**0.7)


def contended(threads: int, rows: int) -> float:
    """One core is taken: a thread alone keeps its speed, several wait for each other."""
    return quiet(1, rows) * 1.2 if threads == 1 else 0.5


def run(tuner: ThreadTuner, machine: Machine, steps: int, *, now: float = 0.0, rows: int = 4) -> tuple[float, float]:
    """(time afterwards, mean tokens/s of a row) of `steps` steps."""
    rng = random.Random(1)
    began = now
    for _ in range(steps):
        seconds = machine(tuner.threads, rows) * rng.uniform(0.95, 1.05)
        now += seconds
        tuner.decoded(rows, seconds, now)
    return now, steps / (now - began)


def test_a_quiet_machine_keeps_all_its_threads() -> None:
    tuner = ThreadTuner(4)
    for _ in range(500):
        run(tuner, quiet, 1)
        assert tuner.threads == 4


def test_beside_a_busy_program_fewer_threads_are_found_and_given_up_when_it_ends() -> None:
    tuner = ThreadTuner(2)
    now, _ = run(tuner, quiet, 50)
    now, _ = run(tuner, contended, 30, now=now)
    assert tuner.threads == 1
    now, _ = run(tuner, quiet, 200, now=now + AGAIN_MAX_S)
    assert tuner.threads == 2


def test_a_long_contention_costs_little_more_than_the_right_number_from_the_start() -> None:
    tuner = ThreadTuner(2)
    now, _ = run(tuner, quiet, 50)
    _, rate = run(tuner, contended, 3000, now=now)
    assert rate > 0.8 / contended(1, 4)


def test_another_chance_under_contention_costs_one_step() -> None:
    tuner = ThreadTuner(2)
    now, _ = run(tuner, quiet, 50)
    now, _ = run(tuner, contended, 200, now=now)
    slow = 0
    for _ in range(3000):  # three minutes
        slow += tuner.threads == 2
        now, _ = run(tuner, contended, 1, now=now)
    assert 1 <= slow <= 8


def test_trouble_that_has_passed_costs_no_step_with_fewer_threads() -> None:
    tuner = ThreadTuner(2)
    now, _ = run(tuner, quiet, 50)
    now, _ = run(tuner, contended, 2, now=now)
    for _ in range(50):
        assert tuner.threads == 2
        now, _ = run(tuner, quiet, 1, now=now)


def test_one_slow_step_changes_nothing() -> None:
    tuner = ThreadTuner(8)
    now, _ = run(tuner, quiet, 20)
    tuner.decoded(4, 3.0, now)
    now, _ = run(tuner, quiet, 20, now=now)
    assert tuner.threads == 8


def test_steps_of_different_work_are_not_compared() -> None:
    tuner = ThreadTuner(4)
    now, _ = run(tuner, quiet, 20, rows=1)
    now, _ = run(tuner, quiet, 20, now=now, rows=64)  # seven times as slow, for a good reason
    assert tuner.threads == 4


def test_a_middle_number_is_kept_when_it_is_the_fastest() -> None:
    tuner = ThreadTuner(8)
    now, _ = run(tuner, quiet, 20)
    run(tuner, lambda threads, rows: 0.5 if threads > 4 else quiet(threads, rows) * 1.7, 80, now=now)
    assert tuner.threads == 4


def test_one_thread_is_one_thread() -> None:
    tuner = ThreadTuner(1)
    run(tuner, contended, 50)
    assert tuner.threads == 1
