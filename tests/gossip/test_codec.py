"""The codec: what goes in comes out, older and newer neighbours are understood, garbage is only ever a CodecError."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.codec import FRAME_BYTES_MAX, INT_MAX, ITEMS_MAX, TEXT_BYTES_MAX, Codec, CodecError, pack, unpack


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    name: str
    flag: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Everything:
    number: int
    share: float
    text: str
    truth: bool
    octets: bytes
    inner: Inner
    maybe: Inner | None
    kind: Literal["a", "b"]
    many: tuple[Inner, ...]
    rows: tuple[tuple[str, int, bytes], ...]
    pair: tuple[int, str]
    late: int = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Small:
    number: int


CODEC = Codec({1: Everything, 2: Small})
integers = st.integers(0, INT_MAX)
texts = st.text(max_size=20)
inners = st.builds(Inner, name=texts, flag=st.booleans())
everything = st.builds(
    Everything,
    number=integers,
    share=st.floats(-1e15, 1e15),
    text=texts,
    truth=st.booleans(),
    octets=st.binary(max_size=20),
    inner=inners,
    maybe=st.none() | inners,
    kind=st.sampled_from(["a", "b"]),
    many=st.lists(inners, max_size=3).map(tuple),
    rows=st.lists(st.tuples(texts, integers, st.binary(max_size=9)), max_size=3).map(tuple),
    pair=st.tuples(integers, texts),
    late=integers,
)
junk = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=20,
)


@given(everything)
def test_what_goes_in_comes_out(message: Everything) -> None:
    assert CODEC.decode(CODEC.encode(message)) == message
    assert unpack(Everything, pack(message)) == message


@given(st.binary(max_size=200))
def test_random_bytes_are_a_codec_error_or_a_message(data: bytes) -> None:
    try:
        message = CODEC.decode(data)
    except CodecError:
        return
    assert isinstance(message, Everything | Small)


@given(everything, st.data())
def test_a_damaged_frame_is_a_codec_error_or_a_well_typed_message(message: Everything, data: st.DataObject) -> None:
    frame = bytearray(CODEC.encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        changed = CODEC.decode(bytes(frame))
    except CodecError:
        return
    # well typed: it can be said again
    assert CODEC.decode(CODEC.encode(changed)) == changed


@given(st.lists(junk, max_size=14), st.sampled_from([1, 2]))
def test_any_msgpack_is_a_codec_error_or_a_well_typed_message(parts: list[object], tag: int) -> None:
    try:
        message = CODEC.decode(msgpack.packb([tag, *parts]))
    except CodecError:
        return
    assert CODEC.decode(CODEC.encode(message)) == message


def test_fields_of_a_newer_neighbour_are_ignored() -> None:
    assert CODEC.decode(msgpack.packb([2, 5, "new", [1, 2]])) == Small(number=5)


def test_fields_an_older_neighbour_lacks_take_their_defaults() -> None:
    frame = msgpack.packb([1, 1, 1.0, "t", True, b"", ["n"], None, "a", [], [], [3, "x"]])
    message = CODEC.decode(frame)
    assert isinstance(message, Everything)
    assert message.late == 7
    assert message.inner == Inner(name="n", flag=False)


def test_rows_of_a_newer_neighbour_lose_their_extra_columns() -> None:
    frame = msgpack.packb([1, 1, 1.0, "t", True, b"", ["n"], None, "a", [], [["k", 2, b"v", "more"]], [3, "x", 9]])
    message = CODEC.decode(frame)
    assert isinstance(message, Everything)
    assert message.rows == (("k", 2, b"v"),)
    assert message.pair == (3, "x")


@pytest.mark.parametrize(
    "frame",
    [
        msgpack.packb(5),
        msgpack.packb([]),
        msgpack.packb([9, 1]),
        msgpack.packb([True, 1]),
        msgpack.packb([[1], 1]),
        msgpack.packb([2]),
        msgpack.packb([2, "5"]),
        msgpack.packb([2, True]),
        msgpack.packb([2, 5.0]),
        msgpack.packb([2, -1]),
        msgpack.packb([2, INT_MAX + 1]),
        msgpack.packb({2: 5}),
        msgpack.packb([2, 5]) + b"\x00",
        msgpack.packb([2, 5])[:-1],
        b"\x91" * 5000,
        b"\xdd\xff\xff\xff\xff",
        b"",
    ],
)
def test_what_is_no_message_is_refused(frame: bytes) -> None:
    with pytest.raises(CodecError):
        CODEC.decode(frame)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (2, float("nan")),
        (2, float("inf")),
        (3, "x" * (TEXT_BYTES_MAX + 1)),
        (4, 1),
        (5, "text"),
        (6, None),
        (8, "c"),
        (8, 1),
        (9, [["n"], 5]),
        (9, [["n"]] * (ITEMS_MAX + 1)),
        (10, [["k", -2, b"v"]]),
        (10, [["k", 2]]),
        (10, [["x" * (TEXT_BYTES_MAX + 1), 2, b""]]),
        (10, [["k", True, b"v"]]),
        (11, [3]),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused(at: int, value: object) -> None:
    frame: list[object] = [1, 1, 1.0, "t", True, b"", ["n"], None, "a", [], [], [3, "x"], 7]
    CODEC.decode(msgpack.packb(frame))
    frame[at] = value
    with pytest.raises(CodecError):
        CODEC.decode(msgpack.packb(frame))


def test_a_frame_over_the_limit_is_refused_on_both_sides() -> None:
    with pytest.raises(CodecError):
        CODEC.decode(msgpack.packb([2, 5, b"x" * FRAME_BYTES_MAX]))
    big = Inner(name="x" * FRAME_BYTES_MAX)
    with pytest.raises(CodecError):
        Codec({1: Inner}).encode(big)


def test_a_class_with_a_field_no_frame_can_hold_is_found_when_the_table_is_made() -> None:
    @dataclass(frozen=True)
    class Wrong:
        table: dict[str, int]

    with pytest.raises(TypeError):
        Codec({1: Wrong})
