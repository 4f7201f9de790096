"""What a peer keeps for its mesh and reads at every request: the admin map, and what follows from it.

Built before the mesh takes part (mesh.peering), because routing asks it: which servers were registered by hand, who is
cordoned, which settings the mesh gives. What is done with the map is mesh.office's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Self

from gossip.home import Home
from gossip.identity import Identity
from gossip.member import Fact
from inference.providers.openai_compatible import OpenAICompatible
from mesh.admin.admin import Admin
from mesh.admin.replica import Superseded
from mesh.admin.storage import AdminFile
from mesh.adopted.agents import Agents
from mesh.adopted.breakers import Breakers
from mesh.adopted.holders import AdoptedServers
from mesh.config import Loaded
from mesh.live import LiveSettings
from mesh.managing import PEERS
from mesh.version import our_version

log = logging.getLogger(__name__)


class Keeping:
    """Use as `async with`: the map is read from the disk, and closed in the end. `coordinator` answers the id of who
    coordinates, `fact_of` a member's fact, `is_there` whether a member may be asked now."""

    def __init__(
        self,
        *,
        loaded: Loaded,
        identity: Identity,
        home: Home,
        coordinator: Callable[[], str | None],
        fact_of: Callable[[str, str], Fact | None],
        is_there: Callable[[str], bool],
        superseded: Superseded,
    ) -> None:
        clock = asyncio.get_running_loop().time
        self.admin = Admin(
            identity=identity,
            roster=lambda: home.roster,
            store=AdminFile(loaded.config.data_dir, program=our_version()),
            is_coordinator=lambda: coordinator() == identity.peer_id,
            superseded=superseded,
        )
        self.live = LiveSettings(loaded, self.admin.get)
        self.agents = Agents(
            me=identity.peer_id, admin=self.admin, coordinator=coordinator, fact_of=fact_of, is_there=is_there
        )
        self.breakers = Breakers()
        self.client = OpenAICompatible()
        self.servers = AdoptedServers(agents=self.agents, breakers=self.breakers, client=self.client, clock=clock)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.client)
        await self.admin.start()
        self._stack.push_async_callback(self.admin.close)
        self.agents.refresh()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def notes(self, peer: str) -> Mapping[str, Any]:
        """What people wrote about the peer."""
        return self.admin.get(PEERS + peer) or {}

    def is_cordoned(self, peer: str) -> bool:
        """Somebody wants the peer to get no requests."""
        return bool(self.notes(peer).get("is_cordoned"))
