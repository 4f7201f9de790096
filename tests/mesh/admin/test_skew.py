"""Whose clock is wrong: by what the others' showed, for a while."""

from __future__ import annotations

from mesh.admin.skew import RECENT_S, Skew


def test_the_lead_is_over_most_of_the_others_and_follows_a_clock_that_is_set() -> None:
    skew = Skew()
    assert skew.lead_ms(1000, 0) is None and not skew.is_refused(1000, 0)
    for peer, lead in (("a", 0), ("b", 300_000), ("c", 301_000)):
        skew.heard(peer, 1_000_000 - lead, 5.0)
    assert skew.lead_ms(1_000_000, 5.0) == 300_000
    assert skew.lead_ms(1_007_000, 12.0) == 300_000, "their clocks go on"
    assert skew.others_ms(1_000_000, 5.0) == 700_000
    assert skew.is_refused(1_000_000, 5.0)
    assert skew.lead_ms(700_000, 5.0) == 0, "this clock was set"
    assert not skew.is_refused(700_000, 5.0)


def test_half_of_the_others_are_enough_to_be_refused_and_fewer_are_not() -> None:
    skew = Skew()
    skew.heard("a", 0, 0.0)
    skew.heard("b", 100_000, 0.0)
    assert skew.is_refused(100_000, 0.0)
    skew.heard("c", 100_000, 0.0)
    assert not skew.is_refused(100_000, 0.0)


def test_what_was_said_long_ago_does_not_count() -> None:
    skew = Skew()
    skew.heard("a", 0, 0.0)
    assert skew.lead_ms(500_000, RECENT_S) is not None
    assert skew.lead_ms(500_000, RECENT_S + 1) is None


def test_only_so_many_are_remembered() -> None:
    skew = Skew()
    for number in range(1000):
        skew.heard(str(number), 0, 0.0)
    assert len(skew.leads_ms(0, 0.0)) == 256
