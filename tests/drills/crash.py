"""Row 5: the engine's process dies in the middle of eight streams, once and twice."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inference.chat import ChatPrompt, Message
from tests.drills.figure import Figure
from tests.drills.models import STORY, made
from tests.drills.watch import Watch
from tests.fixtures.fake_worker import expected_text
from tests.fixtures.peer import Peer, Stream, chat_body, until

STREAMS = 8
MODELS_S = 0.25
SILENCE_S = 3.0
CLOSED_S = 2.0


class Reader(threading.Thread):
    """A client that reads one stream to its end and notes how long it was silent in between."""

    def __init__(self, peer: Peer, body: dict[str, object]) -> None:
        super().__init__()
        self._peer = peer
        self._body = body
        self.stream: Stream | None = None
        self.silence_s = 0.0
        self.ended_at = 0.0
        self.start()

    @property
    def characters(self) -> int:
        return len(self.stream.text) if self.stream else 0

    def run(self) -> None:
        self.stream = self._peer.stream("/v1/chat/completions", self._body)
        heard = time.monotonic()
        for _ in self.stream.events():
            now = time.monotonic()
            self.silence_s, heard = max(self.silence_s, now - heard), now
        self.ended_at = time.monotonic()
        self.stream.close()

    def result(self) -> Stream:
        """The stream, at its end."""
        self.join(90)
        assert self.stream is not None and not self.is_alive(), "a stream neither ended nor failed"
        return self.stream


@contextmanager
def reading(peer: Peer, model: str) -> Iterator[list[Reader]]:
    """Eight streams, each of which has begun to say something. Their threads are over when the block is."""
    readers = [Reader(peer, chat_body(model, f"Tell me story {n}", seed=n)) for n in range(STREAMS)]
    try:
        until(lambda: all(r.characters > 100 for r in readers), "every stream says something")
        yield readers
    finally:
        for reader in readers:
            reader.join(90)


def once(folder: Path, number: signal.Signals) -> list[Figure]:
    """The real worker is ended by a signal: every client gets the whole text, as if nothing had happened."""
    with Peer.started(folder / "data", "--models-dir", str(made(folder / "models"))) as peer, Watch(peer) as watch:
        with reading(peer, "story") as readers:
            worker = peer.worker("story")
            worker.send_signal(number)
            streams = [r.result() for r in readers]
        for stream in streams:
            assert stream.error is None, stream.error
            assert stream.text == STORY
            assert stream.is_done and stream.finish_reason == "stop"
        assert peer.worker("story").pid != worker.pid
        assert peer.get("/metrics").body.count(b"\n") > 10
    name = signal.Signals(number).name
    return [
        Figure(what=f"{name}: slowest /v1/models", value=watch.worst_s, limit=MODELS_S, unit="s"),
        Figure(what=f"{name}: longest silence", value=max(r.silence_s for r in readers), limit=SILENCE_S, unit="s"),
    ]


def twice(folder: Path) -> list[Figure]:
    """The worker crashes, and crashes again: proper errors, quarantine, and everything else goes on."""
    with Peer.started(folder / "data", "--models-dir", str(made(folder / "models"))) as peer, Watch(peer) as watch:
        with reading(peer, "story") as readers:
            first = peer.worker("story")
            first.send_signal(signal.SIGSEGV)
            before = [r.characters for r in readers]
            until(lambda: all(r.characters > b + 50 for r, b in zip(readers, before, strict=True)), "they go on")
            second = peer.worker("story")
            assert second.pid != first.pid
            second.send_signal(signal.SIGSEGV)
            crashed_at = time.monotonic()
            streams = [r.result() for r in readers]
        for stream in streams:
            assert stream.error is not None and stream.error["code"] == "stream_interrupted", stream.error
            assert not stream.is_done and stream.finish_reason is None
            assert len(stream.text) > 100 and STORY.startswith(stream.text)
        began = time.monotonic()
        refused = peer.post("/v1/chat/completions", chat_body("story", "Once more"))
        refused_s = time.monotonic() - began
        assert refused.status == 503 and refused.json["error"]["code"] == "model_unavailable"
        assert int(refused.headers["Retry-After"]) > 60 and "SIGSEGV" in refused.json["error"]["message"]
        assert [m["state"] for m in peer.ps()["models"] if m["model"] == "story"] == ["quarantined"]
        assert peer.post("/v1/chat/completions", chat_body("hello", "Hello")).status == 200
    ended_s = max(r.ended_at for r in readers) - crashed_at
    return [
        Figure(what="twice: slowest /v1/models", value=watch.worst_s, limit=MODELS_S, unit="s"),
        Figure(what="twice: second crash to the last stream closed", value=ended_s, limit=CLOSED_S, unit="s"),
        Figure(what="twice: refusal of a resting model", value=refused_s, limit=0.05, unit="s"),
    ]


def sampled(folder: Path, how: str) -> list[Figure]:
    """With the worker of the tests: sampled answers (every token a random draw) go on with the right draws."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = f"--tokens 300 --rate 150 --crash-after {100 * STREAMS} --crash-once {folder / 'marker'}"
    env = {"LLM_ROUTER_WORKER": f"tests.fixtures.fake_worker {arguments} --crash-how {how}"}
    with Peer.started(folder / "data", env=env) as peer, Watch(peer) as watch:
        texts = [f"question {n}" for n in range(STREAMS)]
        bodies = [{**chat_body("hello", text, seed=n), "temperature": 1} for n, text in enumerate(texts)]
        readers = [Reader(peer, body) for body in bodies]
        streams = [r.result() for r in readers]
        for n, stream in enumerate(streams):
            prompt = ChatPrompt(messages=(Message(role="user", content=texts[n]),))
            assert stream.text == expected_text(prompt, n, 300)
            assert stream.is_done and stream.error is None
        assert (folder / "marker").exists(), "nothing crashed"
    return [
        Figure(what=f"{how}: slowest /v1/models", value=watch.worst_s, limit=MODELS_S, unit="s"),
        Figure(what=f"{how}: longest silence", value=max(r.silence_s for r in readers), limit=SILENCE_S, unit="s"),
    ]
