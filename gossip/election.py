"""Who coordinates: the one peer that is asked for what only one should do. Pure.

There is no vote and no majority: a home mesh must work with most machines off, and two machines must survive the loss
of one (C31). Two coordinators at once, one on each side of a partition, are harmless by construction; after it heals
the higher claim wins. The coordinator is not on the inference path. Terms number its reigns, as in Raft (Ongaro and
Ousterhout 2014, section 5.1); everything else is simpler.

    follows --reset, silent for 3 s, gone from the roster--> lost --1 s of scan--> claims, waits for the first, or solo
       ^                                                      |                                                  |
       +----------- the coordinator answers, or a higher claim is heard -----------------------------------------+

- Everyone sends the coordinator a heartbeat every second and keeps the highest claim durably.
- Who lost it asks up to 64 peers, those first in the order first: do you still hear it? A peer that is asked sends a
  heartbeat itself before it answers, so nobody answers from memory. Those who answered are the peers it sees.
- At least two of them (all, when fewer answered) lost it too: the first in the order among those who lost it claims
  the next term, on disk before anyone hears of it. Others wait for that claim and ask again, and pass over a first
  that did not claim twice. A peer alone with a broken link claims nothing while others hear the coordinator.
- Nobody answered: the claim is *solo*. It keeps the known term, so any other claim of that term beats it, and its
  maker goes on asking. Else flaky Wi-Fi would steal the office. In a mesh of one or two it is a claim like any other.
- Order: pinned by an admin, always-on hint, copies of history held, older run, peer id. A better machine that joins
  does not take over; one that an admin pins does. Guests and those who never coordinate claim nothing, and what a
  guest says of the coordinator counts for nothing.
- Nobody claims or takes office in its first 3 s of life: by then it has heard who does.

Not here: what a coordinator does, how claims reach the disk and the other peers (gossip.core), who is a member.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gossip.config import GossipConfig
from gossip.effects import CoordinatorChanged, MachineEffect, PeerId, Persist, Send, State

# A term further above the known one than this is a mistake or an attack: terms rise once in some seconds at the most,
# and must not be driven to where they no longer fit a message.
TERM_JUMP_MAX = 1 << 32
# After scans that led to nothing: 1, 2, 4, 8 s apart, with jitter.
BACKOFF_MAX = 8
# The first in the order may see others than I do. It has this many scans to claim.
PATIENCE = 2

NEVER, ALLOW, PREFER = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """`peer` coordinates in `term`. Ordered: the higher term, then a claim made with others, then the peer id."""

    term: int
    peer: PeerId
    is_solo: bool = False

    def __lt__(self, other: Claim) -> bool:
        return (self.term, not self.is_solo, self.peer) < (other.term, not other.is_solo, other.peer)

    def __gt__(self, other: Claim) -> bool:
        return other < self


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """To the coordinator, every second. `claim`: the highest the sender knows (in all messages)."""

    claim: Claim | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatAck:
    """The answer, from whoever was asked."""

    claim: Claim | None
    is_in_office: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """I lost the coordinator; do you hear it? `number` tells the sender's scans apart."""

    number: int
    claim: Claim | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanAnswer:
    """`hears`: I am it, or it answered me after I was asked. `may_claim`: I could take the office myself."""

    number: int
    hears: bool
    may_claim: bool
    claim: Claim | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """News: the highest claim the sender knows."""

    claim: Claim


Message = Heartbeat | HeartbeatAck | Scan | ScanAnswer | Claimed


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What membership knows of a peer that matters here. `copies` of other peers' history logs that it holds."""

    state: State
    run: int
    eligibility: int = ALLOW
    is_guest: bool = False
    copies: int = 0


@dataclass(slots=True)
class _Round:
    """A scan that runs: who was asked, who answered."""

    number: int
    started_at: float
    ends_at: float
    asked: frozenset[PeerId]
    answers: dict[PeerId, ScanAnswer] = field(default_factory=dict)


@dataclass(slots=True)
class _Owed:
    """An answer to a scan that waits for the coordinator's own."""

    to: PeerId
    number: int
    due_at: float


class Election:
    """One peer's part. Every input returns the effects to carry out, in order: `Persist` before what tells of it."""

    def __init__(
        self,
        *,
        me: PeerId,
        run: int,
        eligibility: int,
        rng: random.Random,
        now: float,
        claim: Claim | None,
        config: GossipConfig,
    ) -> None:
        """`claim`: the highest this peer has kept, of this mesh (None after it moved to another)."""
        self._me = me
        self._mine = Standing(state="alive", run=run, eligibility=eligibility)
        self._rng = rng
        self._config = config
        self._peers: dict[PeerId, Standing] = {}
        self._knows_members = False
        self._pinned: PeerId | None = None
        self._claim = claim
        self._office: Claim | None = None
        self._told: Claim | None = None
        self._quiet_until = now + config.quiet_start_s
        self._heartbeat_at = now
        self._heard_at = now
        self._is_lost = False
        self._round: _Round | None = None
        self._number = 0
        self._scan_at = now
        self._scanned_at = now - config.scan_s
        self._fruitless = 0
        self._passed_over: dict[PeerId, int] = {}
        self._owed: list[_Owed] = []

    # --- reads

    @property
    def coordinator(self) -> Claim | None:
        """Who coordinates, as far as this peer knows; perhaps out of reach (`is_lost`)."""
        if self._office is not None:
            return self._office
        return self._claim if self._followed() is not None else None

    @property
    def claim(self) -> Claim | None:
        """The highest claim ever heard: kept on disk, rides on other messages; orders of lower terms are refused."""
        return self._claim

    @property
    def is_lost(self) -> bool:
        """The coordinator does not answer this peer, or there is none."""
        return self._office is None and (self._is_lost or self._followed() is None)

    def succession(self) -> list[PeerId]:
        """Everybody alive who may coordinate, this peer among them, first in the order first."""
        mine = [self._me] if _can_coordinate(self._mine) else []
        others = [p for p, each in self._peers.items() if each.state == "alive" and _can_coordinate(each)]
        return sorted(mine + others, key=self._order)

    @property
    def wake_at(self) -> float:
        """When `tick` is wanted next."""
        times = [owed.due_at for owed in self._owed]
        if self._followed() is not None:
            times.append(self._heartbeat_at)
            if not self._is_lost:
                times.append(self._heard_at + self._config.heartbeat_timeout_s)
        if self._round is not None:
            times.append(self._round.ends_at)
        elif self._wants_scan():
            times.append(max(self._scan_at, self._quiet_until))
        if self._may_resume():
            times.append(self._quiet_until)
        return min(times, default=float("inf"))

    # --- inputs

    def receive(self, sender: PeerId, message: Message, now: float) -> list[MachineEffect]:
        """A message of a member; anyone else's changes nothing."""
        standing = self._peers.get(sender)
        if standing is None:
            return []
        effects = [] if standing.is_guest else self._heard(message.claim, now)
        match message:
            case Heartbeat():
                effects.append(Send(to=sender, message=HeartbeatAck(claim=self._claim, is_in_office=self._reigns())))
            case HeartbeatAck():
                effects += self._acked(sender, message, now)
            case Scan():
                effects += self._asked(sender, message, now)
            case ScanAnswer():
                effects += self._answered(sender, message, now)
            case Claimed():
                pass
        return effects + self._news()

    def heard(self, claim: Claim | None, now: float) -> list[MachineEffect]:
        """A claim that came with something else: alive, sync, an answer to a request."""
        return self._heard(claim, now) + self._news()

    def tick(self, now: float) -> list[MachineEffect]:
        """What is due: heartbeats, silence noticed, scans begun and ended, answers given."""
        self._forgive(now - self.wake_at, now)
        effects = self._resumed(now)
        if self._followed() is not None:
            if not self._is_lost and now >= self._heard_at + self._config.heartbeat_timeout_s:
                effects += self._lose(now)
            if now >= self._heartbeat_at:
                effects += self._beat(now)
        for owed in [owed for owed in self._owed if now >= owed.due_at]:
            self._owed.remove(owed)
            effects.append(self._answer(owed.to, owed.number, hears=False, now=now))
        if self._round is not None and now >= self._round.ends_at:
            effects += self._concluded(self._round, now)
        if self._round is None and self._wants_scan() and now >= max(self._scan_at, self._quiet_until):
            effects += self._scan(now)
        return effects + self._news()

    def peers_are(self, peers: Mapping[PeerId, Standing], now: float) -> list[MachineEffect]:
        """All members as membership sees them. With me among them, that is what I am now."""
        self._knows_members = True
        before = self._peers
        self._mine = peers.get(self._me, self._mine)
        self._peers = {peer: standing for peer, standing in peers.items() if peer != self._me}
        effects: list[MachineEffect] = []
        if self._office is not None and not self._is_eligible():
            effects += self._step_down(now)
        for peer, standing in self._peers.items():
            if standing.state == "alive" and peer in before and before[peer].state in ("dead", "left", "unknown"):
                effects += self._met(peer, now)
        if self._claim is not None and self._claim.peer != self._me and not self._is_lost:
            coordinator = self._peers.get(self._claim.peer)
            if coordinator is None or not _can_coordinate(coordinator):
                effects += self._lose(now)
        return effects + self._news()

    def eligibility_is(self, eligibility: int, now: float) -> list[MachineEffect]:
        """This peer's own setting changed: never, allow or prefer."""
        mine = self._mine
        self._mine = Standing(
            state=mine.state, run=mine.run, eligibility=eligibility, is_guest=mine.is_guest, copies=mine.copies
        )
        return (self._step_down(now) if self._office is not None and not self._is_eligible() else []) + self._news()

    def pinned_is(self, peer: PeerId | None, now: float) -> list[MachineEffect]:
        """An admin wants `peer` to coordinate. If that is me and news to me, I take over; not while I start."""
        is_new = peer != self._pinned
        self._pinned = peer
        effects: list[MachineEffect] = []
        if is_new and peer == self._me and self._may_claim(now) and not self._reigns():
            effects = self._take_office(now)
        return effects + self._news()

    def connected(self, peer: PeerId, now: float) -> list[MachineEffect]:
        """A channel opened: tell what I know, so that the sides of a healed partition agree at once."""
        return self._met(peer, now) + self._news()

    def disconnected(self, peer: PeerId, now: float) -> list[MachineEffect]:
        """Its channel was reset, or a dial failed."""
        is_coordinator = self._followed() == peer
        return (self._lose(now) if is_coordinator and not self._is_lost else []) + self._news()

    # --- who is who

    def _followed(self) -> PeerId | None:
        """The coordinator, if that is another member."""
        if self._claim is None or self._claim.peer == self._me or self._claim.peer not in self._peers:
            return None
        return self._claim.peer

    def _reigns(self) -> bool:
        """In office by a claim made with others; a solo one binds nobody but its maker."""
        return self._office is not None and not self._office.is_solo

    def _is_eligible(self) -> bool:
        return self._knows_members and self._mine.eligibility != NEVER and not self._mine.is_guest

    def _may_claim(self, now: float) -> bool:
        return self._is_eligible() and now >= self._quiet_until

    def _may_resume(self) -> bool:
        """The highest claim is mine, from before a restart."""
        is_mine = self._claim is not None and self._claim.peer == self._me
        return is_mine and self._office is None and self._is_eligible()

    def _wants_scan(self) -> bool:
        if not self._is_eligible() or self._reigns() or self._may_resume():
            return False
        return self._is_lost or self._followed() is None

    def _order(self, peer: PeerId) -> tuple[bool, int, int, int, PeerId]:
        standing = self._mine if peer == self._me else self._peers[peer]
        return (peer != self._pinned, -standing.eligibility, -standing.copies, standing.run, peer)

    def _members(self) -> list[PeerId]:
        """Everybody but me and the guests, first in the order first."""
        return sorted((peer for peer, each in self._peers.items() if not each.is_guest), key=self._order)

    # --- claims

    def _heard(self, claim: Claim | None, now: float) -> list[MachineEffect]:
        if claim is None or (self._claim is not None and not claim > self._claim):
            return []
        known = self._claim.term if self._claim is not None else 0
        claimant = self._mine if claim.peer == self._me else self._peers.get(claim.peer)
        if claimant is None or claimant.is_guest or not 1 <= claim.term <= known + TERM_JUMP_MAX:
            return []
        self._office = None
        return self._adopt(claim, now) + self._resumed(now)

    def _adopt(self, claim: Claim, now: float) -> list[MachineEffect]:
        """From here on this claim is the highest."""
        self._claim = claim
        self._found(now)
        return [Persist(claim=claim), *self._beat(now)]

    def _found(self, now: float) -> None:
        """There is a coordinator: no scan, no doubts."""
        self._heard_at = now
        self._is_lost = False
        self._round = None
        self._fruitless = 0
        self._passed_over = {}

    def _take_office(self, now: float) -> list[MachineEffect]:
        """The next term is mine: on disk first, then told."""
        term = self._claim.term + 1 if self._claim is not None else 1
        predecessor = self._followed()
        self._office = Claim(term=term, peer=self._me)
        effects = self._adopt(self._office, now)
        told = [peer for peer in self._peers if self._peers[peer].state in ("alive", "suspect") or peer == predecessor]
        told = sorted(told, key=lambda peer: (peer != predecessor, self._order(peer)))[: self._config.scan_peers_max]
        effects += [Send(to=peer, message=Claimed(claim=self._office)) for peer in told]
        return effects + self._settle(hears=True, now=now)

    def _take_office_alone(self) -> list[MachineEffect]:
        """Nobody answers: I coordinate what I can reach, me, and yield to anyone."""
        solo = Claim(term=self._claim.term if self._claim is not None else 1, peer=self._me, is_solo=True)
        self._office = solo
        if self._claim is None:
            self._claim = solo
            return [Persist(claim=solo)]
        return []

    def _step_down(self, now: float) -> list[MachineEffect]:
        self._office = None
        self._scan_at = now
        return []

    def _resumed(self, now: float) -> list[MachineEffect]:
        if self._may_resume() and now >= self._quiet_until:
            self._office = self._claim
        return []

    def _news(self) -> list[MachineEffect]:
        if self.coordinator == self._told:
            return []
        self._told = self.coordinator
        return [CoordinatorChanged(claim=self._told)]

    def _met(self, peer: PeerId, now: float) -> list[MachineEffect]:
        """It was out of reach and is there (again): compare what we know, and look at what we see together."""
        if self._wants_scan():
            self._fruitless = 0
            self._scan_at = now
        if self._claim is None or peer not in self._peers:
            return []
        return [Send(to=peer, message=Claimed(claim=self._claim))]

    # --- heartbeats

    def _beat(self, now: float) -> list[MachineEffect]:
        followed = self._followed()
        self._heartbeat_at = now + self._config.heartbeat_interval_s
        return [] if followed is None else [Send(to=followed, message=Heartbeat(claim=self._claim))]

    def _acked(self, sender: PeerId, ack: HeartbeatAck, now: float) -> list[MachineEffect]:
        if sender != self._followed():
            return []
        if not ack.is_in_office:
            return [] if self._is_lost else self._lose(now)
        self._office = None
        self._found(now)
        return self._settle(hears=True, now=now)

    def _lose(self, now: float) -> list[MachineEffect]:
        self._is_lost = True
        self._scan_at = now
        effects = self._settle(hears=False, now=now)
        if self._round is None and self._wants_scan() and now >= self._quiet_until:
            effects += self._scan(now)
        return effects

    def _forgive(self, late_s: float, now: float) -> None:
        """A tick that comes late (this machine was busy or asleep) says nothing about the others."""
        if not self._config.late_s < late_s < float("inf"):
            return
        self._heard_at = min(now, self._heard_at + late_s)
        if self._round is not None:
            self._round.ends_at += min(late_s, self._config.scan_s)

    # --- scans

    def _scan(self, now: float) -> list[MachineEffect]:
        states: dict[State, int] = {"alive": 0, "suspect": 1, "unknown": 2, "dead": 3}
        asked = [peer for peer in self._members() if self._peers[peer].state in states and peer != self._followed()]
        asked.sort(key=lambda peer: states[self._peers[peer].state])
        asked = asked[: self._config.scan_peers_max]
        self._number += 1
        self._scanned_at = now
        self._round = _Round(self._number, now, now + self._config.scan_s, frozenset(asked))
        return [Send(to=peer, message=Scan(number=self._number, claim=self._claim)) for peer in asked]

    def _asked(self, sender: PeerId, scan: Scan, now: float) -> list[MachineEffect]:
        """Answer at once if I know; else ask the coordinator first."""
        if self._followed() is None or self._is_lost:
            # It lost it too: look again soon, together.
            self._scan_at = min(self._scan_at, max(now, self._scanned_at + self._config.scan_s))
            return [self._answer(sender, scan.number, hears=self._reigns(), now=now)]
        self._owed = [owed for owed in self._owed if owed.to != sender]
        # What is left of the asker's second is for the way back.
        self._owed.append(_Owed(sender, scan.number, now + 0.7 * self._config.scan_s))
        is_asked = self._heartbeat_at - self._config.heartbeat_interval_s >= now - self._config.scan_s / 10
        return [] if is_asked and len(self._owed) > 1 else self._beat(now)

    def _answer(self, to: PeerId, number: int, *, hears: bool, now: float) -> MachineEffect:
        may_claim = self._may_claim(now)
        return Send(to=to, message=ScanAnswer(number=number, hears=hears, may_claim=may_claim, claim=self._claim))

    def _settle(self, *, hears: bool, now: float) -> list[MachineEffect]:
        """Now it is known whether the coordinator is there."""
        owed, self._owed = self._owed, []
        return [self._answer(each.to, each.number, hears=hears, now=now) for each in owed]

    def _answered(self, sender: PeerId, answer: ScanAnswer, now: float) -> list[MachineEffect]:
        running = self._round
        if running is None or answer.number != running.number or sender not in running.asked:
            return []
        running.answers[sender] = answer
        # All that should be there have answered: no need for the whole second. Half of it stays, in which a coordinator
        # whose connections all broke at once may come back.
        lively = {peer for peer in running.asked if peer in self._peers and self._peers[peer].state == "alive"}
        if lively <= running.answers.keys():
            running.ends_at = min(running.ends_at, running.started_at + self._config.scan_s / 2)
        return self._concluded(running, now) if now >= running.ends_at else []

    def _concluded(self, running: _Round, now: float) -> list[MachineEffect]:
        self._round = None
        if not self._may_claim(now):
            return self._again(now)
        answers = {peer: answer for peer, answer in running.answers.items() if peer in self._peers}
        if not answers:
            if len(self._members()) <= 1:
                return self._take_office(now)
            return (self._take_office_alone() if self._office is None else []) + self._again(now)
        lost = [peer for peer, answer in answers.items() if not answer.hears]
        if len(lost) < min(2, len(answers)):
            # Others hear it: my own link is broken. What I coordinate alone, if anything, is over.
            self._office = None
            return self._again(now)
        first = self._first(peer for peer in lost if answers[peer].may_claim)
        if first == self._me:
            return self._take_office(now)
        self._passed_over[first] = self._passed_over.get(first, 0) + 1
        return self._again(now)

    def _first(self, others: Iterable[PeerId]) -> PeerId:
        patient = [peer for peer in others if self._passed_over.get(peer, 0) < PATIENCE]
        return min([self._me, *patient], key=self._order)

    def _again(self, now: float) -> list[MachineEffect]:
        wait_s = self._config.scan_s * min(BACKOFF_MAX, 2**self._fruitless) * self._rng.uniform(0.75, 1.25)
        self._fruitless = min(self._fruitless + 1, BACKOFF_MAX)
        self._scan_at = now + wait_s
        return []


def _can_coordinate(standing: Standing) -> bool:
    return standing.state not in ("dead", "left") and standing.eligibility != NEVER and not standing.is_guest
