"""Strangers: who they are, whether one mesh moves into the other, and who asks to come in.

Hints (mDNS, seeds, the run dir, members that moved) name an address. Who answers there says which mesh it is of, and
gossip.admission decides what that means: nothing, come in by its open door, or ask. Who asks here: gossip.askers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from gossip import joiner
from gossip.admission import Admission, MeshSummary, Token, is_token, plan
from gossip.agent import Agent
from gossip.askers import Askers
from gossip.channel import Network, Unreachable
from gossip.errors import (
    GossipError,
    JoinBusy,
    JoinDenied,
    JoinError,
    JoinExpired,
    JoinUnreachable,
    NotAllowed,
    TokenRefused,
)
from gossip.home import Home, word_in, word_out
from gossip.identity import Identity, short
from gossip.interfaces import may_be_peer, split
from gossip.joining import JoinServer, Welcome
from gossip.roster import Roster
from gossip.rundir import Housemate
from gossip.seeds import Found, Own, Seeds, seeds_of
from gossip.statements import clean_name
from gossip.transport import PeerRoute

log = logging.getLogger(__name__)

HINTS_MAX = 64
"""Addresses waiting to be asked; more are dropped, they come again."""
AT_ONCE = 4
AGAIN_S = 1.0
"""A young mesh asks an address again after this: machines started together must find each other in seconds."""
AGAIN_OLD_S = 60.0
CLONE_CHECK_S = 10.0
ENDED_SHOWN_S = 15.0
"""How long the end of a request to join is told."""
ASK_AGAIN_S = 600.0
MEET_S = 10.0
LOOK_S = 40.0
ADDRESSES_OF_ONE_MAX = 4


class AlreadyMember(JoinError):
    """This machine is in a mesh with others, or in that very one."""

    code: ClassVar[str] = "already_member"


class JoinFailed(JoinError):
    """The machine at that address did not let this one in; the reason is its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What people should hear; each takes what it is about."""

    asking: Callable[[str, int, str], None] = lambda mesh, members, digits: None
    not_joined: Callable[[str, str], None] = lambda mesh, reason: None
    joined: Callable[[str, int], None] = lambda mesh, members: None
    asked: Callable[[str, str, str], None] = lambda name, digits, address: None
    admitted: Callable[[str, str, str], None] = lambda name, short_id, via: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Joining:
    """This peer's own wish to join. `state`: asking, denied, expired or failed."""

    state: str
    name: str
    members: int
    digits: str | None = None
    until: float = 0.0
    reason: str | None = None


class Meeting:
    """One peer's dealings with strangers. `run` until cancelled; all methods belong to that loop."""

    def __init__(
        self,
        *,
        identity: Identity,
        name: str,
        home: Home,
        agent: Agent,
        network: Network,
        secret: str,
        addresses: Callable[[], tuple[str, ...]],
        said: Said,
        now_s: Callable[[], float],
        rng: random.Random,
    ) -> None:
        """`secret` is that of the run dir; `addresses` where this peer is reached; `said` hears what people should."""
        self._identity = identity
        self._name = name
        self._home = home
        self._agent = agent
        self._network = network
        self._addresses = addresses
        self._said = said
        self._now_s = now_s
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[str] = asyncio.Queue(HINTS_MAX)
        self._queued: set[str] = set()
        self._next: dict[str, float] = {}
        self._moving = asyncio.Lock()
        self._asking: asyncio.Task[None] | None = None
        self._joining: Joining | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._clones_checked: dict[str, float] = {}
        self._server = JoinServer(
            identity=identity,
            roster=lambda: home.roster,
            summary=home.summary,
            mesh_name=lambda: home.mesh_name,
            admission=Admission(home.tokens),
            admitted=self._admitted,
            tokens=home.set_tokens,
            now=self._loop.time,
            now_s=now_s,
            local_secret=secret,
            door_state=lambda: "guest" if home.is_claimed else "active",
            is_closed=lambda: agent.is_leaving,
            changed=lambda: self.askers.tell(),
            met=self._met,
            word=lambda: word_out(home.word),
        )

        self.askers = Askers(
            identity=identity,
            home=home,
            agent=agent,
            server=self._server,
            admitted=self._admitted,
            said=said.asked,
            now_s=now_s,
        )

    def routes(self) -> list[PeerRoute]:
        """For the peer port; open to strangers."""
        return self._server.routes()

    async def run(self) -> None:
        """Asks the addresses that hints name, a few at a time."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(AT_ONCE):
                    tasks.create_task(self._ask_hinted())
                tasks.create_task(self.askers.keep_told())
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- hints

    def hinted(self, addresses: Sequence[str], mesh: str) -> None:
        """Somebody of another mesh (the beginning of its id) may be at one of these."""
        if mesh and self._home.roster.mesh_id.startswith(mesh):
            return  # a member to be: its entry is on the way
        now = self._loop.time()
        for address in filter(may_be_peer, addresses[:ADDRESSES_OF_ONE_MAX]):
            if now >= self._next.get(address, 0.0) and address not in self._queued and not self._inbox.full():
                self._queued.add(address)
                self._inbox.put_nowait(address)

    def _met(self, address: str, summary: MeshSummary) -> None:
        """A stranger called: it may be for this side to join."""
        if plan(self._home.summary(), summary) != "none":
            self.hinted((address,), summary.mesh_id)

    async def offered(self, address: str) -> bool:
        """A seed leads here. True when a member of this mesh answers."""
        if self._is_linked(address):
            return True
        try:
            welcome = await joiner.hello(address, self._joiner())
        except JoinError as error:
            log.debug("a seed does not answer", extra={"address": address, "reason": str(error)})
            return False
        if welcome.summary.mesh_id == self._home.roster.mesh_id:
            return await self._is_member_at(address)
        try:
            await self._meet(address, welcome)
        except GossipError as error:  # full, shut, or gone at this moment: a seed is asked again
            log.debug("a seed was not joined", extra={"address": address, "reason": str(error)[:200]})
        return welcome.summary.mesh_id == self._home.roster.mesh_id

    def housemate(self, mate: Housemate) -> None:
        """Another peer of this user on this machine. Not asked by who would stay where it is, whatever it said."""
        now = self._loop.time()
        if now >= self._next.get(mate.address, 0.0) and self._to_housemates().is_young:
            self._next[mate.address] = now + AGAIN_S
            self._spawn(self._meet_housemate(mate))

    def suspect_clone(self, addresses: Sequence[str]) -> None:
        """This peer's own name is announced from elsewhere: who is there?"""
        now = self._loop.time()
        for address in addresses[:ADDRESSES_OF_ONE_MAX]:
            if now >= self._clones_checked.get(address, 0.0):
                self._clones_checked.pop(address, None)  # it goes in again as the newest
                self._clones_checked[address] = now + CLONE_CHECK_S
                if len(self._clones_checked) > HINTS_MAX:  # anybody can announce our name: the newest are looked at
                    del self._clones_checked[next(iter(self._clones_checked))]
                self._spawn(self._agent.look_for_clone(address))

    # -- people

    def joining(self) -> dict[str, Any] | None:
        """This peer's own request to join, while it waits and shortly after."""
        mine, now = self._joining, self._loop.time()
        if mine is None or now > mine.until + (0.0 if mine.state == "asking" else ENDED_SHOWN_S):
            return None
        return {
            "state": mine.state,
            "name": mine.name,
            "members": mine.members,
            "digits": mine.digits,
            "seconds_left": round(max(0.0, mine.until - now), 1),
            "reason": mine.reason,
        }

    def invite(self, uses: int, seconds: float) -> tuple[str, float]:
        """The line of a new token, and until when it is good (unix seconds). Raises NotAllowed."""
        if not self._home.roster.is_signer(self._identity.peer_id):
            raise NotAllowed("a guest cannot invite: it signs nothing")
        token = self._server.invite(uses=uses, seconds=seconds, addresses=self._addresses())
        return token.line, self._now_s() + seconds

    async def join(self, to: str) -> dict[str, Any]:
        """Joins by a token's line, or asks the member at an address. Raises JoinError."""
        self._require_free()
        if is_token(to):
            token = Token.parse(to)
            if token.mesh_id == self._home.roster.mesh_id:
                raise AlreadyMember("this machine is in that mesh already")
            async with self._moving:
                self._require_free()
                await self._move(await joiner.join_by_token(token, self._joiner()))
            return self._joined_answer()
        address, welcome = await self._found_at(to)
        if welcome.summary.mesh_id == self._home.roster.mesh_id:
            raise AlreadyMember("this machine is in that mesh already")
        return await self._knock(address, welcome.name, is_wanted=True)

    def join_soon(self, line: str) -> None:
        """Joins by the token of LLM_ROUTER_JOIN, as soon as that mesh answers; nothing if this peer is in it."""
        self._spawn(self._join_by_setting(line))

    async def leave(self) -> None:
        """Out of the mesh, into one of its own with its door shut: who leaves does not want back in by itself."""

        def go() -> None:
            self._home.leave(0.0)
            self._server.moved()

        async with self._moving:
            await self._agent.leave_for(go)

    # -- meeting

    async def _ask_hinted(self) -> None:
        while True:
            address = await self._inbox.get()
            self._queued.discard(address)
            again = AGAIN_S if self._home.is_young else AGAIN_OLD_S
            self._next[address] = self._loop.time() + again * (0.75 + 0.5 * self._rng.random())
            if len(self._next) > 4 * HINTS_MAX:
                self._next.pop(next(iter(self._next)))
            try:
                async with asyncio.timeout(MEET_S):
                    welcome = await joiner.hello(address, self._joiner())
                    if welcome.summary.mesh_id != self._home.roster.mesh_id:
                        await self._meet(address, welcome)
            except (GossipError, TimeoutError) as error:
                log.debug("a stranger was not met", extra={"address": address, "reason": str(error)[:200]})

    async def _meet(self, address: str, welcome: Welcome) -> None:
        """Joins if the rule says so, on the numbers as they are now. Raises JoinError."""
        how = plan(self._home.summary(), welcome.summary)
        if how == "door":
            async with self._moving:
                if plan(self._home.summary(), welcome.summary) == "door":
                    await self._move(await joiner.join(address, self._joiner()))
        elif how == "ask" and self._asking is None:
            await self._knock(address, welcome.name, is_wanted=False)

    async def _meet_housemate(self, mate: Housemate) -> None:
        try:
            welcome = await joiner.hello(mate.address, self._joiner())
            theirs = replace(welcome.summary, door_open=True)
            if plan(self._to_housemates(), theirs) != "door":
                return
            async with self._moving:
                if plan(self._to_housemates(), theirs) == "door":  # it may have moved while it waited
                    joined = await joiner.join_on_this_machine(mate.address, mate.peer, mate.secret, self._joiner())
                    await self._move(joined)
        except GossipError as error:
            log.debug("a housemate was not joined", extra={"peer": short(mate.peer), "reason": str(error)[:200]})

    def _to_housemates(self) -> MeshSummary:
        """One machine alone is as good as young to its own user, however long ago it shut its door."""
        mine = self._home.summary()
        return replace(mine, is_young=True) if mine.members == 1 and not self._home.word.is_mature else mine

    async def _knock(self, address: str, name: str, *, is_wanted: bool) -> dict[str, Any]:
        """By the door, or asks; answers as soon as people of the other mesh are asked."""
        if self._asking is not None:
            raise JoinBusy("this machine already asks to join a mesh")
        asked: asyncio.Future[None] = self._loop.create_future()
        self._asking = self._spawn(self._knocked(address, clean_name(name) or address, asked, is_wanted=is_wanted))
        await asyncio.wait({asked, self._asking}, return_when=asyncio.FIRST_COMPLETED)
        if self._asking is not None and not self._asking.done():
            shown = self.joining()
            assert shown is not None
            return {key: shown[key] for key in ("state", "name", "members", "digits", "seconds_left")}
        failure = self._joining
        if failure is not None and failure.state != "asking":
            raise JoinFailed(failure.reason or failure.state)
        return self._joined_answer()

    async def _knocked(self, address: str, name: str, asked: asyncio.Future[None], *, is_wanted: bool) -> None:
        def waiting(news: joiner.Waiting) -> None:
            self._joining = Joining(
                state="asking",
                name=news.mesh_name,
                members=news.members,
                digits=news.digits,
                until=self._loop.time() + news.seconds_left,
            )
            if not asked.done():
                asked.set_result(None)
                self._said.asking(news.mesh_name, news.members, news.digits)

        self._joining = None
        try:
            joined = await joiner.join(address, self._joiner(), is_wanted=is_wanted, waiting=waiting)
            async with self._moving:
                await self._move(joined)
            self._joining = None
        except GossipError as error:
            is_denied, is_expired = isinstance(error, JoinDenied), isinstance(error, JoinExpired)
            state = "denied" if is_denied else "expired" if is_expired else "failed"
            self._joining = Joining(state=state, name=name, members=0, until=self._loop.time(), reason=str(error))
            self._next[address] = self._loop.time() + ASK_AGAIN_S
            if asked.done():
                self._said.not_joined(name, str(error))
        finally:
            self._asking = None

    async def _found_at(self, to: str) -> tuple[str, Welcome]:
        """The peer port that `host`, `host:port` or a URL leads to, and who is there. Raises JoinUnreachable."""
        found: list[tuple[str, Welcome]] = []

        async def offered(candidate: Found) -> bool:
            try:
                found.append((candidate.address, await joiner.hello(candidate.address, self._joiner(), is_wanted=True)))
            except JoinError as error:
                log.debug("no peer there", extra={"address": candidate.address, "reason": str(error)[:200]})
            return bool(found)

        try:
            seeds = Seeds(seeds_of([to]), own=Own, rng=self._rng)
        except ValueError as error:
            raise JoinUnreachable(str(error)) from None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await seeds.round(offered)
        if not found:
            reason = "; ".join(seeds.reasons.values())
            raise JoinUnreachable(f"no machine that lets others join answers at {to[:80]} ({reason or 'no address'})")
        return found[0]

    async def _join_by_setting(self, line: str) -> None:
        pause = 1.0
        while True:
            try:
                token = Token.parse(line)
                if token.mesh_id == self._home.roster.mesh_id:
                    return
                async with self._moving:
                    await self._move(await joiner.join_by_token(token, self._joiner()))
                return
            except TokenRefused as error:
                self._said.not_joined("of LLM_ROUTER_JOIN", str(error))
                return
            except GossipError as error:
                log.warning("the mesh of LLM_ROUTER_JOIN was not joined yet", extra={"reason": str(error)[:200]})
            await asyncio.sleep(pause)
            pause = min(30.0, pause * 2)

    async def _move(self, joined: joiner.Joined) -> None:
        """This peer is in another mesh now, also when whoever waits for this is cancelled on the way."""
        mesh_id = joined.roster.mesh_id
        if mesh_id == self._home.roster.mesh_id:
            return
        try:
            await self._agent.adopt(joined.roster, word_in(joined.word))
        finally:
            if mesh_id == self._home.roster.mesh_id:
                self._server.moved()
                self._agent.hinted(joined.member, (joined.address,))
                self._said.joined(self._home.mesh_name, len(joined.roster.members))

    def _admitted(self, roster: Roster, peer: str) -> None:
        """Somebody is in."""
        is_new = peer not in self._home.roster.members
        self._agent.set_roster(roster)
        member = self._home.roster.members.get(peer)
        if is_new and member is not None:
            self._said.admitted(member.name, short(peer), member.via)

    # -- small things

    def _joiner(self) -> joiner.Joiner:
        addresses = self._addresses()
        return joiner.Joiner(
            identity=self._identity,
            name=self._name,
            summary=self._home.summary(),
            port=split(addresses[0])[1] if addresses else 0,
        )

    def _joined_answer(self) -> dict[str, Any]:
        roster = self._home.roster
        return {"state": "joined", "name": self._home.mesh_name, "members": len(roster.members), "digits": None}

    def _require_free(self) -> None:
        others = len(self._home.roster.members) - 1
        if others > 0:
            raise AlreadyMember(
                f"this machine is in the mesh {self._home.mesh_name} with {others} other"
                f"{'' if others == 1 else 's'}: `llm-router leave` first"
            )

    def _is_linked(self, address: str) -> bool:
        """Is it the address of a member that there is a channel to?"""
        return any(
            view.is_connected and address in (*view.about.addresses, *self._agent.addresses(view.peer))
            for view in self._agent.members()
        )

    async def _is_member_at(self, address: str) -> bool:
        """Has a channel made by whichever member is there."""
        try:
            channel = await self._network.dial(None, address, MEET_S)
        except Unreachable:
            return False
        peer = channel.peer
        await channel.close()
        if peer != self._identity.peer_id:
            self._agent.hinted(peer, (address,))
        return True

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("meeting a stranger failed", exc_info=error)
