"""`llm-router join` and `llm-router leave`: which mesh this machine belongs to."""

from __future__ import annotations

import time
from typing import Any, NoReturn

import click

from mesh.cli.client import Peer
from mesh.cli.confirm import require_yes
from mesh.cli.failure import Exit, Failure
from mesh.cli.options import json_option, with_peer
from mesh.cli.output import count, harmless, print_json

_POLL_S = 0.5


@click.command(
    help="Join the mesh of another machine.\n\n"
    "WHERE is what `llm-router invite` printed there, or the address of one of its machines, such as attic.local or "
    "192.168.1.20:8080. By address this machine asks: it shows six digits, and somebody approves them there."
)
@click.argument("where")
@click.option("--no-wait", is_flag=True, help="Do not wait for the approval.")
@click.option("--bring-history", is_flag=True, help="Also share the requests that were recorded here before.")
@json_option
@with_peer
def join(peer: Peer, where: str, no_wait: bool, bring_history: bool, as_json: bool) -> None:
    before = peer.get("/api/mesh")["mesh_id"]
    answer = peer.post("/api/mesh/join", {"to": where, **({"bring_history": True} if bring_history else {})})
    if answer["state"] == "asking":
        found = f"Found mesh {answer['name']} ({count(answer['members'], 'machine')})."
        click.echo(harmless(f"{found} Asking to join: {answer['digits']}"), err=True)
        click.echo(f"if one of them shows the same digits, say there: llm-router approve {answer['digits']}", err=True)
        if not no_wait:
            answer = _awaited(peer, before, answer, where)
    if as_json:
        print_json(answer)
    elif answer["state"] == "joined":
        click.echo(harmless(f"joined mesh {answer['name']}, {count(answer['members'], 'machine')}: llm-router peers"))


@click.command(
    help="Leave the mesh, and be one of one machine again.\n\n"
    "The others stop sending it requests. It keeps its models and goes on serving itself."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_peer
def leave(peer: Peer, yes: bool) -> None:
    mesh = peer.get("/api/mesh")
    others = len(mesh["peers"]) - 1
    if not others:
        raise Failure("this machine is alone in its mesh: there is none to leave")
    consequence = (
        f"This machine leaves mesh {mesh['name']} and its {count(others, 'other machine')}: neither serves the other "
        "any more. It keeps its models; to come back it must be let in again."
    )
    require_yes(yes, harmless(consequence), "Leave?")
    answer = peer.post("/api/mesh/leave", {})
    click.echo(harmless(f"left mesh {answer['name']}"))


def _awaited(peer: Peer, before: str, asked: dict[str, Any], where: str) -> dict[str, Any]:
    """What became of the request, in the shape of the answer to a join. Raises Failure when it is not let in."""
    try:
        while True:
            mesh = peer.get("/api/mesh")
            joining = mesh.get("joining")
            if joining is None and mesh["mesh_id"] != before:
                return {"state": "joined", "name": mesh["name"], "members": len(mesh["peers"])}
            if joining is None or joining["state"] != "asking":
                _refuse(joining or {"state": "failed"}, asked["name"], where)
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        click.echo("the request stays open: llm-router status shows it", err=True)
        raise


def _refuse(joining: dict[str, Any], name: str, where: str) -> NoReturn:
    again = f"llm-router join {where}"
    match joining["state"]:
        case "denied":
            why = "a machine that was denied cannot ask again for an hour; a line of llm-router invite still lets it in"
            raise Failure(f"mesh {name} denied the request", why=why, code=Exit.NOT_ALLOWED)
        case "expired":
            raise Failure(f"nobody of mesh {name} approved in time", fix=again)
        case _:
            raise Failure(f"this machine did not join mesh {name}", why=str(joining.get("reason") or ""), fix=again)
