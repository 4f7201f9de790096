"""Requests and answers as they are kept: JSON text, without secrets and images, and not longer than a bound. Pure.

What is large is to be made in a thread (`is_light` says what is not); the text is made piece by piece there, so that no
piece keeps the interpreter's lock for long. A body that is too long is kept from its beginning, as a JSON object that
says so. An image, or any other data: URL, becomes a line that tells its type, size and hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

BODY_BYTES_MAX = 2**20
LIGHT_BYTES_MAX = 32 * 1024
"""Making this much takes well under a millisecond."""
NODE_BYTES = 2
"""What a value takes in JSON at the least, with its comma."""
DATA_URL_BYTES_MIN = 256
"""Shorter ones are cheaper than their description."""
MARGIN = 4096
"""Longer than any secret: one that the cut would halve is taken out before."""

_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def is_light(body: Any, bytes_max: int = LIGHT_BYTES_MAX) -> bool:
    """True if the JSON of `body` is short enough to be made at once; stops counting when it is not."""
    left, waiting = bytes_max, [body]
    while waiting:
        value = waiting.pop()
        kind = type(value)
        left -= NODE_BYTES
        if kind is str:
            left -= len(value)
        elif kind is dict:
            left -= sum(map(len, value)) + NODE_BYTES * len(value)
            if left >= 0:
                waiting.extend(value.values())
        elif kind is list:
            left -= NODE_BYTES * len(value)
            if left >= 0:
                waiting.extend(value)
        if left < 0:
            return False
    return True


def stored(body: Mapping[str, Any], redact: Callable[[str], str], bytes_max: int = BODY_BYTES_MAX) -> bytes:
    """The bytes that are kept of a body of any size, valid JSON in UTF-8. Large ones take a while."""
    text, is_whole = _beginning(_plain(body, bytes_max), bytes_max + MARGIN)
    return _kept(text, redact, bytes_max, is_whole=is_whole)


def stored_at_once(body: Mapping[str, Any], redact: Callable[[str], str], bytes_max: int = BODY_BYTES_MAX) -> bytes:
    """The same of a body that is light."""
    text = _JSON.encode(body)
    if '"data:' in text:
        text = _JSON.encode(_plain(body, bytes_max))
    return _kept(text, redact, bytes_max, is_whole=True)


def _kept(text: str, redact: Callable[[str], str], bytes_max: int, *, is_whole: bool) -> bytes:
    data = redact(text).encode("utf-8", "replace")
    if is_whole and len(data) <= bytes_max:
        return data
    beginning = data[:bytes_max].decode("utf-8", "ignore")
    note = f"cut: it is longer than the {bytes_max:,} bytes that are kept; this is its beginning"
    return _JSON.encode({"note": note, "beginning": beginning}).encode()


def _beginning(value: Any, characters_max: int) -> tuple[str, bool]:
    """The JSON of `value` up to that many characters and some, and whether it is all of it."""
    pieces, length = [], 0
    for piece in _JSON.iterencode(value):
        pieces.append(piece)
        length += len(piece)
        if length > characters_max:
            return "".join(pieces)[:characters_max], False
    return "".join(pieces), True


def _plain(value: Any, characters_max: int) -> Any:
    """The same without data: URLs, and with no text that is longer than all that will be kept."""
    if isinstance(value, str):
        if len(value) >= DATA_URL_BYTES_MIN and value.startswith("data:"):
            return _described(value)
        return value if len(value) <= characters_max + MARGIN else value[: characters_max + MARGIN]
    if isinstance(value, Mapping):
        return {name: _plain(each, characters_max) for name, each in value.items()}
    if isinstance(value, list | tuple):
        # token ids, of which there may be a million, need no look
        return [each if isinstance(each, int | float) else _plain(each, characters_max) for each in value]
    return value


def _described(url: str) -> str:
    head, _, data = url.partition(",")
    kind = head.removeprefix("data:").partition(";")[0][:80]
    size = len(data) * 3 // 4 if head.endswith(";base64") else len(data)
    return f"data:{kind} ({size:,} bytes, sha256 {hashlib.sha256(data.encode()).hexdigest()} as sent)"
