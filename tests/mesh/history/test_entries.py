"""Entries and their bytes: what goes in comes out, and no bytes raise anything but BadEntry."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.history.entries import (
    ENTRY_BYTES_MAX,
    INT_MAX,
    TEXT_CHARACTERS_MAX,
    Audit,
    End,
    Entry,
    Start,
    body_of,
    body_span,
    decode,
    encode,
    without_body,
)
from mesh.history.errors import BadEntry

# What msgpack and SQLite hold as it is: no lone surrogate, no NUL.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
WHOLE = st.integers(0, INT_MAX)
MAYBE = st.none() | WHOLE
BODIES = st.none() | st.binary(max_size=300)

STARTS = st.builds(
    Start,
    id=TEXTS,
    at_ms=WHOLE,
    kind=st.sampled_from(["chat", "generate", "embeddings"]),
    model=TEXTS,
    client_ip=TEXTS,
    key_id=TEXTS,
    key_name=TEXTS,
    user=TEXTS,
    stream=st.booleans(),
    recording=st.sampled_from(["full", "metadata"]),
    request_body=BODIES,
)
ENDS = st.builds(
    End,
    id=TEXTS,
    at_ms=WHOLE,
    status=st.sampled_from(["success", "error", "cancelled", "interrupted"]),
    message=TEXTS,
    code=TEXTS,
    http_status=WHOLE,
    node=TEXTS,
    node_name=TEXTS,
    node_ip=TEXTS,
    attempts=WHOLE,
    continued_on=st.lists(TEXTS, max_size=4).map(tuple),
    prompt_tokens=MAYBE,
    completion_tokens=MAYBE,
    cached_tokens=MAYBE,
    ttft_ms=MAYBE,
    duration_ms=WHOLE,
    response_body=BODIES,
)
AUDITS = st.builds(
    Audit,
    at_ms=WHOLE,
    actor=TEXTS,
    actor_kind=st.sampled_from(["user", "key", "control", "peer", "system"]),
    action=TEXTS,
    ip=TEXTS,
    target=TEXTS,
    detail=TEXTS,
)
ENTRIES: st.SearchStrategy[Entry] = st.one_of(STARTS, ENDS, AUDITS)
START = Start(id="1", at_ms=5, kind="chat", model="m", request_body=b'{"model":"m"}')


@given(ENTRIES)
def test_what_goes_in_comes_out(entry: Entry) -> None:
    assert decode(encode(entry)) == entry


@given(st.binary(max_size=400))
def test_random_bytes_raise_bad_entry_or_are_an_entry(data: bytes) -> None:
    try:
        entry = decode(data)
    except BadEntry:
        return
    assert isinstance(entry, Start | End | Audit)


@given(ENTRIES, st.data())
def test_an_entry_with_a_changed_byte_raises_nothing_but_bad_entry(entry: Entry, data: st.DataObject) -> None:
    spoilt = bytearray(encode(entry))
    spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(spoilt))
    except BadEntry:
        pass


SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=9)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


@given(st.lists(VALUES, max_size=20), st.integers(0, 5))
def test_arrays_of_anything_raise_nothing_but_bad_entry(values: list[Any], tag: int) -> None:
    data = msgpack.packb([tag, *values], unicode_errors="surrogatepass")
    try:
        decode(data)
    except BadEntry:
        pass


@given(ENTRIES, st.lists(VALUES, max_size=3))
def test_fields_of_a_newer_program_are_ignored(entry: Entry, more: list[Any]) -> None:
    values = msgpack.unpackb(encode(entry), raw=False)
    assert decode(msgpack.packb([*values, *more], unicode_errors="replace")) == entry


@given(ENTRIES)
def test_fields_that_an_older_program_did_not_write_take_their_defaults(entry: Entry) -> None:
    values = msgpack.unpackb(encode(entry), raw=False)
    shorter = decode(msgpack.packb(values[:-1]))
    assert type(shorter) is type(entry)
    assert body_of(shorter) is None


@pytest.mark.parametrize("count", range(4))
def test_an_entry_without_what_it_must_have_is_none(count: int) -> None:
    values = msgpack.unpackb(encode(START), raw=False)
    with pytest.raises(BadEntry):
        decode(msgpack.packb(values[: count + 1]))


@given(ENTRIES)
def test_the_body_is_where_it_is_said_to_be(entry: Entry) -> None:
    data = encode(entry)
    at, size = body_span(data, entry)
    if at is None or size is None:
        assert not body_of(entry)
    else:
        assert data[at : at + size] == body_of(entry)


@given(ENTRIES, st.lists(VALUES, max_size=2))
def test_without_its_body_an_entry_is_otherwise_the_same(entry: Entry, more: list[Any]) -> None:
    values = msgpack.unpackb(encode(entry), raw=False)
    data = msgpack.packb([*values, *more], unicode_errors="replace")
    stripped = without_body(data)
    assert body_of(decode(stripped)) is None
    kept = [value for value in msgpack.unpackb(stripped, raw=False) if not isinstance(value, bytes)]
    before = [value for value in msgpack.unpackb(data, raw=False) if not isinstance(value, bytes)]
    assert repr([value for value in kept if value is not None]) == repr(
        [value for value in before if value is not None]
    )


def test_texts_are_cut_and_cleaned_so_that_they_can_be_stored_and_sent() -> None:
    entry = Start(id="1", at_ms=5, kind="chat", model="m" * 9000, user="a\0b\ud800c")
    read = decode(encode(entry))
    assert isinstance(read, Start)
    assert read.model == "m" * TEXT_CHARACTERS_MAX
    assert read.user == "ab?c"


def test_an_entry_over_the_limit_is_refused_with_both_numbers() -> None:
    entry = Start(id="1", at_ms=5, kind="chat", model="m", request_body=bytes(ENTRY_BYTES_MAX))
    with pytest.raises(BadEntry, match=f"{ENTRY_BYTES_MAX} is the limit"):
        encode(entry)
    with pytest.raises(BadEntry, match=f"{ENTRY_BYTES_MAX} is the limit"):
        decode(bytes(ENTRY_BYTES_MAX + 1))


@pytest.mark.parametrize(
    "spoilt",
    [
        Start(id="1", at_ms=-1, kind="chat", model="m"),
        Start(id="1", at_ms=2**63, kind="chat", model="m"),
        Start(id="1", at_ms=5, kind="film", model="m"),  # type: ignore[arg-type]
        Start(id="1", at_ms=5, kind="chat", model=b"m"),  # type: ignore[arg-type]
        Start(id="1", at_ms=5, kind="chat", model="m", stream=1),  # type: ignore[arg-type]
        Start(id="1", at_ms=True, kind="chat", model="m"),
        Start(id="1", at_ms=5, kind="chat", model="m", request_body="text"),  # type: ignore[arg-type]
        End(id="1", at_ms=5, status="fine"),  # type: ignore[arg-type]
        End(id="1", at_ms=5, status="success", continued_on=(1,)),  # type: ignore[arg-type]
        End(id="1", at_ms=5, status="success", ttft_ms=1.5),  # type: ignore[arg-type]
    ],
)
def test_values_of_the_wrong_type_or_range_are_refused(spoilt: Entry) -> None:
    with pytest.raises(BadEntry):
        decode(encode(spoilt))
