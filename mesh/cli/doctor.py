"""`llm-router doctor`: the checks of `mesh.doctor`, printed. Exit code 1 when one fails."""

from __future__ import annotations

import dataclasses
import os

import click

from mesh.cli.failure import Exit
from mesh.cli.options import json_option
from mesh.cli.output import harmless, print_json
from mesh.config import load
from mesh.doctor import Check, examine
from mesh.errors import SettingError

_MARKS = {"ok": ("ok  ", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}


@click.command(help="Check this machine and say how to fix what is wrong.")
@click.option("--data-dir", metavar="PATH", help="Data folder of the peer that is meant.")
@click.option("--config", metavar="PATH", help="Config file of the peer that is meant.")
@json_option
def doctor(data_dir: str | None, config: str | None, as_json: bool) -> int:
    try:
        checks = examine(load({"data_dir": data_dir, "config": config}))
    except SettingError as error:  # the other checks need the settings
        checks = [Check(name="settings", state="fail", found=error.what, fix=error.fix or "llm-router config")]
    if as_json:
        print_json({"checks": [dataclasses.asdict(check) for check in checks]})
    else:
        for check in checks:
            _print(check)
    return Exit.FAILED if any(check.state == "fail" for check in checks) else Exit.OK


def _print(check: Check) -> None:
    mark, colour = _MARKS[check.state]
    click.echo(f"{click.style(mark, fg=colour)}  {check.name:<14} {harmless(check.found)}", color=_has_colour())
    if check.fix:
        click.echo(f"      {'':<14} fix: {harmless(check.fix)}")


def _has_colour() -> bool | None:
    """None: click decides by the terminal."""
    return False if os.environ.get("NO_COLOR") else None
