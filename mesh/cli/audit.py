"""`llm-router audit ...`: who did what in the mesh."""

from __future__ import annotations

from typing import Any

import click

from mesh.cli.client import Peer
from mesh.cli.group import Entry, LazyGroup
from mesh.cli.options import json_option, with_peer
from mesh.cli.output import plain, print_json, print_table
from mesh.cli.paging import as_moment, fetched, footer, local_time, with_pages

_HEADERS = ["TIME", "WHO", "FROM", "ACTION", "TARGET", "DETAIL"]

audit = LazyGroup(
    name="audit",
    help="List who did what: logins, joins, keys, settings, looks at the history.",
    default="list",
    entries={
        "list": Entry(f"{__name__}:list_entries", "List entries, the newest first (also without a command)."),
        "ls": Entry(f"{__name__}:list_entries"),
    },
)


@click.command(name="list", help="List entries, the newest first (also without a command).")
@click.option("--action", metavar="TEXT", help="What was done, such as key.create.")
@click.option("--actor", metavar="TEXT", help="Who did it.")
@click.option("--since", metavar="TIME", callback=as_moment, help="Not before: 10m, 2026-11-23 14:00, ...")
@click.option("--until", metavar="TIME", callback=as_moment, help="Before.")
@with_pages
@json_option
@with_peer
def list_entries(
    peer: Peer,
    action: str | None,
    actor: str | None,
    since: str | None,
    until: str | None,
    page: int,
    limit: int,
    as_json: bool,
) -> None:
    query = {"action": action, "actor": actor, "from": since, "to": until}
    answer = fetched(peer, "/api/audit", query, field="entries", page=page, limit=limit)
    if as_json:
        print_json(answer)
        return
    entries = answer["entries"]
    if entries:
        print_table(_HEADERS, [_row(entry) for entry in entries])
    click.echo(footer(answer, len(entries), "entry").replace("entrys", "entries"), err=True)


def _row(entry: dict[str, Any]) -> list[str]:
    kind = entry.get("actor_kind")
    who = plain(entry.get("actor"))
    return [
        local_time(entry.get("at", entry.get("timestamp"))),
        f"{who} ({kind})" if kind and kind != who else who,
        plain(entry.get("ip")),
        plain(entry.get("action")),
        plain(entry.get("target")),
        plain(entry.get("detail")),
    ]
