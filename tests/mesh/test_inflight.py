"""This peer's own requests at others, beside what those report."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.inflight import REAP_S, InFlight


def test_a_request_counts_until_a_report_has_seen_it() -> None:
    ledger = InFlight()
    ledger.begin("tower", "qwen", 10.0)
    assert ledger.unreported("tower", "qwen", 9.0) == 1
    assert ledger.unreported("tower", "qwen", 11.0) == 0
    assert ledger.unreported("attic", "qwen", 9.0) == 0
    assert ledger.running("tower") == ledger.running() == 1


def test_a_request_that_a_report_counted_and_that_has_ended_since_goes_off() -> None:
    ledger = InFlight()
    ticket = ledger.begin("tower", "qwen", 10.0)
    ledger.end(ticket, 12.0)
    ledger.end(ticket, 13.0)
    assert ledger.unreported("tower", "qwen", 11.0) == -1
    assert ledger.unreported("tower", "qwen", 12.5) == 0
    assert ledger.running() == 0


def test_one_that_began_and_ended_between_two_reports_counts_nothing() -> None:
    ledger = InFlight()
    ledger.end(ledger.begin("tower", "qwen", 10.0), 11.0)
    assert ledger.unreported("tower", "qwen", 9.0) == 0


def test_what_was_forgotten_is_reaped_by_its_deadline() -> None:
    ledger = InFlight()
    ledger.begin("tower", "qwen", 0.0, 30.0)
    ledger.begin("tower", "qwen", 0.0)
    ledger.begin("tower", "qwen", 31.0)
    assert ledger.running() == 2
    ledger.begin("tower", "qwen", REAP_S + 1.0)
    assert ledger.running() == 2


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 50)), max_size=40), st.floats(0, 200))
def test_a_report_and_the_ledger_together_say_what_runs(spans: list[tuple[float, float]], reported_at: float) -> None:
    ledger = InFlight()
    now = 200.0
    moments = sorted([(began, n, True) for n, (began, _) in enumerate(spans)])
    tickets = {n: ledger.begin("tower", "qwen", began) for began, n, _ in moments}
    ends = sorted((began + length, n) for n, (began, length) in enumerate(spans) if began + length <= now)
    for ended, n in ends:
        ledger.end(tickets[n], ended)
    reported = sum(began <= reported_at < began + length for began, length in spans)
    truly = sum(began + length > now for began, length in spans)
    assert reported + ledger.unreported("tower", "qwen", reported_at) == truly
    assert ledger.running("tower") == truly
