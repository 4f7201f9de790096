"""The vocabulary of a request and its answer, shared by every dialect and every backend.

It is plain data: no JSON, no I/O. `inference.openai` makes these values from OpenAI's wire format and back;
`inference.engine` turns a `Generation` into `Chunk`s.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Role = Literal["system", "developer", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPart:
    """A piece of text in a message of several parts."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call the assistant made earlier; `arguments` is JSON text, as OpenAI sends it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn. `content` is None only for an assistant message that has tool calls."""

    role: Role
    content: str | tuple[TextPart, ...] | None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """Rendered through the model's own template, in the worker."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPrompt:
    """Tokenized as it is, after the model's BOS token. Control tokens written in it are taken as such: whoever sends
    a text instead of messages writes the template's marks too."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrompt:
    """Token ids, taken as they are."""

    tokens: tuple[int, ...]


Prompt = ChatPrompt | TextPrompt | TokenPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen. The defaults are OpenAI's, not llama.cpp's.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 are off. `repeat_penalty` 1 is off
    (llama.cpp's multiplicative penalty, over the last `repeat_last_n` tokens of prompt and answer).
    `seed` None: one is drawn at the ingress, so that a continuation has the same one.
    `logit_bias` holds (token id, bias) pairs, bias in -100..100.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    seed: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Produced:
    """What an earlier holder already made of this answer: the engine goes on after it.

    `tokens` in order; `draws` is how many random numbers were used for them.
    """

    tokens: tuple[int, ...] = ()
    draws: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One answer to make.

    `max_tokens` None means: until the model ends or its context is full; it counts produced tokens too.
    `now` (unix seconds) and `utc_offset_s` come from the ingress: templates that print the date render the
    same text on every peer. `kind` tells history and metrics which route was asked.
    """

    id: str
    model: str
    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    produced: Produced = field(default_factory=Produced)
    now: float = 0.0
    utc_offset_s: int = 0
    kind: Literal["chat", "generate"] = "chat"
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The request was admitted to a slot. `cached_tokens` of the prompt were found in the KV cache.

    `peer` serves it (its name; `peer_id` its id), at which of the `attempts`; `continued_on`: the peers that went on
    with it, in order.
    `candidates`: who else could have, as JSON, if the caller asked to see it. `sha256` of the model file, if known.
    """

    prompt_tokens: int
    cached_tokens: int
    peer: str = ""
    peer_id: str = ""
    attempts: int = 1
    continued_on: tuple[str, ...] = ()
    candidates: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What one step of the engine made for one request.

    `text` may be empty while it is held back (a possible stop string, half a character). `tokens` are the ids
    made in this step, `draws` the random numbers used since the answer began. The first chunk of an answer
    carries `started` and nothing else; the last one carries `finish_reason`. When another peer goes on with the
    answer, a chunk with `started` comes again, with one more name in `continued_on`.

    A server that is no peer tells no token ids: `tokens` is empty then, and the last chunk carries `usage`.
    """

    text: str = ""
    tokens: tuple[int, ...] = ()
    draws: int = 0
    finish_reason: FinishReason | None = None
    started: Started | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of one answer; `cached_tokens` are part of `prompt_tokens`.

    `is_estimated`: the server that made the answer did not count, so its text was measured.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    is_estimated: bool = False


EmbeddingInput = str | tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """Texts, or token ids, to embed; the answer keeps their order."""

    id: str
    model: str
    inputs: tuple[EmbeddingInput, ...]
    dimensions: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """`vectors[i]` are the little-endian float32 bytes, L2-normalized, of input i; `dim` floats each.

    `peer` made them (its name; `peer_id` its id), at which of the `attempts`.
    """

    vectors: tuple[bytes, ...]
    dim: int
    prompt_tokens: int
    peer: str = ""
    peer_id: str = ""
    attempts: int = 1
