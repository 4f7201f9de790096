"""The peer port: one TLS 1.3 listener for everything between peers, and the channels dialled from here.

    GET  /mesh/channel     a WebSocket of binary messages (gossip.channel); members only
    POST /join/*           gossip.joining; the only paths that answer without a certificate
    ...                    routes that mesh adds (a request forwarded to this peer); members only

TLS asks for a certificate (gossip.tls): one that no member has fails the handshake; none reaches `/join/*` alone. Every
request and every channel is checked against the roster again, because a roster changes while connections live. How
many there may be, and how slow, is gossip.doorway's.
Sources: RFC 8446 (TLS 1.3), RFC 6455 (WebSocket).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import aiohttp
from aiohttp import web

from gossip.channel import MESSAGE_BYTES_MAX, Channel, Unreachable
from gossip.doorway import Doorway
from gossip.errors import UnknownPeer
from gossip.interfaces import joined
from gossip.roster import Roster
from gossip.tls import Tls, certificate_of, member_of

log = logging.getLogger(__name__)

CHANNEL_PATH = "/mesh/channel"
JOIN_PREFIX = "/join/"
CLOSE_S = 1.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
PeerRoute = tuple[str, str, Handler]
Accepted = Callable[[Channel], Awaitable[None]]
_Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse

MEMBER = web.RequestKey("member", str)
"""Set on every request but those of strangers: the id of the peer whose certificate the connection proved."""


class PeerPort:
    """The listener. `roster` is asked at every request; routes may be added until `start`."""

    def __init__(self, tls: Tls, *, roster: Callable[[], Roster]) -> None:
        self._tls = tls
        self._roster = roster
        self._routes: list[PeerRoute] = [("GET", CHANNEL_PATH, self._channel)]
        self._accepted: Accepted | None = None
        self._doorway = Doorway(tls.server_context, roster=roster)
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None
        self.port = 0

    def add(self, routes: Sequence[PeerRoute]) -> None:
        """Routes of `/join/` are open to strangers, all others to members only."""
        self._routes.extend(routes)

    def accept(self, accepted: Accepted) -> None:
        self._accepted = accepted

    async def start(self, hosts: Sequence[str], ports: Sequence[int]) -> None:
        """Listens on every host, at the first of `ports` that is free on all. Raises OSError when none is."""
        app = web.Application(middlewares=[self._border], client_max_size=0)
        for method, path, handler in self._routes:
            app.router.add_route(method, path, handler)
        for number, port in enumerate(ports):
            try:
                self.port = self._doorway.listen(hosts, port)
                break
            except OSError:
                if number == len(ports) - 1:
                    raise
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=CLOSE_S, access_log=None)
        await self._runner.setup()
        assert self._runner.server is not None
        self._doorway.open(self._runner.server)

    @property
    def connections(self) -> int:
        """How many are open now that others made."""
        return self._doorway.connections

    async def close(self) -> None:
        """Ends every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None
        await self._doorway.close()
        if self._runner is not None:
            await self._runner.cleanup()

    async def dial(self, peer: str | None, address: str, timeout_s: float) -> Channel:
        """A channel to `address`. Raises Unreachable."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, force_close=True, ttl_dns_cache=10),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        try:
            context = self._tls.client_context(peer)
            async with asyncio.timeout(timeout_s):
                socket = await self._session.ws_connect(
                    f"https://{address}{CHANNEL_PATH}",
                    ssl=context,
                    max_msg_size=MESSAGE_BYTES_MAX,
                    compress=0,
                    autoclose=True,
                    autoping=True,
                )
        except (aiohttp.ClientError, OSError, TimeoutError, ssl.SSLError, ValueError, UnknownPeer) as error:
            raise Unreachable(f"{address}: {error or type(error).__name__}") from None
        found = member_of(socket.get_extra_info("ssl_object"), self._roster())
        if found is None or (peer is not None and found != peer):
            await socket.close()
            raise Unreachable(f"{address} is not who we wanted")
        return _SocketChannel(socket, found, address, is_dialled=True)

    # -- incoming

    @web.middleware
    async def _border(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Who asks, before anything is read; and no error leaves without an answer."""
        connection = request.get_extra_info("ssl_object")
        if certificate_of(connection) is None:
            if not request.path.startswith(JOIN_PREFIX):
                return web.json_response({"error": "members only"}, status=403)
        else:
            peer = member_of(connection, self._roster())
            if peer is None:
                response = web.json_response({"error": "not a member any more"}, status=403)
                response.force_close()
                return response
            request[MEMBER] = peer
        try:
            return await handler(request)
        except web.HTTPException:
            raise
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception:  # border: logged with its traceback, the other peer gets a 500
            log.exception("peer request failed", extra={"path": request.path[:200]})
            return web.json_response({"error": "internal error"}, status=500)

    async def _channel(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(max_msg_size=MESSAGE_BYTES_MAX, compress=False, autoping=True, timeout=CLOSE_S)
        try:
            await socket.prepare(request)
        except ConnectionError:  # it hung up before it was answered: there is nobody to tell
            return web.Response()
        if self._accepted is None:
            await socket.close()
            return socket
        channel = _SocketChannel(socket, request[MEMBER], remote_address(request), is_dialled=False)
        try:
            await self._accepted(channel)
        finally:
            await channel.close()
        return socket


class _SocketChannel:
    """A WebSocket as a channel."""

    def __init__(
        self,
        socket: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
        peer: str,
        address: str,
        *,
        is_dialled: bool,
    ) -> None:
        self._socket = socket
        self._peer = peer
        self._address = address
        self._is_dialled = is_dialled

    @property
    def peer(self) -> str:
        return self._peer

    @property
    def is_dialled(self) -> bool:
        return self._is_dialled

    @property
    def address(self) -> str:
        return self._address

    async def send(self, data: bytes) -> None:
        try:
            await self._socket.send_bytes(data)
        except (ConnectionError, RuntimeError, aiohttp.ClientError) as error:
            raise Unreachable(f"{self._address}: {error}") from None

    async def receive(self) -> bytes | None:
        message = await self._socket.receive()
        if message.type is aiohttp.WSMsgType.BINARY:
            data: Any = message.data
            return bytes(data)
        return None  # closed, broken, or text, which is nothing of ours

    async def close(self) -> None:
        with contextlib.suppress(Exception):  # border: whatever a dying socket says, it is over
            async with asyncio.timeout(CLOSE_S):
                await self._socket.close()


def remote_address(request: web.BaseRequest) -> str:
    """Where a request came from, as host:port."""
    name = request.transport.get_extra_info("peername") if request.transport is not None else None
    return joined(str(name[0]), int(name[1])) if isinstance(name, tuple) else ""
