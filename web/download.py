"""An answer that may be long, sent as it comes: whole when it is short, else in pieces, no faster than it is read.

What fails after the first piece breaks the connection off: a file that ends early must not look complete.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import cast

from aiohttp import web

_log = logging.getLogger(__name__)

# Shorter answers are sent whole, with their length, and may still become an error until then.
WHOLE_BYTES_MAX = 64 * 1024


async def downloaded(
    request: web.Request, *, status: int, headers: Mapping[str, str], chunks: AsyncIterator[bytes]
) -> web.StreamResponse:
    """The answer made of `chunks`, which are closed. Raises what they raise while nothing was sent."""
    begun = bytearray()
    async with aclosing(cast(AsyncGenerator[bytes, None], chunks)) as pieces:
        if request.method == "HEAD":
            return web.Response(status=status, headers=headers)
        async for piece in pieces:
            begun += piece
            if len(begun) > WHOLE_BYTES_MAX:
                return await _streamed(request, web.StreamResponse(status=status, headers=headers), begun, pieces)
    return web.Response(status=status, headers=headers, body=bytes(begun))


async def _streamed(
    request: web.Request, response: web.StreamResponse, begun: bytearray, pieces: AsyncIterator[bytes]
) -> web.StreamResponse:
    await response.prepare(request)
    try:
        await response.write(bytes(begun))
        begun.clear()
        async for piece in pieces:
            await response.write(piece)
        await response.write_eof()
    except (asyncio.CancelledError, ConnectionError):
        _break_off(request)
        raise
    except Exception as error:
        _log.warning("download broken off", exc_info=error)
        _break_off(request)
        raise ConnectionError("the rest of the answer could not be made") from error
    return response


def _break_off(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
