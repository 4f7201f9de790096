"""`llm-router invite`: one line that lets another machine join, from wherever it can reach this one."""

from __future__ import annotations

import click

from mesh.cli.client import Peer
from mesh.cli.options import json_option, with_peer
from mesh.cli.output import count, duration, print_json


@click.command(
    help="Print the line that lets another machine join.\n\n"
    "Paste it there. It holds a secret: whoever has it can join, as often as --uses says, until it expires."
)
@click.option("--uses", type=click.IntRange(1, 1000), default=1, show_default=True, help="Machines it lets in.")
@click.option(
    "--hours", type=click.FloatRange(0, 8760, min_open=True), default=24.0, show_default=True, help="How long it works."
)
@json_option
@with_peer
def invite(peer: Peer, uses: int, hours: float, as_json: bool) -> None:
    answer = peer.post("/api/mesh/invite", {"uses": uses, "hours": hours})
    if as_json:
        print_json(answer)
        return
    click.echo(
        f"for {count(uses, 'machine')} within {duration(hours * 3600)}; paste it where llm-router runs, "
        "and show it to nobody else:",
        err=True,
    )
    click.echo(answer["command"])
