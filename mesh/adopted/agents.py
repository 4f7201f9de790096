"""The registered servers of the mesh: what they are (the admin map, on every peer), and how they are (gossip tells).

    admin map (agent/<uuid>)  -> Agents, on every peer
    watcher -> fact `agents`  -> Agents.sight: online or not, and how loaded

Reads only. What changes them is mesh.adopted.registry's, whom to ask mesh.router's.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from gossip.member import Fact
from mesh.adopted.agent import PREFIX, Agent, agent_in
from mesh.adopted.errors import UnknownAgent
from mesh.adopted.standing import AGENTS, Sight, Standing, news_in, seen, together

log = logging.getLogger(__name__)

ID_PREFIX_MIN = 6
WHERE = ("via", "scheme", "host", "port", "address")
"""Fields of the admin map that say where a server is."""
COORDINATORS_MAX = 4
"""Former ones, whose last word on a server counts until the present one has spoken."""
SOURCES_MAX = 512


class AdminMap(Protocol):
    """What this package needs of mesh.admin.admin.Admin; tests have one in memory."""

    def get(self, key: str) -> dict[str, Any] | None: ...

    def keys(self, prefix: str) -> list[str]: ...

    def author(self, key: str, field: str) -> str | None: ...

    async def put(self, key: str, fields: Mapping[str, Any]) -> object: ...

    async def end(self, key: str, reason: str) -> object: ...

    def watch(self, callback: Callable[[frozenset[str]], None]) -> None: ...


class Agents:
    """By id. `fact_of` answers what a peer tells under a key (gossip.agent.Agent.fact); `is_there`: whether a peer may
    be asked now."""

    def __init__(
        self,
        *,
        me: str,
        admin: AdminMap,
        coordinator: Callable[[], str | None],
        fact_of: Callable[[str, str], Fact | None] = lambda peer, key: None,
        is_there: Callable[[str], bool] = lambda peer: True,
    ) -> None:
        self._me = me
        self._admin = admin
        self._coordinator = coordinator
        self._fact_of = fact_of
        self._is_there = is_there
        self._agents: dict[str, Agent] = {}
        self._watchers: list[Callable[[str], None]] = []
        self._before: list[str] = []  # coordinators, the last one first
        self._told: dict[str, tuple[int, dict[str, Sight]]] = {}  # by peer, with the version of the fact
        self.own: dict[str, Standing] = {}
        admin.watch(self._changed)
        self.refresh()

    def __iter__(self) -> Iterator[Agent]:
        return iter(list(self._agents.values()))

    def __len__(self) -> int:
        return len(self._agents)

    def get(self, agent_id: str) -> Agent | None:
        return self._agents.get(agent_id)

    def watch(self, callback: Callable[[str], None]) -> None:
        """Called with the id of each server that is new, changed or gone."""
        self._watchers.append(callback)

    def refresh(self) -> None:
        """Reads all of them again: after a move to another mesh, and now and then."""
        self._changed(frozenset(self._admin.keys(PREFIX)) | {PREFIX + agent_id for agent_id in self._agents})

    def found(self, who: str) -> Agent:
        """The one that `who` means: its id, a unique prefix of six, or a name. Raises UnknownAgent."""
        wanted = who.strip()
        folded = wanted.casefold()
        for match in (
            [a for a in self if a.id == folded],
            [a for a in self if wanted in (a.custom_name, a.machine_name)],
            [a for a in self if folded in ((a.custom_name or "").casefold(), a.machine_name.casefold())],
            [a for a in self if len(folded) >= ID_PREFIX_MIN and a.id.startswith(folded)],
        ):
            if len(match) == 1:
                return match[0]
            if match:
                ids = ", ".join(agent.id[:8] for agent in match)
                raise UnknownAgent(f"{wanted[:80]!r} may be several servers: {ids}. Give the id.", param="id")
        near = difflib.get_close_matches(wanted[:80], [agent.machine_name for agent in self], n=3, cutoff=0.0)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise UnknownAgent(f"There is no registered server {wanted[:80]!r} in this mesh{hint}.", param="id")

    def is_watched_here(self, agent: Agent) -> bool:
        """Whether this peer tells how it is: the coordinator, to whom its heartbeats go, and who alone can reach it."""
        return self._me in (agent.via, self._coordinator())

    def is_reached_here(self, agent: Agent) -> bool:
        """Whether this peer can ask it."""
        return agent.via in ("", self._me)

    def sight(self, agent: Agent) -> Sight | None:
        """How it is, as its watchers tell; None when nobody has told yet."""
        coordinator = self._coordinator()
        if coordinator is not None and coordinator not in self._before[:1]:
            self._before = [coordinator, *(peer for peer in self._before if peer != coordinator)][:COORDINATORS_MAX]
        watchers = {peer for peer in (coordinator, agent.via) if peer}
        sight = together(told for peer in sorted(watchers) if (told := self._told_by(peer, agent)) is not None)
        former = (told for peer in self._before if (told := self._told_by(peer, agent)) is not None)
        return sight if sight is not None else next(former, None)

    def is_online(self, agent: Agent) -> bool:
        """Whether it may be asked. Who was registered a moment ago, and of whom nobody has told, may."""
        if not self.is_reached_here(agent) and not self._is_there(agent.via):
            return False
        sight = self.sight(agent)
        return sight is None or sight.is_online

    def _told_by(self, peer: str, agent: Agent) -> Sight | None:
        if peer == self._me:
            standing = self.own.get(agent.id)
            return None if standing is None else seen(standing)
        fact = self._fact_of(peer, AGENTS)
        if fact is None:
            return None
        known = self._told.get(peer)
        if known is None or known[0] != fact.version:
            if len(self._told) >= SOURCES_MAX:
                self._told.clear()
            known = self._told[peer] = (fact.version, news_in(fact.value, fact.received_at))
        return known[1].get(agent.id)

    def _is_its_word(self, agent: Agent) -> bool:
        """Of what only one peer can reach, its own loopback, that peer alone says where it is: nobody else may make it
        knock at its own ports."""
        return all(self._admin.author(agent.key, name) == agent.via for name in WHERE)

    def _changed(self, keys: frozenset[str]) -> None:
        for key in sorted(keys):
            if not key.startswith(PREFIX):
                continue
            agent_id = key.removeprefix(PREFIX)
            fields = self._admin.get(key)
            agent = None if fields is None else agent_in(key, fields)
            if agent is not None and agent.via and not self._is_its_word(agent):
                agent = None
            if fields is not None and agent is None:
                log.debug("a registered server in the admin map is none", extra={"key": key})
            before = self._agents.pop(agent_id, None)
            if agent is not None:
                self._agents[agent_id] = agent if agent != before else before or agent
            if agent != before:
                for callback in self._watchers:
                    callback(agent_id)
