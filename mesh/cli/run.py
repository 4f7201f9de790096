"""`llm-router run MODEL [PROMPT]`: one question, one answer on stdout; without a prompt on a terminal, a chat."""

from __future__ import annotations

import os
import stat
import sys

import click

from mesh.cli.client import Peer
from mesh.cli.completion import complete_model
from mesh.cli.conversation import print_answer, question
from mesh.cli.failure import Exit
from mesh.cli.options import json_option, with_peer
from mesh.cli.output import print_json


@click.command(help="Ask a model and print the answer.\n\nWhat is piped in is added to the prompt.")
@click.argument("model", shell_complete=complete_model)
@click.argument("prompt", nargs=-1)
@click.option("--system", metavar="TEXT", help="Instructions that come before the prompt.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Longest answer.")
@click.option("--temperature", type=click.FloatRange(0, 2), metavar="T", help="0 is deterministic.")
@click.option("--seed", type=int, metavar="N", help="The same seed gives the same answer.")
@json_option
@with_peer
def run(
    peer: Peer,
    model: str,
    prompt: tuple[str, ...],
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    as_json: bool,
) -> int:
    options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    if not prompt and sys.stdin.isatty():
        if as_json:
            raise click.UsageError("--json needs a prompt")
        from mesh.cli.chat import talk

        return talk(peer, model, system=system, options=options)
    text = "\n\n".join(part for part in (" ".join(prompt), _piped(is_needed=not prompt)) if part)
    if not text:
        raise click.UsageError("there is no prompt: give one, or pipe one in")
    messages = [{"role": "system", "content": system}] if system else []
    body = question(model, [*messages, {"role": "user", "content": text}], options)
    if as_json:
        print_json(peer.post("/v1/chat/completions", body, timeout_s=3600))
        return Exit.OK
    _, was_stopped = print_answer(peer, body)
    return Exit.INTERRUPTED if was_stopped else Exit.OK


def _piped(*, is_needed: bool) -> str:
    """What stands in a pipe or file at stdin. Beside a prompt, anything else there is left alone: it may never end."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
        is_piped = stat.S_ISFIFO(mode) or stat.S_ISREG(mode)
    except (OSError, ValueError):  # no real file, as in tests
        is_piped = True
    if not is_needed and (sys.stdin.isatty() or not is_piped):
        return ""
    return sys.stdin.read().strip()
