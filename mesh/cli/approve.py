"""`llm-router approve` and `llm-router deny`: the answer to a machine that asks to join, by the digits it shows."""

from __future__ import annotations

import click

from mesh.cli.client import Peer
from mesh.cli.options import json_option, with_peer
from mesh.cli.output import duration, harmless, print_json, print_table

_WHO = click.argument("who", nargs=-1, metavar="[DIGITS]")


@click.command(
    help="Let a machine in that asks to join.\n\n"
    "DIGITS are the six that the new machine shows, such as 481 920: they must be the same here. "
    "Without them, those that ask are listed."
)
@_WHO
@json_option
@with_peer
def approve(peer: Peer, who: tuple[str, ...], as_json: bool) -> None:
    if not who:
        _list(peer, as_json)
        return
    answer = peer.post("/api/mesh/approve", {"who": " ".join(who)})
    if as_json:
        print_json(answer)
    else:
        click.echo(harmless(f"{answer['name']} is in the mesh"))


@click.command(
    help="Deny a machine that asks to join.\n\n"
    "It cannot ask again for an hour. Without DIGITS, those that ask are listed."
)
@_WHO
@json_option
@with_peer
def deny(peer: Peer, who: tuple[str, ...], as_json: bool) -> None:
    if not who:
        _list(peer, as_json)
        return
    answer = peer.post("/api/mesh/deny", {"who": " ".join(who)})
    if as_json:
        print_json(answer)
    else:
        click.echo(harmless(f"{answer['name']} is denied; it cannot ask again for an hour"))


def _list(peer: Peer, as_json: bool) -> None:
    joins = peer.get("/api/mesh/joins")
    if as_json:
        print_json({"joins": joins})
    elif not joins:
        click.echo("no machine asks to join", err=True)
    else:
        rows = [[join["name"], join["digits"], join["address"], duration(join["seconds_left"])] for join in joins]
        print_table(["MACHINE", "DIGITS", "ADDRESS", "TIME LEFT"], rows)
        hint = "does the machine show the same digits? llm-router approve DIGITS, else llm-router deny DIGITS"
        click.echo(hint, err=True)
