"""JSON from strangers: parsed under limits, or refused with a reason.

Stricter than `json.loads` where RFC 8259 section 4 and 8 leave a choice: UTF-8 only (a byte order mark is
skipped), no duplicate names, no NaN or Infinity (nor numbers that overflow to it), no lone surrogates, nesting and
the number of values bounded before the parser starts. It knows nothing of any dialect: `inference.openai` gives the
parsed object its meaning. How many bytes are read in the first place is the caller's business.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from itertools import accumulate
from typing import Any

from inference.errors import InvalidRequest

# Deep enough for any JSON schema seen in the wild, far below the recursion limit of the parser.
NESTING_MAX = 64
# A token id each: three times what OpenAI takes in one embeddings call, and about 60 ms of parsing.
VALUES_MAX = 1_000_000
# A chat of 50,000 turns. Objects cost ten times what token ids do.
MEMBERS_MAX = 100_000
# 2^64 has 20 digits; beyond 100 nobody means a number, and parsing cost grows with the square.
DIGITS_MAX = 100

_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NOT_BRACKETS = bytes(set(range(256)) - set(_STEP))
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`. Raises InvalidRequest; `invalid_type` when it is another kind of value."""
    value = parse(data)
    if not isinstance(value, dict):
        raise InvalidRequest(
            f"Invalid type for the request body: expected an object, but got {type_name(value)} instead.",
            code="invalid_type",
        )
    return value


def parse(data: bytes) -> Any:
    """The JSON value in `data`. Raises InvalidRequest saying what is wrong and where."""
    text = _decoded(data)
    _check_shape(data)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise _unparsable(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _unparsable(f"nesting deeper than {NESTING_MAX}") from None
    if _SURROGATE_ESCAPE.search(data):
        _check_surrogates(value)
    return value


def type_name(value: object) -> str:
    """What OpenAI's error messages call the type of `value`, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    return _TYPE_NAMES.get(type(value), "an object")


_TYPE_NAMES = {dict: "an object", list: "an array", str: "a string", int: "an integer", float: "a decimal"}


def _unparsable(reason: str, code: str | None = None) -> InvalidRequest:
    return InvalidRequest(f"We could not parse the JSON body of your request: {reason}.", code=code)


def _decoded(data: bytes) -> str:
    if b"\x00" in data:  # UTF-16 and UTF-32 always hold NUL bytes, JSON in UTF-8 never does
        raise _unparsable("it is not UTF-8", code="invalid_encoding")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unparsable(f"it is not UTF-8 (byte {error.start:,})", code="invalid_encoding") from None
    if not text.strip():
        raise _unparsable("it is empty")
    return text


def _check_shape(data: bytes) -> None:
    """Raises when brackets nest too deep or there are too many values, in one linear pass without recursion."""
    bare = _without_strings(data)
    brackets = bare.translate(None, delete=_NOT_BRACKETS)
    if bare.count(b",") + len(brackets) > VALUES_MAX:
        raise _unparsable(f"more than {VALUES_MAX:,} values")
    if bare.count(b":") > MEMBERS_MAX:
        raise _unparsable(f"more than {MEMBERS_MAX:,} members of objects")
    if len(brackets) > NESTING_MAX and max(accumulate(map(_STEP.__getitem__, brackets))) > NESTING_MAX:
        raise _unparsable(f"nesting deeper than {NESTING_MAX}")


def _without_strings(data: bytes) -> bytes:
    """`data` with everything between quotes left out; an unterminated string ends it."""
    pieces = []
    position = 0
    while (start := data.find(b'"', position)) >= 0:
        pieces.append(data[position:start])
        if len(pieces) > VALUES_MAX:
            raise _unparsable(f"more than {VALUES_MAX:,} strings")
        end = data.find(b'"', start + 1)
        while end >= 0 and _ends_escaping(data[start + 1 : end]):
            start, end = end, data.find(b'"', end + 1)
        if end < 0:
            return b"".join(pieces)
        position = end + 1
    pieces.append(data[position:])
    return b"".join(pieces)


def _ends_escaping(text: bytes) -> bool:
    """True when the quote after `text` is part of the string: an odd number of backslashes stands before it."""
    return text.endswith(b"\\") and (len(text) - len(text.rstrip(b"\\"))) % 2 == 1


def _check_surrogates(value: Any) -> None:
    """Raises when a string in `value` holds half a surrogate pair, which no UTF-8 can carry."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _unparsable("a string holds a lone surrogate escape", code="invalid_encoding") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise _unparsable(f"an object has the name {_excerpt(twice)} twice")
    return value


def _excerpt(name: str) -> str:
    return ascii(name if len(name) <= 40 else name[:40] + "...")


def _integer(digits: str) -> int:
    if len(digits) > DIGITS_MAX:
        raise _unparsable(f"a number has {len(digits):,} digits, the limit is {DIGITS_MAX}")
    return int(digits)


def _decimal(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise _unparsable("a number is too large")
    return value


def _constant(name: str) -> float:
    raise _unparsable(f"{name} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_decimal, parse_constant=_constant
)
