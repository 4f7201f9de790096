"""Everything pure of gossip in one piece: membership, facts and election, bytes in, effects out.

The shell (gossip/agent.py) and the simulator (tests/sim) both drive exactly this.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gossip.config import GossipConfig
from gossip.effects import Effect, PeerId, Role
from gossip.member import About, Fact, MemberView

if TYPE_CHECKING:
    from gossip.election import Claim


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
        raise NotImplementedError

    def receive(self, sender: PeerId, data: bytes, now: float) -> list[Effect]:
        """A frame of the sender's channel. Garbage changes nothing and never raises."""
        raise NotImplementedError

    def tick(self, now: float) -> list[Effect]:
        """What is due. Feed what has arrived first: a late answer then still counts."""
        raise NotImplementedError

    @property
    def wake_at(self) -> float:
        """When `tick` is wanted next. Earlier or later is fine; over 250 ms late worsens the local health."""
        raise NotImplementedError

    def members_are(self, roles: Mapping[PeerId, Role], now: float) -> list[Effect]:
        """The roster, me included. Who is not in it is nobody: forgotten, and its messages are dropped."""
        raise NotImplementedError

    def connected(self, peer: PeerId, now: float) -> list[Effect]:
        """A channel to the peer opened, from either side."""
        raise NotImplementedError

    def disconnected(self, peer: PeerId, now: float) -> list[Effect]:
        """Its channel was reset, or a dial was refused or timed out. Not for channels closed by LRU: see `parted`."""
        raise NotImplementedError

    def parted(self, peer: PeerId, now: float) -> list[Effect]:
        """This side closed the channel (too many open): no sign of trouble."""
        raise NotImplementedError

    def heard(self, peer: PeerId, now: float) -> list[Effect]:
        """Any other proof of life, such as an answer to a forwarded request."""
        raise NotImplementedError

    def hinted(self, peer: PeerId, now: float) -> list[Effect]:
        """Something (mDNS, a seed) says it may be there: probe it now, even if dead."""
        raise NotImplementedError

    def about_is(self, about: About, now: float) -> list[Effect]:
        """What I say about myself changed: the incarnation goes up and it spreads."""
        raise NotImplementedError

    def set_fact(self, key: str, value: bytes, now: float, *, fast: bool = False) -> list[Effect]:
        """A fact of mine. `fast` (load): the value rides on messages; else its version spreads, and others fetch it."""
        raise NotImplementedError

    def leave(self, now: float) -> list[Effect]:
        """Goodbye, to everybody who can be reached."""
        raise NotImplementedError

    def members(self) -> Sequence[MemberView]:
        """Everybody of the roster but me."""
        raise NotImplementedError

    def member(self, peer: PeerId) -> MemberView | None:
        raise NotImplementedError

    def fact(self, peer: PeerId, key: str) -> Fact | None:
        """The newest version of a fact that is here; mine too."""
        raise NotImplementedError

    @property
    def coordinator(self) -> Claim | None:
        raise NotImplementedError

    @property
    def run(self) -> int:
        """As given, or raised above a higher one that was heard of me."""
        raise NotImplementedError

    @property
    def health(self) -> int:
        """Lifeguard's local health: 0 is well, up to health_max."""
        raise NotImplementedError
