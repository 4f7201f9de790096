"""How late the event loop is: everything of a peer runs on it, and one that stalls for seconds looks dead to others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

SAMPLE_S = 0.1


async def watched_lag(observe: Callable[[float], None]) -> None:
    """Until cancelled: tells how much later than asked each sleep ended, in seconds."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + SAMPLE_S
        await asyncio.sleep(SAMPLE_S)
        observe(max(0.0, loop.time() - due))
