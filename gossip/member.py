"""What is known of a member: what it says about itself, and what this peer believes of it."""

from __future__ import annotations

from dataclasses import dataclass

from gossip.effects import PeerId, Role, State

ADDRESSES_MAX = 16
ABOUT_MAX = 640


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a peer says about itself; it spreads with its `alive`."""

    addresses: tuple[str, ...] = ()
    draining: bool = False
    # 0 never coordinates, 1 may, 2 prefers to
    eligibility: int = 1
    # of the software
    version: str = ""
    # how many other peers' history logs it holds: who has most comes first among those who may coordinate
    copies: int = 0

    @property
    def size(self) -> int:
        """In characters."""
        return len(self.version) + sum(len(address) + 2 for address in self.addresses)

    @property
    def is_modest(self) -> bool:
        """Small enough to ride on a message: a rumour that never fits would hold up all others."""
        return len(self.addresses) <= ADDRESSES_MAX and self.size <= ABOUT_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberView:
    """A member as it stands now, for readers. `since`: when it came into this state, by this peer's clock."""

    peer: PeerId
    role: Role
    state: State
    run: int
    incarnation: int
    about: About
    since: float
    is_connected: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A fact of a peer, the newest version that is here. Times are of this peer's clock.

    `set_at`: when its owner set it, as far as known: time on the wire makes it look that much younger.
    """

    version: int
    value: bytes
    received_at: float
    set_at: float
