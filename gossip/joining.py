"""How a mesh lets machines in: the five paths that a stranger may call on a member, and what people say to requests.

    POST /join/hello    Hello   -> Welcome                 who is here, and how one gets in
    POST /join/token    Proof   -> the roster              for who knows a token
    POST /join/ask      Ask     -> Begun                   first step (gossip.admission)
    POST /join/reveal   Reveal  -> the roster, or Pending  second step
    POST /join/poll     Poll    -> the roster, or Pending

Bodies are msgpack as gossip.codec packs it, at most 16 KiB, in at most 10 s. A roster is status 200 and an array of
statements; Pending is 202; what is refused has the status of its error and a Refusal. A closed mesh answers 404.

Not here: the rules and limits (gossip.admission), the machine that calls (gossip.joiner), the server these handlers are
mounted on (gossip.transport).
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

import msgpack
from aiohttp import web

from gossip.admission import (
    BEGUN_S,
    NONCE_BYTES,
    Admission,
    Asked,
    MeshSummary,
    Mode,
    Plan,
    Token,
    begun_bytes,
    plan,
    revealed_bytes,
)
from gossip.codec import CodecError, pack, unpack
from gossip.errors import (
    BadCertificate,
    BadStatement,
    GossipError,
    JoinBusy,
    JoinClosed,
    JoinDenied,
    JoinError,
    NotThatMesh,
    TokenRefused,
)
from gossip.identity import Identity, PeerId, peer_id_of, short, verify
from gossip.interfaces import is_loopback, is_private_or_local, joined
from gossip.roster import Roster
from gossip.statements import State, Via, clean_name
from gossip.storage import StoredToken

log = logging.getLogger(__name__)

BODY_BYTES_MAX = 16 * 1024
BODY_S = 10.0
AT_ONCE_MAX = 5
"""Requests of strangers that are being read: one that sends slowly holds one for ten seconds."""
AT_ONCE_FROM_ONE_MAX = 2

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """`is_wanted`: a person asked for this, so the rule of who joins whom by itself does not apply.

    `port` is the caller's own peer port, 0 if it tells none: it may be for the other side to join this one, and a seed
    leads one way only. Its address is the one that it calls from, so nobody can be sent elsewhere.
    """

    summary: MeshSummary
    is_wanted: bool = False
    port: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """`mode` is what to ask for, or none. `name` is the mesh's, and so is the `word` about its door (gossip.home)."""

    summary: MeshSummary
    name: str
    mode: Plan
    word: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """See gossip.admission.proof_of."""

    proof: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    mode: Mode
    summary: MeshSummary
    name: str
    certificate: bytes
    commitment: bytes
    is_wanted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    id: str
    nonce: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reveal:
    """`secret` is the token's, or that of the peer's private file; empty else."""

    id: str
    nonce: bytes
    signature: bytes
    secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Poll:
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    digits: str
    seconds_left: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    code: str
    message: str


# -- the member's side


class JoinServer:
    """The handlers of one peer. Everything about the mesh is asked anew at each request.

    `admitted` is called with each roster that has one more member, before the joiner hears of it; `tokens` with what
    must be on disk by then; `changed` whenever who waits did; `met` with where a stranger called from, and its mesh.
    `door_state` is what the door makes of machines now: guests, once the mesh is claimed. `is_closed` answers everybody
    with 404. `word` is what is known of the door (gossip.home), for who comes in. `now` is monotonic, `now_s` unix
    seconds.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        roster: Callable[[], Roster],
        summary: Callable[[], MeshSummary],
        mesh_name: Callable[[], str],
        admission: Admission,
        admitted: Callable[[Roster, PeerId], None],
        tokens: Callable[[tuple[StoredToken, ...]], None],
        now: Callable[[], float],
        now_s: Callable[[], float],
        local_secret: str = "",
        door_state: Callable[[], State] = lambda: "active",
        is_closed: Callable[[], bool] = lambda: False,
        changed: Callable[[], None] = lambda: None,
        word: Callable[[], bytes] = lambda: b"",
        met: Callable[[str, MeshSummary], None] = lambda address, summary: None,
    ) -> None:
        self._identity = identity
        self._roster = roster
        self._summary = summary
        self._mesh_name = mesh_name
        self._admission = admission
        self._admitted = admitted
        self._tokens = tokens
        self._now = now
        self._now_s = now_s
        self._local_secret = local_secret
        self._door_state = door_state
        self._is_closed = is_closed
        self._changed = changed
        self._met = met
        self._word = word
        self._reading: list[str] = []

    def routes(self) -> list[tuple[str, str, Handler]]:
        """Method, path and handler of each, for the peer port. They are open to strangers."""
        handlers = {
            "hello": self._hello,
            "token": self._token,
            "ask": self._ask,
            "reveal": self._reveal,
            "poll": self._poll,
        }
        return [("POST", f"/join/{name}", self._guarded(handler)) for name, handler in handlers.items()]

    # -- what people do

    def waiting(self) -> tuple[Asked, ...]:
        """Who asks to join and was not answered yet."""
        return self._admission.waiting(self._now())

    def approve(self, who: str) -> Asked:
        """Lets in whoever shows these digits, or has this request id. Raises UnknownPeer, NotAllowed."""
        asked = self._admission.found(who, self._now())
        self._admit(asked, "ask", "active")
        self._admission.answer(asked, True, self._now())
        self._changed()
        return asked

    def deny(self, who: str) -> Asked:
        """Refuses it, and its key for an hour. Raises UnknownPeer."""
        asked = self._admission.found(who, self._now())
        self._admission.answer(asked, False, self._now())
        self._changed()
        return asked

    def invite(self, *, uses: int, seconds: float, addresses: tuple[str, ...]) -> Token:
        """A token for so many machines and so long, to be redeemed here, at these addresses."""
        token = Token(mesh_id=self._roster().mesh_id, secret=secrets.token_urlsafe(32), addresses=addresses)
        self._admission.invite(token.secret, uses=uses, seconds=seconds, now_s=self._now_s())
        self._tokens(self._admission.tokens)
        return token

    def moved(self) -> None:
        """This peer is in another mesh: what was asked and invited of the old one is void."""
        self._admission.moved()
        self._changed()

    # -- what strangers do

    async def _hello(self, request: web.Request, body: bytes) -> web.Response:
        hello = unpack(Hello, body)
        self._require_near(request)
        mine = self._summary()
        mode = plan(hello.summary, mine)
        if 0 < hello.port < 65_536:
            self._met(joined(_addresses(request)[0], hello.port), hello.summary)
        if hello.is_wanted and hello.summary.mesh_id != mine.mesh_id:
            mode = "door" if mine.door_open else "ask"
        return _answer(Welcome(summary=mine, name=self._mesh_name(), mode=mode, word=self._word()))

    async def _token(self, request: web.Request, body: bytes) -> web.Response:
        proof = unpack(Proof, body)
        self._admission.check_proof(proof.proof, self._identity.certificate_der, self._now_s())
        return self._roster_answer()

    async def _ask(self, request: web.Request, body: bytes) -> web.Response:
        ask, now = unpack(Ask, body), self._now()
        self._require_mode(request, ask)
        peer_id = peer_id_of(ask.certificate)
        if peer_id in self._roster().revoked:
            raise JoinDenied("this machine was revoked there; as a new one it may ask: llm-router identity reset")
        remote = _addresses(request)[0]
        asked = Asked(
            id=secrets.token_hex(16),
            mode=ask.mode,
            peer_id=peer_id,
            certificate=ask.certificate,
            name=clean_name(ask.name) or short(peer_id),
            # Many may start at once on this machine; elsewhere an address is one machine.
            source=f"{remote} {peer_id}" if is_loopback(remote) else remote,
            commitment=ask.commitment,
            nonce=secrets.token_bytes(NONCE_BYTES),
            expires_at=now + BEGUN_S,
        )
        self._admission.begin(asked, now)
        signature = self._identity.sign(begun_bytes(self._identity.certificate_der, asked.nonce, asked.commitment))
        return _answer(Begun(id=asked.id, nonce=asked.nonce, signature=signature))

    async def _reveal(self, request: web.Request, body: bytes) -> web.Response:
        reveal, mine = unpack(Reveal, body), self._identity.certificate_der
        asked = self._admission.reveal(reveal.id, reveal.nonce, mine, self._now())
        signed = revealed_bytes(mine, asked.nonce, reveal.nonce, asked.certificate)
        if not verify(asked.certificate, signed, reveal.signature):
            raise NotThatMesh("the joiner's signature does not fit this connection: somebody may stand in between")
        match asked.mode:
            case "ask" if asked.peer_id in self._roster().members:
                log.info("A member that had left is back", extra={"machine": asked.name, "peer": short(asked.peer_id)})
            case "ask":
                waiting = self._admission.wait(asked, self._now())
                log.info(
                    "A machine asks to join",
                    extra={"machine": asked.name, "peer": short(asked.peer_id), "digits": asked.digits},
                )
                self._changed()
                return self._pending(waiting)
            case "door":
                if not self._summary().door_open:
                    raise JoinClosed("the door of this mesh was shut")
                self._admit(asked, "door", self._door_state())
            case "token":
                self._admission.redeem(reveal.secret, self._now_s())
                self._tokens(self._admission.tokens)
                self._admit(asked, "token", "active")
            case "local":
                if not self._local_secret or not hmac.compare_digest(
                    reveal.secret.encode(), self._local_secret.encode()
                ):
                    raise TokenRefused("this is not the secret of this machine's user")
                self._admit(asked, "local", "active")
        return self._roster_answer()

    async def _poll(self, request: web.Request, body: bytes) -> web.Response:
        asked = self._admission.polled(unpack(Poll, body).id, self._now())
        return self._roster_answer() if asked.answer else self._pending(asked)

    # -- how

    def _require_mode(self, request: web.Request, ask: Ask) -> None:
        """Raises JoinClosed unless this peer lets in this machine in this way now."""
        mine = self._summary()
        if ask.mode in ("door", "ask"):
            self._require_near(request)
            wanted = ("door" if mine.door_open else "ask") if ask.is_wanted else plan(ask.summary, mine)
            if wanted != ask.mode:
                raise JoinClosed(f"this mesh takes no machine in by {ask.mode} now")
        if ask.mode == "local" and not all(is_loopback(address) for address in _addresses(request)):
            raise JoinClosed("that way in is for this machine only")

    def _require_near(self, request: web.Request) -> None:
        """Door and question are for the LAN: raises JoinClosed when either end has a public address."""
        if not all(is_private_or_local(address) for address in _addresses(request)):
            raise JoinClosed("this mesh takes machines in from its own network only, or by a token")

    def _admit(self, asked: Asked, via: Via, state: State) -> None:
        roster = self._roster()
        grown = roster.admit(self._identity, asked.certificate, asked.name, via, state, self._now_s())
        if grown is not roster:
            self._admitted(grown, asked.peer_id)
        log.info(
            "A machine joined the mesh",
            extra={"machine": asked.name, "peer": short(asked.peer_id), "way": via, "state": state},
        )

    def _pending(self, asked: Asked) -> web.Response:
        left = max(0.0, asked.expires_at - self._now())
        return _answer(Pending(digits=asked.digits, seconds_left=left), status=202)

    def _roster_answer(self) -> web.Response:
        return _bytes_answer(cast(bytes, msgpack.packb(self._roster().to_wire())), 200)

    def _guarded(self, handler: Callable[[web.Request, bytes], Awaitable[web.Response]]) -> Handler:
        """Reads the body under its limits, and turns our errors into answers."""

        async def guarded(request: web.Request) -> web.Response:
            try:
                if self._is_closed() or not self._roster().is_signer(self._identity.peer_id):
                    raise JoinClosed("this mesh takes nobody in")
                with self._one_of_few(request):
                    body = await _body(request)
                return await handler(request, body)
            except JoinError as error:
                return _answer(Refusal(code=error.code, message=str(error)), status=error.status)
            except (CodecError, BadCertificate, BadStatement) as error:
                return _answer(Refusal(code=JoinError.code, message=str(error)), status=400)
            except GossipError as error:
                return _answer(Refusal(code=JoinDenied.code, message=str(error)), status=403)

        return guarded

    @contextlib.contextmanager
    def _one_of_few(self, request: web.Request) -> Iterator[None]:
        source = _addresses(request)[0]
        from_one = AT_ONCE_MAX if is_loopback(source) else AT_ONCE_FROM_ONE_MAX
        if len(self._reading) >= AT_ONCE_MAX or self._reading.count(source) >= from_one:
            raise JoinBusy("too many machines join at this moment: try again")
        self._reading.append(source)
        try:
            yield
        finally:
            self._reading.remove(source)


async def _body(request: web.Request) -> bytes:
    if (request.content_length or 0) > BODY_BYTES_MAX:
        raise web.HTTPRequestEntityTooLarge(max_size=BODY_BYTES_MAX, actual_size=request.content_length or 0)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for piece in request.content.iter_any():
                body += piece
                if len(body) > BODY_BYTES_MAX:
                    raise web.HTTPRequestEntityTooLarge(max_size=BODY_BYTES_MAX, actual_size=len(body))
    except TimeoutError:
        raise web.HTTPRequestTimeout from None
    return bytes(body)


def _addresses(request: web.Request) -> tuple[str, str]:
    """Whence and whither the connection goes: the other side's address, and ours that it reached."""
    if request.transport is None:
        raise JoinClosed("the connection is gone")
    ends = (request.transport.get_extra_info(name) for name in ("peername", "sockname"))
    remote, own = (str(end[0]) if isinstance(end, tuple) else "" for end in ends)
    return remote, own


def _answer(message: object, status: int = 200) -> web.Response:
    return _bytes_answer(pack(message), status)


def _bytes_answer(data: bytes, status: int) -> web.Response:
    return web.Response(body=data, status=status, content_type="application/msgpack")
