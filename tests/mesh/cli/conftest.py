"""A fake peer over real HTTP, and the command line run against it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from click.testing import CliRunner, Result

from mesh import control
from mesh.cli.entry import program

Run = Callable[..., Awaitable[Result]]
HELLO: dict[str, Any] = {
    "id": "hello",
    "created": 1,
    "size_bytes": 2_400_000,
    "ready": True,
    "loaded": False,
    "context": 2048,
    "capabilities": ["chat", "completion"],
    "quantization": "Q8_0",
    "sha256": "0" * 64,
    "aliases": [],
}
QWEN = HELLO | {"id": "hf/qwen/q4.gguf", "size_bytes": 491_000_000, "loaded": True, "aliases": ["qwen"]}


@dataclass
class FakePeer:
    """Answers like a peer, from these fields, and remembers what it was asked."""

    token: str = "t0ken"
    models: list[dict[str, Any]] = field(default_factory=lambda: [dict(QWEN), dict(HELLO)])
    words: list[str] = field(default_factory=lambda: ["Hello", " there", "!"])
    loaded: list[dict[str, Any]] = field(default_factory=lambda: [{"model": "hello", "memory_bytes": 2_400_000}])
    requests: list[dict[str, Any]] = field(default_factory=list)
    refusal: tuple[int, object] | None = None
    ends_with: str = "data: [DONE]\n\n"
    hangs: bool = False
    was_left: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    on_shutdown: Callable[[], None] = lambda: None

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer)
        return app

    async def answer(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        self.asked.append((request.method, request.rel_url.raw_path, json.loads(text) if text else None))
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response({"error": "a key is needed"}, status=401)
        if self.refusal is not None:
            status, body = self.refusal
            return web.json_response(body, status=status)
        match request.method, request.path:
            case "POST", "/v1/chat/completions":
                return await self.chat(request, self.asked[-1][2])
            case "GET", "/api/models":
                return web.json_response({"models": self.models})
            case "GET", "/api/status":
                return web.json_response({"name": "tower", "uptime_s": 90.0, "memory": {"total_bytes": 8 * 10**9}})
            case "GET", "/api/mesh":
                return web.json_response({"error": "this peer has no mesh"}, status=404)
            case "GET", "/api/ps":
                return web.json_response({"models": self.loaded, "requests": self.requests})
            case "POST", "/api/models/import":
                return web.json_response(HELLO | {"id": "imported"}, status=201)
            case "POST", "/api/shutdown":
                self.on_shutdown()
                return web.json_response({"stopping": True}, status=202)
            case _:
                return web.json_response({})

    async def chat(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not body.get("stream"):
            return web.json_response({"choices": [{"message": {"role": "assistant", "content": "".join(self.words)}}]})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": waiting\n\n")
        for word in self.words:
            chunk = {"choices": [{"index": 0, "delta": {"content": word}}]}
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        if self.hangs:
            await self.until_left()
        await response.write(b'data: {"choices": [], "usage": {}}\n\n' + self.ends_with.encode())
        return response

    async def until_left(self) -> None:
        """Waits for the client to hang up: aiohttp's test server cancels the handler then."""
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.was_left.set()
            raise


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith(("LLM_", "OPENAI_", "ROUTER_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LLM_ROUTER_DATA_DIR", str(tmp_path))


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[FakePeer]:
    """A fake peer that control.json of the data folder points at."""
    fake = FakePeer()
    async with TestServer(fake.app()) as server:
        assert server.port is not None
        control.publish(tmp_path, port=server.port, url=str(server.make_url("")), version="0.1.0", token=fake.token)
        yield fake


@pytest.fixture
def run() -> Run:
    """Runs a command line in a thread, so that the fake peer can answer meanwhile."""

    async def run(*arguments: str, stdin: str = "") -> Result:
        return await asyncio.to_thread(CliRunner().invoke, program, arguments, input=stdin)

    return run
