"""A JSON body, read and parsed under limits: size before buffering, time, encoding, then the text itself."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Self, TypeVar

from aiohttp import web

from inference.strict_json import parse_object
from web.errors import HttpRefusal
from web.inflight import InFlight, in_flight_of
from web.services import Limits
from web.watch import check_not_revoked

T = TypeVar("T")

# Parsing this much takes about 10 ms in the worst case; more is done in a thread.
INLINE_BYTES_MAX = 64 * 1024
ANYBODYS_BYTES_MAX = 64 * 1024
"""Of bodies that anybody may send."""
_BROWSER_HEADERS = ("Origin", "Sec-Fetch-Site", "Sec-Fetch-Mode", "Sec-Fetch-Dest")


async def parsed_body(
    request: web.Request, limits: Limits, parse: Callable[[dict[str, Any]], T], in_flight: InFlight | None = None
) -> T:
    """What `parse` makes of the JSON object in the body. Raises InvalidRequest or HttpRefusal.

    `in_flight` counts the bodies that are being read; None: what counts the request.
    """
    _check_content_type(request)
    window_bits = _window_bits(request)
    with _Share(in_flight_of(request) if in_flight is None else in_flight, limits.bodies_bytes) as share:
        data = await _read(request, limits, share)
        check_not_revoked(request)
        if window_bits is None and len(data) <= INLINE_BYTES_MAX:
            return parse(parse_object(data))
        return await asyncio.to_thread(_inflated_and_parsed, data, window_bits, limits.body_bytes, parse)


def for_anybody(limits: Limits) -> Limits:
    """The limits of a route that asks nobody who it is."""
    return replace(limits, body_bytes=min(ANYBODYS_BYTES_MAX, limits.body_bytes))


@asynccontextmanager
async def held_body(request: web.Request, limits: Limits) -> AsyncIterator[bytes]:
    """The body as bytes, for somebody else to parse: decompressed, and counted with the others until the block ends.

    Empty where there is none. Raises HttpRefusal.
    """
    if not request.body_exists:
        yield b""
        return
    _check_content_type(request)
    window_bits = _window_bits(request)
    with _Share(in_flight_of(request), limits.bodies_bytes) as share:
        data = await _read(request, limits, share)
        check_not_revoked(request)
        if window_bits is not None:
            data = await asyncio.to_thread(inflated, data, window_bits, limits.body_bytes)
        yield data


class _Share:
    """What one request takes of the memory for bodies until it is parsed. From then on the queues bound it."""

    def __init__(self, in_flight: InFlight, bytes_max: int) -> None:
        self._in_flight, self._bytes_max = in_flight, bytes_max
        self._bytes = 0

    def take(self, count: int) -> None:
        """Raises HttpRefusal 503 when all bodies together would be too large."""
        if self._in_flight.body_bytes + count > self._bytes_max:
            message = f"The bodies of other requests fill the {self._bytes_max:,} bytes there are for them; try again."
            raise HttpRefusal(503, message, code="overloaded", error_type="server_error", must_close=True)
        self._bytes += count
        self._in_flight.body_bytes += count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._in_flight.body_bytes -= self._bytes


def _inflated_and_parsed(
    data: bytes, window_bits: int | None, bytes_max: int, parse: Callable[[dict[str, Any]], T]
) -> T:
    if window_bits is not None:
        data = inflated(data, window_bits, bytes_max)
    return parse(parse_object(data))


def inflated(data: bytes, window_bits: int, bytes_max: int) -> bytes:
    """`data` decompressed; stops as soon as it is longer than `bytes_max`. Raises HttpRefusal 413 or 400."""
    inflater = zlib.decompressobj(window_bits)
    try:
        result = inflater.decompress(data, bytes_max + 1)
    except zlib.error:
        raise HttpRefusal(400, "The body is not what its Content-Encoding says.", code="invalid_encoding") from None
    if len(result) > bytes_max:
        raise _too_large(bytes_max)
    if not inflater.eof or inflater.unused_data:
        raise HttpRefusal(400, "The compressed body is incomplete, or something follows it.", code="invalid_encoding")
    return result


async def _read(request: web.BaseRequest, limits: Limits, share: _Share) -> bytes:
    if (request.content_length or 0) > limits.body_bytes:
        raise _too_large(limits.body_bytes)
    data = bytearray()
    try:
        async with asyncio.timeout(limits.body_s):
            async for piece in request.content.iter_any():
                share.take(len(piece))
                data += piece
                if len(data) > limits.body_bytes:
                    raise _too_large(limits.body_bytes)
    except web.RequestPayloadError:
        raise HttpRefusal(400, "The body is not framed as its headers say.", must_close=True) from None
    except TimeoutError:
        raise HttpRefusal(
            408, f"The body did not arrive within {limits.body_s:g} s.", code="body_timeout", must_close=True
        ) from None
    return bytes(data)


def _check_content_type(request: web.BaseRequest) -> None:
    """A web page may send text/plain or a form anywhere without asking, so browsers must say application/json."""
    if any(name in request.headers for name in _BROWSER_HEADERS):
        kind = request.content_type if "Content-Type" in request.headers else "no type"
        if kind != "application/json":
            raise HttpRefusal(
                415,
                f"Unsupported media type {kind[:80]!r}: send the body as application/json.",
                code="unsupported_media_type",
            )


def _window_bits(request: web.BaseRequest) -> int | None:
    """What zlib needs to know about the Content-Encoding; None when there is none."""
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding in ("gzip", "x-gzip"):
        return 16 + zlib.MAX_WBITS
    if encoding == "deflate":
        return zlib.MAX_WBITS
    raise HttpRefusal(
        415,
        f"Unsupported Content-Encoding {encoding[:40]!r}: send gzip, deflate or none.",
        code="unsupported_encoding",
    )


def _too_large(bytes_max: int) -> HttpRefusal:
    return HttpRefusal(
        413, f"The request body is larger than {bytes_max:,} bytes.", code="request_too_large", must_close=True
    )
