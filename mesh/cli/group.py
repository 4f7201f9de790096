"""Groups of commands that are imported when they are called, and that ask "did you mean" when they are mistyped."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from typing import Any

import click


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command lives, as `module:attribute`, and its line in the help; without one it is hidden."""

    target: str
    summary: str = ""


class LazyGroup(click.Group):
    """A group whose commands are named in a table. Its help comes from the table: nothing is imported for it.

    `default` is the command that is meant when none is named; the flags are then its own.
    """

    def __init__(self, *args: Any, entries: dict[str, Entry], default: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.entries = entries
        self.default = default

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {option for param in self.get_params(ctx) for option in param.opts}
        is_bare = not args or (args[0].startswith("-") and args[0] not in own)
        # a shell that completes asks about what was typed
        is_meant = is_bare and self.default is not None and not ctx.resilient_parsing
        return super().parse_args(ctx, [str(self.default), *args] if is_meant else args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, entry in self.entries.items() if entry.summary]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self.entries.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in self.entries.items() if entry.summary])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.entries and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], self.entries, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)
