"""How a command fails: what, why, how to fix it, and the exit code that scripts see."""

from __future__ import annotations

import enum
from typing import IO, Any

import click


class Exit(enum.IntEnum):
    """Exit codes of every command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_ALLOWED = 4
    NOT_FOUND = 5
    PARTIAL = 6
    INTERRUPTED = 130


class Failure(click.ClickException):
    """Ends the command. Shown on stderr as `error: what`, then why and the fix, each on its line."""

    def __init__(self, what: str, *, why: str = "", fix: str = "", code: Exit = Exit.FAILED) -> None:
        super().__init__(what)
        self.why = why
        self.fix = fix
        self.exit_code = code  # type: ignore[misc]  # click reads it from the instance

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"error: {self.message}", file=file, err=file is None)
        if self.why:
            click.echo(f"  {self.why}", file=file, err=file is None)
        if self.fix:
            click.echo(f"  fix: {self.fix}", file=file, err=file is None)


def not_yet(what: str, *, instead: str = "") -> Failure:
    """For what a later version brings."""
    return Failure(f"{what} comes in a later version", fix=instead)
