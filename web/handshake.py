"""A client connection of an HTTPS port, from its TCP accept until TLS stands and the HTTP protocol takes over.

asyncio tells a protocol of its connection only when the handshake is done. Until then a client would not count, and
who opens thousands of connections and says nothing would cost memory and descriptors beyond every limit. So the
listener accepts plain TCP, counts, and only then begins TLS. What is no TLS, plain HTTP for one, is closed.

Source: asyncio's `loop.start_tls`. It starts to deliver data before it returns the transport: that is kept meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import weakref
from collections.abc import Callable

from web.services import Limits

_log = logging.getLogger(__name__)


class Handshakes:
    """What the connections of one listener share. `open` is every connection that counts."""

    def __init__(
        self,
        context: ssl.SSLContext,
        limits: Limits,
        open_connections: set[asyncio.BaseProtocol],
        make: Callable[[], asyncio.Protocol],
    ) -> None:
        self.context = context
        self.limits = limits
        self.open = open_connections
        self.make = make
        self.is_closing = False
        self.tasks: set[asyncio.Task[None]] = set()
        # TLS says goodbye for a while after its transport was closed, and nothing else could cut that short.
        self.sockets: weakref.WeakSet[asyncio.Transport] = weakref.WeakSet()

    async def stop(self) -> None:
        """Ends those that are in the midst of it; there will be no more."""
        self.is_closing = True
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def abort(self) -> None:
        """Ends every connection, also one that still says goodbye."""
        for transport in list(self.sockets):
            transport.abort()


class Handshake(asyncio.Protocol):
    """Made by the listener for each socket it accepts."""

    def __init__(self, shared: Handshakes) -> None:
        self._shared = shared
        self._early = bytearray()  # at most what asyncio decrypts at once, 256 KiB
        self._has_ended = False
        self._is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        shared = self._shared
        shared.open.add(self)
        shared.sockets.add(transport)
        is_full = len(shared.open) > shared.limits.connections
        if is_full:
            _log.warning("connection refused, too many are open", extra={"limit": shared.limits.connections})
        if is_full or shared.is_closing:
            transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._secure(transport), name="tls handshake")
        shared.tasks.add(task)
        task.add_done_callback(shared.tasks.discard)

    def data_received(self, data: bytes) -> None:
        self._early += data

    def eof_received(self) -> None:
        self._has_ended = True

    def connection_lost(self, error: BaseException | None) -> None:
        self._shared.open.discard(self)
        self._is_lost = True

    async def _secure(self, transport: asyncio.Transport) -> None:
        shared = self._shared
        try:
            secured = await asyncio.get_running_loop().start_tls(
                transport,
                self,
                shared.context,
                server_side=True,
                ssl_handshake_timeout=shared.limits.headers_s,
                ssl_shutdown_timeout=shared.limits.body_s,
            )
        except OSError as error:  # ssl.SSLError is one; so is a handshake that takes too long
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            _log.debug("no tls", extra={"ip": _ip(transport), "reason": reason})
            return
        finally:
            shared.open.discard(self)
        if secured is not None and not self._is_lost:  # None: the client left in the midst of it
            self._hand_over(secured)

    def _hand_over(self, secured: asyncio.Transport) -> None:
        protocol = self._shared.make()
        secured.set_protocol(protocol)
        protocol.connection_made(secured)
        if self._early:
            protocol.data_received(bytes(self._early))
        if self._has_ended:
            protocol.eof_received()


def _ip(transport: asyncio.Transport) -> str:
    name = transport.get_extra_info("peername")
    return str(name[0]) if isinstance(name, tuple) else ""
