"""What this peer answers to others about the admin map. Every byte that comes in may be a lie.

Members only, proven by their certificates; guests may ask for what is theirs to have and push nothing. Rows speak for
themselves: whoever tells them, their authors' signatures are checked. How the other side asks is mesh.admin.spread's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web

from gossip.codec import FRAME_BYTES_MAX
from gossip.identity import PeerId
from gossip.transport import MEMBER, PeerRoute
from mesh.admin.map import BUCKETS, is_for_guests
from mesh.admin.messages import (
    CODEC,
    NAME_BYTES,
    NAMES_MAX,
    ROWS_BYTES_MAX,
    ROWS_MAX,
    Ask,
    Compare,
    Compared,
    Push,
    Pushed,
    Told,
    decoded,
    halves,
    names_in,
    on_the_wire,
)
from mesh.admin.replica import Replica
from mesh.admin.rows import written

ROWS_PATH = "/mesh/admin/rows"
SYNC_PATH = "/mesh/admin/sync"
SERVED_MAX = 8
"""At the same time. Who finds no place comes again by itself."""
BODY_S = 10.0

Reply = tuple[int, bytes]


class Exchange:
    """The answering side. `serving`: how many questions are being answered."""

    def __init__(self, replica: Replica, *, must_ask: Callable[[PeerId], None]) -> None:
        """`must_ask(peer)`: this map is so old that it needs a copy of what `peer` has."""
        self._replica = replica
        self._must_ask = must_ask
        self.serving = 0

    def routes(self) -> Sequence[PeerRoute]:
        """For the peer port."""
        return (("POST", ROWS_PATH, self._on_rows), ("POST", SYNC_PATH, self._on_sync))

    async def rows(self, peer: PeerId, body: bytes) -> Reply:
        """Takes in a push. `peer` is proven."""
        replica, message = self._replica, decoded(body)
        if not isinstance(message, Push) or len(message.rows) > ROWS_MAX:
            return 400, b""
        if message.mesh != replica.map.mesh_id:
            return 409, b""
        if peer not in replica.signers():
            return 403, b""
        replica.skew.heard(peer, message.now_ms, replica.now_s())
        if message.last_synced_ms < replica.horizon_ms:
            return 200, self._pushed((), is_stale=True)
        taken = await replica.take(message.rows, peer)
        return 200, self._pushed(tuple(sorted(taken.refused.items())))

    async def sync(self, peer: PeerId, body: bytes) -> Reply:
        """Compares, or tells rows. `peer` is proven."""
        message = decoded(body)
        if not isinstance(message, Compare | Ask):
            return 400, b""
        if message.mesh != self._replica.map.mesh_id:
            return 409, b""
        is_guest = peer not in self._replica.signers()
        if isinstance(message, Compare):
            if not is_guest:
                self._replica.skew.heard(peer, message.now_ms, self._replica.now_s())
            if not is_guest and self._replica.is_stale(message.horizon_ms):
                self._must_ask(peer)
            return 200, CODEC.encode(self._compared(message, is_guest))
        return 200, CODEC.encode(await self._told(message, is_guest))

    def _pushed(self, refused: tuple[tuple[str, int], ...], *, is_stale: bool = False) -> bytes:
        replica = self._replica
        digest = on_the_wire(replica.map.digest())
        return CODEC.encode(Pushed(now_ms=replica.now_ms(), digest=digest, refused=refused, is_stale=is_stale))

    def _compared(self, message: Compare, is_guest: bool) -> Compared:
        replica = self._replica
        mine, theirs = halves(on_the_wire(replica.map.digest())), halves(message.digest)
        is_equal = mine[0] == theirs[0] if is_guest else mine == theirs
        digests = replica.map.digests()[: BUCKETS // 2 if is_guest else BUCKETS]
        return Compared(
            now_ms=replica.now_ms(),
            last_synced_ms=replica.last_synced_ms,
            horizon_ms=max(0, replica.horizon_ms),
            digests=b"" if is_equal else on_the_wire(digests),
        )

    async def _told(self, message: Ask, is_guest: bool) -> Told:
        """What the asker lacks, as much as one message holds."""
        admin_map = self._replica.map
        have = names_in(message.have)
        wanted = set(have)
        rows: list[bytes] = []
        size = looked_at = covered = 0
        is_all = True
        for bucket in message.buckets[:BUCKETS]:
            if covered and looked_at + admin_map.count(bucket % BUCKETS) > NAMES_MAX:
                break
            covered += 1
            looked_at += admin_map.count(bucket % BUCKETS)
            for hashed, row in admin_map.hashes([bucket % BUCKETS]):
                name = hashed[:NAME_BYTES]
                wanted.discard(name)
                if name in have or (is_guest and not is_for_guests(row.key, row.field)):
                    continue
                if not is_all or len(rows) >= ROWS_MAX or (rows and size + row.size > ROWS_BYTES_MAX):
                    is_all = False
                    continue
                rows.append(written(row))
                size += len(rows[-1])
        names = b"" if is_guest else b"".join(sorted(wanted))
        return Told(buckets=covered, rows=tuple(rows), wanted=names, is_all=is_all)

    async def _on_rows(self, request: web.Request) -> web.StreamResponse:
        return await self._answered(request, self.rows)

    async def _on_sync(self, request: web.Request) -> web.StreamResponse:
        return await self._answered(request, self.sync)

    async def _answered(
        self, request: web.Request, answer: Callable[[PeerId, bytes], Awaitable[Reply]]
    ) -> web.StreamResponse:
        if self.serving >= SERVED_MAX:
            return web.Response(status=503)
        self.serving += 1
        try:
            body = await _body_of(request)
            if body is None:
                return web.Response(status=413)
            status, data = await answer(request[MEMBER], body)
            return web.Response(status=status, body=data, content_type="application/octet-stream")
        finally:
            self.serving -= 1


async def _body_of(request: web.Request) -> bytes | None:
    """All of it; None for more than a message has."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for piece in request.content.iter_any():
                body += piece
                if len(body) > FRAME_BYTES_MAX:
                    return None
    except TimeoutError:
        return None
    return bytes(body)
