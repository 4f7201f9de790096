"""Asking a person before something that cannot be taken back."""

from __future__ import annotations

import sys

import click


def require_yes(is_said: bool, consequence: str, question: str) -> None:
    """Goes on when `--yes` was said, or a person answers yes to `question` on a terminal, `consequence` before it.

    Raises Abort (exit code 130) at no, UsageError (exit code 2) where there is nobody to ask.
    """
    if is_said:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{consequence} If that is what you want, say --yes.")
    click.echo(consequence, err=True)
    click.confirm(question, abort=True, err=True)
