"""Questions between members that are no inference: a request over mutual TLS, and its answer, under limits.

History, the admin map and requests that are passed on use it. Who is asked proves its identity by its certificate, as
for a hop (mesh.hop); nothing is ever asked twice, redirected or decompressed. The server's side are routes of the peer
port (gossip.transport).
"""

from __future__ import annotations

import asyncio
import io
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

import aiohttp

from gossip.errors import UnknownPeer
from inference.errors import PeerGone

CONNECT_S = 3.0
IDLE_S = 30.0
ANSWER_BYTES_MAX = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a member said. Header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class PeerCalls:
    """Use as `async with`. `addresses` of a peer ("host:port"), best first; `context_of` accepts its certificate only
    (None: plain HTTP, in tests)."""

    def __init__(
        self,
        *,
        addresses: Callable[[str], tuple[str, ...]],
        context_of: Callable[[str], ssl.SSLContext | None],
    ) -> None:
        self._addresses = addresses
        self._context_of = context_of
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S, ttl_dns_cache=10),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept", "Content-Type"),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def call(
        self,
        peer: str,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
        bytes_max: int = ANSWER_BYTES_MAX,
    ) -> Answer:
        """The whole answer, within `timeout_s`. Raises PeerGone, also when the answer is longer than `bytes_max`."""
        try:
            async with (
                asyncio.timeout(timeout_s),
                self.stream(peer, method, path, body=body, headers=headers) as response,
            ):
                data = bytearray()
                async for piece in response.content.iter_any():
                    data += piece
                    if len(data) > bytes_max:
                        raise PeerGone(f"The peer {peer[:8]} answers with more than {bytes_max:,} bytes.")
                found = {name.lower(): value for name, value in response.headers.items()}
                return Answer(status=response.status, headers=found, body=bytes(data))
        except TimeoutError:
            raise PeerGone(f"The peer {peer[:8]} did not answer within {timeout_s:g} s.") from None

    @asynccontextmanager
    async def stream(
        self, peer: str, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer that has begun; whoever reads it sees to the time that takes. Raises PeerGone, also inside."""
        try:
            response = await self._begun(peer, method, path, body, headers or {})
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise PeerGone(f"The peer {peer[:8]} cannot be reached ({type(error).__name__}).") from error
        try:
            yield response
        except (aiohttp.ClientError, ConnectionError, ssl.SSLError) as error:
            raise PeerGone(f"The connection to the peer {peer[:8]} broke ({type(error).__name__}).") from error
        finally:
            response.close()

    async def _begun(
        self, peer: str, method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        """The first address that can be connected to; what was sent once is not sent again."""
        assert self._session is not None, "PeerCalls is used as `async with`"
        try:
            context = self._context_of(peer)
        except UnknownPeer:
            raise PeerGone(f"The peer {peer[:8]} is no member of the mesh.") from None
        failure: aiohttp.ClientError | None = None
        for address in self._addresses(peer):
            try:
                return await self._session.request(
                    method,
                    f"{'https' if context else 'http'}://{address}{path}",
                    data=io.BytesIO(body) if body else None,  # bytes would be written in one piece
                    headers=headers,
                    ssl=context or True,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
                )
            except aiohttp.ClientConnectorError as error:
                failure = error
        raise failure or PeerGone(f"The peer {peer[:8]} has no address.")
