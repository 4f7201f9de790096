"""What peers say to each other about logs, as typed values and as bytes (msgpack). Pure.

    GET  /mesh/history/vector    what do you hold? Told; ?rest=HEX if it is not this, ?of=PEER of that peer alone
    POST /mesh/history/push      Batch, of the sender's own log: Span, where the copy begins and ends now
    POST /mesh/history/pull      [Want]: Batches

Everything from another peer is checked here once; BadMessage is all that can come of it. Fields are only ever added at
the end, and further ones are ignored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgpack

from mesh.history.entries import ENTRY_BYTES_MAX, INT_MAX, LogId
from mesh.history.replicas import Span, Vector, Want

PATH = "/mesh/history"
VECTOR_PATH = f"{PATH}/vector"
PUSH_PATH = f"{PATH}/push"
PULL_PATH = f"{PATH}/pull"

LOGS_MAX = 100_000
WANTS_MAX = 1024
SEQ_MAX = 2**39
"""Two thousand years of ten entries a second; the store counts to 2^40."""
BATCH_BYTES_MAX = 2**20
"""What one message carries, unless a single entry is larger."""
MESSAGE_BYTES_MAX = ENTRY_BYTES_MAX + 2**16
PEER_CHARACTERS_MAX = 128


class BadMessage(Exception):
    """What came is nothing that a peer of ours says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a peer holds: its own logs, and the rest as far as it matters to who asked.

    `rest` is None when its digest is the one that was asked with.
    """

    own: Vector
    digest: bytes = b""
    rest: Vector | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Entries of a log, from number `first` on. `low`: it is retired up to there; `have`: it goes up to there."""

    log: LogId
    low: int
    have: int
    first: int
    items: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """An answer to wants. `has_more`: there was more than one message takes."""

    batches: tuple[Batch, ...] = field(default=())
    has_more: bool = False


def digest_of(vector: Vector) -> bytes:
    """The same for equal vectors."""
    return hashlib.sha256(_packed(_rows(vector))).digest()[:16]


def told_out(told: Told) -> bytes:
    return _packed([_rows(told.own), told.digest, None if told.rest is None else _rows(told.rest)])


def told_in(data: bytes, teller: str) -> Told:
    """Raises BadMessage, also when another's log stands among the teller's own."""
    own, digest, rest = _fields(data, 3)
    vector = _vector(own)
    if any(log.peer != teller for log in vector):
        raise BadMessage("it calls another peer's log its own")
    if type(digest) is not bytes or len(digest) > 64:
        raise BadMessage("no digest")
    return Told(own=vector, digest=digest, rest=None if rest is None else _vector(rest))


def wants_out(wants: Iterable[Want]) -> bytes:
    return _packed([[want.log.peer, want.log.run, want.after] for want in wants])


def wants_in(data: bytes) -> list[Want]:
    """Raises BadMessage."""
    rows = _list(_unpacked(data), WANTS_MAX)
    return [
        Want(log=_log(peer, run), after=_number(after, SEQ_MAX)) for peer, run, after in (_row(row, 3) for row in rows)
    ]


def batch_out(batch: Batch) -> bytes:
    return _packed(_batch_row(batch))


def batch_in(data: bytes) -> Batch:
    """Raises BadMessage."""
    return _batch(_unpacked(data))


def batches_out(batches: Batches) -> bytes:
    return _packed([[_batch_row(batch) for batch in batches.batches], batches.has_more])


def batches_in(data: bytes) -> Batches:
    """Raises BadMessage."""
    rows, has_more = _fields(data, 2)
    return Batches(batches=tuple(_batch(row) for row in _list(rows, WANTS_MAX)), has_more=has_more is True)


def span_out(span: Span) -> bytes:
    return _packed(list(span))


def span_in(data: bytes) -> Span:
    """Raises BadMessage."""
    return _span(*_fields(data, 2))


def _batch_row(batch: Batch) -> list[Any]:
    return [batch.log.peer, batch.log.run, batch.low, batch.have, batch.first, batch.items]


def _batch(row: Any) -> Batch:
    peer, run, low, have, first, items = _row(row, 6)
    found = tuple(_list(items, LOGS_MAX))
    if any(type(item) is not bytes for item in found):
        raise BadMessage("an entry that is no bytes")
    start = _number(first, SEQ_MAX)
    if start < 1 or start + len(found) > SEQ_MAX:
        raise BadMessage("entries are numbered from 1")
    low, have = _span(low, have)
    return Batch(log=_log(peer, run), low=low, have=have, first=start, items=found)


def _rows(vector: Vector) -> list[list[Any]]:
    return [[*log, *span] for log, span in sorted(vector.items())]


def _vector(rows: Any) -> Mapping[LogId, Span]:
    found = (_row(row, 4) for row in _list(rows, LOGS_MAX))
    return {_log(peer, run): _span(low, have) for peer, run, low, have in found}


def _packed(value: Any) -> bytes:
    data: bytes = msgpack.packb(value)
    return data


def _unpacked(data: bytes) -> Any:
    if len(data) > MESSAGE_BYTES_MAX:
        raise BadMessage(f"it has {len(data):,} bytes, the limit is {MESSAGE_BYTES_MAX:,}")
    try:
        return msgpack.unpackb(data, raw=False)
    except (ValueError, TypeError, RecursionError, OverflowError, msgpack.exceptions.UnpackException) as error:
        raise BadMessage(f"no msgpack: {type(error).__name__}") from None


def _fields(data: bytes, count: int) -> list[Any]:
    return _row(_unpacked(data), count)


def _row(value: Any, count: int) -> list[Any]:
    if type(value) is not list or len(value) < count:
        raise BadMessage(f"no list of {count}")
    return value[:count]


def _list(value: Any, count_max: int) -> list[Any]:
    if type(value) is not list or len(value) > count_max:
        raise BadMessage(f"no list of at most {count_max}")
    return value


def _log(peer: Any, run: Any) -> LogId:
    if type(peer) is not str or not 0 < len(peer) <= PEER_CHARACTERS_MAX:
        raise BadMessage("no peer id")
    return LogId(peer, _number(run, INT_MAX))


def _span(low: Any, have: Any) -> Span:
    span = _number(low, SEQ_MAX), _number(have, SEQ_MAX)
    if span[0] > span[1]:
        raise BadMessage("a log that is retired above its end")
    return span


def _number(value: Any, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise BadMessage(f"no number from 0 to {most}")
    return value
