"""`llm-router backend ...`: servers of OpenAI's API that are no peers, such as Ollama, LM Studio, vLLM."""

from __future__ import annotations

import urllib.parse
from typing import Any

import click

from mesh.cli.client import Peer, segment
from mesh.cli.completion import complete_backend
from mesh.cli.confirm import require_yes
from mesh.cli.failure import Exit, Failure
from mesh.cli.group import Entry, LazyGroup
from mesh.cli.options import json_option, with_peer
from mesh.cli.output import count, harmless, plain, print_json, print_table

backend = LazyGroup(
    name="backend",
    help="Use Ollama, LM Studio, vLLM and the like, here or elsewhere.\n\n"
    "Every server of OpenAI's API may be used; its models are then served by every peer of the mesh.",
    default="list",
    entries={
        "list": Entry(f"{__name__}:list_backends", "List the servers that are used (also without a command)."),
        "add": Entry(f"{__name__}:add", "Use a server, on this machine or on another one."),
        "remove": Entry(f"{__name__}:remove", "Use a server no more."),
        "disable": Entry(f"{__name__}:disable", "Send a server no requests for now."),
        "enable": Entry(f"{__name__}:enable", "Send a server requests again."),
        "ls": Entry(f"{__name__}:list_backends"),
        "rm": Entry(f"{__name__}:remove"),
    },
)

_HEADERS = ["NAME", "STATE", "MODELS", "ACTIVE", "ADDRESS", "GPU"]
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@click.command(name="list", help="List the servers that are used (also without a command).")
@json_option
@with_peer
def list_backends(peer: Peer, as_json: bool) -> None:
    found = backends(peer)
    if as_json:
        print_json({"backends": found})
        return
    print_table(_HEADERS, [_row(server) for server in found], right=["MODELS", "ACTIVE"])
    if not found:
        click.echo("no servers yet; one on this machine: llm-router backend add http://127.0.0.1:11434", err=True)


@click.command(
    help="Use a server, on this machine or on another one.\n\n"
    "URL is where it answers, such as http://127.0.0.1:11434 or http://192.168.1.20:8000. A server on this machine is "
    "asked by this machine only, for the whole mesh. A server that sends heartbeats needs the token that is printed; "
    "others are looked at now and then. The same name and port again renews the token."
)
@click.argument("url")
@click.option("--name", help="What it is called; by default its host and port.")
@click.option("--gpu", "gpus", metavar="MODEL", multiple=True, help="A GPU that it has; repeat it for several.")
@click.option("--no-gpu", "is_without_gpu", is_flag=True, help="It has none (LLM_NODE_ALLOW_NO_GPU must be true).")
@json_option
@with_peer
def add(peer: Peer, url: str, name: str | None, gpus: tuple[str, ...], is_without_gpu: bool, as_json: bool) -> None:
    if gpus and is_without_gpu:
        raise click.UsageError("--gpu and --no-gpu exclude each other.")
    body: dict[str, Any] = {"base_url": url, "machine_name": name or _name(peer, url)}
    if gpus:
        body |= {
            "gpu_available": True,
            "gpu_devices": [{"model": g, "count": gpus.count(g)} for g in dict.fromkeys(gpus)],
        }
    elif is_without_gpu:
        body |= {"gpu_available": False, "gpu_devices": []}
    answer = peer.post("/api/backends", body)
    if as_json:
        print_json(answer)
        return
    what = "is used" if answer["status"] == "registered" else "is known, and has a new token"
    models = answer.get("models") or []
    click.echo(harmless(f"{body['machine_name']} {what}: {count(len(models), 'model')}"))
    for model in models[:10]:
        click.echo(harmless(f"  {model}"))
    if len(models) > 10:
        click.echo(f"  and {len(models) - 10} more: llm-router model list")
    click.echo(f"its token, if it sends heartbeats: {answer['agent_token']}", err=True)


@click.command(help="Use a server no more.\n\nIts token is void, and what people wrote about it is forgotten.")
@click.argument("who", metavar="SERVER", shell_complete=complete_backend)
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_peer
def remove(peer: Peer, who: str, yes: bool) -> None:
    found = _found(peer, who)
    name = harmless(_called(found))
    require_yes(yes, f"This forgets {name} (id {found['id']}) and its token.", f"Remove {name}?")
    peer.delete(f"/api/agents/{segment(found['id'])}")
    click.echo(f"{name} is used no more")


@click.command(help="Send a server no requests for now.")
@click.argument("who", metavar="SERVER", shell_complete=complete_backend)
@with_peer
def disable(peer: Peer, who: str) -> None:
    found = _found(peer, who)
    peer.post(f"/api/agents/{segment(found['id'])}/disconnect", {})
    name = harmless(_called(found))
    click.echo(f"{name} gets no more requests; to undo: llm-router backend enable {name}")


@click.command(help="Send a server requests again.")
@click.argument("who", metavar="SERVER", shell_complete=complete_backend)
@with_peer
def enable(peer: Peer, who: str) -> None:
    found = _found(peer, who)
    peer.post(f"/api/agents/{segment(found['id'])}/enable", {})
    click.echo(f"{harmless(_called(found))} gets requests again")


def backends(peer: Peer) -> list[dict[str, Any]]:
    """The registered servers, as `/api/agents` has them: peers are left out."""
    return [agent for agent in peer.get("/api/agents") if agent.get("is_external")]


def _found(peer: Peer, who: str) -> dict[str, Any]:
    """The server that `who` means. A peer is none: disconnecting one by a slip takes its models away."""
    known = backends(peer)
    folded = who.casefold()
    for match in (
        [s for s in known if folded == s["id"]],
        [s for s in known if folded in (s["machine_name"].casefold(), (s.get("custom_name") or "").casefold())],
        [s for s in known if len(folded) >= 6 and s["id"].startswith(folded)],
    ):
        if len(match) == 1:
            return match[0]
        if match:
            raise Failure(f"{who!r} may be several servers", fix="give the id: llm-router backend list --json")
    names = ", ".join(_called(server) for server in known)
    why = f"there are: {names}" if names else "there are none"
    raise Failure(harmless(f"no server is called {who!r}"), why=harmless(why), code=Exit.NOT_FOUND)


def _called(found: dict[str, Any]) -> str:
    return str(found.get("custom_name") or found["machine_name"])


def _name(peer: Peer, url: str) -> str:
    """Host and port; of a server on this machine the machine's name, because every machine is 127.0.0.1."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise Failure(f"{url!r} is no URL", fix="such as http://127.0.0.1:11434", code=Exit.USAGE) from None
    if host in _LOOPBACK or host.startswith("127."):
        host = peer.get("/api/status")["name"]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _row(found: dict[str, Any]) -> list[str]:
    address = found.get("ip_address") or ""
    port = found.get("runtime_port")
    return [
        _called(found),
        found["state"],
        plain(len(found.get("loaded_models") or [])),
        plain(found.get("active_requests")),
        plain(f"[{address}]:{port}" if ":" in address else f"{address}:{port}" if address else None),
        plain(found.get("gpu_model")),
    ]
