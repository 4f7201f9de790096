"""The others, as the doctor sees them: the mesh of the running peer, whether its machines answer, and the seeds.

What the running peer says comes over its client port, like the command line's; the machines themselves are knocked at.
"""

from __future__ import annotations

import asyncio
import platform
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gossip.identity import uuid_of
from gossip.seeds import Found, Own, Seed, Seeds, seeds_of
from mesh import control
from mesh.check import Check
from mesh.cli.client import Peer, segment
from mesh.cli.failure import Failure
from mesh.cli.output import count, duration, harmless
from mesh.firewall import LOCAL_NETWORK
from mesh.knock import Knock, all_knocked, knocked

ANSWER_S = 3.0
DETAILS_S = 4.0
SKEW_WARN_S = 30.0
MACHINES_MAX = 64
ADDRESSES_MAX = 3

_DOCTOR = "llm-router doctor on that machine says more"
_WHY = {
    "refused": ("nothing listens", "start llm-router there; if it runs, its peer port may be another now"),
    "silent": ("no answer", "is it on? A firewall there, or client isolation of the Wi-Fi, may keep it apart"),
    "no route": ("no way there", "is it on, and on this network?"),
    "not allowed": ("a firewall of this machine stops it", "let this machine's own firewall pass it"),
    "no peer": ("what answers is no peer", "is that the address, and the peer port?"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Another machine of the mesh, as the running peer knows it. `id` is the UUID of interfaces."""

    id: str
    name: str
    state: str
    addresses: tuple[str, ...]


def peer_port_of(running: control.Control | None) -> int | None:
    """Where the running peer talks to others; None without one."""
    if running is None:
        return None
    try:
        port = Peer(running).get("/.well-known/llm-router", timeout_s=ANSWER_S).get("peer_port")
    except Failure:
        return None
    return port if isinstance(port, int) else None


def mesh(running: control.Control | None) -> list[Check]:
    """What the running peer tells of its mesh, and what its machines say when they are asked from here."""
    if running is None:
        found = "no peer runs here; while one runs, the doctor says how it sees the others"
        return [Check(name="mesh", state="ok", found=found)]
    peer = Peer(running)
    try:
        overview = peer.get("/api/mesh", timeout_s=ANSWER_S)
    except Failure as failure:
        found = f"the running peer (process {running.pid}) does not say: {failure.message}"
        return [Check(name="mesh", state="warn", found=found, fix="llm-router down, then start it again")]
    machines = _machines(peer, overview)
    knocks = all_knocked(address for machine in machines for address in machine.addresses)
    return [*standing(overview), *reached(overview, machines, knocks), *clocks(machines, knocks)]


def standing(overview: Mapping[str, Any]) -> list[Check]:
    """Pure: `/api/mesh` in findings."""
    others = [peer for peer in overview["peers"] if peer["id"] != overview["self"]["id"]]
    here = [peer for peer in others if peer["state"] in ("alive", "draining", "suspect")]
    found = f"{overview['name']}, {count(len(others) + 1, 'machine')}"
    if not others:
        fix = "should there be others: start llm-router there, on the same network or with LLM_ROUTER_URL; " + (
            "the door is open" if overview["door"]["open"] else "here, llm-router door open"
        )
        return [Check(name="mesh", state="ok", found=f"{harmless(found)}: no other yet", fix=fix), *_joining(overview)]
    checks = [Check(name="mesh", state="ok", found=harmless(f"{found}, {len(here) + 1} of them alive"))]
    versions = {peer["version"] for peer in overview["peers"] if peer["version"] and peer["state"] != "left"}
    if len(versions) > 1:
        text = f"the machines run different ones: {', '.join(sorted(versions))}"
        checks.append(Check(name="versions", state="warn", found=harmless(text), fix="update the older ones"))
    if overview.get("joins_waiting"):
        text = f"{count(overview['joins_waiting'], 'machine')} to be let in"
        checks.append(Check(name="waiting", state="ok", found=text, fix="llm-router approve"))
    return [*checks, *_joining(overview)]


def reached(overview: Mapping[str, Any], machines: Sequence[Machine], knocks: Sequence[Knock]) -> list[Check]:
    """Pure: which machines answer at their addresses; each that does not, or is not well, with the reason."""
    by_address = {knock.address: knock for knock in knocks}
    checks: list[Check] = []
    answering: list[str] = []
    for machine in machines:
        (peer,) = [peer for peer in overview["peers"] if peer["id"] == machine.id]
        answers = [by_address[address] for address in machine.addresses if address in by_address]
        good = next((knock for knock in answers if _is_of(knock, machine)), None)
        worry = _worry(peer)
        if good is not None:
            answering.append(f"{machine.name} ({good.address})")
        if worry is not None or (good is None and machine.state != "left"):
            found, fix = worry or (f"{machine.name} is in the mesh, but cannot be reached from here", "")
            if good is None and answers:
                what, fix_there = _why(answers[0])
                found, fix = f"{found}; {answers[0].address}: {what}", "; ".join(filter(None, (fix_there, fix)))
            checks.append(Check(name="machine", state="warn", found=harmless(found), fix=harmless(fix) or _DOCTOR))
    if answering:
        checks.insert(0, Check(name="reach", state="ok", found=harmless(f"answers: {', '.join(answering)}")))
    return checks


def _why(knock: Knock) -> tuple[str, str]:
    if knock.peer:
        return "another machine has that address now", "llm-router doctor there says which addresses it has"
    if knock.reason == "no route" and platform.system() == "Darwin":
        return _WHY[knock.reason][0], LOCAL_NETWORK
    return _WHY[knock.reason]


def clocks(machines: Sequence[Machine], knocks: Sequence[Knock]) -> list[Check]:
    """Pure: how far the clocks of those that answered are from this one's."""
    told: dict[str, float] = {}
    for machine in machines:
        for knock in knocks:
            if _is_of(knock, machine) and knock.ahead_s is not None:
                told.setdefault(machine.name, knock.ahead_s)
    wrong = {name: ahead for name, ahead in told.items() if abs(ahead) > SKEW_WARN_S}
    if not wrong:
        return [Check(name="clocks", state="ok", found=f"the same as {', '.join(map(harmless, told))}")] if told else []
    text = ", ".join(
        f"{harmless(name)}'s is {duration(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} this one's"
        for name, ahead in wrong.items()
    )
    fix = "set the wrong one (Linux: timedatectl set-ntp true): an open door and invitations may look expired"
    return [Check(name="clocks", state="warn", found=text, fix=fix)]


def seeds(texts: Sequence[str], own: Own, running: control.Control | None) -> list[Check]:
    """Every machine that LLM_ROUTER_URL names, asked once."""
    try:
        wanted = seeds_of(texts)
    except ValueError as error:
        return [Check(name="seeds", state="fail", found=f"LLM_ROUTER_URL: {error}", fix="correct it, or leave it out")]
    if not wanted:
        return []
    members = _members(running)
    return asyncio.run(_all_asked(wanted, own, members))


async def _all_asked(wanted: Sequence[Seed], own: Own, members: frozenset[str]) -> list[Check]:
    return await asyncio.gather(*(_asked(seed, own, members) for seed in wanted))


async def _asked(seed: Seed, own: Own, members: frozenset[str]) -> Check:
    """One seed. `members`: the ids of the running peer's mesh; empty when none runs."""
    tried: list[Knock] = []

    async def offer(found: Found) -> bool:
        tried.append(await asyncio.to_thread(knocked, found.address))
        return bool(tried[-1].peer)

    asking = Seeds((seed,), own=lambda: own, rng=random.Random(0))
    await asking.round(offer)
    answered = [knock for knock in tried if knock.peer]
    strangers = [knock for knock in answered if members and str(uuid_of(knock.peer)) not in members]
    if strangers:
        found = f"{seed}: a peer answers ({strangers[0].address}), but is not in the mesh of this one"
        fix = "on it, llm-router door open or llm-router approve; or paste a line of its llm-router invite here"
        return Check(name="seeds", state="warn", found=found, fix=fix)
    if answered:
        return Check(name="seeds", state="ok", found=f"{seed}: a peer answers ({answered[0].address})")
    if (reason := asking.reasons.get(seed)) is None:
        return Check(name="seeds", state="ok", found=f"{seed}: is this machine itself")
    if not tried:  # nobody to knock at: the name, or the client port, says why
        found = reason if reason.startswith(str(seed)) else f"{seed}: {reason}"
        return Check(name="seeds", state="warn", found=found, fix="correct LLM_ROUTER_URL, or the name")
    what, fix = _why(tried[0])
    return Check(name="seeds", state="warn", found=f"{seed}: no peer ({tried[0].address}: {what})", fix=fix)


def _members(running: control.Control | None) -> frozenset[str]:
    if running is None:
        return frozenset()
    try:
        return frozenset(peer["id"] for peer in Peer(running).get("/api/mesh", timeout_s=ANSWER_S)["peers"])
    except Failure:
        return frozenset()


def _machines(peer: Peer, overview: Mapping[str, Any]) -> list[Machine]:
    """The others with all their addresses; as many as can be asked for in a few seconds."""
    deadline = time.monotonic() + DETAILS_S
    found: list[Machine] = []
    for other in overview["peers"]:
        if other["id"] == overview["self"]["id"] or len(found) >= MACHINES_MAX or time.monotonic() > deadline:
            continue
        try:
            details = peer.get(f"/api/agents/{segment(other['id'])}", timeout_s=ANSWER_S)
        except Failure:
            continue
        addresses = tuple(details.get("addresses") or ())[:ADDRESSES_MAX]
        found.append(Machine(id=other["id"], name=other["name"], state=other["state"], addresses=addresses))
    return found


def _worry(peer: Mapping[str, Any]) -> tuple[str, str] | None:
    """What is wrong with a member as the mesh sees it, and what to do."""
    name = peer["name"]
    since = "" if peer.get("since_s") is None else f" for {duration(peer['since_s'])}"
    match peer["state"]:
        case "dead":
            return f"{name} has not answered{since}", f"gone for good: llm-router peers revoke {name}"
        case "suspect":
            return f"{name} does not answer{since}", "wait a moment: the others look whether it is there"
        case "wrong-version":
            version = peer["version"] or "another version"
            return f"{name} runs {version}, which this machine does not understand", "update the older"
        case "unknown":
            return f"{name} has not been heard of since this peer started", ""
        case _:
            return None


def _joining(overview: Mapping[str, Any]) -> list[Check]:
    joining = overview.get("joining")
    if not joining:
        return []
    if joining["state"] == "asking":
        found = f"asks to join {joining['name']}: {joining['digits']}"
        fix = f"on one of its machines, if it shows the same digits: llm-router approve {joining['digits']}"
    else:
        found = f"did not join {joining['name']}: {joining.get('reason') or joining['state']}"
        fix = "there, llm-router invite; paste the line here"
    return [Check(name="joining", state="warn", found=harmless(found), fix=harmless(fix))]


def _is_of(knock: Knock, machine: Machine) -> bool:
    return bool(knock.peer) and knock.address in machine.addresses and str(uuid_of(knock.peer)) == machine.id
