"""`llm-router up`: reads the settings, takes the data folder, starts the logs, and hands over to the peer."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

import click

from mesh.config import load
from mesh.control import locked
from mesh.errors import StartError
from mesh.logs import Logs
from mesh.ownership import require_ours
from mesh.settings import GROUPS, LATER, SETTINGS, Setting

logger = logging.getLogger(__name__)


class _Grouped(click.Command):
    """Help with the flags under the titles of the table."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        titles = {setting.name: title for title, settings in GROUPS.items() for setting in settings}
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if (record := param.get_help_record(ctx)) is not None:
                sections.setdefault(titles.get(param.name or "", "Other"), []).append(record)
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def _option(setting: Setting) -> click.Option:
    """The flag of a setting. Values stay text: `mesh.config` parses them, whatever they came by."""
    default = setting.default_note or setting.default
    notes = f"[{setting.variable}" + (f"; default: {default.replace('`', '')}]" if default else "]")
    later = f" {LATER}" if setting.is_later else ""
    text = f"{setting.help.replace('`', '')}{later} {notes}"
    if setting.kind.is_switch:
        return click.Option([f"{setting.flag}/--no-{setting.flag[2:]}", setting.name], default=None, help=text)
    return click.Option([setting.flag, setting.name], metavar=setting.kind.metavar, help=text)


def _up(**flags: Any) -> int:
    require_ours()
    loaded = load(flags)
    with locked(loaded.config.data_dir):
        logs = Logs.start(loaded.config)
        try:
            for warning in loaded.warnings:
                logger.warning("%s", warning)
            from mesh.node import run  # the whole peer: a flag mistyped is told without waiting for it
            from mesh.restore import require_whole

            require_whole(loaded.config.data_dir)
            return asyncio.run(run(loaded, announce=announce))
        except BaseExceptionGroup as group:  # task groups wrap what they end with
            reasons, others = group.split(StartError)
            if reasons is None or others is not None:
                raise
            raise _first(reasons) from None
        finally:
            logs.close()


def announce(text: str) -> None:
    """Prints what a person should read. The peer says it in the midst of its work, so it never raises: letters that
    the terminal does not have are left out, and where nobody reads any more the log has it."""
    try:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        click.echo(text.encode(encoding, "replace").decode(encoding))
    except (OSError, ValueError) as error:  # a broken pipe, a closed terminal
        logger.debug("not printed", extra={"text": text[:200], "reason": str(error)})


def _first(group: BaseExceptionGroup[StartError]) -> StartError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


up = _Grouped(
    name="up",
    callback=_up,
    params=[_option(setting) for setting in SETTINGS if setting.has_flag],
    help="Start a peer on this machine (also without any command).\n\n"
    "It runs until Ctrl+C or `llm-router down`. Secrets, such as keys of clouds, are given by environment variables or"
    " the config file: see docs/configuration.md, or `llm-router config`.",
)
