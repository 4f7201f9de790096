"""Clients that keep what they saw: `Answer`, asked for one at a time (`asked`) or all the time (`Load`).

They are programs on a host of the house, like a person's: one connection for each request, no retries, no mercy. What
an answer should have been is known beforehand, so `wrong` says in words what is the matter with one, or nothing.
"""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from tests.drills.house import expected
from tests.fixtures.lan import inside
from tests.fixtures.peer import Peer, Stream

TIMEOUT_S = 90.0
CHAT = "/v1/chat/completions"


@dataclass(slots=True, eq=False)
class Answer:
    """One request and what its client saw of the answer. Times are monotonic seconds; 0.0: did not happen.

    `trouble`: what went wrong below HTTP. `silence_s`: the longest pause between two events.
    """

    body: Mapping[str, Any]
    asked: str = ""  # the host
    is_stream: bool = True
    began_at: float = 0.0
    first_at: float = 0.0
    heard_at: float = 0.0
    ended_at: float = 0.0
    silence_s: float = 0.0
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str = ""
    finish_reason: str | None = None
    finishes: int = 0
    usage: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    is_done: bool = False
    comments: Sequence[str] = ()
    trouble: str = ""

    @property
    def served_by(self) -> str:
        return self.headers.get("x-llm-router-peer", "")

    @property
    def attempts(self) -> int:
        return int(self.headers.get("x-llm-router-attempts", "0"))

    @property
    def first_token_s(self) -> float:
        return self.first_at - self.began_at

    @property
    def candidates(self) -> list[dict[str, Any]]:
        """What `x-llm-router-explain: 1` was answered with, best first."""
        found: list[dict[str, Any]] = json.loads(self.headers.get("x-llm-router-candidates", "[]"))
        return found

    def wrong(self, text: str, tokens: int | None = None) -> str:
        """What is not as it should be: the whole text, one end, every token counted once. Empty: nothing."""
        if self.trouble or self.status != 200 or self.error is not None:
            return f"{self.asked}: {self.trouble or self.status} {self.error}"
        if self.text != text:
            same = next((i for i, (a, b) in enumerate(zip(self.text, text, strict=False)) if a != b), len(self.text))
            return (
                f"{self.asked} by {self.served_by}: {len(self.text)} characters instead of {len(text)}, "
                f"other from {same} on: {self.text[same : same + 40]!r} instead of {text[same : same + 40]!r}"
            )
        if self.finishes != 1 or (self.is_stream and not self.is_done):
            return f"{self.asked}: {self.finishes} finish reasons, done {self.is_done}"
        if tokens is not None and (self.usage or {}).get("completion_tokens") != tokens:
            return f"{self.asked}: usage {self.usage} instead of {tokens} tokens"
        return ""


def asked(peer: Peer, answer: Answer, headers: Mapping[str, str] | None = None, path: str = CHAT) -> Answer:
    """Asks `answer.body`, and fills `answer` while it is read. Never raises for what the network does."""
    answer.asked = peer.host.name if peer.host is not None else ""
    body = {**answer.body, **({"stream": True, "stream_options": {"include_usage": True}} if answer.is_stream else {})}
    connection = http.client.HTTPConnection("127.0.0.1", peer.port, timeout=TIMEOUT_S)
    answer.began_at = answer.heard_at = time.monotonic()
    try:
        with inside(peer.host):
            connection.connect()
        connection.request(
            "POST", path, body=json.dumps(body), headers={"Content-Type": "application/json", **(headers or {})}
        )
        response = connection.getresponse()
        answer.status = response.status
        answer.headers = {name.lower(): value for name, value in response.getheaders()}
        if answer.is_stream and response.status == 200:
            _read_stream(Stream(connection, response), answer)
        else:
            _read_whole(json.loads(response.read()), answer)
    except (OSError, http.client.HTTPException, ValueError) as error:
        answer.trouble = f"{type(error).__name__}: {error}"
    finally:
        answer.ended_at = time.monotonic()
        connection.close()
    return answer


def _read_stream(stream: Stream, answer: Answer) -> None:
    answer.comments = stream.comments
    for event in stream.events():
        now = time.monotonic()
        answer.text, answer.error, answer.usage = stream.text, stream.error, stream.usage
        answer.finishes += sum(c.get("finish_reason") is not None for c in event.get("choices", ()))
        if stream.text:
            if answer.first_at:
                answer.silence_s = max(answer.silence_s, now - answer.heard_at)
            else:
                answer.first_at = now
            answer.heard_at = now
    answer.finish_reason, answer.is_done = stream.finish_reason, stream.is_done
    answer.silence_s = max(answer.silence_s, time.monotonic() - answer.heard_at)


def _read_whole(body: Mapping[str, Any], answer: Answer) -> None:
    answer.first_at = answer.heard_at = time.monotonic()
    answer.error, answer.usage = body.get("error"), body.get("usage")
    for choice in body.get("choices", ()):
        answer.text += choice["message"]["content"] if "message" in choice else choice["text"]
        answer.finish_reason = choice["finish_reason"]
        answer.finishes += answer.finish_reason is not None


@dataclass(frozen=True, slots=True)
class Question:
    """A chat of one turn for the worker of the tests; `tokens` are wanted of the answer."""

    model: str
    text: str
    seed: int
    tokens: int
    temperature: float = 1.0

    @property
    def body(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": self.text}],
            "temperature": self.temperature,
            "seed": self.seed,
            "max_tokens": self.tokens,
        }

    def wrong(self, answer: Answer) -> str:
        return answer.wrong(expected(self.text, self.seed, self.tokens), self.tokens)


class Asking(threading.Thread):
    """One request in a thread of its own, begun."""

    def __init__(self, peer: Peer, body: Mapping[str, Any], *, is_stream: bool = True, **headers: str) -> None:
        super().__init__(daemon=True)
        self.answer = Answer(body, is_stream=is_stream)
        self._peer = peer
        self._headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.start()

    def run(self) -> None:
        asked(self._peer, self.answer, self._headers)

    def result(self) -> Answer:
        self.join(TIMEOUT_S)
        assert not self.is_alive(), f"an answer neither ended nor failed: {self.answer}"
        return self.answer


class Load:
    """Clients that ask one question after the other, for as long as the block runs.

    `peers` says for each request who may be asked now; a client of an empty list waits.
    """

    def __init__(
        self,
        peers: Callable[[], Sequence[Peer]],
        *,
        model: str,
        tokens: int,
        clients: int,
        pause_s: float = 0.0,
        is_stream: Callable[[int], bool] = lambda number: True,
        headers: Mapping[str, str] | None = None,
        words: int = 0,
        name: str = "question",
    ) -> None:
        """`words`: how many more a question has than its number. `name`: what no other load of the drill asks."""
        self._name = name
        self._more = " word" * words
        self._peers = peers
        self._model = model
        self._tokens = tokens
        self._pause_s = pause_s
        self._is_stream = is_stream
        self._headers = headers
        self._numbers = itertools.count()
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self._seen: list[tuple[Question, Answer]] = []
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S)
            assert error is not None or not thread.is_alive(), "an answer neither ended nor failed"

    @property
    def seen(self) -> list[tuple[Question, Answer]]:
        """What has ended so far, in that order."""
        with self._lock:
            return list(self._seen)

    @property
    def answers(self) -> list[Answer]:
        return [answer for _, answer in self.seen]

    def wrong(self) -> list[str]:
        """What is the matter with those that are not as they should be."""
        return [what for question, answer in self.seen if (what := question.wrong(answer))]

    def _run(self, client: int) -> None:
        while not self._is_over.is_set():
            peers = self._peers()
            if not peers:
                time.sleep(0.05)
                continue
            number = next(self._numbers)
            question = Question(self._model, f"{self._name} {number}{self._more}", number, self._tokens)
            peer = peers[(number if self._pause_s == 0.0 else client) % len(peers)]
            answer = asked(peer, Answer(question.body, is_stream=self._is_stream(number)), self._headers)
            with self._lock:
                self._seen.append((question, answer))
            if self._pause_s:
                self._is_over.wait(self._pause_s)


def p95(values: Sequence[float]) -> float:
    """Of at least one."""
    return sorted(values)[len(values) * 95 // 100]
