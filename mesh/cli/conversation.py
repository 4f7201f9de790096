"""One turn with a model over the peer's API: the request, and the answer as it streams onto the terminal."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import click

from mesh.cli.client import Peer
from mesh.cli.output import harmless

Message = dict[str, str]


def question(model: str, messages: list[Message], options: dict[str, Any]) -> dict[str, Any]:
    """The body of a chat completion; options that are None are left to the peer."""
    given = {name: value for name, value in options.items() if value is not None}
    return {"model": model, "messages": messages, **given}


def print_answer(peer: Peer, body: dict[str, Any]) -> tuple[str, bool]:
    """Streams the answer to stdout. Answers the whole text, and whether Ctrl+C stopped it."""
    make_safe = harmless if sys.stdout.isatty() else str
    parts: list[str] = []
    was_stopped = False
    with contextlib.closing(peer.stream("/v1/chat/completions", {**body, "stream": True})) as events:
        try:
            for event in events:
                text = _text(event)
                if text:
                    parts.append(text)
                    click.echo(make_safe(text), nl=False)
        except KeyboardInterrupt:
            was_stopped = True
        finally:
            if parts and not parts[-1].endswith("\n"):
                click.echo()
    return "".join(parts), was_stopped


def _text(event: dict[str, Any]) -> str:
    choices = event.get("choices") or [{}]
    content = (choices[0].get("delta") or {}).get("content")
    return content if isinstance(content, str) else ""
