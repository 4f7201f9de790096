"""A client that hangs up frees its slot: the next one, who waits for it, begins."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from tests.drills.figure import Figure
from tests.drills.models import made
from tests.fixtures.peer import Peer, chat_body, until

FREED_S = 0.25
ROUNDS = 10


def leave(folder: Path) -> list[Figure]:
    """One slot, an answer without end, and one who waits."""
    with Peer.started(folder / "data", "--models-dir", str(made(folder / "models")), "--slots", "1") as peer:
        generating = [_freed_s(peer, chat_body("tiny", f"round {n}", ignore_eos=True)) for n in range(ROUNDS)]
        # distinct from the first word on: nothing of it is cached
        reading = [_freed_s(peer, chat_body("tiny", f"{n} " * 1900, ignore_eos=True)) for n in range(ROUNDS)]
    return [
        Figure(what="slot freed while generating, worst of 10", value=max(generating), limit=FREED_S, unit="s"),
        Figure(what="slot freed early in a long prompt, worst of 10", value=max(reading), limit=FREED_S, unit="s"),
    ]


def _freed_s(peer: Peer, endless: dict[str, object]) -> float:
    """From the moment the first client hangs up to the next one's first token."""
    first = peer.stream("/v1/chat/completions", endless)
    next(first.events())
    began_at: list[float] = []

    def wait() -> None:
        stream = peer.stream("/v1/chat/completions", chat_body("tiny", "next", max_tokens=1))
        next(stream.events())
        began_at.append(time.monotonic())
        stream.read()

    waiting = threading.Thread(target=wait)
    waiting.start()
    until(lambda: [r["state"] for r in peer.ps()["requests"]][1:] == ["queued"], "the second one waits")
    left_at = time.monotonic()
    first.close()
    waiting.join(60)
    assert began_at, "the next request never began"
    until(lambda: not peer.ps()["requests"], "both requests are over")
    return began_at[0] - left_at
