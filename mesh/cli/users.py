"""`llm-router users ...`: who may log in. Also the way back in when every administrator's password is lost."""

from __future__ import annotations

import secrets
import sys
from typing import Any

import click

from mesh.cli.client import Peer, segment
from mesh.cli.confirm import require_yes
from mesh.cli.failure import Exit, Failure
from mesh.cli.group import Entry, LazyGroup
from mesh.cli.options import json_option, with_peer
from mesh.cli.output import harmless, plain, print_json, print_table

PASSWORD_LENGTH_MIN = 8
_PASSWORD_LENGTH_MAX = 1024
_MADE_BYTES = 12
"""96 bits, 16 characters: nobody guesses them, and a person can type them."""

users = LazyGroup(
    name="users",
    help="List, add and remove users, and change what they may do.\n\n"
    "An admin may do everything, a viewer only looks. A user is called by name or id.",
    default="list",
    entries={
        "list": Entry(f"{__name__}:list_users", "List the users (also without a command)."),
        "add": Entry(f"{__name__}:add", "Make a user."),
        "passwd": Entry(f"{__name__}:passwd", "Give a user another password."),
        "reset-password": Entry(f"{__name__}:reset_password", "Make a new password for a user, and print it."),
        "role": Entry(f"{__name__}:role", "Make a user an admin or a viewer."),
        "rm": Entry(f"{__name__}:remove", "Remove a user."),
        "ls": Entry(f"{__name__}:list_users"),
        "remove": Entry(f"{__name__}:remove"),
    },
)

_ROLES = click.Choice(["admin", "viewer"])
_STDIN = click.option("--password-stdin", is_flag=True, help="Read the password from stdin instead of asking.")
_WHO = click.argument("who", metavar="USER")


@click.command(name="list", help="List the users (also without a command).")
@json_option
@with_peer
def list_users(peer: Peer, as_json: bool) -> None:
    found = peer.get("/api/users")
    if as_json:
        print_json({"users": found})
        return
    rows = [[plain(user[name]) for name in ("username", "role", "created_at", "created_by")] for user in found]
    print_table(["NAME", "ROLE", "SINCE", "MADE BY"], [[harmless(cell) for cell in row] for row in rows])
    if not any(user["role"] == "admin" for user in found):
        click.echo("no administrator yet: llm-router users add NAME --role admin", err=True)


@click.command(help="Make a user.\n\nThe password is asked for: it is never an argument, which others would see.")
@click.argument("username", metavar="NAME")
@click.option("--role", "role_name", type=_ROLES, default="viewer", show_default=True, help="What the user may do.")
@_STDIN
@json_option
@with_peer
def add(peer: Peer, username: str, role_name: str, password_stdin: bool, as_json: bool) -> None:
    body = {"username": username, "password": _password(password_stdin), "role": role_name}
    answer = peer.post("/api/users", body)
    if as_json:
        print_json(answer)
    else:
        click.echo(harmless(f"{answer['username']} may log in as {answer['role']}"))


@click.command(help="Give a user another password.\n\nThat ends the user's logins.")
@_WHO
@_STDIN
@with_peer
def passwd(peer: Peer, who: str, password_stdin: bool) -> None:
    found = _found(peer, who)
    peer.put(_path(found), {"password": _password(password_stdin)})
    click.echo(harmless(f"{found['username']} has a new password; its logins have ended"))


@click.command(
    name="reset-password",
    help="Make a new password for a user, and print it.\n\n"
    "For a password that was lost, an administrator's too: this needs nobody's login, only this machine.",
)
@_WHO
@json_option
@with_peer
def reset_password(peer: Peer, who: str, as_json: bool) -> None:
    found = _found(peer, who)
    password = secrets.token_urlsafe(_MADE_BYTES)
    peer.put(_path(found), {"password": password})
    if as_json:
        print_json({"username": found["username"], "password": password})
        return
    click.echo(harmless(f"the new password of {found['username']}, shown this once; its logins have ended:"), err=True)
    click.echo(password)


@click.command(help="Make a user an admin or a viewer.\n\nThat ends the user's logins.")
@_WHO
@click.argument("role_name", metavar="admin|viewer", type=_ROLES)
@with_peer
def role(peer: Peer, who: str, role_name: str) -> None:
    answer = peer.put(_path(_found(peer, who)), {"role": role_name})
    click.echo(harmless(f"{answer['username']} is {answer['role']} now"))


@click.command(name="rm", help="Remove a user.\n\nThat ends the user's logins.")
@_WHO
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_peer
def remove(peer: Peer, who: str, yes: bool) -> None:
    found = _found(peer, who)
    name = harmless(found["username"])
    require_yes(yes, f"This removes the user {name} ({found['role']}) and ends its logins.", f"Remove {name}?")
    peer.delete(_path(found))
    click.echo(f"{name} is no user any more")


def _found(peer: Peer, who: str) -> dict[str, Any]:
    user: dict[str, Any] = peer.get(f"/api/users/{segment(who)}")
    return user


def _path(user: dict[str, Any]) -> str:
    return f"/api/users/{segment(user['id'])}"


def _password(from_stdin: bool) -> str:
    """A new password. Raises Failure where there is nobody to ask, and for one that cannot be."""
    if from_stdin:
        password = sys.stdin.readline(_PASSWORD_LENGTH_MAX + 2).rstrip("\r\n")
    elif sys.stdin.isatty():
        password = click.prompt("new password", hide_input=True, confirmation_prompt="once more", err=True)
    else:
        raise Failure("there is nobody to ask for the password", fix="--password-stdin", code=Exit.USAGE)
    if len(password) < PASSWORD_LENGTH_MIN:
        raise Failure(f"a password has at least {PASSWORD_LENGTH_MIN} characters", code=Exit.USAGE)
    return str(password)
