"""Getting into a mesh over real sockets: by door, by asking, by token, on one machine; and those who try otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import msgpack
import pytest
from aiohttp import ClientSession, TCPConnector, web

from gossip import joiner as joiner_module
from gossip import joining as joining_module
from gossip.admission import (
    NONCE_BYTES,
    WAITING_S,
    Admission,
    MeshSummary,
    Mode,
    Token,
    begun_bytes,
    commitment,
    digits_of,
    proof_of,
    revealed_bytes,
)
from gossip.codec import pack, unpack
from gossip.errors import (
    JoinBusy,
    JoinClosed,
    JoinDenied,
    JoinError,
    JoinExpired,
    JoinUnreachable,
    NotThatMesh,
    TokenRefused,
    UnknownPeer,
)
from gossip.identity import Identity
from gossip.joiner import Joiner, Waiting, hello, join, join_by_token, join_on_this_machine
from gossip.joining import BODY_BYTES_MAX, Ask, Begun, Hello, JoinServer, Pending, Poll, Proof, Refusal, Reveal
from gossip.roster import Roster
from gossip.statements import State
from gossip.storage import StoredToken
from gossip.tls import Tls, stranger_context

DEADLINE_S = 20
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture(autouse=True)
def polls_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joiner_module, "POLL_S", 0.01)


@contextlib.asynccontextmanager
async def listening(app: web.Application, context: ssl.SSLContext) -> AsyncIterator[str]:
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


class Member:
    """The founder of a mesh, with a clock of its own. `news` are the calls in the order in which they came."""

    def __init__(self, *, door: bool = False, young: bool = False, members: int = 3) -> None:
        self.identity = Identity.generate()
        self.roster = Roster.found(self.identity, "attic", 0)
        self.now = 0.0
        self.door, self.young, self.members = door, young, members
        self.door_state: State = "active"
        self.is_closed = False
        self.news: list[str] = []
        self.saved: tuple[StoredToken, ...] = ()
        self.asks = asyncio.Event()
        self.tls = Tls(self.identity)
        self.tls.update(self.roster)
        self.admission = Admission()
        self.server = JoinServer(
            identity=self.identity,
            roster=lambda: self.roster,
            summary=self.summary,
            mesh_name=lambda: "attic",
            admission=self.admission,
            admitted=self._admitted,
            tokens=self._tokens,
            now=lambda: self.now,
            now_s=lambda: 1_000_000 + self.now,
            local_secret="of this user",
            door_state=lambda: self.door_state,
            is_closed=lambda: self.is_closed,
            changed=self._changed,
        )

    def summary(self) -> MeshSummary:
        return MeshSummary(
            mesh_id=self.roster.mesh_id, members=self.members, is_young=self.young, door_open=self.door or self.young
        )

    def _admitted(self, roster: Roster, peer: str) -> None:
        assert peer in roster.members
        self.roster = roster
        self.news.append("admitted")

    def _tokens(self, tokens: tuple[StoredToken, ...]) -> None:
        self.saved = tokens
        self.news.append("tokens")

    def _changed(self) -> None:
        self.news.append("changed")
        self.asks.set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        app = web.Application(client_max_size=0)
        for method, path, handler in self.server.routes():
            app.router.add_route(method, path, handler)
        async with listening(app, self.tls.server_context) as address:
            yield address

    def via(self, joiner: Joiner) -> str:
        return self.roster.members[joiner.identity.peer_id].via


def newcomer(name: str = "cellar", *, young: bool = True, members: int = 1) -> Joiner:
    identity = Identity.generate()
    own = Roster.found(identity, name, 0)
    summary = MeshSummary(mesh_id=own.mesh_id, members=members, is_young=young, door_open=young)
    return Joiner(identity=identity, name=name, summary=summary)


# -- door


async def test_through_an_open_door() -> None:
    member, joiner = Member(door=True), newcomer()
    async with asyncio.timeout(DEADLINE_S), member.serving() as address:
        welcome = await hello(address, joiner)
        assert (welcome.name, welcome.mode, welcome.summary) == ("attic", "door", member.summary())
        joined = await join(address, joiner)
    assert joined.roster == member.roster
    assert (joined.member, joined.mode, member.via(joiner)) == (member.identity.peer_id, "door", "door")
    assert not member.roster.may_revoke(joiner.identity.peer_id)
    assert member.news == ["admitted"]


async def test_once_the_mesh_is_claimed_the_door_admits_guests() -> None:
    member, joiner = Member(door=True), newcomer()
    member.door_state = "guest"
    async with asyncio.timeout(DEADLINE_S), member.serving() as address:
        joined = await join(address, joiner)
    assert joined.roster.members[joiner.identity.peer_id].state == "guest"


async def test_joining_again_after_the_answer_was_lost_gives_the_same_mesh() -> None:
    member, joiner = Member(door=True), newcomer()
    async with asyncio.timeout(DEADLINE_S), member.serving() as address:
        first, again = await join(address, joiner), await join(address, joiner)
    assert first.roster == again.roster
    assert member.news == ["admitted"]


async def test_the_mesh_that_should_come_to_us_is_not_joined() -> None:
    member, joiner = Member(young=True, members=1), newcomer(members=2)
    async with asyncio.timeout(DEADLINE_S), member.serving() as address:
        assert (await hello(address, joiner)).mode == "none"
        with pytest.raises(JoinClosed):
            await join(address, joiner)
        # The member holds to the same rule when a joiner does not.
        with pytest.raises(JoinClosed):
            await begun(address, joiner, "door")
        joined = await join(address, joiner, is_wanted=True)
    assert joined.mode == "door"


async def test_a_door_that_was_shut_between_the_steps_admits_nobody() -> None:
    member, joiner = Member(door=True), newcomer()
    async with asyncio.timeout(DEADLINE_S), member.serving() as address:
        request, nonce = await begun(address, joiner, "door")
        member.door = False
        with pytest.raises(JoinClosed):
            await revealed(address, joiner, member, request, nonce)
    assert member.news == []


async def test_a_revoked_peer_does_not_come_back_through_the_door() -> None:
    member, joiner = Member(door=True), newcomer()
    async with asyncio.timeout(DEADLINE_S), member.serving() as address:
        await join(address, joiner)
        member.roster = member.roster.revoke(member.identity, joiner.identity.peer_id, 1)
        with pytest.raises(JoinDenied, match="revoked"):
            await join(address, joiner)


async def test_a_revoked_peer_is_told_so_and_nobody_is_asked() -> None:
    member, joiner = Member(door=True), newcomer()
    async with asyncio.timeout(DEADLINE_S), member.serving() as address:
        await join(address, joiner)
        member.roster = member.roster.revoke(member.identity, joiner.identity.peer_id, 1)
        member.door = False
        with pytest.raises(JoinDenied, match="identity reset"):
            await join(address, joiner)
        assert member.server.waiting() == ()


# -- ask


async def test_both_sides_show_the_same_digits_and_a_person_says_yes() -> None:
    member, joiner, told = Member(), newcomer(), list[Waiting]()
    async with asyncio.timeout(DEADLINE_S), member.serving() as address, asyncio.TaskGroup() as group:
        task = group.create_task(join(address, joiner, waiting=told.append))
        await member.asks.wait()
        (asked,) = member.server.waiting()
        assert (asked.name, asked.peer_id, asked.source[:9]) == ("cellar", joiner.identity.peer_id, "127.0.0.1")
        while not told:
            await asyncio.sleep(0.01)
        assert told[0].digits == asked.digits
        assert (told[0].mesh_name, told[0].members, told[0].seconds_left) == ("attic", 3, WAITING_S)
        member.server.approve(told[0].digits)
        joined = await task
    assert joined.roster == member.roster
    assert (joined.mode, member.via(joiner)) == ("ask", "ask")
    assert member.news == ["changed", "admitted", "changed"]
    assert member.server.waiting() == ()


async def test_a_denial_reaches_the_joiner_and_blocks_it_for_an_hour() -> None:
    member, joiner = Member(), newcomer()
    async with asyncio.timeout(DEADLINE_S), member.serving() as address:
        task = asyncio.create_task(join(address, joiner))
        await member.asks.wait()
        member.server.deny(member.server.waiting()[0].digits)
        with pytest.raises(JoinDenied):
            await task
        with pytest.raises(JoinDenied, match="60 minutes"):
            await join(address, joiner)
        member.now = 3600
        member.asks.clear()
        task = asyncio.create_task(join(address, joiner))
        await member.asks.wait()
        member.server.approve(member.server.waiting()[0].id)
        assert (await task).roster == member.roster


async def test_a_request_nobody_answers_expires() -> None:
    member, joiner = Member(), newcomer()
    async with asyncio.timeout(DEADLINE_S), member.serving() as address:
        task = asyncio.create_task(join(address, joiner))
        await member.asks.wait()
        digits = member.server.waiting()[0].digits
        member.now = WAITING_S
        with pytest.raises(JoinExpired):
            await task
        with pytest.raises(UnknownPeer):
            member.server.approve(digits)
    assert "admitted" not in member.news


async def test_a_member_that_may_not_admit_answers_as_if_there_were_no_mesh() -> None:
    member, joiner = Member(door=True), newcomer()
    guest = Member(door=True)
    guest.roster = member.roster.admit(member.identity, guest.identity.certificate_der, "guest", "door", "guest", 0)
    async with asyncio.timeout(DEADLINE_S), guest.serving() as address:
        with pytest.raises(JoinClosed):
            await join(address, joiner)


# -- token


async def test_by_a_token_once() -> None:
    member, joiner = Member(), newcomer(young=False, members=4)
    async with asyncio.timeout(DEADLINE_S), member.serving() as address:
        token = member.server.invite(uses=1, seconds=60, addresses=("127.0.0.1:1", address))
        assert member.saved[0].uses_left == 1
        joined = await join_by_token(Token.parse(token.line), joiner)
        assert (joined.roster, joined.address, member.via(joiner)) == (member.roster, address, "token")
        assert member.saved == ()
        assert member.news == ["tokens", "tokens", "admitted"]  # a use is off the disk before it counts
        with pytest.raises(TokenRefused):
            await join_by_token(token, newcomer())


async def test_a_wrong_or_old_token_is_refused_and_says_nothing_of_the_mesh() -> None:
    member, joiner = Member(), newcomer()
    async with asyncio.timeout(DEADLINE_S), member.serving() as address:
        token = member.server.invite(uses=5, seconds=60, addresses=(address,))
        wrong = dataclasses.replace(token, secret=secrets.token_urlsafe(32))
        with pytest.raises(TokenRefused):
            await join_by_token(wrong, joiner)
        status, body = await post(address, "token", pack(Proof(proof=b"x" * 32)))
        assert (status, unpack(Refusal, body).code) == (403, "token_refused")
        member.now = 60
        with pytest.raises(TokenRefused):
            await join_by_token(token, joiner)
        # Not even the second step by itself.
        request, nonce = await begun(address, joiner, "token")
        with pytest.raises(TokenRefused):
            await revealed(address, joiner, member, request, nonce, secret=token.secret)
    assert len(member.roster.members) == 1


async def test_a_token_is_not_told_to_another_mesh_or_to_who_is_no_member() -> None:
    """Whoever took over the address of the token hears no secret, even when it knows the roster."""
    member, thief, joiner = Member(), Member(), newcomer()
    token = Token(mesh_id=member.roster.mesh_id, secret=secrets.token_urlsafe(32), addresses=())
    heard: list[bytes] = []
    for roster in (thief.roster, member.roster):
        app = web.Application()
        app.router.add_post("/join/{path}", recording(heard, msgpack.packb(roster.to_wire())))
        async with asyncio.timeout(DEADLINE_S), listening(app, thief.tls.server_context) as address:
            with pytest.raises(NotThatMesh):
                await join_by_token(dataclasses.replace(token, addresses=(address,)), joiner)
    assert heard == [pack(Proof(proof=proof_of(token.secret, thief.identity.certificate_der)))] * 2
    with pytest.raises(JoinUnreachable):
        await join_by_token(token, joiner)


def recording(heard: list[bytes], answer: bytes) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        heard.append(await request.read())
        return web.Response(body=answer)

    return handler


# -- the same machine


async def test_the_same_user_on_the_same_machine_joins_without_a_word() -> None:
    member, joiner = Member(), newcomer()
    peer = member.identity.peer_id
    async with asyncio.timeout(DEADLINE_S), member.serving() as address:
        with pytest.raises(TokenRefused):
            await join_on_this_machine(address, peer, "of another", joiner)
        with pytest.raises(NotThatMesh):
            await join_on_this_machine(address, joiner.identity.peer_id, "of this user", joiner)
        with pytest.raises(NotThatMesh):
            await join_on_this_machine("10.255.255.1:9", peer, "of this user", joiner)
        joined = await join_on_this_machine(address, peer, "of this user", joiner)
    assert (joined.roster, member.via(joiner)) == (member.roster, "local")


@pytest.mark.parametrize("ends", [("10.0.0.7", "10.0.0.1"), ("127.0.0.1", "10.0.0.1")])
async def test_that_way_is_shut_to_other_machines(monkeypatch: pytest.MonkeyPatch, ends: tuple[str, str]) -> None:
    member, joiner = Member(), newcomer()
    async with asyncio.timeout(DEADLINE_S), member.serving() as address:
        monkeypatch.setattr(joining_module, "_addresses", lambda request: ends)
        with pytest.raises(JoinClosed, match="this machine only"):
            await join_on_this_machine(address, member.identity.peer_id, "of this user", joiner)


# -- those in between


@pytest.mark.parametrize("signs_itself", [False, True])
async def test_who_relays_a_request_under_another_certificate_is_refused(signs_itself: bool) -> None:
    """It passes on all that is said; to please the joiner it may sign for itself, and then the member refuses."""
    member, joiner, between = Member(door=True), newcomer(), Member()
    async with asyncio.timeout(DEADLINE_S), member.serving() as target:

        async def relay(request: web.Request) -> web.Response:
            path, sent = request.match_info["path"], await request.read()
            status, body = await post(target, path, sent)
            if signs_itself and path == "ask":
                begun = unpack(Begun, body)
                signed = begun_bytes(between.identity.certificate_der, begun.nonce, unpack(Ask, sent).commitment)
                body = pack(dataclasses.replace(begun, signature=between.identity.sign(signed)))
            return web.Response(body=body, status=status)

        app = web.Application()
        app.router.add_post("/join/{path}", relay)
        async with listening(app, between.tls.server_context) as address:
            who_refuses = "joiner's signature" if signs_itself else "signed by another peer"
            with pytest.raises(NotThatMesh, match=who_refuses):
                await join(address, joiner)
    assert member.news == []


async def test_who_takes_over_the_address_after_the_first_handshake_hears_nothing() -> None:
    member, thief, joiner = Member(door=True), Member(door=True), newcomer()
    contexts = [member.tls.server_context]
    front = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def next_one(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = contexts.pop() if contexts else thief.tls.server_context

    front.sni_callback = next_one
    app = web.Application()
    heard: list[bytes] = []
    app.router.add_post("/join/{path}", recording(heard, b""))
    async with asyncio.timeout(DEADLINE_S), listening(app, front) as address:
        with pytest.raises(JoinUnreachable, match="certificate"):
            await join(address, joiner)
    assert not contexts
    assert heard == []


async def test_the_joiner_takes_no_digits_but_its_own() -> None:
    member, joiner = Member(), newcomer()
    app = web.Application()
    pending = pack(Pending(digits="000 000", seconds_left=1))
    for method, path, handler in member.server.routes():
        app.router.add_route(method, path, _answering(handler, pending, status=202))
    async with asyncio.timeout(DEADLINE_S), listening(app, member.tls.server_context) as address:
        with pytest.raises(NotThatMesh, match="digits"):
            await join(address, joiner)


async def test_who_speaks_for_itself_on_both_sides_cannot_make_the_digits_equal() -> None:
    """It is let in under its own key at best, and people see other digits than the joiner shows."""
    member, between = Member(), Member()
    joiner, shown = newcomer(), list[str]()
    async with asyncio.timeout(DEADLINE_S), member.serving() as target, between.serving() as address:
        outer = asyncio.create_task(join(address, joiner, waiting=lambda waiting: shown.append(waiting.digits)))
        inner = asyncio.create_task(
            join(target, Joiner(identity=between.identity, name="cellar", summary=joiner.summary))
        )
        await asyncio.gather(member.asks.wait(), between.asks.wait())
        while not shown:
            await asyncio.sleep(0.01)
        (asked,) = member.server.waiting()
        assert asked.peer_id == between.identity.peer_id
        assert (asked.digits == shown[0]) is False  # one in a million
        for task in (outer, inner):
            task.cancel()
        await asyncio.gather(outer, inner, return_exceptions=True)


async def test_a_joiner_with_anothers_certificate_is_refused() -> None:
    member, joiner, victim = Member(door=True), newcomer(), newcomer()
    async with asyncio.timeout(DEADLINE_S), member.serving() as address:
        posing = dataclasses.replace(joiner, identity=_posing(joiner.identity, victim.identity))
        with pytest.raises(NotThatMesh, match="signature"):
            await join(address, posing)
    assert member.news == []


def _posing(thief: Identity, victim: Identity) -> Identity:
    return Identity(peer_id=victim.peer_id, certificate_der=victim.certificate_der, _key=thief._key)


async def test_a_number_other_than_the_one_committed_to_is_refused() -> None:
    member, joiner = Member(door=True), newcomer()
    async with asyncio.timeout(DEADLINE_S), member.serving() as address:
        request, _ = await begun(address, joiner, "door")
        with pytest.raises(NotThatMesh, match="committed"):
            await revealed(address, joiner, member, request, secrets.token_bytes(NONCE_BYTES))


async def test_the_joiner_believes_no_roster_without_itself_or_of_another_mesh() -> None:
    member, joiner, other = Member(door=True), newcomer(), Member()
    for roster in (member.roster, other.roster):
        app = web.Application()
        for method, path, handler in member.server.routes():
            app.router.add_route(method, path, _answering(handler, msgpack.packb(roster.to_wire())))
        async with asyncio.timeout(DEADLINE_S), listening(app, member.tls.server_context) as address:
            with pytest.raises(NotThatMesh):
                await join(address, joiner)


def _answering(handler: Handler, revealed: bytes, status: int = 200) -> Handler:
    async def answering(request: web.Request) -> web.StreamResponse:
        answer = await handler(request)
        return web.Response(body=revealed, status=status) if request.path == "/join/reveal" else answer

    return answering


# -- limits


async def post(address: str, path: str, body: bytes) -> tuple[int, bytes]:
    async with (
        ClientSession(connector=TCPConnector(ssl=stranger_context())) as session,
        session.post(f"https://{address}/join/{path}", data=body) as answer,
    ):
        return answer.status, await answer.read()


def refused(status: int, body: bytes) -> None:
    if status >= 400:
        joiner_module._refused(status, body)


async def begun(address: str, joiner: Joiner, mode: Mode, *, is_wanted: bool = False) -> tuple[Begun, bytes]:
    """The first step by hand, without asking whether it is allowed."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    ask = Ask(
        mode=mode,
        summary=joiner.summary,
        name=joiner.name,
        certificate=joiner.identity.certificate_der,
        commitment=commitment(nonce, joiner.identity.certificate_der),
        is_wanted=is_wanted,
    )
    status, body = await post(address, "ask", pack(ask))
    refused(status, body)
    return unpack(Begun, body), nonce


async def revealed(
    address: str, joiner: Joiner, member: Member, request: Begun, nonce: bytes, *, secret: str = ""
) -> tuple[int, bytes]:
    """The second step by hand."""
    mine = joiner.identity.certificate_der
    signed = revealed_bytes(member.identity.certificate_der, request.nonce, nonce, mine)
    reveal = Reveal(id=request.id, nonce=nonce, signature=joiner.identity.sign(signed), secret=secret)
    status, body = await post(address, "reveal", pack(reveal))
    refused(status, body)
    return status, body


async def test_a_closed_mesh_answers_404_to_everything() -> None:
    member, joiner = Member(door=True), newcomer()
    member.is_closed = True
    async with asyncio.timeout(DEADLINE_S), member.serving() as address:
        for _, path, _ in member.server.routes():
            assert (await post(address, path.rpartition("/")[2], b""))[0] == 404
        with pytest.raises(JoinClosed):
            await join(address, joiner)


@pytest.mark.parametrize("ends", [("8.8.8.8", "192.168.0.2"), ("192.168.0.3", "8.8.4.4"), ("", "127.0.0.1")])
async def test_door_and_question_are_shut_to_public_addresses_and_a_token_is_not(
    monkeypatch: pytest.MonkeyPatch, ends: tuple[str, str]
) -> None:
    joiner = newcomer()
    modes: tuple[Mode, ...] = ("door", "ask")
    monkeypatch.setattr(joining_module, "_addresses", lambda request: ends)
    for mode in modes:
        member = Member(door=mode == "door")
        async with asyncio.timeout(DEADLINE_S), member.serving() as address:
            with pytest.raises(JoinClosed, match="own network"):
                await join(address, joiner)
            with pytest.raises(JoinClosed, match="own network"):
                await begun(address, joiner, mode)
            token = member.server.invite(uses=1, seconds=60, addresses=(address,))
            assert (await join_by_token(token, joiner)).roster == member.roster


async def test_garbage_gets_an_answer_and_changes_nothing() -> None:
    member, joiner = Member(door=True), newcomer()
    right = [
        Hello(summary=joiner.summary),
        Proof(proof=b""),
        Poll(id="x"),
        Ask(mode="door", summary=joiner.summary, name="x", certificate=b"no", commitment=b""),
        Reveal(id="x", nonce=b"", signature=b""),
    ]
    async with asyncio.timeout(DEADLINE_S), member.serving() as address:
        for _, path, _ in member.server.routes():
            for body in (b"", b"\xc1", b"\x80", b"[]", secrets.token_bytes(200), *map(pack, right)):
                status, _ = await post(address, path.rpartition("/")[2], body)
                assert 200 <= status < 500
    assert member.news == []


async def test_a_body_above_16_kib_is_refused_whether_it_says_so_or_not() -> None:
    async def in_pieces() -> AsyncIterator[bytes]:
        for _ in range(BODY_BYTES_MAX // 1024 + 1):
            yield bytes(1024)

    member = Member(door=True)
    async with (
        asyncio.timeout(DEADLINE_S),
        member.serving() as address,
        ClientSession(connector=TCPConnector(ssl=stranger_context())) as session,
    ):
        url = f"https://{address}/join/hello"
        for body in (bytes(BODY_BYTES_MAX + 1), in_pieces()):
            async with session.post(url, data=body) as answer:
                assert answer.status == 413
        async with session.post(url, data=bytes(BODY_BYTES_MAX)) as answer:
            assert answer.status == 400


@pytest.mark.parametrize(
    ("sources", "places"), [(["127.0.0.1"], 5), (["10.0.0.1"], 2), (["10.0.0.1", "10.0.0.2", "10.0.0.3"], 5)]
)
async def test_slow_bodies_hold_few_places_for_ten_seconds_and_no_longer(
    monkeypatch: pytest.MonkeyPatch, sources: list[str], places: int
) -> None:
    assert joining_module.BODY_S == 10
    monkeypatch.setattr(joining_module, "BODY_S", 0.5)
    turns = itertools.cycle(sources)
    monkeypatch.setattr(joining_module, "_addresses", lambda request: (next(turns), "10.0.0.9"))
    member, joiner = Member(door=True), newcomer()
    async with asyncio.timeout(DEADLINE_S), member.serving() as address:
        host, port = address.split(":")
        slow = []
        for _ in range(places):
            reader, writer = await asyncio.open_connection(host, int(port), ssl=stranger_context())
            writer.write(b"POST /join/hello HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
            slow.append((reader, writer))
        while len(member.server._reading) < places:
            await asyncio.sleep(0.01)
        with pytest.raises(JoinBusy):
            await hello(address, joiner)
        for reader, writer in slow:
            assert b" 408 " in await reader.readline()
            writer.close()
        assert (await hello(address, joiner)).mode == "door"


async def test_nobody_there_is_said_plainly() -> None:
    joiner = newcomer()
    for address in ("127.0.0.1:1", "no address", "127.0.0.1"):
        with pytest.raises(JoinUnreachable):
            await join(address, joiner)


async def test_a_server_that_is_no_peer_is_not_joined() -> None:
    member, joiner = Member(door=True), newcomer()
    app = web.Application()
    async with asyncio.timeout(DEADLINE_S), listening(app, member.tls.server_context) as address:
        with pytest.raises(JoinClosed, match="404"):
            await join(address, joiner)


async def test_what_the_other_side_says_reaches_people_without_control_characters() -> None:
    with pytest.raises(JoinError) as caught:
        joiner_module._refused(400, pack(Refusal(code="new_in_a_later_version", message="a\x1b[31mb\nc")))
    assert str(caught.value) == "a[31mb c"


async def test_digits_are_the_same_in_every_version() -> None:
    """People compare them across versions."""
    assert digits_of(b"member", b"1", b"2", b"joiner") == "226 084"
