"""The routes over the real peer port: mutual TLS, members only, bounded bodies."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from gossip.identity import Identity
from gossip.member import About, Fact, MemberView
from gossip.roster import Roster
from gossip.tls import Tls
from gossip.transport import PeerPort
from mesh.admin.admin import Admin
from mesh.admin.exchange import ROWS_PATH, SYNC_PATH
from mesh.admin.spread import Spread
from mesh.admin.storage import AdminFile
from mesh.calls import PeerCalls

ANN, BOB, EVE = Identity.generate(), Identity.generate(), Identity.generate()


def roster() -> Roster:
    found = Roster.found(ANN, "ann", time.time())
    return found.admit(ANN, BOB.certificate_der, "bob", "ask", "active", time.time())


class Side:
    """A peer with everything but gossip."""

    def __init__(self, identity: Identity, mesh: Roster, folder: Path) -> None:
        self.me = identity.peer_id
        self.roster = mesh
        self.tls = Tls(identity)
        self.tls.update(mesh)
        self.port = PeerPort(self.tls, roster=lambda: self.roster)
        self.where: dict[str, tuple[str, ...]] = {}
        self.calls = PeerCalls(addresses=lambda peer: self.where.get(peer, ()), context_of=self.tls.client_context)
        store = AdminFile(folder, program="0.3.0")
        self.admin = Admin(identity=identity, roster=lambda: self.roster, store=store)
        self.spread = Spread(
            admin=self.admin,
            call=self.calls.call,
            members=self.members,
            fact=self.fact,
            set_fact=lambda key, value: None,
            rng=random.Random(1),
        )
        self.port.add(self.spread.routes())

    def members(self) -> list[MemberView]:
        return [
            MemberView(
                peer=peer,
                role="active",
                state="alive",
                run=1,
                incarnation=1,
                about=About(),
                since=0,
                is_connected=True,
            )
            for peer in self.roster.members
            if peer != self.me
        ]

    def fact(self, peer: str, key: str) -> Fact | None:
        return None


@asynccontextmanager
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Side, Side]]:
    async with AsyncExitStack() as stack:
        sides: list[Side] = []
        mesh = roster()
        for identity, name in ((ANN, "ann"), (BOB, "bob")):
            (tmp_path / name).mkdir(mode=0o700)
            side = Side(identity, mesh, tmp_path / name)
            await stack.enter_async_context(side.calls)
            stack.push_async_callback(side.admin.close)
            await side.admin.start()
            stack.push_async_callback(side.port.close)
            await side.port.start(["127.0.0.1"], [0])
            sides.append(side)
        ann, bob = sides
        ann.where[bob.me], bob.where[ann.me] = (f"127.0.0.1:{bob.port.port}",), (f"127.0.0.1:{ann.port.port}",)
        yield ann, bob


async def test_a_write_is_on_the_other_machines_disk_when_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.admin.spread.PUSH_WAIT_S", 30.0)  # the machine of the tests may be busy
    async with pair(tmp_path) as (ann, bob):
        await ann.admin.put("key/1", {"name": "x", "hash": "y"})
        assert bob.admin.get("key/1") == {"name": "x", "hash": "y"}
        await bob.admin.end("key/1", "stolen")
        assert ann.admin.is_ended("key/1")
    again = AdminFile(tmp_path / "ann", program="0.3.0")
    assert [row.field for row in (await again.load()).rows] == ["ended"]
    await again.close()


async def test_maps_that_grew_apart_are_equal_after_one_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.admin.spread.CALL_S", 60.0)
    async with pair(tmp_path) as (ann, bob):
        ann.where.clear()
        bob.where.clear()
        for number in range(30):
            await ann.admin.put(f"agent/a{number}", {"url": "x" * 50_000})
            await bob.admin.put(f"agent/b{number}", {"url": "x" * 50_000})
        ann.where[bob.me] = (f"127.0.0.1:{bob.port.port}",)
        assert await ann.spread.sync(bob.me)
        assert ann.admin.replica.map.digest() == bob.admin.replica.map.digest()
        assert ann.admin.status().rows == 60
        assert not await ann.spread.sync(bob.me), "nothing is left to say"


async def test_bodies_are_bounded_and_strangers_get_nothing(tmp_path: Path) -> None:
    async with pair(tmp_path) as (ann, bob):
        for path in (ROWS_PATH, SYNC_PATH):
            long = await bob.calls.call(ann.me, "POST", path, body=b"x" * (2**20 + 1))
            assert long.status == 413
            nonsense = await bob.calls.call(ann.me, "POST", path, body=b"nonsense")
            assert nonsense.status == 400
        ann.roster = ann.roster.revoke(ANN, bob.me, time.time())
        answer = await bob.calls.call(ann.me, "POST", SYNC_PATH, body=b"")
        assert answer.status == 403


async def test_only_so_many_are_served_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.admin.exchange.SERVED_MAX", 2)
    async with pair(tmp_path) as (ann, bob):
        async with ann.admin.replica.lock:  # whoever pushes waits
            slow = [asyncio.create_task(bob.spread._give(ann.me, [b"x"])) for _ in range(2)]
            while ann.spread.exchange.serving < 2:
                await asyncio.sleep(0.01)
            answer = await bob.calls.call(ann.me, "POST", SYNC_PATH, body=b"x")
            assert answer.status == 503
        await asyncio.gather(*slow)
        assert (await bob.calls.call(ann.me, "POST", SYNC_PATH, body=b"x")).status == 400
