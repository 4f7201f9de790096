"""Who still answers: one probe an interval, direct, then through others; SWIM's failure detector with Lifeguard.

A round: ping; without an ack in time, ask relays to ping; without any ack by the end, suspect. Intervals and timeouts
are stretched by the local health. Members that are dead or never seen are pinged now and then as well.
Source: SWIM section 4.1, 4.3 (round-robin in shuffled order; here every other round); Lifeguard section 4.1 (nacks);
memberlist state.go.
"""

from __future__ import annotations

import random

from gossip.config import GossipConfig
from gossip.health import Health
from gossip.members import UNKNOWN, Member, Members
from gossip.membership import Membership
from gossip.messages import ALIVE, DEAD, Ack, Nack, Ping, PingReq
from gossip.outbox import Outbox
from gossip.timers import Timers

# Pings for others that may be under way at once; more are not answered, which costs the asker a relay of three.
RELAYING_MAX = 256
RETRY_SHARE = 1 / 20
# Rounds under way at once: of all kinds, and before one more is begun out of turn.
ROUNDS_MAX = 64
DOUBTS_MAX = 4
# At once to one peer in a probe interval: it asks once for itself, and for a few others.
ACKS_MAX = 8


class Prober:
    def __init__(
        self,
        *,
        members: Members,
        membership: Membership,
        config: GossipConfig,
        rng: random.Random,
        health: Health,
        timers: Timers,
        outbox: Outbox,
        now: float,
    ) -> None:
        self._members, self._membership = members, membership
        self._config, self._rng, self._health = config, rng, health
        self._timers, self._outbox = timers, outbox
        self._seq = 0
        self._order: list[Member] = []
        self._turn = 0
        self._rounds: dict[int, _Round] = {}
        self._probing: dict[Member, int] = {}
        self._relaying: dict[int, tuple[Member, Member, int]] = {}
        # to whom how many acks went since when, and the seq of one that waits
        self._acks: dict[Member, tuple[float, int]] = {}
        self._late_acks: dict[Member, int] = {}
        self._retried_at = now
        timers.at(now + config.probe_interval_s * rng.random(), self._next_round)
        timers.at(now + config.retry_min_s * rng.random(), self._retry)

    @property
    def begun(self) -> int:
        """Probes so far, those for others among them."""
        return self._seq

    # --- rounds -----------------------------------------------------------------------------------

    def _next_round(self, now: float) -> None:
        self._timers.at(now + self._config.probe_interval_s * self._health.scale, self._next_round)
        target = self._next_target()
        if target is not None:
            self.probe(target, now)

    def _next_target(self) -> Member | None:
        """By turns the one I have not heard of for longest, and the next of a shuffled round.

        The first finds the dead sooner, since the living are heard of all the time; the second is SWIM's bound.
        """
        self._turn += 1
        if self._turn % 2 == 0:
            silent = [each for each in self._members.near if each.rank == ALIVE and each not in self._probing]
            if silent:
                return min(silent, key=_heard_at)
        for _ in range(2):
            while self._order:
                member = self._order.pop()
                if member.is_live and self._is_member(member) and member not in self._probing:
                    return member
            self._order = list(self._members.near)
            self._rng.shuffle(self._order)
        return None

    def arrived(self, member: Member) -> None:
        """One more, somewhere in the round that runs: else nobody might ask for it until the next."""
        if member not in self._order:
            self._order.insert(self._rng.randint(0, len(self._order)), member)

    def probe(self, member: Member, now: float) -> None:
        """A round for this member, unless one is under way, or very many are."""
        if member not in self._probing and len(self._rounds) < ROUNDS_MAX:
            self._began(member, now)

    def doubt(self, member: Member, now: float, *, urgent: bool = False) -> None:
        """A round out of turn: another suspects it, or (`urgent`: through others at once) its channel broke.

        Not when many are under way: then it is the network that broke, perhaps mine.
        """
        seq = self._probing.get(member)
        if seq is None:
            if len(self._rounds) >= DOUBTS_MAX:
                return
            seq = self._began(member, now)
        if urgent and not self._rounds[seq].asked:
            self._ask_relays(self._rounds[seq], seq)

    def _began(self, member: Member, now: float) -> int:
        self._seq = seq = self._seq + 1
        self._rounds[seq] = _Round(member)
        self._probing[member] = seq
        # what is said of it goes along, so that it can refute
        is_doubted = member.rank not in (ALIVE, UNKNOWN)
        if is_doubted:
            member.told_at = now
        rumours = (member.rumour(source=self._members.mine.ref),) if is_doubted else ()
        self._outbox.send(member.peer, Ping(seq=seq, rumours=rumours))
        scale = self._health.scale
        self._timers.at(now + self._config.probe_timeout_s * scale, self._no_ack, seq)
        self._timers.at(now + self._config.probe_interval_s * scale, self._over, seq)
        return seq

    def _no_ack(self, seq: int, now: float) -> None:
        began = self._rounds.get(seq)
        if began is not None and not began.asked and began.target.is_live:
            self._ask_relays(began, seq)

    def _ask_relays(self, began: _Round, seq: int) -> None:
        able = [each for each in self._members.near if each.rank == ALIVE and each is not began.target]
        # a relay that I have no channel to would first have to be reached itself
        self._rng.shuffle(able)
        able.sort(key=lambda each: not each.is_connected)
        for relay in able[: self._config.relays]:
            began.asked.add(relay)
            self._outbox.send(relay.peer, PingReq(seq=seq, target=began.target.ref))

    def _over(self, seq: int, now: float) -> None:
        began = self._rounds.pop(seq, None)
        if began is None:
            return
        self._probing.pop(began.target, None)
        target = began.target
        if target.is_live and (target.run, target.incarnation) == began.of and self._is_member(target):
            self._health.worse(len(began.asked) - began.nacks if began.asked else 1)
            self._membership.suspect(target, now)

    def _done(self, seq: int) -> None:
        began = self._rounds.pop(seq)
        self._probing.pop(began.target, None)
        self._health.better()

    # --- messages ---------------------------------------------------------------------------------

    def ping(self, message: Ping, sender: Member, now: float) -> None:
        """Answered at once; of a burst (a stream that was cut delivers old pings) the last in a moment."""
        began, count = self._acks.get(sender, (now, 0))
        if now - began >= self._config.probe_interval_s:
            began, count = now, 0
        self._acks[sender] = (began, count + 1)
        if count < ACKS_MAX:
            self._outbox.send(sender.peer, Ack(seq=message.seq))
            return
        if sender not in self._late_acks:
            self._timers.at(now + self._config.probe_interval_s / 20, self._ack_late, sender)
        self._late_acks[sender] = message.seq

    def _ack_late(self, sender: Member, now: float) -> None:
        seq = self._late_acks.pop(sender, None)
        if seq is not None and self._is_member(sender):
            self._outbox.send(sender.peer, Ack(seq=seq))

    def ack(self, message: Ack, sender: Member) -> None:
        began = self._rounds.get(message.seq)
        if began is not None and (sender is began.target or sender in began.asked):
            self._done(message.seq)
            return
        relayed = self._relaying.get(message.seq)
        if relayed is not None and relayed[0] is sender:
            del self._relaying[message.seq]
            self._outbox.send(relayed[1].peer, Ack(seq=relayed[2]))

    def ping_req(self, message: PingReq, sender: Member, now: float) -> None:
        target = self._members.by_ref.get(message.target)
        if target is None or target is self._members.mine or len(self._relaying) >= RELAYING_MAX:
            return
        self._seq = seq = self._seq + 1
        self._relaying[seq] = (target, sender, message.seq)
        self._outbox.send(target.peer, Ping(seq=seq))
        left_s = self._config.probe_interval_s - self._config.probe_timeout_s
        self._timers.at(now + self._config.nack_share * left_s, self._give_nack, seq)

    def _give_nack(self, seq: int, now: float) -> None:
        relayed = self._relaying.pop(seq, None)
        if relayed is not None:
            self._outbox.send(relayed[1].peer, Nack(seq=relayed[2]))

    def nack(self, message: Nack, sender: Member) -> None:
        began = self._rounds.get(message.seq)
        if began is not None and sender in began.asked and began.nacks < len(began.asked):
            began.nacks += 1

    def heard(self, member: Member) -> None:
        """It answered something else, which is as good as an ack."""
        seq = self._probing.get(member)
        if seq is not None:
            self._done(seq)

    # --- those who may come back ------------------------------------------------------------------

    def _retry(self, now: float) -> None:
        """One of the dead and unknown; sooner when the last death was a moment ago, as after a partition."""
        config = self._config
        self._timers.at(now + config.retry_min_s * (0.8 + 0.4 * self._rng.random()), self._retry)
        gone = [each for each in self._members.by_peer.values() if each.rank in (DEAD, UNKNOWN)]
        if not gone:
            return
        ago = now - max(each.since for each in gone)
        if now - self._retried_at >= min(config.retry_interval_s, ago * RETRY_SHARE):
            self._retried_at = now
            self.probe(self._rng.choice(gone), now)

    def forget(self, gone: list[Member]) -> None:
        for member in gone:
            self._acks.pop(member, None)
            self._late_acks.pop(member, None)
            seq = self._probing.pop(member, None)
            if seq is not None:
                del self._rounds[seq]

    def _is_member(self, member: Member) -> bool:
        return self._members.by_peer.get(member.peer) is member


def _heard_at(member: Member) -> float:
    return member.heard_at


class _Round:
    """`of`: the life that is asked for; silence says nothing about one that began meanwhile."""

    __slots__ = ("asked", "nacks", "of", "target")

    def __init__(self, target: Member) -> None:
        self.target = target
        self.of = (target.run, target.incarnation) if target.is_live else None
        self.asked: set[Member] = set()
        self.nacks = 0
