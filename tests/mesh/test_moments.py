"""Moments as people and programs write them."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.moments import moment, rfc_3339
from tests.fixtures.zone import zone

NOW = 1_800_000_000.0


def test_a_time_ago_is_counted_from_now() -> None:
    found = {text: NOW - moment(text, now=NOW) for text in ("30s", "10m", "2h", "7d", "1w", " 5 m ")}
    assert found == {"30s": 30, "10m": 600, "2h": 7200, "7d": 604_800, "1w": 604_800, " 5 m ": 300}


def test_rfc_3339_in_every_form_is_the_same_moment() -> None:
    forms = (
        "2026-11-23T14:03:00Z",
        "2026-11-23t14:03:00.000z",
        "2026-11-23T15:03:00+01:00",
        "2026-11-23T15:03:00 01:00",  # a plus sign that was not escaped in a URL
        "2026-11-23 14:03Z",
    )
    assert {moment(form, now=NOW) for form in forms} == {1_795_442_580.0}
    assert moment("1795442580", now=NOW) == moment("1795442580.0", now=NOW) == 1_795_442_580.0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot change its zone")
def test_a_time_without_zone_is_one_of_this_machine() -> None:
    with zone("CET-1CEST,M3.5.0,M10.5.0/3"):
        assert moment("2026-11-23 15:03", now=NOW, is_local=True) == 1_795_442_580.0
        assert moment("2026-11-23", now=NOW, is_local=True) == 1_795_388_400.0
        assert moment("2026-07-01 12:00", now=NOW, is_local=True) == moment("2026-07-01T10:00:00Z", now=NOW)


def test_a_time_without_zone_is_refused_where_nobody_knows_whose_it_is() -> None:
    for text in ("2026-11-23", "2026-11-23T15:03"):
        with pytest.raises(ValueError, match="zone"):
            moment(text, now=NOW)


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "10", "-5m", "5 x", "2026-13-01T00:00:00Z", "2026-11-23T25:00:00Z", "nan", "inf", "1e9", "٣m",
     "2026-W01-1", "20261123", "99999999999999", "0000-01-01"],
)  # fmt: skip
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        moment(text, now=NOW, is_local=True)


@given(st.text(max_size=30))
def test_nothing_but_a_value_error_comes_of_any_text(text: str) -> None:
    try:
        moment(text, now=NOW, is_local=True)
    except ValueError:
        pass


@given(st.integers(0, 4_000_000_000_000))
def test_a_moment_that_is_written_reads_back(milliseconds: int) -> None:
    assert moment(rfc_3339(milliseconds / 1000), now=NOW) == pytest.approx(milliseconds / 1000, abs=0.0011)
