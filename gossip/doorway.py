"""The sockets of the peer port: takes connections in, ends those that are slow, too many, or a revoked peer's.

Anybody can connect, so nothing that a stranger does costs more than it is bounded by here:

    HANDSHAKE_S     for the TLS handshake, of which a bounded number is under way, in all and from one address
    HEAD_S          for the first request after it
    IDLE_S          between two requests; a stranger's less
    UNREAD_S        without progress in what is being sent
    STRANGERS_MAX   connections without a certificate

Bodies have their time where they are read. A connection of somebody who was revoked ends PARTING_S later, whatever is
going on in it: until then it can be told why.
Source: aiohttp 3.14 web_protocol.RequestHandler; overridden are its asyncio callbacks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Sequence

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from gossip.errors import BadCertificate
from gossip.identity import peer_id_of, short
from gossip.interfaces import is_loopback
from gossip.roster import Roster
from gossip.tls import certificate_of

log = logging.getLogger(__name__)

BACKLOG = 256
HEADER_BYTES_MAX = 16 * 1024
LINE_BYTES_MAX = 8190
HANDSHAKE_S = 10.0
HEAD_S = 10.0
IDLE_S = 75.0
"""More than peers keep an idle connection (mesh.hop), so that they close first."""
STRANGER_IDLE_S = 15.0
UNREAD_S = 60.0
LINGER_S = 2.0
PARTING_S = 0.75
LOOK_S = 0.25
AGAIN_S = 0.2

CONNECTIONS_MAX = 4096
SHAKING_MAX = 1024
SHAKING_FROM_ONE_MAX = 512
"""A busy member opens hundreds at once: each request that it forwards is a connection."""
STRANGERS_MAX = 64
STRANGERS_FROM_ONE_MAX = 8


class Visit(RequestHandler):
    """One connection whose handshake is done. `peer` is whom its certificate proves, None for a stranger."""

    def __init__(self, server: web.Server, doorway: Doorway) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=IDLE_S,
            lingering_time=LINGER_S,
            access_log=None,  # type: ignore[arg-type]  # None is how aiohttp turns it off
            max_line_size=LINE_BYTES_MAX,
            max_field_size=HEADER_BYTES_MAX,
            auto_decompress=False,  # peers send what they mean
        )
        self._doorway = doorway
        self.peer: str | None = None
        self.source = ""
        self.began_at = 0.0
        self.revoked_at: float | None = None
        self.stuck_since: float | None = None
        self._unsent = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.began_at = self._loop.time()
        self.source = _host(transport.get_extra_info("peername"))
        certificate = certificate_of(transport.get_extra_info("ssl_object"))
        with contextlib.suppress(BadCertificate):
            self.peer = peer_id_of(certificate) if certificate else None
        if self.peer is None:
            self._keepalive_timeout = STRANGER_IDLE_S
        if not self._doorway.entered(self):
            self.abort()

    def connection_lost(self, error: BaseException | None) -> None:
        self._doorway.left(self)
        super().connection_lost(error)

    def resume_writing(self) -> None:
        self.stuck_since = None
        super().resume_writing()

    def has_asked(self) -> bool:
        """True once the head of a request has arrived."""
        return self._request_count > 0

    def is_stuck(self, now: float) -> bool:
        """True when what is sent was not taken for too long."""
        unsent = self.transport.get_write_buffer_size() if self.transport is not None and self._paused else 0
        if not unsent or unsent < self._unsent or self.stuck_since is None:
            self.stuck_since = now if unsent else None
        self._unsent = unsent
        return self.stuck_since is not None and now - self.stuck_since > UNREAD_S

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Doorway:
    """The listening sockets and all connections. `roster` is asked who was revoked."""

    def __init__(self, context: ssl.SSLContext, *, roster: Callable[[], Roster]) -> None:
        self._context = context
        self._roster = roster
        self._server: web.Server | None = None
        self._listening: list[socket.socket] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._shaking: dict[asyncio.Task[None], str] = {}
        self._shaking_from: Counter[str] = Counter()
        self._visits: set[Visit] = set()
        self._strangers_from: Counter[str] = Counter()
        self._was_full_at = -60.0

    @property
    def connections(self) -> int:
        """Open now, those that still shake hands too."""
        return len(self._visits) + len(self._shaking)

    def listen(self, hosts: Sequence[str], port: int) -> int:
        """Binds all hosts at one port, which it answers; 0 takes a free one. Raises OSError, and then binds none."""
        try:
            for host in hosts:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                sock = socket.create_server((host, port), family=family, backlog=BACKLOG)
                sock.setblocking(False)
                self._listening.append(sock)
                port = port or int(sock.getsockname()[1])
        except OSError:
            self._close_sockets()
            raise
        return port

    def open(self, server: web.Server) -> None:
        """From now on connections are taken in, for `server`."""
        self._server = server
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._accept(sock), name="peer port") for sock in self._listening]
        self._tasks.append(loop.create_task(self._watch(), name="peer port's watch"))

    async def close(self) -> None:
        """Takes nobody in any more; connections stay."""
        tasks = [*self._tasks, *self._shaking]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._close_sockets()

    def entered(self, visit: Visit) -> bool:
        """False when there is no room for it."""
        self._visits.add(visit)
        if visit.peer is not None:
            return True
        self._strangers_from[visit.source] += 1
        most = STRANGERS_MAX if is_loopback(visit.source) else STRANGERS_FROM_ONE_MAX
        return self._strangers_from[visit.source] <= most and self._strangers_from.total() <= STRANGERS_MAX

    def left(self, visit: Visit) -> None:
        if visit in self._visits:
            self._visits.discard(visit)
            if visit.peer is None:
                _less(self._strangers_from, visit.source)

    # -- taking in

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listening)
            except OSError as error:  # no descriptors left, or it hung up before it was taken in
                log.debug("a connection was not taken in", extra={"reason": str(error)})
                await asyncio.sleep(AGAIN_S)
                continue
            source = _host(address)
            if not self._has_room(source):
                sock.close()
            else:
                task = loop.create_task(self._shake(sock), name="handshake")
                self._shaking[task] = source
                self._shaking_from[source] += 1
                task.add_done_callback(self._shaken)
            await asyncio.sleep(0)  # a flood of connections does not stop the rest

    def _has_room(self, source: str) -> bool:
        if (
            self.connections < CONNECTIONS_MAX
            and len(self._shaking) < SHAKING_MAX
            and self._shaking_from[source] < SHAKING_FROM_ONE_MAX
        ):
            return True
        now = asyncio.get_running_loop().time()
        if now - self._was_full_at >= 60.0:
            self._was_full_at = now
            log.warning("too many connections on the peer port", extra={"open": self.connections, "from": source})
        return False

    async def _shake(self, sock: socket.socket) -> None:
        server = self._server
        assert server is not None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: Visit(server, self),
                sock,
                ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=LINGER_S,
            )
        except OSError as error:  # those of TLS and of time are among them
            log.debug("a handshake failed", extra={"reason": str(error)[:200]})

    def _shaken(self, task: asyncio.Task[None]) -> None:
        _less(self._shaking_from, self._shaking.pop(task))
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a handshake failed", exc_info=error)

    # -- ending

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_S)
            now, revoked = loop.time(), self._roster().revoked
            for visit in tuple(self._visits):
                if visit.peer in revoked:
                    visit.revoked_at = visit.revoked_at or now
                    if now - visit.revoked_at >= PARTING_S:
                        log.info("a connection of a revoked peer ends", extra={"peer": short(visit.peer or "")})
                        visit.abort()
                elif (not visit.has_asked() and now - visit.began_at > HEAD_S) or visit.is_stuck(now):
                    visit.abort()

    def _close_sockets(self) -> None:
        for sock in self._listening:
            sock.close()
        self._listening.clear()


def _host(address: object) -> str:
    return str(address[0]) if isinstance(address, tuple) else ""


def _less(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
