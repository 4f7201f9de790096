"""The wish to end a peer: from a signal, from `llm-router down`, or from a part of it that failed."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from mesh.cli.greeting import draining
from mesh.errors import StartError

Announce = Callable[[str], None]


class Stop:
    """The wish to end: the first one drains, the second one does not wait. `failure`: why it ends, if not by a wish."""

    def __init__(self) -> None:
        self.failure: StartError | None = None
        self.asked = asyncio.Event()
        self.at_once = asyncio.Event()
        self.running: Callable[[], int] = lambda: 0

    def ask(self) -> None:
        """Ends the peer: gently, then at once."""
        (self.at_once if self.asked.is_set() else self.asked).set()

    def fail(self, error: StartError) -> None:
        """Ends the peer at once: it must not go on."""
        self.failure = self.failure or error
        self.asked.set()
        self.at_once.set()

    @contextlib.contextmanager
    def on_signals(self, announce: Announce) -> Iterator[None]:
        """SIGINT and SIGTERM ask to stop, while the block runs."""
        loop = asyncio.get_running_loop()

        def received() -> None:
            self.ask()
            if not self.at_once.is_set() and (count := self.running()):
                announce(draining(count))

        before: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            if sys.platform == "win32":
                before[number] = signal.signal(number, lambda *_: loop.call_soon_threadsafe(received))
            else:
                loop.add_signal_handler(number, received)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                if sys.platform == "win32":
                    signal.signal(number, before[number])
                else:
                    loop.remove_signal_handler(number)
