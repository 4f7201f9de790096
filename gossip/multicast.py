"""Does multicast DNS leave this machine, and does it come back? A trial over real sockets, within two seconds.

It asks, as every machine with mDNS does (RFC 6762), "which services are there?" and "which of ours?", and hears three
things: its own question, which the operating system gives back to whoever listens; answers of other machines; and
which of these are peers. Nothing is announced, and nothing that is heard is believed.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import selectors
import socket
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import psutil
from zeroconf._dns import DNSPointer, DNSQuestion
from zeroconf._protocol.incoming import DNSIncoming
from zeroconf._protocol.outgoing import DNSOutgoing

from gossip.hints import SERVICE, peer_named

PORT = 5353
GROUP, GROUP6 = "224.0.0.251", "ff02::fb"
LISTEN_S = 2.0
ASK_AGAIN_S = 1.0
"""An answer that was given just now is not given again for a second (RFC 6762, section 6)."""
PACKETS_MAX = 2000
_ALL_SERVICES = "_services._dns-sd._udp.local."
_PTR, _IN, _QUERY = 12, 1, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What came of it on one interface. `failure` is the operating system's no, to listening or to sending."""

    address: str
    failure: OSError | None = None
    is_own_heard: bool = False
    machines: frozenset[str] = field(default_factory=frozenset)  # addresses of others that said anything
    peers: frozenset[str] = field(default_factory=frozenset)  # ids of those among them that are ours


def tried(addresses: Sequence[str], *, own: frozenset[str], listen_s: float = LISTEN_S) -> list[Trial]:
    """A trial on the interface of each address, all at once. `own`: this machine's addresses, which are no others."""
    return _listened([_Ear(address, own) for address in addresses], listen_s)


class _Ear:
    """One interface: a socket that asks and listens, and what it heard."""

    def __init__(self, address: str, own: frozenset[str]) -> None:
        self.address = address
        self._own = own
        # Who answers does not look at the id (RFC 6762, section 18.1): by it we know our own question.
        self._question = _question(int.from_bytes(os.urandom(2)) | 1)
        self._failure: OSError | None = None
        self._is_own_heard = False
        self._machines: set[str] = set()
        self._peers: set[str] = set()
        self.socket: socket.socket | None = None
        try:
            self.socket = _opened(address)
        except OSError as error:
            self._failure = error

    @property
    def is_done(self) -> bool:
        return self.socket is None

    def ask(self) -> None:
        if self.socket is None:
            return
        try:
            if ":" in self.address:
                self.socket.sendto(self._question, (GROUP6, PORT, 0, _index_of(self.address)))
            else:
                self.socket.sendto(self._question, (GROUP, PORT))
        except OSError as error:
            self._failure = error
            self.close()

    def hear(self) -> None:
        if self.socket is None:
            return
        try:
            data, sender = self.socket.recvfrom(9000)
        except OSError:
            return
        host = str(sender[0]).partition("%")[0]
        if data == self._question:
            self._is_own_heard = True
        if host in self._own:
            return
        self._machines.add(host)
        with contextlib.suppress(Exception):  # border: what a stranger's packet may do to the parser is no news
            message = DNSIncoming(data)
            if not message.is_response():  # a question names what its asker knows: others' words
                return
            for record in message.answers():
                if isinstance(record, DNSPointer) and record.name.lower() == SERVICE:
                    peer = peer_named(record.alias)
                    if peer is not None and record.ttl > 0:
                        self._peers.add(peer)

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    @property
    def trial(self) -> Trial:
        return Trial(
            address=self.address,
            failure=self._failure,
            is_own_heard=self._is_own_heard,
            machines=frozenset(self._machines),
            peers=frozenset(self._peers),
        )


def _listened(ears: list[_Ear], listen_s: float) -> list[Trial]:
    began = time.monotonic()
    questions = [0.0, ASK_AGAIN_S]
    left = PACKETS_MAX
    with selectors.DefaultSelector() as selector:
        for ear in ears:
            if ear.socket is not None:
                selector.register(ear.socket, selectors.EVENT_READ, ear)
        try:
            while (passed := time.monotonic() - began) < listen_s and left > 0:
                if questions and passed >= questions[0]:
                    del questions[0]
                    for ear in [ear for ear in ears if not ear.is_done]:
                        before = ear.socket
                        ear.ask()
                        if ear.is_done and before is not None:
                            selector.unregister(before)
                if not selector.get_map():
                    break
                until = min([listen_s, *questions[:1]])
                for key, _ in selector.select(max(0.0, until - (time.monotonic() - began))):
                    left -= 1
                    key.data.hear()
        finally:
            for ear in ears:
                ear.close()
    return [ear.trial for ear in ears]


def _question(number: int) -> bytes:
    out = DNSOutgoing(_QUERY, multicast=False)  # a multicast one has the id 0
    out.id = number
    for name in (SERVICE, _ALL_SERVICES):
        out.add_question(DNSQuestion(name, _PTR, _IN))
    (packet,) = out.packets()
    return packet


def _opened(address: str) -> socket.socket:
    """A socket that shares port 5353, as all who speak mDNS do, in the group on the interface of `address`."""
    is_v6 = ":" in address
    end = socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform != "win32" and hasattr(socket, "SO_REUSEPORT"):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if is_v6:
            index = _index_of(address)
            end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 1)
            end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            end.bind(("::", PORT))
            group = socket.inet_pton(socket.AF_INET6, GROUP6) + struct.pack("@I", index)
            end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
        else:
            packed = ipaddress.IPv4Address(address).packed
            end.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
            end.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            end.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, packed)
            end.bind(("", PORT))
            group = socket.inet_pton(socket.AF_INET, GROUP) + packed
            end.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        end.setblocking(False)
    except OSError:
        end.close()
        raise
    return end


def _index_of(address: str) -> int:
    """The number of the interface with this IPv6 address. Raises OSError when it went away."""
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in entries):
            return socket.if_nametoindex(name)
    raise OSError(f"no interface has {address} any more")
