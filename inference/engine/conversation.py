"""A conversation in a shape that a model's template takes. Pure.

Clients write for OpenAI's models, templates know the roles their model was trained with. What llama.cpp's server does
about it is done here too (common/chat.cpp, `map_developer_role_to_system` and the system message of `polyfill`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import takewhile

from inference.chat import Message, TextPart

Messages = tuple[Message, ...]

_KNOWS_DEVELOPER = re.compile(r"""(["'])developer\1""")


def understood(messages: Messages, template: str) -> Messages:
    """`messages` with roles that `template`, its source, knows.

    `developer` is OpenAI's newer name of `system`. Of the templates that llama.cpp carries, half drop such a message
    without a word, and some refuse it.
    """
    if _KNOWS_DEVELOPER.search(template):
        return messages
    return tuple(replace(m, role="system") if m.role == "developer" else m for m in messages)


def alternatives(messages: Messages) -> Iterator[Messages]:
    """The same instructions in other places, for a template that refuses `messages`; the nearest first.

    Some take one system message only, some (Gemma) none: then its text begins what the user says first.
    """
    system = tuple(takewhile(lambda m: m.role == "system", messages))
    rest = messages[len(system) :]
    text = "\n\n".join(_text(m) for m in system)
    if len(system) > 1:
        yield (replace(system[0], content=text), *rest)
    if system and rest and rest[0].role == "user":
        yield (replace(rest[0], content=f"{text}\n\n{_text(rest[0])}"), *rest[1:])


def _text(message: Message) -> str:
    content = message.content or ""
    return content if isinstance(content, str) else joined(content)


def joined(parts: tuple[TextPart, ...]) -> str:
    """The text of a message that came in parts."""
    return "\n".join(part.text for part in parts)
