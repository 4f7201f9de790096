"""What people do to the mesh: door, invitations, yes and no to those who ask, names, trust, revocation, join and leave.

Each call answers JSON-ready values or raises an error of `inference.errors` with the words for a person.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec

from gossip.agent import Agent
from gossip.errors import BadStatement, GossipError, JoinError, NotAllowed, UnknownPeer
from gossip.home import Home
from gossip.identity import Identity, uuid_of
from gossip.meeting import Meeting
from gossip.roster import Roster
from inference.errors import InferenceError
from mesh.overview import MeshOverview

P = ParamSpec("P")
Answer = dict[str, Any]


class Refused(InferenceError):
    """The mesh says no."""

    type = "invalid_request_error"

    def __init__(self, message: str, *, status: int, code: str) -> None:
        super().__init__(message, code=code)
        self.status = status


def _in_words(call: Callable[P, Awaitable[Answer]]) -> Callable[P, Awaitable[Answer]]:
    """gossip's errors become those that HTTP answers with."""

    @functools.wraps(call)
    async def wrapped(*args: P.args, **kwargs: P.kwargs) -> Answer:
        try:
            return await call(*args, **kwargs)
        except JoinError as error:
            raise Refused(str(error), status=409, code=error.code) from error
        except UnknownPeer as error:
            raise Refused(str(error), status=404, code="peer_not_found") from error
        except NotAllowed as error:
            raise Refused(str(error), status=409, code="not_allowed") from error
        except BadStatement as error:
            raise Refused(str(error), status=400, code="invalid_value") from error
        except GossipError as error:
            raise Refused(str(error), status=409, code="mesh_error") from error

    return wrapped


class Governing:
    """The acts behind MeshFacet."""

    def __init__(
        self,
        *,
        identity: Identity,
        agent: Agent,
        home: Home,
        meeting: Meeting,
        overview: MeshOverview,
        now_s: Callable[[], float],
        tell_door: Callable[[], None],
    ) -> None:
        self._identity = identity
        self._agent = agent
        self._home = home
        self._meeting = meeting
        self._overview = overview
        self._now_s = now_s
        self._tell_door = tell_door

    def door(self, minutes: float) -> Answer:
        """Opens the door for so long; 0 shuts it. Every member hears of it."""
        if not self._home.roster.is_signer(self._agent.me):
            raise Refused("A guest cannot open the door: it signs nothing.", status=409, code="not_allowed")
        self._home.set_door(minutes * 60)
        self._tell_door()
        return self._overview.door()

    @_in_words
    async def approve(self, who: str) -> Answer:
        asked = await self._meeting.askers.approve(who)
        self._home.ripen()
        self._tell_door()
        return asked

    @_in_words
    async def deny(self, who: str) -> Answer:
        return await self._meeting.askers.deny(who)

    @_in_words
    async def invite(self, uses: int, hours: float) -> Answer:
        """A line that admits so many machines for so long."""
        line, expires_at = self._meeting.invite(uses, hours * 3600)
        return {"line": line, "command": f"llm-router join '{line}'", "expires_at": expires_at}

    @_in_words
    async def join(self, to: str, brings_history: bool = False) -> Answer:
        """By a token's line, or the address of a member; with what was recorded here before, if that is wanted."""
        self._home.brings_history = brings_history
        return await self._meeting.join(to)

    @_in_words
    async def leave(self) -> Answer:
        """Out of the mesh, into one of its own."""
        name = self._home.mesh_name
        if len(self._home.roster.members) == 1:
            raise Refused("This machine is in no mesh with others.", status=409, code="no_mesh")
        await self._meeting.leave()
        return {"name": name}

    @_in_words
    async def rename(self, who: str, name: str) -> Answer:
        return self._changed(who, lambda peer: self._home.roster.rename(self._identity, peer, name, self._now_s()))

    @_in_words
    async def revoke(self, who: str) -> Answer:
        sight = self._overview.found(who)
        if sight.view is None:
            raise Refused(
                "This machine cannot revoke itself; `llm-router leave` takes it out.", status=409, code="not_allowed"
            )
        answer = {"id": str(uuid_of(sight.peer)), "name": sight.member.name}
        self._agent.set_roster(self._home.roster.revoke(self._identity, sight.peer, self._now_s()))
        return answer

    @_in_words
    async def trust(self, who: str) -> Answer:
        return self._changed(who, lambda peer: self._home.roster.trust(self._identity, peer, self._now_s()))

    @_in_words
    async def claim(self, confirmed: frozenset[str] | None) -> Answer:
        """The mesh has an owner now: of the machines that came by the door, those `confirmed` (peer ids; None: all)
        are full members for good, the others guests. Who is named becomes one, also from a guest."""
        roster, now_s = self._home.roster, self._now_s()
        doubtful = {m.peer_id: m.state for m in roster.members.values() if not m.may_revoke}
        if self._agent.me in doubtful:
            founder = next((m.name for m in roster.members.values() if m.may_revoke), "another machine")
            raise NotAllowed(f"this machine itself came by the door; claim the mesh on {founder}")
        stay = [p for p, state in doubtful.items() if (state == "active" if confirmed is None else p in confirmed)]
        for peer in stay:  # first: what they let in stands on them
            roster = roster.trust(self._identity, peer, now_s)
        for peer in doubtful.keys() - set(stay):
            if peer in roster.members:
                roster = roster.demote(self._identity, peer, now_s)
        self._agent.set_roster(roster)
        self._home.own()
        self._tell_door()
        return {"name": self._home.mesh_name, "members": len(roster.members)}

    def unconfirmed(self) -> list[Answer]:
        """The machines that came by the door and that nobody has said to be his own."""
        members = self._home.roster.members.values()
        return [{"id": str(uuid_of(m.peer_id)), "name": m.name} for m in members if not m.may_revoke]

    def _changed(self, who: str, change: Callable[[str], Roster]) -> Answer:
        peer = self._overview.found(who).peer
        self._agent.set_roster(change(peer))
        return {"id": str(uuid_of(peer)), "name": self._home.roster.name_of(peer)}
