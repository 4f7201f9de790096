"""Asks a server of OpenAI's API that is no peer: Ollama, LM Studio, vLLM, llama-server and the like.

    request -> POST to the pinned address, with the Host that the server was registered under -> chunks

Whatever answers there is a stranger: no redirect is followed, no cookie kept, no proxy of the environment used, nothing
inflated; every wait and every size is bounded. It tells no token ids, so an answer that breaks off after its first text
is StreamInterrupted; before that another machine can make it (PeerGone, PeerSilent). Leaving an answer closes its
connection, which is how such servers hear that nobody wants the rest.

Not here: how answers are read (inference.providers.answers), which addresses may be asked (mesh.adopted.address), whom
to ask and what to do when it fails (mesh.dispatch).
"""

from __future__ import annotations

import asyncio
import io
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import aiohttp

from inference.chat import Chunk, EmbeddingRequest, Embeddings, Generation
from inference.errors import InferenceError, PeerGone, PeerSilent
from inference.openai.upstream import EMBEDDINGS_PATH, path_of
from inference.providers.answers import (
    CHARACTERS_PER_TOKEN,
    AnswerReader,
    Said,
    estimated_prompt_tokens,
    model_names,
    refusal,
    request_body,
    vectors_in,
)

MODELS_PATH = "/v1/models"
WELL_KNOWN_PATH = "/.well-known/llm-router"
IDLE_S = 30.0
# The end of a response follows its last event; without it the connection cannot serve again.
END_S = 0.25
# A connection that was closed while idle fails at once; later it is the request that ended it.
STALE_S = 1.0
UNREAD_BYTES_MAX = 64 * 1024
PIECE_BYTES_MAX = 512 * 1024
REFUSAL_BYTES_MAX = 64 * 1024
LIST_BYTES_MAX = 4 * 1024 * 1024
WELL_KNOWN_BYTES_MAX = 4 * 1024
# An answer in one piece, where a stream was asked for.
WHOLE_BYTES_MAX = 16 * 1024 * 1024
# A token takes about 250 bytes as an event: a million of them, and a server that only says that it lives.
STREAM_BYTES_MAX = 256 * 1024 * 1024
# Inputs of one question: vectors as numbers are 50 kB each, and parsing them holds up everybody else.
INPUTS_MAX = 64
VECTORS_BYTES_MAX = 16 * 1024 * 1024
# JSON that takes milliseconds to encode or parse is left to a thread.
INLINE_BYTES_MAX = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where a server is asked: `address` is the IP it was pinned to, `host` and `port` what it is called.

    `id` and `name` are those of the mesh; the name stands in errors that callers see, the address never does.
    """

    id: str
    name: str
    scheme: Literal["http", "https"]
    host: str
    port: int
    address: str

    def url(self, path: str) -> str:
        return f"{self.scheme}://{_bracketed(self.address)}:{self.port}{path}"

    @property
    def authority(self) -> str:
        """The Host header."""
        is_usual = self.port == (443 if self.scheme == "https" else 80)
        return _bracketed(self.host) + ("" if is_usual else f":{self.port}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a server is waited for, in seconds.

    `first_s` until it says anything: it may load a model first. `silent_s` between two pieces of an answer;
    `stuck_s` without any progress, whatever else it says; `usage_s` for the token counts behind a finished answer.
    """

    connect_s: float = 3.0
    first_s: float = 300.0
    silent_s: float = 60.0
    stuck_s: float = 600.0
    usage_s: float = 2.0
    probe_s: float = 5.0


class OpenAICompatible:
    """Use as `async with`. One client for all servers; what one of them does to it does not touch the others."""

    def __init__(self, patience: Patience = Patience()) -> None:
        self._patience = patience
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            read_bufsize=UNREAD_BYTES_MAX,
            headers={"User-Agent": "llm-router", "Accept-Encoding": "identity"},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def generate(self, server: Server, generation: Generation) -> AsyncGenerator[Chunk, None]:
        """The chunks of one answer; the last one carries `usage`. `aclose` closes the connection at once.

        `generation.model` is the server's own name of the model. Raises PeerGone, PeerSilent, StreamInterrupted, or the
        error the server answered with.
        """
        reader = AnswerReader(generation, server.name)
        is_large = CHARACTERS_PER_TOKEN * estimated_prompt_tokens(generation) > INLINE_BYTES_MAX
        body = request_body(generation)
        data = await asyncio.to_thread(_json, body) if is_large else _json(body)
        async with self._answer(server, path_of(generation), data) as response:
            if response.content_type == "application/json":
                body_in = await self._rest(server, response, WHOLE_BYTES_MAX)
                is_small = len(body_in) < INLINE_BYTES_MAX
                for one in reader.whole(body_in) if is_small else await asyncio.to_thread(reader.whole, body_in):
                    yield _checked(one)
                return
            stream = _Stream(server, response, reader, self._patience)
            while not reader.is_finished:
                for one in await stream.read():
                    chunk = _checked(one)
                    if chunk.finish_reason is not None:
                        await _read_to_end(response)
                    yield chunk

    async def embed(self, server: Server, request: EmbeddingRequest) -> Embeddings:
        """The vectors of one request. Raises as `generate` does."""
        vectors: list[bytes] = []
        tokens = 0
        for at in range(0, len(request.inputs), INPUTS_MAX):
            some = replace(request, inputs=request.inputs[at : at + INPUTS_MAX])
            found, counted = await self._embedded(server, some)
            vectors += found
            tokens += _estimated(some) if counted is None else counted
        if len({len(vector) for vector in vectors}) > 1:
            raise PeerGone(f"The server {server.name} sent vectors of several lengths.")
        return Embeddings(vectors=tuple(vectors), dim=len(vectors[0]) // 4, prompt_tokens=tokens)

    async def models(self, server: Server) -> tuple[str, ...]:
        """The ids of its models, as it names them. Raises an error that says why it is no such server."""
        data = await self._got(server, MODELS_PATH, LIST_BYTES_MAX)
        found = model_names(data) if len(data) < INLINE_BYTES_MAX else await asyncio.to_thread(model_names, data)
        if found is None:
            raise PeerGone(f"The server {server.name} does not answer {MODELS_PATH} as OpenAI's API does.")
        return found

    async def is_peer(self, server: Server) -> bool:
        """Whether a peer of a mesh, this one or another, answers there. Raises PeerGone when nothing does."""
        try:
            found = json.loads(await self._got(server, WELL_KNOWN_PATH, WELL_KNOWN_BYTES_MAX))
        except (PeerGone, PeerSilent) as error:
            if isinstance(error.__cause__, aiohttp.ClientConnectorError | TimeoutError):
                raise
            return False
        except (InferenceError, ValueError, RecursionError):
            return False
        return isinstance(found, dict) and {"version", "mesh", "peer_port"} <= found.keys()

    # -- one question

    async def _embedded(self, server: Server, request: EmbeddingRequest) -> tuple[list[bytes], int | None]:
        inputs = [i if isinstance(i, str) else list(i) for i in request.inputs]
        # As the openai clients ask; who does not know base64 answers with numbers, ten times as long.
        body: dict[str, Any] = {"model": request.model, "input": inputs, "encoding_format": "base64"}
        if request.dimensions is not None:
            body["dimensions"] = request.dimensions
        data = await asyncio.to_thread(_json, body)
        async with self._answer(server, EMBEDDINGS_PATH, data) as response:
            data = await self._rest(server, response, VECTORS_BYTES_MAX)
        return await asyncio.to_thread(vectors_in, server.name, data, len(inputs))

    async def _got(self, server: Server, path: str, bytes_max: int) -> bytes:
        """The answer to a small question, within `probe_s`."""
        try:
            async with (
                asyncio.timeout(self._patience.probe_s),
                self._answer(server, path, None) as response,
            ):
                return await self._rest(server, response, bytes_max)
        except TimeoutError as error:
            message = f"The server {server.name} did not answer within {self._patience.probe_s:g} s."
            raise PeerSilent(message) from error

    @asynccontextmanager
    async def _answer(self, server: Server, path: str, body: bytes | None) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response that has begun, with status 200."""
        response = await self._asked(server, path, body)
        try:
            if response.status != 200:
                said = b""
                with suppress(InferenceError, TimeoutError):
                    async with asyncio.timeout(self._patience.probe_s):
                        said = await self._rest(server, response, REFUSAL_BYTES_MAX)
                raise refusal(server.name, response.status, response.headers, said)
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise PeerGone(f"The server {server.name} compresses its answers, which it was not asked to.")
            yield response
        finally:
            response.close()  # a connection whose answer was read to its end is not closed by this

    async def _asked(self, server: Server, path: str, body: bytes | None) -> aiohttp.ClientResponse:
        now = asyncio.get_running_loop().time
        began = now()
        for is_last in (False, True):
            try:
                async with asyncio.timeout(self._patience.first_s):
                    return await self._sent(server, path, body)
            except TimeoutError as error:
                message = f"The server {server.name} has said nothing for {self._patience.first_s:g} s."
                if isinstance(error, aiohttp.ClientError):  # while connecting
                    raise PeerGone(_unreachable(server, error)) from error
                raise PeerSilent(message) from error
            except (aiohttp.ClientError, OSError, ValueError) as error:
                if is_last or not _may_be_stale(error) or now() - began > STALE_S:
                    raise PeerGone(_unreachable(server, error)) from error
        raise AssertionError("the second try is the last")

    async def _sent(self, server: Server, path: str, body: bytes | None) -> aiohttp.ClientResponse:
        assert self._session is not None, "OpenAICompatible is used as `async with`"
        headers = {"Host": server.authority}
        if body is not None:
            headers["Content-Type"] = "application/json"
        return await self._session.request(
            "GET" if body is None else "POST",
            server.url(path),
            data=body if body is None or len(body) <= PIECE_BYTES_MAX else io.BytesIO(body),
            headers=headers,
            allow_redirects=False,
            server_hostname=server.host if server.scheme == "https" else None,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._patience.connect_s),
        )

    async def _rest(self, server: Server, response: aiohttp.ClientResponse, bytes_max: int) -> bytes:
        """All of a body, which may have `bytes_max`."""
        data = bytearray()
        wait_s = self._patience.first_s
        while piece := await _read(server, response, wait_s):
            wait_s = self._patience.silent_s
            data += piece
            if len(data) > bytes_max:
                raise PeerGone(f"The server {server.name} answers with more than {bytes_max:,} bytes.")
        return bytes(data)


class _Stream:
    """A streamed answer on its way: waits for it no longer than it may be silent, stand still, or be long."""

    def __init__(
        self, server: Server, response: aiohttp.ClientResponse, reader: AnswerReader, patience: Patience
    ) -> None:
        self._server, self._response, self._reader, self._patience = server, response, reader, patience
        self._now = asyncio.get_running_loop().time
        self._wait_s = patience.first_s
        self._bytes = self._events = 0
        self._moved_at = self._now()

    async def read(self) -> list[Said]:
        """What comes next. An answer that breaks when all of it has been said is complete."""
        reader = self._reader
        try:
            wait_s = self._patience.usage_s if reader.is_complete else self._wait_s
            data = await _read(self._server, self._response, wait_s)
        except InferenceError as error:
            return reader.ended() if reader.is_complete else [reader.broken(error)]
        if not data:
            return reader.ended()
        self._wait_s = self._patience.silent_s
        self._bytes += len(data)
        said = reader.feed(data)
        if reader.events != self._events:
            self._events, self._moved_at = reader.events, self._now()
        if not reader.is_finished and (excess := self._excess()) is not None:
            said.append(reader.broken(excess))
        return said

    def _excess(self) -> InferenceError | None:
        if self._bytes > STREAM_BYTES_MAX:
            return PeerGone(f"The stream of the server {self._server.name} does not end.")
        if self._now() - self._moved_at > self._patience.stuck_s:
            return PeerSilent(f"The server {self._server.name} has made nothing for {self._patience.stuck_s:g} s.")
        return None


async def _read(server: Server, response: aiohttp.ClientResponse, wait_s: float) -> bytes:
    """The next bytes; none at the end. Raises PeerGone or PeerSilent."""
    try:
        async with asyncio.timeout(wait_s):
            return await response.content.readany()
    except TimeoutError as error:
        raise PeerSilent(f"The server {server.name} has said nothing for {wait_s:g} s.") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        message = f"The connection to the server {server.name} broke ({type(error).__name__})."
        raise PeerGone(message) from error


def _checked(said: Chunk | InferenceError) -> Chunk:
    if isinstance(said, InferenceError):
        raise said
    return said


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _estimated(request: EmbeddingRequest) -> int:
    return sum(len(i) // CHARACTERS_PER_TOKEN + 1 if isinstance(i, str) else len(i) for i in request.inputs)


async def _read_to_end(response: aiohttp.ClientResponse) -> None:
    """So that the connection can serve the next request."""
    try:
        async with asyncio.timeout(END_S):
            while not response.content.at_eof():
                await response.content.readany()
    except (TimeoutError, aiohttp.ClientError, OSError):
        pass


def _may_be_stale(error: Exception) -> bool:
    """The server may have closed an idle connection in the moment we used it: a new one tells."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return False
    return isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)


def _unreachable(server: Server, error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLCertVerificationError):
        return f"The certificate of the server {server.name} is not one that this machine trusts."
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return f"The server {server.name} hung up before it answered."
    return f"The server {server.name} cannot be reached ({type(error).__name__})."


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
