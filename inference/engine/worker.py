"""The worker process: one loaded model, run as `python -m inference.engine.worker` by `inference.engine.client`.

It reads frames from stdin and writes frames to stdout (inference.engine.frames). Three threads:

    reader     frames -> inbox; a cancellation also aborts a prefill that is running
    preparer   renders templates and tokenizes, so that a long prompt never stops the others' tokens
    main       the step loop: inbox -> batcher -> one frame out; embeddings likewise

A chat template that renders too long ends the process (inference.engine.preparer). It also ends when stdin ends, so
it never outlives its peer.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NoReturn

from inference.engine.batcher import Admitted, Batcher, Failed, Made
from inference.engine.channel import Channel
from inference.engine.embedder import Embedder, EmbedJob
from inference.engine.frames import Decoder, Frame, FrameError, generation_in
from inference.engine.llama import EMBED_CONTEXT_MAX, Context, LoadError, Model, build
from inference.engine.preparer import Preparer, Watchdog, compiled
from inference.engine.spec import EngineInfo, EngineSpec
from inference.engine.threads import ThreadTuner
from inference.errors import EngineError, InferenceError, InvalidRequest

EXIT_LOAD = 66
CONTEXT_DEFAULT = 8192
STATS_EVERY_S = 1.0


class Worker:
    """The loaded model and its step loop."""

    def __init__(self, spec: EngineSpec, channel: Channel) -> None:
        """Load the model. Raises LoadError."""
        began = time.monotonic()
        self._channel = channel
        self._inbox: deque[tuple[str, Any]] = deque()
        self._wake = threading.Event()
        self._to_prepare: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._prepared = -1  # the highest request id that came out of the preparer; ids only grow
        self._cancelled_early: set[int] = set()
        self._stats_at = 0.0
        self._stopping = False
        last = -1.0

        def progress(fraction: float) -> None:
            nonlocal last
            if fraction - last >= 0.01:
                last = fraction
                channel.send(["progress", round(fraction, 3)])

        self._model = Model(spec.path, gpu_layers=spec.gpu_layers, on_progress=progress)
        threads = spec.threads or len(_affinity())
        trained = self._model.context_trained
        if spec.embedding:
            cells = min(spec.context or EMBED_CONTEXT_MAX, trained, EMBED_CONTEXT_MAX)
            sequences = spec.slots
        else:
            cells = spec.context or min(trained * spec.slots, CONTEXT_DEFAULT)
            sequences = spec.slots + spec.parked
        self._context = Context(
            self._model, cells=cells, sequences=sequences, threads=threads, embedding=spec.embedding
        )
        longest = self._context.batch_size if spec.embedding else self._context.cells  # llama.cpp rounds cells up
        per_request = min(spec.context_per_request or trained, trained, longest)
        watchdog = Watchdog(channel)
        watchdog.arm(None)
        template = compiled(self._model)
        watchdog.disarm()
        self._preparer = Preparer(self._model, template, per_request, watchdog)
        self._embedder = Embedder(self._model, self._context, sequences) if spec.embedding else None
        self._batcher = Batcher(
            self._context,
            self._model,
            slots=spec.slots,
            parked=spec.parked,
            can_rewind=self._model.can_rewind,
            shelf_bytes=spec.shelf_bytes,
        )
        self._tuner = ThreadTuner(threads)
        self.info = EngineInfo(
            context=per_request,
            slots=spec.slots,
            vocab=self._model.vocab_size,
            embedding_dim=self._model.embedding_dim,
            can_chat=not spec.embedding,
            can_embed=spec.embedding and self._context.pooling in (1, 2, 3),
            build=build(),
            threads=threads,
            load_s=round(time.monotonic() - began, 3),
        )

    # ---- reader thread

    def receive(self, frame: Frame) -> None:
        """Take one frame from the peer."""
        match frame:
            case ["generate", int(), dict()] | ["embed", int(), list(), _]:
                self._to_prepare.put(frame)
            case ["cancel", int() as rid]:
                self._post("cancel", rid)
                if (self._embedder or self._batcher).may_abort(rid):
                    self._context.abort(True)
            case ["threads", int() as n] if n > 0:
                self._post("threads", n)
            case ["close"]:
                self.stop()
            case _:
                print(f"unknown frame {frame[0]!r}", file=sys.stderr)

    def stop(self) -> None:
        """End the step loop, and the evaluation that is running."""
        self._stopping = True
        self._context.abort(True)
        self._wake.set()

    def _post(self, kind: str, value: Any) -> None:
        self._inbox.append((kind, value))
        self._wake.set()

    # ---- preparer thread

    def prepare_forever(self) -> None:
        """Render and tokenize what the reader puts; errors answer the request, nothing else."""
        while True:
            frame = self._to_prepare.get()
            rid = frame[1]
            try:
                if frame[0] == "generate":
                    if self._embedder:
                        raise InvalidRequest(
                            "This model embeds; it cannot chat.", code="unsupported_model", param="model"
                        )
                    self._post("work", self._preparer.work(rid, generation_in(frame[2])))
                else:
                    self._post("embed", self._embed_job(rid, frame[2], frame[3]))
            except InferenceError as error:
                self._post("refused", rid)
                self._channel.fail(rid, error)
            except Exception as error:  # noqa: BLE001 - border: one request's failure is that request's answer
                self._post("refused", rid)
                print(f"cannot prepare a request: {type(error).__name__}: {error}", file=sys.stderr)
                self._channel.fail(rid, EngineError("the engine could not prepare this request"))

    def _embed_job(self, rid: int, values: list[Any], dimensions: int | None) -> EmbedJob:
        if not self._embedder or not self.info.can_embed:
            raise InvalidRequest("This model cannot embed.", code="unsupported_model", param="model")
        if dimensions is not None and dimensions > self._model.embedding_dim:
            raise InvalidRequest(
                f"Expected a value <= {self._model.embedding_dim}, but got {dimensions} instead.",
                code="integer_above_max_value",
                param="dimensions",
            )
        inputs = [self._preparer.tokens_of_input(value, place) for place, value in enumerate(values)]
        return EmbedJob(rid, inputs, dimensions, [])

    # ---- main thread

    def run(self) -> None:
        """Step until the peer says stop."""
        while not self._stopping:
            self._context.abort(False)
            self._drain()
            if self._stopping:
                return
            if self._embedder and not self._embedder.idle:
                self._embedder.step(self._channel)
            elif not self._batcher.idle:
                began = time.monotonic()
                events = self._batcher.step()
                self._tune(time.monotonic() - began)
                self._report(events)
            else:
                self._wake.wait()
                self._wake.clear()

    def _tune(self, seconds: float) -> None:
        """Use fewer threads while another program takes their cores."""
        if self._batcher.decoded_rows:
            before = self._tuner.threads
            self._tuner.decoded(self._batcher.decoded_rows, seconds, time.monotonic())
            if self._tuner.threads != before:
                self._context.set_threads(self._tuner.threads)

    def _drain(self) -> None:
        while self._inbox:
            kind, value = self._inbox.popleft()
            if kind == "threads":
                self._tuner = ThreadTuner(value)
                self._context.set_threads(value)
            elif kind == "cancel":
                if value > self._prepared:
                    self._cancelled_early.add(value)
                self._batcher.cancel(value)
                if self._embedder:
                    self._embedder.cancel(value)
            else:
                self._take(kind, value)

    def _take(self, kind: str, value: Any) -> None:
        """What the preparer made of a request, or that it refused it (then `value` is its id)."""
        self._prepared = value if kind == "refused" else value.rid
        if self._prepared in self._cancelled_early:
            self._cancelled_early.discard(self._prepared)
        elif kind == "work":
            self._batcher.submit(value)
        elif kind == "embed" and self._embedder:
            self._embedder.submit(value)

    def _report(self, events: list[Admitted | Made | Failed]) -> None:
        made = [[e.rid, e.text, e.tokens, e.draws, e.finish] for e in events if isinstance(e, Made)]
        for e in events:
            if isinstance(e, Admitted):
                self._channel.send(["started", e.rid, e.prompt_tokens, e.cached])
            elif isinstance(e, Failed):
                self._channel.fail(e.rid, EngineError(e.reason))
        if made:
            self._channel.send(["step", made])
        now = time.monotonic()
        if now - self._stats_at >= STATS_EVERY_S or self._batcher.idle:
            self._stats_at = now
            waiting, prefilling, generating = self._batcher.counts
            self._channel.send(
                [
                    "stats",
                    {
                        "waiting": waiting,
                        "prefilling": prefilling,
                        "generating": generating,
                        "prompt_tokens": self._batcher.prompt_tokens_evaluated,
                        "tokens": self._batcher.tokens_made,
                        "threads": self._tuner.threads,
                    },
                ]
            )


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _die_with_parent() -> None:
    """Linux: SIGKILL when the peer dies, even in the middle of native code. Elsewhere end of file must do."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)


def _frames_from(fd: int) -> Iterator[Frame]:
    decoder = Decoder()
    while data := os.read(fd, 1 << 20):
        yield from decoder.feed(data)


def main() -> NoReturn:
    """Load, then serve until stdin ends."""
    # The peer ends its workers, by `close` or the end of stdin. systemd sends SIGTERM to every process of a service:
    # a worker that obeyed would end the streams that its peer is about to drain.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _die_with_parent()
    # stdout carries frames: whatever native code prints goes to stderr
    channel = Channel(os.dup(1))
    os.dup2(2, 1)
    frames = _frames_from(0)
    first = next(frames, None)
    if first is None or first[0] != "load":
        os._exit(0)
    try:
        worker = Worker(EngineSpec(**first[1]), channel)
    except LoadError as error:
        channel.send(["failed", str(error)])
        os._exit(EXIT_LOAD)
    channel.send(["ready", asdict(worker.info)])

    def read() -> None:
        try:
            for frame in frames:
                worker.receive(frame)
        except FrameError as error:
            print(f"the peer sent no frame: {error}", file=sys.stderr)
        finally:
            worker.stop()  # whatever it was: without a reader nobody is heard any more

    threading.Thread(target=read, name="reader", daemon=True).start()
    threading.Thread(target=worker.prepare_forever, name="preparer", daemon=True).start()
    worker.run()
    sys.stderr.flush()
    # Without freeing: the process is the arena. os._exit because native threads may still hold locks.
    os._exit(0)


if __name__ == "__main__":
    main()
