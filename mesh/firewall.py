"""Whether a firewall keeps the mesh out, and the line that lets it in: ufw, firewalld, macOS, Windows.

It is read, never changed. Most of what a firewall does can be seen by an administrator only; then the line is a hint.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh.check import Check

MDNS_PORT = 5353
COMMAND_S = 2.0
LOCAL_NETWORK = (
    "System Settings > Privacy & Security > Local Network: allow the program that starts llm-router (the terminal)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Firewall:
    """One that is on. `lets_in`: whether the peer port may be reached, if that can be seen."""

    name: str
    lets_in: bool | None = None


def firewall(tcp: Sequence[int]) -> list[Check]:
    """Whether one is on, and lets others reach the ports; the last one is the peer port."""
    system = platform.system()
    return [walls(_present(system, tcp[-1]), system=system, tcp=tcp)]


def walls(found: Firewall | None, *, system: str, tcp: Sequence[int]) -> Check:
    """What a firewall means for the mesh."""
    fix = let_in(found.name if found is not None else "", system=system, tcp=tcp)
    if found is None:
        if system == "Linux":
            return Check(name="firewall", state="ok", found="neither ufw nor firewalld is on")
        return Check(name="firewall", state="ok", found="it asks at the first start: allow private networks", fix=fix)
    if found.lets_in is False:
        what = f"{found.name} is on and keeps other machines from TCP port {tcp[-1]}"
        return Check(name="firewall", state="warn", found=what, fix=fix)
    if found.lets_in:
        return Check(name="firewall", state="ok", found=f"{found.name} is on and lets TCP port {tcp[-1]} in")
    what = f"{found.name} is on; what it lets in cannot be seen from here"
    return Check(name="firewall", state="ok", found=what, fix=f"should others not reach this machine: {fix}")


def let_in(name: str, *, system: str, tcp: Sequence[int]) -> str:
    """The line to type."""
    if name == "firewalld":
        ports = " ".join(f"--add-port={number}/tcp" for number in tcp)
        return f"sudo firewall-cmd --permanent {ports} --add-service=mdns && sudo firewall-cmd --reload"
    if system == "Darwin":
        return f"allow incoming connections for python in System Settings > Network > Firewall; {LOCAL_NETWORK}"
    if system == "Windows":
        rule = "netsh advfirewall firewall add rule dir=in action=allow profile=private name=llm-router"
        return (
            f"as administrator: {rule} protocol=TCP localport={','.join(map(str, tcp))} & "
            f"{rule} protocol=UDP localport={MDNS_PORT}"
        )
    return " && ".join(f"sudo ufw allow {port}" for port in (*(f"{n}/tcp" for n in tcp), f"{MDNS_PORT}/udp"))


def ufw_lets_in(rules: str, port: int) -> bool:
    """What ufw's user.rules say: `### tuple ### allow tcp 8081 0.0.0.0/0 any 0.0.0.0/0 in`, ranges as 8000:9000."""
    for action, protocol, ports in re.findall(r"^### tuple ### (\S+) (\S+) (\S+) ", rules, re.MULTILINE):
        ranges = [part.partition(":") for part in ports.split(",")]
        is_meant = ports == "any" or any(
            first.isdigit() and int(first) <= port <= int(last or first) for first, _, last in ranges
        )
        if is_meant and protocol in ("tcp", "any"):
            return bool(action in ("allow", "limit"))
    return False


def _present(system: str, port: int) -> Firewall | None:
    if system == "Darwin":
        said = _said("/usr/libexec/ApplicationFirewall/socketfilterfw", "--getglobalstate")
        return Firewall(name="the firewall of macOS") if "enabled" in said.lower() else None
    if system != "Linux":
        return None
    if re.search(r"^ENABLED=yes", _text(Path("/etc/ufw/ufw.conf")), re.MULTILINE | re.IGNORECASE):
        rules = _text(Path("/etc/ufw/user.rules"))
        return Firewall(name="ufw", lets_in=ufw_lets_in(rules, port) if rules else None)
    if _said("firewall-cmd", "--state").strip() == "running":
        answer = _said("firewall-cmd", f"--query-port={port}/tcp").strip()
        return Firewall(name="firewalld", lets_in={"yes": True, "no": False}.get(answer))
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _said(*argv: str) -> str:
    """What a command prints; empty without it."""
    if shutil.which(argv[0]) is None:
        return ""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
