"""`llm-router config`: every setting with its value and where it came from."""

from __future__ import annotations

from typing import Any

import click

from mesh.cli.options import json_option, with_settings
from mesh.cli.output import print_json, print_table
from mesh.config import Loaded, shown
from mesh.settings import SETTINGS


@click.command(help="Show every setting with its value and where it came from.\n\nAs a peer started here would.")
@json_option
@with_settings
def config(loaded: Loaded, as_json: bool) -> None:
    visible = [setting for setting in SETTINGS if not setting.is_hidden]
    values = [(s, getattr(loaded.config, s.name), str(loaded.origins[s.name])) for s in visible]
    if as_json:
        print_json({s.name: {"value": _json(value, s.is_secret), "origin": origin} for s, value, origin in values})
    else:
        print_table(["SETTING", "VALUE", "ORIGIN"], [[s.name, shown(s, v) or "-", origin] for s, v, origin in values])
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}", err=True)


def _json(value: object, is_secret: bool) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if is_secret:
        return "***"
    return list(value) if isinstance(value, tuple) else str(value)
