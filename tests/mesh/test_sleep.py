"""How long this machine has slept."""

from __future__ import annotations

from mesh.sleep import asleep_s


def test_who_is_awake_does_not_sleep() -> None:
    before = asleep_s()
    sum(range(1_000_000))
    assert before > -0.1 and abs(asleep_s() - before) < 0.01
