"""Who is let into a mesh and how: the rules of door, ask and token, and the requests that wait. Pure.

A request goes in two steps, so that nobody can choose what the other side's share is (commit, then reveal):

    joiner: SHA-256(its nonce, its certificate)          begin
    member: its own nonce, signed
    joiner: its nonce, and a signature over the member's certificate as TLS showed it, both nonces, its certificate
                                                          reveal
A man in the middle has another certificate, so neither signature fits on the other side; and who speaks for himself on
both sides would have to meet one of a million digits with a single guess.

`now` is monotonic seconds, `now_s` unix seconds: tokens outlive a restart, requests do not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from gossip.errors import JoinBusy, JoinDenied, JoinExpired, NotThatMesh, TokenRefused, UnknownPeer
from gossip.identity import PeerId
from gossip.storage import StoredToken

Plan = Literal["door", "ask", "none"]
Mode = Literal["door", "ask", "token", "local"]

WAITING_MAX = 5
"""Requests before people at a time. More than a person looks through, and few enough to fill by nobody's night."""
WAITING_S = 600.0
BEGUN_MAX = 32
"""Requests between their two steps, all modes: a mesh of 30 machines that start at once fits."""
BEGUN_FROM_ONE_MAX = 4
BEGUN_S = 10.0
DENIED_S = 3600.0
DENIED_MAX = 1024
TOKENS_MAX = 64
NONCE_BYTES = 32

_TOKEN = re.compile(r"llmr1-([a-z2-7]{52})-([A-Za-z0-9_-]{43})@([^@\s]{1,1000})")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshSummary:
    """What two meshes tell each other before one joins the other."""

    mesh_id: str
    members: int
    is_young: bool
    door_open: bool


def plan(mine: MeshSummary, theirs: MeshSummary) -> Plan:
    """How this mesh is to join theirs by itself, if at all. Both sides ask this of the same numbers.

    Two young meshes merge: fewer members join more, of equals the higher id joins the lower. A young mesh goes through
    an open door. A young peer that is alone asks where the door is shut. Any other two stay two.
    """
    if mine.mesh_id == theirs.mesh_id or not mine.is_young:
        return "none"
    if theirs.is_young:
        mine_goes = (mine.members, theirs.mesh_id) < (theirs.members, mine.mesh_id)
        return "door" if mine_goes else "none"
    if theirs.door_open:
        return "door"
    return "ask" if mine.members == 1 else "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request, from its first step on. `source` is the address it came from, without the port."""

    id: str
    mode: Mode
    peer_id: PeerId
    certificate: bytes = field(repr=False)
    name: str
    source: str
    commitment: bytes = field(repr=False)
    nonce: bytes = field(repr=False)
    expires_at: float
    digits: str = ""
    """`481 920`, the same on both sides. Empty until the joiner revealed."""
    answer: bool | None = None
    """What a person said."""


class Admission:
    """The requests and tokens of one peer. Raises gossip.errors.JoinError of the kind that the joiner is to hear."""

    def __init__(self, tokens: Iterable[StoredToken] = ()) -> None:
        self._begun: dict[str, Asked] = {}
        self._waiting: dict[str, Asked] = {}
        self._denied: dict[PeerId, float] = {}
        self._tokens = tuple(tokens)

    # -- requests

    def begin(self, asked: Asked, now: float) -> None:
        """The first step. Nothing is proved yet, so nothing of anybody else's gives way to it.

        Raises JoinDenied for a key that was denied within the hour (tokens and this machine's own user excepted),
        JoinBusy for a sixth that would wait for a person, a second from one address, or too many at once.
        """
        self._forget(now)
        if asked.mode in ("door", "ask") and asked.peer_id in self._denied:
            minutes = max(1, round((self._denied[asked.peer_id] - now) / 60))
            raise JoinDenied(
                f"this machine was denied there: it may ask again in {minutes} minutes, "
                "or come in by a line of llm-router invite"
            )
        begun = self._begun.values()
        if len(begun) >= BEGUN_MAX or sum(x.source == asked.source for x in begun) >= BEGUN_FROM_ONE_MAX:
            raise JoinBusy("too many machines join at this moment: try again")
        if asked.mode == "ask":
            self._check_room(asked)
        self._begun[asked.id] = asked

    def reveal(self, request_id: str, nonce: bytes, member_certificate: bytes, now: float) -> Asked:
        """The second step, once: the request with its digits. It is not waiting yet.

        Raises JoinExpired when there is none such, NotThatMesh when the nonce is not the one committed to.
        """
        self._forget(now)
        asked = self._begun.pop(request_id, None)
        if asked is None:
            raise JoinExpired("there is no such request: it took too long, or was answered before")
        if not hmac.compare_digest(commitment(nonce, asked.certificate), asked.commitment):
            raise NotThatMesh("the joiner revealed another number than it committed to")
        digits = digits_of(member_certificate, asked.nonce, nonce, asked.certificate)
        return dataclasses.replace(asked, digits=digits)

    def wait(self, asked: Asked, now: float) -> Asked:
        """From now on the request is before people, for ten minutes, in place of an older one of the same key.

        Only for a key that has proved itself. Raises JoinBusy as `begin` does: others may have come meanwhile.
        """
        self._forget(now)
        self._check_room(asked)
        waiting = dataclasses.replace(asked, expires_at=now + WAITING_S)
        self._waiting = {key: x for key, x in self._waiting.items() if x.peer_id != asked.peer_id}
        self._waiting[asked.id] = waiting
        return waiting

    def waiting(self, now: float) -> tuple[Asked, ...]:
        """Those that nobody answered yet, the oldest first."""
        self._forget(now)
        return tuple(x for x in self._waiting.values() if x.answer is None)

    def found(self, who: str, now: float) -> Asked:
        """The waiting request with this id or these digits. Raises UnknownPeer when none has them, or several do."""
        wanted = "".join(who.split())
        found = [x for x in self.waiting(now) if x.id == who or x.digits.replace(" ", "") == wanted]
        if not found:
            raise UnknownPeer("no machine with these digits or this id asks to join")
        if len(found) > 1:
            raise UnknownPeer(f"{len(found)} machines with these digits ask to join: name the request by its id")
        return found[0]

    def answer(self, asked: Asked, is_approved: bool, now: float) -> None:
        """What a person said. A denial blocks the key for an hour."""
        self._waiting[asked.id] = dataclasses.replace(asked, answer=is_approved)
        if not is_approved:
            while len(self._denied) >= DENIED_MAX:
                del self._denied[next(iter(self._denied))]
            self._denied[asked.peer_id] = now + DENIED_S

    def polled(self, request_id: str, now: float) -> Asked:
        """The request as it stands: answered with yes, or not yet. Raises JoinDenied, JoinExpired."""
        self._forget(now)
        asked = self._waiting.get(request_id)
        if asked is None:
            raise JoinExpired("nobody of that mesh answered within ten minutes, or the request is not known")
        if asked.answer is False:
            raise JoinDenied("a member of that mesh denied the request")
        return asked

    def moved(self) -> None:
        """The peer is in another mesh: nobody asked that one, and no token is for it. Who was denied stays so."""
        self._begun, self._waiting, self._tokens = {}, {}, ()

    # -- tokens

    @property
    def tokens(self) -> tuple[StoredToken, ...]:
        """What must be on disk before anybody hears of it."""
        return self._tokens

    def invite(self, secret: str, *, uses: int, seconds: float, now_s: float) -> StoredToken:
        """Takes this secret for so many machines and so long. Of more than 64 tokens the first to expire goes."""
        token = StoredToken(secret_hash=hash_of(secret), uses_left=uses, expires_at=now_s + seconds)
        alive = sorted((x for x in self._tokens if x.expires_at > now_s), key=lambda x: x.expires_at)
        self._tokens = (*alive[-(TOKENS_MAX - 1) :], token)
        return token

    def redeem(self, secret: str, now_s: float) -> None:
        """Takes one use of the token off. Raises TokenRefused, which does not say why."""
        hashed = hash_of(secret)
        token = self._usable(lambda x: hmac.compare_digest(x.secret_hash, hashed), now_s)
        left = dataclasses.replace(token, uses_left=token.uses_left - 1)
        self._tokens = tuple(left if x is token else x for x in self._tokens if x is not token or left.uses_left)

    def check_proof(self, proof: bytes, member_certificate: bytes, now_s: float) -> None:
        """Raises TokenRefused unless `proof` was made with a token that is good now, for this certificate."""
        self._usable(lambda x: hmac.compare_digest(_proof(x.secret_hash, member_certificate), proof), now_s)

    def _usable(self, fits: Callable[[StoredToken], bool], now_s: float) -> StoredToken:
        for token in self._tokens:
            if fits(token) and token.uses_left > 0 and token.expires_at > now_s:
                return token
        raise TokenRefused("the token is wrong, used up or too old: make another with `llm-router invite`")

    def _check_room(self, asked: Asked) -> None:
        others = [x for x in self._waiting.values() if x.answer is None and x.peer_id != asked.peer_id]
        if any(x.source == asked.source for x in others):
            raise JoinBusy("another machine at this address already asks to join")
        if len(others) >= WAITING_MAX:
            raise JoinBusy(f"{WAITING_MAX} machines already ask to join this mesh: try again later")

    def _forget(self, now: float) -> None:
        self._begun = {key: asked for key, asked in self._begun.items() if asked.expires_at > now}
        self._waiting = {key: asked for key, asked in self._waiting.items() if asked.expires_at > now}
        self._denied = {peer: until for peer, until in self._denied.items() if until > now}


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """An invitation as a person pastes it: `llmr1-<mesh id>-<secret>@address,address`."""

    mesh_id: str
    secret: str = field(repr=False)
    addresses: tuple[str, ...]

    @property
    def line(self) -> str:
        return f"llmr1-{self.mesh_id}-{self.secret}@{','.join(self.addresses)}"

    @classmethod
    def parse(cls, line: str) -> Token:
        """Raises TokenRefused when it is none."""
        found = _TOKEN.fullmatch(line.strip())
        if found is None:
            raise TokenRefused("this is no token: it begins with llmr1- and ends with @ and addresses")
        return cls(mesh_id=found[1], secret=found[2], addresses=tuple(x for x in found[3].split(",") if x))


def is_token(text: str) -> bool:
    """True for what is meant as a token, good or not; else it is an address."""
    return text.strip().startswith("llmr1-")


def commitment(nonce: bytes, certificate: bytes) -> bytes:
    """What the joiner sends first."""
    return _hashed(b"llm-router join commitment", nonce, certificate)


def digits_of(member_certificate: bytes, member_nonce: bytes, joiner_nonce: bytes, joiner_certificate: bytes) -> str:
    """Six digits that people compare, `481 920`."""
    parts = (member_certificate, member_nonce, joiner_nonce, joiner_certificate)
    number = int.from_bytes(_hashed(b"llm-router join digits", *parts)) % 1_000_000
    return f"{number // 1000:03} {number % 1000:03}"


def begun_bytes(member_certificate: bytes, member_nonce: bytes, joined_commitment: bytes) -> bytes:
    """What the member signs when a request begins."""
    return _hashed(b"llm-router join begun", member_certificate, member_nonce, joined_commitment)


def revealed_bytes(
    member_certificate: bytes, member_nonce: bytes, joiner_nonce: bytes, joiner_certificate: bytes
) -> bytes:
    """What the joiner signs when it reveals, with the member's certificate as its own TLS connection showed it."""
    parts = (member_certificate, member_nonce, joiner_nonce, joiner_certificate)
    return _hashed(b"llm-router join revealed", *parts)


def hash_of(secret: str) -> bytes:
    """How tokens are kept: 256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).digest()


def proof_of(secret: str, member_certificate: bytes) -> bytes:
    """That one knows a token, told to who has this certificate; useless to anybody else."""
    return _proof(hash_of(secret), member_certificate)


def _proof(secret_hash: bytes, member_certificate: bytes) -> bytes:
    return hmac.digest(secret_hash, b"llm-router join token\0" + member_certificate, "sha256")


def _hashed(purpose: bytes, *parts: bytes) -> bytes:
    """SHA-256 over the hashes of the parts: where one ends and the next begins cannot be moved."""
    hashes = (hashlib.sha256(part).digest() for part in parts)
    return hashlib.sha256(purpose + b"\0" + b"".join(hashes)).digest()
