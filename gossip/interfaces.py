"""Under which addresses the others reach this machine, and in which order to try theirs.

Two machines with docker have the same address on docker0; a link-local address means nothing without an interface;
what a tunnel says is true only at its ends. So only addresses of real interfaces are told to others, and of what
others tell, those on a network of ours come first. Choosing is pure; `read` asks psutil and `watch` asks it every
five seconds, because nothing tells a program portably that its address changed (a new DHCP lease, another Wi-Fi, a
cable put in).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import psutil

log = logging.getLogger(__name__)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

POLL_S = 5.0
# More help nobody: an IPv6 interface alone may hold a dozen, most of them temporary.
ADVERTISED_MAX = 8

# Interfaces between a machine and something inside it, or the far end of a tunnel. A bridge that a person made (br0,
# vmbr0) holds the LAN's own address and is none of these.
_PSEUDO = tuple(
    (re.compile(rf"({names})$", re.IGNORECASE), what)
    for names, what in (
        (r"lo\d*|Loopback.*|dummy.*", "leads back into this machine"),
        (
            r"docker.*|br-[0-9a-f]+|bridge\d+|veth.*|podman.*|virbr.*|vnet\d.*|vmnet.*|vboxnet.*|lxc.*|lxd.*|vEthernet.*",
            "of containers or virtual machines",
        ),
        (
            r"cni.*|flannel.*|cali.*|kube.*|nerdctl.*",
            "of containers or virtual machines",
        ),
        (
            r"tun.*|tap.*|utun.*|wg.*|tailscale.*|zt.*|ppp.*|ipsec.*|ip6tnl.*|sit\d.*|gre.*|teredo.*|isatap.*",
            "a tunnel",
        ),
        (r"awdl.*|llw.*|anpi.*", "of Apple's own services"),
    )
)
_LOCAL = tuple(
    ipaddress.ip_network(text)
    for text in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A network interface, as the operating system describes it."""

    name: str
    is_up: bool  # enabled, and its cable or Wi-Fi connected
    addresses: tuple[str, ...] = ()  # with their prefix length, "192.168.1.20/24"; no zone


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is to be done with this machine's addresses."""

    advertised: tuple[str, ...] = ()  # told to others, best first
    multicast: tuple[str, ...] = ()  # where mDNS goes out: one address of each real interface
    networks: tuple[str, ...] = ()  # the real interfaces' networks: who is in one needs no router
    inner: frozenset[str] = frozenset()  # addresses of this machine that no other machine can reach


def chosen(interfaces: Sequence[Interface], *, node_ip: str = "", default: str = "") -> Choice:
    """The choice; the same interfaces in another order give the same one.

    `node_ip` (LLM_NODE_IP) is what a person set: it alone is advertised, and need not be an address of this machine
    (it is not, inside a container). `default` is the address that the default route would send from: it comes first
    among its kind, and it is taken even from a tunnel when there is no real interface.
    """
    real: list[tuple[Interface, list[str]]] = []
    inner: set[str] = set()
    for interface in sorted(interfaces, key=lambda i: i.name):
        usable = [text for text in interface.addresses if _is_usable(_bare(text))]
        if _pseudo(interface.name):
            inner.update(_bare(text) for text in interface.addresses)
        elif interface.is_up and usable:
            real.append((interface, usable))
    if not real:
        for interface in interfaces:
            usable = [text for text in interface.addresses if default and _bare(text) == default]
            if interface.is_up and usable and _is_usable(default):
                real.append((interface, usable))
    found = sorted({_bare(text) for _, usable in real for text in usable}, key=lambda a: _rank(a, default))
    networks = {str(ipaddress.ip_interface(text).network) for _, usable in real for text in usable}
    return Choice(
        advertised=(node_ip,) if node_ip else tuple(found[:ADVERTISED_MAX]),
        multicast=_multicast(real, default),
        networks=tuple(sorted(networks)),
        inner=frozenset(inner - set(found)),
    )


def why_left_out(interface: Interface, choice: Choice) -> str:
    """Why others are told no address of this interface; empty when they are."""
    if any(_bare(text) in choice.advertised for text in interface.addresses):
        return ""
    if what := _pseudo(interface.name):
        return what
    if not interface.is_up:
        return "not connected"
    if not interface.addresses:
        return "without an address"
    if not any(_is_usable(_bare(text)) for text in interface.addresses):
        return "link-local addresses only"
    return "others are told first"


def dial_order(hosts: Iterable[str], choice: Choice) -> tuple[str, ...]:
    """The IP addresses that somebody advertised, in the order to try them: on a network of ours first, then private
    ones, then the rest. Those that would lead back into this machine (its own docker0) are left out, as is
    what is no address."""
    networks = [ipaddress.ip_network(text) for text in choice.networks]
    ranked: list[tuple[bool, tuple[int, int], str]] = []
    for host in dict.fromkeys(hosts):
        address = _parsed(host)
        if address is None or host in choice.inner:
            continue
        is_near = any(address in network for network in networks)
        ranked.append((not is_near, _kind(address), host))
    return tuple(host for *_, host in sorted(ranked, key=lambda r: r[:2]))


def is_private_or_local(address: str) -> bool:
    """True for loopback, link-local and private addresses (RFC 1918, RFC 4193), also as IPv4 in IPv6 and with a zone.

    False for everything else: public ones, those that providers share among customers (100.64.0.0/10), and text
    that is no address.
    """
    parsed = _parsed(address)
    return parsed is not None and any(parsed in network for network in _LOCAL)


def is_public(address: str) -> bool:
    """True for an address of one machine that is neither private nor local: strangers may be able to reach it."""
    parsed = _parsed(address)
    if parsed is None or parsed.is_multicast or parsed.is_unspecified:
        return False
    return not any(parsed in network for network in _LOCAL)


def is_dialable(address: str) -> bool:
    """True for an address that another machine on the LAN can have: one machine's, neither loopback nor link-local."""
    return _is_usable(address)


def is_loopback(address: str) -> bool:
    """True for an address that leads back to the machine that uses it."""
    parsed = _parsed(address)
    return parsed is not None and parsed.is_loopback


def joined(host: str, port: int) -> str:
    """ "host:port", or "[v6]:port"."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split(address: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[v6]:port". Raises ValueError for anything else."""
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        ipaddress.IPv6Address(host)
    elif ":" in host:
        raise ValueError(f"{address!r}: an IPv6 address goes in brackets")
    if not colon or not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65_535:
        raise ValueError(f"{address!r} is no host:port")
    return host, int(port)


def may_be_peer(address: str) -> bool:
    """Whether to look there because another machine says so: at a machine's own address, at no name, at no group."""
    try:
        host, _ = split(address)
    except ValueError:
        return False
    return is_dialable(host) or is_loopback(host)


# -- the thin shell


def read(node_ip: str = "") -> Choice:
    """This machine's choice, now. Takes about a millisecond; on Windows some more."""
    return chosen(present(), node_ip=node_ip, default=_default_source())


def present() -> list[Interface]:
    """This machine's interfaces, now."""
    stats = psutil.net_if_stats()
    return [
        Interface(
            name=name,
            is_up=name in stats and stats[name].isup,
            addresses=tuple(
                text
                for a in addresses
                if (text := with_prefix(a.address, a.netmask)) is not None  # no MACs
            ),
        )
        for name, addresses in psutil.net_if_addrs().items()
    ]


async def watch(
    on_change: Callable[[Choice], Awaitable[None]], *, before: Choice, node_ip: str = "", poll_s: float = POLL_S
) -> None:
    """Looks every `poll_s` seconds, for ever, and tells each choice that differs from the one before."""
    while True:
        await asyncio.sleep(poll_s)
        try:
            now = await asyncio.to_thread(read, node_ip)
        except OSError as error:  # no descriptors left at this moment, or an interface that goes while it is looked at
            log.debug("the addresses of this machine were not read", extra={"reason": str(error)})
            continue
        if now != before:
            before = now
            await on_change(now)


def with_prefix(address: str, netmask: str | None) -> str | None:
    """ "192.168.1.20/24" of psutil's address and netmask; None for what is no IP address (psutil lists MACs too)."""
    parsed = _parsed(address)
    if parsed is None:
        return None
    bits = 64 if parsed.version == 6 else 32
    with contextlib.suppress(ValueError):
        bits = int(ipaddress.ip_address(netmask or "")).bit_count()
    return f"{parsed}/{bits}"


def _default_source() -> str:
    """The IPv4 address that packets to the rest of the world would carry; no packet is sent. Empty without a route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        try:
            end.connect(("192.0.2.1", 9))  # RFC 5737: an address that nobody has
        except OSError:
            return ""
        host: str = end.getsockname()[0]
        return host


# -- kinds of addresses


def _pseudo(name: str) -> str:
    """What an interface is of that name, if it leads to no network; else empty."""
    return next((what for pattern, what in _PSEUDO if pattern.match(name)), "")


def _parsed(text: str) -> Address | None:
    """The address without its zone; IPv4 in IPv6 as IPv4, as a socket for both tells who connects over IPv4."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _bare(text: str) -> str:
    return text.partition("/")[0]


def _is_usable(text: str) -> bool:
    address = _parsed(text)
    return address is not None and not (
        address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address == ipaddress.IPv4Address("255.255.255.255")
    )


def _kind(address: Address) -> tuple[int, int]:
    """Private before public, IPv4 before IPv6."""
    return (0 if any(address in network for network in _LOCAL) else 1, address.version)


def _rank(text: str, default: str) -> tuple[tuple[int, int], bool, int]:
    address = _parsed(text)
    assert address is not None
    return (_kind(address), text != default, int(address))


def _multicast(real: Sequence[tuple[Interface, Sequence[str]]], default: str) -> tuple[str, ...]:
    """One address of each interface: IPv4 where there is one. mDNS over IPv6 too would only say everything twice."""
    best = [min((_bare(text) for text in usable), key=lambda a: (":" in a, _rank(a, default))) for _, usable in real]
    return tuple([a for a in best if ":" not in a] or best)
