"""What this peer believes of the others, and how it defends itself: the claims of SWIM, with runs.

Claims about a member compare by (run, incarnation, rank), rank alive < suspect < dead < left; a greater claim
replaces a lesser one. Only the member itself raises its incarnation. It says nothing of probes (gossip/probing.py).
Source: SWIM (Das, Gupta, Motivala 2002) section 4.2; Lifeguard (arXiv 1707.00788); runs and syncs are ours.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace

from gossip.broadcast import Broadcasts
from gossip.config import GossipConfig
from gossip.effects import Avoid, Dial, MemberChanged, OutranMyself, PeerId, Regained, Role
from gossip.health import Health
from gossip.member import About
from gossip.members import NOBODY, STATES, UNKNOWN, Member, Members
from gossip.messages import ALIVE, DEAD, LEFT, SUSPECT, Gossip, Rumour
from gossip.outbox import Outbox
from gossip.suspicion import Suspicion
from gossip.timers import Timers

# No honest incarnation comes near; beyond it the next one would not fit a frame.
PLAUSIBLE_MAX = 1 << 62
# Milliseconds since 1970, until the year 2109: beyond it the versions of facts, which begin with it, would not fit.
RUN_MAX = 1 << 42


class Membership:
    """Hears rumours and what the prober finds, keeps `members`, spreads what changed."""

    def __init__(
        self,
        *,
        members: Members,
        about: About,
        run: int,
        config: GossipConfig,
        rng: random.Random,
        health: Health,
        timers: Timers,
        outbox: Outbox,
        broadcasts: Broadcasts,
        now: float,
    ) -> None:
        self._members, self._mine = members, members.mine
        self._config, self._rng, self._health = config, rng, health
        self._timers, self._outbox, self._broadcasts = timers, outbox, broadcasts
        self._mine.run, self._mine.about = run, about
        self._arrived: dict[Member, None] = {}
        members.believe(self._mine, ALIVE, now)
        broadcasts.rumour(self._mine.rumour())
        # Asks the prober for an opinion of our own on a member that another suspects.
        self.second_opinion: Callable[[Member, float], None] = lambda member, now: None
        # Tells it of one more to probe.
        self.arrived: Callable[[Member], None] = lambda member: None

    # --- what others say --------------------------------------------------------------------------

    def hear(self, rumour: Rumour, sender: Member, now: float, *, in_sync: bool = False, spread: bool = True) -> bool:
        """True if it changed something. In a sync, a death is only a suspicion: the member may refute."""
        member = self._members.by_ref.get(rumour.peer)
        if member is None or not self._is_plausible(rumour):
            return False
        if member is self._mine:
            return self._hear_of_myself(rumour, now)
        told, known = (rumour.run, rumour.incarnation), (member.run, member.incarnation)
        if rumour.about is not None and member.about is NOBODY and told >= known:
            member.about = rumour.about
            self._members.hash(member)
        if (*told, rumour.rank) == (*known, member.rank) and rumour.rank != SUSPECT and not in_sync:
            self._broadcasts.heard_rumour(member.ref)
        if rumour.rank == ALIVE:
            if told <= known and member.rank != UNKNOWN:
                return False
            self._adopt(rumour, member, now, spread=spread)
            return True
        if rumour.rank == SUSPECT:
            return told >= known and self._suspected(member, rumour, now)
        if (*told, rumour.rank) <= (*known, member.rank):
            return False
        # A member that spoke a moment ago is not dead on hearsay: old bytes of a healed stream may say so.
        spoke = now - member.heard_at < 2 * self._config.probe_interval_s
        if rumour.rank == DEAD and member.is_live and (in_sync or spoke):
            return self._suspected(member, replace(rumour, rank=SUSPECT, source=sender.ref), now)
        self._adopt(rumour, member, now, spread=spread)
        return True

    def _is_plausible(self, rumour: Rumour) -> bool:
        if rumour.rank > LEFT or rumour.run >= RUN_MAX or rumour.incarnation >= PLAUSIBLE_MAX:
            return False
        if rumour.about is not None and not rumour.about.is_modest:
            return False
        # each source confirms a suspicion once: made up ones would confirm it at will
        return rumour.source in self._members.by_ref if rumour.source or rumour.rank == SUSPECT else True

    def _hear_of_myself(self, rumour: Rumour, now: float) -> bool:
        mine = self._mine
        if mine.rank == LEFT:
            return False
        if rumour.run > mine.run:
            mine.run, mine.incarnation = rumour.run + 1, 0
            self._outbox.tell(OutranMyself(heard_run=rumour.run, run=mine.run))
        elif rumour.rank == ALIVE:
            if rumour.run < mine.run or rumour.incarnation <= mine.incarnation:
                return False
            mine.incarnation = rumour.incarnation + 1
        elif rumour.run == mine.run and rumour.incarnation >= mine.incarnation:
            mine.incarnation = rumour.incarnation + 1
            self._health.worse()
        # else it is old: whoever says so has missed my refutation, which is repeated
        self._spread_mine(now)
        return True

    def _adopt(self, rumour: Rumour, member: Member, now: float, *, spread: bool = True) -> None:
        before, was_live, about = STATES[member.rank], member.is_live, member.about
        member.run, member.incarnation, member.suspicion = rumour.run, rumour.incarnation, None
        if rumour.about is not None:
            member.about = rumour.about
        self._members.believe(member, rumour.rank, now)
        if spread:
            self._broadcasts.rumour(replace(rumour, peer=member.ref))
        after = STATES[member.rank]
        if before != after or about != member.about:
            self._outbox.tell(MemberChanged(peer=member.peer, before=before, after=after))
        if member.rank == ALIVE and not was_live:
            self._arrived[member] = None

    def welcome(self) -> None:
        """Those who came (back) to life, at the end of an input: only then is it known how many, so who is near."""
        for member in self._arrived:
            if not member.is_live or not self._members.is_near(member):
                continue
            self.arrived(member)
            # One side dials at once, so that not both shake hands; the other dials when it has something to say.
            if not member.is_connected and self._mine.peer < member.peer:
                self._outbox.tell(Dial(peer=member.peer))
        self._arrived = {}

    # --- suspicion --------------------------------------------------------------------------------

    def suspect(self, member: Member, now: float) -> None:
        """My own probe failed."""
        if member.is_live:
            self._suspected(member, replace(member.rumour(source=self._mine.ref), rank=SUSPECT, about=None), now)

    def _suspected(self, member: Member, rumour: Rumour, now: float) -> bool:
        """`rumour` is not older than what is known."""
        is_same = (rumour.run, rumour.incarnation) == (member.run, member.incarnation)
        if is_same and member.rank > SUSPECT:
            return False
        if is_same and member.suspicion is not None:
            if not member.suspicion.confirm(rumour.source):
                return False
            self._broadcasts.rumour(replace(rumour, peer=member.ref))
        else:
            self._broadcasts.drop(member.ref)
            self._adopt(rumour, member, now)
            member.suspicion = Suspicion(
                config=self._config, members=self._members.count, source=rumour.source, now=now
            )
            if rumour.source != self._mine.ref and self._asked_for_opinion():
                self.second_opinion(member, now)
        self._timers.at(member.suspicion.expires_at, self._expired, member, member.suspicion)
        return True

    def _asked_for_opinion(self) -> bool:
        return self._rng.random() * self._members.count < self._config.second_opinions

    def _expired(self, member: Member, suspicion: Suspicion, now: float) -> None:
        if member.suspicion is suspicion and suspicion.expires_at <= now:
            dead = Rumour(
                peer=member.ref, rank=DEAD, run=member.run, incarnation=member.incarnation, source=self._mine.ref
            )
            self._adopt(dead, member, now)

    def stalled(self, seconds: float) -> None:
        """This peer did nothing for so long, so nobody could refute."""
        for member in self._members.by_peer.values():
            if member.suspicion is not None:
                member.suspicion.defer(seconds)

    # --- what this peer sees itself ---------------------------------------------------------------

    def spoke(self, member: Member, now: float) -> None:
        """A message of it arrived (and its rumours were heard)."""
        member.heard_at = now
        if member.avoided:
            self.proved(member)
        if member.rank != ALIVE and member.rank != UNKNOWN:
            self.tell_what_is_said(member, now)

    def tell_what_is_said(self, member: Member, now: float) -> None:
        """To the member itself, so that it can refute; at most once a probe interval."""
        if now - member.told_at >= self._config.probe_interval_s:
            member.told_at = now
            self._outbox.send(member.peer, Gossip(rumours=(member.rumour(source=self._mine.ref),)))

    def proved(self, member: Member) -> None:
        if member.avoided:
            member.avoided = False
            self._outbox.tell(Regained(peer=member.peer))

    def connected(self, member: Member) -> None:
        member.is_connected = True
        self.proved(member)

    def broken(self, member: Member) -> bool:
        """Its channel was reset, or a dial refused. True if it is avoided from now on; asking once is enough."""
        member.is_connected = False
        if not member.is_live or member.avoided:
            return False
        member.avoided = True
        self._outbox.tell(Avoid(peer=member.peer))
        return True

    # --- myself -----------------------------------------------------------------------------------

    def about_is(self, about: About, now: float) -> None:
        if about != self._mine.about and self._mine.rank != LEFT:
            self._mine.about = about
            self._mine.incarnation += 1
            self._spread_mine(now)

    def outrun(self, run: int, now: float) -> None:
        """Somebody holds facts of a later run of mine."""
        if self._mine.run <= run < RUN_MAX - 1:
            self._mine.run, self._mine.incarnation = run + 1, 0
            self._outbox.tell(OutranMyself(heard_run=run, run=run + 1))
            self._spread_mine(now)

    def leave(self, now: float) -> None:
        self._members.believe(self._mine, LEFT, now)
        goodbye = Gossip(rumours=(replace(self._mine.rumour(), about=None),))
        for member in self._members.near:
            self._outbox.send(member.peer, goodbye)

    def roster_is(self, roles: Mapping[PeerId, Role], now: float) -> list[Member]:
        gone = self._members.roster_is(roles, now)
        for member in gone:
            member.suspicion = None
            self._broadcasts.forget(member.ref)
            if member.rank != UNKNOWN:
                self._outbox.tell(MemberChanged(peer=member.peer, before=STATES[member.rank], after="unknown"))
        return gone

    def _spread_mine(self, now: float) -> None:
        self._members.believe(self._mine, ALIVE, now)
        self._broadcasts.rumour(self._mine.rumour())
