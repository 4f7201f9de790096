"""`llm-router doctor`: the checks of `mesh.doctor`, printed. Exit code 1 when one fails."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import sys
import textwrap

import click

from mesh.check import Check
from mesh.cli.failure import Exit
from mesh.cli.options import json_option
from mesh.cli.output import harmless, print_json
from mesh.config import load
from mesh.doctor import examine
from mesh.errors import SettingError

_INDENT = 21
_MARKS = {"ok": ("ok  ", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "red")}


@click.command(help="Check this machine and its network, and say how to fix what is wrong.")
@click.option("--data-dir", metavar="PATH", help="Data folder of the peer that is meant.")
@click.option("--config", metavar="PATH", help="Config file of the peer that is meant.")
@json_option
def doctor(data_dir: str | None, config: str | None, as_json: bool) -> int:
    logging.getLogger("gossip").addHandler(logging.NullHandler())  # what it would log is in the findings
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
    _write(f"{click.style(mark, fg=colour)}  {check.name:<14} ", harmless(check.found))
    if check.fix:
        _write(" " * _INDENT, f"{'hint' if check.state == 'ok' else 'fix'}: {harmless(check.fix)}")


def _write(head: str, text: str) -> None:
    """The text beside its head; on a terminal in lines that fit, elsewhere in one, for grep."""
    lines = [text]
    if sys.stdout.isatty():
        width = max(40, shutil.get_terminal_size().columns - _INDENT - 1)
        lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [text]
    click.echo(head + f"\n{' ' * _INDENT}".join(lines), color=_has_colour())


def _has_colour() -> bool | None:
    """None: click decides by the terminal."""
    return False if os.environ.get("NO_COLOR") else None
