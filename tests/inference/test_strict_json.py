"""JSON under limits: what passes is what `json` makes of it, what does not is refused in time."""

from __future__ import annotations

import json
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference import strict_json
from inference.errors import InvalidRequest
from inference.strict_json import DIGITS_MAX, MEMBERS_MAX, NESTING_MAX, PIECE, VALUES_MAX, parse, parse_object

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


@given(
    st.lists(st.text('\\"/\n\t\x7f\u00e9\u4e2d\U0001f600u dD89', max_size=40) | VALUES),
    st.booleans(),
    st.integers(24, 40),
)
def test_strings_scanned_in_pieces_are_the_same(value: list[Any], ascii_only: bool, piece: int) -> None:
    """Wherever a piece ends: inside an escape, between two halves of a pair, after a backslash."""
    data = json.dumps(value, ensure_ascii=ascii_only).encode()
    with patch.object(strict_json, "PIECE", piece), patch.object(strict_json, "PATIENT_FROM", -1):
        assert parse(data) == value


@given(st.binary(max_size=99) | st.text('[]{}",:\\u0d8 \n1eE+-.aN', max_size=99).map(str.encode), st.integers(24, 40))
def test_any_bytes_scanned_in_pieces_are_taken_or_refused_alike(data: bytes, piece: int) -> None:
    found = []
    for size, patient_from in ((2**20, 2**20), (piece, -1)):
        with patch.object(strict_json, "PIECE", size), patch.object(strict_json, "PATIENT_FROM", patient_from):
            try:
                found.append(repr(parse(data)))
            except InvalidRequest as refusal:
                found.append(f"refused: {refusal.code}")
    assert found[0] == found[1]


def test_no_long_string_reaches_c_code_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """C code keeps the interpreter's lock, and an event loop beside it waiting."""
    lengths: list[int] = []

    def scanned(text: str, start: int, strict: bool) -> tuple[str, int]:
        found, end = scanstring(text, start, strict)
        lengths.append(end - start)
        return found, end

    monkeypatch.setattr("json.decoder.scanstring", scanned)
    content = 'a\n"\u4e2d' * 500_000
    assert parse_object(json.dumps({"content": [content]}).encode()) == {"content": [content]}
    assert sum(lengths) > 1_000_000
    assert max(lengths) <= 2 * PIECE


def test_a_name_is_not_that_long() -> None:
    with pytest.raises(InvalidRequest, match="a name of more than 65,536 bytes"):
        parse(b'{"a": {"' + b"x" * 100_000 + b'" : 1}}')
    assert parse(b'["' + b"x" * 100_000 + b'", ":"]')


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
