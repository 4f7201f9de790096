"""Peers that took a request and did nothing with it."""

from __future__ import annotations

from mesh.penalty import TERM_S, TERM_S_MAX, PenaltyBox


def test_a_wedged_peer_sits_its_term_and_comes_back() -> None:
    box = PenaltyBox()
    box.put("tower", 100.0)
    assert box.holds("tower", 100.0 + TERM_S - 0.1)
    assert not box.holds("tower", 100.0 + TERM_S)
    assert not box.holds("attic", 100.0)


def test_each_new_fault_doubles_the_term_up_to_a_limit() -> None:
    box, now = PenaltyBox(), 0.0
    for n in range(20):
        box.put("tower", now)
        term = min(TERM_S_MAX, TERM_S * 2**n)
        assert box.holds("tower", now + term - 0.1)
        now += term
        assert not box.holds("tower", now)


def test_requests_that_wedge_together_are_one_fault() -> None:
    box = PenaltyBox()
    for _ in range(5):
        box.put("tower", 0.0)
    assert not box.holds("tower", TERM_S)


def test_one_that_proves_itself_begins_anew() -> None:
    box = PenaltyBox()
    box.put("tower", 0.0)
    box.put("tower", TERM_S)
    box.release("tower")
    assert not box.holds("tower", TERM_S)
    box.put("tower", 1000.0)
    assert not box.holds("tower", 1000.0 + TERM_S)
