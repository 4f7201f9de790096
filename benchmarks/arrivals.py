"""A client in its own process that notes when every piece of every stream arrives: `python -m benchmarks.arrivals`.

The worker of the tests writes the time it made a token into its text (`--stamp`); all processes of a machine have one
clock, so a token's latency is its arrival minus its stamp, whatever way it took. While streams run nothing is parsed: a
piece is put aside with the time, and taken apart when all have ended.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import gc
import itertools
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

STAMP = re.compile(rb"@(\d{10,}) ")
END = b"data: [DONE]"
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """What one load measured. `latencies_ms` of every token but each stream's first; `ttfts_ms` since it was asked for.

    `events` that carried tokens, `alone` are tokens that came in a read of their own; `gap_ms` is the longest time in
    which a running stream brought nothing.
    """

    latencies_ms: list[float]
    ttfts_ms: list[float]
    tokens: int
    events: int
    alone: int
    gap_ms: float
    wall_s: float


class Stream(asyncio.Protocol):
    """One request on one connection; `ended` is done when [DONE] came or the connection was closed."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.times: list[int] = []
        self.pieces: list[bytes] = []
        self.asked_at = 0
        self._transport: asyncio.Transport | None = None
        self._tail = b""

    def ask(self, request: bytes) -> None:
        """Sends it; the connection is open."""
        assert self._transport is not None
        self.asked_at = time.monotonic_ns()
        self._transport.write(request)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.times.append(time.monotonic_ns())
        self.pieces.append(data)
        self._tail = (self._tail + data)[-64:]
        if END in self._tail and self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


def taken_apart(stream: Stream, tokens: int) -> Arrivals:
    """Raises RuntimeError when the answer is not a whole one of so many tokens."""
    raw = b"".join(stream.pieces)
    whole, place = unchunked(raw)
    stamps = list(STAMP.finditer(whole))
    if not raw.startswith(b"HTTP/1.1 200") or END not in whole[-64:] or len(stamps) != tokens:
        raise RuntimeError(f"{len(stamps)} tokens instead of {tokens}: {raw[:300]!r} ... {raw[-300:]!r}")
    ends = list(itertools.accumulate(map(len, stream.pieces)))
    reads = [bisect.bisect_left(ends, place(stamp.end())) for stamp in stamps]
    at = [stream.times[read] for read in reads]
    counts = [len(list(group)) for _, group in itertools.groupby(reads)]
    return Arrivals(
        latencies_ms=[(a - int(s[1])) / 1e6 for a, s in zip(at[1:], stamps[1:], strict=True)],
        ttfts_ms=[(at[0] - stream.asked_at) / 1e6],
        tokens=tokens,
        events=sum(1 for event in whole.split(b"\n\n") if STAMP.search(event)),
        alone=counts.count(1),
        gap_ms=max((b - a for a, b in itertools.pairwise(at)), default=0) / 1e6,
        wall_s=(at[-1] - stream.asked_at) / 1e9,
    )


def unchunked(raw: bytes) -> tuple[bytes, Callable[[int], int]]:
    """The body of a chunked response (RFC 9112, section 7.1), and where an end in it was in `raw`."""
    at = raw.find(b"\r\n\r\n") + 4
    parts: list[bytes] = []
    shifts: list[int] = []
    ends: list[int] = []
    while (newline := raw.find(b"\r\n", at)) >= 0 and (size := int(raw[at:newline].partition(b";")[0], 16)):
        begin = newline + 2
        shifts.append(begin - (ends[-1] if ends else 0))
        parts.append(raw[begin : begin + size])
        ends.append((ends[-1] if ends else 0) + size)
        at = begin + size + 2
    return b"".join(parts), lambda end: end + shifts[bisect.bisect_left(ends, end)]


def request_of(port: int, key: str, model: str, tokens: int) -> bytes:
    """The bytes of the request, the same for everybody."""
    body = json.dumps({
        "model": model, "messages": [{"role": "user", "content": "Count, please."}], "max_tokens": tokens,
        "temperature": 0, "stream": True,
    }).encode()  # fmt: skip
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


async def asked(port: int, key: str, model: str, streams: int, tokens: int) -> Arrivals:
    """`streams` requests at once, on connections that are open already."""
    loop = asyncio.get_running_loop()
    opened = [(await loop.create_connection(Stream, "127.0.0.1", port))[1] for _ in range(streams)]
    request = request_of(port, key, model, tokens)
    began = time.monotonic_ns()
    for stream in opened:
        stream.ask(request)
    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.gather(*(stream.ended for stream in opened))
    ended = max(stream.times[-1] for stream in opened if stream.times)
    return together([taken_apart(stream, tokens) for stream in opened], (ended - began) / 1e9)


def together(parts: list[Arrivals], wall_s: float) -> Arrivals:
    """Many as one."""
    return Arrivals(
        latencies_ms=[x for part in parts for x in part.latencies_ms],
        ttfts_ms=[x for part in parts for x in part.ttfts_ms],
        tokens=sum(part.tokens for part in parts),
        events=sum(part.events for part in parts),
        alone=sum(part.alone for part in parts),
        gap_ms=max(part.gap_ms for part in parts),
        wall_s=wall_s,
    )


async def repeated(options: argparse.Namespace) -> Arrivals:
    """One load after the other."""
    o = options
    parts = [await asked(o.port, o.key, o.model, o.streams, o.tokens) for _ in range(o.times)]
    return together(parts, sum(part.wall_s for part in parts))


def main() -> None:
    """Measure, and print the figures as JSON."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--port", type=int, required=True)
    p.add_argument("--key", default="none")
    p.add_argument("--model", required=True)
    p.add_argument("--streams", type=int, default=16)
    p.add_argument("--tokens", type=int, default=100)
    p.add_argument("--times", type=int, default=1, help="so many loads, one after the other")
    options = p.parse_args()
    gc.disable()
    print(json.dumps(asdict(asyncio.run(repeated(options)))))


if __name__ == "__main__":
    main()
