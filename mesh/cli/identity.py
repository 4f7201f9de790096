"""`llm-router identity ...`: the key by which the mesh knows this machine. It needs no running peer."""

from __future__ import annotations

from pathlib import Path

import click

from gossip.errors import UnusableIdentity
from gossip.identity import IDENTITY_FILE, Identity, load_or_create, short, uuid_of
from gossip.storage import MESH_FILE
from mesh import control
from mesh.cli.confirm import require_yes
from mesh.cli.failure import Exit, Failure
from mesh.cli.group import Entry, LazyGroup
from mesh.cli.options import json_option, with_settings
from mesh.cli.output import print_json
from mesh.cli.state import print_fields
from mesh.config import Loaded

identity = LazyGroup(
    name="identity",
    help="Show this machine's identity, or make a new one.\n\n"
    "The identity is a key in the data folder, made at the first start. The mesh knows the machine by it, whatever its "
    "name or address is.",
    default="show",
    entries={
        "show": Entry(f"{__name__}:show", "Show this machine's identity (also without a command)."),
        "reset": Entry(f"{__name__}:reset", "Make a new identity, as of a new machine."),
    },
)


@click.command(help="Show this machine's identity (also without a command).")
@json_option
@with_settings
def show(loaded: Loaded, as_json: bool) -> None:
    path = _existing(loaded.config.data_dir)
    fields = _fields(_usable(path.parent)) | {"file": str(path)}
    if as_json:
        print_json(fields)
    else:
        print_fields(fields)


@click.command(
    help="Make a new identity, as of a new machine.\n\n"
    "For a data folder that was copied from another machine, and for a machine that was revoked. "
    "It forgets its mesh and joins as a new machine; models, settings and history stay."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@with_settings
def reset(loaded: Loaded, yes: bool, as_json: bool) -> None:
    folder = loaded.config.data_dir
    path = _existing(folder)
    if control.is_owned(folder):
        raise Failure(
            "the identity of a running peer cannot change",
            why=f"the peer of {folder} is running, and others know it by this identity",
            fix="llm-router down, then again: llm-router identity reset",
        )
    consequence = (
        "This deletes the key of this machine and what it knows of its mesh: the mesh will take it for a new machine, "
        "which must be let in, and the old entry stays until it is revoked there."
    )
    require_yes(yes, consequence, "Make a new identity?")
    with control.locked(folder):
        (folder / MESH_FILE).unlink(missing_ok=True)  # first: a key without a mesh is a machine that starts anew
        path.unlink(missing_ok=True)
        made = _fields(_usable(folder))
    if as_json:
        print_json(made)
    else:
        click.echo(f"this machine is {made['short_id']} now; start it: llm-router")


def _existing(folder: Path) -> Path:
    """The file of the identity. Raises Failure (exit code 5) when there is none: showing makes none."""
    path = folder / IDENTITY_FILE
    if not path.exists():
        raise Failure(f"there is no identity in {folder} yet", why="it is made at the first start", code=Exit.NOT_FOUND)
    return path


def _usable(folder: Path) -> Identity:
    try:
        return load_or_create(folder)
    except UnusableIdentity as error:
        raise Failure(error.what, fix=error.fix) from None


def _fields(found: Identity) -> dict[str, str]:
    return {"id": str(uuid_of(found.peer_id)), "short_id": short(found.peer_id), "peer_id": found.peer_id}
