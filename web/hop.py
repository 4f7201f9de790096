"""The peer port's side of a hop: another peer of the mesh asks for an answer, and gets it from this machine only.

    POST /v1/chat/completions, /v1/completions, /v1/embeddings      x-mesh-hop: 1, x-mesh-context, x-request-id

The format is OpenAI's with a member `mesh` (inference.openai.upstream); who asks was proven by mutual TLS before a
request comes here. A stream is never silent for longer than `HopFacet.heartbeat_s`, from before its body is read:
silence tells the ingress that this peer is in trouble. What fails before the first byte is an HTTP status, later it is
an event. When the ingress goes away the handler is cancelled, which cancels the request down to its slot.

Not here: who may ask (gossip.transport), what is done (mesh.local). Nothing is ever forwarded again.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, cast

from aiohttp import web

from inference.chat import Chunk, Generation
from inference.errors import InferenceError, InvalidRequest, PeerLeaving
from inference.openai.answer import DONE, AnswerHead
from inference.openai.request import hop_call, hop_embedding_call
from inference.openai.upstream import (
    CHAT_PATH,
    COMPLETIONS_PATH,
    EMBEDDINGS_PATH,
    HopWriter,
    embedding_events,
    error_out,
)
from web.body import parsed_body
from web.border import DEADLINE_S_MAX, Handler
from web.errors import HttpRefusal
from web.inflight import InFlight
from web.services import Forwarder, HopFacet, Limits
from web.sse import EventStream

_log = logging.getLogger(__name__)

HOP_HEADER = "x-mesh-hop"
CONTEXT_HEADER = "x-mesh-context"
CONTEXT_BYTES_MAX = 4096
# A client's body may have 32 MiB; the token ids of a continuation (up to 11 bytes each) come on top.
HOP_BODY_BYTES_MAX = 40 * 1024 * 1024
FAIRNESS_KEY_MAX = 256


class HopRoutes:
    """The handlers. `peer_of` answers the id that the certificate of the connection proves."""

    def __init__(self, facet: HopFacet, limits: Limits, peer_of: Callable[[web.Request], str]) -> None:
        self._facet = facet
        self._limits = _limits(limits)
        self._peer_of = peer_of
        self._in_flight = InFlight()
        self._tasks: dict[str, set[asyncio.Task[Any]]] = {}  # of each ingress

    @property
    def active_requests(self) -> int:
        return len(self._in_flight)

    async def stop(self, drain_s: float) -> None:
        """Ends what still runs after `drain_s` seconds; each ingress is told to go on elsewhere."""
        await self._in_flight.stop(drain_s)

    def gone(self, peer: str) -> None:
        """Ends what `peer` asked for: it is dead, and its connections do not know it yet."""
        for task in tuple(self._tasks.get(peer, ())):
            task.cancel()

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answered(request, lambda stream, forwarder: self._chat(request, stream, forwarder, "chat"))

    async def completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answered(
            request, lambda stream, forwarder: self._chat(request, stream, forwarder, "generate")
        )

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        return await self._answered(request, lambda stream, forwarder: self._embed(request, stream, forwarder))

    async def _answered(
        self, request: web.Request, fill: Callable[[EventStream, Forwarder], Awaitable[None]]
    ) -> web.StreamResponse:
        """The border of this port: whatever happens becomes an answer, but a disconnect."""
        with self._in_flight.entered(), self._asked_by(self._peer_of(request)):
            async with EventStream(request, self._facet.heartbeat_s) as stream:
                try:
                    await fill(stream, self._forwarder(request))
                except ConnectionError:
                    raise
                except asyncio.CancelledError:
                    if not self._in_flight.was_stopped(request):
                        raise
                    return await self._failed(stream, PeerLeaving("This peer is stopping."))
                except InferenceError as error:
                    return await self._failed(stream, error)
                except Exception:  # noqa: BLE001 - the border: logged with its traceback, the ingress gets a 500
                    _log.exception("forwarded request failed", extra={"request": request.headers.get("x-request-id")})
                    message = "Something went wrong inside the peer that served it; its log says more."
                    return await self._failed(stream, InferenceError(message, code="internal_error"))
            return stream.response

    @contextmanager
    def _asked_by(self, peer: str) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None
        tasks = self._tasks.setdefault(peer, set())
        tasks.add(task)
        try:
            yield
        finally:
            tasks.discard(task)
            if not tasks:
                self._tasks.pop(peer, None)

    async def _failed(self, stream: EventStream, error: InferenceError) -> web.StreamResponse:
        await stream.hush()
        body = json.dumps(error_out(error, self._facet.load())).encode()
        if not stream.is_open:
            response = web.Response(status=error.status, body=body, content_type="application/json")
            if isinstance(error, HttpRefusal) and error.must_close:
                response.force_close()
            return response
        await stream.end(b"data: " + body + b"\n\n")
        return stream.response

    async def _chat(self, request: web.Request, stream: EventStream, forwarder: Forwarder, kind: Any) -> None:
        def parse(body: dict[str, Any]) -> Generation:
            return hop_call(body, is_chat=kind == "chat")

        generation = await parsed_body(request, self._limits, parse, self._in_flight)
        head = AnswerHead(kind=kind, request_id=generation.id, model=generation.model, created=int(time.time()))
        writer = HopWriter(head)
        chunks = cast(AsyncGenerator[Chunk, None], self._facet.generate(generation, forwarder))
        async with aclosing(chunks):
            async for chunk in chunks:
                if chunk.finish_reason is not None:
                    await stream.end(writer.chunk(chunk, self._facet.load()) + DONE)
                elif chunk.started is not None:
                    await stream.open()
                    await stream.send(writer.chunk(chunk, self._facet.load()))
                else:
                    await stream.send(writer.chunk(chunk))

    async def _embed(self, request: web.Request, stream: EventStream, forwarder: Forwarder) -> None:
        asked = await parsed_body(request, self._limits, hop_embedding_call, self._in_flight)
        answer = await self._facet.embed(asked, forwarder)
        await stream.open()
        for event in embedding_events(answer, self._facet.load()):
            await stream.send(event)
        await stream.end(b"")

    def _forwarder(self, request: web.Request) -> Forwarder:
        if request.headers.get(HOP_HEADER) != "1":
            raise InvalidRequest(
                f"Missing header '{HOP_HEADER}: 1': this port answers peers of the mesh; clients have another one.",
                code="not_a_hop",
            )
        return context_in(request.headers.get(CONTEXT_HEADER, ""), self._peer_of(request))


def hop_routes(
    facet: HopFacet, limits: Limits, peer_of: Callable[[web.Request], str]
) -> tuple[HopRoutes, list[tuple[str, str, Handler]]]:
    """The routes to mount on the peer port, and what ends them."""
    hop = HopRoutes(facet, limits, peer_of)
    return hop, [
        ("POST", CHAT_PATH, hop.chat),
        ("POST", COMPLETIONS_PATH, hop.completions),
        ("POST", EMBEDDINGS_PATH, hop.embeddings),
    ]


# -- x-mesh-context


@dataclass(frozen=True, slots=True)
class _Member:
    """One member of the context: its type, and its value when it is left out."""

    name: str
    kind: tuple[type, ...]


_MEMBERS = (
    _Member("fairness_key", (str,)),
    _Member("background", (bool,)),
    _Member("deadline_s", (int, float)),
    _Member("attempt", (int,)),
    _Member("may_refuse", (bool,)),
    _Member("is_resumed", (bool,)),
    _Member("sha256", (str,)),
)


def context_out(forwarder: Forwarder) -> str:
    """What the ingress says of a request, as a header; all but `peer`, which its certificate says."""
    values = {m.name: getattr(forwarder, m.name) for m in _MEMBERS}
    kept = {name: value for name, value in values.items() if value is not None}
    return base64.urlsafe_b64encode(json.dumps(kept, separators=(",", ":")).encode()).decode()


def context_in(header: str, peer: str) -> Forwarder:
    """The reverse. Raises InvalidRequest. What is unknown is ignored: a newer peer may say more."""
    try:
        if len(header) > CONTEXT_BYTES_MAX:
            raise ValueError
        said = json.loads(base64.b64decode(header, altchars=b"-_", validate=True)) if header else {}
        values: dict[str, Any] = {}
        for member in _MEMBERS:
            value = said.get(member.name)
            if value is not None:
                if type(value) not in member.kind:
                    raise TypeError
                values[member.name] = value
        if not 0 < values.get("deadline_s", 1.0) <= DEADLINE_S_MAX or not 1 <= values.get("attempt", 1) <= 1000:
            raise ValueError
        if len(values.get("fairness_key", "")) > FAIRNESS_KEY_MAX:
            raise ValueError
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise InvalidRequest(
            f"Invalid header '{CONTEXT_HEADER}': it is not what a peer sends.", code="invalid_value"
        ) from None
    return Forwarder(peer=peer, **values)


def _limits(limits: Limits) -> Limits:
    """Those of the client port, but for the size of a body."""
    return Limits(
        body_bytes=max(limits.body_bytes, HOP_BODY_BYTES_MAX), bodies_bytes=limits.bodies_bytes, body_s=limits.body_s
    )
