"""Agents and nodes over HTTP, as scripts for the reference call them: both spellings, statuses, what is refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import pytest

from tests.fixtures.managed import AGENT_TOKEN, SERVER, Managed
from tests.fixtures.scripted_mesh import ATTIC
from web.listener import Listener

TOKEN = "control-token-of-the-tests"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
BOTH = pytest.mark.parametrize("path", ["/api/agents", "/api/nodes"])
SERVER_BODY: dict[str, Any] = {
    "machine_name": "box",
    "ip_address": "192.168.1.40",
    "runtime_version": "0.5.1",
    "runtime_port": 11434,
    "gpu_available": True,
    "gpu_devices": [{"model": "RTX 4090", "count": 2, "memory": 25_769_803_776}],
}
METRICS = {"cpu_usage": 20.5, "memory_usage": 30, "active_requests": 1, "avg_response_time_ms": 120.0}


@dataclass(frozen=True)
class Site:
    """A peer that coordinates."""

    managed: Managed
    url: str
    session: aiohttp.ClientSession

    async def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] = ADMIN) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body)
        async with self.session.request(method, self.url + path, data=data, headers=headers) as got:
            text = await got.text()
            return got.status, json.loads(text) if text else None


@asynccontextmanager
async def _site(*, has_agents: bool = True) -> AsyncIterator[Site]:
    managed = Managed()
    services = managed.services(TOKEN)
    listener = Listener(services if has_agents else replace(services, agents=None), [("127.0.0.1", 0)])
    await listener.start()
    async with aiohttp.ClientSession() as session:
        yield Site(managed, f"http://127.0.0.1:{listener.port}", session)
    await listener.close(0)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with _site() as site:
        yield site


@BOTH
async def test_a_server_registers_and_gets_its_token(site: Site, path: str) -> None:
    """F162-F163: 201 for a new one, 200 "updated" for one that is known."""
    assert await site.ask("POST", path, SERVER_BODY) == (
        201,
        {"agent_id": SERVER, "node_id": SERVER, "status": "registered", "agent_token": AGENT_TOKEN},
    )
    status, answer = await site.ask("POST", path, SERVER_BODY | {"machine_name": "known"})
    assert (status, answer["status"]) == (200, "updated")
    assert site.managed.asked[0] == ("register", SERVER_BODY)


async def test_a_server_without_gpu_is_refused_in_the_words_of_the_facet(site: Site) -> None:
    """C11."""
    status, answer = await site.ask("POST", "/api/agents", SERVER_BODY | {"gpu_devices": []})
    assert status == 403 and "GPU hardware is required for agent registration" in answer["error"]


async def test_only_the_command_line_of_this_machine_registers_a_server_of_this_machine(site: Site) -> None:
    assert (await site.ask("POST", "/api/backends", SERVER_BODY))[0] == 201
    assert (await site.ask("POST", "/api/backends", SERVER_BODY, {}))[0] == 401


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"machine_name": None}, "'machine_name'"),
        ({"machine_name": " "}, "empty"),
        ({"machine_name": "a\nb"}, "printed"),
        ({"machine_name": "x" * 129}, "128"),
        ({"runtime_port": 0}, ">= 1"),
        ({"runtime_port": 65536}, "<= 65535"),
        ({"runtime_port": "11434"}, "an integer"),
        ({"runtime_port": True}, "an integer"),
        ({"ip_address": 5}, "'ip_address'"),
        ({"gpu_available": "yes"}, "a boolean"),
        ({"gpu_devices": {}}, "an array"),
        ({"gpu_devices": [5]}, "'gpu_devices[0]'"),
        ({"gpu_devices": [{"model": "a"}]}, "'gpu_devices[0].count'"),
        ({"gpu_devices": [{"model": "a", "count": 1.5}]}, "an integer"),
        ({"gpu_devices": [{"model": "a", "count": 1}] * 65}, "64"),
    ],
)
async def test_a_registration_that_has_not_the_form_is_400_and_names_what_is_wrong(
    site: Site, change: dict[str, Any], word: str
) -> None:
    body = {name: value for name, value in (SERVER_BODY | change).items() if value is not None}
    status, answer = await site.ask("POST", "/api/agents", body)
    assert (status, list(answer), site.managed.asked) == (400, ["error"], [])
    assert word in answer["error"]


@pytest.mark.parametrize("name", ["agent_id", "node_id"])
async def test_a_heartbeat_may_name_its_agent_either_way(site: Site, name: str) -> None:
    """F166."""
    body = {name: SERVER, "cpu_usage": 1, "memory_usage": 2, "active_requests": 0}
    assert (await site.ask("POST", "/api/health", body, {"X-Agent-Token": AGENT_TOKEN}))[0] == 200
    told = {"agent_id": SERVER, "cpu_usage": 1, "memory_usage": 2, "active_requests": 0}
    assert site.managed.asked == [("heartbeat", AGENT_TOKEN, told)]


async def test_a_heartbeat_needs_its_own_token(site: Site) -> None:
    """F166: no or a bad token 401, a token of another agent 403."""
    assert (await site.ask("POST", "/api/health", {"agent_id": SERVER}, {}))[0] == 401
    assert (await site.ask("POST", "/api/health", {"agent_id": SERVER}, {"X-Agent-Token": "agt_x"}))[0] == 401
    assert (await site.ask("POST", "/api/health", {"agent_id": ATTIC}, {"X-Agent-Token": AGENT_TOKEN}))[0] == 403
    assert (await site.ask("POST", "/api/health", {}, {"X-Agent-Token": AGENT_TOKEN}))[0] == 400
    both = {"agent_id": SERVER, "node_id": ATTIC}
    assert (await site.ask("POST", "/api/health", both, {"X-Agent-Token": AGENT_TOKEN}))[0] == 400


@BOTH
async def test_metrics_are_told_by_an_administrator_or_by_the_agent_itself(site: Site, path: str) -> None:
    """F167: 204; unknown id 404."""
    url = f"{path}/{SERVER}/metrics"
    assert await site.ask("POST", url, METRICS | {"node_id": SERVER}) == (204, None)
    assert site.managed.asked == [("metrics", SERVER, METRICS | {"agent_id": SERVER})]
    assert (await site.ask("POST", f"{path}/nobody/metrics", METRICS))[0] == 404
    site.managed.asked.clear()
    assert await site.ask("POST", url, METRICS, {"X-Agent-Token": AGENT_TOKEN}) == (204, None)
    assert [call[0] for call in site.managed.asked] == ["heartbeat", "metrics"]
    for headers, status in (({}, 401), ({"X-Agent-Token": "agt_x"}, 401)):
        assert (await site.ask("POST", url, METRICS, headers))[0] == status
    other = f"{path}/{ATTIC}/metrics"
    assert (await site.ask("POST", other, METRICS, {"X-Agent-Token": AGENT_TOKEN}))[0] == 403


@pytest.mark.parametrize(
    "change",
    [{"cpu_usage": 101}, {"cpu_usage": -1}, {"memory_usage": 100.1}, {"active_requests": -1}, {"active_requests": 1.5},
     {"cpu_usage": "5"}, {"cpu_usage": None}, {"avg_response_time_ms": -1}],
)  # fmt: skip
async def test_metrics_that_cannot_be_are_400(site: Site, change: dict[str, Any]) -> None:
    """F167: a percentage outside 0..100 is 400."""
    status, answer = await site.ask("POST", f"/api/agents/{SERVER}/metrics", METRICS | change)
    assert (status, list(answer), site.managed.asked) == (400, ["error"], [])


@BOTH
async def test_people_may_rename_tag_and_annotate(site: Site, path: str) -> None:
    """F83."""
    body = {"custom_name": " loft ", "tags": ["", "warm"], "notes": None}
    status, answer = await site.ask("PUT", f"{path}/{SERVER}/settings", body)
    assert (status, answer["agent_id"], answer["node_id"], answer["custom_name"]) == (200, SERVER, SERVER, " loft ")
    assert site.managed.asked == [("settings", SERVER, body)]
    assert (await site.ask("PUT", f"{path}/nobody/settings", {}))[0] == 404
    for bad in ({"custom_name": "x" * 65}, {"tags": "warm"}, {"tags": [1]}, {"tags": ["a"] * 33}, {"notes": 5}):
        assert (await site.ask("PUT", f"{path}/{SERVER}/settings", bad))[0] == 400


@BOTH
async def test_disconnect_and_enable_are_accepted(site: Site, path: str) -> None:
    """F84."""
    assert (await site.ask("POST", f"{path}/{SERVER}/disconnect"))[0] == 202
    assert (await site.ask("POST", f"{path}/{SERVER}/enable", {}))[0] == 202
    assert site.managed.asked == [("disconnect", SERVER), ("enable", SERVER)]
    assert (await site.ask("POST", f"{path}/nobody/disconnect"))[0] == 404


@BOTH
async def test_what_is_deleted_is_gone_and_an_online_peer_wants_a_second_word(site: Site, path: str) -> None:
    """F85: 204, then 404; 409 without ?confirm=true."""
    assert await site.ask("DELETE", f"{path}/{SERVER}") == (204, None)
    assert (await site.ask("DELETE", f"{path}/{SERVER}"))[0] == 404
    status, answer = await site.ask("DELETE", f"{path}/{ATTIC}")
    assert status == 409 and "?confirm=true" in answer["error"]
    assert (await site.ask("DELETE", f"{path}/{ATTIC}?confirm=yes"))[0] == 400
    assert (await site.ask("DELETE", f"{path}/{ATTIC}?confirm=true"))[0] == 204


CHANGES: list[tuple[str, str, Any]] = [
    ("POST", "", SERVER_BODY),
    ("PUT", f"/{SERVER}/settings", {}),
    ("POST", f"/{SERVER}/disconnect", None),
    ("POST", f"/{SERVER}/enable", None),
    ("DELETE", f"/{SERVER}", None),
]


@BOTH
async def test_changes_are_for_administrators(site: Site, path: str) -> None:
    for method, rest, body in CHANGES:
        for headers in ({}, {"Authorization": "Bearer x"}, {"X-Agent-Token": AGENT_TOKEN}):
            assert (await site.ask(method, path + rest, body, headers))[0] == 401
        foreign = ADMIN | {"Origin": "http://evil.test"}
        assert (await site.ask(method, path + rest, body, foreign))[0] == 403
    assert site.managed.asked == []


async def test_a_peer_that_manages_none_says_so() -> None:
    async with _site(has_agents=False) as site:
        for method, rest, body in CHANGES:
            status, answer = await site.ask(method, "/api/agents" + rest, body)
            assert status == 503 and "manages no agents" in answer["error"]
