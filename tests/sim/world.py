"""A whole mesh on virtual time: gossip.core.Core on many hosts, streams between them, and faults. One seed, one run.

Every frame goes through the codec as bytes. A stream is reliable and ordered as TCP is: a lost packet arrives after
its retransmission (200 ms, doubling) and everything behind it waits; across a partition it waits until the first
retransmission after the heal. Streams between different pairs overtake each other. A crashed process resets its
channels, a machine without power says nothing. What a shell does around the core (dial, drop a channel to the dead,
close the least recently used) is done here in the plainest way.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import math
import random
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from gossip.config import GossipConfig
from gossip.core import CODEC, Core
from gossip.effects import (
    Avoid,
    CoordinatorChanged,
    Dial,
    Effect,
    FactChanged,
    MemberChanged,
    Persist,
    Role,
    Transmit,
)
from gossip.election import Claim
from gossip.member import About
from gossip.messages import ALIVE, Rumour, Table
from tests.sim.watch import Watch

RTO_S = 0.2
DIAL_TIMEOUT_S = 1.0
PENDING_S = 1.0
IN_USE_S = 3.0
SETUP_BYTES = 2700
SEGMENT_BYTES = 1400
TLS_BYTES, SEGMENT_OVERHEAD_BYTES, WEBSOCKET_BYTES = 29, 54, 6
EPOCH_MS = 1_700_000_000_000
MESSAGE, TIMER = 0, 1


class Host:
    """A machine: its process (a core, or None), its disk (the claim), its side of the network."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.peer = base64.b32encode(hashlib.sha256(b"host %d" % index).digest()).decode().lower().rstrip("=")
        self.core: Core | None = None
        self.has_power = True
        self.claim: Claim | None = None
        self.side = 0
        self.frozen_until = 0.0
        self.clock_offset = 0.0
        self.armed = math.inf
        self.life = 0
        self.load_turn = 0
        self.channels: dict[Host, Channel] = {}
        self.eligibility = 1
        self.is_draining = False

    @property
    def about(self) -> About:
        return About(
            addresses=(f"10.{self.index >> 16}.{self.index >> 8 & 255}.{self.index & 255}:8001",),
            draining=self.is_draining,
            eligibility=self.eligibility,
            version="0.1.0",
        )


class Stream:
    """One direction of a channel. `held`: what cannot pass, since when."""

    __slots__ = ("held", "held_since", "last")

    def __init__(self) -> None:
        self.last = 0.0
        self.held: list[bytes] = []
        self.held_since = 0.0


class Channel:
    __slots__ = ("is_open", "pending", "streams", "used_at")

    def __init__(self, a: Host, b: Host) -> None:
        self.is_open = False
        self.streams = {a: Stream(), b: Stream()}
        self.pending: list[tuple[float, Host, bytes]] = []
        self.used_at = 0.0


class World:
    """Hosts, network, clock. `watch` sees every effect and byte, and checks the invariants."""

    def __init__(
        self,
        peers: int,
        *,
        seed: int,
        config: GossipConfig,
        loss: float = 0.0,
        load_interval_s: float = 0.5,
        guests: Iterable[int] = (),
    ) -> None:
        self.rng = random.Random(seed)
        self.config, self.loss, self.load_interval_s = config, loss, load_interval_s
        self.now = 0.0
        self.hosts = [Host(index) for index in range(peers)]
        self.by_peer = {host.peer: host for host in self.hosts}
        self.roles: dict[str, Role] = {
            host.peer: "guest" if host.index in set(guests) else "active" for host in self.hosts
        }
        self.cut_ways: set[tuple[int, int]] = set()
        self._heap: list[tuple[float, int, int, Host | None, int, Callable[..., None], tuple[Any, ...]]] = []
        self._tie = 0
        self.watch = Watch(self)

    # --- clock ------------------------------------------------------------------------------------

    def at(self, when: float, host: Host | None, call: Callable[..., None], *arguments: Any, kind: int = TIMER) -> None:
        self._tie += 1
        heapq.heappush(self._heap, (when, kind, self._tie, host, host.life if host else 0, call, arguments))

    def run(self, until: float) -> None:
        """Lets time pass. What has arrived is read before timers that are due at the same moment."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            when, kind, tie, host, life, call, arguments = heapq.heappop(heap)
            if host is not None:
                if host.life != life:
                    continue
                if when < host.frozen_until:
                    heapq.heappush(heap, (host.frozen_until, kind, tie, host, life, call, arguments))
                    continue
            self.now = when
            call(*arguments)
        self.now = until

    def run_until(self, condition: Callable[[], bool], limit: float, step: float = 0.1) -> float | None:
        """When it came true, to a step, or None."""
        while self.now < limit:
            if condition():
                return self.now
            self.run(self.now + step)
        return self.now if condition() else None

    def clock(self, host: Host) -> float:
        return self.now + host.clock_offset

    # --- hosts ------------------------------------------------------------------------------------

    def start_all(self, within_s: float = 1.0) -> None:
        for host in self.hosts:
            self.at(self.rng.random() * within_s, None, self.start, host)

    def start_joined(self) -> None:
        """As if they had known each other for long: a large mesh without the storm of its first minute."""
        for host in self.hosts:
            self.start(host)
        rumours = [
            Rumour(peer=host.peer, rank=ALIVE, run=host.core.run, incarnation=0, about=host.about)
            for host in self.hosts
            if host.core is not None
        ]
        table = CODEC.encode(Table(width=1, buckets=(0,), rumours=tuple(rumours), news=(), is_answer=True))
        for host, teller in zip(self.hosts, self.hosts[1:] + self.hosts[:1], strict=True):
            assert host.core is not None
            self._carry(host, host.core.receive(teller.peer, table, self.clock(host)))

    def start(self, host: Host) -> None:
        """The process begins, with what is on its disk; it knows a few addresses."""
        self._reset_channels(host)
        host.has_power, host.life, host.armed, host.frozen_until = True, host.life + 1, math.inf, 0.0
        now = self.clock(host)
        core = host.core = Core(
            me=host.peer,
            run=EPOCH_MS + int(now * 1000),
            about=host.about,
            config=self.config,
            rng=random.Random(self.rng.getrandbits(64)),
            now=now,
            claim=host.claim,
        )
        self.watch.started(host)
        self._carry(host, core.members_are(self.roles, now))
        self._carry(host, core.set_fact("inventory", b"models of %d, run %d" % (host.index, host.life), now))
        self._hint(host, 0)
        if self.load_interval_s:
            self.at(self.now + self.rng.random() * self.load_interval_s, host, self._set_load, host)

    def _hint(self, host: Host, turn: int) -> None:
        """Seeds, until one of them answered."""
        assert host.core is not None
        others = [each for each in self.hosts if each is not host]
        if not others or any(channel.is_open for channel in host.channels.values()):
            return
        for other in self.rng.sample(others, min(3, len(others))):
            self._carry(host, host.core.hinted(other.peer, self.clock(host)))
        self.at(self.now + min(30.0, 1.0 + turn) * (0.75 + self.rng.random() / 2), host, self._hint, host, turn + 1)

    def _set_load(self, host: Host) -> None:
        assert host.core is not None
        value = struct.pack("!d16x", self.now)
        self._carry(host, host.core.set_fact("load", value, self.clock(host), fast=True))
        self.at(self.now + self.load_interval_s, host, self._set_load, host)

    def crash(self, host: Host) -> None:
        """The process is killed; its kernel resets every channel."""
        host.core, host.life = None, host.life + 1
        self.watch.ended(host)
        self._reset_channels(host)

    def power_off(self, host: Host) -> None:
        """No goodbye of any kind."""
        host.core, host.life, host.has_power = None, host.life + 1, False
        self.watch.ended(host)

    def leave(self, host: Host) -> None:
        assert host.core is not None
        self._carry(host, host.core.leave(self.clock(host)))
        self.at(self.now + 0.5, None, self.crash, host)

    def freeze(self, host: Host, seconds: float) -> None:
        host.frozen_until = max(host.frozen_until, self.now + seconds)

    def jump_clock(self, host: Host, seconds: float) -> None:
        """Its monotonic clock jumps ahead, as after a sleep that it counts."""
        host.clock_offset += seconds
        host.armed = math.inf
        self._arm(host)

    def about_is(self, host: Host, *, draining: bool) -> None:
        assert host.core is not None
        host.is_draining = draining
        self._carry(host, host.core.about_is(replace(host.about), self.clock(host)))

    def set_roles(self, roles: Mapping[str, Role]) -> None:
        self.roles = dict(roles)
        for host in self.living():
            assert host.core is not None
            self._carry(host, host.core.members_are(self.roles, self.clock(host)))

    def living(self) -> list[Host]:
        return [host for host in self.hosts if host.core is not None]

    @property
    def are_all_up(self) -> bool:
        return all(host.core is not None for host in self.hosts)

    def inject(self, host: Host, sender: Host, data: bytes) -> None:
        """Bytes that no peer of ours would send."""
        if host.core is not None:
            self._carry(host, host.core.receive(sender.peer, data, self.clock(host)))

    # --- network ----------------------------------------------------------------------------------

    def partition(self, *groups: Iterable[Host]) -> None:
        for side, group in enumerate(groups):
            for host in group:
                host.side = side
        self.watch.disturbed()

    def cut(self, sender: Host, receiver: Host) -> None:
        """One way only."""
        self.cut_ways.add((sender.index, receiver.index))
        self.watch.disturbed()

    def heal(self) -> None:
        self.cut_ways.clear()
        for host in self.hosts:
            host.side = 0
        for host in self.hosts:
            for other, channel in host.channels.items():
                stream = channel.streams[host]
                if stream.held:
                    self.at(self._next_retransmission(stream), None, self._flush, host, other, channel)
        self.watch.disturbed()

    def _next_retransmission(self, stream: Stream) -> float:
        when, wait = stream.held_since, RTO_S
        while when < self.now:
            when += wait
            wait *= 2
        return when

    def _flush(self, host: Host, other: Host, channel: Channel) -> None:
        if host.channels.get(other) is channel and not self.is_cut(host, other):
            held, channel.streams[host].held = channel.streams[host].held, []
            for data in held:
                self._put(host, other, channel, data)

    def is_cut(self, sender: Host, receiver: Host) -> bool:
        return sender.side != receiver.side or (bool(self.cut_ways) and (sender.index, receiver.index) in self.cut_ways)

    def latency(self) -> float:
        delay = 0.0002 + 0.0018 * self.rng.random()
        if self.loss:
            rto = RTO_S
            while self.rng.random() < self.loss:
                delay += rto
                rto *= 2
        return delay

    def _send(self, host: Host, to: Host, data: bytes) -> None:
        size = len(data) + WEBSOCKET_BYTES
        segments = 1 + size // SEGMENT_BYTES
        self.watch.sent(
            host,
            data,
            size + TLS_BYTES + segments * SEGMENT_OVERHEAD_BYTES + -(-segments // 2) * SEGMENT_OVERHEAD_BYTES,
        )
        channel = host.channels.get(to)
        if channel is None:
            channel = self._dial(host, to)
        channel.used_at = self.now
        if channel.is_open:
            self._put(host, to, channel, data)
        else:
            channel.pending.append((self.now, host, data))

    def _put(self, host: Host, to: Host, channel: Channel, data: bytes) -> None:
        stream = channel.streams[host]
        if stream.held or self.is_cut(host, to):
            if not stream.held:
                stream.held_since = self.now
            stream.held.append(data)
            return
        stream.last = arrives = max(stream.last, self.now + self.latency())
        self.at(arrives, to, self._deliver, host, to, channel, data, kind=MESSAGE)

    def _deliver(self, host: Host, to: Host, channel: Channel, data: bytes) -> None:
        if to.core is not None and to.channels.get(host) is channel:
            self._carry(to, to.core.receive(host.peer, data, self.clock(to)))

    def _dial(self, host: Host, to: Host) -> Channel:
        channel = Channel(host, to)
        host.channels[to] = to.channels[host] = channel
        self.watch.dialled(host)
        if not to.has_power or self.is_cut(host, to) or self.is_cut(to, host):
            self.at(self.now + DIAL_TIMEOUT_S, None, self._undialled, host, to, channel)
        elif to.core is None:
            self.at(self.now + 2 * self.latency(), None, self._undialled, host, to, channel)
        else:
            took = sum(self.latency() for _ in range(4)) + 0.003
            self.at(self.now + took, None, self._opened, host, to, channel, to.life)
        return channel

    def _undialled(self, host: Host, to: Host, channel: Channel) -> None:
        self._close(host, to, channel)
        if host.core is not None:
            self._carry(host, host.core.disconnected(to.peer, self.clock(host)))

    def _opened(self, host: Host, to: Host, channel: Channel, life: int) -> None:
        if host.channels.get(to) is not channel:
            return
        if host.core is None or to.core is None or to.life != life or self.is_cut(host, to) or self.is_cut(to, host):
            self._undialled(host, to, channel)
            return
        channel.is_open = True
        channel.used_at = self.now
        pending, channel.pending = channel.pending, []
        for a, b in ((host, to), (to, host)):
            assert a.core is not None
            self._carry(a, a.core.connected(b.peer, self.clock(a)))
        for since, sender, data in pending:
            if self.now - since <= PENDING_S:
                self._put(sender, to if sender is host else host, channel, data)
        for each in (host, to):
            if len(each.channels) > self.config.channels_max:
                self._close_idle(each)

    def _close_idle(self, host: Host) -> None:
        """Above the limit, the least recently used, but none in use: the coordinator has a channel to everybody."""
        by_use = sorted(host.channels, key=lambda each: host.channels[each].used_at)
        for other in by_use[: len(by_use) - self.config.channels_max]:
            channel = host.channels[other]
            if not channel.is_open or channel.used_at > self.now - IN_USE_S:
                continue
            self._close(host, other, channel)
            for a, b in ((host, other), (other, host)):
                if a.core is not None:
                    self._carry(a, a.core.parted(b.peer, self.clock(a)))

    def _close(self, host: Host, to: Host, channel: Channel) -> None:
        if host.channels.get(to) is channel:
            del host.channels[to]
        if to.channels.get(host) is channel:
            del to.channels[host]

    def _reset_channels(self, host: Host) -> None:
        for other, channel in list(host.channels.items()):
            self._close(host, other, channel)
            self.at(self.now + self.latency(), other, self._reset, other, host)

    def _reset(self, host: Host, other: Host) -> None:
        if host.core is not None and not self.is_cut(other, host) and other not in host.channels:
            self._carry(host, host.core.disconnected(other.peer, self.clock(host)))

    # --- effects ----------------------------------------------------------------------------------

    def tick(self, host: Host, armed: float) -> None:
        if host.core is None or host.armed != armed:
            return
        host.armed = math.inf
        self._carry(host, host.core.tick(self.clock(host)))

    def _arm(self, host: Host) -> None:
        assert host.core is not None
        wake = host.core.wake_at - host.clock_offset
        if wake < host.armed:
            host.armed = wake
            self.at(max(self.now, wake), host, self.tick, host, wake)

    def _carry(self, host: Host, effects: list[Effect]) -> None:
        for effect in effects:
            kind = type(effect)
            if kind is Transmit:
                assert isinstance(effect, Transmit)
                self._send(host, self.by_peer[effect.to], effect.data)
            elif kind is FactChanged:
                continue
            else:
                self._act(host, effect)
        self.watch.stepped(host)
        if host.core is not None:
            self._arm(host)

    def _act(self, host: Host, effect: Effect) -> None:
        match effect:
            case Persist(claim=claim):
                self.watch.persisted(host, claim)
                host.claim = claim
            case Dial(peer=peer):
                other = self.by_peer[peer]
                if other not in host.channels:
                    self._dial(host, other)
            case MemberChanged(peer=peer, after=after):
                other = self.by_peer[peer]
                self.watch.changed(host, other, effect)
                if after == "dead" and other in host.channels:
                    # its stream may be asleep for as long as the partition lasted
                    channel = host.channels[other]
                    self._close(host, other, channel)
                    if host.core is not None:
                        host.core.parted(peer, self.clock(host))
                    self.at(self.now + self.latency(), other, self._reset, other, host)
            case Avoid(peer=peer):
                self.watch.avoided(host, self.by_peer[peer])
            case CoordinatorChanged(claim=claim):
                self.watch.coordinates(host, claim)
