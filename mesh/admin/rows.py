"""A row of the admin map: one field of one key, who wrote it and when, signed; to and from bytes.

What is signed names its purpose and its mesh: a row of one mesh means nothing in another, and no other signature of a
peer reads as a row. Whatever comes from another peer is hostile until `read` gave it back and `is_signed` said yes.
Which row wins over which is mesh.admin.map's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

import msgpack

from gossip.codec import CodecError, pack, unpack
from gossip.identity import Identity, PeerId, verify_with_key
from inference import strict_json
from inference.errors import InvalidRequest
from mesh.admin.clock import COUNT_MAX, MS_MAX, NEVER, Clock

ENDED = "ended"
"""The field that ends its key for ever. Its value is a reason, or an object with `reason` and what was kept."""
KEY_LENGTH_MAX = 200
FIELD_LENGTH_MAX = 64
VALUE_BYTES_MAX = 64 * 1024
ROW_BYTES_MAX = VALUE_BYTES_MAX + 1024
SIGNATURE_BYTES = 64
BEFORE_MAX = 7
"""Of more edits of one field than that since two machines last heard of each other, the oldest pass for seen."""

_VERSION = 1
_PURPOSE = b"llm-router admin row\0"
_KEY = re.compile(r"[a-z][a-z0-9_-]{0,31}/[A-Za-z0-9._~:@+=/-]+")
_FIELD = re.compile(r"[a-z][a-z0-9_]*")
_PEER = re.compile(r"[a-z2-7]{52}")
# Of what a row takes apart from key, field and value: for bounds on memory and messages.
_OVERHEAD_BYTES = 160
_CLOCK_BYTES = 12


class BadRow(Exception):
    """Bytes that are no row; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """`value` is JSON. `over` is the clock of the row that its author replaced, `before` those of the rows before that:
    what it wins over without having seen it is an edit that somebody should be told of."""

    key: str
    field: str
    value: bytes = dataclasses.field(repr=False)
    clock: Clock
    over: Clock
    author: PeerId
    signature: bytes = dataclasses.field(repr=False)
    before: tuple[Clock, ...] = dataclasses.field(default=(), repr=False)

    @property
    def size(self) -> int:
        """Bytes, about."""
        return _OVERHEAD_BYTES + len(self.key) + len(self.field) + len(self.value) + _CLOCK_BYTES * len(self.before)

    def had_seen(self, other: Row) -> bool:
        """True if its author knew of that row of the same field, or of one that replaced it."""
        line = (self.over, *self.before)
        return other.clock in line or (len(self.before) >= BEFORE_MAX and other.clock < min(line))


def line_of(rows: Iterable[Row]) -> tuple[Clock, tuple[Clock, ...]]:
    """`over` and `before` of a row that replaces these."""
    clocks = {clock for row in rows for clock in (row.clock, row.over, *row.before)} - {NEVER}
    newest, *rest = sorted(clocks, reverse=True) or [NEVER]
    return newest, tuple(rest[:BEFORE_MAX])


def signed(
    identity: Identity,
    mesh_id: str,
    *,
    key: str,
    field: str,
    value: bytes,
    clock: Clock,
    over: Clock,
    before: tuple[Clock, ...] = (),
) -> Row:
    """A row by this peer. Raises BadRow when it would be one that nobody takes."""
    unsigned = Row(
        key=key,
        field=field,
        value=value,
        clock=clock,
        over=over,
        author=identity.peer_id,
        signature=b"",
        before=before,
    )
    row = dataclasses.replace(unsigned, signature=identity.sign(_signed_bytes(unsigned, mesh_id)))
    _check(row)
    return row


def adopted(rows: Iterable[Row], identity: Identity, mesh_id: str) -> list[Row]:
    """The same rows, clocks and all, with this peer answering for them: their authors are no members any more."""
    return [
        signed(
            identity,
            mesh_id,
            key=row.key,
            field=row.field,
            value=row.value,
            clock=row.clock,
            over=row.over,
            before=row.before,
        )
        for row in rows
    ]


def is_signed(row: Row, mesh_id: str, public_key: bytes) -> bool:
    """True if the owner of this key wrote the row, in this mesh."""
    return verify_with_key(public_key, _signed_bytes(row, mesh_id), row.signature)


def written(row: Row) -> bytes:
    """For the wire and the disk; equal for equal rows."""
    return pack(row)


def read(data: bytes) -> Row:
    """What `written` wrote, in shape; whether its signature is right is not looked at. Raises BadRow."""
    if len(data) > ROW_BYTES_MAX:
        raise BadRow(f"{len(data)} bytes, {ROW_BYTES_MAX} is the limit")
    try:
        row = unpack(Row, data)
    except CodecError as error:
        raise BadRow(str(error)) from None
    _check(row)
    return row


def hash_of(row: Row) -> bytes:
    """32 bytes that name this very row, its signature included."""
    return hashlib.sha256(written(row)).digest()


def check_names(key: str, fields: Iterable[str]) -> None:
    """Raises BadRow when the map takes no such key or field."""
    if len(key) > KEY_LENGTH_MAX or not _KEY.fullmatch(key):
        raise BadRow(f"no key: {key[:KEY_LENGTH_MAX]!r}; a key is `space/name`, up to {KEY_LENGTH_MAX} characters")
    for name in fields:
        if len(name) > FIELD_LENGTH_MAX or not _FIELD.fullmatch(name):
            raise BadRow(f"no field: {name[:FIELD_LENGTH_MAX]!r}; a field is a-z, 0-9 and _, up to {FIELD_LENGTH_MAX}")


def _check(row: Row) -> None:
    check_names(row.key, (row.field,))
    if len(row.value) > VALUE_BYTES_MAX:
        raise BadRow(f"{row.field} of {row.key} has {len(row.value)} bytes, {VALUE_BYTES_MAX} is the limit")
    if len(row.before) > BEFORE_MAX:
        raise BadRow(f"{len(row.before)} rows before it, {BEFORE_MAX} is the limit")
    for clock in (row.clock, row.over, *row.before):
        if not 0 <= clock.ms <= MS_MAX or not 0 <= clock.count <= COUNT_MAX:
            raise BadRow("a clock that no machine shows")
    if not _PEER.fullmatch(row.author) or len(row.signature) != SIGNATURE_BYTES:
        raise BadRow("not signed by a peer")
    try:
        strict_json.parse(row.value)
    except InvalidRequest as error:
        raise BadRow(f"{row.field} of {row.key} is no JSON: {error.message}") from None


def _signed_bytes(row: Row, mesh_id: str) -> bytes:
    payload: bytes = msgpack.packb(
        [
            _VERSION,
            mesh_id,
            row.key,
            row.field,
            row.value,
            row.clock.ms,
            row.clock.count,
            row.over.ms,
            row.over.count,
            row.author,
            [(clock.ms, clock.count) for clock in row.before],
        ]
    )
    return _PURPOSE + payload
