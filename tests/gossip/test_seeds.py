"""Where the peer ports of named machines are: what a person may write, and what servers of every kind answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from gossip.identity import Identity
from gossip.seeds import (
    ANSWER_BYTES_MAX,
    PAUSE_S_MAX,
    PAUSE_S_MIN,
    WELL_KNOWN,
    Found,
    Own,
    Seed,
    Seeds,
    WellKnown,
    pause_s,
    seeds_of,
    well_known_of,
)

ANSWER = {"version": "0.1.0", "mesh": "abcdefghijklmnop", "peer_port": 4321}


# -- what a person writes


@pytest.mark.parametrize(
    ("text", "seed"),
    [
        ("attic", Seed("attic")),
        ("Attic.local.", Seed("attic.local")),
        ("attic:9000", Seed("attic", 9000)),
        ("192.168.1.5", Seed("192.168.1.5")),
        ("192.168.1.5:8081", Seed("192.168.1.5", 8081)),
        ("http://attic:8080", Seed("attic", 8080)),
        ("http://attic:8080/v1", Seed("attic", 8080)),
        ("HTTPS://attic:8080", Seed("attic", 8080)),
        ("http://attic", Seed("attic")),
        ("[fd00::1]:8081", Seed("fd00::1", 8081)),
        ("[fd00::1]", Seed("fd00::1")),
        ("fd00::1", Seed("fd00::1")),
        ("http://[fd00::1]:8080/", Seed("fd00::1", 8080)),
    ],
)
def test_a_seed_is_a_host_with_or_without_a_port(text: str, seed: Seed) -> None:
    assert seeds_of([text]) == (seed,)
    assert seeds_of([str(seed)]) == (seed,)


_NO_PEERS = [
    *[
        "attic:",
        ":8080",
        "attic:0",
        "attic:65536",
        "attic:http",
        "ftp://attic:21",
        "user@attic:80",
        "a b",
        "[attic]:80",
    ],
    *["fd00:::1", "http://", "http:///v1", "a..b", "x" * 64, "attic:8080:1"],
]


@pytest.mark.parametrize("text", _NO_PEERS)
def test_what_names_no_peer_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"names no peer|ports are"):
        seeds_of([text])


def test_each_seed_is_asked_once_and_there_are_not_too_many() -> None:
    assert seeds_of(["attic", "", " attic ", "ATTIC"]) == (Seed("attic"),)
    with pytest.raises(ValueError, match="65 peers"):
        seeds_of([f"host{n}" for n in range(65)])


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        seeds_of([text])


# -- what comes back


@given(st.binary(max_size=200))
def test_garbage_is_no_answer(body: bytes) -> None:
    assert well_known_of(body) is None


_VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.lists(st.none()))


@given(st.dictionaries(st.sampled_from(["version", "mesh", "peer_port", "x"]), _VALUES, max_size=4))
def test_only_a_peers_answer_is_taken(answer: dict[str, Any]) -> None:
    found = well_known_of(json.dumps(answer).encode())
    if found is not None:
        assert 1 <= found.peer_port <= 65_535
        assert type(answer["peer_port"]) is int


def test_a_peer_of_no_mesh_and_one_of_a_later_version_are_understood() -> None:
    assert well_known_of(json.dumps(ANSWER | {"more": [1]}).encode()) == WellKnown(
        version="0.1.0", mesh="abcdefghijklmnop", peer_port=4321
    )
    assert well_known_of(json.dumps(ANSWER | {"mesh": None}).encode()) is not None
    assert well_known_of(json.dumps(ANSWER | {"peer_port": None}).encode()) is None
    assert well_known_of(json.dumps(ANSWER | {"peer_port": True}).encode()) is None
    assert well_known_of(b"[" * 4000) is None
    assert well_known_of(json.dumps(ANSWER).encode() + b" " * ANSWER_BYTES_MAX) is None


@given(st.randoms())
def test_pauses_grow_to_half_a_minute_and_stay_there(rng: random.Random) -> None:
    before = 0.0
    for _ in range(50):
        before = pause_s(before, rng)
        assert PAUSE_S_MIN <= before <= PAUSE_S_MAX


def test_two_peers_do_not_ask_in_step() -> None:
    rng = random.Random(1)
    assert len({pause_s(8.0, rng) for _ in range(100)}) == 100


# -- servers of every kind

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def serving(handler: Handler, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[int]:
    app = web.Application()
    app.router.add_get(WELL_KNOWN, handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def peers_answer(_: web.Request) -> web.Response:
    return web.json_response(ANSWER)


class Offers:
    """Who dials: keeps what it is offered, and says of each whether a member is there."""

    def __init__(self, *members: str) -> None:
        self.found: list[Found] = []
        self.members = set(members)
        self.changed = asyncio.Event()

    @property
    def addresses(self) -> list[str]:
        return [found.address for found in self.found]

    async def __call__(self, found: Found) -> bool:
        self.found.append(found)
        self.changed.set()
        return found.address in self.members


def asking(*texts: str, own: Own | None = None) -> Seeds:
    return Seeds(seeds_of(texts), own=lambda: own or Own(), rng=random.Random(1))


def free_port() -> int:
    with socket.socket() as end:
        end.bind(("127.0.0.1", 0))
        port: int = end.getsockname()[1]
        return port


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "http://127.0.0.1:{}", "http://127.0.0.1:{}/v1"])
async def test_a_client_port_tells_the_peer_port(form: str) -> None:
    offers = Offers("127.0.0.1:4321")
    async with serving(peers_answer) as port:
        seed = form.format(port)
        assert await asking(seed).round(offers)
    assert offers.found == [Found(seed=Seed("127.0.0.1", port), address="127.0.0.1:4321", mesh="abcdefghijklmnop")]


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    identity = Identity.generate()
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    key.write_text(identity.key_pem)
    certificate.write_text(identity.certificate_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    return context


async def test_a_port_that_speaks_tls_is_dialled_and_then_the_next_one(tls: ssl.SSLContext) -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=tls)
    async with server:
        port = server.sockets[0].getsockname()[1]
        as_peer_port = Offers(f"127.0.0.1:{port}")
        assert await asking(f"127.0.0.1:{port}").round(as_peer_port)
        assert as_peer_port.addresses == [f"127.0.0.1:{port}"]
        as_client_port_with_tls = Offers(f"127.0.0.1:{port + 1}")
        assert await asking(f"127.0.0.1:{port}").round(as_client_port_with_tls)
        assert as_client_port_with_tls.addresses == [f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"]


async def test_where_nothing_listens_the_next_port_is_tried_and_the_reason_kept() -> None:
    port = free_port()
    seeds, offers = asking(f"127.0.0.1:{port}"), Offers()
    assert not await seeds.round(offers)
    assert offers.addresses == [f"127.0.0.1:{port + 1}"]
    assert seeds.reasons == {Seed("127.0.0.1", port): f"127.0.0.1:{port}: nothing listens there"}
    offers.members.add(f"127.0.0.1:{port + 1}")
    assert await seeds.round(offers)
    assert seeds.reasons == {}


async def test_without_a_port_the_usual_ones_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    offers = Offers("127.0.0.1:4321")
    async with serving(peers_answer) as port:
        monkeypatch.setattr("gossip.seeds.CLIENT_PORT", port)
        assert await asking("127.0.0.1").round(offers)
    assert offers.addresses == ["127.0.0.1:4321"]
    await asking("127.0.0.1").round(offers)
    assert offers.addresses[1:] == [f"127.0.0.1:{port + 1}"]


async def _redirect(_: web.Request) -> web.Response:
    raise web.HTTPFound("http://127.0.0.1:1/secret")


async def _huge(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b" " * 65_536)
    return response


async def _page(_: web.Request) -> web.Response:
    return web.Response(text="<html>it works</html>")


async def _bomb(_: web.Request) -> web.Response:
    return web.Response(body=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})


@pytest.mark.parametrize("handler", [_redirect, _huge, _page, _bomb])
async def test_what_is_no_peer_is_not_believed(handler: Handler) -> None:
    offers = Offers()
    async with serving(handler) as port:
        seeds = asking(f"127.0.0.1:{port}")
        assert not await seeds.round(offers)
    assert offers.addresses == [f"127.0.0.1:{port + 1}"]
    assert seeds.reasons[Seed("127.0.0.1", port)].endswith("what answers there is no peer")


async def test_a_port_that_says_nothing_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossip.seeds.ANSWER_S", 0.05)
    hanging: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda reader, writer: hanging.append(writer), "127.0.0.1", 0)
    offers = Offers()
    async with server:
        port = server.sockets[0].getsockname()[1]
        seeds = asking(f"127.0.0.1:{port}")
        assert not await seeds.round(offers)
        for writer in hanging:
            writer.close()
    assert "no answer" in seeds.reasons[Seed("127.0.0.1", port)]


async def test_a_peer_that_is_named_to_itself_does_not_dial_itself() -> None:
    offers = Offers()
    async with serving(peers_answer) as port:
        own = Own(hosts=frozenset({"192.168.1.5"}), ports=frozenset({port, 4321}))
        assert await asking(f"127.0.0.1:{port}", "192.168.1.5:4321", own=own).round(offers)
        assert offers.found == []
        only_peer_port = Own(ports=frozenset({4321}))
        assert await asking(f"127.0.0.1:{port}", own=only_peer_port).round(offers)
    assert offers.found == []


# -- names


async def test_names_are_resolved_anew_each_time_and_every_address_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    now = ["127.0.0.1"]

    def answer(host: str, *_: object, **__: object) -> list[tuple[Any, ...]]:
        assert host == "attic.example"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in now]

    offers = Offers("127.0.0.1:4321", "127.0.0.2:4321", "127.0.0.3:4321")
    async with serving(peers_answer, "0.0.0.0") as port:
        seeds = asking(f"attic.example:{port}")
        monkeypatch.setattr("gossip.seeds.socket.getaddrinfo", answer)
        assert await seeds.round(offers)
        assert offers.addresses == ["127.0.0.1:4321"]
        now[:] = ["127.0.0.2", "127.0.0.3", "127.0.0.2", "224.0.0.1"]
        assert await seeds.round(offers)
        assert sorted(offers.addresses[1:]) == ["127.0.0.2:4321", "127.0.0.3:4321"]
        offers.members.remove("127.0.0.3:4321")
        assert not await seeds.round(offers)


async def test_a_name_that_nobody_has_and_a_resolver_that_hangs_are_no_members(monkeypatch: pytest.MonkeyPatch) -> None:
    release, asked = threading.Event(), []

    def hang(host: str, *_: object, **__: object) -> list[tuple[Any, ...]]:
        asked.append(host)
        if host == "slow.example":
            release.wait(60)
        raise socket.gaierror

    monkeypatch.setattr("gossip.seeds.socket.getaddrinfo", hang)
    monkeypatch.setattr("gossip.seeds.RESOLVE_S", 0.05)
    seeds = asking("slow.example", "none.example")
    assert not await seeds.round(Offers())
    assert not await seeds.round(Offers())
    assert asked.count("slow.example") == 1, "a second thread was started beside the one that hangs"
    assert set(seeds.reasons.values()) == {"its name has no address"}
    release.set()


# -- again and again


async def test_seeds_are_asked_until_they_are_members_and_again_when_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossip.seeds.PAUSE_S_MIN", 0.001)
    monkeypatch.setattr("gossip.seeds.PAUSE_S_MAX", 0.002)
    offers = Offers()
    async with serving(peers_answer) as port:
        seeds = asking(f"127.0.0.1:{port}")
        task = asyncio.create_task(seeds.run(offers))

        async def asked(times: int) -> None:
            async with asyncio.timeout(10):
                while len(offers.found) < times:
                    offers.changed.clear()
                    await offers.changed.wait()

        await asked(3)
        monkeypatch.setattr("gossip.seeds.PAUSE_S_MAX", 3600.0)
        offers.members.add("127.0.0.1:4321")
        async with asyncio.timeout(10):
            while seeds.reasons:
                await asyncio.sleep(0.001)
        before = len(offers.found)
        seeds.wake()
        await asked(before + 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_without_seeds_there_is_nothing_to_do() -> None:
    await asking().run(Offers())
