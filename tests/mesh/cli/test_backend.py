"""`llm-router backend`: the real command line, HTTP surface and registry, over a fake server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mesh import control
from mesh.cli.failure import Exit
from tests.fixtures.adopting import Peer, ViaLoopback, World
from tests.fixtures.openai_server import openai_server
from tests.fixtures.scripted_mesh import ScriptedMesh, services
from web.listener import Listener
from web.services import AgentsFacet, Caller

if TYPE_CHECKING:
    from tests.mesh.cli.conftest import Run


@dataclass
class House:
    """A peer that control.json of the data folder points at, and what it was asked for with which right."""

    peer: Peer
    callers: list[Caller]

    async def register(self, body: Mapping[str, Any], caller: Caller) -> tuple[int, dict[str, Any]]:
        self.callers.append(caller)
        is_here = caller.key_id == "control" and caller.is_local
        return await self.peer.registry.register(body, allow_loopback=is_here)

    def facet(self) -> AgentsFacet:
        registry = self.peer.registry

        async def change(_: Mapping[str, Any], __: Caller) -> dict[str, Any]:
            return {}

        return AgentsFacet(
            register=self.register,
            heartbeat=registry.heartbeat,
            metrics=registry.metrics,
            settings=lambda who, body, caller: registry.settings(who, body),
            disconnect=lambda who, caller: registry.disconnect(who),
            enable=lambda who, caller: registry.enable(who),
            delete=lambda who, is_confirmed, caller: registry.delete(who),
            mesh_settings=dict,
            change_mesh_settings=change,
        )


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    mesh = ScriptedMesh()
    async with ViaLoopback() as client:
        made = House(Peer(World(), "tower", client), [])
        surface = services(mesh, "t0ken")
        facet = replace(mesh.facet(), agents=lambda: [*mesh.agents(), *made.peer.registry.agents()])
        listener = Listener(replace(surface, mesh=facet, agents=made.facet()), [("127.0.0.1", 0)])
        await listener.start()
        url = f"http://127.0.0.1:{listener.port}"
        control.publish(tmp_path, port=listener.port, url=url, version="0.1.0", token="t0ken")
        yield made
        await listener.close(0)


def columns(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


async def test_a_server_on_this_machine_is_used_with_nothing_but_its_url(house: House, run: Run) -> None:
    async with openai_server(models=["llama3.2:3b", "phi"]) as fake:
        result = await run("backend", "add", f"http://127.0.0.1:{fake.port}/v1")
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines() == [f"tower:{fake.port} is used: 2 models", "  llama3.2:3b", "  phi"]
        assert "agt_" in result.stderr and "agt_" not in result.stdout
        (agent,) = house.peer.agents
        assert (agent.via, agent.address, agent.machine_name) == ("tower", "127.0.0.1", f"tower:{fake.port}")
        assert [(caller.key_id, caller.is_local) for caller in house.callers] == [("control", True)]
        again = await run("backend", "add", f"http://127.0.0.1:{fake.port}")
        assert "is known, and has a new token" in again.stdout and len(house.peer.agents) == 1


async def test_a_server_elsewhere_is_called_by_its_host_and_port(house: House, run: Run) -> None:
    async with openai_server() as fake:
        result = await run("backend", "add", f"http://gpu.lan:{fake.port}", "--gpu", "T4", "--gpu", "T4", "--gpu", "L4")
        assert result.exit_code == 0, result.output
        (agent,) = house.peer.agents
        assert (agent.machine_name, agent.via, agent.gpu_count, agent.gpu_model) == (
            f"gpu.lan:{fake.port}",
            "",
            3,
            "T4",
        )
        named = await run("backend", "add", f"http://gpu.lan:{fake.port}", "--name", "big one", "--json")
        assert json.loads(named.stdout)["status"] == "registered" and named.stderr == ""


async def test_list_shows_servers_and_no_peers(house: House, run: Run) -> None:
    empty = await run("backend")
    assert "backend add http://127.0.0.1:11434" in empty.stderr
    async with openai_server(models=["a", "b"]) as fake:
        await run("backend", "add", f"http://gpu.lan:{fake.port}", "--name", "big", "--gpu", "T4")
        (agent,) = house.peer.agents
        await house.peer.registry.metrics(agent.id, {"cpu_usage": 1, "memory_usage": 1, "active_requests": 3})
        result = await run("backend", "list")
        assert [columns(line) for line in result.stdout.splitlines()] == [
            ["NAME", "STATE", "MODELS", "ACTIVE", "ADDRESS", "GPU"],
            ["big", "online", "2", "3", f"gpu.lan:{fake.port}", "T4"],
        ]
        found = json.loads((await run("backend", "--json")).stdout)["backends"]
        assert [server["machine_name"] for server in found] == ["big"]


async def test_disable_enable_and_remove(house: House, run: Run) -> None:
    async with openai_server() as fake:
        await run("backend", "add", f"http://gpu.lan:{fake.port}", "--name", "big")
        (agent,) = house.peer.agents
        result = await run("backend", "disable", "BIG")
        assert result.stdout == "big gets no more requests; to undo: llm-router backend enable big\n"
        assert house.peer.row("big")["state"] == "cordoned"
        assert "big gets requests again" in (await run("backend", "enable", agent.id[:6])).stdout
        assert house.peer.row("big")["state"] == "online"
        unsure = await run("backend", "remove", "big")
        assert unsure.exit_code == Exit.USAGE and "--yes" in unsure.stderr and len(house.peer.agents) == 1
        assert (await run("backend", "rm", "big", "--yes")).stdout == "big is used no more\n"
        assert len(house.peer.agents) == 0


@pytest.mark.parametrize("command", ["disable", "enable", "remove"])
async def test_a_peer_is_no_backend(house: House, run: Run, command: str) -> None:
    result = await run("backend", command, "attic", *(["--yes"] if command == "remove" else []))
    assert result.exit_code == Exit.NOT_FOUND
    assert "no server is called 'attic'" in result.stderr and "there are none" in result.stderr


async def test_the_peers_own_words_say_why_a_server_is_not_used(house: House, run: Run) -> None:
    async with openai_server() as fake:
        port = fake.port
        refused = await run("backend", "add", f"http://127.0.0.1:{port}", "--no-gpu")
        assert refused.exit_code == Exit.NOT_ALLOWED
        assert "GPU hardware is required for agent registration" in refused.stderr
    for url, says in (
        (f"http://127.0.0.1:{port}", "No server of OpenAI's API answers there"),
        ("http://169.254.169.254", "link-local"),
        ("http://0.0.0.0:11434", "no machine in particular"),
        ("http://192.168.77.1:8081", "port of a peer"),
        ("ftp://gpu.lan", "no origin"),
        ("http://gpu.lan:port", "no URL"),
        ("http://gpu.lan/some/path", "no origin"),
    ):
        result = await run("backend", "add", url)
        assert result.exit_code != 0 and says in result.stderr, (url, result.output)
    assert len(house.peer.agents) == 0


async def test_gpus_and_none_exclude_each_other(house: House, run: Run) -> None:
    result = await run("backend", "add", "http://gpu.lan", "--gpu", "T4", "--no-gpu")
    assert result.exit_code == Exit.USAGE and house.callers == []


async def test_names_from_elsewhere_are_harmless(house: House, run: Run) -> None:
    async with openai_server() as fake:
        await run("backend", "add", f"http://gpu.lan:{fake.port}", "--name", "big")
    (agent,) = house.peer.agents
    house.peer.world.admin.set(agent.key, {"custom_name": "\x1b[2Jevil"})
    for arguments in (("list",), ("disable", "big")):
        assert "\x1b" not in (await run("backend", *arguments)).output
