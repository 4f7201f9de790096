"""The names and addresses of this machine: what the listener binds, and what a Host header may say."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from contextlib import closing

import psutil

from mesh.errors import StartError

MESH_NAME = "llm-router.local"
"""The name that outlives machines: the coordinator publishes it by mDNS."""

EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - peers prove who they are
"""All addresses of this machine, in each family."""

Address = tuple[str, int]


def own_addresses() -> list[str]:
    """The addresses of this machine's interfaces, without zone."""
    found = []
    for entries in psutil.net_if_addrs().values():
        for entry in entries:
            if entry.family in (socket.AF_INET, socket.AF_INET6):
                found.append(entry.address.split("%")[0])
    return found


def allowed_hosts(configured: Iterable[str], addresses: Iterable[str]) -> frozenset[str]:
    """What Host may name: this machine under any of its names, and what the user added. Lower case, no port.

    Not 0.0.0.0 and ::, which browsers have taken for this machine: a page of anybody's could name it so.
    """
    name = socket.gethostname().lower()
    short = name.split(".")[0]
    own = {"localhost", "127.0.0.1", "::1", name, short, f"{short}.local", MESH_NAME}
    added = {h.strip().lower() for h in configured} - {"", "0.0.0.0", "::"}  # noqa: S104 - compared, not bound
    return frozenset({*own, *(a.lower() for a in addresses), *added})


def bound(*, host: str, port: int, also: Address | None) -> list[Address]:
    """The addresses to listen on: who is answered there is for the guards, which want a key of other machines.

    Loopback is bound in any case: the command line talks to the peer there. IPv6's beside IPv4's, because `localhost`
    means it to many programs. `also` is LLM_NODE_PORT's.
    """
    local, everywhere = "127.0.0.1", "0.0.0.0"  # noqa: S104 - compared, not bound
    host = local if host.lower() == "localhost" else host  # it is two addresses, both of which are bound below
    out = [(host, port)]
    if also is not None:
        out.append(also)
    if port and out[0][0] not in (local, everywhere):
        out.append((local, port))
    if port and out[0][0] not in ("::", "::1") and has_ipv6_loopback():
        out.append(("::1", port))
    return out


def check_open(hosts: Iterable[str], addresses: Iterable[str]) -> None:
    """Raises StartError when a listener on `hosts` would answer the internet without a key, and nobody said so.

    `addresses` are this machine's. Whoever names one address to answer on means it, a public one too.
    """
    strangers = sorted({address for host in hosts for address in public_addresses(host, addresses)})
    if strangers:
        raise StartError(
            f"--open would let the whole internet use this machine's models without a key: it has the public address "
            f"{', '.join(strangers[:3])}",
            fix="leave --open out and give clients keys (llm-router keys create), or name the one address to answer "
            "on: --host 192.168.1.5",
        )


def public_addresses(host: str, addresses: Iterable[str]) -> list[str]:
    """Those of `addresses` that a listener on "everywhere" answers on and that the internet may reach.

    None for a host that is one address. Not public: what providers share among customers (100.64.0.0/10), which is
    also where private networks of machines (Tailscale) have theirs.
    """
    version = {"0.0.0.0": 4, "::": 6}.get(host)  # noqa: S104 - compared, not bound
    found = []
    for text in addresses:
        try:
            address = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            continue
        if address.version == version and address.is_global and not address.is_multicast:
            found.append(str(address))
    return found


def lan_name(host: str) -> str:
    """How other machines may call a listener on `host`: its address, or this machine's name for "everywhere"."""
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def only_address(*, ip: str | None, bind: str) -> str:
    """The one address to tell other peers: what a person set, or the only one that is bound; "": all there are.

    A name is looked up, which may take a moment: others are told addresses, and there a name may mean another machine.
    """
    local = "127.0.0.1" if bind.lower() == "localhost" else bind
    if ip or local in EVERYWHERE:
        return ip or ""
    try:
        return str(ipaddress.ip_address(local))
    except ValueError:
        try:
            return socket.gethostbyname(local)
        except OSError:  # it cannot be bound either, which is said when it is tried
            return ""


def peer_hosts(bind: str) -> list[str]:
    """What the peer port binds: "everywhere" is both families, whichever of them says so."""
    return list(EVERYWHERE) if bind in EVERYWHERE and has_ipv6_loopback() else [bind]


def is_loopback(host: str) -> bool:
    """True for 127.0.0.0/8, ::1 and localhost."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def has_ipv6_loopback() -> bool:
    """Can ::1 be bound here?"""
    if not socket.has_ipv6:
        return False
    try:
        with closing(socket.socket(socket.AF_INET6)) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
