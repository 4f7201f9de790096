"""A machine with an admin map, for tests.sim.admin_world: a disk that outlives the process, which may be full."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gossip.identity import PeerId
from gossip.member import About, MemberView
from mesh.admin.admin import Admin
from mesh.admin.errors import NotDurable
from mesh.admin.rows import Row
from mesh.admin.spread import Spread
from mesh.admin.storage import Loaded
from tests.mesh.admin.house import who

if TYPE_CHECKING:
    from tests.sim.admin_world import World

WRITE_S = 0.001
"""Before the disk has it, and again until the writer knows."""


@dataclass(slots=True)
class Disk:
    """What outlives the process."""

    mesh_id: str = ""
    rows: dict[tuple[str, str], Row] = field(default_factory=dict)
    last_synced_ms: int = 0
    horizon_ms: int = 0
    is_full: bool = False


class Store:
    """The disk as one process sees it."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._disk = peer.disk

    async def load(self) -> Loaded:
        disk = self._disk
        return Loaded(
            mesh_id=disk.mesh_id,
            rows=tuple(disk.rows.values()),
            last_synced_ms=disk.last_synced_ms,
            horizon_ms=disk.horizon_ms,
        )

    async def write(self, stored: Sequence[Row], gone: Sequence[tuple[str, str]]) -> None:
        await self._reached()
        for name in gone:
            self._disk.rows.pop(name, None)
        self._disk.rows.update({(row.key, row.field): row for row in stored})
        await asyncio.sleep(WRITE_S)

    async def note(self, *, last_synced_ms: int, horizon_ms: int) -> None:
        await self._reached()
        self._disk.last_synced_ms, self._disk.horizon_ms = last_synced_ms, horizon_ms

    async def begin(self, mesh_id: str, rows: Sequence[Row], *, archive: str, last_synced_ms: int) -> None:
        await self._reached()
        disk = self._disk
        disk.mesh_id, disk.last_synced_ms, disk.horizon_ms = mesh_id, last_synced_ms, 0
        disk.rows = {(row.key, row.field): row for row in rows}

    async def close(self) -> None:
        pass

    async def _reached(self) -> None:
        await asyncio.sleep(WRITE_S)
        if self._disk.is_full:
            self._peer.is_ahead_of_disk = True
            raise NotDurable("the disk is full")


class Peer:
    """A machine, and its process while one runs."""

    def __init__(self, world: World, name: str, skew_ms: int) -> None:
        self.world, self.name, self.id = world, name, who(name).peer_id
        self.base_skew_ms = self.skew_ms = skew_ms
        self.roster = world.roster
        self.disk = Disk()
        self.is_ahead_of_disk = False
        """Memory holds what the disk refused."""
        self.side = 0
        self.admin: Admin | None = None
        self.spread: Spread | None = None
        self.told_lost: list[tuple[Row, Row]] = []
        """Edits that were called superseded since the last look."""

    @property
    def is_up(self) -> bool:
        return self.admin is not None

    @property
    def signers(self) -> set[PeerId]:
        """Whose rows count here, found in another way than the product does."""
        return {peer for peer, member in self.roster.members.items() if member.state == "active"}

    @property
    def is_signer(self) -> bool:
        return self.id in self.signers

    def now_ms(self) -> int:
        return self.world.true_ms() + self.skew_ms

    async def start(self) -> None:
        rng = random.Random(self.world.rng.getrandbits(32))
        self.is_ahead_of_disk = False
        self.admin = admin = Admin(
            identity=who(self.name),
            roster=lambda: self.roster,
            store=Store(self),
            is_coordinator=lambda: self.world.coordinator_of(self) is self,
            superseded=lambda row, by: self.told_lost.append((row, by)),
            now_ms=self.now_ms,
        )
        self.spread = Spread(
            admin=admin,
            call=lambda peer, method, path, /, **more: self.world.carried(self, admin, peer, path, more["body"]),
            members=self.members,
            fact=lambda peer, key: None,
            set_fact=lambda key, value: None,
            rng=rng,
        )
        await admin.start()

    async def stop(self) -> None:
        """SIGKILL: what is under way ends where it is."""
        if self.admin is None or self.spread is None:
            return
        tasks = [*self.admin.replica._tasks, *self.spread._pushing.values()]
        self.admin = self.spread = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def members(self) -> list[MemberView]:
        return [
            MemberView(
                peer=member.peer_id,
                role=member.state,
                state="alive" if self.world.reaches(self, self.world.by_id[member.peer_id]) else "dead",
                run=1,
                incarnation=1,
                about=About(),
                since=0.0,
                is_connected=True,
            )
            for member in self.roster.members.values()
            if member.peer_id != self.id
        ]
