"""Tests of telling a worker that computes from one that hangs, on a clock of their own."""

from __future__ import annotations

from dataclasses import dataclass, field

from inference.engine.pulse import LOOK_EVERY_S, SILENT_S, STILL_S, Pulse


@dataclass
class Worker:
    """Somebody looks at it every LOOK_EVERY_S; what it does meanwhile is up to the test."""

    pulse: Pulse = field(default_factory=Pulse)
    now: float = 1000.0
    heard_at: float = 990.0
    processor_s: float | None = 50.0

    def watched(self, seconds: float, *, is_busy: bool = True, talks: bool = False, uses: float = 0.0) -> str | None:
        """The first fault that is seen within `seconds`; `uses`: processor time a second."""
        end = self.now + seconds
        while self.now < end:
            self.now += LOOK_EVERY_S
            if talks:
                self.heard_at = self.now
            if self.processor_s is not None:
                self.processor_s += uses * LOOK_EVERY_S
            fault = self.pulse.fault(self.now, is_busy=is_busy, heard_at=self.heard_at, processor_s=self.processor_s)
            if fault:
                return fault
        return None


def test_worker_that_neither_speaks_nor_computes_hangs() -> None:
    worker = Worker()
    began = worker.now
    assert worker.watched(2 * STILL_S) == f"hung: it said and computed nothing for {STILL_S:g} s"
    assert STILL_S <= worker.now - began <= STILL_S + 2 * LOOK_EVERY_S


def test_long_silent_evaluation_is_not_taken_for_a_hang() -> None:
    assert Worker().watched(SILENT_S - 3 * LOOK_EVERY_S, uses=2.0) is None


def test_worker_whose_weights_come_from_a_slow_disk_is_not_taken_for_a_hang() -> None:
    assert Worker().watched(SILENT_S - 3 * LOOK_EVERY_S, uses=0.02) is None


def test_worker_that_computes_for_ever_hangs_as_well() -> None:
    assert Worker().watched(2 * SILENT_S, uses=1.0) == f"hung: it said nothing for {SILENT_S:g} s"


def test_timers_and_signals_are_no_computation() -> None:
    assert Worker().watched(2 * STILL_S, uses=0.0001) is not None


def test_worker_without_requests_may_be_still_and_has_its_whole_time_afterwards() -> None:
    worker = Worker()
    assert worker.watched(10 * SILENT_S, is_busy=False) is None
    assert worker.watched(STILL_S - LOOK_EVERY_S) is None


def test_every_sign_of_life_begins_the_time_anew() -> None:
    worker = Worker()
    for _ in range(5):
        assert worker.watched(STILL_S - LOOK_EVERY_S) is None
        assert worker.watched(LOOK_EVERY_S, talks=True) is None
        assert worker.watched(STILL_S - LOOK_EVERY_S) is None
        assert worker.watched(LOOK_EVERY_S, uses=1.0) is None


def test_a_peer_that_was_stopped_itself_does_not_blame_its_workers() -> None:
    worker = Worker()
    assert worker.watched(LOOK_EVERY_S) is None
    worker.now += 10 * SILENT_S  # Ctrl+Z, and `fg` the next morning
    assert worker.watched(STILL_S - 3 * LOOK_EVERY_S) is None


def test_without_knowing_the_processor_time_only_the_longer_limit_holds() -> None:
    worker = Worker(processor_s=None)
    assert worker.watched(SILENT_S - 3 * LOOK_EVERY_S) is None
    assert worker.watched(SILENT_S) == f"hung: it said nothing for {SILENT_S:g} s"
