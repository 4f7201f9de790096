"""The route table and what each route asks of its caller, over real sockets."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from web.app import make_app, route_table
from web.guards import Policy
from web.inflight import InFlight
from web.route import Route
from web.services import Access


async def test_a_route_without_policy_does_not_start(surface: Any) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response()

    services = surface.listener._services
    with pytest.raises(TypeError, match="/x has no policy"):
        make_app(services, InFlight(), [Route("GET", "/x", handler, None)])  # type: ignore[arg-type]


async def test_a_handler_with_two_policies_does_not_start(surface: Any) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response()

    services = surface.listener._services
    routes = [Route("GET", "/x", handler, Policy.ADMIN), Route("GET", "/y", handler, Policy.PUBLIC)]
    with pytest.raises(TypeError, match="/y has a handler that has another policy elsewhere"):
        make_app(services, InFlight(), routes)


def test_what_only_the_machines_own_command_line_may_do_is_little(surface: Any) -> None:
    table = route_table(surface.listener._services)
    assert {(route.method, route.path) for route in table if route.policy is Policy.CONTROL} == {
        ("POST", "/api/shutdown"),
        ("POST", "/api/models/import"),
        ("POST", "/api/backends"),
        ("POST", "/api/mesh/join"),
        ("POST", "/api/mesh/leave"),
        ("GET", "/api/mesh/identity"),
    }


def test_old_and_new_spelling_are_the_same_routes(surface: Any) -> None:
    table = route_table(surface.listener._services)
    agents = {(r.method, r.path, r.policy, r.owned) for r in table if r.path.startswith("/api/agents")}
    nodes = {(r.method, r.path, r.policy, r.owned) for r in table if r.path.startswith("/api/nodes")}
    assert agents == {(method, path.replace("nodes", "agents"), *rest) for method, path, *rest in nodes}
    assert len(agents) == 9


async def test_every_route_that_is_served_is_in_the_table(surface: Any) -> None:
    services = surface.listener._services
    table = {(route.method, route.path.replace(":.+", "")) for route in route_table(services)}
    served = {
        (route.method, route.resource.canonical)
        for route in make_app(services, InFlight()).router.routes()
        if route.method != "HEAD" and route.resource is not None
    }
    assert served == table


async def test_control_routes_want_the_token(surface: Any, token: str) -> None:
    calls: list[tuple[str, str, Any, int]] = [
        ("POST", "/api/models/load", {"model": "tiny"}, 200),
        ("POST", "/api/models/unload", {"model": "tiny"}, 200),
        ("POST", "/api/models/import", {"path": "/models/x.gguf", "name": "x"}, 201),
        ("DELETE", "/api/models/hf/a/b.gguf", None, 200),
        ("POST", "/api/shutdown", None, 202),
    ]
    for method, path, body, expected in calls:
        status, answer, headers = await surface.ask(method, path, body)
        assert (status, list(answer), headers["www-authenticate"]) == (401, ["error"], "Bearer")
        assert not surface.script.stopped.is_set()
        status, answer, _ = await surface.ask(method, path, body, authorization=f"Bearer {token}")
        assert status == expected, answer
    assert surface.script.stopped.is_set()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/models/load", {}, 400),
        ("/api/models/load", {"model": 5}, 400),
        ("/api/models/load", {"model": ""}, 400),
        ("/api/models/load", [], 400),
        ("/api/models/load", {"model": "nope"}, 404),
        ("/api/models/import", {"path": "a\x00b"}, 400),
        ("/api/models/import", {"path": "x" * 5000}, 400),
    ],
)
async def test_a_bad_control_request_is_an_error_in_text(
    surface: Any, token: str, path: str, body: Any, status: int
) -> None:
    found, answer, _ = await surface.ask("POST", path, body, authorization=f"Bearer {token}")
    assert (found, list(answer)) == (status, ["error"])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/health", {"status": "ok"}),
        ("/ready", {"status": "ready"}),
        ("/.well-known/llm-router", {"version": "0.1.0", "mesh": None, "peer_port": None}),
        ("/api/status", {"name": "attic"}),
        ("/api/ps", {}),
        ("/metrics", "up 1\n"),
    ],
)
async def test_the_plain_routes_answer(surface: Any, path: str, expected: Any) -> None:
    status, answer, _ = await surface.ask("GET", path)
    assert (status, answer) == (200, expected)
    status, answer, _ = await surface.ask("HEAD", path)
    assert (status, answer) == (200, "") or answer is None


async def test_all_models_are_listed_for_the_command_line(surface: Any) -> None:
    _, answer, _ = await surface.ask("GET", "/api/models")
    assert [model["id"] for model in answer] == ["tiny", "hf/a/b.gguf", "embed", "stuck"]
    assert answer[0]["size_bytes"] == 545_000


async def test_a_network_without_key_sees_only_what_is_public(start: Any) -> None:
    """The tests have no second machine: a sign of a proxy makes a caller as foreign as one."""
    surface = await start(access=Access(hosts=frozenset()))
    found = {
        path: (await surface.ask("GET", path, via="1.1 proxy"))[0]
        for path in ("/health", "/ready", "/v1/models", "/metrics", "/api/status", "/dashboard")
    }
    assert found == {
        "/health": 200,
        "/ready": 200,
        "/v1/models": 401,
        "/metrics": 401,
        "/api/status": 401,
        "/dashboard": 200,
    }


async def test_an_open_listener_answers_inference_only(start: Any) -> None:
    surface = await start(access=Access(hosts=frozenset(), open_to_lan=True))
    for header in ({}, {"authorization": "Bearer loopback-needs-no-key"}):  # clients that insist on a key send that
        assert (await surface.ask("GET", "/v1/models", via="1.1 proxy", **header))[0] == 200
    assert (await surface.ask("GET", "/v1/models", via="1.1 proxy", authorization="Bearer sk-mesh-any"))[0] == 401
    assert (await surface.ask("GET", "/api/status", via="1.1 proxy"))[0] == 401


async def test_the_dashboard_is_a_page_that_can_run_nothing(surface: Any) -> None:
    status, _, headers = await surface.ask("GET", "/")
    assert (status, headers["location"]) == (302, "/dashboard")
    status, page, headers = await surface.ask("GET", "/dashboard")
    assert status == 200 and page.startswith("<!doctype html>")
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["x-content-type-options"] == "nosniff"


async def test_a_configured_origin_may_use_v1_only(start: Any) -> None:
    origin = "https://chat.example"
    surface = await start(access=Access(hosts=frozenset(), origins=frozenset({origin})))
    status, _, headers = await surface.ask(
        "OPTIONS", "/v1/chat/completions", Origin=origin, **{"Access-Control-Request-Method": "POST"}
    )
    assert (status, headers["access-control-allow-origin"], headers["vary"]) == (204, origin, "Origin")
    assert "access-control-allow-credentials" not in headers
    status, _, headers = await surface.ask("GET", "/v1/models", Origin=origin)
    assert (status, headers["access-control-allow-origin"]) == (200, origin)
    _, _, headers = await surface.ask("GET", "/api/status", Origin=origin)
    assert "access-control-allow-origin" not in headers
    status, _, _ = await surface.ask("OPTIONS", "/api/status", Origin=origin)
    assert status == 403


async def test_models_never_touch_the_engine(surface: Any) -> None:
    surface.script.before_start.clear()
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
    waiting = asyncio.create_task(surface.ask("POST", "/v1/chat/completions", chat))
    await surface.script.started.wait()
    assert (await surface.ask("GET", "/v1/models"))[0] == 200
    assert len(surface.script.generations) == 1
    surface.script.before_start.set()
    assert (await waiting)[0] == 200


async def test_closing_lets_a_running_answer_end(surface: Any) -> None:
    surface.script.before_piece.clear()
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    reader, writer = await surface.connect()
    await _post(writer, chat)
    await reader.readuntil(b'"role":"assistant"')
    closing = asyncio.create_task(surface.listener.close(30))
    await asyncio.sleep(0)
    surface.script.before_piece.set()
    assert (await reader.read()).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    await closing
    with pytest.raises(OSError):
        await surface.connect()


@pytest.mark.parametrize("stream", [True, False])
async def test_closing_tells_an_answer_that_takes_too_long(surface: Any, stream: bool) -> None:
    surface.script.before_piece.clear()
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    reader, writer = await surface.connect()
    await _post(writer, chat)
    await surface.script.started.wait()
    if stream:
        await reader.readuntil(b'"role":"assistant"')
    await surface.listener.close(0.01)
    answer = await reader.read()
    assert b"This peer is stopping" in answer
    assert b"[DONE]" not in answer
    assert surface.script.closed.is_set()
    assert answer.startswith(b"HTTP/1.1 503 ") is not stream


async def _post(writer: asyncio.StreamWriter, chat: dict[str, Any]) -> None:
    body = json.dumps(chat).encode()
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body))
    writer.write(body)
    await writer.drain()


async def test_embeddings_say_which_peer_made_them(surface: Any) -> None:
    status, answer, headers = await surface.ask("POST", "/v1/embeddings", {"model": "embed", "input": ["a", "b"]})
    assert (status, headers["x-llm-router-peer"]) == (200, "attic")
    assert [row["embedding"] for row in answer["data"]] == [[1.0, 0.0]] * 2
