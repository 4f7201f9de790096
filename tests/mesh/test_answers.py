"""What a client of one peer reads while the peer behind it breaks: streams and whole answers over real HTTP."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from inference.chat import TextPrompt
from inference.openai.answer import DONE
from tests.fixtures.fake_worker import expected_text
from tests.fixtures.holders import Ingress, Mesh, until
from tests.mesh.test_elsewhere import two
from web.listener import Listener
from web.services import Access, ChatFacet, ModelsFacet, Services, StateFacet

BODY: dict[str, Any] = {"model": "chat", "prompt": "a b c", "seed": 7, "max_tokens": 500}
LONG = "--rate 100 --tokens 100000 --context 200000"


def answer(count: int, *, is_split: bool = False) -> str:
    return expected_text(TextPrompt(text="a b c"), 7, count, is_split=is_split)


class Client:
    """Asks the client port of an ingress."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.session = session

    async def ask(self, body: dict[str, Any], **headers: str) -> tuple[int, Any, dict[str, str]]:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.post(f"{self.url}/v1/completions", json=body, headers=names) as got:
            return got.status, await got.json(), {n.lower(): v for n, v in got.headers.items()}

    async def stream(self, body: dict[str, Any], **headers: str) -> tuple[bytes, dict[str, str]]:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.post(f"{self.url}/v1/completions", json=body | {"stream": True}, headers=names) as got:
            return await got.read(), {n.lower(): v for n, v in got.headers.items()}


@asynccontextmanager
async def client_of(ingress: Ingress) -> AsyncIterator[Client]:
    async def nothing(name: str) -> Any:
        raise AssertionError("not asked")

    services = Services(
        chat=ChatFacet(generate=ingress.dispatcher.generate, embed=ingress.dispatcher.embed),
        models=ModelsFacet(
            list=list,
            resolve=ingress.known.resolve,
            load=nothing,
            unload=nothing,
            import_file=lambda path, name: nothing(path),
            remove=nothing,
        ),
        state=StateFacet(
            name="ingress",
            version="0",
            ready=lambda: True,
            status=dict,
            ps=dict,
            metrics=lambda: b"",
            observe=lambda *row: None,
        ),
        access=Access(hosts=frozenset()),
    )
    listener = Listener(services, [("127.0.0.1", 0)])
    await listener.start()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
            yield Client(f"http://127.0.0.1:{listener.port}", session)
    finally:
        await listener.close(0)


def events(wire: bytes) -> list[dict[str, Any]]:
    """The JSON events; [DONE] is the end and comes once, or not at all."""
    assert wire.count(DONE) <= 1 and (DONE not in wire or wire.endswith(DONE))
    lines = [line[6:] for line in wire.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


async def test_stream_that_moves_reads_as_one_that_did_not() -> None:
    async with Mesh() as mesh:
        attic, tower, ingress = await two(mesh, "--rate 200 --tokens 40 --split")
        async with client_of(ingress) as client:
            body = BODY | {"stream_options": {"include_usage": True}}
            attic.cable.cut_after_events = 15
            wire, headers = await client.stream(body)
        *found, usage = events(wire)
        assert attic.cable.cuts == 1 and len(tower.engines) == 1
        assert "".join(e["choices"][0]["text"] for e in found) == answer(40, is_split=True)
        assert [r for e in found if (r := e["choices"][0]["finish_reason"])] == ["stop"]
        assert len({(e["id"], e["created"], e["model"]) for e in found}) == 1
        assert (usage["usage"]["completion_tokens"], usage["usage"]["prompt_tokens"]) == (40, 4)
        assert wire.endswith(b": served-by attic, continued-on tower\n\n" + DONE)
        assert (headers["x-llm-router-peer"], headers["x-llm-router-attempts"]) == ("attic", "1")
        assert b"mesh" not in wire


async def test_chat_that_moves_has_its_role_once() -> None:
    async with Mesh() as mesh:
        attic, _, ingress = await two(mesh, "--rate 200 --tokens 20")
        attic.cable.cut_after_events = 5
        body = {"model": "chat", "messages": [{"role": "user", "content": "a"}], "stream": True}
        async with (
            client_of(ingress) as client,
            client.session.post(f"{client.url}/v1/chat/completions", json=body) as got,
        ):
            wire = await got.read()
        roles = [e["choices"][0]["delta"].get("role") for e in events(wire)]
        assert attic.cable.cuts == 1 and roles.count("assistant") == 1 and roles[0] == "assistant"


async def test_whole_answer_that_moves_is_whole() -> None:
    async with Mesh() as mesh:
        attic, _, ingress = await two(mesh, "--rate 200 --tokens 40 --split")
        attic.cable.cut_after_events = 9
        async with client_of(ingress) as client:
            status, found, headers = await client.ask(BODY, x_llm_router_explain="1")
        assert status == 200 and found["choices"][0]["text"] == answer(40, is_split=True)
        assert found["usage"]["completion_tokens"] == 40 and found["choices"][0]["finish_reason"] == "stop"
        assert (headers["x-llm-router-peer"], headers["x-llm-router-continued-on"]) == ("attic", "tower")
        assert [c["peer"] for c in json.loads(headers["x-llm-router-candidates"])] == ["attic", "tower"]


async def test_stream_that_nobody_can_continue_ends_with_an_error_and_without_done() -> None:
    async with Mesh() as mesh:
        attic, ingress = await mesh.holder("attic", LONG), await mesh.ingress()
        async with (
            client_of(ingress) as client,
            client.session.post(f"{client.url}/v1/completions", json=BODY | {"stream": True}) as got,
        ):
            wire = b""
            async for data in got.content.iter_any():
                wire += data
                if wire.count(b"data:") > 5:
                    attic.cable.cut()
        *found, last = events(wire)
        assert (last["error"]["code"], last["error"]["type"]) == ("stream_interrupted", "server_error")
        assert DONE not in wire and not any(e["choices"][0]["finish_reason"] for e in found)


async def test_whole_answer_that_nobody_can_finish_is_an_error() -> None:
    async with Mesh() as mesh:
        attic, ingress = await mesh.holder("attic", "--tokens 50"), await mesh.ingress()
        async with client_of(ingress) as client:
            attic.cable.cut()
            status, found, headers = await client.ask(BODY)
        assert (status, found["error"]["code"]) == (503, "model_unavailable") and headers["retry-after"]


async def test_client_that_hangs_up_frees_the_slot_two_machines_away() -> None:
    async with Mesh() as mesh:
        attic, ingress = await mesh.holder("attic", LONG), await mesh.ingress()
        async with client_of(ingress) as client:
            got = await client.session.post(f"{client.url}/v1/completions", json=BODY | {"stream": True})
            await got.content.readany()
            await until(lambda: attic.engines[0].stats.get("active") == 1)
            got.close()
            await until(lambda: not attic.local.active() and attic.engines[0].stats.get("active") == 0)


async def test_deadline_of_the_client_is_held_two_machines_away() -> None:
    async with Mesh() as mesh:
        attic, ingress = await mesh.holder("attic", "--prefill 60"), await mesh.ingress()
        async with client_of(ingress) as client:
            status, found, _ = await client.ask(BODY, x_llm_router_timeout="0.5")
        assert (status, found["error"]["code"]) == (504, "timeout")
        await until(lambda: not attic.local.active())


async def test_what_peers_say_to_each_other_is_ignored_from_a_client() -> None:
    said = base64.urlsafe_b64encode(json.dumps({"deadline_s": 0.001, "sha256": "ff"}).encode()).decode()
    async with Mesh() as mesh:
        _, _, ingress = await two(mesh, "--tokens 12")
        async with client_of(ingress) as client:
            body = BODY | {"mesh": {"produced": [1, 2], "draws": 2, "id": "x", "kind": "chat"}}
            status, found, headers = await client.ask(body, x_mesh_hop="1", x_mesh_context=said)
        assert status == 200 and found["choices"][0]["text"] == answer(12)
        assert "x-llm-router-candidates" not in headers


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_vectors_say_who_made_them(encoding: str) -> None:
    async with Mesh() as mesh:
        attic, _, ingress = await two(mesh, "")
        attic.cable.cut()
        body = {"model": "embed", "input": ["a", "b"], "encoding_format": encoding}
        async with (
            client_of(ingress) as client,
            client.session.post(f"{client.url}/v1/embeddings", json=body) as got,
        ):
            found = await got.json()
        assert got.headers["x-llm-router-peer"] == "tower" and got.headers["x-llm-router-attempts"] == "2"
        assert [d["index"] for d in found["data"]] == [0, 1]
