"""Options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--data-dir` and `--config`; the command gets `loaded`, the settings as that peer reads them."""

    @click.option("--data-dir", metavar="PATH", help="Data folder of the peer that is meant.")
    @click.option("--config", metavar="PATH", help="Config file of the peer that is meant.")
    @functools.wraps(command)
    def wrapped(data_dir: str | None, config: str | None, **arguments: Any) -> Any:
        from mesh.config import load

        return command(loaded=load({"data_dir": data_dir, "config": config}), **arguments)

    return wrapped


def with_peer(command: Callable[..., Any]) -> Callable[..., Any]:
    """As `with_settings`; the command gets `peer`, a client of the running peer, or fails with exit code 3."""

    @with_settings
    @functools.wraps(command)
    def wrapped(loaded: Any, **arguments: Any) -> Any:
        from mesh.cli.client import connect

        return command(peer=connect(loaded.config.data_dir), **arguments)

    return wrapped
