"""What a server of OpenAI's API answers, read with suspicion: streams, whole answers, vectors, lists, refusals. Pure.

Ollama, LM Studio, vLLM and llama-server agree on the format in outline only. What is read here: events with or without
a role, usage in an event of its own, in the last one or never, an answer in one piece where a stream was asked for,
errors as OpenAI's object, as a text, as FastAPI's `detail`. What is written (`request_body`) is inference.openai.
upstream's body, with everything said that the servers' defaults would otherwise decide.

Nothing here raises for what came over the wire: it is an error among the values, and everything has a limit.
"""

from __future__ import annotations

import array
import base64
import binascii
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from inference.chat import ChatPrompt, Chunk, FinishReason, Generation, Started, TextPrompt, Usage
from inference.errors import (
    ContextLengthExceeded,
    EngineError,
    HolderFull,
    InferenceError,
    InvalidRequest,
    ModelNotFound,
    ModelUnavailable,
    PeerGone,
    StreamInterrupted,
)
from inference.openai.upstream import Lines, body_of
from inference.strict_json import parse

# An event holds a token or a few; those that hold a whole answer come from servers that do not stream at all.
EVENT_BYTES_MAX = 1024 * 1024
# More than any context of text, and what an answer without `max_tokens` may have.
TEXT_CHARS_MAX = 16 * 1024 * 1024
# The longest tokens there are (runs of spaces) have 128 characters; a few tokens more than were asked for are forgiven.
TOKEN_CHARS_MAX = 128
TOKENS_SLACK = 64
MESSAGE_CHARS_MAX = 1000
MODEL_NAME_CHARS_MAX = 512
RETRY_AFTER_S_MAX = 3600
# Without a tokenizer: about four characters are a token, and a template adds some to each message.
CHARACTERS_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 5
COUNT_MAX = 1 << 53

UPSTREAM_ERROR = "agent_upstream_error"
"""The `type` of an error that a registered server answered with."""

Said = Chunk | InferenceError

_TOO_LONG = re.compile(r"context (length|size|window)|maximum context|exceed_context_size", re.IGNORECASE)
_UNREADABLE = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)


def request_body(generation: Generation) -> dict[str, Any]:
    """The request in OpenAI's words.

    Temperature and top_p are always said: a server has defaults of its own, and a request means the same on every
    machine of the mesh. vLLM calls the repeat penalty by another name.
    """
    sampling = generation.sampling
    body = body_of(generation)
    body |= {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "stream_options": {"include_usage": True},
    }
    if "repeat_penalty" in body:
        body["repetition_penalty"] = sampling.repeat_penalty
    return body


def estimated_prompt_tokens(generation: Generation) -> int:
    """About how many tokens the prompt has."""
    match generation.prompt:
        case ChatPrompt(messages=messages):
            characters = sum(
                len(m.content) if isinstance(m.content, str) else sum(len(part.text) for part in m.content or ())
                for m in messages
            )
            return characters // CHARACTERS_PER_TOKEN + TOKENS_PER_MESSAGE * len(messages)
        case TextPrompt(text=text):
            return len(text) // CHARACTERS_PER_TOKEN + 1
        case prompt:
            return len(prompt.tokens)


class AnswerReader:
    """Reads one answer of the server called `name`. Nothing follows an error, or the chunk with a finish reason.

    `is_complete`: the server has said why it ended, and may still say how many tokens that took. `events` counts what
    moved the answer on.
    """

    def __init__(self, generation: Generation, name: str) -> None:
        self._name = name
        self._lines = Lines(EVENT_BYTES_MAX)
        self._prompt_tokens = estimated_prompt_tokens(generation)
        limit = generation.max_tokens
        self._chars_left = (
            TEXT_CHARS_MAX if limit is None else min(TEXT_CHARS_MAX, TOKEN_CHARS_MAX * (limit + TOKENS_SLACK))
        )
        self._finish_reason: FinishReason | None = None
        self._usage: Usage | None = None
        self._pieces = 0
        self._has_begun = False
        self._has_text = False
        self.events = 0
        self.is_finished = False

    @property
    def is_complete(self) -> bool:
        return self._finish_reason is not None

    def feed(self, data: bytes) -> list[Said]:
        """What the bytes say, in order."""
        said: list[Said] = []
        try:
            for line in self._lines.feed(data):
                if self.is_finished:
                    break
                if line == b"[DONE]":
                    said += self.ended(is_said=True)
                elif line:
                    self._event(json.loads(line), said)
            self._lines.check()
        except PeerGone:
            said.append(self.broken(PeerGone(f"The server {self._name} sent an event that does not end.")))
        except _UNREADABLE:
            said.append(self.broken(PeerGone(f"The server {self._name} sent an event that is none.")))
        return said

    def ended(self, *, is_said: bool = False) -> list[Said]:
        """The stream is over; `is_said`: by the server, in words."""
        if self.is_finished:
            return []
        if self._finish_reason is None:
            if not (is_said and self._has_begun):
                return [self.broken(PeerGone(f"The server {self._name} ended the answer before it was complete."))]
            self._finish_reason = "stop"  # some servers say [DONE] and nothing before it
        self.is_finished = True
        return [Chunk(finish_reason=self._finish_reason, usage=self._told_usage())]

    def whole(self, body: bytes) -> list[Said]:
        """What an answer in one piece says."""
        said: list[Said] = []
        try:
            self._event(json.loads(body), said)
        except _UNREADABLE:
            return [self.broken(PeerGone(f"The server {self._name} sent an answer that is none."))]
        return said if self.is_finished else [*said, *self.ended()]

    def broken(self, error: InferenceError) -> InferenceError:
        """`error`, or that an answer that has text ended with it: nobody else can go on without its tokens."""
        self.is_finished = True
        if not self._has_text or isinstance(error, StreamInterrupted):
            return error
        interrupted = StreamInterrupted(f"{error.message} No other machine can go on with what it had written.")
        interrupted.__cause__ = error
        return interrupted

    def _event(self, event: Any, said: list[Said]) -> None:
        if (failure := _failure_in(event)) is not None:
            status, text = failure
            said.append(self.broken(refusal(self._name, status, {}, text)))
            return
        if (usage := _usage_in(event.get("usage"))) is not None:
            self._usage = usage
        choices = event.get("choices")
        if choices is None and usage is None:
            raise ValueError
        if choices and not self.is_complete:
            self._choice(choices[0], said)
        if self.is_complete and self._usage is not None:
            said += self.ended()

    def _choice(self, choice: dict[str, Any], said: list[Said]) -> None:
        delta = choice.get("delta") or choice.get("message") or {}
        text, reason = delta.get("content", choice.get("text")) or "", choice.get("finish_reason")
        thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
        if not isinstance(text, str) or not isinstance(thought, str) or not isinstance(reason, str | None):
            raise TypeError
        self.events += 1
        self._pieces += bool(text or thought)
        self._chars_left -= len(text) + len(thought)
        if self._chars_left < 0:
            said.append(self.broken(PeerGone(f"The server {self._name} writes more than it was asked for.")))
            return
        if not self._has_begun:
            self._has_begun = True
            said.append(Chunk(started=Started(prompt_tokens=self._prompt_tokens, cached_tokens=0)))
        if text:
            self._has_text = True
            said.append(Chunk(text=_encodable(text)))
        if reason:
            self._finish_reason = "length" if reason == "length" else "stop"

    def _told_usage(self) -> Usage:
        if self._usage is not None:
            return self._usage
        return Usage(prompt_tokens=self._prompt_tokens, completion_tokens=self._pieces, is_estimated=True)


def refusal(name: str, status: int, headers: Mapping[str, str], body: bytes | str) -> InferenceError:
    """The error that the server `name` answered with: its status and its words, and what they mean for the request."""
    text, code = _said_in(body)
    if 300 <= status < 400:
        return PeerGone(f"The server {name} answers with a redirect (HTTP {status}), and none is ever followed.")
    told = f"The server {name} answered HTTP {status}" + (f": {text}" if text else " without saying why.")
    if status in (401, 403, 407):
        told = f"The server {name} does not let this mesh in (HTTP {status})" + (f": {text}" if text else ".")
        return _kept(EngineError(told), 502, code or str(status))
    if status == 429:
        return HolderFull(told, retry_after_s=_retry_after_s(headers))
    if status == 503:
        return _kept(ModelUnavailable(told, retry_after_s=_retry_after_s(headers)), status, code or "503")
    if status in (400, 413) and (code == ContextLengthExceeded.code or _TOO_LONG.search(text)):
        return _kept(ContextLengthExceeded(told), status, ContextLengthExceeded.code)
    if 400 <= status < 500:
        kind = ModelNotFound if status == 404 else InvalidRequest
        return _kept(kind(told), status, code or str(status))
    if 500 <= status < 600:
        return _kept(EngineError(told), status, code or str(status))
    return PeerGone(f"The server {name} answered HTTP {status}, which is no answer.")


def model_names(body: bytes) -> tuple[str, ...] | None:
    """The ids in an answer to /v1/models, each once; None when it is no such answer."""
    try:
        found = [item["id"] for item in parse(body)["data"]]
    except (InvalidRequest, *_UNREADABLE):
        return None
    return tuple(dict.fromkeys(i for i in found if isinstance(i, str) and 0 < len(i) <= MODEL_NAME_CHARS_MAX))


def vectors_in(name: str, body: bytes, count: int) -> tuple[list[bytes], int | None]:
    """`count` vectors of length 1 as little-endian float32, and the prompt tokens if they were told.

    Slow for large answers: call it off the event loop. Raises PeerGone, or the error in the body.
    """
    try:
        event = json.loads(body)
        if (failure := _failure_in(event)) is not None:
            raise refusal(name, failure[0], {}, failure[1])
        items = sorted(event["data"], key=lambda item: item.get("index", 0))
        vectors = [_vector(item["embedding"]) for item in items]
        tokens = (event.get("usage") or {}).get("prompt_tokens")
    except (*_UNREADABLE, binascii.Error, OverflowError):
        raise PeerGone(f"The server {name} sent vectors that are none.") from None
    if len(vectors) != count or len({len(vector) for vector in vectors}) > 1:
        raise PeerGone(f"The server {name} sent {len(vectors):,} vectors, or of several lengths, for {count:,} inputs.")
    return vectors, tokens if type(tokens) is int and 0 <= tokens < COUNT_MAX else None


def _vector(told: Any) -> bytes:
    """A vector as numbers, or as base64 of them, with length 1."""
    values = array.array("f")
    if isinstance(told, str):
        values.frombytes(base64.b64decode(told, validate=True))
        if sys.byteorder == "big":
            values.byteswap()
    else:
        values.fromlist(told)
    length = math.hypot(*values)
    if not values or not math.isfinite(length):
        raise ValueError
    unit = array.array("f", [value / length for value in values] if length else values)
    if sys.byteorder == "big":
        unit.byteswap()
    return unit.tobytes()


def _failure_in(event: Any) -> tuple[int, str] | None:
    """The status and the text of an error among events; OpenAI's object, a bare text, or vLLM's of old."""
    error = event.get("error") or (event if event.get("object") == "error" else None)
    if error is None:
        return None
    status = error.get("code") if isinstance(error, dict) else None
    text = error if isinstance(error, str) else json.dumps({"error": error})
    return (status if type(status) is int and 400 <= status < 600 else 502), text


def _said_in(body: bytes | str) -> tuple[str, str | None]:
    """What an error's body says, fit to be shown, and its code if that is a word."""
    text = body if isinstance(body, str) else body.decode(errors="replace")
    code = None
    try:
        told: Any = json.loads(text)
        inner = told.get("error", told.get("detail", told)) if isinstance(told, dict) else told
        if isinstance(inner, dict):
            code, inner = inner.get("code"), inner.get("message", inner)
        if isinstance(inner, list) and inner and isinstance(inner[0], dict):  # FastAPI's complaints about a body
            inner = inner[0].get("msg", inner)
        text = inner if isinstance(inner, str) else json.dumps(inner)
    except (ValueError, RecursionError, AttributeError):
        pass  # it is a plain text
    shown = "".join(c if c.isprintable() else " " for c in text[:MESSAGE_CHARS_MAX]).strip()
    is_word = isinstance(code, str) and 0 < len(code) <= 64 and code.isprintable()
    return shown, code if is_word else None


def _kept(error: InferenceError, status: int, code: str | None) -> InferenceError:
    error.status, error.type, error.code = status, UPSTREAM_ERROR, code
    return error


def _retry_after_s(headers: Mapping[str, str]) -> int | None:
    """Seconds only: a date would trust that server's clock."""
    told = headers.get("Retry-After", "")
    return min(RETRY_AFTER_S_MAX, int(told)) if told.isascii() and told.isdigit() and len(told) < 10 else None


def _usage_in(told: Any) -> Usage | None:
    """None where it is not there, or nonsense: then it is estimated."""
    if not isinstance(told, dict):
        return None
    details = told.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    counts: Sequence[Any] = (told.get("prompt_tokens"), told.get("completion_tokens"), cached or 0)
    if any(type(count) is not int or not 0 <= count < COUNT_MAX for count in counts):
        return None
    prompt_tokens, completion_tokens, cached_tokens = counts
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cached_tokens=min(cached_tokens, prompt_tokens),
    )


def _encodable(text: str) -> str:
    """`text` with half surrogate pairs replaced: no UTF-8 can carry them."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
