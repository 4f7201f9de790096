"""What the pure state machines of this package want done: values, carried out in order by the shell (or a simulator).

`Send` is what the machines (membership, facts, election) return; `gossip.core.Core` turns each into a `Transmit`
of bytes, so a shell never sees a `Send`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from gossip.election import Claim

PeerId = str
State = Literal["unknown", "alive", "suspect", "dead", "left"]
Role = Literal["active", "guest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """A message of a machine, on its way to becoming bytes."""

    to: PeerId
    message: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Transmit:
    """Bytes for a peer, one frame of its channel.

    Without an open channel the shell dials every address of the peer and drops the frame when that takes over 1 s.
    """

    to: PeerId
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Persist:
    """Write the claim durably before carrying out what follows in the list."""

    claim: Claim


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberChanged:
    """A member's state changed, or (`before == after`) what it says about itself did: addresses, draining, ..."""

    peer: PeerId
    before: State
    after: State


@dataclass(frozen=True, slots=True, kw_only=True)
class FactChanged:
    """A newer version of a fact of another peer is here: `Core.fact(peer, key)`."""

    peer: PeerId
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorChanged:
    """Who coordinates, as this peer sees it now."""

    claim: Claim | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Avoid:
    """Its channel was reset or refused: send it no request until `Regained` (it is being probed meanwhile)."""

    peer: PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Regained:
    """An avoided peer answered again."""

    peer: PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Dial:
    """A channel to this peer is wanted now."""

    peer: PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class OutranMyself:
    """Somebody told of this very peer with a later run: my clock went back, or my identity was copied.

    This peer's run is now above it. Again and again means a clone.
    """

    heard_run: int
    run: int


Event = MemberChanged | FactChanged | CoordinatorChanged | Avoid | Regained | Dial | OutranMyself
MachineEffect = Send | Persist | Event
Effect = Transmit | Persist | Event
