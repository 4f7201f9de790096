"""The event loop's lateness."""

from __future__ import annotations

import asyncio
import time

from mesh.lag import SAMPLE_S, watched_lag


async def test_a_loop_that_was_blocked_is_told_with_how_long() -> None:
    seen: list[float] = []
    watching = asyncio.create_task(watched_lag(seen.append))
    await asyncio.sleep(SAMPLE_S / 2)
    time.sleep(SAMPLE_S * 4)
    async with asyncio.timeout(10):
        while not seen:
            await asyncio.sleep(0.01)
    watching.cancel()
    assert seen[0] >= SAMPLE_S * 3
