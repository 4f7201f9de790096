"""llama-cpp-python's `Llama` behind a lock, over HTTP: `python -m benchmarks.locked MODEL PORT CONTEXT THREADS`."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import web
from llama_cpp import Llama


def main() -> None:
    """Serve until killed."""
    model, port, context, threads = sys.argv[1], *map(int, sys.argv[2:5])
    llama = Llama(model, n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False)
    lock = threading.Lock()
    waiting = ThreadPoolExecutor(64)  # every request that waits for the lock holds a thread

    def pieces(body: dict[str, Any]) -> Iterator[bytes]:
        with lock:
            made = 0
            bias = {str(llama.token_eos()): -100.0} if body.get("ignore_eos") else {}
            for chunk in llama.create_chat_completion(
                body["messages"], max_tokens=body["max_tokens"], temperature=0.0, stream=True, logit_bias=bias
            ):
                made += 1
                yield b"data: " + json.dumps(chunk).encode() + b"\n\n"
            usage = {"prompt_tokens": llama.n_tokens - made, "completion_tokens": body["max_tokens"]}
            yield b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n"

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        loop = asyncio.get_running_loop()
        iterator = pieces(body)
        while (piece := await loop.run_in_executor(waiting, next, iterator, None)) is not None:
            await response.write(piece)
        return response

    async def health(request: web.Request) -> web.Response:
        return web.Response(text="ok")

    app = web.Application()
    app.add_routes([web.post("/v1/chat/completions", chat), web.get("/health", health)])
    web.run_app(app, host="127.0.0.1", port=port, print=None)


if __name__ == "__main__":
    main()
