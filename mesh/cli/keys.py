"""`llm-router keys ...`: what programs on other machines show to be answered."""

from __future__ import annotations

import re
import time
from typing import Any

import click

from mesh.cli.client import Peer, segment
from mesh.cli.confirm import require_yes
from mesh.cli.group import Entry, LazyGroup
from mesh.cli.options import json_option, with_peer
from mesh.cli.output import harmless, plain, print_json, print_table
from mesh.cli.state import print_fields

SCOPES = ("inference", "cloud", "metrics", "admin:read", "admin")

keys = LazyGroup(
    name="keys",
    help="List, make, show and revoke API keys.\n\n"
    "Programs on other machines need one; on this machine none is needed. A key is called by its id, by what it "
    "begins with, or by its name.",
    default="list",
    entries={
        "list": Entry(f"{__name__}:list_keys", "List the keys, without their secrets (also without a command)."),
        "create": Entry(f"{__name__}:create", "Make a key, and print it: this once."),
        "show": Entry(f"{__name__}:show", "Show everything known of a key but its secret."),
        "revoke": Entry(f"{__name__}:revoke", "End a key for good, and what runs with it."),
        "ls": Entry(f"{__name__}:list_keys"),
        "rm": Entry(f"{__name__}:revoke"),
    },
)

_HEADERS = ["NAME", "KEY", "SCOPES", "MODELS", "LIMITS", "EXPIRES", "MADE BY"]
_IN = re.compile(r"([0-9]{1,6})(m|h|d|w)")
_UNITS_S = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LIMIT = click.IntRange(1, 10**12)


@click.command(name="list", help="List the keys, without their secrets (also without a command).")
@json_option
@with_peer
def list_keys(peer: Peer, as_json: bool) -> None:
    found = peer.get("/api/api-keys")
    if as_json:
        print_json({"keys": found})
        return
    print_table(_HEADERS, [[harmless(cell) for cell in _row(key)] for key in found])
    if not found:
        click.echo("no keys yet: llm-router keys create NAME", err=True)


@click.command(
    help="Make a key, and print it: this once.\n\n"
    "NAME says what it is for. Without options it may use every model of the mesh, and no cloud."
)
@click.argument("name")
@click.option("--scope", "scopes", type=click.Choice(SCOPES), multiple=True, help="What it may do; repeat for several.")
@click.option("--model", "models", metavar="PATTERN", multiple=True, help="Models it may use, such as 'hf/qwen/*'.")
@click.option("--requests-per-minute", "--rpm", type=_LIMIT, help="How many requests a minute.")
@click.option("--tokens-per-minute", "--tpm", type=_LIMIT, help="How many tokens a minute, prompt and answer.")
@click.option("--tokens-per-day", "--tpd", type=_LIMIT, help="How many tokens a day (UTC).")
@click.option("--expires", metavar="WHEN", help="30d, 12h, a time such as 2030-01-31T12:00:00Z, or unix seconds.")
@click.option(
    "--recording",
    type=click.Choice(["full", "metadata", "off"]),
    help="What history keeps of its requests; by default as the peer is set.",
)
@json_option
@with_peer
def create(
    peer: Peer,
    name: str,
    scopes: tuple[str, ...],
    models: tuple[str, ...],
    expires: str | None,
    as_json: bool,
    **plain_options: Any,
) -> None:
    body = {"name": name, "scopes": list(scopes), "models": list(models), "expires_at": _moment(expires)}
    given = {field: value for field, value in (body | plain_options).items() if value not in (None, [])}
    answer = peer.post("/api/api-keys", given)
    if as_json:
        print_json(answer)
        return
    click.echo(harmless(f"{answer['name']} may use: {', '.join(answer['scopes'])}; it is shown this once:"), err=True)
    click.echo(answer["key"])


@click.command(help="Show everything known of a key but its secret.")
@click.argument("who", metavar="KEY")
@json_option
@with_peer
def show(peer: Peer, who: str, as_json: bool) -> None:
    found = peer.get(f"/api/api-keys/{segment(who)}")
    if as_json:
        print_json(found)
    else:
        print_fields(found)


@click.command(help="End a key for good, and what runs with it.")
@click.argument("who", metavar="KEY")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_peer
def revoke(peer: Peer, who: str, yes: bool) -> None:
    found = peer.get(f"/api/api-keys/{segment(who)}")
    name = harmless(found["name"])
    consequence = f"This ends the key {name} ({found['prefix']}...) for good: whoever uses it is refused at once."
    require_yes(yes, consequence, f"Revoke {name}?")
    peer.delete(f"/api/api-keys/{segment(found['id'])}")
    click.echo(f"{name} is revoked")


def _row(key: dict[str, Any]) -> list[str]:
    limits = {"requests_per_minute": "requests/min", "tokens_per_minute": "tokens/min", "tokens_per_day": "tokens/day"}
    said = [f"{key[field]:,} {unit}" for field, unit in limits.items() if key.get(field) is not None]
    return [
        key["name"],
        f"{key['prefix']}...",
        plain(key["scopes"]),
        plain(key["models"]) if key["models"] else "all",
        ", ".join(said) or "-",
        f"{key['expires_at']} (expired)" if key["expired"] else plain(key["expires_at"]),
        plain(key["created_by"]),
    ]


def _moment(text: str | None) -> str | int | None:
    """What the API takes: unix seconds for `30d` from now and for a number, any other text as it is."""
    if text is None:
        return None
    match = _IN.fullmatch(text.strip().lower())
    if match is not None:
        return int(time.time()) + int(match[1]) * _UNITS_S[match[2]]
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else text
