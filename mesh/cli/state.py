"""`llm-router ps` and `llm-router status`: what the peer says of itself, and of its mesh."""

from __future__ import annotations

import time
from typing import Any

import click

from mesh.cli.client import Peer
from mesh.cli.failure import Exit, Failure
from mesh.cli.options import json_option, with_peer
from mesh.cli.output import count, duration, harmless, plain, print_json, print_table, size


@click.command(help="Show the models in memory and what they do.")
@click.option("--all", "is_all", is_flag=True, help="Of every machine of the mesh.")
@json_option
@with_peer
def ps(peer: Peer, is_all: bool, as_json: bool) -> None:
    answer = {"machines": peer.get("/api/agents")} if is_all else peer.get("/api/ps")
    if as_json:
        print_json(answer)
    elif is_all:
        _print_machines(answer["machines"])
    else:
        _print_work(answer)


@click.command(help="Show how the peer is.")
@json_option
@with_peer
def status(peer: Peer, as_json: bool) -> None:
    answer, mesh = peer.get("/api/status"), overview(peer)
    if as_json:
        print_json(answer | {"mesh": mesh})
    else:
        print_fields(answer, more={} if mesh is None else mesh_fields(mesh))


def overview(peer: Peer) -> dict[str, Any] | None:
    """The mesh as `/api/mesh` has it; None when the peer has none."""
    try:
        answer = peer.get("/api/mesh")
    except Failure as failure:
        if failure.exit_code != Exit.NOT_FOUND:
            raise
        return None
    return dict(answer)


def mesh_fields(mesh: dict[str, Any]) -> dict[str, str]:
    """The mesh in a few lines, by label; what waits for somebody comes with the command that answers it."""
    coordinator = mesh["coordinator"]
    guests = [peer["name"] for peer in mesh["peers"] if peer.get("is_guest")]
    fields = {
        "mesh": _mesh_text(mesh),
        "coordinator": f"{coordinator['name']}, term {mesh['term']}" if coordinator else "none yet",
        "door": door_text(mesh["door"]),
    }
    if mesh.get("joins_waiting"):
        fields["waiting"] = f"{count(mesh['joins_waiting'], 'machine')} to be let in: llm-router approve"
    if guests:
        fields["guests"] = f"{', '.join(guests)}; if yours: llm-router peers trust NAME"
    if (joining := mesh.get("joining")) is not None:
        fields["joining"] = _joining_text(joining)
    return fields


def door_text(door: dict[str, Any]) -> str:
    """`open for another 7 min: ...`, or shut, and what that means for a new machine."""
    if door["open"]:
        return f"open for another {duration(door['seconds_left'])}: machines of this network join by themselves"
    return "shut: a new machine asks, and llm-router approve lets it in"


def print_fields(answer: dict[str, Any], more: dict[str, str] | None = None) -> None:
    """A line a field: its label, and its value in the unit that its name says. `more` are texts."""
    rows = {_label(name): _cell(name, value) for name, value in answer.items()} | (more or {})
    width = max((len(label) for label in rows), default=0)
    for label, text in rows.items():
        click.echo(f"{label:<{width}}  {harmless(text)}")


def _print_work(answer: dict[str, Any]) -> None:
    if not answer["models"]:
        click.echo("no model is in memory; the first request loads one", err=True)
    _print_rows(answer["models"])
    if answer["models"] and answer["requests"]:
        click.echo()
    _print_rows(answer["requests"])


def _print_machines(agents: list[dict[str, Any]]) -> None:
    rows = [
        [
            agent.get("custom_name") or agent["machine_name"],
            agent.get("state") or agent["status"],
            plain(agent.get("loaded_models")),
            plain(agent.get("active_requests")),
            plain(agent.get("queued")),
        ]
        for agent in agents
    ]
    print_table(["MACHINE", "STATE", "MODELS IN MEMORY", "ACTIVE", "QUEUED"], rows, right=["ACTIVE", "QUEUED"])


def _mesh_text(mesh: dict[str, Any]) -> str:
    if len(mesh["peers"]) == 1:
        return f"{mesh['name']}, no other machine yet"
    return f"{mesh['name']}, {count(len(mesh['peers']), 'machine')} ({_states(mesh['peers'])})"


def _states(peers: list[dict[str, Any]]) -> str:
    """`2 alive, 1 suspect`, in the order in which they first come."""
    states = [peer["state"] for peer in peers]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _joining_text(joining: dict[str, Any]) -> str:
    if joining["state"] == "asking":
        digits = joining["digits"]
        return f"{joining['name']}: {digits}; if it shows the same digits, say there: llm-router approve {digits}"
    return f"{joining['name']}, in vain: {joining.get('reason') or joining['state']}"


def _print_rows(rows: list[dict[str, Any]]) -> None:
    """A table of objects; columns that say nothing in any row are left out."""
    names = [name for name in (rows[0] if rows else ()) if any(row[name] is not None for row in rows)]
    if names:
        print_table([_label(name).upper() for name in names], [[_cell(n, row[n]) for n in names] for row in rows])


def _label(name: str) -> str:
    return name.removesuffix("_bytes").removesuffix("_s").removesuffix("_percent").replace("_", " ")


def _cell(name: str, value: Any) -> str:
    """A field by its name: the API carries the unit there."""
    if name.endswith("_bytes"):
        return size(value) or "-"
    if name.endswith("_s") and isinstance(value, int | float):
        return duration(value)
    if name.endswith("_percent") and isinstance(value, int | float):
        return f"{value:.0f} %"
    if name.endswith("_at") and isinstance(value, int | float):
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(value))
    if isinstance(value, dict):
        return ", ".join(f"{_label(key)} {_cell(key, part)}" for key, part in value.items()) or "-"
    return plain(value)
