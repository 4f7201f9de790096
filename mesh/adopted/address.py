"""Where a registered server may be: an http(s) origin on the network that people mean, in one spelling only. Pure.

An admin's browser or script may be made to register anything, and every peer then sends requests there. So nothing is
asked that only this machine or a cloud's hypervisor answers: loopback (but for `backend add` on that very machine),
link-local, multicast, unspecified, metadata services, ports of the mesh itself. Addresses have many spellings, and
lists of bad ones have always been incomplete (LocalAI's cors-proxy took 0.0.0.0 and [::]): a host is a plain name or an
address in its usual form, anything else is refused without a look at what it might mean.

A name is resolved once, by whoever registers the server, and what it meant then is asked from now on: `pinned`.
Source of the ranges: RFC 6890 and the IANA special-purpose registries; the clouds' documentation for the rest.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from mesh.adopted.errors import AddressRefused

HOST_LENGTH_MAX = 253

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_ORIGIN = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?/?(?:v1/?)?", re.ASCII)
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_LOOPBACK_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"})
_METADATA_NAMES = frozenset(
    {
        "metadata",
        "metadata.google.internal",
        "metadata.goog",
        "metadata.azure.internal",
        "metadata.tencentyun.com",
        "instance-data",
        "instance-data.ec2.internal",
        "rancher-metadata",
    }
)
# Metadata and control services of AWS, Google, Alibaba, Oracle and Azure that are not link-local.
_METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in ("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "100.100.100.200", "192.0.0.192", "168.63.129.16")
)
_REFUSED = tuple(
    (ipaddress.ip_network(text), why)
    for text, why in (
        ("0.0.0.0/8", "means no machine in particular"),
        ("::/128", "means no machine in particular"),
        ("169.254.0.0/16", "is link-local, where clouds keep their secrets"),
        ("fe80::/10", "is link-local: it means another machine on every network"),
        ("fec0::/10", "is of a kind that is no more"),
        ("224.0.0.0/4", "is multicast"),
        ("ff00::/8", "is multicast"),
        ("240.0.0.0/4", "is reserved"),
        ("192.0.0.0/24", "is reserved"),
        # IPv6 addresses that hold an IPv4 one: what they lead to is hidden in them.
        ("::/96", "hides another address"),
        ("64:ff9b::/96", "hides another address"),
        ("64:ff9b:1::/48", "hides another address"),
        ("2001::/32", "hides another address"),
        ("2002::/16", "hides another address"),
    )
)
_LINK_LOCAL_6 = ipaddress.ip_network("fe80::/10")
FIX_LOOPBACK = "run `llm-router backend add URL` on the machine where that server is"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a server is, as it was told. `host` is a name in lower case, or an address in its usual form."""

    scheme: Literal["http", "https"]
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{joined(self.host, self.port)}"

    @property
    def is_here(self) -> bool:
        """It says that it is on the machine that reads it."""
        address = parsed(self.host)
        return is_loopback(address) if address is not None else _is_loopback_name(self.host)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What this peer knows: `peer_ports`, where members listen for each other (`peer_ports_of`); its `own_ports`."""

    allow_loopback: bool = False
    peer_ports: Collection[tuple[str, int]] = frozenset()
    own_ports: Collection[int] = frozenset()


def origin_of(url: str) -> Origin:
    """The origin that `url` is; `/v1` behind it is forgiven. Raises AddressRefused."""
    found = _ORIGIN.fullmatch(url.strip().lower()) if url.isascii() else None
    if found is None:
        raise _refused(url, "is no origin such as http://192.168.1.20:11434: no path, no user, no query", "base_url")
    scheme = cast(Literal["http", "https"], found[1])
    return origin_at(found[2], int(found[3]) if found[3] else (443 if scheme == "https" else 80), scheme)


def origin_at(host: str, port: int, scheme: Literal["http", "https"] = "http") -> Origin:
    """The origin at a host that was told by itself. Raises AddressRefused for a host in an unusual spelling."""
    if not 1 <= port <= 65_535:
        raise _refused(str(port), "is no port: 1 to 65535", "runtime_port")
    host = host.strip()
    if ":" in host or "[" in host:
        return Origin(scheme=scheme, host=_address6(host), port=port)
    bare = host.lower().removesuffix(".")
    if len(bare) > HOST_LENGTH_MAX or not bare.isascii() or _NAME.fullmatch(bare) is None:
        raise _refused(host, "is no host name; write international names as xn--...")
    if _NUMBER.fullmatch(bare.rpartition(".")[2]):
        try:
            return Origin(scheme=scheme, host=str(ipaddress.IPv4Address(bare)), port=port)
        except ValueError:
            raise _refused(host, "is an address in an unusual spelling; write four decimal numbers") from None
    if bare in _METADATA_NAMES:
        raise _refused(host, "is a cloud's metadata service")
    return Origin(scheme=scheme, host=bare, port=port)


def pinned(origin: Origin, addresses: Sequence[str], rules: Rules) -> str:
    """The one of `addresses` that is asked from now on. Raises AddressRefused.

    `addresses` are all that the name has now. One that may not be asked spoils them all: a name that means a machine
    on the network and this one as well is no mistake. Only link-local IPv6 addresses are passed over, because machines
    announce them beside their others.
    """
    found = [address for text in addresses if (address := parsed(text)) is not None]
    if not found:
        raise _refused(origin.host, "has no address")
    if _is_loopback_name(origin.host) and not rules.allow_loopback:
        raise _refused(origin.host, f"is the machine itself that asks; {FIX_LOOPBACK}")
    usable = [a for a in found if not (a.version == 6 and a in _LINK_LOCAL_6)] or found
    for address in usable:
        if why := why_not(address, origin.port, rules):
            shown = origin.host if str(address) == origin.host else f"{origin.host}, which is {address},"
            raise _refused(shown, why)
    return str(usable[0])


def why_not(address: Address, port: int, rules: Rules) -> str | None:
    """Why nothing is asked there; None when it may be."""
    if is_loopback(address):
        if not rules.allow_loopback:
            return f"is the machine itself that asks; {FIX_LOOPBACK}"
        return "is a port of this peer" if port in rules.own_ports else None
    if address in _METADATA:
        return "is a cloud's metadata service"
    for network, why in _REFUSED:
        if address.version == network.version and address in network:
            return why
    if (str(address), port) in rules.peer_ports:
        return "is the port of a peer of this mesh"
    return None


def parsed(text: str) -> Address | None:
    """The address in its usual form, an IPv4 address out of its IPv6 wrapping; None when it is none."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return _unmapped(address)


def is_loopback(address: Address) -> bool:
    """It leads back to the machine that asks, and means nothing on another."""
    return address.is_loopback


def joined(host: str, port: int) -> str:
    """`host:port`, `[v6]:port`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def peer_ports_of(addresses: Iterable[str]) -> frozenset[tuple[str, int]]:
    """For `Rules`: what members say of themselves, "host:port" or "[v6]:port"; what is none is passed over."""
    found = set()
    for text in addresses:
        host, _, port = text.rpartition(":")
        address = parsed(host.strip("[]"))
        if address is not None and port.isascii() and port.isdigit():
            found.add((str(address), int(port)))
    return frozenset(found)


def _address6(host: str) -> str:
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if "%" in bare:
        raise _refused(host, "names an interface, which means nothing on other machines")
    try:
        return str(_unmapped(ipaddress.IPv6Address(bare)))
    except ValueError:
        raise _refused(host, "is no IPv6 address") from None


def _unmapped(address: Address) -> Address:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _is_loopback_name(host: str) -> bool:
    return host in _LOOPBACK_NAMES or host.endswith(".localhost")


def _refused(what: str, why: str, param: str = "ip_address") -> AddressRefused:
    shown = "".join(c if c.isprintable() else "?" for c in what[:100])
    return AddressRefused(f"No server is registered there: {shown} {why}.", param=param)
