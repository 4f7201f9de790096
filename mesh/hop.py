"""The ingress's side of a hop: asks another peer for an answer over its peer port, and notices when that peer is gone.

A peer is one more server of OpenAI's API (inference.openai.upstream is the format). Its stream is never silent for
longer than a second, so silence means trouble:

    connection fails or breaks, nonsense comes      PeerGone, at once
    SILENT_S of silence and a probe that fails      PeerSilent
    SILENT_S_MAX of silence                         PeerSilent

A slow client makes the ingress read slowly, and the holder send slowly: what was not read is bounded by the buffers of
two sockets, and silence is counted only while somebody waits. One request is one connection for as long as it runs;
leaving it early closes the connection, which is how its holder hears that nobody wants the rest.

Not here: whom to ask, and what to do when it fails (mesh.dispatch).
"""

from __future__ import annotations

import asyncio
import io
import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self, TypeVar

import aiohttp

from inference.chat import (
    ChatPrompt,
    Chunk,
    EmbeddingRequest,
    Embeddings,
    Generation,
    Message,
    TextPrompt,
    TokenPrompt,
)
from inference.errors import InferenceError, ModelUnavailable, PeerGone, PeerSilent
from inference.openai.upstream import (
    EMBEDDINGS_PATH,
    AnswerReader,
    EmbeddingsReader,
    hop_body,
    hop_embedding_body,
    path_of,
    refusal_of,
)
from web.hop import CONTEXT_HEADER, HOP_HEADER, context_out
from web.services import Forwarder

log = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_S = 3.0
# With several addresses, of which some may lead nowhere: a LAN answers in milliseconds.
CONNECT_EACH_S = 1.5
IDLE_S = 60.0
# Encoding more than this takes the event loop's time: milliseconds.
INLINE_CHARS_MAX = 256 * 1024
# What is written in one piece; larger bodies go out in slices.
PIECE_BYTES_MAX = 512 * 1024
REFUSAL_BYTES_MAX = 64 * 1024
# What may lie unread of one stream before its holder is slowed down.
UNREAD_BYTES_MAX = 64 * 1024
# The end of a response follows its last event; without it the connection cannot serve again.
END_S = 0.25
LOOK_S_MIN = 0.01
# A look that comes so late says more of this machine than of the peer.
STALLED_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """How long a stream may be silent: until a failed probe ends it, and in any case."""

    silent_s: float = 3.0
    silent_s_max: float = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a peer is asked for a model, `model_id` and `sha256` as it has it. `addresses` ("host:port"), best first.

    `ssl` accepts that peer's certificate only; None (tests): plain HTTP.
    """

    peer: str
    name: str
    addresses: tuple[str, ...]
    model_id: str
    sha256: str | None = None
    ssl: ssl.SSLContext | None = None


class HopClient:
    """Use as `async with`. `probe` asks whether a peer is alive; `reported` gets the load that rides on answers."""

    def __init__(
        self,
        *,
        probe: Callable[[str], Awaitable[bool]],
        reported: Callable[[str, bytes], None] = lambda peer, load: None,
        silence: Silence = Silence(),
    ) -> None:
        self._probe = probe
        self._reported = reported
        self._silence = silence
        self._good: dict[str, str] = {}  # the address of each peer that worked last
        self._watches: dict[str, set[_Watch]] = {}  # of what each peer is asked for now
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S, ttl_dns_cache=10),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept"),
            read_bufsize=UNREAD_BYTES_MAX,
            max_line_size=16 * 1024,
            max_field_size=16 * 1024,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends every connection; what still runs gets PeerGone."""
        if self._session is not None:
            await self._session.close()

    def gone(self, peer: str) -> None:
        """It is no member any more: nothing that it still says is listened to; whoever waits gets PeerGone."""
        for watch in tuple(self._watches.get(peer, ())):
            watch.leave()

    async def generate(
        self, target: Target, generation: Generation, forwarder: Forwarder
    ) -> AsyncGenerator[Chunk, None]:
        """The chunks of one answer, made by `target`; `aclose` cancels it there, down to the slot.

        Raises PeerGone, PeerSilent, or the error the peer answered with.
        """
        asked = replace(generation, model=target.model_id)
        body = hop_body(asked) if _chars(asked) < INLINE_CHARS_MAX else await asyncio.to_thread(hop_body, asked)
        made = len(generation.produced.tokens)
        reader = AnswerReader(None if generation.max_tokens is None else max(0, generation.max_tokens - made))
        async with self._answer(target, path_of(asked), body, forwarder, asked.id) as (response, watch):
            while True:
                data = await watch.read(response.content)
                if not data:
                    raise PeerGone(f"The peer {target.name} ended the answer before it was complete.")
                for said in reader.feed(data):
                    if isinstance(said, bytes):
                        self._reported(target.peer, said)
                    elif isinstance(said, InferenceError):
                        raise said
                    else:
                        if said.started is not None:
                            _check_file(target, said.started.sha256, forwarder.sha256)
                        if said.finish_reason is not None:
                            await _read_to_end(response)
                        yield said
                if reader.is_finished:
                    return

    async def embed(self, target: Target, request: EmbeddingRequest, forwarder: Forwarder) -> Embeddings:
        """The vectors of one request, made by `target`. Raises as `generate` does."""
        asked = replace(request, model=target.model_id)
        body = await asyncio.to_thread(hop_embedding_body, asked)
        reader = EmbeddingsReader(asked)
        async with self._answer(target, EMBEDDINGS_PATH, body, forwarder, asked.id) as (response, watch):
            while reader.answer is None:
                data = await watch.read(response.content)
                if not data:
                    raise PeerGone(f"The peer {target.name} ended the answer before it was complete.")
                for load in reader.feed(data):
                    self._reported(target.peer, load)
            await _read_to_end(response)
            return reader.answer

    @asynccontextmanager
    async def _answer(
        self, target: Target, path: str, body: bytes, forwarder: Forwarder, request_id: str
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, _Watch]]:
        """A response that has begun, and who waits for its bytes; every way it can break is PeerGone."""
        headers = {
            HOP_HEADER: "1",
            CONTEXT_HEADER: context_out(forwarder),
            "x-request-id": request_id,
            "Content-Type": "application/json",
        }
        watch = _Watch(self._silence, lambda: self._probe(target.peer), target.name)
        self._watches.setdefault(target.peer, set()).add(watch)
        response: aiohttp.ClientResponse | None = None
        try:
            response = await self._post(target, path, body, headers, watch)
            if response.status != 200:
                raise await self._refusal(target, response, watch)
            yield response, watch
        except (aiohttp.ClientError, ConnectionError, ssl.SSLError) as error:
            raise PeerGone(f"The connection to the peer {target.name} broke ({type(error).__name__}).") from error
        except PeerSilent:
            self._good.pop(target.peer, None)  # it may have moved: the next try goes where it says it is
            raise
        finally:
            watch.end()
            self._watches[target.peer].discard(watch)
            if not self._watches[target.peer]:
                del self._watches[target.peer]
            if response is not None:
                response.close()  # a connection whose answer was read to its end is not closed by this

    async def _post(
        self, target: Target, path: str, body: bytes, headers: dict[str, str], watch: _Watch
    ) -> aiohttp.ClientResponse:
        """The first address that answers. Raises PeerGone when none does, PeerSilent when one says nothing."""
        failure: Exception | None = None
        for address in self._in_order(target):
            for _ in range(2):
                try:
                    response = await watch.wait(self._posted(target, address, path, body, headers))
                except (aiohttp.ClientError, OSError, ValueError) as error:
                    failure = error
                    if _may_be_stale(error):
                        continue
                    break
                self._good[target.peer] = address
                return response
        what = "has no address" if failure is None else f"cannot be reached ({type(failure).__name__})"
        raise PeerGone(f"The peer {target.name} {what}.") from failure

    async def _posted(
        self, target: Target, address: str, path: str, body: bytes, headers: dict[str, str]
    ) -> aiohttp.ClientResponse:
        assert self._session is not None
        connect_s = CONNECT_S if len(target.addresses) == 1 else CONNECT_EACH_S
        return await self._session.post(
            f"{'https' if target.ssl else 'http'}://{address}{path}",
            data=body if len(body) <= PIECE_BYTES_MAX else io.BytesIO(body),
            headers=headers,
            ssl=target.ssl or True,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_s),
        )

    def _in_order(self, target: Target) -> list[str]:
        """The one that worked last comes first."""
        return sorted(target.addresses, key=lambda a: a != self._good.get(target.peer))

    async def _refusal(self, target: Target, response: aiohttp.ClientResponse, watch: _Watch) -> InferenceError:
        body = b""
        while len(body) <= REFUSAL_BYTES_MAX and (data := await watch.read(response.content)):
            body += data
        error, load = refusal_of(response.status, body)
        if load is not None:
            self._reported(target.peer, load)
        return error


class _Watch:
    """Waits for a peer, no longer than it may be silent. One timer a request, none a chunk."""

    def __init__(self, silence: Silence, probe: Callable[[], Awaitable[bool]], name: str) -> None:
        self._silence = silence
        self._probe = probe
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._is_left = False
        self._since: float | None = None  # since when somebody waits
        self._timeout: asyncio.Timeout | None = None
        self._content: aiohttp.StreamReader | None = None  # what is waited for, if not by `wait`
        self._probing: asyncio.Task[None] | None = None
        self._due = self._loop.time() + silence.silent_s
        self._timer: asyncio.TimerHandle | None = self._loop.call_at(self._due, self._look)

    async def wait(self, coming: Awaitable[T]) -> T:
        """What comes. Raises PeerSilent when it does not, PeerGone once the peer is left."""
        since = self._since = self._loop.time()
        timeout = self._timeout = asyncio.timeout(0 if self._is_left else None)
        try:
            async with timeout:
                return await coming
        except TimeoutError:
            if not timeout.expired():
                raise  # somebody else's
            raise self._left() if self._is_left else self._silent(since) from None
        finally:
            self._since = self._timeout = None

    async def read(self, content: aiohttp.StreamReader) -> bytes:
        """The next bytes, as `wait` does but without a timeout of their own: it runs hundreds of times a second."""
        if self._is_left:
            raise self._left()
        self._since, self._content = self._loop.time(), content
        try:
            return await content.readany()
        finally:
            self._since = self._content = None

    def leave(self) -> None:
        """The peer is not to be listened to: ends the wait, and those to come."""
        self._is_left = True
        if self._content is not None:
            self._content.set_exception(self._left())
        elif self._timeout is not None:
            self._timeout.reschedule(self._loop.time())

    def _left(self) -> PeerGone:
        return PeerGone(f"The peer {self._name} is no member of the mesh any more.")

    def _silent(self, since: float) -> PeerSilent:
        return PeerSilent(f"The peer {self._name} has said nothing for {self._loop.time() - since:.1f} s.")

    def end(self) -> None:
        """Nobody will wait any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._probing is not None:
            self._probing.cancel()
            self._probing = None

    def _look(self) -> None:
        silence, now = self._silence, self._loop.time()
        if self._since is not None and now - self._due > STALLED_S:
            self._since = now  # it was this machine that stood still: what has come meanwhile is read first
        since = now if self._since is None else self._since
        due = since + silence.silent_s
        if now >= since + silence.silent_s_max:
            self._give_up(since)
        elif now >= due:
            due = since + silence.silent_s_max
            if self._probing is None:
                self._probing = self._loop.create_task(self._probed(since), name="probe of a silent peer")
        self._due = max(due, now + LOOK_S_MIN)
        self._timer = self._loop.call_at(self._due, self._look)

    async def _probed(self, since: float) -> None:
        is_alive = await self._probe()
        if not is_alive:
            self._give_up(since)
        self._probing = None  # the next silence is probed again

    def _give_up(self, since: float) -> None:
        """Ends the wait that began at `since`, if it still goes on."""
        if self._since != since:
            return
        if self._content is not None:
            self._content.set_exception(self._silent(since))
        elif self._timeout is not None:
            self._timeout.reschedule(self._loop.time())


async def _read_to_end(response: aiohttp.ClientResponse) -> None:
    """So that the connection can serve the next request."""
    try:
        async with asyncio.timeout(END_S):
            while not response.content.at_eof():
                await response.content.readany()
    except (TimeoutError, aiohttp.ClientError):
        pass


def _check_file(target: Target, sha256: str | None, wanted: str | None) -> None:
    """Raises when an answer would be continued with another file than it began with."""
    if wanted is not None and sha256 != wanted:
        raise ModelUnavailable(f"The file of the model is another one on {target.name}.", code="model_changed")


def _may_be_stale(error: Exception) -> bool:
    """The peer may have closed an idle connection in the moment we used it: a new one tells."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return False
    return isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)


def _chars(generation: Generation) -> int:
    """About how long the body will be."""
    produced = 8 * len(generation.produced.tokens)
    match generation.prompt:
        case ChatPrompt(messages=messages):
            return produced + sum(map(_chars_of, messages))
        case TextPrompt(text=text):
            return produced + len(text)
        case TokenPrompt(tokens=tokens):
            return produced + 8 * len(tokens)


def _chars_of(message: Message) -> int:
    if isinstance(message.content, str):
        return len(message.content)
    return sum(len(part.text) for part in message.content or ())
