"""`llm-router ps` and `llm-router status`: what the peer says of itself."""

from __future__ import annotations

from typing import Any

import click

from mesh.cli.client import Peer
from mesh.cli.options import json_option, with_peer
from mesh.cli.output import plain, print_json, print_table, size


@click.command(help="Show the models in memory and what they do.")
@json_option
@with_peer
def ps(peer: Peer, as_json: bool) -> None:
    answer = peer.get("/api/ps")
    if as_json:
        print_json(answer)
        return
    if not answer["models"]:
        click.echo("no model is in memory; the first request loads one", err=True)
    _print_rows(answer["models"])
    if answer["models"] and answer["requests"]:
        click.echo()
    _print_rows(answer["requests"])


@click.command(help="Show how the peer is.")
@json_option
@with_peer
def status(peer: Peer, as_json: bool) -> None:
    answer = peer.get("/api/status")
    if as_json:
        print_json(answer)
        return
    width = max((len(_label(name)) for name in answer), default=0)
    for name, value in answer.items():
        click.echo(f"{_label(name):<{width}}  {_cell(name, value)}")


def _print_rows(rows: list[dict[str, Any]]) -> None:
    """A table of objects; columns that say nothing in any row are left out."""
    names = [name for name in (rows[0] if rows else ()) if any(row[name] is not None for row in rows)]
    if names:
        print_table([_label(name).upper() for name in names], [[_cell(n, row[n]) for n in names] for row in rows])


def _label(name: str) -> str:
    return name.removesuffix("_bytes").removesuffix("_s").replace("_", " ")


def _cell(name: str, value: Any) -> str:
    """A field by its name: the API carries the unit there."""
    if name.endswith("_bytes"):
        return size(value) or "-"
    if name.endswith("_s") and isinstance(value, int | float):
        return duration(value)
    if isinstance(value, dict):
        return ", ".join(f"{_label(key)} {_cell(key, part)}" for key, part in value.items()) or "-"
    return plain(value)


def duration(seconds: float) -> str:
    """Seconds as `850 ms`, `12 s`, `3 min`, `5 h`, `2 d`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for limit, unit, length in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"
