"""TLS between peers: mutual, version 1.3 only, each side known by its certificate, no authority anywhere.

The trust anchors are the certificates of the roster's members themselves. A server *asks* for a certificate: with none
a connection is a stranger's, who may only join; with one that no member has the handshake fails. When the roster
changes a fresh context takes the place of the old: `sni_callback` puts it under each new connection (it is called
without a server name too). There are no session tickets: a revoked peer could resume with one, and then no certificate
is looked at.

An open connection outlives the roster it was made under: `member_of` is asked again for each request.

Not here: which paths a stranger reaches and who closes live connections (gossip.transport).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import ssl
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from gossip.errors import BadCertificate, UnknownPeer
from gossip.identity import Identity, PeerId, peer_id_of, short
from gossip.roster import Roster

_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)
"""X509_V_FLAG_NO_CHECK_TIME: the roster says who is trusted, so a machine whose clock says 1970 is no stranger."""


class Tls:
    """The contexts of one peer. `update` before the first use and whenever the roster changed."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._roster: Roster | None = None
        self._members_context = self._context(ssl.PROTOCOL_TLS_SERVER, ())
        self._everyone: ssl.SSLContext | None = None
        self._pinned: dict[PeerId, tuple[bytes, ssl.SSLContext]] = {}
        self.server_context = self._context(ssl.PROTOCOL_TLS_SERVER, ())
        """The one to listen with, for the life of the process: it trusts whom the latest roster names."""
        self.server_context.sni_callback = self._swap

    def update(self, roster: Roster) -> None:
        """From now on new connections are checked against this roster. Cheap when its members are the same."""
        before = self._anchors()
        self._roster = roster
        if self._anchors() == before:
            return
        self._members_context = self._context(ssl.PROTOCOL_TLS_SERVER, self._anchors())
        self._everyone = None
        self._pinned = {peer: kept for peer, kept in self._pinned.items() if peer in roster.members}

    def client_context(self, peer_id: PeerId | None) -> ssl.SSLContext:
        """To dial exactly this member, or, with None, whichever member answers. Raises UnknownPeer."""
        if peer_id is None:
            if self._everyone is None:
                self._everyone = self._context(ssl.PROTOCOL_TLS_CLIENT, self._anchors())
            return self._everyone
        member = self._roster.members.get(peer_id) if self._roster else None
        if member is None:
            raise UnknownPeer(f"no member of this mesh has the id {short(peer_id)}")
        kept = self._pinned.get(peer_id)
        if kept is None or kept[0] != member.certificate:
            kept = (member.certificate, self._context(ssl.PROTOCOL_TLS_CLIENT, (member.certificate,)))
            self._pinned[peer_id] = kept
        return kept[1]

    def _anchors(self) -> tuple[bytes, ...]:
        return tuple(sorted(member.certificate for member in self._roster.members.values())) if self._roster else ()

    def _swap(self, connection: ssl.SSLObject, server_name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self._members_context

    def _context(self, protocol: ssl._SSLMethod, anchors: Iterable[bytes]) -> ssl.SSLContext:
        context = _bare(protocol)
        with _key_file(self._identity) as path:
            context.load_cert_chain(path)
        if protocol == ssl.PROTOCOL_TLS_SERVER:
            context.verify_mode = ssl.CERT_OPTIONAL
            context.num_tickets = 0
        else:
            context.verify_mode = ssl.CERT_REQUIRED
        if data := b"".join(anchors):
            context.load_verify_locations(cadata=data)
        return context


def stranger_context(certificate: bytes | None = None) -> ssl.SSLContext:
    """To ask a mesh to let this peer in (`/join/*` only): shows no certificate, and takes any or exactly the one given.

    What is said on it must prove itself.
    """
    context = _bare(ssl.PROTOCOL_TLS_CLIENT)
    if certificate is None:
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(cadata=certificate)
    return context


def certificate_of(connection: ssl.SSLObject | ssl.SSLSocket | None) -> bytes | None:
    """The certificate of the other side, DER. None when it showed none, or when there is no TLS."""
    return connection.getpeercert(binary_form=True) if connection is not None else None


def member_of(connection: ssl.SSLObject | ssl.SSLSocket | None, roster: Roster) -> PeerId | None:
    """The member at the other end of this connection, by its certificate's SHA-256, or None for a stranger.

    Ask for each request and with the latest roster: a peer that was revoked since is nobody.
    """
    certificate = certificate_of(connection)
    return roster.peer_of_certificate(hashlib.sha256(certificate).digest()) if certificate else None


def peer_id_of_ssl(connection: ssl.SSLObject | ssl.SSLSocket | None) -> PeerId | None:
    """The id that the other side's certificate proves, member or not. None without a certificate of ours."""
    try:
        certificate = certificate_of(connection)
        return peer_id_of(certificate) if certificate else None
    except BadCertificate:
        return None


def _bare(protocol: ssl._SSLMethod) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False  # a peer is known by its certificate; it has no name of its own
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET
    context.verify_flags |= _NO_CHECK_TIME
    return context


@contextlib.contextmanager
def _key_file(identity: Identity) -> Iterator[str]:
    """Key and certificate as a path, which is all that `ssl` takes: in memory on Linux, else a file of mode 0600."""
    data = (identity.key_pem + identity.certificate_pem).encode("ascii")
    if hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir():
        with open(os.memfd_create("identity"), "wb", buffering=0) as memory:  # noqa: PTH123 - a descriptor
            memory.write(data)
            yield f"/proc/self/fd/{memory.fileno()}"
        return
    descriptor, path = tempfile.mkstemp(prefix="llm-router-", suffix=".pem")
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
            file.write(data)
        yield path
    finally:
        Path(path).unlink()
