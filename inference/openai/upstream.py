"""OpenAI's wire format from the asking side: the body a peer sends to another one, and the answer it reads.

`request` and `answer` serve those who ask us; this module asks. A hop between peers is the same format plus a member
`mesh`, which the peer that a request came in on adds and takes out again: in the body what OpenAI's API cannot say
(tokens already produced, the ingress's clock), in each event the token ids and how many random numbers they took, also
while their text is held back. What belongs together stands in one event, the last token and the finish reason too: a
connection that breaks between two events leaves an answer that can be continued.

It does no I/O. What it reads comes from another machine, and is checked: `AnswerReader` never raises, it answers
PeerGone for what no peer says.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from typing import Any

from inference.chat import (
    ChatPrompt,
    Chunk,
    EmbeddingRequest,
    Embeddings,
    Generation,
    Message,
    Sampling,
    Started,
    TextPrompt,
    Usage,
)
from inference.errors import InferenceError, PeerGone, error_in
from inference.openai.answer import DONE, AnswerHead, error_object, head_json

CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"
EMBEDDINGS_PATH = "/v1/embeddings"

# An event holds a step; for a reader that was slow the rest of an answer: 130,000 tokens are about 2 MB.
EVENT_BYTES_MAX = 16 * 1024 * 1024
# More than any context: what a holder may send when nobody bounded the answer.
TOKENS_MAX = 16 * 1024 * 1024
# Vectors in one event: about 350 kB of the largest models' ones.
VECTORS_PER_EVENT = 16

Said = Chunk | InferenceError | bytes
"""What one event says: a piece of the answer, how it failed, or how loaded its holder is (opaque here)."""


# -- what is asked


def path_of(generation: Generation) -> str:
    """Where a server of OpenAI's API is asked for it."""
    return CHAT_PATH if isinstance(generation.prompt, ChatPrompt) else COMPLETIONS_PATH


def body_of(generation: Generation) -> dict[str, Any]:
    """The request in OpenAI's words, streamed. What is as `Sampling` has it by default is left out."""
    g, s, default = generation, generation.sampling, Sampling()
    body: dict[str, Any] = {"model": g.model, "stream": True}
    if isinstance(g.prompt, ChatPrompt):
        body["messages"] = [_message_out(m) for m in g.prompt.messages]
    else:
        body["prompt"] = g.prompt.text if isinstance(g.prompt, TextPrompt) else list(g.prompt.tokens)
    for name in _SAMPLING:
        if getattr(s, name) != getattr(default, name):
            body[name] = getattr(s, name)
    if s.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in s.logit_bias}
    if g.max_tokens is not None:
        body["max_tokens"] = g.max_tokens
    if g.stop:
        body["stop"] = list(g.stop)
    if g.ignore_eos:
        body["ignore_eos"] = True
    return body


_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repeat_penalty",
    "repeat_last_n", "seed",
)  # fmt: skip


def hop_body(generation: Generation) -> bytes:
    """The body of a hop, which `request.hop_call` turns into the same Generation again.

    Not ASCII: a body may be 32 MiB of UTF-8, and must not become three times as long. Large ones take a while: call it
    off the event loop.
    """
    g = generation
    mesh = {"id": g.id, "now": g.now, "utc_offset_s": g.utc_offset_s, "kind": g.kind}
    if g.produced.tokens or g.produced.draws:
        mesh |= {"produced": list(g.produced.tokens), "draws": g.produced.draws}
    return _json(body_of(g) | {"mesh": mesh})


def hop_embedding_body(request: EmbeddingRequest) -> bytes:
    """The body of a hop that embeds; see `hop_body`."""
    inputs = [i if isinstance(i, str) else list(i) for i in request.inputs]
    body: dict[str, Any] = {"model": request.model, "input": inputs, "encoding_format": "base64"}
    if request.dimensions is not None:
        body["dimensions"] = request.dimensions
    return _json(body | {"mesh": {"id": request.id}})


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _message_out(m: Message) -> dict[str, Any]:
    out: dict[str, Any] = {"role": m.role}
    if m.content is not None:
        is_text = isinstance(m.content, str)
        out["content"] = m.content if is_text else [{"type": "text", "text": part.text} for part in m.content]  # type: ignore[union-attr]
    if m.name is not None:
        out["name"] = m.name
    if m.tool_calls:
        out["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in m.tool_calls
        ]
    if m.tool_call_id is not None:
        out["tool_call_id"] = m.tool_call_id
    return out


# -- what a holder answers


class HopWriter:
    """The events of one answer as its holder sends them to the ingress: OpenAI's chunks, each with `mesh`."""

    def __init__(self, head: AnswerHead) -> None:
        before, after = ('"delta":{"content":', "}") if head.kind == "chat" else ('"text":', "")
        self._before = head_json(head) + f'"choices":[{{"index":0,{before}'.encode()
        self._between = f'{after},"finish_reason":'.encode()

    def chunk(self, chunk: Chunk, load: bytes | None = None) -> bytes:
        """One event for one chunk; `load` rides on the first and the last one."""
        finish = b'"%b"' % chunk.finish_reason.encode() if chunk.finish_reason else b"null"
        mesh = b'"t":[%b],"r":%d' % (",".join(map(str, chunk.tokens)).encode(), chunk.draws)
        if chunk.started is not None:
            mesh = b'"started":' + json.dumps(_started_out(chunk.started)).encode()
        if (usage := chunk.usage) is not None:  # of a server that is no peer: its tokens cannot be counted
            counts = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, int(usage.is_estimated))
            mesh += b',"usage":[%d,%d,%d,%d]' % counts
        if load is not None:
            mesh += b',"load":"%b"' % base64.b64encode(load)
        text = json.dumps(chunk.text).encode() if chunk.text else b'""'
        return b"".join((self._before, text, self._between, finish, b'}],"mesh":{', mesh, b"}}\n\n"))


def error_out(error: InferenceError, load: bytes | None = None) -> dict[str, Any]:
    """OpenAI's error object, with what an ingress needs to know besides."""
    mesh: dict[str, Any] = {"status": error.status}
    if error.retry_after_s is not None:
        mesh["retry_after_s"] = error.retry_after_s
    if load is not None:
        mesh["load"] = base64.b64encode(load).decode()
    return error_object(error) | {"mesh": mesh}


def embedding_events(answer: Embeddings, load: bytes | None = None) -> Iterator[bytes]:
    """The vectors in OpenAI's list objects, a few an event, and [DONE]."""
    for at in range(0, len(answer.vectors), VECTORS_PER_EVENT):
        data = [
            {"object": "embedding", "index": at + n, "embedding": base64.b64encode(vector).decode()}
            for n, vector in enumerate(answer.vectors[at : at + VECTORS_PER_EVENT])
        ]
        yield _event({"object": "list", "data": data})
    mesh = {} if load is None else {"load": base64.b64encode(load).decode()}
    usage = {"prompt_tokens": answer.prompt_tokens, "total_tokens": answer.prompt_tokens}
    yield _event({"object": "list", "data": [], "usage": usage, "mesh": mesh | {"dim": answer.dim}}) + DONE


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _started_out(started: Started) -> dict[str, Any]:
    return {"prompt_tokens": started.prompt_tokens, "cached_tokens": started.cached_tokens, "sha256": started.sha256}


# -- what an ingress reads


class Lines:
    """Cuts the bytes of an event stream into the values of its `data` lines; comments are left out."""

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._event_bytes_max = event_bytes_max
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The values that are complete now."""
        head, newline, tail = data.partition(b"\n")
        if not newline:
            self._keep(data)
            return []
        self._pieces.append(head)
        lines = [b"".join(self._pieces), *tail.split(b"\n")]
        rest = lines.pop()
        self._pieces, self._size = [], 0
        self._keep(rest)
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]

    def _keep(self, piece: bytes) -> None:
        if piece:
            self._pieces.append(piece)
            self._size += len(piece)

    def check(self) -> None:
        """Raises PeerGone when the event that is under way has grown too long."""
        if self._size > self._event_bytes_max:
            raise PeerGone(f"The peer sent an event of more than {self._event_bytes_max:,} bytes.")


class AnswerReader:
    """Reads the events of one answer. `tokens_max`: more of them than the holder was asked for are nonsense."""

    def __init__(self, tokens_max: int | None = None) -> None:
        self._lines = Lines()
        self._left = TOKENS_MAX if tokens_max is None else tokens_max
        self._draws = 0
        self.is_finished = False

    def feed(self, data: bytes) -> list[Said]:
        """What the bytes say, in order; nothing follows an error, or the chunk with a finish reason."""
        said: list[Said] = []
        try:
            for line in self._lines.feed(data):
                if self.is_finished:
                    break
                if line == b"[DONE]":
                    raise PeerGone("The peer ended the answer without a finish reason.")
                self._event(json.loads(line), said)
            self._lines.check()
        except PeerGone as error:
            said.append(error)
            self.is_finished = True
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            said.append(PeerGone("The peer sent an event that is none."))
            self.is_finished = True
        return said

    def _event(self, event: dict[str, Any], said: list[Said]) -> None:
        mesh = event["mesh"]
        if (load := mesh.get("load")) is not None:
            said.append(base64.b64decode(load, validate=True))
        if "error" in event:
            said.append(error_of(event))
            self.is_finished = True
            return
        if (started := mesh.get("started")) is not None:
            said.append(Chunk(started=_started_in(started)))
        else:
            said.append(self._chunk(event["choices"][0], mesh))

    def _chunk(self, choice: dict[str, Any], mesh: dict[str, Any]) -> Chunk:
        text = choice["delta"]["content"] if "delta" in choice else choice["text"]
        tokens, draws, finish = tuple(mesh["t"]), mesh["r"], choice["finish_reason"]
        if not isinstance(text, str) or type(draws) is not int or draws < self._draws:
            raise TypeError
        if any(type(t) is not int or not 0 <= t < 2**31 for t in tokens):
            raise TypeError
        if finish not in (None, "stop", "length"):
            raise ValueError
        self._left -= len(tokens)
        if self._left < 0:
            raise PeerGone("The peer sent more tokens than it was asked for.")
        self._draws = draws
        self.is_finished = finish is not None
        return Chunk(text=text, tokens=tokens, draws=draws, finish_reason=finish, usage=_usage_in(mesh.get("usage")))


class EmbeddingsReader:
    """Reads the events of `embedding_events`; `answer` is there once it is complete."""

    def __init__(self, request: EmbeddingRequest) -> None:
        self._lines = Lines()
        self._count = len(request.inputs)
        self._vectors: list[bytes] = []
        self.answer: Embeddings | None = None

    def feed(self, data: bytes) -> list[bytes]:
        """Takes the bytes; loads that ride on them. Raises PeerGone, or the error the holder answered with."""
        loads: list[bytes] = []
        try:
            for line in self._lines.feed(data):
                if line != b"[DONE]":
                    self._event(json.loads(line), loads)
            self._lines.check()
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            raise PeerGone("The peer sent vectors that are none.") from None
        return loads

    def _event(self, event: dict[str, Any], loads: list[bytes]) -> None:
        mesh = event.get("mesh", {})
        if (load := mesh.get("load")) is not None:
            loads.append(base64.b64decode(load, validate=True))
        if "error" in event:
            raise error_of(event)
        for item in event["data"]:
            if item["index"] != len(self._vectors) or len(self._vectors) == self._count:
                raise ValueError
            self._vectors.append(base64.b64decode(item["embedding"], validate=True))
        if (usage := event.get("usage")) is not None:
            dim, prompt_tokens = mesh["dim"], usage["prompt_tokens"]
            lengths = {len(vector) for vector in self._vectors}
            if type(dim) is not int or type(prompt_tokens) is not int or prompt_tokens < 0:
                raise TypeError
            if len(self._vectors) != self._count or lengths != {4 * dim}:
                raise ValueError
            self.answer = Embeddings(vectors=tuple(self._vectors), dim=dim, prompt_tokens=prompt_tokens)


def refusal_of(status: int, body: bytes) -> tuple[InferenceError, bytes | None]:
    """The error in an answer that is no stream, and the load that rides on it."""
    if status in (401, 403):
        return PeerGone(f"The peer does not take us for a member (HTTP {status})."), None
    try:
        event = json.loads(body)
        load = event["mesh"].get("load")
        return error_of(event), None if load is None else base64.b64decode(load, validate=True)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, binascii.Error):
        return PeerGone(f"The peer answered HTTP {status} without saying why."), None


def error_of(event: dict[str, Any]) -> InferenceError:
    """The error that `error_out` wrote. Raises ValueError, TypeError or KeyError when it wrote none."""
    inner, mesh = event["error"], event["mesh"]
    message, kind, param, code = inner["message"], inner["type"], inner["param"], inner["code"]
    status, retry_after_s = mesh["status"], mesh.get("retry_after_s")
    if not (isinstance(message, str) and isinstance(kind, str) and type(status) is int and 400 <= status < 600):
        raise TypeError
    if not (isinstance(param, str | None) and isinstance(code, str | None) and isinstance(retry_after_s, int | None)):
        raise TypeError
    error = error_in(status, kind, code, param, message)
    error.retry_after_s = retry_after_s
    return error


def _usage_in(value: Any) -> Usage | None:
    if value is None:
        return None
    prompt_tokens, completion_tokens, cached_tokens, is_estimated = value
    if any(type(count) is not int or not 0 <= count < 2**53 for count in value):
        raise TypeError
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cached_tokens=cached_tokens,
        is_estimated=bool(is_estimated),
    )


def _started_in(value: dict[str, Any]) -> Started:
    prompt_tokens, cached_tokens, sha256 = value["prompt_tokens"], value["cached_tokens"], value.get("sha256")
    if type(prompt_tokens) is not int or type(cached_tokens) is not int or not isinstance(sha256, str | None):
        raise TypeError
    if not 0 <= cached_tokens <= prompt_tokens:
        raise ValueError
    return Started(prompt_tokens=prompt_tokens, cached_tokens=cached_tokens, sha256=sha256)
