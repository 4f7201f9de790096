"""How a peer deals with strangers when something goes wrong on the way: it goes on, and tries again."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from gossip.admission import Admission, Asked, Token
from gossip.agent import Agent
from gossip.askers import JOINS, Joins
from gossip.codec import pack
from gossip.config import TEST
from gossip.errors import JoinBusy, JoinUnreachable, TokenRefused
from gossip.home import Home, word_out
from gossip.identity import Identity
from gossip.joiner import Joiner
from gossip.joining import JoinServer, Welcome
from gossip.meeting import Meeting, Said
from gossip.member import About, Fact
from gossip.rundir import Housemate
from gossip.storage import MeshState
from gossip.tls import Tls
from tests.fixtures.virtual_channels import Port, Wires

NOW_S = 1_000_000.0


class Memory:
    """A disk that forgets."""

    def __init__(self) -> None:
        self.state = MeshState()

    def load(self) -> MeshState:
        return self.state

    def save(self, state: MeshState) -> None:
        self.state = state


class Crowded(Admission):
    """So many come in at this moment that there is no room for another."""

    def begin(self, asked: Asked, now: float) -> None:
        raise JoinBusy("too many machines join at this moment: try again")


def home(identity: Identity, name: str) -> Home:
    return Home(identity=identity, name=name, keeper=Memory(), now_s=lambda: NOW_S, door_s=600.0)


@contextlib.asynccontextmanager
async def mesh_of_two(admission: Admission) -> AsyncIterator[tuple[str, Home]]:
    """Where a young mesh is, that a machine alone joins by its open door."""
    identity = Identity.generate()
    found = home(identity, "attic")
    other = Identity.generate().certificate_der
    found.set_roster(found.roster.admit(identity, other, "loft", "door", "active", NOW_S))
    server = JoinServer(
        identity=identity,
        roster=lambda: found.roster,
        summary=found.summary,
        mesh_name=lambda: found.mesh_name,
        admission=admission,
        admitted=lambda roster, peer: found.set_roster(roster),
        tokens=found.set_tokens,
        now=lambda: 0.0,
        now_s=lambda: NOW_S,
        word=lambda: word_out(found.word),
    )
    tls = Tls(identity)
    tls.update(found.roster)
    app = web.Application(client_max_size=0)
    for method, path, handler in server.routes():
        app.router.add_route(method, path, handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls.server_context).start()
        yield f"127.0.0.1:{runner.addresses[0][1]}", found
    finally:
        await runner.cleanup()


def stranger(said: Said | None = None) -> tuple[Meeting, Agent, Home]:
    """A machine that is in no mesh with others."""
    identity = Identity.generate()
    mine = home(identity, "cellar")
    network = Port(Wires(1), identity.peer_id)
    agent = Agent(
        me=identity.peer_id,
        run=1_700_000_000_000,
        home=mine,
        network=network,
        about=About(version="0.2"),
        config=TEST,
        rng=random.Random(1),
    )
    meeting = Meeting(
        identity=identity,
        name="cellar",
        home=mine,
        agent=agent,
        network=network,
        secret="",
        addresses=lambda: ("127.0.0.1:1",),
        said=said or Said(),
        now_s=lambda: NOW_S,
        rng=random.Random(2),
    )
    return meeting, agent, mine


async def test_a_seed_that_has_no_room_at_this_moment_is_no_member_yet_and_ends_nothing() -> None:
    """Twenty machines with one LLM_ROUTER_URL start together: those that are refused are to ask again."""
    meeting, _, mine = stranger()
    async with mesh_of_two(Crowded()) as (address, _):
        assert not await meeting.offered(address)
    async with mesh_of_two(Admission()) as (address, found):
        assert await meeting.offered(address)
        assert mine.roster.mesh_id == found.roster.mesh_id


async def test_who_is_moving_to_another_mesh_arrives_though_nobody_waits_for_it_any_more() -> None:
    """Ctrl+C in `llm-router join`: a peer that had said goodbye and stayed would be in no mesh at all."""
    joined: list[str] = []
    meeting, agent, mine = stranger(Said(joined=lambda mesh, members: joined.append(mesh)))
    async with mesh_of_two(Admission()) as (address, found):
        leaving = asyncio.Event()
        waited = asyncio.Event()

        async def slowly() -> None:
            leaving.set()
            await waited.wait()

        agent._channels.flushed = slowly  # type: ignore[method-assign]
        task = asyncio.create_task(meeting.offered(address))
        async with asyncio.timeout(20):
            await leaving.wait()
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        assert mine.roster.mesh_id == found.roster.mesh_id
        assert joined == ["attic"]
        assert {view.peer for view in agent.members()} == set(found.roster.members) - {agent.me}


async def test_who_is_leaving_has_left_though_nobody_waits_for_it_any_more() -> None:
    meeting, agent, mine = stranger()
    async with mesh_of_two(Admission()) as (address, found):
        assert await meeting.offered(address)
        leaving = asyncio.Event()

        async def slowly() -> None:
            leaving.set()
            await asyncio.Event().wait()

        agent._channels.flushed = slowly  # type: ignore[method-assign]
        task = asyncio.create_task(meeting.leave())
        await leaving.wait()
        task.cancel()
        await asyncio.wait({task})
        assert mine.roster.mesh_id != found.roster.mesh_id and not agent.members()


async def test_an_invitation_to_one_mesh_lets_nobody_into_the_next() -> None:
    meeting, _, mine = stranger()
    line, _ = meeting.invite(3, 3600.0)
    assert mine.tokens
    async with mesh_of_two(Admission()) as (address, _):
        assert await meeting.offered(address)
    assert not mine.tokens
    with pytest.raises(TokenRefused):
        meeting._server._admission.redeem(Token.parse(line).secret, NOW_S)
    meeting.invite(1, 3600.0)
    assert len(mine.tokens) == 1


async def test_who_left_and_comes_back_need_not_be_approved_again() -> None:
    """It is a member still, so no member is shown its digits: it would wait in vain for ten minutes."""
    meeting, _, mine = stranger()
    async with mesh_of_two(Admission()) as (address, found):
        assert await meeting.offered(address)
        await meeting.leave()
        assert mine.roster.mesh_id != found.roster.mesh_id
        found.set_door(0.0)
        assert (await meeting.join(address))["state"] == "joined"
        assert mine.roster.mesh_id == found.roster.mesh_id


async def test_many_false_names_hide_no_clone() -> None:
    """Anybody can announce this peer's name from anywhere."""
    meeting, agent, _ = stranger()
    looked: list[str] = []

    async def look(address: str) -> None:
        looked.append(address)

    agent.look_for_clone = look  # type: ignore[method-assign]
    for number in range(200):
        meeting.suspect_clone((f"192.168.1.1:{1000 + number}",))
    meeting.suspect_clone(("192.168.1.9:8081",))
    meeting.suspect_clone(("192.168.1.9:8081",))
    await asyncio.sleep(0)
    assert looked.count("192.168.1.9:8081") == 1


def asks(meeting: Meeting, newcomer: Identity) -> Asked:
    """It waits at this peer for what people say."""
    asked = Asked(
        id="a" * 32,
        mode="ask",
        peer_id=newcomer.peer_id,
        certificate=newcomer.certificate_der,
        name="loft",
        source="192.168.1.9",
        commitment=b"",
        nonce=b"",
        expires_at=asyncio.get_running_loop().time() + 600.0,
    )
    return meeting._server._admission.wait(asked, asyncio.get_running_loop().time())


async def test_a_member_that_says_no_twice_is_heard_once() -> None:
    """What a member tells is taken in the midst of gossip: an error there would end this peer."""
    meeting, agent, mine = stranger()
    other = Identity.generate()
    mine.set_roster(mine.roster.admit(meeting._identity, other.certificate_der, "tower", "token", "active", NOW_S))
    asked = asks(meeting, Identity.generate())
    told = Fact(version=1, value=pack(Joins(denied=(asked.id, asked.id))), received_at=0.0, set_at=0.0)
    agent.fact = lambda peer, key: told  # type: ignore[method-assign]
    meeting.askers.fact_changed(other.peer_id, JOINS)
    assert not meeting._server.waiting()


async def test_who_is_thrown_out_while_somebody_asks_it_lets_nobody_in_and_goes_on() -> None:
    meeting, _, mine = stranger()
    tower, newcomer = Identity.generate(), Identity.generate()
    roster = mine.roster.admit(meeting._identity, tower.certificate_der, "tower", "token", "active", NOW_S)
    asks(meeting, newcomer)
    roster = roster.admit(tower, newcomer.certificate_der, "loft", "ask", "active", NOW_S)
    meeting.askers.roster_changed(roster.revoke(tower, meeting._identity.peer_id, NOW_S))
    assert len(meeting._server.waiting()) == 1


async def test_a_peer_that_would_stay_where_it_is_leaves_its_housemates_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """They look for each other every two seconds, for ever: two handshakes each time are for who may move."""
    asked: list[str] = []

    async def hello(address: str, mine: Joiner, *, is_wanted: bool = False) -> Welcome:
        asked.append(address)
        raise JoinUnreachable("nobody")

    monkeypatch.setattr("gossip.joiner.hello", hello)
    meeting, _, mine = stranger()
    other = Identity.generate().certificate_der
    mine.set_door(0.0)
    meeting.housemate(Housemate(peer="a" * 52, port=1, pid=1, secret="s"))
    await asyncio.sleep(0)
    assert asked == ["127.0.0.1:1"], "alone, it moves to its user's other peer behind a shut door too"
    mine.set_roster(mine.roster.admit(meeting._identity, other, "tower", "token", "active", NOW_S))
    meeting.housemate(Housemate(peer="b" * 52, port=2, pid=2, secret="s"))
    await asyncio.sleep(0)
    assert asked == ["127.0.0.1:1"]


async def test_who_left_is_not_taken_back_by_a_housemate(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def hello(address: str, mine: Joiner, *, is_wanted: bool = False) -> Welcome:
        asked.append(address)
        raise JoinUnreachable("nobody")

    monkeypatch.setattr("gossip.joiner.hello", hello)
    meeting, _, _ = stranger()
    await meeting.leave()
    meeting.housemate(Housemate(peer="a" * 52, port=1, pid=1, secret="s"))
    await asyncio.sleep(0)
    assert not asked
