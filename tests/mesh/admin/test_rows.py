"""A row says who wrote what in which mesh, and nothing else reads as one."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.admin.clock import Clock
from mesh.admin.rows import VALUE_BYTES_MAX, BadRow, Row, adopted, hash_of, is_signed, read, signed, written
from tests.mesh.admin.house import who

MESH = "m" * 52


def row(**how: object) -> Row:
    defaults: dict[str, object] = {
        "key": "key/1",
        "field": "name",
        "value": b'"x"',
        "clock": Clock(5, 6),
        "over": Clock(1, 2),
    }
    return signed(who("a"), MESH, **{**defaults, **how})  # type: ignore[arg-type]


def test_a_row_comes_back_from_its_bytes_and_is_signed_in_its_own_mesh_only() -> None:
    a, b = who("a").public_key, who("b").public_key
    assert read(written(row())) == row()
    assert is_signed(row(), MESH, a)
    assert not is_signed(row(), "n" * 52, a)
    assert not is_signed(row(), MESH, b)


@pytest.mark.parametrize(
    "change",
    [
        {"key": "key/2"},
        {"field": "other"},
        {"value": b'"y"'},
        {"clock": Clock(5, 7)},
        {"clock": Clock(6, 6)},
        {"over": Clock(0, 2)},
        {"over": Clock(1, 0)},
        {"author": who("b").peer_id},
        {"signature": b"\0" * 64},
    ],
)
def test_whatever_is_changed_in_a_row_its_signature_does_not_fit_any_more(change: dict[str, object]) -> None:
    changed = dataclasses.replace(row(), **change)  # type: ignore[arg-type]
    assert not is_signed(changed, MESH, who("a").public_key)
    assert not is_signed(changed, MESH, who("b").public_key)


def test_another_signature_of_a_peer_is_no_row() -> None:
    plain = dataclasses.replace(row(), signature=who("a").sign(written(row())))
    assert not is_signed(plain, MESH, who("a").public_key)


def test_an_adopted_row_says_the_same_at_the_same_time_by_somebody_else() -> None:
    (by_b,) = adopted([row()], who("b"), MESH)
    assert is_signed(by_b, MESH, who("b").public_key)
    assert dataclasses.replace(by_b, author=row().author, signature=row().signature) == row()


@pytest.mark.parametrize(
    "how",
    [
        {"key": "key"},
        {"key": "/1"},
        {"key": "key/"},
        {"key": "Key/1"},
        {"key": "key/ä"},
        {"key": "key/1\n"},
        {"key": "key/a b"},
        {"key": "key/" + "x" * 197},
        {"field": ""},
        {"field": "Name"},
        {"field": "na me"},
        {"field": "x" * 65},
        {"value": b""},
        {"value": b"{"},
        {"value": b"NaN"},
        {"value": b'{"a":1,"a":2}'},
        {"value": b'"\\ud800"'},
        {"value": b'"\xff"'},
        {"value": b"[" * 65 + b"]" * 65},
        {"value": b'"' + b"x" * VALUE_BYTES_MAX + b'"'},
        {"clock": Clock(2**53 + 1, 0)},
        {"clock": Clock(0, 2**16)},
        {"over": Clock(0, 2**16)},
    ],
)
def test_what_nobody_would_take_is_not_even_signed(how: dict[str, object]) -> None:
    with pytest.raises(BadRow):
        row(**how)


@pytest.mark.parametrize(
    "how",
    [
        {"key": "key"},
        {"field": "Name"},
        {"value": b"{"},
        {"value": b'"' + b"x" * VALUE_BYTES_MAX + b'"'},
        {"clock": Clock(2**53 + 1, 0)},
        {"over": Clock(0, 2**16)},
        {"author": "a" * 51},
        {"author": "A" * 52},
        {"signature": b"\0" * 63},
    ],
)
def test_what_nobody_would_sign_is_not_read(how: dict[str, object]) -> None:
    with pytest.raises(BadRow):
        read(written(dataclasses.replace(row(), **how)))  # type: ignore[arg-type]


def test_the_longest_row_can_be_read() -> None:
    longest = row(key="key/" + "x" * 196, field="f" * 64, value=b'"' + b"x" * (VALUE_BYTES_MAX - 2) + b'"')
    assert read(written(longest)) == longest


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 255))
def test_bytes_that_are_no_row_are_refused_in_one_way(data: bytes, at: int, byte: int) -> None:
    """And what is only written in another way has the same hash: a member cannot make two of one row."""
    good = bytearray(written(row()))
    good[at % len(good)] = byte
    for each in (data, bytes(good), bytes(good[:at]), written(row()) + data):
        try:
            found = read(each)
        except BadRow:
            continue
        assert read(written(found)) == found
        if is_signed(found, MESH, who("a").public_key):
            assert hash_of(found) == hash_of(row())
