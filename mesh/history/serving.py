"""The peer port's side of replication: what other members may ask about logs, and give.

A full member may push its own log to a peer that may hold it, and pull what it may hold itself; a guest gets 403. What
a push says is taken as mesh.history.replicas and mesh.history.prefixes decide. An answer to a pull has one MiB, or one
entry if that is larger.

Not here: who asks whom and when (mesh.history.replication), how messages look (mesh.history.messages).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from aiohttp import web

from gossip.transport import MEMBER, PeerRoute
from mesh.history import replicas
from mesh.history.entries import LogId
from mesh.history.errors import HistoryUnavailable
from mesh.history.messages import (
    BATCH_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    PULL_PATH,
    PUSH_PATH,
    VECTOR_PATH,
    BadMessage,
    Batch,
    Batches,
    Told,
    batch_in,
    batches_out,
    digest_of,
    span_out,
    told_out,
    wants_in,
)
from mesh.history.replicas import Span, Vector, View, Want

BODY_S = 30.0
RUNS_MAX = 4096
"""Logs of one peer: a start every two minutes for a week."""


class Logs(Protocol):
    """The part of the store that is replicated; the tests have another one."""

    was_rebuilt: bool

    @property
    def own(self) -> LogId:
        """The log that this peer writes."""

    def vector(self) -> Mapping[LogId, Span]:
        """All logs that are here."""

    async def read(self, source: LogId, after: int, bytes_max: int) -> tuple[int, list[bytes]]:
        """The number of the first entry after `after`, and it and what follows."""

    async def take(self, source: LogId, first: int, items: Sequence[bytes], low: int) -> int:
        """Up to where the copy goes afterwards. Raises HistoryUnavailable."""


class Serving:
    """Answers members. `heard` is told of each batch that an origin pushed, whether it could be taken or not."""

    def __init__(
        self,
        *,
        store: Callable[[], Logs | None],
        view: Callable[[], View],
        floors: Callable[[], Mapping[LogId, int]],
        heard: Callable[[Batch], None] = lambda batch: None,
    ) -> None:
        self._store = store
        self._view = view
        self._floors = floors
        self._heard = heard

    def routes(self) -> list[PeerRoute]:
        """For the peer port."""
        return [
            ("GET", VECTOR_PATH, self._handled),
            ("POST", PUSH_PATH, self._handled),
            ("POST", PULL_PATH, self._handled),
        ]

    async def _handled(self, request: web.Request) -> web.Response:
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_S):
                async for piece in request.content.iter_any():
                    body += piece
                    if len(body) > MESSAGE_BYTES_MAX:
                        return web.Response(status=413)
        except TimeoutError:
            return web.Response(status=408)
        status, data = await self.answer(request[MEMBER], request.path, request.query, bytes(body))
        return web.Response(status=status, body=data, content_type="application/msgpack")

    async def answer(self, member: str, path: str, query: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        """HTTP status and body for what `member` asks."""
        store = self._store()
        if not replicas.may_read(member, self._view()):
            return 403, b""
        if store is None:
            return 503, b""
        try:
            if path == VECTOR_PATH:
                return self._vector(member, query, store)
            if path == PUSH_PATH:
                return await self._push(member, batch_in(body), store)
            return await self._pull(member, wants_in(body), store)
        except BadMessage:
            return 400, b""
        except HistoryUnavailable:
            return 503, b""

    def _vector(self, member: str, query: Mapping[str, str], store: Logs) -> tuple[int, bytes]:
        """All that `member` may take: this peer's own logs, the member's, and of others those whose origin is gone.

        Logs of living peers are asked of them, and a busy mesh's vector would never be the same twice.
        """
        view, only = self._view(), query.get("of")
        shown = self.shown(store)
        own = {log: span for log, span in shown.items() if log.peer == view.me and only in (None, view.me)}
        rest = {
            log: span
            for log, span in shown.items()
            if log.peer != view.me
            and (log.peer == member or not replicas.is_alive(log.peer, view))
            and only in (None, log.peer)
            and replicas.may_take(member, log, view)
        }
        own = {log: span for log, span in own.items() if replicas.may_take(member, log, view)}
        digest = digest_of(rest)
        is_known = query.get("rest") == digest.hex()
        return 200, told_out(Told(own=own, digest=digest, rest=None if is_known else rest))

    def shown(self, store: Logs) -> Vector:
        """What others see of the logs that are here: own entries that are private look as if they were retired."""
        floors = self._floors()
        found = {log: replicas.shown(log, span, floors) for log, span in store.vector().items()}
        return {log: (low, have) for log, (low, have) in found.items() if low < have or log not in floors}

    async def _push(self, member: str, batch: Batch, store: Logs) -> tuple[int, bytes]:
        log = batch.log
        if log.peer != member or not replicas.accepts(log, member, self._view(), own=store.own, recovers=False):
            return 403, b""
        known = store.vector()
        if log not in known and sum(each.peer == member for each in known) >= RUNS_MAX:
            return 403, b""
        self._heard(batch)
        have = await store.take(log, batch.first, batch.items, batch.low)
        return 200, span_out(store.vector().get(log, (0, have)))

    async def _pull(self, member: str, wants: Sequence[Want], store: Logs) -> tuple[int, bytes]:
        view, floors = self._view(), self._floors()
        batches, left, has_more = list[Batch](), BATCH_BYTES_MAX, False
        for want in wants:
            log = want.log
            if not replicas.may_take(member, log, view) or log not in store.vector():
                continue
            if left <= 0:
                has_more = True
                break
            after = max(want.after, floors.get(log, 0))
            first, items = await store.read(log, after, left)
            low, have = replicas.shown(log, store.vector().get(log, (0, 0)), floors)
            if items or low > want.after:
                batches.append(Batch(log=log, low=low, have=have, first=first, items=tuple(items)))
                left -= sum(map(len, items))
                has_more = has_more or first + len(items) <= have
        return 200, batches_out(Batches(batches=tuple(batches), has_more=has_more))
