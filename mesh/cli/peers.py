"""`llm-router peers ...`: the machines of the mesh."""

from __future__ import annotations

from typing import Any

import click

from mesh.cli.client import Peer, segment
from mesh.cli.completion import complete_peer
from mesh.cli.confirm import require_yes
from mesh.cli.group import Entry, LazyGroup
from mesh.cli.options import json_option, with_peer
from mesh.cli.output import count, duration, harmless, plain, print_json, print_table
from mesh.cli.state import door_text, print_fields

peers = LazyGroup(
    name="peers",
    help="List, show, rename, trust and revoke the machines of the mesh.\n\n"
    "A machine is called by its name, its id, or the first six or more characters of its id.",
    default="list",
    entries={
        "list": Entry(f"{__name__}:list_peers", "List the machines of the mesh (also without a command)."),
        "show": Entry(f"{__name__}:show", "Show everything known of a machine."),
        "rename": Entry(f"{__name__}:rename", "Call a machine something else."),
        "trust": Entry(f"{__name__}:trust", "Make a guest a full member."),
        "revoke": Entry(f"{__name__}:revoke", "Put a machine out of the mesh for good."),
        "ls": Entry(f"{__name__}:list_peers"),
        "remove": Entry(f"{__name__}:revoke"),
    },
)

_HEADERS = ["NAME", "STATE", "FOR", "MODELS", "ACTIVE", "QUEUED", "VERSION", "NOTE"]


@click.command(name="list", help="List the machines of the mesh (also without a command).")
@json_option
@with_peer
def list_peers(peer: Peer, as_json: bool) -> None:
    mesh = peer.get("/api/mesh")
    if as_json:
        print_json({"peers": mesh["peers"]})
        return
    print_table(_HEADERS, [_row(found, mesh) for found in mesh["peers"]], right=["MODELS", "ACTIVE", "QUEUED"])
    for line in _hints(mesh):
        click.echo(harmless(line), err=True)


@click.command(help="Show everything known of a machine.")
@click.argument("who", metavar="MACHINE", shell_complete=complete_peer)
@json_option
@with_peer
def show(peer: Peer, who: str, as_json: bool) -> None:
    found = peer.get(f"/api/agents/{segment(who)}")
    if as_json:
        print_json(found)
    else:
        print_fields(_details(found))


@click.command(help="Call a machine something else.")
@click.argument("who", metavar="MACHINE", shell_complete=complete_peer)
@click.argument("name")
@with_peer
def rename(peer: Peer, who: str, name: str) -> None:
    answer = peer.post(f"/api/mesh/peers/{segment(who)}/rename", {"name": name})
    click.echo(harmless(f"{who} is now called {answer['name']}"))


@click.command(
    help="Make a guest a full member.\n\n"
    "A guest serves and is served; a member may also let machines in, revoke them, and coordinate."
)
@click.argument("who", metavar="MACHINE", shell_complete=complete_peer)
@with_peer
def trust(peer: Peer, who: str) -> None:
    answer = peer.post(f"/api/mesh/peers/{segment(who)}/trust", {})
    click.echo(harmless(f"{answer['name']} is a full member now"))


@click.command(
    help="Put a machine out of the mesh for good.\n\n"
    "It gets no more requests and sees nothing of the mesh. To come back it needs a new identity "
    "(`llm-router identity reset` there) and somebody who lets it in."
)
@click.argument("who", metavar="MACHINE", shell_complete=complete_peer)
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_peer
def revoke(peer: Peer, who: str, yes: bool) -> None:
    found = peer.get(f"/api/agents/{segment(who)}")
    consequence = (
        f"This puts {found['name']} (id {found['id']}) out of the mesh for good: its requests are finished elsewhere, "
        "and it comes back only with a new identity, as a new machine."
    )
    require_yes(yes, harmless(consequence), harmless(f"Revoke {found['name']}?"))
    answer = peer.post(f"/api/mesh/peers/{segment(found['id'])}/revoke", {})
    click.echo(harmless(f"{answer['name']} is out of the mesh"))


def _details(found: dict[str, Any]) -> dict[str, Any]:
    """What a person reads of it, in that order, under names that are told apart without their units."""
    named = {
        "cpu_percent": "cpu_used_percent",
        "gpu_percent": "gpu_used_percent",
        "memory_percent": "memory_used_percent",
        "since_s": "for_s",
        "joined_by": "came_by",
        "added_by": "let_in_by",
    }
    first = ("name", "state", "since_s", "is_guest", "joined_by", "added_by", "joined_at", "addresses", "is_connected")
    left_out = ("agent_id", "node_id", "ip_address", "incarnation")
    order = [*(name for name in first if name in found), *(name for name in found if name not in first)]
    return {named.get(name, name): found[name] for name in order if name not in left_out}


def _row(found: dict[str, Any], mesh: dict[str, Any]) -> list[str]:
    models = found.get("models")
    since_s = found.get("since_s")
    return [
        found["name"],
        found["state"],
        "-" if since_s is None else duration(max(1.0, since_s)),
        plain(len(models) if isinstance(models, list) else models),
        plain(found.get("active_requests")),
        plain(found.get("queued")),
        plain(found.get("version")),
        ", ".join(_notes(found, mesh)),
    ]


def _notes(found: dict[str, Any], mesh: dict[str, Any]) -> list[str]:
    coordinator = mesh["coordinator"] or {}
    claims = {
        "this machine": found["id"] == mesh["self"]["id"],
        "coordinator": found["id"] == coordinator.get("id"),
        "guest": bool(found.get("is_guest")),
    }
    return [note for note, is_so in claims.items() if is_so]


def _hints(mesh: dict[str, Any]) -> list[str]:
    """What a person may want to do next."""
    lines = []
    if mesh.get("joins_waiting"):
        lines.append(f"{count(mesh['joins_waiting'], 'machine')} to be let in: llm-router approve")
    guests = [found["name"] for found in mesh["peers"] if found.get("is_guest")]
    if guests:
        lines.append(f"guests: {', '.join(guests)}; if yours: llm-router peers trust NAME")
    if len(mesh["peers"]) == 1:
        lines.append(
            "no other machine yet: start llm-router on others of this network, or invite one: llm-router invite"
        )
        lines.append("to join a mesh that is there: llm-router join ADDRESS, of any of its machines")
        lines.append(f"the door is {door_text(mesh['door'])}")
    return lines
