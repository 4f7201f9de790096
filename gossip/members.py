"""The table of members: who is in the roster, what is believed of each, and hashes to compare two tables by.

A record only; gossip/membership.py decides what changes in it.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Mapping

from gossip.config import GossipConfig
from gossip.effects import PeerId, Role, State
from gossip.member import About, MemberView
from gossip.messages import ALIVE, DEAD, LEFT, SUSPECT, FactRow, NewsRow, Rumour
from gossip.suspicion import Suspicion

UNKNOWN = -1
STATES: dict[int, State] = {UNKNOWN: "unknown", ALIVE: "alive", SUSPECT: "suspect", DEAD: "dead", LEFT: "left"}
REF_LENGTH = 12
LEAVES = 64
NOBODY = About()
# Older than that is all the same.
AGE_MAX_MS = 1 << 40


class Held:
    """A fact that is here."""

    __slots__ = (
        "is_fast", "key", "owner", "received_at", "sent", "set_at", "slot", "teller", "value", "version", "wave_at",
    )  # fmt: skip

    def __init__(self, owner: Member, key: str) -> None:
        self.owner, self.key = owner, key
        self.version, self.value, self.is_fast = -1, b"", False
        self.set_at = self.received_at = self.wave_at = -math.inf
        # how often it was passed on, where it waits to be, and who told
        self.sent, self.slot = 0, -1
        self.teller: PeerId = ""

    def row(self, now: float) -> FactRow:
        age = max(0, min(AGE_MAX_MS, int((now - self.set_at) * 1000)))
        return self.owner.ref, self.key, self.version, age, self.value


class Member:
    """What this peer believes of one member of the roster (itself too)."""

    __slots__ = (
        "about", "asked_at", "avoided", "bucket", "digest", "facts", "heard_at", "incarnation", "is_connected", "peer",
        "rank", "ref", "role", "run", "since", "suspicion", "told_at", "weight",
    )  # fmt: skip

    def __init__(self, peer: PeerId, role: Role, weight: int, now: float) -> None:
        self.peer, self.role, self.weight, self.ref = peer, role, weight, peer
        self.rank, self.run, self.incarnation, self.about = UNKNOWN, 0, 0, NOBODY
        self.since, self.is_connected, self.avoided = now, False, False
        self.suspicion: Suspicion | None = None
        self.facts: dict[str, Held] = {}
        self.bucket, self.digest = hashlib.blake2b(peer.encode(), digest_size=1).digest()[0] % LEAVES, 0
        # by this peer's clock: the last message of its own, the last time it was told what is said of it, or asked
        self.heard_at = self.told_at = self.asked_at = -math.inf

    @property
    def is_live(self) -> bool:
        return self.rank == ALIVE or self.rank == SUSPECT

    def view(self) -> MemberView:
        return MemberView(
            peer=self.peer, role=self.role, state=STATES[self.rank], run=self.run, incarnation=self.incarnation,
            about=self.about, since=self.since, is_connected=self.is_connected,
        )  # fmt: skip

    def rumour(self, *, source: str = "") -> Rumour:
        return Rumour(
            peer=self.ref, rank=self.rank, run=self.run, incarnation=self.incarnation, source=source,
            about=None if self.about is NOBODY else self.about,
        )  # fmt: skip


class Members:
    """Everybody of the roster, `mine` among them."""

    def __init__(self, me: PeerId, config: GossipConfig, now: float) -> None:
        self._config = config
        self.mine = Member(me, "active", 0, now)
        self.by_peer: dict[PeerId, Member] = {me: self.mine}
        self.by_ref: dict[str, Member] = {}
        self.count = 1
        self._leaves = [0] * LEAVES
        self._near: list[Member] | None = None
        # Whose state, run, role or about changed, until the core takes them.
        self.changed: dict[PeerId, None] = {me: None}
        self._name()

    def roster_is(self, roles: Mapping[PeerId, Role], now: float) -> list[Member]:
        """Takes new ones in as unknown; gives those who are forgotten."""
        me = self.mine.peer
        gone = [member for peer, member in self.by_peer.items() if peer != me and peer not in roles]
        for member in gone:
            self._leaves[member.bucket] ^= member.digest
            self.count -= member.is_live
            del self.by_peer[member.peer]
            self.changed[member.peer] = None
        for peer, role in roles.items():
            known = self.by_peer.get(peer)
            if known is None:
                pair = (me + peer) if me < peer else (peer + me)
                self.by_peer[peer] = Member(peer, role, zlib.crc32(pair.encode()), now)
            else:
                known.role = role
            self.changed[peer] = None
        self._name()
        self._near = None
        return gone

    def believe(self, member: Member, rank: int, now: float) -> None:
        """The member is this now; run, incarnation and about were set by the caller."""
        if member is not self.mine:
            self.count += (rank in (ALIVE, SUSPECT)) - member.is_live
        if member.rank != rank:
            member.rank, member.since = rank, now
            self._near = None
        self.changed[member.peer] = None
        self.hash(member)

    def hash(self, member: Member) -> None:
        """Call when anything that a sync compares has changed: suspicions are not compared, they travel faster."""
        versions = sorted((held.key, held.version) for held in member.facts.values() if not held.is_fast)
        rank = ALIVE if member.rank == SUSPECT else member.rank
        text = f"{member.peer} {rank} {member.run} {member.incarnation} {member.about is NOBODY} {versions}"
        digest = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
        if member.rank == UNKNOWN:
            digest = 0
        self._leaves[member.bucket] ^= member.digest ^ digest
        member.digest = digest

    def digests(self) -> tuple[int, ...]:
        """About eight members a bucket."""
        width = 1
        while width < LEAVES and width * 8 < len(self.by_peer):
            width *= 2
        return self.folded(width)

    def folded(self, width: int) -> tuple[int, ...]:
        """One hash each of `width` buckets, a power of two up to LEAVES."""
        folded = [0] * width
        for at, leaf in enumerate(self._leaves):
            folded[at % width] ^= leaf
        return tuple(folded)

    @property
    def is_full_mesh(self) -> bool:
        return self.count <= self._config.channels_max

    def is_near(self, member: Member) -> bool:
        """Do we keep a channel? Everybody does with everybody, or each pair decides by its hash, the same on both."""
        if self.count <= self._config.channels_max:
            return True
        return member.weight * self.count < self._config.neighbours << 32

    @property
    def near(self) -> list[Member]:
        """Those alive or suspect that I probe and gossip with. Not to be changed by the caller."""
        if self._near is None:
            mine = self.mine
            if self.is_full_mesh:
                self._near = [each for each in self.by_peer.values() if each.is_live and each is not mine]
            else:
                bound = (self._config.neighbours << 32) // self.count
                self._near = [
                    each for each in self.by_peer.values() if each.weight < bound and each.is_live and each is not mine
                ]
        return self._near

    def _name(self) -> None:
        """Short refs where they are unique; whole ids are always understood."""
        self.by_ref = {}
        clashing: set[str] = set()
        for peer, member in self.by_peer.items():
            short = peer[:REF_LENGTH]
            if short in self.by_ref:
                clashing.add(short)
            self.by_ref[short] = member
        for short in clashing:
            del self.by_ref[short]
        for peer, member in self.by_peer.items():
            member.ref = peer if peer[:REF_LENGTH] in clashing else peer[:REF_LENGTH]
            self.by_ref[peer] = member


def news_of(member: Member) -> list[NewsRow]:
    return [(member.ref, held.key, held.version) for held in member.facts.values() if not held.is_fast]


def fast_of(member: Member, now: float) -> list[FactRow]:
    return [held.row(now) for held in member.facts.values() if held.is_fast]
