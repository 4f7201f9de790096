"""What members of a mesh sign, and how it is written: an entry lets a peer in, a revocation throws one out, for ever.

A statement is bytes, msgpack `[payload, signature]` with `payload = [version, mesh, signer's key, kind, ...]`; its hash
is SHA-256 of all of it. It carries the key that signed it, so whether the signature is right is seen without knowing
anybody. It names its mesh (the hash of the founding entry), so it says nothing in another. The founding entry itself
names none and is signed by the founder.

Not here: which statements count (gossip.standing), the set of them (gossip.roster).
"""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import msgpack

from gossip.errors import BadCertificate, BadStatement
from gossip.identity import Identity, PeerId, base32, peer_id_of, peer_id_of_key, verify_with_key

State = Literal["active", "guest"]
Via = Literal["founder", "door", "ask", "token", "local", "trusted", "self"]

STATEMENTS_MAX = 4096
"""In one mesh. A home or an office has dozens of machines with a few statements each."""
ROSTER_BYTES_MAX = 4 * 2**20
"""All of one mesh's together: it is told to each that joins, and to each that missed something."""
STATEMENT_BYTES_MAX = 160 * 1024
"""A revocation that keeps 4,096 hashes of 32 bytes has 140 KB; an entry has about 900 bytes."""
NAME_CHARACTERS_MAX = 64
REVISION_MAX = 2**31

_VERSION = 1
_PURPOSE = b"llm-router roster statement\0"
_ENTRY, _REVOCATION = 0, 1
_HASH_BYTES = 32
_TIME_MAX = 2**53
_STATES, _VIAS = get_args(State), get_args(Via)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """`signer` says: this certificate's owner is one of us, under this name and in this state.

    Signed by its own subject it changes the name only. `at` is unix seconds by the signer's clock, for people to read.
    """

    hash: bytes
    mesh: bytes = field(repr=False)
    signer: PeerId
    subject: PeerId
    certificate: bytes = field(repr=False)
    name: str
    state: State
    via: Via
    revision: int
    at: int

    @property
    def is_grant(self) -> bool:
        """True unless the subject wrote it itself: then only its name counts."""
        return self.signer != self.subject or self.is_founding

    @property
    def is_founding(self) -> bool:
        return not self.mesh

    @property
    def rank(self) -> tuple[int, bool, bytes]:
        """The highest of a peer's entries that count is the one in force; of two of one revision the guest's."""
        return self.revision, self.state == "guest", self.hash


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """`signer` says: `subject` is none of us any more, and of what it signed only `keeps` still counts."""

    hash: bytes
    mesh: bytes = field(repr=False)
    signer: PeerId
    subject: PeerId
    at: int
    keeps: frozenset[bytes] = field(repr=False)


Statement = Entry | Revocation


def signed_entry(
    identity: Identity,
    mesh: bytes,
    *,
    certificate: bytes,
    name: str,
    state: State,
    via: Via,
    revision: int,
    now_s: float,
) -> bytes:
    """The bytes of an entry. `mesh` is empty for the founding one. Raises BadStatement for a name that is none."""
    if name != clean_name(name):
        raise BadStatement(f"a name has 1 to {NAME_CHARACTERS_MAX} printable characters, not {name[:80]!r}")
    return _signed(identity, mesh, [_ENTRY, certificate, name, state, via, revision, int(now_s)])


def signed_revocation(
    identity: Identity, mesh: bytes, *, subject: PeerId, keeps: Collection[bytes], now_s: float
) -> bytes:
    """The bytes of a revocation."""
    return _signed(identity, mesh, [_REVOCATION, subject, int(now_s), sorted(keeps)])


def read(data: bytes) -> Statement:
    """The statement in these bytes, its signature checked. Raises BadStatement."""
    if len(data) > STATEMENT_BYTES_MAX:
        raise BadStatement(f"the statement has {len(data)} bytes, allowed are {STATEMENT_BYTES_MAX}")
    return _read(bytes(data))


def clean_name(name: str) -> str:
    """The name without what cannot be printed or would confuse, at most 64 characters; may come out empty."""
    return printable(name)[:NAME_CHARACTERS_MAX].strip()


def printable(text: str) -> str:
    """What somebody else said, for a terminal or a log: on one line, without control and format characters."""
    shown = "".join(" " if character.isspace() else character for character in unicodedata.normalize("NFC", text))
    kept = "".join(character for character in shown if unicodedata.category(character)[0] != "C")
    return " ".join(kept.split())


def mesh_id_of(founding: bytes) -> str:
    """The id of the mesh that begins with this statement: base32 of its hash, 52 characters."""
    return base32(hashlib.sha256(founding).digest())


def _signed(identity: Identity, mesh: bytes, body: list[Any]) -> bytes:
    payload = cast(bytes, msgpack.packb([_VERSION, mesh, identity.public_key, *body]))
    return cast(bytes, msgpack.packb([payload, identity.sign(_PURPOSE + payload)]))


@functools.lru_cache(maxsize=2 * STATEMENTS_MAX)
def _read(data: bytes) -> Statement:
    try:
        payload, signature = _unpacked(data)
        version, mesh, key, kind, *body = _unpacked(_exact(payload, bytes))
        if version != _VERSION or len(_exact(mesh, bytes)) not in (0, _HASH_BYTES):
            raise ValueError("unknown version or mesh")
        if not verify_with_key(_exact(key, bytes), _PURPOSE + payload, _exact(signature, bytes)):
            raise BadStatement("a roster statement is not signed by the key it names")
        signer = peer_id_of_key(key)
        digest = hashlib.sha256(data).digest()
        if kind == _ENTRY:
            return _entry(digest, mesh, signer, body)
        if kind == _REVOCATION:
            return _revocation(digest, mesh, signer, body)
        raise ValueError(f"unknown kind {kind!r}")
    except (ValueError, TypeError, BadCertificate) as error:
        raise BadStatement(f"a roster statement cannot be read: {error}") from None


def _entry(digest: bytes, mesh: bytes, signer: PeerId, body: list[Any]) -> Entry:
    certificate, name, state, via, revision, at = body
    if state not in _STATES or via not in _VIAS or _exact(name, str) != clean_name(name) or not name:
        raise ValueError("state, way in or name is none")
    subject = peer_id_of(_exact(certificate, bytes))
    if not 1 <= _exact(revision, int) <= REVISION_MAX:
        raise ValueError("revision out of range")
    if (not mesh or via == "founder") and (mesh, signer, state, via, revision) != (
        b"",
        subject,
        "active",
        "founder",
        1,
    ):
        raise ValueError("not how a mesh is founded")
    return Entry(
        hash=digest,
        mesh=mesh,
        signer=signer,
        subject=subject,
        certificate=certificate,
        name=name,
        state=state,
        via=via,
        revision=revision,
        at=_time(at),
    )


def _revocation(digest: bytes, mesh: bytes, signer: PeerId, body: list[Any]) -> Revocation:
    subject, at, keeps = body
    if not mesh or len(_exact(subject, str)) != len(signer):
        raise ValueError("mesh or subject is none")
    if len(_exact(keeps, list)) > STATEMENTS_MAX or any(len(_exact(kept, bytes)) != _HASH_BYTES for kept in keeps):
        raise ValueError("what it keeps is no list of hashes")
    return Revocation(hash=digest, mesh=mesh, signer=signer, subject=subject, at=_time(at), keeps=frozenset(keeps))


def _unpacked(data: bytes) -> list[Any]:
    return cast(list[Any], _exact(msgpack.unpackb(data, raw=False, strict_map_key=True), list))


def _exact(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"a {kind.__name__} is missing")
    return value


def _time(value: Any) -> int:
    if not 0 <= _exact(value, int) < _TIME_MAX:
        raise ValueError("time out of range")
    return cast(int, value)
