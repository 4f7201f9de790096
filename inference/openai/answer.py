"""Answers in OpenAI's format: whole objects, stream events, embeddings, models, errors.

A stream writes hundreds of events a second, so an `EventWriter` builds the constant part of a chunk once and encodes
only the text of each step. Everything is ASCII (`\\u` escapes): several clients split event lines at U+0085 and
U+2028 too, which JSON does not escape by itself.
"""

from __future__ import annotations

import array
import base64
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from inference.chat import Embeddings, FinishReason, Usage
from inference.errors import InferenceError

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerHead:
    """What all objects of one answer share. `model` is the name the caller used; `created` unix seconds."""

    kind: Literal["chat", "generate"]
    request_id: str
    model: str
    created: int

    @property
    def id(self) -> str:
        return ("chatcmpl-" if self.kind == "chat" else "cmpl-") + self.request_id


def whole(head: AnswerHead, text: str, finish_reason: FinishReason, usage: Usage) -> dict[str, Any]:
    """The `chat.completion` or `text_completion` object of a finished answer."""
    choice: dict[str, Any] = {"index": 0}
    if head.kind == "chat":
        choice["message"] = {"role": "assistant", "content": text, "refusal": None}
    else:
        choice["text"] = text
    choice |= {"logprobs": None, "finish_reason": finish_reason}
    return {
        "id": head.id,
        "object": "chat.completion" if head.kind == "chat" else "text_completion",
        "created": head.created,
        "model": head.model,
        "choices": [choice],
        "usage": usage_object(usage),
    }


def usage_object(usage: Usage) -> dict[str, Any]:
    counts: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
    return counts | {"is_estimated": True} if usage.is_estimated else counts


class EventWriter:
    """The server-sent events of one streamed answer, as bytes ready to be written."""

    def __init__(self, head: AnswerHead, *, include_usage: bool) -> None:
        self._is_chat = head.kind == "chat"
        self._head = head_json(head)
        # With include_usage every chunk has the member, null but in the last one.
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        opening, closing = ('"delta":{"content":', "}") if self._is_chat else ('"text":', "")
        self._before_text = self._head + f'"choices":[{{"index":0,{opening}'.encode()
        self._after_text = f'{closing},"logprobs":null,"finish_reason":null}}]'.encode() + self._tail

    def first(self) -> bytes:
        """The event that opens a chat, with its role; completions have none."""
        if not self._is_chat:
            return b""
        delta = (
            b'"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
        )
        return self._head + delta + self._tail

    def text(self, text: str) -> bytes:
        """One step's text."""
        return self._before_text + json.dumps(text).encode() + self._after_text

    def finish(self, reason: FinishReason) -> bytes:
        """The event that says why the answer ended."""
        opening = '"delta":{}' if self._is_chat else '"text":""'
        choice = f'"choices":[{{"index":0,{opening},"logprobs":null,"finish_reason":"{reason}"}}]'
        return self._head + choice.encode() + self._tail

    def usage(self, usage: Usage) -> bytes:
        """The event with the token counts and no choices, for `stream_options.include_usage`."""
        return self._head + b'"choices":[],"usage":' + json.dumps(usage_object(usage)).encode() + b"}\n\n"


def head_json(head: AnswerHead) -> bytes:
    """How every event of the answer begins."""
    kind = "chat.completion.chunk" if head.kind == "chat" else "text_completion"
    members = {"id": head.id, "object": kind, "created": head.created, "model": head.model}
    return b"data: " + json.dumps(members, separators=(",", ":"))[:-1].encode() + b","


def comment(text: str) -> bytes:
    """A line that clients skip; it keeps the connection alive or tells people something."""
    return b": " + text.encode("ascii", "replace").replace(b"\n", b" ").replace(b"\r", b" ") + b"\n\n"


def error_object(error: InferenceError) -> dict[str, Any]:
    """OpenAI's error object, all four keys always there."""
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def error_event(error: InferenceError) -> bytes:
    """An error inside a stream; no [DONE] follows it."""
    return b"data: " + json.dumps(error_object(error)).encode() + b"\n\n"


def embeddings_json(embeddings: Embeddings, model: str, encoding: Literal["float", "base64"]) -> bytes:
    """The body that answers /v1/embeddings. Large ones take a while: call it off the event loop.

    One vector at a time: `json.dumps` keeps the interpreter's lock until it is done, which is seconds for millions of
    floats.
    """
    data = b", ".join(
        b'{"object": "embedding", "index": %d, "embedding": %b}' % (index, _vector_json(vector, encoding))
        for index, vector in enumerate(embeddings.vectors)
    )
    usage = {"prompt_tokens": embeddings.prompt_tokens, "total_tokens": embeddings.prompt_tokens}
    tail = json.dumps({"model": model, "usage": usage}).encode()
    return b'{"object": "list", "data": [' + data + b"], " + tail.removeprefix(b"{")


def _vector_json(vector: bytes, encoding: Literal["float", "base64"]) -> bytes:
    if encoding == "base64":
        return b'"' + base64.b64encode(vector) + b'"'
    return json.dumps(_floats(vector)).encode()


def _floats(vector: bytes) -> Sequence[float]:
    values = array.array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()
