"""`llm-router backup` and `llm-router restore`: what a peer cannot be given again, into one file and back."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import click

from gossip.identity import short
from mesh import restore as restoring
from mesh.archive import Manifest
from mesh.backup import make
from mesh.cli.confirm import require_yes
from mesh.cli.failure import Failure
from mesh.cli.options import json_option, with_settings
from mesh.cli.output import count, harmless, print_json, size
from mesh.config import Loaded
from mesh.errors import BackupError


@click.command(
    help="Write identity, mesh, users, keys, settings and history of this machine into one file.\n\n"
    "The peer may run meanwhile. Models and logs are not in it. Whoever has the file can be this machine: keep it as "
    "you keep a key."
)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--yes", is_flag=True, help="Replace the file if it is there, without asking.")
@json_option
@with_settings
def backup(loaded: Loaded, file: Path, yes: bool, as_json: bool) -> None:
    file = file.expanduser().absolute()
    if file.exists():
        require_yes(yes, f"{file} is there and would be replaced.", "Replace it?")
    with _failures():
        manifest = make(loaded.config, file, say=lambda line: click.echo(line, err=True))
    if as_json:
        print_json(dataclasses.asdict(manifest) | {"file": str(file)})
        return
    click.echo(f"{file} ({size(file.stat().st_size)}): {', '.join(stored.name for stored in manifest.files)}")
    click.echo("not in it: models, logs, and what the environment sets; whoever has it can be this machine", err=True)


@click.command(
    help="Put a backup in the place of what this machine has.\n\n"
    "The peer must not run. What was there is kept in a folder before-restore-TIME beside it. A backup made by a newer "
    "version of this program is refused."
)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--new-identity",
    is_flag=True,
    help="Leave the key and the mesh out: a machine of its own, which reads the old history. The old one may go on.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@with_settings
def restore(loaded: Loaded, file: Path, new_identity: bool, yes: bool, as_json: bool) -> None:
    file = file.expanduser().absolute()
    folder = loaded.config.data_dir

    def confirm(plan: restoring.Plan) -> None:
        outside = [path for path in plan.files.values() if not path.is_relative_to(folder)]
        if plan.old or outside:
            require_yes(yes, harmless(_consequence(plan, outside)), "Restore?")

    with _failures():
        done = restoring.restore(file, loaded, new_identity=new_identity, confirm=confirm)
    if as_json:
        print_json(
            {
                "backup": dataclasses.asdict(done.manifest),
                "files": {name: str(path) for name, path in done.files.items()},
                "set_aside": [str(path) for path in done.aside],
                "notes": list(done.notes),
            }
        )
        return
    click.echo(harmless(f"restored {_whose(done.manifest)} into {folder}: {', '.join(done.files)}"))
    for line in _hints(done, new_identity=new_identity):
        click.echo(harmless(line), err=True)


def _consequence(plan: restoring.Plan, outside: list[Path]) -> str:
    lines = [f"This restores {_whose(plan.manifest)}."]
    if plan.old:
        found = ", ".join(path.name for path in plan.old)
        lines.append(f"{count(len(plan.old), 'file')} would be set aside, in a folder {restoring.ASIDE}TIME: {found}.")
    lines += [f"{path} is outside of the data folder." for path in outside]
    return "\n".join(lines)


def _whose(manifest: Manifest) -> str:
    identity = f" ({short(manifest.peer_id)})" if manifest.peer_id else ""
    return f"the backup of {manifest.name}{identity}, made {manifest.created_at[:16]}Z by {manifest.version}"


def _hints(done: restoring.Restored, *, new_identity: bool) -> list[str]:
    lines = [f"the old files are in {path}" for path in done.aside]
    lines += done.notes
    if new_identity:
        lines.append("this machine gets an identity of its own when it starts, and is in no mesh: it has no users yet")
    elif done.manifest.peer_id:
        lines.append("the machine that the backup is of must not run any more: two cannot have one identity")
    lines.append("models are not in a backup: copy them, or import them again")
    return lines


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except BackupError as error:
        raise Failure(harmless(error.what), fix=error.fix) from None
