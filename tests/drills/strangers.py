"""A machine on the network that means no good: noise, recordings, foreign certificates, and a flood of mDNS."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from gossip.identity import Identity
from gossip.roster import Roster
from gossip.tls import Tls, stranger_context
from tests.drills.clients import Load
from tests.drills.figure import Figure, count, seconds
from tests.drills.house import PORT, House, waited
from tests.fixtures.lan import Host, inside

PEER_PORT = PORT + 1
PACKETS = 100_000
PACKETS_PER_S = 2_500.0
CORE_SHARE = 0.5
KNOCKS = 200
GROWTH_MB = 60.0
ANSWER_S = 1.0
MDNS = ("224.0.0.251", 5353)


def strangers(folder: Path, packets: int, knocks: int) -> list[Figure]:
    """All of it at a mesh of three, from a fourth machine; clients ask on meanwhile."""
    names = ("h1", "h2", "h3")
    with House.built(folder, 4, holders=("h2", "h3"), worker="--tokens 10 --rate 100", is_started=False) as house:
        for name in names:
            house.spawn(name)
        house.until_ready()
        house.until_all_see_all(names)
        house.until_one_coordinator(names)
        house.until_all_know("tiny", names, holders=2)
        waited(lambda: not house.mesh("h1")["joining"], "nobody joins", 10.0)
        h1, attacker = house.peers["h1"], house.lan["h4"]
        target = (house.lan["h1"].ip, PEER_PORT)
        before = _what_is(house, names)
        with Load(lambda: [h1], model="tiny", tokens=10, clients=1, pause_s=0.1) as load:
            with _busy(h1.process.pid) as knocking:
                for knock in (_noise, _half_a_handshake, _no_certificate, _foreign_certificate, _recording):
                    _knock(attacker, target, knock, knocks)
            process = psutil.Process(h1.process.pid)
            rss = process.memory_info().rss
            with _busy(h1.process.pid) as flooded:
                _flood(attacker, packets)
            grown_mb = (process.memory_info().rss - rss) / 1e6
        assert not load.wrong(), load.wrong()
        assert _what_is(house, names) == before, "what the peers know of each other changed"
        for name in names:
            log = house.peers[name].stderr
            assert "Traceback" not in log and "never retrieved" not in log, log[-4000:]
        worst = max(a.first_token_s for a in load.answers)
    return [
        count(f"{5 * knocks} bad connections: share of a core", knocking["share"], CORE_SHARE),
        count(f"{packets} mDNS packets, {packets / flooded['s']:.0f}/s: share of a core", flooded["share"], CORE_SHARE),
        Figure(what="mDNS flood: growth of the peer", value=grown_mb, limit=GROWTH_MB, unit="MB"),
        seconds("slowest first token meanwhile", worst, ANSWER_S),
    ]


def _what_is(house: House, names: tuple[str, ...]) -> dict[str, Any]:
    """What every peer believes, but for what changes by itself."""
    kept = ("id", "name", "state", "is_guest", "version")
    return {
        name: (
            mesh["mesh_id"],
            mesh["term"],
            mesh["coordinator"],
            mesh["guests_waiting"],
            mesh["joins_waiting"],
            [{key: peer[key] for key in kept} for peer in mesh["peers"]],
        )
        for name, mesh in house.meshes(names).items()
    }


@contextlib.contextmanager
def _busy(pid: int) -> Iterator[dict[str, float]]:
    """How busy that process is while the block runs: CPU seconds per second."""
    found: dict[str, float] = {}
    before, began = psutil.Process(pid).cpu_times(), time.monotonic()
    yield found
    after, found["s"] = psutil.Process(pid).cpu_times(), time.monotonic() - began
    found["share"] = (after.user + after.system - before.user - before.system) / found["s"]


# -- at the peer port

Target = tuple[str, int]
PER_S = 50.0


def _knock(host: Host, target: Target, how: Callable[[Host, Target, random.Random], None], times: int) -> None:
    rng = random.Random(how.__name__)
    for number in range(times):
        began = time.monotonic()
        with contextlib.suppress(OSError):
            how(host, target, rng)
        if number % 20 == 0:
            time.sleep(0.01)
        time.sleep(max(0.0, began + 1 / PER_S - time.monotonic()))


def _open(host: Host, target: Target) -> socket.socket:
    with inside(host):
        return socket.create_connection(target, timeout=2)


def _noise(host: Host, target: Target, rng: random.Random) -> None:
    with _open(host, target) as connection:
        connection.sendall(rng.randbytes(rng.randrange(1, 4096)))
        connection.shutdown(socket.SHUT_WR)
        connection.recv(4096)


def _half_a_handshake(host: Host, target: Target, rng: random.Random) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    half = stranger_context().wrap_bio(incoming, outgoing)
    with contextlib.suppress(ssl.SSLWantReadError):
        half.do_handshake()
    hello = outgoing.read()
    with _open(host, target) as connection:
        connection.sendall(hello[: rng.randrange(1, len(hello))])


def _no_certificate(host: Host, target: Target, rng: random.Random) -> None:
    """A stranger may speak TLS; what is only for members it does not get."""
    path = rng.choice(("/mesh/channel", "/v1/chat/completions", "/v1/embeddings"))
    with _open(host, target) as raw, stranger_context().wrap_socket(raw) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: h1\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        answer = connection.recv(4096)
        assert answer.split(b" ", 2)[1] in (b"401", b"403", b"404"), answer


def _foreign_certificate(host: Host, target: Target, rng: random.Random) -> None:
    identity = Identity.generate()
    tls = Tls(identity)
    tls.update(Roster.found(identity, "h1", 0))
    context = tls.client_context(None)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with _open(host, target) as raw, context.wrap_socket(raw) as connection:
        connection.sendall(b"GET /mesh/channel HTTP/1.1\r\nHost: h1\r\n\r\n")
        answer = connection.recv(4096)
        assert not answer, f"a foreign certificate was answered {answer[:100]!r}"


_recorded: list[bytes] = []


def _recording(host: Host, target: Target, rng: random.Random) -> None:
    """What a whole conversation sent, byte for byte, once more."""
    if not _recorded:
        _recorded.append(_recorded_conversation(host, target))
    with _open(host, target) as connection:
        connection.sendall(_recorded[0])
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass


def _recorded_conversation(host: Host, target: Target) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    talk = stranger_context().wrap_bio(incoming, outgoing)
    sent = b""
    with _open(host, target) as connection:
        while True:
            try:
                talk.do_handshake()
                break
            except ssl.SSLWantReadError:
                sent += (data := outgoing.read())
                connection.sendall(data)
                incoming.write(connection.recv(65536))
        talk.write(b"GET /.well-known/llm-router HTTP/1.1\r\nHost: h1\r\n\r\n")
        sent += (data := outgoing.read())
        connection.sendall(data)
        connection.recv(4096)
    return sent


# -- mDNS


def _flood(host: Host, packets: int) -> None:
    """Noise, mutated announcements, and announcements of machines that do not exist."""
    rng = random.Random(23)
    with inside(host), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(host.ip))
        out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
        out.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        out.bind((host.ip, MDNS[1]))  # RFC 6762: what comes from another port is a question
        began = time.monotonic()
        for number in range(packets):
            out.sendto(_packet(rng, host), MDNS)
            if number % 50 == 0:
                time.sleep(max(0.0, began + number / PACKETS_PER_S - time.monotonic()))


def _packet(rng: random.Random, host: Host) -> bytes:
    kind = rng.randrange(4)
    if kind == 0:
        return rng.randbytes(rng.randrange(1, 1400))
    packet = bytearray(_announcement(rng, host))
    if kind == 1:
        for _ in range(rng.randrange(1, 8)):
            packet[rng.randrange(len(packet))] = rng.randrange(256)
    elif kind == 2:
        del packet[rng.randrange(12, len(packet)) :]
    return bytes(packet)


def _announcement(rng: random.Random, host: Host) -> bytes:
    """PTR, SRV, TXT and A of a made-up peer at the attacker's address."""
    alphabet = "abcdefghijklmnopqrstuvwxyz234567"
    peer = "".join(rng.choice(alphabet) for _ in range(52))
    service = _name("_llm-router", "_tcp", "local")
    instance, machine = _name(peer)[:-1] + service, _name(peer[:20], "local")
    records = (
        _record(service, 12, 4500, instance),
        _record(instance, 33, 120, b"\0\0\0\0" + rng.randrange(1, 65536).to_bytes(2, "big") + machine),
        _record(instance, 16, 4500, b"\x03v=1" + b"\x12m=" + rng.randbytes(16)),
        _record(machine, 1, 120, socket.inet_aton(host.ip)),
    )
    return b"\0\0\x84\0\0\0" + len(records).to_bytes(2, "big") + b"\0\0\0\0" + b"".join(records)


def _name(*labels: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0"


def _record(name: bytes, kind: int, ttl: int, data: bytes) -> bytes:
    head = kind.to_bytes(2, "big") + b"\0\x01" + ttl.to_bytes(4, "big") + len(data).to_bytes(2, "big")
    return name + head + data
