"""`llm-router chat [MODEL]`: a conversation on the terminal. It remembers what was said until /clear."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import click

from mesh.cli.client import Peer
from mesh.cli.completion import complete_model
from mesh.cli.conversation import Message, print_answer, question
from mesh.cli.failure import Exit, Failure
from mesh.cli.options import with_peer

_HELP = "/clear forgets the conversation, /exit ends it, Ctrl+C stops an answer"


@click.command(help="Talk with a model.\n\n" + _HELP[0].upper() + _HELP[1:] + ".")
@click.argument("model", required=False, shell_complete=complete_model)
@click.option("--system", metavar="TEXT", help="Instructions that come before the conversation.")
@with_peer
def chat(peer: Peer, model: str | None, system: str | None) -> int:
    return talk(peer, model or preferred(peer.models()), system=system, options={})


def talk(peer: Peer, model: str, *, system: str | None, options: dict[str, Any]) -> int:
    """Reads lines and answers them until /exit or the end of input. Answers the exit code."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives input() editing and history
        click.echo(f"{model}: {_HELP}", err=True)
    opening: list[Message] = [{"role": "system", "content": system}] if system else []
    said = list(opening)
    while (line := _line(is_terminal)) is not None:
        match line.strip():
            case "":
                continue
            case "/exit" | "/quit" | "/bye":
                break
            case "/clear":
                said = list(opening)
                click.echo("forgotten", err=True)
            case "/help" | "/?":
                click.echo(_HELP, err=True)
            case text:
                said.append({"role": "user", "content": text})
                _answer(peer, model, said, options)
    return Exit.OK


def _answer(peer: Peer, model: str, said: list[Message], options: dict[str, Any]) -> None:
    """One turn. A failed one is taken back, so that the conversation can go on; a first one that fails ends it."""
    try:
        text, _ = print_answer(peer, question(model, said, options))
    except Failure as failure:
        said.pop()
        if not any(message["role"] == "assistant" for message in said):
            raise
        failure.show()
        return
    said.append({"role": "assistant", "content": text})


def _line(is_terminal: bool) -> str | None:
    try:
        return input("> " if is_terminal else "")
    except EOFError:
        return None


def preferred(models: list[dict[str, Any]]) -> str:
    """A chat model: one in memory before one on disk, the built-in one last. Raises Failure without any."""
    chatting = [m for m in models if "chat" in m.get("capabilities", ("chat",))]
    if not chatting:
        raise Failure("there is no model to talk with", fix="llm-router model import FILE.gguf", code=Exit.NOT_FOUND)
    best = min(chatting, key=lambda m: (m["id"] == "hello", not m.get("loaded"), not m.get("ready", True)))
    return str(best["id"])
