"""What members say to each other about the admin map, and the bytes of it.

    POST /mesh/admin/rows   Push      -> Pushed      new rows; what was refused, and the digest after it
    POST /mesh/admin/sync   Compare   -> Compared    digest of all against digests of the buckets, if they differ
                            Ask       -> Told        rows of some buckets, but for those the asker has

Rows travel as bytes, each by itself: one that cannot be read is dropped alone. Sizes and types are gossip.codec's to
check, frames have at most 1 MiB.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from gossip.codec import Codec, CodecError

ROWS_MAX = 1000
"""In one message: the signatures of so many take 0.1 s to check."""
ROWS_BYTES_MAX = 768 * 1024
NAMES_MAX = 32_768
"""Rows that an asker may name as known in one question, 8 bytes each."""
NAME_BYTES = 8
"""Of a row's hash: enough to tell a hundred thousand apart."""
DIGEST_BYTES = 16
"""Of a digest, on the wire."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """Rows for a member. `now_ms`: what the teller's clock shows; `last_synced_ms`: when it last knew all that the mesh
    knew."""

    mesh: str
    now_ms: int
    last_synced_ms: int
    rows: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """`refused`: how many for which reason. `is_stale`: nothing was taken, ask for a copy first."""

    now_ms: int
    digest: bytes
    refused: tuple[tuple[str, int], ...] = ()
    is_stale: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """`digest` of what guests may have, then of the rest. `horizon_ms`: endings before that may be forgotten."""

    mesh: str
    now_ms: int
    last_synced_ms: int
    horizon_ms: int
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """`digests` of all buckets in turn, or nothing when the maps are equal."""

    now_ms: int
    last_synced_ms: int
    horizon_ms: int
    digests: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """For the rows of these buckets but those named in `have`."""

    mesh: str
    buckets: tuple[int, ...]
    have: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Of the first `buckets` of those asked for. `wanted`: names of rows that the answering peer lacks in them.

    `is_all` false: ask for the same again, there is more.
    """

    buckets: int
    rows: tuple[bytes, ...]
    wanted: bytes
    is_all: bool


CODEC = Codec({1: Push, 2: Pushed, 3: Compare, 4: Compared, 5: Ask, 6: Told})


def decoded(data: bytes) -> object | None:
    """The message, None for what is none."""
    try:
        return CODEC.decode(data)
    except CodecError:
        return None


def on_the_wire(digests: Iterable[bytes]) -> bytes:
    """Digests one after another, each as long as the wire has them."""
    return b"".join(digest[:DIGEST_BYTES] for digest in digests)


def halves(digest: bytes) -> tuple[bytes, bytes]:
    """Of what guests may have, and of the rest."""
    return digest[:DIGEST_BYTES], digest[DIGEST_BYTES : 2 * DIGEST_BYTES]


def names_in(packed: bytes) -> frozenset[bytes]:
    """The names in `have` or `wanted`; what is cut off at the end names nothing."""
    end = min(len(packed), NAMES_MAX * NAME_BYTES)
    return frozenset(packed[at : at + NAME_BYTES] for at in range(0, end, NAME_BYTES))


def portions(rows: Collection[bytes]) -> Iterator[tuple[bytes, ...]]:
    """All of them, in as many messages as it takes."""
    portion: list[bytes] = []
    size = 0
    for row in rows:
        if portion and (len(portion) >= ROWS_MAX or size + len(row) > ROWS_BYTES_MAX):
            yield tuple(portion)
            portion, size = [], 0
        portion.append(row)
        size += len(row)
    if portion:
        yield tuple(portion)
