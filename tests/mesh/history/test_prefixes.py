"""What a copy of a log takes: the next entries, or those after what its origin retired."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.history.prefixes import Extent, extended

SMALL = st.integers(0, 12)


@st.composite
def extents(draw: st.DrawFn) -> Extent:
    low = draw(SMALL)
    return Extent(no=1, low=low, have=low + draw(SMALL))


@given(extents(), st.integers(-1, 24), SMALL, st.integers(0, 24))
def test_a_copy_only_grows_and_never_has_a_gap(known: Extent, first: int, count: int, low: int) -> None:
    now, taken = extended(known, first=first, count=count, low=low)
    assert taken in (0, count)
    assert now.low >= known.low
    assert now.have >= known.have
    assert now.low <= now.have
    if taken:
        assert now.have == first - 1 + count
        # What lies between the old end and the first new entry was retired.
        assert first == known.have + 1 or now.low >= first - 1
    if not taken and first != low + 1:
        assert now.have == known.have


def test_what_follows_is_taken() -> None:
    assert extended(Extent(no=1, have=3), first=4, count=2, low=0) == (Extent(no=1, have=5), 2)


def test_a_gap_and_what_is_known_are_ignored() -> None:
    known = Extent(no=1, have=3)
    assert extended(known, first=5, count=2, low=0) == (known, 0)
    assert extended(known, first=3, count=2, low=0) == (known, 0)


def test_what_was_retired_at_the_origin_is_skipped() -> None:
    assert extended(Extent(no=1, have=3), first=11, count=2, low=10) == (Extent(no=1, low=10, have=12), 2)


def test_a_log_that_was_retired_whole_is_known_to_go_so_far() -> None:
    assert extended(Extent(no=1, have=3), first=11, count=0, low=10) == (Extent(no=1, low=10, have=10), 0)


def test_entries_at_or_below_the_low_water_mark_do_not_come_back() -> None:
    known = Extent(no=1, low=10, have=12)
    assert extended(known, first=1, count=5, low=0) == (known, 0)
