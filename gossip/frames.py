"""What two members say to each other on a channel beside gossip itself: who they are, whom they know, where they went.

The first byte of a message tells whose it is: FRAME for these, CORE for those of gossip.core. Versions: each side names
the lowest and highest it speaks, and both use the highest common one; without one the channel ends, and both say so.
"""

from __future__ import annotations

from dataclasses import dataclass

from gossip.codec import Codec

FRAME = b"\x00"
CORE = b"\x01"

PROTO_MIN = 1
PROTO_MAX = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The first message of both sides. `digest` is the sender's roster; `run` its start, in ms since the epoch."""

    proto_min: int
    proto_max: int
    mesh_id: str
    run: int
    version: str
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Statements:
    """Statements of the roster that the other side may lack."""

    statements: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Are you there? Answered at once."""

    nonce: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeAnswer:
    nonce: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """The sender leaves for another mesh, which may be found there."""

    mesh_id: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parting:
    """This channel is closed because the sender has too many, and for no other reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloned:
    """Another living process may have the receiver's identity, since before it. It is there: look for yourself."""

    addresses: tuple[str, ...]


FrameMessage = Hello | Statements | Probe | ProbeAnswer | Moved | Cloned | Parting

FRAMES = Codec(
    {
        1: Hello,
        2: Statements,
        3: Probe,
        4: ProbeAnswer,
        5: Moved,
        6: Cloned,
        7: Parting,
    }
)


def framed(message: FrameMessage) -> bytes:
    """The bytes of `message`, marked as a frame."""
    return FRAME + FRAMES.encode(message)


def common_version(hello: Hello, ours: tuple[int, int]) -> int | None:
    """The highest version that both sides speak, `ours` being lowest and highest; None when there is none."""
    version = min(ours[1], hello.proto_max)
    return version if version >= max(ours[0], hello.proto_min) else None
