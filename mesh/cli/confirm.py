"""Asking a person before something that cannot be taken back."""

from __future__ import annotations

import sys

import click

from mesh.cli.failure import Exit, Failure


def require_yes(is_said: bool, consequence: str, question: str) -> None:
    """Goes on when `--yes` was said, or a person answers yes to `question` on a terminal, `consequence` before it.

    Raises Abort (exit code 130) at no, Failure (exit code 2) where there is nobody to ask.
    """
    if is_said:
        return
    if not sys.stdin.isatty():
        raise Failure(consequence, fix="if that is what you want, the same with --yes", code=Exit.USAGE)
    click.echo(consequence, err=True)
    click.confirm(question, abort=True, err=True)
