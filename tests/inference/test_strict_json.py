"""JSON under limits: what passes is what `json` makes of it, what does not is refused in time."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import InvalidRequest
from inference.strict_json import DIGITS_MAX, MEMBERS_MAX, NESTING_MAX, VALUES_MAX, parse, parse_object

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(VALUES, st.booleans(), st.sampled_from([None, 2]))
def test_any_json_value_comes_back_as_it_was(value: Any, ascii_only: bool, indent: int | None) -> None:
    try:
        data = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    except UnicodeEncodeError:  # hypothesis makes no surrogates, but keep the property honest
        return
    assert parse(data) == value


@given(st.binary(max_size=60) | st.text('[]{}",:\\u0d8 \n1eE+-.aN', max_size=60).map(str.encode))
def test_any_bytes_are_a_value_or_an_invalid_request(data: bytes) -> None:
    try:
        value = parse(data)
    except InvalidRequest:
        return
    assert value == json.loads(data.decode("utf-8-sig"))


def test_nesting_is_allowed_up_to_the_limit() -> None:
    assert parse(b"[" * NESTING_MAX + b"]" * NESTING_MAX)
    with pytest.raises(InvalidRequest, match="nesting deeper than 64"):
        parse(b"[" * (NESTING_MAX + 1) + b"]" * (NESTING_MAX + 1))


def test_brackets_in_strings_are_text() -> None:
    text = '[{"' * 1000 + "\\" * 7
    assert parse(json.dumps({"a": text, "b": "]" * 5000}).encode())["a"] == text


@pytest.mark.parametrize(
    "data", [b"[" * 10_000_000, b'{"a":' * 2_000_000, b'"' + b'\\"' * 1_000_000, b"]" * 10**6, b'"' + b"\\" * 10**7]
)
def test_hostile_shapes_end_as_an_error(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse(data)


def test_the_number_of_values_is_bounded() -> None:
    with pytest.raises(InvalidRequest, match="more than 1,000,000 values"):
        parse(b"[" + b"1," * VALUES_MAX + b"1]")


def test_the_number_of_members_is_bounded() -> None:
    members = b",".join(b'"k%d":1' % number for number in range(MEMBERS_MAX))
    assert len(parse(b"{" + members + b"}")) == MEMBERS_MAX
    with pytest.raises(InvalidRequest, match="more than 100,000 members"):
        parse(b"{" + members + b',"k":1}')


def test_numbers_are_bounded() -> None:
    assert parse(b"9" * DIGITS_MAX) == int("9" * DIGITS_MAX)
    assert parse(str(2**63).encode()) == 2**63
    for digits in (b"9" * (DIGITS_MAX + 1), b"-" + b"9" * 5000, b"1e309", b"-1e999", b"NaN", b"Infinity", b"-Infinity"):
        with pytest.raises(InvalidRequest):
            parse(digits)


@pytest.mark.parametrize("name", ["a", "\u00e9", "", "x" * 500])
def test_a_name_twice_is_refused_wherever_it_is(name: str) -> None:
    twice = json.dumps(name)
    with pytest.raises(InvalidRequest, match="twice"):
        parse(f'[{{"b": {{{twice}: 1, {twice}: 2}}}}]'.encode())


@pytest.mark.parametrize(
    ("text", "is_fine"),
    [
        ('"\\ud83d\\ude00"', True),
        ('"\\\\ud800"', True),
        ('"\\ud800"', False),
        ('{"\\udc00": 1}', False),
        ('["\\ud83d x \\ude00"]', False),
    ],
)
def test_half_a_surrogate_pair_is_refused(text: str, is_fine: bool) -> None:
    if is_fine:
        assert parse(text.encode()) == json.loads(text)
    else:
        with pytest.raises(InvalidRequest) as refusal:
            parse(text.encode())
        assert refusal.value.code == "invalid_encoding"


def test_a_body_is_an_object() -> None:
    assert parse_object(b"\xef\xbb\xbf{}") == {}
    with pytest.raises(InvalidRequest) as refusal:
        parse_object(b"[]")
    assert refusal.value.code == "invalid_type"
