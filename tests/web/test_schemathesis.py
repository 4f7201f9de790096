"""Every route against its description: schemathesis reads `/openapi.json` and sends what fits it and what does not.

The listener and all handlers are real, the facets small fakes. The data come from a fixed seed: what fails once fails
again. Found wrong are: a 5xx, a status, content type or body that is not described, data that should have been refused
and were not, a route that answers without or with a made-up key, a method that is not refused with 405.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from inference.chat import Chunk, EmbeddingRequest, Embeddings, Generation, Started
from inference.errors import ModelNotFound
from tests.fixtures.managed import AGENT_TOKEN, Managed
from web.app import route_table
from web.listener import Listener
from web.openapi import document
from web.services import Access, Caller, ChatFacet, ModelsFacet, ModelView, Services

TOKEN = "control-token-of-the-tests"
EXAMPLES = 8
RUN_S = 100.0
# Each route is in one of these; each is a run of its own, so that they can be made side by side.
GROUPS = {
    "machines": "^/api/(agents|nodes|health|backends|mesh)",
    "rest": "^/(?!api/(agents|nodes|health|backends|mesh))",
}
# A body that is too long is refused before anybody looks whether it has the right form.
CONFIG = """
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 428, 429]
"""
TINY = ModelView(id="tiny", created=1, size_bytes=545_000, ready=True, loaded=True, context=128)

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "ignored_auth",
)


async def _generate(generation: Generation, caller: Caller) -> AsyncIterator[Chunk]:
    yield Chunk(started=Started(prompt_tokens=3, cached_tokens=0, peer="tower"))
    yield Chunk(text="Hello", tokens=(1,), draws=1, finish_reason="stop")


async def _embed(request: EmbeddingRequest, caller: Caller) -> Embeddings:
    return Embeddings(vectors=(bytes(8),) * len(request.inputs), dim=2, prompt_tokens=3)


def _resolve(name: str) -> ModelView:
    """Every name that is not too odd is a model, so that the handlers are reached."""
    if len(name) > 200:
        raise ModelNotFound(f"The model '{name[:80]}' does not exist; nearest: tiny.")
    return replace(TINY, id=name, capabilities=("chat", "completion", "embedding"))


async def _done(name: str) -> None:
    return None


async def _unloaded(name: str) -> bool:
    return True


async def _import(path: str, name: str | None) -> ModelView:
    return replace(TINY, id=name or "imported")


def _services() -> Services:
    services = Managed(knows_all=True).services(TOKEN)
    return replace(
        services,
        chat=ChatFacet(generate=_generate, embed=_embed),
        models=ModelsFacet(
            list=lambda: [TINY],
            resolve=_resolve,
            load=_done,
            unload=_unloaded,
            import_file=_import,
            remove=_done,
        ),
        access=Access(hosts=frozenset(), loopback="key", control_token=TOKEN),
    )


def test_every_route_is_in_one_group() -> None:
    for route in route_table(_services()):
        assert sum(bool(re.match(pattern, route.path)) for pattern in GROUPS.values()) == 1, route.path


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
async def test_every_route_keeps_to_its_description(tmp_path: Path, group: str) -> None:
    services = _services()
    routes = route_table(services)
    listener = Listener(services, [("127.0.0.1", 0)], routes)
    await listener.start()
    try:
        # From a file: of a description it was served, schemathesis leaves out the route that served it.
        (tmp_path / "openapi.json").write_text(json.dumps(document(routes, "0.3.0")))
        (tmp_path / "schemathesis.toml").write_text(CONFIG)
        status, output = await _run(f"http://127.0.0.1:{listener.port}", GROUPS[group], tmp_path)
    finally:
        await listener.close(0)
    assert status == 0, output
    tested = sum(bool(re.match(GROUPS[group], route.path)) for route in routes)
    assert f"Tested: {tested}\n" in output, output


async def _run(url: str, paths: str, folder: Path) -> tuple[int, str]:
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        "openapi.json",
        *("--url", url),
        *("--include-path-regex", paths),
        *("-H", f"Authorization: Bearer {TOKEN}"),
        *("-H", f"X-Agent-Token: {AGENT_TOKEN}"),
        *("--checks", ",".join(CHECKS)),
        *("--phases", "examples,coverage,fuzzing"),
        *("--max-examples", str(EXAMPLES)),
        *("--seed", "20261125", "--generation-deterministic", "--no-shrink", "--continue-on-failure"),
        *("--workers", "1", "--request-timeout", "20", "--warnings", "off", "--no-color"),
    ]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(RUN_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, output.decode(errors="replace")
