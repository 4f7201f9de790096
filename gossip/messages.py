"""What membership and facts say to each other. Tags and fields are the wire format: add at the end, never renumber.

A peer is named by its `ref`: the first 12 characters of its id when the roster has no other such, else the whole id.
Every message may carry rumours, news, facts and the highest coordinator claim: SWIM's piggyback (section 4.1).
"""

from __future__ import annotations

from dataclasses import dataclass

from gossip.member import About

# (ref, key, version, age, value): a fact itself, and how long ago its owner set it, in ms when the message was made
FactRow = tuple[str, str, int, int, bytes]
# (ref, key, version): that a fact has a new version, to be fetched
NewsRow = tuple[str, str, int]

ALIVE, SUSPECT, DEAD, LEFT = 0, 1, 2, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Rumour:
    """A claim about a member. `source` (ref): who says so, for suspicions. `about`: with alive, and in tables."""

    peer: str
    rank: int
    run: int
    incarnation: int
    source: str = ""
    about: About | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    seq: int
    rumours: tuple[Rumour, ...] = ()
    facts: tuple[FactRow, ...] = ()
    news: tuple[NewsRow, ...] = ()
    claim: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    seq: int
    rumours: tuple[Rumour, ...] = ()
    facts: tuple[FactRow, ...] = ()
    news: tuple[NewsRow, ...] = ()
    claim: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gossip:
    rumours: tuple[Rumour, ...] = ()
    facts: tuple[FactRow, ...] = ()
    news: tuple[NewsRow, ...] = ()
    claim: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class PingReq:
    """Ping `target` for me; Ack or Nack with my `seq`."""

    seq: int
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Nack:
    """The target has not answered me either, but I am here."""

    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """Opens a sync: what I know, as one hash a bucket of members."""

    digests: tuple[int, ...]
    claim: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What I know of the members in those buckets (of `width`) where we differ; the answer holds only what is newer."""

    width: int
    buckets: tuple[int, ...]
    rumours: tuple[Rumour, ...]
    news: tuple[NewsRow, ...]
    facts: tuple[FactRow, ...] = ()
    is_answer: bool = False
    claim: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """Send me these facts, of this version or later."""

    wanted: tuple[NewsRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """Facts that were fetched."""

    facts: tuple[FactRow, ...]


TAGS: dict[int, type] = {1: Ping, 2: Ack, 3: PingReq, 4: Nack, 5: Gossip, 6: Digest, 7: Table, 8: Fetch, 9: Values}
# Election's messages begin here.
ELECTION_TAG = 32
