"""A real listener on a real socket, over services made of a script instead of an engine."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from inference.chat import ChatPrompt, Chunk, EmbeddingRequest, Embeddings, Generation, Started
from inference.errors import InferenceError, ModelNotFound, ModelUnavailable
from web.listener import Listener
from web.services import Access, Caller, ChatFacet, Limits, ModelsFacet, ModelView, Services, StateFacet

TOKEN = "control-token-of-the-tests"
MODELS = {
    "tiny": ModelView(id="tiny", created=1, size_bytes=545_000, ready=True, loaded=True, context=128),
    "hf/a/b.gguf": ModelView(id="hf/a/b.gguf", created=2, size_bytes=1, ready=True, loaded=False),
    "embed": ModelView(id="embed", created=3, size_bytes=2, ready=True, loaded=False, capabilities=("embedding",)),
    "stuck": ModelView(id="stuck", created=4, size_bytes=2, ready=False, loaded=False),
}


class Script:
    """Plays an answer, and remembers what it was asked. Gates let a test hold it at a point without sleeping."""

    def __init__(self) -> None:
        self.pieces: list[str] = ["Hel", "lo", ""]
        self.finish: str | None = "stop"
        self.peer = "attic"
        self.error_before: Exception | None = None
        self.error_after: Exception | None = None
        self.before_start = _open_gate()
        self.before_piece = _open_gate()
        self.started = asyncio.Event()
        self.closed = asyncio.Event()
        self.generations: list[Generation] = []
        self.embeddings: list[EmbeddingRequest] = []
        self.callers: list[Caller] = []
        self.observed: list[tuple[str, str, int, float]] = []
        self.stopped = asyncio.Event()

    async def generate(self, generation: Generation, caller: Caller) -> AsyncIterator[Chunk]:
        self.generations.append(generation)
        self.callers.append(caller)
        self.started.set()
        try:
            if generation.model == "stuck":
                raise ModelUnavailable("nobody can load it", retry_after_s=7)
            await self.before_start.wait()
            if self.error_before is not None:
                raise self.error_before
            prompt_tokens = len(generation.prompt.messages) if isinstance(generation.prompt, ChatPrompt) else 5
            yield Chunk(started=Started(prompt_tokens=prompt_tokens, cached_tokens=1, peer=self.peer, attempts=2))
            for number, piece in enumerate(self.pieces):
                await self.before_piece.wait()
                is_last = number == len(self.pieces) - 1 and self.error_after is None
                finish: Any = self.finish if is_last else None
                yield Chunk(text=piece, tokens=(number,), draws=number + 1, finish_reason=finish)
            if self.error_after is not None:
                raise self.error_after
        finally:
            self.closed.set()

    async def embed(self, request: EmbeddingRequest, caller: Caller) -> Embeddings:
        self.embeddings.append(request)
        vector = bytes.fromhex("0000803f00000000")  # [1.0, 0.0], little-endian
        return Embeddings(vectors=(vector,) * len(request.inputs), dim=2, prompt_tokens=4)


def _open_gate() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


def _resolve(name: str) -> ModelView:
    if name not in MODELS:
        raise ModelNotFound(f"The model '{name[:80]}' does not exist; nearest: tiny.")
    return MODELS[name]


async def _import(path: str, name: str | None) -> ModelView:
    if not path.startswith("/models/"):
        raise InferenceError("not a file", code="bad_file")
    return dataclasses.replace(MODELS["tiny"], id=name or "imported")


def services_of(script: Script, access: Access, limits: Limits) -> Services:
    async def done(name: str) -> None:
        return None

    async def unloaded(name: str) -> bool:
        return True

    return Services(
        chat=ChatFacet(generate=script.generate, embed=script.embed),
        models=ModelsFacet(
            list=lambda: list(MODELS.values()),
            resolve=_resolve,
            load=done,
            unload=unloaded,
            import_file=_import,
            remove=done,
        ),
        state=StateFacet(
            name="attic",
            version="0.1.0",
            ready=lambda: True,
            status=lambda: {"name": "attic"},
            ps=dict,
            metrics=lambda: b"up 1\n",
            observe=lambda *row: script.observed.append(row),
        ),
        access=access,
        limits=limits,
        stop=script.stopped.set,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """A listener that runs, the script behind it, and ways to talk to it."""

    listener: Listener
    script: Script
    session: aiohttp.ClientSession
    writers: list[asyncio.StreamWriter] = dataclasses.field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.port}"

    async def ask(
        self, method: str, path: str, body: Any = None, *, data: bytes | None = None, **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, parsed body (text when it is not JSON) and headers, names in lower case.

        Keyword arguments are headers: `x_request_id` stands for `x-request-id`.
        """
        if body is not None:
            data = json.dumps(body).encode()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        if data is not None:
            names.setdefault("content-type", "application/json")
        async with self.session.request(
            method,
            self.url + path,
            data=None if data is None else io.BytesIO(data),
            headers=names,
            allow_redirects=False,
        ) as answer:
            text = await answer.text()
            found = {name.lower(): value for name, value in answer.headers.items()}
            is_json = answer.content_type == "application/json" and text
            return answer.status, json.loads(text) if is_json else text, found

    async def raw(self, data: bytes, *, timeout_s: float = 10.0) -> bytes:
        """Everything the peer answers to `data` until it closes the connection."""
        reader, writer = await self.connect()
        writer.write(data)
        async with asyncio.timeout(timeout_s):
            answer = await reader.read()
        writer.close()
        return answer

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A raw connection; the fixture closes it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.listener.port)
        self.writers.append(writer)
        return reader, writer

    async def raw_or_reset(self, data: bytes) -> bytes:
        """Like `raw`, with nothing for a connection that is reset."""
        try:
            return await self.raw(data)
        except ConnectionError:
            return b""

    async def events(self, path: str, body: dict[str, Any], **headers: str) -> list[str]:
        """The blocks of an event stream, comments included."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.post(self.url + path, json=body, headers=names) as answer:
            text = await answer.text()
            assert answer.headers["content-type"].startswith("text/event-stream"), text
            return [block for block in text.split("\n\n") if block]


StartSurface = Callable[..., Awaitable[Surface]]


@pytest.fixture
def token() -> str:
    """The control token of every surface."""
    return TOKEN


@pytest.fixture
async def start() -> AsyncIterator[StartSurface]:
    """Starts surfaces with the access, limits and other parts of Services given; all are closed in the end."""
    surfaces: list[Surface] = []

    async def _start(
        access: Access | None = None,
        limits: Limits | None = None,
        ssl_context: ssl.SSLContext | None = None,
        **parts: Any,
    ) -> Surface:
        script = Script()
        access = access or Access(hosts=frozenset({"attic.local"}), control_token=TOKEN)
        services = dataclasses.replace(services_of(script, access, limits or Limits()), **parts)
        listener = Listener(services, [("127.0.0.1", 0)], ssl_context=ssl_context)
        await listener.start()
        surface = Surface(listener=listener, script=script, session=aiohttp.ClientSession())
        surfaces.append(surface)
        return surface

    yield _start
    for surface in surfaces:
        await surface.session.close()
        for writer in surface.writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await surface.listener.close(0)


@pytest.fixture
async def surface(start: StartSurface) -> Surface:
    """A surface with the defaults."""
    return await start()
