"""The machine that asks to be let into a mesh: the other side of gossip.joining.

It takes one certificate from its first handshake and no other after it. It sends a secret only to a member of the mesh
that the token names (or, on its own machine, to the peer whose private file named it), and believes no roster that does
not have that certificate's owner among its active members.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import msgpack
from aiohttp import (
    ClientConnectorCertificateError,
    ClientConnectorError,
    ClientError,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    TCPConnector,
)

from gossip.admission import (
    NONCE_BYTES,
    MeshSummary,
    Mode,
    Token,
    begun_bytes,
    commitment,
    digits_of,
    proof_of,
    revealed_bytes,
)
from gossip.codec import CodecError, pack, unpack
from gossip.errors import (
    BadCertificate,
    BadStatement,
    JoinBusy,
    JoinClosed,
    JoinDenied,
    JoinError,
    JoinExpired,
    JoinUnreachable,
    NotThatMesh,
    TokenRefused,
)
from gossip.identity import Identity, PeerId, peer_id_of, short, verify
from gossip.interfaces import is_loopback, split
from gossip.joining import Ask, Begun, Hello, Pending, Poll, Proof, Refusal, Reveal, Welcome
from gossip.roster import Roster
from gossip.statements import clean_name, printable
from gossip.tls import certificate_of, stranger_context

ROSTER_BYTES_MAX = 8 * 2**20
REQUEST_S = 10.0
POLL_S = 1.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """The mesh this peer is now in, and who let it in. `mode` is how; `word` is about its door (gossip.home)."""

    roster: Roster
    member: PeerId
    address: str
    mode: Mode
    word: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joiner:
    """What a machine says of itself when it asks to be let in."""

    identity: Identity
    name: str
    summary: MeshSummary
    port: int = 0

    def hello(self, *, is_wanted: bool) -> Hello:
        """The first thing it says. `port`: its own peer port, where the other side may call back."""
        return Hello(summary=self.summary, is_wanted=is_wanted, port=self.port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A request that people of the other mesh must answer: they are shown the same digits."""

    mesh_name: str
    members: int
    digits: str
    seconds_left: float


async def hello(address: str, joiner: Joiner, *, is_wanted: bool = False) -> Welcome:
    """What the mesh at this address says of itself, and how this machine would get in. Raises JoinError."""
    async with _talk(address) as talk:
        return await talk.ask("hello", joiner.hello(is_wanted=is_wanted), Welcome)


async def join(
    address: str,
    joiner: Joiner,
    *,
    is_wanted: bool = False,
    waiting: Callable[[Waiting], None] = lambda waiting: None,
) -> Joined:
    """Into the mesh at this address, by door or by asking, as it says. Takes as long as a person does, ten minutes.

    `waiting` hears the digits, and again what time is left. Raises JoinError: JoinClosed also when neither is to join
    the other (with `is_wanted`, because a person said so, they are).
    """
    async with _talk(address) as talk:
        welcome = await talk.ask("hello", joiner.hello(is_wanted=is_wanted), Welcome)
        if welcome.mode == "none":
            raise JoinClosed("by itself this machine does not join that mesh")
        told = dataclasses.replace(talk, mesh_id=welcome.summary.mesh_id)
        roster = await _enter(told, joiner, welcome.mode, welcome=welcome, is_wanted=is_wanted, waiting=waiting)
        return Joined(roster=roster, member=talk.member, address=address, mode=welcome.mode, word=welcome.word)


async def join_by_token(token: Token, joiner: Joiner) -> Joined:
    """Into the mesh that the token names, at the first of its addresses where that works. Raises JoinError.

    The token goes only to an active member of that very mesh.
    """
    trouble: JoinError = JoinUnreachable("the token names no address")
    for address in token.addresses:
        try:
            async with _talk(address) as talk:
                talk = dataclasses.replace(talk, mesh_id=token.mesh_id)
                proof = Proof(proof=proof_of(token.secret, talk.certificate))
                talk.checked(await talk.roster("token", proof))
                roster = await _enter(talk, joiner, "token", secret=token.secret)
                word = await talk.word(joiner)
                return Joined(roster=roster, member=talk.member, address=address, mode="token", word=word)
        except (JoinUnreachable, NotThatMesh) as error:
            trouble = error
    raise trouble


async def join_on_this_machine(address: str, member: PeerId, secret: str, joiner: Joiner) -> Joined:
    """Into the mesh of another peer of this user. Raises JoinError: NotThatMesh when `member` does not listen there."""
    if not is_loopback(_split(address)[0]):
        raise NotThatMesh(f"{address} is not on this machine")
    async with _talk(address) as talk:
        if talk.member != member:
            raise NotThatMesh(f"another peer than {short(member)} listens at {address}")
        roster = await _enter(talk, joiner, "local", secret=secret)
        return Joined(roster=roster, member=member, address=address, mode="local", word=await talk.word(joiner))


async def _enter(
    talk: _Talk,
    joiner: Joiner,
    mode: Mode,
    *,
    secret: str = "",
    welcome: Welcome | None = None,
    is_wanted: bool = False,
    waiting: Callable[[Waiting], None] = lambda waiting: None,
) -> Roster:
    """Both steps, and the wait for people if there is one. The roster has this peer in it."""
    mine, nonce = joiner.identity.certificate_der, secrets.token_bytes(NONCE_BYTES)
    committed = commitment(nonce, mine)
    ask = Ask(
        mode=mode,
        summary=joiner.summary,
        name=joiner.name,
        certificate=mine,
        commitment=committed,
        is_wanted=is_wanted,
    )
    begun = await talk.ask("ask", ask, Begun)
    if not verify(talk.certificate, begun_bytes(talk.certificate, begun.nonce, committed), begun.signature):
        raise NotThatMesh("the answer is signed by another peer than the one that listens: somebody stands in between")
    signed = revealed_bytes(talk.certificate, begun.nonce, nonce, mine)
    reveal = Reveal(id=begun.id, nonce=nonce, signature=joiner.identity.sign(signed), secret=secret)
    digits = digits_of(talk.certificate, begun.nonce, nonce, mine)
    answer = await talk.roster_or_pending("reveal", reveal)
    while isinstance(answer, Pending):
        if mode != "ask" or welcome is None or answer.digits != digits:
            raise NotThatMesh("the other side shows other digits: somebody stands in between")
        waiting(
            Waiting(
                mesh_name=clean_name(welcome.name),
                members=welcome.summary.members,
                digits=digits,
                seconds_left=answer.seconds_left,
            )
        )
        await asyncio.sleep(POLL_S)
        answer = await talk.roster_or_pending("poll", Poll(id=begun.id))
    roster = talk.checked(answer)
    member = roster.members.get(joiner.identity.peer_id)
    if member is None or member.certificate != mine:
        raise NotThatMesh("the mesh said yes, but this machine is not in its roster")
    return roster


@dataclass(frozen=True, slots=True, kw_only=True)
class _Talk:
    """A conversation with one member, known by the certificate of its first handshake."""

    session: ClientSession
    address: str
    certificate: bytes
    member: PeerId
    mesh_id: str | None = None

    async def ask(self, path: str, message: object, kind: type[T]) -> T:
        """The answer to a question that has one kind of answer."""
        status, body = await self._post(path, message)
        return _understood(kind, body) if status == 200 else _refused(status, body)

    async def word(self, joiner: Joiner) -> bytes:
        """About the mesh's door, for who came in another way; empty when it is not told."""
        try:
            return (await self.ask("hello", Hello(summary=joiner.summary), Welcome)).word
        except JoinError:
            return b""

    async def roster(self, path: str, message: object) -> tuple[bytes, ...]:
        status, body = await self._post(path, message)
        return _statements(body) if status == 200 else _refused(status, body)

    async def roster_or_pending(self, path: str, message: object) -> tuple[bytes, ...] | Pending:
        status, body = await self._post(path, message)
        if status == 202:
            return _understood(Pending, body)
        return _statements(body) if status == 200 else _refused(status, body)

    def checked(self, statements: tuple[bytes, ...]) -> Roster:
        """The roster in them. Raises NotThatMesh unless it is of the mesh spoken of, with this member active in it."""
        try:
            roster = Roster.from_wire(statements, self.mesh_id)
        except BadStatement as error:
            raise NotThatMesh(f"what was sent is not the roster of that mesh: {error}") from None
        if not roster.is_signer(self.member) or roster.members[self.member].certificate != self.certificate:
            raise NotThatMesh("who listens there is no member of that mesh: somebody may stand in between")
        return roster

    async def _post(self, path: str, message: object) -> tuple[int, bytes]:
        try:
            async with self.session.post(
                f"https://{self.address}/join/{path}", data=pack(message), allow_redirects=False
            ) as answer:
                body = bytearray()
                async for piece in answer.content.iter_any():
                    body += piece
                    if len(body) > ROSTER_BYTES_MAX:
                        raise JoinUnreachable(f"{self.address} answers with more than {ROSTER_BYTES_MAX} bytes")
                return answer.status, bytes(body)
        except (ClientError, OSError, TimeoutError) as error:
            raise JoinUnreachable(f"{self.address} does not answer: {_words(error)}") from None


@contextlib.asynccontextmanager
async def _talk(address: str) -> AsyncIterator[_Talk]:
    """Raises JoinUnreachable when nobody listens there, or somebody who is no peer."""
    certificate = await _certificate_at(address)
    try:
        member = peer_id_of(certificate)
    except BadCertificate as error:
        raise JoinUnreachable(f"who listens at {address} is no peer: {error}") from None
    async with ClientSession(
        connector=TCPConnector(ssl=stranger_context(certificate), limit=1),
        cookie_jar=DummyCookieJar(),
        timeout=ClientTimeout(total=REQUEST_S),
        trust_env=False,
    ) as session:
        yield _Talk(session=session, address=address, certificate=certificate, member=member)


async def _certificate_at(address: str) -> bytes:
    host, port = _split(address)
    try:
        async with asyncio.timeout(REQUEST_S):
            _, writer = await asyncio.open_connection(host, port, ssl=stranger_context())
    except (OSError, ssl.SSLError, TimeoutError) as error:
        raise JoinUnreachable(f"{address} does not answer: {_words(error)}") from None
    try:
        return certificate_of(writer.get_extra_info("ssl_object")) or b""
    finally:
        writer.transport.abort()


def _split(address: str) -> tuple[str, int]:
    try:
        return split(address)
    except ValueError as error:
        raise JoinUnreachable(str(error)) from None


def _words(error: Exception) -> str:
    """The operating system's reasons as a person says them."""
    cause: Exception = error
    if isinstance(error, ClientConnectorCertificateError):
        cause = error.certificate_error
    elif isinstance(error, ClientConnectorError):
        cause = error.os_error
    if isinstance(cause, TimeoutError):
        return "it is silent; is it on, and does its firewall let TCP in at that port?"
    if isinstance(cause, ConnectionRefusedError):
        return "nothing listens there"
    if isinstance(cause, socket.gaierror):
        return "there is no machine of that name"
    if isinstance(cause, ssl.SSLCertVerificationError):
        return "its certificate is another than a moment ago"
    if isinstance(cause, ssl.SSLError):
        return "what listens there is no peer port"
    if isinstance(cause, OSError) and cause.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return "there is no way to it; is it on, and on this network?"
    return str(error) or type(error).__name__


def _understood(kind: type[T], body: bytes) -> T:
    try:
        return unpack(kind, body)
    except CodecError as error:
        raise JoinUnreachable(f"the answer cannot be read: {error}") from None


def _statements(body: bytes) -> tuple[bytes, ...]:
    try:
        found: Any = msgpack.unpackb(body)
    except (ValueError, msgpack.exceptions.UnpackException):
        found = None
    if not isinstance(found, list) or not all(isinstance(statement, bytes) for statement in found):
        raise JoinUnreachable("the answer is no roster")
    return tuple(found)


def _refused(status: int, body: bytes) -> NoReturn:
    """Raises the error that the other side names."""
    kinds = (JoinClosed, JoinBusy, JoinDenied, JoinExpired, TokenRefused, NotThatMesh)
    try:
        refusal = unpack(Refusal, body)
    except CodecError:
        raise (JoinClosed if status == 404 else JoinUnreachable)(f"the answer is HTTP status {status}") from None
    kind = {kind.code: kind for kind in kinds}.get(refusal.code, JoinError)
    raise kind(printable(refusal.message[:400]) or refusal.code)
