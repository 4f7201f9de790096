"""Five tries a minute."""

from __future__ import annotations

import pytest

from mesh.accounts.tries import NAMES_MAX, TRIES_MAX, WINDOW_S, Tries, by_address


def test_the_sixth_try_waits_for_the_first_to_age() -> None:
    tries = Tries()
    assert [tries.begin(("ann",), 100.0 + n) for n in range(TRIES_MAX)] == [0] * TRIES_MAX
    assert tries.begin(("ann",), 110.0) == 50
    assert tries.begin(("ann",), 100.0 + WINDOW_S) == 0


def test_a_try_that_was_refused_does_not_count() -> None:
    tries = Tries()
    for n in range(TRIES_MAX):
        tries.begin(("ann",), 100.0 + n)
    for n in range(50):
        assert tries.begin(("ann",), 110.0 + n / 10) > 0
    assert tries.begin(("ann",), 160.5) == 0


def test_right_tries_never_add_up() -> None:
    tries = Tries()
    for n in range(100):
        assert tries.begin(("ann", "ip"), 100.0 + n / 10) == 0
        tries.was_right(("ann", "ip"))


def test_many_at_once_are_not_one() -> None:
    tries = Tries()
    found = [tries.begin(("ann",), 100.0) for _ in range(100)]
    assert found.count(0) == TRIES_MAX


def test_names_and_addresses_count_apart_and_both_must_have_a_try_left() -> None:
    tries = Tries()
    for n in range(TRIES_MAX):
        assert tries.begin((f"user {n}", "ip"), 100.0) == 0
    assert tries.begin(("user 9", "ip"), 101.0) > 0
    assert tries.begin(("user 9", "other ip"), 101.0) == 0
    assert tries.begin(("user 0", "other ip"), 101.0) == 0


def test_however_many_names_come_memory_is_bounded() -> None:
    tries = Tries()
    for n in range(NAMES_MAX + 500):
        tries.begin((f"user {n}",), 100.0)
    assert len(tries._tries) == NAMES_MAX


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("192.168.1.5", "192.168.1.6", False),
        ("192.168.1.5", "::ffff:192.168.1.5", True),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:1:2:3", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("", "garbage", True),
    ],
)
def test_an_ipv6_network_counts_as_one_address(one: str, other: str, is_same: bool) -> None:
    assert (by_address(one) == by_address(other)) is is_same


def test_however_many_places_are_good_memory_is_bounded() -> None:
    tries = Tries()
    for number in range(5000):
        tries.was_good("user anna", f"ip {number}")
    assert tries.names("user anna", "ip 4999") == ("ip 4999",)
    assert tries.names("user anna", "ip 1") == ("user anna", "ip 1")
    assert tries.names("user otto", "ip 4999") == ("user otto", "ip 4999")
