"""How long a model rests after its worker ended badly."""

from __future__ import annotations

from inference.models.quarantine import Quarantine


def test_second_crash_within_an_hour_is_an_hour_of_rest() -> None:
    q = Quarantine()
    q.crashed("m", "was ended by SIGSEGV", 0.0)
    assert q.refusal("m", 1.0) is None
    q.crashed("m", "was ended by SIGABRT", 3599.0)
    refusal = q.refusal("m", 3600.0)
    assert refusal is not None and refusal.is_quarantined and "SIGABRT" in refusal.reason
    assert refusal.until == 3599.0 + 3600.0
    assert q.refusal("m", refusal.until) is None
    assert q.refusal("other", 3600.0) is None


def test_crashes_more_than_an_hour_apart_are_no_pattern() -> None:
    q = Quarantine()
    q.crashed("m", "crashed", 0.0)
    q.crashed("m", "crashed", 3600.0)
    assert q.refusal("m", 3600.0) is None


def test_success_between_two_crashes_clears_the_record() -> None:
    q = Quarantine()
    q.crashed("m", "crashed", 0.0)
    q.succeeded("m")
    q.crashed("m", "crashed", 1.0)
    assert q.refusal("m", 1.0) is None


def test_being_killed_from_outside_never_quarantines() -> None:
    q = Quarantine()
    for at in range(10):
        q.killed("m", "was ended by SIGKILL", float(at))
        refusal = q.refusal("m", float(at))
        assert (refusal is None) == (at < 2)
        if refusal:
            assert not refusal.is_quarantined and refusal.until == at + 30.0


def test_failed_loads_rest_longer_each_time_up_to_five_minutes() -> None:
    q = Quarantine()
    rests = []
    now = 0.0
    for _ in range(8):
        q.load_failed("m", "no memory", now)
        refusal = q.refusal("m", now)
        assert refusal is not None
        rests.append(refusal.until - now)
        now = refusal.until
    assert rests == [10, 20, 40, 80, 160, 300, 300, 300]
    assert q.resting(now) == {}


def test_failed_load_never_shortens_a_quarantine() -> None:
    q = Quarantine()
    q.crashed("m", "crashed", 0.0)
    q.crashed("m", "crashed", 0.0)
    q.load_failed("m", "crashed while loading", 0.0)
    refusal = q.refusal("m", 100.0)
    assert refusal is not None and refusal.is_quarantined
    q.forgive("m")
    assert q.refusal("m", 100.0) is None
