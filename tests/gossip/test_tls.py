"""TLS between peers over real sockets: who gets in, who is refused, and that a change of the roster counts at once."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime

import pytest
from aiohttp import ClientConnectionError, ClientSession, TCPConnector, web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from gossip.errors import UnknownPeer
from gossip.identity import Identity, base32
from gossip.roster import Roster
from gossip.tls import Tls, certificate_of, member_of, peer_id_of_ssl, stranger_context

DEADLINE_S = 10
WHO = web.RequestKey("who", object)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Peer:
    """One that listens on loopback and says who it takes the other side for."""

    def __init__(self, identity: Identity, roster: Roster) -> None:
        self.identity, self.roster, self.tls = identity, roster, Tls(identity)
        self.tls.update(roster)
        self.port = 0

    def change(self, roster: Roster) -> None:
        self.roster = roster
        self.tls.update(roster)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Peer]:
        app = web.Application(middlewares=[self._border])
        app.router.add_route("*", "/join/{what}", self._who)
        app.router.add_route("*", "/mesh/{what}", self._who)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self.tls.server_context)
        await site.start()
        self.port = runner.addresses[0][1]
        try:
            yield self
        finally:
            await runner.cleanup()

    @web.middleware
    async def _border(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """As the peer port does: strangers reach /join/ only, and members are looked up at each request."""
        assert request.transport is not None
        peer = member_of(request.transport.get_extra_info("ssl_object"), self.roster)
        if peer is None and not request.path.startswith("/join/"):
            raise web.HTTPForbidden
        request[WHO] = peer
        return await handler(request)

    async def _who(self, request: web.Request) -> web.Response:
        return web.json_response(request[WHO])


async def ask(port: int, context: ssl.SSLContext, path: str = "/mesh/who") -> str | None:
    """Whom the server took us for, on a new connection. Raises ClientConnectionError or PermissionError."""
    async with (
        asyncio.timeout(DEADLINE_S),
        ClientSession(connector=TCPConnector(force_close=True)) as session,
        session.get(f"https://127.0.0.1:{port}{path}", ssl=context) as answer,
    ):
        if answer.status == 403:
            raise PermissionError
        assert answer.status == 200
        found: str | None = await answer.json()
        return found


def mesh(*names: str) -> tuple[Roster, list[Identity]]:
    """A mesh of these, the first its founder."""
    identities = [Identity.generate() for _ in names]
    roster = Roster.found(identities[0], names[0], 0)
    for identity, name in zip(identities[1:], names[1:], strict=True):
        roster = roster.admit(identities[0], identity.certificate_der, name, "ask", "active", 0)
    return roster, identities


async def test_members_know_each_other_guests_too() -> None:
    roster, (a, b) = mesh("a", "b")
    guest = Identity.generate()
    roster = roster.admit(a, guest.certificate_der, "guest", "door", "guest", 0)
    async with Peer(a, roster).serving() as server:
        for identity in (b, guest):
            client = Peer(identity, roster)
            assert await ask(server.port, client.tls.client_context(a.peer_id)) == identity.peer_id
            assert await ask(server.port, client.tls.client_context(None)) == identity.peer_id


async def test_a_stranger_without_a_certificate_reaches_only_join() -> None:
    roster, (a,) = mesh("a")
    async with Peer(a, roster).serving() as server:
        assert await ask(server.port, stranger_context(), "/join/hello") is None
        with pytest.raises(PermissionError):
            await ask(server.port, stranger_context())


async def test_an_unknown_certificate_fails_the_handshake_even_for_join() -> None:
    roster, (a,) = mesh("a")
    theirs, (stranger,) = mesh("stranger")
    trusting = theirs.admit(stranger, a.certificate_der, "a", "ask", "active", 0)
    client = Peer(stranger, trusting)
    async with Peer(a, roster).serving() as server:
        for path in ("/mesh/who", "/join/hello"):
            with pytest.raises(ClientConnectionError):
                await ask(server.port, client.tls.client_context(a.peer_id), path)


async def test_a_client_refuses_a_server_that_is_another_member() -> None:
    roster, (a, b, c) = mesh("a", "b", "c")
    client = Peer(c, roster)
    async with Peer(b, roster).serving() as server:
        assert await ask(server.port, client.tls.client_context(b.peer_id)) == c.peer_id
        with pytest.raises(ClientConnectionError):
            await ask(server.port, client.tls.client_context(a.peer_id))


async def test_a_client_refuses_a_server_that_is_no_member() -> None:
    roster, (a, _) = mesh("a", "b")
    theirs, (stranger,) = mesh("stranger")
    theirs = theirs.admit(stranger, a.certificate_der, "a", "ask", "active", 0)
    async with Peer(stranger, theirs).serving() as server:
        with pytest.raises(ClientConnectionError):
            await ask(server.port, Peer(a, roster).tls.client_context(None))


async def test_a_certificate_that_a_member_signed_with_its_key_is_no_member() -> None:
    """A member is no authority: what it signs for others fails the handshake, whatever name it bears."""
    key = Ed25519PrivateKey.generate()
    founder, member = Identity.generate(), Identity.of(key)
    roster = Roster.found(founder, "a", 0).admit(founder, member.certificate_der, "b", "ask", "active", 0)
    child_key = Ed25519PrivateKey.generate()
    issuer = x509.load_der_x509_certificate(member.certificate_der).subject
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "child")]))
        .issuer_name(issuer)
        .public_key(child_key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2120, 1, 1, tzinfo=UTC))
        .sign(key, None)
    )
    child = Identity(peer_id="child", certificate_der=certificate.public_bytes(Encoding.DER), _key=child_key)
    client = Tls(child)
    client.update(roster)
    async with Peer(founder, roster).serving() as server:
        with pytest.raises(ClientConnectionError):
            await ask(server.port, client.client_context(founder.peer_id))


async def test_contexts_follow_the_roster_while_the_server_listens() -> None:
    roster, (a,) = mesh("a")
    late = Identity.generate()
    grown = roster.admit(a, late.certificate_der, "late", "ask", "active", 0)
    client = Peer(late, grown)
    context = client.tls.client_context(a.peer_id)
    async with Peer(a, roster).serving() as server:
        with pytest.raises(ClientConnectionError):
            await ask(server.port, context)
        server.change(grown)
        assert await ask(server.port, context) == late.peer_id
        server.change(grown.revoke(a, late.peer_id, 1))
        with pytest.raises(ClientConnectionError):
            await ask(server.port, context)


async def test_a_live_connection_of_a_revoked_peer_is_a_strangers_at_its_next_request() -> None:
    roster, (a, b) = mesh("a", "b")
    async with (
        asyncio.timeout(DEADLINE_S),
        Peer(a, roster).serving() as server,
        ClientSession(connector=TCPConnector(limit=1)) as session,
    ):
        context = Peer(b, roster).tls.client_context(a.peer_id)
        url = f"https://127.0.0.1:{server.port}/mesh/who"
        async with session.get(url, ssl=context) as answer:
            assert await answer.json() == b.peer_id
        server.change(roster.revoke(a, b.peer_id, 1))
        async with session.get(url, ssl=context) as answer:
            assert answer.status == 403


def connected(port: int, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
    """A TLS connection over which one request was answered, by blocking calls: `ssl` tells of tickets only then."""
    raw = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
    connection = context.wrap_socket(raw, session=session)
    try:
        connection.sendall(b"GET /mesh/who HTTP/1.1\r\nHost: peer\r\n\r\n")
        if b" 200 " not in connection.recv(4096):
            raise ConnectionError("not answered")
    except BaseException:
        connection.close()
        raise
    return connection


async def test_a_revoked_peer_cannot_come_back_with_a_session_from_before() -> None:
    roster, (a, b) = mesh("a", "b")
    context = Peer(b, roster).tls.client_context(a.peer_id)
    async with Peer(a, roster).serving() as server:
        first = await asyncio.to_thread(connected, server.port, context)
        session = first.session
        assert session is not None and not session.has_ticket
        second = await asyncio.to_thread(connected, server.port, context, session)
        assert not second.session_reused
        server.change(roster.revoke(a, b.peer_id, 1))
        with pytest.raises((ssl.SSLError, ConnectionError)):
            (await asyncio.to_thread(connected, server.port, context, session)).close()
        first.close()
        second.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2])
async def test_older_versions_of_tls_are_refused(version: ssl.TLSVersion) -> None:
    roster, (a,) = mesh("a")
    context = stranger_context()
    context.minimum_version = context.maximum_version = version
    async with Peer(a, roster).serving() as server:
        with pytest.raises(ClientConnectionError):
            await ask(server.port, context, "/join/hello")


async def test_a_clock_that_is_wrong_by_decades_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossip.identity._NOT_AFTER", datetime(2021, 1, 1, tzinfo=UTC))  # as seen from such a clock
    roster, (a, b) = mesh("a", "b")
    async with Peer(a, roster).serving() as server:
        assert await ask(server.port, Peer(b, roster).tls.client_context(a.peer_id)) == b.peer_id


async def test_the_server_does_not_tell_strangers_who_its_members_are() -> None:
    """A request for a certificate may list authorities: ours names nobody."""
    roster, identities = mesh("a", "b", "c")
    async with Peer(identities[0], roster).serving() as server:
        seen = await asyncio.to_thread(_handshake_bytes, server.port)
    assert identities[0].peer_id.encode() in seen  # its own certificate, or nothing was seen at all
    assert identities[1].peer_id.encode() not in seen
    assert identities[2].peer_id.encode() not in seen


def _handshake_bytes(port: int) -> bytes:
    """All handshake messages that came from the server, deciphered."""
    seen = bytearray()
    context = stranger_context()
    context._msg_callback = lambda *parts: seen.extend(parts[-1])  # type: ignore[attr-defined]
    raw = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
    with context.wrap_socket(raw):
        return bytes(seen)


async def test_no_certificate_and_no_tls_are_nobody() -> None:
    roster, (a,) = mesh("a")
    assert member_of(None, roster) is None
    assert certificate_of(None) is None
    assert peer_id_of_ssl(None) is None
    tls = Tls(a)
    with pytest.raises(UnknownPeer):
        tls.client_context(a.peer_id)
    tls.update(roster)
    with pytest.raises(UnknownPeer):
        tls.client_context(base32(bytes(32)))


async def test_contexts_are_made_once_for_the_same_members() -> None:
    roster, (a, b) = mesh("a", "b")
    tls = Tls(a)
    tls.update(roster)
    pinned, everyone, server = tls.client_context(b.peer_id), tls.client_context(None), tls.server_context
    tls.update(roster.rename(a, b.peer_id, "another name", 1))
    assert tls.client_context(b.peer_id) is pinned
    assert tls.client_context(None) is everyone
    tls.update(roster.revoke(a, b.peer_id, 1))
    assert tls.client_context(None) is not everyone
    assert tls.server_context is server
    with pytest.raises(UnknownPeer):
        tls.client_context(b.peer_id)
