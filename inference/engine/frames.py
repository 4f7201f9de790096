"""What peer and worker say to each other: length-prefixed msgpack over the worker's stdin and stdout.

A frame is 4 bytes, little-endian, of length (at most `FRAME_BYTES_MAX`), then one msgpack array whose first
element names it. Peer to worker:

    ["load", spec]                       once, first; spec is EngineSpec as a map
    ["generate", rid, request]           rid: int, chosen by the peer, never reused; request: see `generation_out`
    ["embed", rid, [text or [ids]...], dimensions or None]
    ["cancel", rid]                      no answer; unknown ids are ignored
    ["threads", n]                       change the number of threads, live
    ["close"]                            end; so does end of file

Worker to peer:

    ["progress", fraction]               0..1, while loading
    ["ready", info]                      EngineInfo as a map
    ["failed", message]                  the model cannot be loaded; the worker ends
    ["started", rid, prompt_tokens, cached_tokens]
    ["step", [[rid, text, [token ids], draws, finish or None]...]]   one frame a step, all requests in it
    ["embedded", rid, dim, [bytes...], prompt_tokens]
    ["error", rid, status, type, code or None, param or None, message]   ends that request
    ["stats", map]                       after a step, at most once a second: counters for /metrics

Nothing here reads a socket: `Decoder` is fed bytes and yields frames.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgpack

from inference.chat import (
    ChatPrompt,
    Generation,
    Message,
    Produced,
    Sampling,
    TextPart,
    TextPrompt,
    TokenPrompt,
    ToolCall,
)

# A body is at most 32 MiB of JSON; token ids (5 bytes each) of a continuation come on top.
FRAME_BYTES_MAX = 64 * 1024 * 1024
_LENGTH = struct.Struct("<I")

Frame = list[Any]


class FrameError(Exception):
    """The other side sent something that is no frame; the channel cannot be used any more."""


def encode(frame: Frame) -> bytes:
    """The bytes of one frame. Raises FrameError if it is longer than FRAME_BYTES_MAX."""
    body: bytes = msgpack.packb(frame, use_bin_type=True)
    if len(body) > FRAME_BYTES_MAX:
        raise FrameError(f"frame of {len(body):,} bytes, limit {FRAME_BYTES_MAX:,}")
    return _LENGTH.pack(len(body)) + body


class Decoder:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Every frame that is complete now. Raises FrameError on anything else than frames."""
        self._buffer += data
        while len(self._buffer) >= 4:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > FRAME_BYTES_MAX:
                raise FrameError(f"frame of {length:,} bytes, limit {FRAME_BYTES_MAX:,}")
            if len(self._buffer) < 4 + length:
                return
            body = bytes(self._buffer[4 : 4 + length])
            del self._buffer[: 4 + length]
            try:
                frame = msgpack.unpackb(body, raw=False, strict_map_key=False)
            except (ValueError, msgpack.exceptions.UnpackException) as error:
                raise FrameError(f"not msgpack: {error}") from error
            if not isinstance(frame, list) or not frame or not isinstance(frame[0], str):
                raise FrameError("a frame is an array that begins with its name")
            yield frame


def generation_out(request: Generation) -> dict[str, Any]:
    """`request` as a map for the wire (the model's name is left out: a worker has one model)."""
    s = request.sampling
    return {
        "id": request.id,
        "prompt": _prompt_out(request.prompt),
        "sampling": [
            s.temperature, s.top_p, s.top_k, s.min_p, s.presence_penalty, s.frequency_penalty,
            s.repeat_penalty, s.repeat_last_n, s.seed, [list(b) for b in s.logit_bias],
        ],
        "max_tokens": request.max_tokens,
        "stop": list(request.stop),
        "produced": [list(request.produced.tokens), request.produced.draws],
        "now": request.now,
        "utc_offset_s": request.utc_offset_s,
        "ignore_eos": request.ignore_eos,
    }  # fmt: skip


def generation_in(data: dict[str, Any]) -> Generation:
    """The inverse of `generation_out`; `model` is empty."""
    temperature, top_p, top_k, min_p, presence, frequency, repeat, last_n, seed, bias = data["sampling"]
    tokens, draws = data["produced"]
    return Generation(
        id=data["id"],
        model="",
        prompt=_prompt_in(data["prompt"]),
        sampling=Sampling(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            presence_penalty=presence,
            frequency_penalty=frequency,
            repeat_penalty=repeat,
            repeat_last_n=last_n,
            seed=seed,
            logit_bias=tuple((int(t), float(b)) for t, b in bias),
        ),
        max_tokens=data["max_tokens"],
        stop=tuple(data["stop"]),
        produced=Produced(tokens=tuple(tokens), draws=draws),
        now=data["now"],
        utc_offset_s=data["utc_offset_s"],
        ignore_eos=data["ignore_eos"],
    )


def _prompt_out(prompt: ChatPrompt | TextPrompt | TokenPrompt) -> list[Any]:
    match prompt:
        case ChatPrompt(messages=messages):
            return ["chat", [_message_out(m) for m in messages]]
        case TextPrompt(text=text):
            return ["text", text]
        case TokenPrompt(tokens=tokens):
            return ["tokens", list(tokens)]


def _prompt_in(data: list[Any]) -> ChatPrompt | TextPrompt | TokenPrompt:
    kind, value = data
    if kind == "chat":
        return ChatPrompt(messages=tuple(_message_in(m) for m in value))
    if kind == "text":
        return TextPrompt(text=value)
    if kind == "tokens":
        return TokenPrompt(tokens=tuple(value))
    raise FrameError(f"unknown kind of prompt {kind!r}")


def _message_out(m: Message) -> list[Any]:
    content = m.content if m.content is None or isinstance(m.content, str) else [p.text for p in m.content]
    return [m.role, content, m.name, [[c.id, c.name, c.arguments] for c in m.tool_calls], m.tool_call_id]


def _message_in(data: list[Any]) -> Message:
    role, content, name, calls, call_id = data
    if isinstance(content, list):
        content = tuple(TextPart(text=t) for t in content)
    return Message(
        role=role,
        content=content,
        name=name,
        tool_calls=tuple(ToolCall(id=i, name=n, arguments=a) for i, n, a in calls),
        tool_call_id=call_id,
    )
