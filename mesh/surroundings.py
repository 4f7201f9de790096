"""The network as the doctor sees it from this machine: addresses, peer port, mDNS, containers. Changes nothing.

What the operating system says is read by the functions at the end; what it means is decided by pure ones before them.
"""

from __future__ import annotations

import errno
import os
import platform
import sys
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from gossip.interfaces import Choice, Interface, is_loopback, present, read, why_left_out
from gossip.multicast import Trial, tried
from mesh.check import Check
from mesh.config import Config
from mesh.firewall import LOCAL_NETWORK
from mesh.hosts import only_address
from mesh.ports import port_holder

MDNS_PORT = 5353
INTERFACES_NAMED_MAX = 8
ELSEWHERE = "name one of the others: LLM_ROUTER_URL=its-address llm-router"


# -- addresses


def addresses(config: Config) -> list[Check]:
    """What other machines are told, and what they are not."""
    only = only_address(ip=config.ip, bind=config.bind_address)
    choice = read(only)
    return [told(choice, only), *left_out(present(), choice)]


def told(choice: Choice, only: str) -> Check:
    """The addresses that others use for this machine."""
    if only and is_loopback(only):
        found = f"others are told {only}, which leads nowhere from there"
        return Check(name="addresses", state="warn", found=found, fix="leave LLM_NODE_BIND_ADDRESS and LLM_NODE_IP out")
    if only:
        return Check(name="addresses", state="ok", found=f"others are told {only}, as set")
    if not choice.advertised:
        found = "none that another machine could reach"
        fix = "connect this machine to the network, or set the address that others should use: LLM_NODE_IP"
        return Check(name="addresses", state="warn", found=found, fix=fix)
    return Check(name="addresses", state="ok", found=f"others are told {', '.join(choice.advertised)}")


def left_out(interfaces: Iterable[Interface], choice: Choice) -> list[Check]:
    """Interfaces that nobody is told of. Loopback nobody misses, nor one without an address while there are others."""
    reasons = [
        f"{interface.name} ({reason})"
        for interface in sorted(interfaces, key=lambda i: i.name)
        if (reason := why_left_out(interface, choice))
        and (interface.addresses or not choice.advertised)
        and not any(is_loopback(text.partition("/")[0]) for text in interface.addresses)
    ]
    if not reasons:
        return []
    more = len(reasons) - INTERFACES_NAMED_MAX
    text = ", ".join(reasons[:INTERFACES_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
    fix = "should others reach this machine by one of them, set its address: LLM_NODE_IP"
    return [Check(name="not told", state="ok", found=text, fix=fix)]


def container(config: Config) -> list[Check]:
    """A container, or WSL, whose network is not the LAN. Nothing to say elsewhere."""
    return walled(kind=_wall(), ip=config.ip or "", has_seeds=bool(config.url))


def walled(*, kind: Literal["", "container", "WSL"], ip: str, has_seeds: bool) -> list[Check]:
    """What a network of its own inside this machine needs, to be in a mesh with others."""
    if not kind:
        return []
    if ip and has_seeds:
        return [Check(name=kind, state="ok", found=f"a network of its own; others are told {ip}")]
    found = "a network of its own: machines outside this host cannot reach it, nor does mDNS get there"
    if kind == "WSL":
        fix = "networkingMode=mirrored under [wsl2] in .wslconfig, or run llm-router on Windows itself"
    else:
        fix = (
            "on Linux, network_mode: host; elsewhere publish 8080 and 8081, and set LLM_ROUTER_URL (another machine) "
            "and LLM_NODE_IP (the address of this one's host)"
        )
    return [Check(name=kind, state="warn", found=found, fix=fix)]


# -- the peer port


def wanted_port(config: Config) -> int:
    """The peer port this configuration asks for first; 0: any."""
    if config.mesh_port:
        return config.mesh_port
    return min(65535, config.port + 1) if config.port else 0


def peer_port(config: Config, own: int | None) -> list[Check]:
    """Free, or ours. `own`: where the running peer of these settings has it."""
    wanted = wanted_port(config)
    if own is not None:
        found = f"{own} is this peer's"
        if wanted in (0, own):
            return [Check(name="peer port", state="ok", found=found)]
        fix = f"where others name it: LLM_ROUTER_URL=its-address:{own}"
        return [Check(name="peer port", state="ok", found=f"{found}: {wanted} was taken when it started", fix=fix)]
    if not wanted:
        return [Check(name="peer port", state="ok", found="any free one")]
    holder = port_holder(wanted)
    if holder is None:
        return [Check(name="peer port", state="ok", found=f"{wanted} is free")]
    found = f"{wanted} is in use by {holder}"
    if config.mesh_port:
        fix = "stop it, or give another --mesh-port"
        return [Check(name="peer port", state="fail", found=found, fix=fix)]
    fix = "none needed: the next free one is taken; --mesh-port NUMBER chooses one"
    return [Check(name="peer port", state="warn", found=found, fix=fix)]


# -- mDNS


def multicast(config: Config) -> list[Check]:
    """Asks the network, for two seconds."""
    if not config.mdns:
        found = "switched off: machines are found by LLM_ROUTER_URL and invitations only"
        return [Check(name="mDNS", state="ok", found=found)]
    choice = read()
    own = frozenset(text.partition("/")[0] for interface in present() for text in interface.addresses)
    return heard(tried(choice.multicast, own=own), system=platform.system())


def heard(trials: Sequence[Trial], *, system: str) -> list[Check]:
    """What the trials mean, a finding an interface."""
    if not trials:
        found = "there is no network to ask on"
        return [Check(name="mDNS", state="warn", found=found, fix=f"connect this machine, or {ELSEWHERE}")]
    return [_heard(trial, system) for trial in trials]


def _heard(trial: Trial, system: str) -> Check:
    where = trial.address
    if trial.failure is not None:
        reason = trial.failure.strerror or str(trial.failure)
        return Check(
            name="mDNS", state="warn", found=f"does not work on {where}: {reason}", fix=_mended(trial.failure, system)
        )
    if not trial.is_own_heard:
        found = f"what is sent on {where} does not come back: this machine drops it"
        fix = f"let UDP port {MDNS_PORT} in (see firewall), or {ELSEWHERE}"
        return Check(name="mDNS", state="warn", found=found, fix=fix)
    if not trial.machines:
        fix = (
            "if there are others: guest Wi-Fi or client isolation (access point), a firewall there, or another network "
            f"segment; {ELSEWHERE}"
        )
        found = f"sent and received on {where}, but no other machine answers"
        return Check(name="mDNS", state="ok", found=found, fix=fix)
    machines = f"{len(trial.machines)} other machine{'s' if len(trial.machines) > 1 else ''}"
    verb = "answer" if len(trial.machines) > 1 else "answers"
    ours = len(trial.peers)
    return Check(
        name="mDNS",
        state="ok",
        found=f"works on {where}: {machines} {verb}, {ours or 'none'} with llm-router",
        fix="" if ours else "a machine that should be there: start llm-router on it, and run llm-router doctor there",
    )


def _mended(failure: OSError, system: str) -> str:
    match failure.errno:
        case errno.EHOSTUNREACH if system == "Darwin":
            return LOCAL_NETWORK
        case errno.EADDRINUSE:
            return f"another program keeps UDP {MDNS_PORT} for itself: end it, or {ELSEWHERE}"
        case errno.EPERM | errno.EACCES:
            return f"a firewall of this machine refuses it: let UDP {MDNS_PORT} out and in (see firewall)"
        case _:
            return f"this network does not carry multicast (a VPN, a tunnel, no route): {ELSEWHERE}"


# -- the rest of the machine


def run_folder(folder: Path) -> list[Check]:
    """Peers of one user on one machine meet in it; only that user may look in."""
    name = "run folder"
    if not folder.exists():
        return [Check(name=name, state="ok", found=f"{folder} is made at the first start")]
    if os.name == "posix":
        info = folder.stat()
        if info.st_uid != os.getuid():
            found = f"{folder} is another user's: peers of this machine do not find each other"
            return [Check(name=name, state="warn", found=found, fix="set LLM_ROUTER_RUN_DIR to a folder of your own")]
        if info.st_mode & 0o077:
            found = f"{folder} has mode {info.st_mode & 0o777:04o}: peers of this machine do not find each other"
            return [Check(name=name, state="warn", found=found, fix=f"chmod 700 {folder}")]
    return [Check(name=name, state="ok", found=str(folder))]


def proxy() -> list[Check]:
    """A proxy that programs would send their requests to this peer through."""
    name = next((n for n in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy") if os.environ.get(n)), None)
    if name is None or urllib.request.proxy_bypass("127.0.0.1"):
        return []
    found = f"{name} is set: OpenAI clients may ask that proxy instead of the peer of this machine"
    return [Check(name="proxy", state="warn", found=found, fix="export NO_PROXY=localhost,127.0.0.1")]


# -- what the operating system says


def _wall() -> Literal["", "container", "WSL"]:
    if not sys.platform.startswith("linux"):
        return ""
    is_container = any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv"))
    if is_container or "KUBERNETES_SERVICE_HOST" in os.environ:
        # In the host's network there are real interfaces; in a network of its own only ends of pairs.
        names = [i.name for i in present() if i.is_up and not i.name.startswith("lo")]
        return "container" if names and all(_is_pair(name) for name in names) else ""
    if "microsoft" in platform.release().lower():
        return "WSL" if any(text.startswith("172.") for text in read().advertised) else ""
    return ""


def _is_pair(name: str) -> bool:
    """One end of a veth pair: its other end is another interface."""
    folder = Path("/sys/class/net") / name
    try:
        return (folder / "iflink").read_text().strip() != (folder / "ifindex").read_text().strip()
    except OSError:
        return False
