"""`llm-router door ...`: whether machines of this network join the mesh by themselves."""

from __future__ import annotations

from typing import Any

import click

from mesh.cli.client import Peer
from mesh.cli.group import Entry, LazyGroup
from mesh.cli.options import json_option, with_peer
from mesh.cli.output import print_json
from mesh.cli.state import door_text

door = LazyGroup(
    name="door",
    help="Let new machines of this network join by themselves for a while, or not.\n\n"
    "While the door is open, a machine of the same network that starts llm-router is in without a question.",
    default="show",
    entries={
        "show": Entry(f"{__name__}:show", "Show whether the door is open (also without a command)."),
        "open": Entry(f"{__name__}:open_door", "Open the door for some minutes."),
        "close": Entry(f"{__name__}:close_door", "Shut the door now."),
    },
)


@click.command(help="Show whether the door is open (also without a command).")
@json_option
@with_peer
def show(peer: Peer, as_json: bool) -> None:
    _print(peer.get("/api/mesh")["door"], as_json)


@click.command(name="open", help="Open the door for some minutes.")
@click.option(
    "--minutes", type=click.FloatRange(0, 1440, min_open=True), default=10.0, show_default=True, help="How long."
)
@json_option
@with_peer
def open_door(peer: Peer, minutes: float, as_json: bool) -> None:
    _print(peer.post("/api/mesh/door", {"minutes": minutes}), as_json)
    if not as_json:
        click.echo("start llm-router on the new machines now; llm-router door close shuts it again", err=True)
        click.echo("a machine on which it ran before, alone: llm-router join ADDRESS there", err=True)


@click.command(name="close", help="Shut the door now.")
@json_option
@with_peer
def close_door(peer: Peer, as_json: bool) -> None:
    _print(peer.post("/api/mesh/door", {"minutes": 0}), as_json)


def _print(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        click.echo(f"the door is {door_text(found)}")
