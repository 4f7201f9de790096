"""Who moves into another mesh knows of its door at once: the member that let it in may be gone a moment later."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from gossip.admission import Admission, Token
from gossip.home import Home, word_in, word_out
from gossip.identity import Identity
from gossip.joiner import Joined, Joiner, join, join_by_token, join_on_this_machine
from gossip.joining import JoinServer
from gossip.storage import MeshState
from gossip.tls import Tls

NOW_S = 1_000_000.0


class Memory:
    """A disk that forgets."""

    def __init__(self) -> None:
        self.state = MeshState()

    def load(self) -> MeshState:
        return self.state

    def save(self, state: MeshState) -> None:
        self.state = state


class Machine:
    """A peer's home and the server that lets others in."""

    def __init__(self, name: str) -> None:
        self.identity = Identity.generate()
        self.name = name
        self.home = Home(identity=self.identity, name=name, keeper=Memory(), now_s=lambda: NOW_S, door_s=600.0)
        self.server = JoinServer(
            identity=self.identity,
            roster=lambda: self.home.roster,
            summary=self.home.summary,
            mesh_name=lambda: self.home.mesh_name,
            admission=Admission(),
            admitted=lambda roster, peer: self.home.set_roster(roster),
            tokens=self.home.set_tokens,
            now=lambda: 0.0,
            now_s=lambda: NOW_S,
            local_secret="of this user",
            word=lambda: word_out(self.home.word),
        )

    @property
    def joiner(self) -> Joiner:
        return Joiner(identity=self.identity, name=self.name, summary=self.home.summary())

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        tls = Tls(self.identity)
        tls.update(self.home.roster)
        app = web.Application(client_max_size=0)
        for method, path, handler in self.server.routes():
            app.router.add_route(method, path, handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls.server_context).start()
            yield f"127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


async def by_door(attic: Machine, cellar: Machine, address: str) -> Joined:
    mine = cellar.joiner
    return await join(address, mine, is_wanted=True)


async def by_token(attic: Machine, cellar: Machine, address: str) -> Joined:
    token = attic.server.invite(uses=1, seconds=60, addresses=(address,))
    return await join_by_token(Token.parse(token.line), cellar.joiner)


async def on_this_machine(attic: Machine, cellar: Machine, address: str) -> Joined:
    return await join_on_this_machine(address, attic.identity.peer_id, "of this user", cellar.joiner)


@pytest.mark.parametrize("how", [by_door, by_token, on_this_machine])
async def test_who_moves_knows_of_the_open_door_and_is_young_without_hearing_from_any_member(
    how: Callable[[Machine, Machine, str], Awaitable[Joined]],
) -> None:
    """Seen in a drill: the member left for a third mesh, and the one it let in stayed alone behind a shut door."""
    attic, cellar = Machine("attic"), Machine("cellar")
    attic.home.set_door(300.0)
    async with attic.serving() as address:
        joined = await how(attic, cellar, address)
    cellar.home.move(joined.roster, word_in(joined.word))
    assert cellar.home.word == attic.home.word
    assert cellar.home.is_young and cellar.home.door_seconds_left() == 300.0


def test_nothing_of_the_old_door_is_kept_in_another_mesh() -> None:
    attic, cellar = Machine("attic"), Machine("cellar")
    attic.home.set_door(0.0)
    cellar.home.set_door(500.0)
    cellar.home.ripen()
    cellar.home.move(attic.home.roster, attic.home.word)
    assert cellar.home.word == attic.home.word
    assert not cellar.home.word.is_mature and cellar.home.door_seconds_left() == 0.0
