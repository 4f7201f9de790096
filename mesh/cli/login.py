"""`llm-router login`, `logout`, `whoami`: a user's token, for scripts and for the peer of another machine.

On its own machine the command line is an administrator already, by control.json. The token goes to stdout and nothing
else does; it is kept nowhere: `LLM_ROUTER_TOKEN` hands it to the other two commands.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import urllib.parse

import click

from mesh.cli.client import Peer, connect, elsewhere
from mesh.cli.failure import Exit, Failure
from mesh.cli.options import json_option, with_settings
from mesh.cli.output import duration, harmless, print_json
from mesh.config import Loaded
from mesh.hosts import is_loopback

TOKEN_VARIABLE = "LLM_ROUTER_TOKEN"  # noqa: S105 - its name
_PASSWORD_LENGTH_MAX = 4096

url_option = click.option("--url", help="The peer to ask, as http(s)://host:port; this machine's when left out.")
fingerprint_option = click.option(
    "--fingerprint", default="", help="SHA-256 of that peer's certificate, if no authority signed it."
)


@click.command(
    help="Log in, and print the token.\n\n"
    f"Use it as: export {TOKEN_VARIABLE}=$(llm-router login --url https://attic.local:8080), or in scripts as "
    "Authorization: Bearer. It is good for 12 hours."
)
@click.option("--username", "-u", help="Who; asked for when left out.")
@click.option("--password-stdin", is_flag=True, help="Read the password from stdin instead of asking.")
@url_option
@fingerprint_option
@json_option
@with_settings
def login(
    loaded: Loaded, username: str | None, password_stdin: bool, url: str | None, fingerprint: str, as_json: bool
) -> None:
    peer = _peer(loaded, url, fingerprint, token="")
    parts = urllib.parse.urlsplit(peer.control.url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        click.echo(f"warning: the password goes over the network unencrypted, to {peer.control.url}", err=True)
    name, password = _credentials(username, password_stdin)
    answer = peer.post("/api/auth/login", {"username": name, "password": password, "token": True})
    try:
        token, user, expires_in = str(answer["token"]), answer["user"], float(answer["expires_in"])
        who = f"{user['username']} ({user['role']})"
    except (KeyError, TypeError, ValueError):
        raise Failure(f"{peer.control.url} answers without a token", code=Exit.UNREACHABLE) from None
    click.echo(harmless(f"logged in as {who} for {duration(expires_in)}"), err=True)
    if as_json:
        print_json(answer)
    else:
        click.echo(harmless(token))


@click.command(help=f"End a login, on every machine of the mesh.\n\nIt is the one whose token {TOKEN_VARIABLE} holds.")
@url_option
@fingerprint_option
@with_settings
def logout(loaded: Loaded, url: str | None, fingerprint: str) -> None:
    peer = _peer(loaded, url, fingerprint, token=_token())
    peer.post("/api/auth/logout", {})
    click.echo("logged out; the token is good for nothing now")


@click.command(
    help=f"Show who is logged in.\n\nIt is the user whose token {TOKEN_VARIABLE} holds; without one, this command line."
)
@url_option
@fingerprint_option
@json_option
@with_settings
def whoami(loaded: Loaded, url: str | None, fingerprint: str, as_json: bool) -> None:
    is_token_given = bool(os.environ.get(TOKEN_VARIABLE, "").strip())
    own = url is None and not is_token_given
    peer = connect(loaded.config.data_dir) if own else _peer(loaded, url, fingerprint, token=_token())
    answer = peer.get("/api/auth/me")
    if as_json:
        print_json(answer)
    elif user := answer.get("user"):
        click.echo(harmless(f"{user['username']} ({user['role']})"))
    else:
        click.echo("the command line of this machine, which may do everything")


def _peer(loaded: Loaded, url: str | None, fingerprint: str, *, token: str) -> Peer:
    """The peer that is meant, spoken to with this token and no other."""
    if fingerprint and not (url or "").startswith("https://"):
        raise Failure("--fingerprint goes with an https address: --url https://...", code=Exit.USAGE)
    if url is not None:
        return elsewhere(url, token=token, fingerprint=_hex(fingerprint))
    return Peer(dataclasses.replace(connect(loaded.config.data_dir).control, token=token))


def _hex(fingerprint: str) -> str:
    """64 digits of what a person pasted. Raises Failure for anything else: it must not come to mean "unchecked"."""
    digits = fingerprint.strip().replace(":", "").replace(" ", "").lower()
    if fingerprint and (len(digits) != 64 or not set(digits) <= set("0123456789abcdef")):
        raise Failure(f"{fingerprint[:200]!r} is no SHA-256: it has 64 hex digits", code=Exit.USAGE)
    return digits


def _token() -> str:
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        raise Failure(
            "there is no login to use",
            why=f"{TOKEN_VARIABLE} is not set",
            fix=f"export {TOKEN_VARIABLE}=$(llm-router login)",
            code=Exit.NOT_ALLOWED,
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise Failure(f"{TOKEN_VARIABLE} does not hold a token", code=Exit.USAGE)
    return token


def _credentials(username: str | None, from_stdin: bool) -> tuple[str, str]:
    """Name and password, which is never an argument: others on the machine see those."""
    if from_stdin:
        if username is None:
            raise Failure("--password-stdin needs --username", code=Exit.USAGE)
        password = sys.stdin.readline(_PASSWORD_LENGTH_MAX + 2).rstrip("\r\n")
    elif sys.stdin.isatty():
        username = username if username is not None else click.prompt("username", default="admin", err=True)
        password = click.prompt("password", hide_input=True, err=True)
    else:
        raise Failure("there is nobody to ask for the password", fix="--password-stdin", code=Exit.USAGE)
    if not password or len(password) > _PASSWORD_LENGTH_MAX:
        raise Failure(f"a password has 1 to {_PASSWORD_LENGTH_MAX} characters", code=Exit.USAGE)
    return str(username), str(password)
