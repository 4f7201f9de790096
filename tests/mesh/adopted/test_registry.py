"""Registering servers that are no peers (cases 48 to 63 of the reference), and how every peer hears of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest

from inference.errors import InvalidRequest
from inference.providers.openai_compatible import OpenAICompatible, Patience
from mesh.adopted import agent as agent_module
from mesh.adopted import registry as registry_module
from mesh.adopted.errors import (
    AddressRefused,
    BadToken,
    GpuRequired,
    IsPeer,
    NotReached,
    TokenOfAnother,
    TooManyAgents,
    UnknownAgent,
)
from mesh.adopted.standing import Standing
from tests.fixtures.adopting import LAN, Peer, ViaLoopback, World, body, registered, until
from tests.fixtures.openai_server import openai_server

METRICS = {"cpu_usage": 20.0, "memory_usage": 30.0, "active_requests": 1, "avg_response_time_ms": 120.0}


@pytest.fixture
async def client() -> AsyncIterator[OpenAICompatible]:
    async with ViaLoopback(Patience(probe_s=2.0)) as made:
        yield made


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(registry_module, "TELL_S", 0.0)
    monkeypatch.setattr(registry_module, "TICK_S", 0.01)
    return World()


@pytest.fixture
async def tower(world: World, client: OpenAICompatible) -> Peer:
    """The coordinator."""
    return Peer(world, "tower", client, interval_s=0.05)


# -- registering


async def test_a_new_server_is_registered_and_gets_a_token(tower: Peer) -> None:
    """F162, F163, F164, F165; case 48."""
    async with openai_server(models=["llama3.2:3b", "nomic-embed-text"]) as fake:
        status, answer = await tower.registry.register(body(fake))
    assert status == 201 and answer["status"] == "registered" and answer["agent_id"] == answer["node_id"]
    assert re.fullmatch(r"agt_[\w-]{43}", answer["agent_token"])
    row = tower.row("attic")
    assert (
        row
        | {
            "id": answer["agent_id"],
            "agent_id": answer["agent_id"],
            "node_id": answer["agent_id"],
            "machine_name": "attic",
            "ip_address": LAN,
            "runtime_version": "0.5.1",
            "runtime_port": fake.port,
            "status": "online",
            "gpu_available": True,
            "gpu_count": 3,
            "gpu_model": "RTX 4090",
            "loaded_models": ["llama3.2:3b", "nomic-embed-text"],
            "custom_name": None,
            "tags": [],
            "notes": None,
        }
        == row
    )
    assert [device["model"] for device in row["gpu_devices"]] == ["RTX 4090", "T4"]
    for name in ("registered_at", "last_seen", "online_since"):
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", row[name])


async def test_the_token_is_nowhere_but_in_the_answer(tower: Peer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with openai_server() as fake:
        agent_id, token = await registered(tower, fake)
    assert token not in str(tower.world.admin.get(f"agent/{agent_id}")) + str(tower.registry.agents()) + caplog.text


async def test_the_same_name_and_port_again_is_the_same_agent_with_a_new_token(tower: Peer) -> None:
    """Case 49."""
    async with openai_server() as fake:
        first, old = await registered(tower, fake)
        await tower.registry.settings(first, {"custom_name": "Upstairs", "tags": ["a"], "notes": "n"})
        await tower.registry.disconnect(first)
        status, answer = await tower.registry.register(body(fake, runtime_version="0.6"))
        assert (status, answer["status"], answer["agent_id"]) == (200, "updated", first)
        assert not {"custom_name", "tags", "notes", "is_cordoned", "registered_at"} & set(tower.world.admin.last)
        assert answer["agent_token"] != old and len(tower.registry.agents()) == 1
        row = tower.row(first)
        assert (row["runtime_version"], row["custom_name"], row["tags"]) == ("0.6", "Upstairs", ["a"])
        assert row["is_cordoned"] and row["notes"] == "n"
        with pytest.raises(BadToken):
            await tower.registry.heartbeat(old, {"agent_id": first})
        await tower.registry.heartbeat(answer["agent_token"], {"agent_id": first})


async def test_another_port_is_another_agent(tower: Peer) -> None:
    """Case 50."""
    async with openai_server() as one, openai_server() as other:
        assert (await registered(tower, one))[0] != (await registered(tower, other))[0]
    assert len(tower.registry.agents()) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"gpu_available": False},
        {"gpu_devices": []},
        {"gpu_devices": [{"model": "", "count": 1}]},
        {"gpu_devices": [{"model": "T4", "count": 0}]},
    ],
)
async def test_a_server_without_gpu_is_refused_before_it_is_asked(
    tower: Peer, client: OpenAICompatible, changes: dict[str, Any]
) -> None:
    """C11; cases 51 to 53."""
    async with openai_server() as fake:
        with pytest.raises(GpuRequired):
            await tower.registry.register(body(fake, **changes))
        assert fake.seen == [] and tower.registry.agents() == []
        lenient = Peer(tower.world, "tower", client, allow_no_gpu=True)
        assert (await lenient.registry.register(body(fake, **changes)))[0] == 201


async def test_what_is_left_out_of_the_gpus_is_derived(tower: Peer) -> None:
    """Case 54."""
    async with openai_server() as fake:
        await registered(tower, fake, gpu_count=None, gpu_model=None)
    assert (tower.row("attic")["gpu_count"], tower.row("attic")["gpu_model"]) == (3, "RTX 4090")


async def test_a_server_that_cannot_be_reached_is_refused_and_not_listed(tower: Peer) -> None:
    """Case 55."""
    async with openai_server() as fake:
        closed = body(fake)
    with pytest.raises(NotReached) as caught:
        await tower.registry.register(closed)
    assert caught.value.status == 502 and f"{LAN}:{fake.port}" in caught.value.message
    assert tower.registry.agents() == [] and tower.world.admin.writes == 0


@pytest.mark.parametrize(
    "behaviour",
    [
        {"list_answer": b"<html>It works!</html>"},
        {"list_answer": b'{"hello": "world"}'},
        {"redirect": (302, "http://127.0.0.1:1/v1/models")},
    ],
)
async def test_a_server_that_is_none_is_refused(tower: Peer, behaviour: dict[str, Any]) -> None:
    async with openai_server(**behaviour) as fake:
        with pytest.raises(NotReached):
            await tower.registry.register(body(fake))


async def test_the_port_after_the_one_that_was_told_is_tried_second(tower: Peer) -> None:
    async with openai_server() as fake:
        _, answer = await tower.registry.register(body(fake, runtime_port=fake.port - 1))
        assert answer["runtime_port"] == fake.port
        assert tower.row("attic")["runtime_port"] == fake.port - 1
        again, answer = await tower.registry.register(body(fake, runtime_port=fake.port - 1))
        assert again == 200


async def test_a_peer_is_refused_whichever_mesh_it_is_of(tower: Peer) -> None:
    async with openai_server(well_known={"version": "0.3.0", "mesh": "ab12", "peer_port": 8081}) as fake:
        with pytest.raises(IsPeer, match="llm-router join"):
            await tower.registry.register(body(fake))
        assert tower.registry.agents() == [] and fake.asked("/v1/models") == 0


@pytest.mark.parametrize(
    ("host", "port"),
    [("127.0.0.1", None), ("localhost", None), ("169.254.169.254", None), ("0.0.0.0", None), (LAN, 8081)],
)
async def test_forbidden_addresses_are_refused_without_a_question(tower: Peer, host: str, port: int | None) -> None:
    async with openai_server() as fake:
        with pytest.raises(AddressRefused):
            await tower.registry.register(body(fake, ip_address=host, runtime_port=port or fake.port))
        assert fake.seen == [] and tower.world.resolved in ([], ["localhost"])


async def test_a_name_is_resolved_once_and_pinned(tower: Peer) -> None:
    async with openai_server() as fake, tower.running():
        await registered(tower, fake, ip_address="gpu.lan")
        tower.world.names["gpu.lan"] = ["169.254.169.254"]  # it means something else now
        asked = fake.asked("/v1/models")
        await until(lambda: fake.asked("/v1/models") > asked + 2)
        assert tower.world.resolved == ["gpu.lan"]
        assert {one.headers["Host"] for one in fake.seen} == {f"gpu.lan:{fake.port}"}
        with pytest.raises(AddressRefused):
            await tower.registry.register(body(fake, ip_address="gpu.lan"))


async def test_loopback_is_registered_by_the_command_line_of_that_machine_only(
    world: World, tower: Peer, client: OpenAICompatible
) -> None:
    attic = Peer(world, "attic", client)
    async with openai_server() as fake:
        here = {"machine_name": "ollama", "base_url": f"http://127.0.0.1:{fake.port}"}
        status, answer = await attic.registry.register(here, allow_loopback=True)
        assert status == 201
        agent = tower.agents.get(answer["agent_id"])
        assert agent is not None and (agent.via, agent.gpu_available) == ("attic", None)
        assert not tower.agents.is_reached_here(agent) and attic.agents.is_reached_here(agent)
        for other in ("http://0.0.0.0:1", "http://127.0.0.1:8080", "http://127.0.0.1:8081"):
            with pytest.raises(AddressRefused):
                await attic.registry.register(here | {"base_url": other}, allow_loopback=True)
        # the same name and port on another machine is another server
        assert (await tower.registry.register(here, allow_loopback=True))[0] == 201
        assert (await attic.registry.register(here, allow_loopback=True))[1]["agent_id"] == answer["agent_id"]


async def test_two_registrations_at_once_are_one_agent(tower: Peer) -> None:
    async with openai_server() as fake:
        answers = await asyncio.gather(*(tower.registry.register(body(fake)) for _ in range(5)))
    assert sorted(status for status, _ in answers) == [200] * 4 + [201]
    assert len({answer["agent_id"] for _, answer in answers}) == 1 and len(tower.registry.agents()) == 1


async def test_there_are_only_so_many(tower: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "AGENTS_MAX", 1)
    async with openai_server() as fake:
        await registered(tower, fake)
        with pytest.raises(TooManyAgents):
            await registered(tower, fake, "second")
        assert (await tower.registry.register(body(fake)))[0] == 200


async def test_a_row_that_leads_somewhere_forbidden_is_no_agent_whoever_wrote_it(tower: Peer) -> None:
    async with openai_server() as fake:
        agent_id, _ = await registered(tower, fake)
    tower.world.admin.set(f"agent/{agent_id}", {"address": "169.254.169.254"})
    assert tower.registry.agents() == [] and tower.agents.get(agent_id) is None


# -- heartbeats and metrics


async def test_a_heartbeat_needs_the_agents_own_token(tower: Peer) -> None:
    """F166; case 56."""
    async with openai_server() as fake, openai_server() as other:
        agent_id, token = await registered(tower, fake)
        other_id, other_token = await registered(tower, other)
    tower.world.admin.set(f"agent/{other_id}", {"token_hash": "é"})  # what another member writes
    for bad in (None, "", "agt_garbage", "agt_é", token[:-1], token + "x", other_token):
        with pytest.raises(BadToken) as caught:
            await tower.registry.heartbeat(bad, {"agent_id": agent_id})
        assert caught.value.status == 401
    with pytest.raises(TokenOfAnother) as refused:
        await tower.registry.heartbeat(token, {"agent_id": other_id})
    assert refused.value.status == 403
    with pytest.raises(InvalidRequest):
        await tower.registry.heartbeat(token, {})
    before = tower.agents.own[agent_id].seen_at
    tower.world.clock.ahead += 5
    await tower.registry.heartbeat(token, {"node_id": agent_id} | METRICS)
    assert tower.agents.own[agent_id].seen_at >= before + 5
    assert tower.row(agent_id)["cpu_usage"] == 20.0 and tower.row(other_id)["cpu_usage"] is None


async def test_metrics_are_for_agents_that_are_there(tower: Peer) -> None:
    """F63, F64, F167; case 57."""
    async with openai_server() as fake:
        agent_id, _ = await registered(tower, fake)
    await tower.registry.metrics(agent_id, METRICS | {"agent_id": agent_id})
    row = tower.row(agent_id)
    assert (row["cpu_usage"], row["memory_usage"], row["active_requests"]) == (20.0, 30.0, 1)
    assert row["avg_response_time_ms"] == 120.0
    with pytest.raises(UnknownAgent) as caught:
        await tower.registry.metrics("0b5d9f3e-6a51-4e0c-9f41-1d2c3b4a5e6f", METRICS)
    assert caught.value.status == 404
    for bad in ({"cpu_usage": 101}, {"cpu_usage": float("nan")}, {"agent_id": "another"}):
        with pytest.raises(InvalidRequest):
            await tower.registry.metrics(agent_id, METRICS | bad)
    (point,) = tower.registry.points(agent_id)
    assert (point["cpu_usage"], point["active_requests"]) == (20.0, 1)


async def test_every_peer_hears_how_loaded_a_server_is(world: World, tower: Peer, client: OpenAICompatible) -> None:
    barn = Peer(world, "barn", client)
    async with openai_server() as fake, tower.running():
        agent_id, token = await registered(tower, fake)
        await tower.registry.heartbeat(token, {"agent_id": agent_id} | METRICS)
        agent = barn.agents.get(agent_id)
        assert agent is not None
        await until(lambda: (sight := barn.agents.sight(agent)) is not None and sight.report.cpu_percent == 20.0)
        assert barn.row(agent_id)["avg_response_time_ms"] == 120.0 and barn.told == 0


# -- offline, online


async def test_a_server_that_is_gone_is_offline_and_comes_back_with_the_same_id(
    world: World, tower: Peer, client: OpenAICompatible
) -> None:
    """Case 60."""
    barn = Peer(world, "barn", client)
    async with tower.running():
        async with openai_server() as fake:
            agent_id, _ = await registered(tower, fake)
            port = fake.port
        agent = barn.agents.get(agent_id)
        first = tower.agents.own[agent_id].online_since
        world.clock.ahead += 61
        await until(lambda: barn.row(agent_id)["status"] == "offline")
        assert agent is not None and not barn.agents.is_online(agent)
        assert barn.row(agent_id)["online_since"] is None
        async with openai_server(port, models=["new-model"]):
            await until(lambda: barn.row(agent_id)["status"] == "online")
            await until(lambda: barn.row(agent_id)["loaded_models"] == ["new-model"])
        sight = barn.agents.sight(agent)
        assert sight is not None and sight.online_since > first + 60


async def test_heartbeats_keep_a_server_online_that_does_not_answer_probes(tower: Peer) -> None:
    async with tower.running():
        async with openai_server() as fake:
            agent_id, token = await registered(tower, fake)
        for _ in range(3):
            tower.world.clock.ahead += 50
            await tower.registry.heartbeat(token, {"agent_id": agent_id})
            await until(lambda: not tower.agents.own[agent_id].seen_at < tower.world.clock() - 40)
        assert tower.row(agent_id)["status"] == "online"
        tower.world.clock.ahead += 61
        await until(lambda: tower.row(agent_id)["status"] == "offline")
        await tower.registry.heartbeat(token, {"agent_id": agent_id})
        assert tower.row(agent_id)["status"] == "online"


async def test_only_the_coordinator_sweeps_and_the_next_one_goes_on(
    world: World, tower: Peer, client: OpenAICompatible
) -> None:
    """F24: every LLM_ROUTER_HEALTH_CHECK_INTERVAL."""
    barn = Peer(world, "barn", client, interval_s=0.05)
    async with openai_server() as fake:
        agent_id, token = await registered(tower, fake)
        async with tower.running():
            await tower.registry.heartbeat(token, {"agent_id": agent_id} | METRICS)
            await until(lambda: "tower" in world.facts and barn.row(agent_id)["cpu_usage"] == 20.0)
        asked = fake.asked("/v1/models")
        async with barn.running():
            for _ in range(20):
                await asyncio.sleep(0.01)
            assert fake.asked("/v1/models") == asked and barn.told == 0
            world.coordinator = "barn"
            await until(lambda: fake.asked("/v1/models") > asked)
            await until(lambda: agent_id in barn.agents.own)
            assert barn.row(agent_id)["cpu_usage"] == 20.0  # as the one before had heard
        world.coordinator = None
        assert barn.row(agent_id)["cpu_usage"] == 20.0 and barn.row(agent_id)["status"] == "online"


async def test_a_server_that_only_one_peer_reaches_is_looked_after_by_that_peer(
    world: World, tower: Peer, client: OpenAICompatible
) -> None:
    attic = Peer(world, "attic", client, interval_s=0.05)
    async with tower.running(), attic.running():
        async with openai_server() as fake:
            here = {"machine_name": "ollama", "base_url": f"http://127.0.0.1:{fake.port}"}
            _, answer = await attic.registry.register(here, allow_loopback=True)
            agent_id, token = answer["agent_id"], answer["agent_token"]
            await until(lambda: "attic" in world.facts and tower.row(agent_id)["status"] == "online")
            await tower.registry.heartbeat(token, {"agent_id": agent_id} | METRICS)  # they go to the coordinator
            await until(lambda: attic.row(agent_id)["cpu_usage"] == 20.0)
            world.absent.add("attic")
            assert tower.row(agent_id)["status"] == "offline"  # nobody else reaches it
            world.absent.clear()
            assert tower.row(agent_id)["status"] == "online"
        world.clock.ahead += 61
        await until(lambda: tower.row(agent_id)["status"] == "offline")
        await until(lambda: attic.row(agent_id)["status"] == "offline")


async def test_a_server_that_failed_a_request_here_is_probed_here_at_once(
    world: World, client: OpenAICompatible
) -> None:
    barn = Peer(world, "barn", client, interval_s=1000.0)
    async with openai_server() as fake, barn.running():
        agent_id, _ = await registered(barn, fake)
        asked = fake.asked("/v1/models")
        barn.breakers.failed(agent_id, "gone", world.clock())
        assert barn.breakers.is_open(agent_id)
        await until(lambda: not barn.breakers.is_open(agent_id))
        assert fake.asked("/v1/models") == asked + 1 and barn.told == 0


# -- settings, disconnect, delete


async def test_settings_are_trimmed_and_seen_by_all(world: World, tower: Peer, client: OpenAICompatible) -> None:
    """F83; case 62."""
    barn = Peer(world, "barn", client)
    async with openai_server() as fake:
        agent_id, _ = await registered(tower, fake)
    row = await tower.registry.settings(agent_id, {"custom_name": " Upstairs ", "tags": ["a", " "], "notes": "n"})
    assert (row["custom_name"], row["tags"], row["notes"]) == ("Upstairs", ["a"], "n")
    assert barn.row(agent_id)["custom_name"] == "Upstairs" and barn.agents.found("upstairs").id == agent_id
    row = await tower.registry.settings(agent_id, {"custom_name": "", "notes": None})
    assert (row["custom_name"], row["tags"], row["notes"]) == (None, ["a"], None)
    with pytest.raises(UnknownAgent):
        await tower.registry.settings("nobody", {})


async def test_a_disconnected_server_is_offline_until_it_is_enabled(tower: Peer) -> None:
    """F84, C27; case 63."""
    async with openai_server() as fake:
        agent_id, _ = await registered(tower, fake)
    await tower.registry.disconnect("attic")
    assert (tower.row(agent_id)["status"], tower.row(agent_id)["state"]) == ("offline", "cordoned")
    await tower.registry.enable(agent_id[:8])
    assert (tower.row(agent_id)["status"], tower.row(agent_id)["state"]) == ("online", "online")


async def test_a_deleted_server_is_gone_with_its_token(tower: Peer) -> None:
    """F85; case 63."""
    async with openai_server() as fake, tower.running():
        agent_id, token = await registered(tower, fake)
        await tower.registry.delete(agent_id)
        for call in (tower.registry.delete(agent_id), tower.registry.metrics(agent_id, METRICS)):
            with pytest.raises(UnknownAgent):
                await call
        with pytest.raises(BadToken):
            await tower.registry.heartbeat(token, {"agent_id": agent_id})
        assert tower.registry.agents() == [] and tower.agents.own == {}
        asked = len(fake.seen)
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert len(fake.seen) <= asked + 1
        assert (await registered(tower, fake))[0] != agent_id


async def test_names_that_mean_several_or_none_say_so(tower: Peer) -> None:
    async with openai_server() as one, openai_server() as other:
        first, _ = await registered(tower, one)
        await registered(tower, other)
    with pytest.raises(UnknownAgent, match="several"):
        tower.agents.found("attic")
    with pytest.raises(UnknownAgent, match="nearest: attic"):
        tower.agents.found("atic")
    assert tower.agents.found(first.upper()).id == first


async def test_agents_that_were_there_before_the_start_are_looked_after(
    world: World, tower: Peer, client: OpenAICompatible
) -> None:
    async with openai_server() as fake:
        agent_id, _ = await registered(tower, fake)
        again = Peer(world, "tower", client, interval_s=0.05)
        async with again.running():
            await until(lambda: agent_id in again.agents.own)
            asked = fake.asked("/v1/models")
            await until(lambda: fake.asked("/v1/models") > asked + 1)
            assert isinstance(again.agents.own[agent_id], Standing)


def test_bounds_agree() -> None:
    names: Iterable[int] = (agent_module.MODELS_MAX * 200, agent_module.MODELS_BYTES_MAX)
    assert max(names) < 64 * 1024
