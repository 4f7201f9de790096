"""The mesh as people see it: who is here, how they are, who coordinates, who wants in. JSON-ready values, no decisions.

`MeshOverview` reads what gossip and mesh.neighbours know; changes are mesh.governing's. Ids in JSON are UUIDs
(gossip.identity.uuid_of); an argument may also be the peer id, a unique prefix of six, or a name.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gossip.agent import Agent
from gossip.home import Home
from gossip.identity import short, uuid_of
from gossip.interfaces import split
from gossip.meeting import Meeting
from gossip.member import MemberView
from gossip.roster import Member
from inference.errors import ModelNotFound
from mesh.facts import Inventory
from mesh.neighbours import Neighbours
from mesh.version import our_version

PREFIX_MIN = 6


class UnknownPeer(ModelNotFound):
    """404: nobody of that name or id is in the mesh."""

    code = "peer_not_found"


@dataclass(frozen=True, slots=True)
class Sight:
    """One peer of the roster, as it is seen now; `view` None for this peer itself."""

    member: Member
    view: MemberView | None

    @property
    def peer(self) -> str:
        return self.member.peer_id


class MeshOverview:
    """Reads; owns nothing."""

    def __init__(
        self,
        *,
        agent: Agent,
        home: Home,
        meeting: Meeting,
        neighbours: Neighbours,
        is_draining: Callable[[], bool],
        clock: Callable[[], float],
        notes: Callable[[str], Mapping[str, Any]] = lambda peer: {},
    ) -> None:
        """`notes`: what people wrote about a peer: custom_name, tags, notes, is_cordoned."""
        self._notes = notes
        self._agent = agent
        self._home = home
        self._meeting = meeting
        self._neighbours = neighbours
        self._is_draining = is_draining
        self._clock = clock
        self._began = clock()
        self.wrong_versions: dict[str, str] = {}

    # -- names

    def name_of(self, peer: str) -> str:
        """What people call it; the beginning of its id when nobody told."""
        member = self._home.roster.members.get(peer)
        return member.name if member is not None else short(peer)

    def found(self, who: str) -> Sight:
        """The peer that `who` means. Raises UnknownPeer, naming near ones."""
        wanted = who.strip()
        sights = list(self._sights())
        for match in (
            [s for s in sights if wanted in (s.peer, str(uuid_of(s.peer)))],
            [s for s in sights if s.member.name == wanted],
            [s for s in sights if s.member.name.casefold() == wanted.casefold()],
            [s for s in sights if self._notes(s.peer).get("custom_name") == wanted],
            [s for s in sights if len(wanted) >= PREFIX_MIN and _begins(s.peer, wanted)],
        ):
            if len(match) == 1:
                return match[0]
            if match:
                ids = ", ".join(short(s.peer) for s in match)
                raise UnknownPeer(f"{wanted[:80]!r} may be several machines: {ids}. Give the id.", param="id")
        names = [s.member.name for s in sights]
        near = difflib.get_close_matches(wanted[:80], names, n=3, cutoff=0.0)
        raise UnknownPeer(f"There is no machine {wanted[:80]!r} in this mesh; nearest: {', '.join(near)}.", param="id")

    def counts(self) -> dict[str, int]:
        """How many other members are in each state."""
        found: dict[str, int] = {}
        for view in self._agent.members():
            found[view.state] = found.get(view.state, 0) + 1
        return found

    @property
    def is_coordinator(self) -> bool:
        claim = self._agent.coordinator
        return claim is not None and claim.peer == self._agent.me

    @property
    def term(self) -> int:
        claim = self._agent.coordinator
        return claim.term if claim is not None else 0

    # -- the facet's answers

    def overview(self) -> dict[str, Any]:
        """`/api/mesh`."""
        claim = self._agent.coordinator
        coordinator = None
        if claim is not None:
            coordinator = {"id": str(uuid_of(claim.peer)), "name": self.name_of(claim.peer)}
        peers = [self._peer(sight) for sight in self._sights()]
        return {
            "mesh_id": self._home.roster.mesh_id,
            "name": self._home.mesh_name,
            "term": self.term,
            "coordinator": coordinator,
            "self": {"id": str(uuid_of(self._agent.me)), "name": self.name_of(self._agent.me)},
            "door": self.door(),
            "peers": peers,
            "guests_waiting": sum(peer["is_guest"] for peer in peers),
            "joins_waiting": len(self._meeting.askers.waiting()),
            "joining": self._meeting.joining(),
        }

    def agents(self) -> list[dict[str, Any]]:
        """F164-F165: peers as scripts written for the reference read them."""
        return [self._as_agent(sight) for sight in self._sights()]

    def peer(self, who: str) -> dict[str, Any]:
        """Everything known of one."""
        sight = self.found(who)
        inventory = self._neighbours.inventory(sight.peer)
        load = self._neighbours.load(sight.peer)
        view = sight.view
        notes = self._notes(sight.peer)
        return self._peer(sight) | {
            "peer_id": sight.peer,
            "custom_name": notes.get("custom_name"),
            "tags": list(notes.get("tags") or ()),
            "notes": notes.get("notes"),
            "joined_by": sight.member.via,
            "joined_at": sight.member.added_at,
            "added_by": self.name_of(sight.member.added_by),
            "addresses": list(self._agent.about.addresses if view is None else self._agent.addresses(sight.peer)),
            "is_connected": view is None or view.is_connected,
            "incarnation": view.incarnation if view is not None else None,
            "cpu_percent": load.cpu if load is not None else None,
            "memory_percent": load.memory if load is not None else None,
            "gpu_percent": load.gpu if load is not None else None,
            "models_loaded": [m.model for m in load.models if m.is_loaded] if load is not None else [],
            "engine": inventory.engine if inventory is not None else None,
            "gpus": [gpu.name for gpu in inventory.gpus] if inventory is not None else [],
            "cores": inventory.cores if inventory is not None else None,
            "memory_bytes": inventory.memory_bytes if inventory is not None else None,
        }

    def identity(self) -> dict[str, Any]:
        me = self._agent.me
        return {"id": str(uuid_of(me)), "peer_id": me, "name": self.name_of(me), "mesh_id": self._home.roster.mesh_id}

    def joins(self) -> list[dict[str, Any]]:
        return self._meeting.askers.waiting()

    def door(self) -> dict[str, Any]:
        left = self._home.door_seconds_left()
        return {"open": left > 0, "seconds_left": round(left, 1)}

    def well_known(self, peer_port: int | None) -> dict[str, Any]:
        return {"version": our_version(), "mesh": self._home.roster.mesh_id[:16], "peer_port": peer_port}

    # -- one peer

    def _sights(self) -> Iterator[Sight]:
        """This peer first, then the others by name."""
        members = self._home.roster.members
        if (me := members.get(self._agent.me)) is not None:
            yield Sight(me, None)
        views = {view.peer: view for view in self._agent.members()}
        others = (member for peer, member in members.items() if peer != self._agent.me and peer in views)
        for member in sorted(others, key=lambda m: (m.name.casefold(), m.peer_id)):
            yield Sight(member, views[member.peer_id])

    def _peer(self, sight: Sight) -> dict[str, Any]:
        view = sight.view
        inventory = self._neighbours.inventory(sight.peer)
        load = self._neighbours.load(sight.peer)
        is_gone = view is not None and view.state in ("dead", "left", "unknown")
        return {
            "id": str(uuid_of(sight.peer)),
            "name": sight.member.name,
            "state": self._state(sight),
            "is_guest": sight.member.state == "guest",
            "is_cordoned": bool(self._notes(sight.peer).get("is_cordoned")),
            "version": our_version() if view is None else view.about.version,
            "models": [model.id for model in inventory.models] if inventory is not None else [],
            "active_requests": load.active if load is not None and not is_gone else 0,
            "queued": load.queued if load is not None and not is_gone else 0,
            "since_s": round(self._clock() - (self._began if view is None else view.since), 1),
            "ip_address": self._ip(sight),
        }

    def _state(self, sight: Sight) -> str:
        view = sight.view
        if view is None:
            return "draining" if self._is_draining() else "alive"
        if view.state in ("unknown", "dead") and sight.peer in self.wrong_versions:
            return "wrong-version"
        return "draining" if view.about.draining and view.state in ("alive", "suspect") else view.state

    def _ip(self, sight: Sight) -> str:
        addresses = self._agent.about.addresses if sight.view is None else self._agent.addresses(sight.peer)
        try:
            return split(addresses[0])[0] if addresses else ""
        except ValueError:  # what a member says of itself is no address
            return ""

    def _as_agent(self, sight: Sight) -> dict[str, Any]:
        view = sight.view
        inventory = self._neighbours.inventory(sight.peer)
        load = self._neighbours.load(sight.peer)
        state = self._state(sight)
        gpus = _devices(inventory)
        notes = self._notes(sight.peer)
        seen_s = 0.0 if view is None or view.state == "alive" else self._clock() - view.since
        identity = str(uuid_of(sight.peer))
        return {
            "id": identity,
            "agent_id": identity,
            "node_id": identity,
            "machine_name": sight.member.name,
            "ip_address": self._ip(sight),
            "runtime_version": our_version() if view is None else view.about.version,
            "runtime_port": inventory.client_port if inventory is not None else None,
            "status": "online" if state in ("alive", "suspect", "draining") else "offline",
            "state": state,
            "registered_at": _timestamp(sight.member.added_at),
            "last_seen": _timestamp(time.time() - seen_s),
            "gpu_available": bool(gpus),
            "gpu_devices": gpus,
            "gpu_count": sum(gpu["count"] for gpu in gpus),
            "gpu_model": gpus[0]["model"] if gpus else None,
            "loaded_models": [m.model for m in load.models if m.is_loaded] if load is not None else [],
            "custom_name": notes.get("custom_name"),
            "tags": list(notes.get("tags") or ()),
            "notes": notes.get("notes"),
            "is_cordoned": bool(notes.get("is_cordoned")),
            "active_requests": load.active if load is not None else 0,
            "queued": load.queued if load is not None else 0,
        }


def _begins(peer: str, wanted: str) -> bool:
    wanted = wanted.casefold()
    return peer.startswith(wanted) or str(uuid_of(peer)).startswith(wanted)


def _devices(inventory: Inventory | None) -> list[dict[str, Any]]:
    """GPUs of one model are one device with a count, as the reference has them."""
    found: dict[str, dict[str, Any]] = {}
    for gpu in inventory.gpus if inventory is not None else ():
        device = found.setdefault(
            gpu.name, {"model": gpu.name, "count": 0, "memory": gpu.memory_bytes, "usable": gpu.is_usable}
        )
        device["count"] += 1
    return list(found.values())


def _timestamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(max(0.0, seconds)))
