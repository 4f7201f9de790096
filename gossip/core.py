"""Everything pure of gossip in one piece: membership, facts and election, bytes in, effects out.

The shell (gossip/agent.py) and the simulator (tests/sim) both drive exactly this.

    receive --decode--> rumours, facts --> the machine it is for --+--> outbox: encode, with what rides along -> effects
    tick -------------> timers ------------------------------------+
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from gossip.broadcast import Broadcasts
from gossip.bucket import Bucket
from gossip.codec import Codec, CodecError, pack, unpack
from gossip.config import GossipConfig
from gossip.effects import Effect, MachineEffect, PeerId, Role, Send
from gossip.election import Claim, Claimed, Election, Heartbeat, HeartbeatAck, Scan, ScanAnswer, Standing
from gossip.facts import Facts
from gossip.health import Health
from gossip.member import About, Fact, MemberView
from gossip.members import STATES, UNKNOWN, Member, Members
from gossip.membership import Membership
from gossip.messages import (
    ALIVE,
    ELECTION_TAG,
    LEFT,
    TAGS,
    Ack,
    Digest,
    Fetch,
    Gossip,
    Nack,
    Ping,
    PingReq,
    Table,
    Values,
)
from gossip.outbox import Outbox
from gossip.probing import Prober
from gossip.spreading import Spreader
from gossip.sync import Sync
from gossip.timers import Timers

ELECTION_MESSAGES = (Heartbeat, HeartbeatAck, Scan, ScanAnswer, Claimed)
CODEC = Codec({**TAGS, **{ELECTION_TAG + at: cls for at, cls in enumerate(ELECTION_MESSAGES)}})
# Messages on which rumours ride.
_CARRIERS = (Ping, Ack, Gossip, Digest, Table)
# In a large mesh the election hears of changed members in batches, each of which costs it a pass over all of them.
STANDINGS_S_PER_MEMBER = 0.0005
STANDINGS_S_MIN = 0.05


class Core:
    """One peer. Every input returns the effects to carry out, in order; times are monotonic seconds."""

    def __init__(
        self,
        *,
        me: PeerId,
        run: int,
        about: About,
        config: GossipConfig,
        rng: random.Random,
        now: float,
        claim: Claim | None = None,
    ) -> None:
        self._config, self._now = config, now
        self._timers, self._health = Timers(), Health(config.health_max)
        self._outbox = Outbox(self._encoded)
        self._members = members = Members(me, config, now)
        self._broadcasts = broadcasts = Broadcasts(config)
        self._bucket = Bucket(rate=config.bytes_per_s, burst=config.bytes_per_s * config.burst_s, now=now)
        self._bulk = Bucket(rate=config.bulk_bytes_per_s, burst=config.bulk_burst_bytes, now=now)
        timers, outbox, health = self._timers, self._outbox, self._health
        self._membership = Membership(
            members=members, about=about, run=run, config=config, rng=rng, health=health, timers=timers,
            outbox=outbox, broadcasts=broadcasts, now=now,
        )  # fmt: skip
        self._facts = Facts(
            members=members, config=config, timers=timers, outbox=outbox, broadcasts=broadcasts, bulk=self._bulk
        )
        self._prober = Prober(
            members=members, membership=self._membership, config=config, rng=rng, health=health, timers=timers,
            outbox=outbox, now=now,
        )  # fmt: skip
        self._spreader = Spreader(
            members=members, facts=self._facts, config=config, rng=rng, timers=timers, outbox=outbox,
            broadcasts=broadcasts, bucket=self._bucket, now=now,
        )  # fmt: skip
        self._sync = Sync(
            members=members, membership=self._membership, facts=self._facts, config=config, rng=rng, timers=timers,
            outbox=outbox, bulk=self._bulk, now=now,
        )  # fmt: skip
        self._membership.second_opinion = self._prober.doubt
        self._membership.arrived = self._prober.arrived
        self._facts.outran = self._membership.outrun
        self._election = Election(
            me=me, run=run, eligibility=about.eligibility, rng=rng, now=now, claim=claim, config=config
        )
        self._standings: dict[PeerId, Standing] = {}
        self._standings_at = now
        self._claim: Claim | None = None
        self._claim_bytes = b""
        self._claim_is(claim)
        self.garbage = 0
        """Frames that were none."""

    # --- inputs -----------------------------------------------------------------------------------

    def receive(self, sender: PeerId, data: bytes, now: float) -> list[Effect]:
        """A frame of the sender's channel. Garbage changes nothing and never raises."""
        member = self._members.by_peer.get(sender)
        if member is None or member is self._members.mine:
            return []
        self._now = now
        try:
            message = CODEC.decode(data)
        except CodecError:
            self.garbage += 1
            return []
        kind = type(message)
        if isinstance(message, Ping | Ack | Gossip):
            for rumour in message.rumours:
                self._membership.hear(rumour, member, now)
            if message.facts:
                self._facts.merge(message.facts, member, now)
            if message.news:
                self._facts.hear_news(message.news, member, now)
        if isinstance(message, _CARRIERS) and message.claim:
            self._hear_claim(message.claim, member, now)
        if kind in ELECTION_MESSAGES:
            self._carry(self._election.receive(sender, message, now))  # type: ignore[arg-type]
        else:
            self._dispatch(message, member, now)
        self._membership.spoke(member, now)
        if member.rank == UNKNOWN:
            self._sync.open(member, now)
        return self._effects(now)

    def _dispatch(self, message: object, sender: Member, now: float) -> None:
        match message:
            case Ping():
                self._prober.ping(message, sender, now)
            case Ack():
                self._prober.ack(message, sender)
            case PingReq():
                self._prober.ping_req(message, sender, now)
            case Nack():
                self._prober.nack(message, sender)
            case Digest():
                self._sync.digest(message, sender, now)
            case Table():
                self._sync.table(message, sender, now)
            case Fetch():
                self._facts.serve(message.wanted, sender, now)
            case Values():
                self._facts.fetched(message.facts, sender, now)

    def tick(self, now: float) -> list[Effect]:
        """What is due. Feed what has arrived first: a late answer then still counts."""
        self._now = now
        if self._members.mine.rank == LEFT:
            return []
        late = now - self._timers.next_due
        if late > self._config.late_s:
            # Stalled, or asleep: nobody could answer me meanwhile. What was due is due from now on.
            self._timers.shift(late)
            self._membership.stalled(late)
            self._health.worse()
        self._timers.run(now)
        if now >= self._election.wake_at:
            self._carry(self._election.tick(now))
        return self._effects(now)

    @property
    def wake_at(self) -> float:
        """When `tick` is wanted next. Earlier or later is fine; over 250 ms late worsens the local health."""
        if self._members.mine.rank == LEFT:
            return math.inf
        return min(self._timers.next_due, self._election.wake_at)

    def members_are(self, roles: Mapping[PeerId, Role], now: float) -> list[Effect]:
        """The roster, me included. Who is not in it is nobody: forgotten, and its messages are dropped."""
        self._now = now
        gone = self._membership.roster_is(roles, now)
        self._facts.forget(gone)
        self._prober.forget(gone)
        self._standings_at = now
        return self._effects(now)

    def connected(self, peer: PeerId, now: float) -> list[Effect]:
        """A channel to the peer opened, from either side."""
        member = self._of(peer, now)
        if member is None:
            return []
        self._membership.connected(member)
        self._facts.reconnected(member)
        if self._members.mine.peer < peer or member.rank != ALIVE:
            # one side opens the sync, and both when it may have something to refute
            self._sync.open(member, now)
        self._carry(self._election.connected(peer, now))
        return self._effects(now)

    def disconnected(self, peer: PeerId, now: float) -> list[Effect]:
        """Its channel was reset, or a dial was refused or timed out. Not for channels closed by LRU: see `parted`."""
        member = self._of(peer, now)
        if member is None:
            return []
        if self._membership.broken(member):
            self._prober.doubt(member, now, urgent=True)
        self._carry(self._election.disconnected(peer, now))
        return self._effects(now)

    def parted(self, peer: PeerId, now: float) -> list[Effect]:
        """This side closed the channel (too many open): no sign of trouble."""
        member = self._of(peer, now)
        if member is not None:
            member.is_connected = False
        return []

    def heard(self, peer: PeerId, now: float) -> list[Effect]:
        """Any other proof of life, such as an answer to a forwarded request."""
        member = self._of(peer, now)
        if member is None:
            return []
        self._prober.heard(member)
        self._membership.spoke(member, now)
        return self._effects(now)

    def hinted(self, peer: PeerId, now: float) -> list[Effect]:
        """Something (mDNS, a seed) says it may be there: probe it now, even if dead."""
        member = self._of(peer, now)
        if member is None:
            return []
        self._prober.probe(member, now)
        return self._effects(now)

    def about_is(self, about: About, now: float) -> list[Effect]:
        """What I say about myself changed: the incarnation goes up and it spreads."""
        self._now = now
        self._membership.about_is(about, now)
        self._carry(self._election.eligibility_is(about.eligibility, now))
        return self._effects(now)

    def pinned_is(self, peer: PeerId | None, now: float) -> list[Effect]:
        """An admin wants this peer to coordinate, or (None) nobody in particular."""
        self._now = now
        self._carry(self._election.pinned_is(peer, now))
        return self._effects(now)

    def set_fact(self, key: str, value: bytes, now: float, *, fast: bool = False) -> list[Effect]:
        """A fact of mine. `fast` (load): the value rides on messages; else its version spreads, and others fetch it.

        Raises ValueError when it is too long.
        """
        self._now = now
        self._facts.set(key, value, now, fast=fast)
        return self._effects(now)

    def leave(self, now: float) -> list[Effect]:
        """Goodbye, to everybody who can be reached."""
        self._now = now
        self._membership.leave(now)
        return self._effects(now)

    # --- reads ------------------------------------------------------------------------------------

    def members(self) -> Sequence[MemberView]:
        """Everybody of the roster but me."""
        mine = self._members.mine
        return [member.view() for member in self._members.by_peer.values() if member is not mine]

    def member(self, peer: PeerId) -> MemberView | None:
        member = self._members.by_peer.get(peer)
        return None if member is None else member.view()

    def fact(self, peer: PeerId, key: str) -> Fact | None:
        """The newest version of a fact that is here; mine too."""
        member = self._members.by_peer.get(peer)
        held = member.facts.get(key) if member else None
        if held is None:
            return None
        return Fact(version=held.version, value=held.value, received_at=held.received_at, set_at=held.set_at)

    @property
    def coordinator(self) -> Claim | None:
        return self._election.coordinator

    def succession(self) -> Sequence[PeerId]:
        """Everybody alive who may coordinate, this peer among them, first in the order first."""
        return self._election.succession()

    @property
    def claim(self) -> Claim | None:
        """The highest claim ever heard; orders of lower terms are refused."""
        return self._election.claim

    @property
    def run(self) -> int:
        """As given, or raised above a higher one that was heard of me."""
        return self._members.mine.run

    @property
    def incarnation(self) -> int:
        return self._members.mine.incarnation

    @property
    def probes(self) -> int:
        """How many were begun."""
        return self._prober.begun

    @property
    def health(self) -> int:
        """Lifeguard's local health: 0 is well, up to health_max."""
        return self._health.value

    # ----------------------------------------------------------------------------------------------

    def _of(self, peer: PeerId, now: float) -> Member | None:
        self._now = now
        member = self._members.by_peer.get(peer)
        return None if member is self._members.mine else member

    def _encoded(self, to: PeerId, message: object) -> bytes:
        """With what rides along; each kind is paid from its bucket, the election's from none (one a second)."""
        if isinstance(message, Ping | Ack):
            target = self._members.by_peer.get(to)
            if target is not None:
                rumours, facts, news, claim = self._spreader.carried(target, self._now)
                message = type(message)(
                    seq=message.seq, rumours=message.rumours + rumours, facts=facts, news=news, claim=claim
                )
        elif isinstance(message, Digest):
            message = Digest(digests=message.digests, claim=self._claim_bytes)
        data = CODEC.encode(message)
        if isinstance(message, Digest | Table | Fetch | Values):
            self._bulk.charge(len(data) + self._config.frame_overhead_bytes)
        elif type(message) not in ELECTION_MESSAGES:
            self._bucket.charge(len(data) + self._config.frame_overhead_bytes)
        return data

    def _hear_claim(self, data: bytes, sender: Member, now: float) -> None:
        if data == self._claim_bytes:
            return
        try:
            claim = unpack(Claim, data)
        except CodecError:
            self.garbage += 1
            return
        self._carry(self._election.heard(claim, now))
        if self._claim is not None and self._claim > claim:
            # it has missed the higher one
            self._outbox.send(sender.peer, Gossip(claim=self._claim_bytes))

    def _carry(self, effects: list[MachineEffect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self._outbox.send(effect.to, effect.message)
            else:
                self._outbox.tell(effect)

    def _claim_is(self, claim: Claim | None) -> None:
        self._claim, self._claim_bytes = claim, b"" if claim is None else pack(claim)
        if claim is not None:
            self._spreader.claim_is(self._claim_bytes)

    def _effects(self, now: float) -> list[Effect]:
        """What was put out, once the election has heard of members that changed."""
        if self._members.changed and now >= self._standings_at:
            self._tell_election(now)
        if self._election.claim is not self._claim:
            self._claim_is(self._election.claim)
        self._membership.welcome()
        return self._outbox.emptied()

    def _tell_election(self, now: float) -> None:
        wait_s = STANDINGS_S_PER_MEMBER * len(self._members.by_peer)
        if wait_s > STANDINGS_S_MIN:
            self._standings_at = now + wait_s
            # for what changes until then
            self._timers.at(self._standings_at, _nothing)
        changed, self._members.changed = self._members.changed, {}
        for peer in changed:
            member = self._members.by_peer.get(peer)
            if member is None:
                self._standings.pop(peer, None)
            else:
                self._standings[peer] = Standing(
                    state=STATES[member.rank],
                    run=member.run,
                    eligibility=member.about.eligibility,
                    copies=member.about.copies,
                    is_guest=member.role == "guest",
                )
        self._carry(self._election.peers_are(self._standings, now))


def _nothing(now: float) -> None:
    """Only a reason to wake."""
