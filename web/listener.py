"""The sockets clients connect to: opens them, closes them after the running requests have ended."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Sequence

from aiohttp import web

from web.app import make_app
from web.connection import Connection
from web.handshake import Handshake, Handshakes
from web.inflight import InFlight
from web.route import Route
from web.services import Services

_log = logging.getLogger(__name__)

# A burst of reconnecting clients waits in the kernel instead of being refused.
BACKLOG = 1024
# How long aiohttp may take to close what is left once every request has ended.
CLEANUP_S = 1.0

Address = tuple[str, int]


class Listener:
    """The HTTP surface on one or more addresses. Port 0 picks a free one. `routes`: all, unless told otherwise.

    With `ssl_context` it is HTTPS, and nothing else.
    """

    def __init__(
        self,
        services: Services,
        addresses: Sequence[Address],
        routes: Sequence[Route] | None = None,
        *,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._services = services
        self._addresses = tuple(addresses)
        self._in_flight = InFlight()
        self._servers: list[asyncio.Server] = []
        self._ports: list[int] = []
        self._connections: set[asyncio.BaseProtocol] = set()
        self._handshakes = self._over_tls(ssl_context) if ssl_context is not None else None
        app = make_app(services, self._in_flight, routes)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=CLEANUP_S, access_log=None)

    @property
    def port(self) -> int:
        """The port of the first address."""
        return self.ports[0]

    @property
    def ports(self) -> tuple[int, ...]:
        """The port of each address, in the order given."""
        return tuple(self._ports)

    @property
    def active_requests(self) -> int:
        return len(self._in_flight)

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    async def start(self) -> None:
        """Opens every address, or none. Raises OSError."""
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        try:
            for host, port in self._addresses:
                server = await loop.create_server(self._accepted, host, port, backlog=BACKLOG)
                self._servers.append(server)
                self._ports.append(int(server.sockets[0].getsockname()[1]))
        except BaseException:
            await self.close(0)
            raise

    async def close(self, drain_s: float) -> None:
        """Takes no new connections, lets running requests end up to `drain_s` seconds, then cancels them."""
        for server in self._servers:
            server.close()
        if self._runner.server is None:
            return
        if self._handshakes is not None:
            await self._handshakes.stop()
        self._runner.server.pre_shutdown()  # idle connections close now, busy ones after their answer
        await self._in_flight.stop(drain_s)
        await self._runner.cleanup()
        if self._handshakes is not None:
            self._handshakes.abort()
        _log.debug("listener closed")

    def _over_tls(self, context: ssl.SSLContext) -> Handshakes:
        return Handshakes(context, self._services.limits, self._connections, self._connection)

    def _accepted(self) -> asyncio.Protocol:
        return self._connection() if self._handshakes is None else Handshake(self._handshakes)

    def _connection(self) -> Connection:
        server = self._runner.server
        assert server is not None
        return Connection(server, self._services.limits, self._connections)
