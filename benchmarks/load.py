"""A light client for benchmarks: streams from any OpenAI-compatible server and times what a user would see.

It shares the cores with the server, so it parses as little as it can: the time of the first text, and the usage at
the end.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass
from typing import Any

_TEXT = re.compile(rb'"content": ?"[^"]')
_USAGE = re.compile(rb'"completion_tokens": ?(\d+)[^}]*?"prompt_tokens": ?(\d+)|'
                    rb'"prompt_tokens": ?(\d+)[^}]*?"completion_tokens": ?(\d+)')  # fmt: skip
TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One streamed answer. Times in seconds since the request was sent."""

    ttft_s: float
    total_s: float
    prompt_tokens: int
    completion_tokens: int
    text: str


async def ask(port: int, body: dict[str, Any], *, keep_text: bool = False) -> Answer:
    """Stream one chat completion from a server on loopback. Raises RuntimeError on anything but success."""
    data = json.dumps(body | {"stream": True, "stream_options": {"include_usage": True}}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    ).encode()
    began = time.perf_counter()
    async with asyncio.timeout(TIMEOUT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        try:
            writer.write(head + data)
            first = 0.0
            parts: list[bytes] = []
            while piece := await reader.read(1 << 16):
                if not first and _TEXT.search(piece):
                    first = time.perf_counter() - began
                parts.append(piece)
        finally:
            writer.close()
    total = time.perf_counter() - began
    whole = b"".join(parts)
    usage = _USAGE.search(whole)
    if not whole.startswith(b"HTTP/1.1 200") or not first or not usage:
        raise RuntimeError(f"port {port} answered: {whole[:500]!r}")
    made, read = (usage[1], usage[2]) if usage[1] else (usage[4], usage[3])
    text = _text(whole) if keep_text else ""
    return Answer(ttft_s=first, total_s=total, prompt_tokens=int(read), completion_tokens=int(made), text=text)


def _text(whole: bytes) -> str:
    out = []
    for line in whole.split(b"\n"):
        start = line.find(b"data: {")
        if start >= 0:
            try:
                choices = json.loads(line[start + 6 :]).get("choices") or [{}]
            except ValueError:
                continue
            out.append(choices[0].get("delta", {}).get("content") or "")
    return "".join(out)
