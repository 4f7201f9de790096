"""`llm-router down`: asks the peer to end, and waits until it has."""

from __future__ import annotations

import time

import click

from mesh import control
from mesh.cli.client import connect
from mesh.cli.failure import Failure
from mesh.cli.options import with_settings
from mesh.config import Loaded

_POLL_S = 0.1


@click.command(help="Stop the peer of this machine after its running requests.")
@click.option("--timeout", type=click.FloatRange(0, 86_400), default=60.0, show_default=True, help="Seconds to wait.")
@with_settings
def down(loaded: Loaded, timeout: float) -> None:
    folder = loaded.config.data_dir
    peer = connect(folder)
    peer.post("/api/shutdown", {})
    click.echo("draining", err=True)
    deadline = time.monotonic() + timeout
    while control.read(folder) == peer.control or control.is_owned(folder):
        if time.monotonic() >= deadline:
            raise Failure(
                f"the peer (process {peer.control.pid}) still runs after {timeout:g} s",
                why="it finishes its running requests first",
                fix="wait, or press Ctrl+C twice where it runs",
            )
        time.sleep(_POLL_S)
    click.echo("stopped", err=True)
