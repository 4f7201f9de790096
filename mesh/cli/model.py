"""`llm-router model ...`: the models of this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from mesh.cli.client import WORK_S, Peer, quoted
from mesh.cli.completion import complete_model
from mesh.cli.failure import Exit, Failure, not_yet
from mesh.cli.group import Entry, LazyGroup
from mesh.cli.options import json_option, with_peer
from mesh.cli.output import plain, print_json, print_table, size

_IMPORT = "llm-router model import FILE.gguf"

model = LazyGroup(
    name="model",
    help="List, import, show, load, unload and remove models.",
    entries={
        "list": Entry(f"{__name__}:list_models", "List the models, and which machines have them."),
        "import": Entry(f"{__name__}:import_file", "Take a GGUF file into the store."),
        "show": Entry(f"{__name__}:show", "Show everything known of a model."),
        "load": Entry(f"{__name__}:load", "Load a model into memory now."),
        "unload": Entry(f"{__name__}:unload", "Take a model out of memory."),
        "rm": Entry(f"{__name__}:remove", "Remove a model from this machine's disk."),
        "add": Entry(f"{__name__}:add", "Register a model of the hub (in a later version)."),
        "download": Entry(f"{__name__}:download", "Download a model (in a later version)."),
        "ls": Entry(f"{__name__}:list_models"),
        "remove": Entry(f"{__name__}:remove"),
    },
)


@click.command(name="list", help="List the models, and which machines have them.")
@click.option("--installed", is_flag=True, help="Only those on disk (for now that is all).")
@click.option("--search", metavar="TEXT", help="Search the hub's catalog (takes effect in a later version).")
@click.option("--limit", type=click.IntRange(1, 1000), metavar="N", help="At most so many.")
@json_option
@with_peer
def list_models(peer: Peer, installed: bool, search: str | None, limit: int | None, as_json: bool) -> None:
    if search is not None:
        raise not_yet("searching the hub", instead=f"download a GGUF file with a browser, then {_IMPORT}")
    models = [m for m in peer.models() if m.get("ready", True) or not installed][:limit]
    if as_json:
        print_json({"models": models})
        return
    headers = ["MODEL", "SIZE", "QUANTIZATION", "CONTEXT", "STATE"]
    rows = [
        [m["id"], size(m.get("size_bytes")), plain(m.get("quantization")), plain(m.get("context")), _state(m)]
        for m in models
    ]
    if len({holder for m in models for holder in m.get("holders") or ()}) > 1:
        headers = [*headers, "MACHINES"]
        rows = [[*row, plain(list(m.get("holders") or ()))] for row, m in zip(rows, models, strict=True)]
    print_table(headers, rows, right=["SIZE", "CONTEXT"])


@click.command(help="Show everything known of a model.")
@click.argument("model_id", metavar="MODEL", shell_complete=complete_model)
@json_option
@with_peer
def show(peer: Peer, model_id: str, as_json: bool) -> None:
    found = _found(peer.models(), model_id)
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        cell = size(value) if name.endswith("_bytes") else plain(value)
        click.echo(f"{name.removesuffix('_bytes').replace('_', ' '):<14}{cell}")


@click.command(name="import", help="Take a GGUF file into the store. The file itself stays where it is.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="What to call the model; the file's own name otherwise.")
@json_option
@with_peer
def import_file(peer: Peer, file: Path, name: str | None, as_json: bool) -> None:
    path = file.expanduser()
    path = path.parent.resolve() / path.name  # a link keeps its name: the model is called after it
    if not path.is_file():
        raise Failure(f"there is no file {path}", code=Exit.NOT_FOUND)
    click.echo(f"importing {path} ({size(path.stat().st_size)})", err=True)
    body = {"path": str(path)} | ({"name": name} if name else {})
    answer = peer.post("/api/models/import", body, timeout_s=WORK_S)
    if as_json:
        print_json(answer)
    else:
        embeds = isinstance(answer, dict) and "embedding" in (answer.get("capabilities") or ())
        use = "ask for it at /v1/embeddings" if embeds else f"llm-router run {_id(answer)}"
        click.echo(f"imported as {_id(answer)}: {use}")


@click.command(help="Load a model into memory now.")
@click.argument("model_id", metavar="MODEL", shell_complete=complete_model)
@with_peer
def load(peer: Peer, model_id: str) -> None:
    click.echo(f"loading {model_id}", err=True)
    peer.post("/api/models/load", {"model": model_id}, timeout_s=WORK_S)
    click.echo(f"{model_id} is in memory")


@click.command(help="Take a model out of memory. It stays on disk.")
@click.argument("model_id", metavar="MODEL", shell_complete=complete_model)
@with_peer
def unload(peer: Peer, model_id: str) -> None:
    peer.post("/api/models/unload", {"model": model_id})
    click.echo(f"{model_id} is out of memory")


@click.command(name="rm", help="Remove a model from this machine's disk.")
@click.argument("model_id", metavar="MODEL", shell_complete=complete_model)
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_peer
def remove(peer: Peer, model_id: str, yes: bool) -> None:
    found = _found(peer.models(), model_id)
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"this removes {found['id']} ({size(found.get('size_bytes'))}): say --yes")
        question = f"Remove {found['id']} ({size(found.get('size_bytes'))}) from the disk of this machine?"
        click.confirm(question, abort=True, err=True)
    peer.delete(f"/api/models/{quoted(found['id'])}")
    click.echo(f"removed {found['id']}")


_ANYTHING = {"ignore_unknown_options": True}


@click.command(help="Register a model of the hub (in a later version).", context_settings=_ANYTHING)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def add(words: tuple[str, ...]) -> None:
    raise not_yet("registering models of the hub", instead=f"download the GGUF file with a browser, then {_IMPORT}")


@click.command(help="Download a model (in a later version).", context_settings=_ANYTHING)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def download(words: tuple[str, ...]) -> None:
    raise not_yet("downloading models", instead=f"download the GGUF file with a browser, then {_IMPORT}")


def _found(models: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The model of that id or alias. Raises Failure (exit code 5) naming the nearest."""
    for found in models:
        if name == found["id"] or name in found.get("aliases", ()):
            return found
    import difflib

    near = difflib.get_close_matches(name, [m["id"] for m in models], n=3, cutoff=0.3)
    fix = f"did you mean {', '.join(near)}?" if near else "llm-router model list"
    raise Failure(f"there is no model {name!r}", fix=fix, code=Exit.NOT_FOUND)


def _state(found: dict[str, Any]) -> str:
    if found.get("loaded"):
        return "loaded"
    return "ready" if found.get("ready", True) else "not ready"


def _id(answer: object) -> str:
    return str(answer["id"]) if isinstance(answer, dict) and "id" in answer else "?"
