"""JSON from strangers: parsed under limits, or refused with a reason.

Stricter than `json.loads` where RFC 8259 section 4 and 8 leave a choice: UTF-8 only (a byte order mark is
skipped), no duplicate names, no NaN or Infinity (nor numbers that overflow to it), no lone surrogates, nesting and
the number of values bounded before the parser starts. It knows nothing of any dialect: `inference.openai` gives the
parsed object its meaning. How many bytes are read in the first place is the caller's business.

Large bodies are parsed in a thread beside an event loop, which waits while C code keeps the interpreter's lock. So what
is slow gets no large piece at once (measured: 900,000 short strings with escapes held an event loop for 110 ms, now 40;
24 MB of escapes 56, now 24; on a busy machine all of that is several times as long).
"""

from __future__ import annotations

import codecs
import json
import json.scanner
import math
import re
from collections import Counter
from collections.abc import Iterator
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
# Longer than anything that is a name; names are scanned in one go.
NAME_BYTES_MAX = 64 * 1024

# What C code gets at once.
PIECE = 64 * 1024
# Bodies with more escapes than this, about 10 ms of scanning, are left to the patient decoder.
PATIENT_FROM = 250_000

_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NOT_BRACKETS = bytes(set(range(256)) - set(_STEP))
_IN_STRING_BYTES = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
# Ends before an escape that is cut off by the end of the search. Group 1 is the first half of a surrogate pair.
_IN_STRING = re.compile(r'[^"\\]*(?:\\(?:(u[dD][89abAB]..)|u(?![dD][89abAB])....|[^u])[^"\\]*)*', re.DOTALL)
_NAME_END = re.compile(rb'"[ \t\r\n]*:')
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
    bare = _without_strings(data)
    _check_shape(bare)
    decoder = _PATIENT_DECODER if data.count(b"\\") > PATIENT_FROM else _DECODER
    try:
        value = decoder.decode(text)
    except json.JSONDecodeError as error:
        raise _unparsable(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _unparsable(f"nesting deeper than {NESTING_MAX}") from None
    if any(_SURROGATE_ESCAPE.search(data, at, at + PIECE + 5) for at in range(0, len(data), PIECE)):
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
        text = "".join(_texts(data))
    except UnicodeDecodeError as error:
        raise _unparsable(f"it is not UTF-8 (byte {error.start:,})", code="invalid_encoding") from None
    if not text.strip():
        raise _unparsable("it is empty")
    return text


def _texts(data: bytes) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    for at in range(0, len(data), PIECE):
        try:
            yield decoder.decode(data[at : at + PIECE])
        except UnicodeDecodeError:
            data.decode("utf-8-sig")  # raises as well, and knows where in the whole
    yield decoder.decode(b"", True)


def _check_shape(bare: bytes) -> None:
    """Raises when brackets nest too deep or there are too many values, in one linear pass without recursion."""
    brackets = bare.translate(None, delete=_NOT_BRACKETS)
    if bare.count(b",") + len(brackets) > VALUES_MAX:
        raise _unparsable(f"more than {VALUES_MAX:,} values")
    if bare.count(b":") > MEMBERS_MAX:
        raise _unparsable(f"more than {MEMBERS_MAX:,} members of objects")
    depth = 0
    for at in range(0, len(brackets), PIECE):
        depths = list(accumulate(map(_STEP.__getitem__, brackets[at : at + PIECE]), initial=depth))
        if max(depths) > NESTING_MAX:
            raise _unparsable(f"nesting deeper than {NESTING_MAX}")
        depth = depths[-1]


def _without_strings(data: bytes) -> bytes:
    """`data` with everything between quotes left out; an unterminated string ends it."""
    pieces = []
    position = 0
    while (start := data.find(b'"', position)) >= 0:
        pieces.append(data[position:start])
        if len(pieces) > VALUES_MAX:
            raise _unparsable(f"more than {VALUES_MAX:,} strings")
        end = _end_of_string(data, start + 1)
        if data[end : end + 1] != b'"':
            return b"".join(pieces)
        if end - start > NAME_BYTES_MAX and _NAME_END.match(data, end):
            raise _unparsable(f"an object has a name of more than {NAME_BYTES_MAX:,} bytes")
        position = end + 1
    pieces.append(data[position:])
    return b"".join(pieces)


def _end_of_string(data: bytes, position: int) -> int:
    """Where the quote is that ends the string which `position` is in; elsewhere when there is none."""
    while True:
        found = _IN_STRING_BYTES.match(data, position, position + PIECE)
        assert found is not None  # it matches nothing at all, too
        if found.end() < position + PIECE - 1 or found.end() >= len(data):
            return found.end()
        position = found.end()


def _check_surrogates(value: Any) -> None:
    """Raises when a string in `value` holds half a surrogate pair, which no UTF-8 can carry."""
    left = [value]
    try:
        while left:
            item = left.pop()
            if isinstance(item, str):
                item.encode()
            elif isinstance(item, list | dict):
                left += item
                left += item.values() if isinstance(item, dict) else ()
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


def _string(text: str, start: int, strict: bool = True) -> tuple[str, int]:
    """The string whose first character is at `start`, and where the text goes on: json's `scanstring`, in pieces."""
    pieces: list[str] = []
    position = start
    while True:
        found = _IN_STRING.match(text, position, position + PIECE)
        assert found is not None  # it matches nothing at all, too
        end = found.end()
        is_last = text[end : end + 1] == '"'
        if not is_last and found.end(1) == end:
            end = found.start(1) - 1  # half a pair waits for the other half
        if end == position and not is_last:
            raise json.JSONDecodeError("Unterminated string or invalid escape", text, start - 1)
        pieces.append(_scanned(text, position, end, strict))
        if is_last:
            return "".join(pieces), end + 1
        position = end


def _scanned(text: str, start: int, end: int, strict: bool) -> str:
    try:
        value: str = json.decoder.scanstring(text[start:end] + '"', 0, strict)[0]  # type: ignore[attr-defined]
    except json.JSONDecodeError as error:
        raise json.JSONDecodeError(error.msg, text, start + error.pos) from None
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_decimal, parse_constant=_constant
)


def _patient_decoder() -> json.JSONDecoder:
    """Python's own scanner: slower with many values, but it takes strings through `_string`."""
    decoder = json.JSONDecoder(
        object_pairs_hook=_object, parse_int=_integer, parse_float=_decimal, parse_constant=_constant
    )
    decoder.parse_string = _string  # type: ignore[attr-defined]
    decoder.scan_once = json.scanner.py_make_scanner(decoder)  # type: ignore[attr-defined]
    return decoder


_PATIENT_DECODER = _patient_decoder()
