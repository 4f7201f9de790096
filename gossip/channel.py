"""What carries messages between two members: an ordered, reliable channel of binary messages. No implementation here.

gossip.transport makes them of WebSockets over mutual TLS, the tests of queues on virtual time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from gossip.errors import GossipError

MESSAGE_BYTES_MAX = 1024 * 1024


class Unreachable(GossipError):
    """No channel: refused, timed out, no route, or the other end did not prove that it is who we wanted."""


class Channel(Protocol):
    """One channel. `peer` is the id that the other end proved; `is_dialled`: this side opened it."""

    @property
    def peer(self) -> str: ...

    @property
    def is_dialled(self) -> bool: ...

    @property
    def address(self) -> str:
        """The other end as host:port, as this side sees it."""
        ...

    async def send(self, data: bytes) -> None:
        """Hands `data` to the network; waits while its buffers are full. Raises Unreachable when it is over."""
        ...

    async def receive(self) -> bytes | None:
        """The next message; None when the channel is over."""
        ...

    async def close(self) -> None:
        """Ends it; the other side's `receive` answers None. Bounded in time, never raises."""
        ...


class Network(Protocol):
    """How channels come about."""

    async def dial(self, peer: str | None, address: str, timeout_s: float) -> Channel:
        """A channel to the member `peer` (None: to whichever member answers there). Raises Unreachable."""
        ...

    def accept(self, accepted: Callable[[Channel], Awaitable[None]]) -> None:
        """From now on `accepted` runs for each channel that a member opens; the channel lives while it runs."""
        ...
