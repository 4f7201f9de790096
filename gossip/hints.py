"""What somebody on the network says of a peer: a hint where to look, never a proof of anything.

Anybody can multicast anything. A record becomes a Hint only if every part of it has the form that our own peers give
it; hints are passed on at a bounded rate, and a bounded number is remembered. Pure: gossip.discovery hears the records.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gossip.bucket import Bucket
from gossip.interfaces import ADVERTISED_MAX, is_dialable, joined

SERVICE = "_llm-router._tcp.local."

KNOWN_MAX = 1_024
"""Peers remembered: many times the largest mesh, so that a flood of invented ones costs a megabyte and no more."""
TXT_BYTES_MAX = 400
MESH_LENGTH = 16
"""Characters of the mesh id that are told: enough to tell meshes apart."""
NEWS_S = 1.0
"""One peer is looked at this often at most: who flaps its record gets no more attention than this."""
AGAIN_S = 30.0
"""What is heard again unchanged is told this often: it may have been restarted."""
TOLD_PER_S = 50.0
TOLD_BURST = 128.0

# SHA-256 in base32: the last character holds one bit.
_PEER_ID = r"[a-z2-7]{51}[aq]"
_NAME = re.compile(rf"({_PEER_ID})\.{re.escape(SERVICE)}")
_HOST = re.compile(rf"({_PEER_ID})\.local\.")
_MESH = re.compile(rf"[a-z2-7]{{1,{MESH_LENGTH}}}")
_VERSION = re.compile(r"[0-9A-Za-z.+-]{1,32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """Somebody says that this peer is there, or that it left."""

    peer_id: str
    mesh: str = ""  # the first characters of its mesh's id; empty when it has none yet
    version: str = ""
    hosts: tuple[str, ...] = ()  # IP addresses, in the order to try
    port: int = 0  # its peer port
    is_removed: bool = False  # it said goodbye, or its record ran out: a reason to look, not to believe it

    @property
    def addresses(self) -> tuple[str, ...]:
        """ "host:port" or "[v6]:port", in the order to try."""
        return tuple(joined(host, self.port) for host in self.hosts)


def service_name(peer_id: str) -> str:
    """The name of a peer's service record."""
    return f"{peer_id}.{SERVICE}"


def host_name(peer_id: str) -> str:
    """The name of a peer's address records: of its own, since two machines may share a host name."""
    return f"{peer_id}.local."


def txt_of(*, version: str, mesh: str, peer_id: str) -> dict[str, str]:
    """What the TXT record says: `v` version, `m` short mesh id, `p` short peer id."""
    return {"v": version[:32], "p": peer_id[:8]} | ({"m": mesh[:MESH_LENGTH]} if mesh else {})


def peer_named(name: str) -> str | None:
    """The peer whose service or address record has this name."""
    match = _NAME.fullmatch(name) or _HOST.fullmatch(name)
    return match[1] if match else None


def hint_of(
    *,
    name: str,
    server: str | None,
    port: int | None,
    properties: Mapping[bytes, bytes | None],
    hosts: Sequence[str],
) -> Hint | None:
    """The hint in a service's records; None when any of them is not as our peers make it. Unknown keys are let be."""
    match = _NAME.fullmatch(name)
    if match is None or server is None or server.lower() != host_name(match[1]):
        return None  # an address of somebody else's host
    if port is None or not 1 <= port <= 65_535:
        return None
    if sum(len(key) + len(value or b"") + 2 for key, value in properties.items()) > TXT_BYTES_MAX:
        return None
    mesh, version = _text(properties, b"m"), _text(properties, b"v")
    if (mesh and not _MESH.fullmatch(mesh)) or (version and not _VERSION.fullmatch(version)):
        return None
    if not match[1].startswith(_text(properties, b"p")):
        return None
    usable = tuple(dict.fromkeys(host for host in hosts[: 4 * ADVERTISED_MAX] if is_dialable(host)))[:ADVERTISED_MAX]
    if not usable:
        return None
    return Hint(peer_id=match[1], mesh=mesh, version=version, hosts=usable, port=port)


def _text(properties: Mapping[bytes, bytes | None], key: bytes) -> str:
    return (properties.get(key) or b"").decode("ascii", "replace")


class Pace:
    """Which peers are to be looked at, and when: each not too often, all together not too many."""

    def __init__(self, now: float) -> None:
        self._bucket = Bucket(rate=TOLD_PER_S, burst=TOLD_BURST, now=now)
        self._due: dict[str, float] = {}
        self._told: dict[str, float] = {}

    def add(self, peer_id: str, now: float) -> None:
        """Something was heard of this peer. Forgotten when too many are waiting."""
        told = self._told.get(peer_id)
        if peer_id not in self._due and len(self._due) < KNOWN_MAX:
            self._due[peer_id] = now if told is None else max(now, told + NEWS_S)

    def take(self, now: float) -> list[str]:
        """Those whose turn it is, each once; the first heard of first."""
        found: list[str] = []
        for peer_id, at in list(self._due.items()):
            if at <= now:
                if self._bucket.has(now) < 1.0:
                    break
                self._bucket.charge(1.0)
                del self._due[peer_id]
                self._told.pop(peer_id, None)
                self._told[peer_id] = now
                found.append(peer_id)
        while len(self._told) > KNOWN_MAX:
            del self._told[next(iter(self._told))]
        return found

    def wait_s(self, now: float) -> float | None:
        """How long until somebody's turn; None when nobody waits."""
        if not self._due:
            return None
        return max(min(self._due.values()) - now, 0.0 if self._bucket.has(now) >= 1.0 else 1.0 / TOLD_PER_S)
