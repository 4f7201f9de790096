"""The worker process: one loaded model, run as `python -m inference.engine.worker` by `inference.engine.client`.

It reads frames from stdin and writes frames to stdout (inference.engine.frames). Three threads:

    reader     frames -> inbox; a cancellation also aborts a prefill that is running
    preparer   renders templates and tokenizes, so that a long prompt never stops the others' tokens
    main       the step loop: inbox -> batcher -> one frame out; embeddings likewise

A watchdog ends the process when a model's chat template takes longer than `TEMPLATE_S`: a thread cannot be
stopped, a process can. The process also ends when stdin ends, so it never outlives its peer.
"""

from __future__ import annotations

import ctypes
import os
import queue
import secrets
import signal
import sys
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn

import numpy as np

from inference.chat import ChatPrompt, Generation, TextPrompt
from inference.engine.batcher import Admitted, Batcher, Failed, Made, Work
from inference.engine.frames import Decoder, Frame, FrameError, encode, generation_in
from inference.engine.llama import EMBED_CONTEXT_MAX, Context, LoadError, Model, Tokens, build
from inference.engine.spec import EngineInfo, EngineSpec
from inference.engine.template import CHATML, ChatTemplate, TemplateError
from inference.errors import ContextLengthExceeded, EngineError, InferenceError, InvalidRequest

TEMPLATE_S = 2.0
"""A template that renders longer ends the process; the sandbox stops code, not exhaustion."""

EXIT_TEMPLATE = 65
EXIT_LOAD = 66
CONTEXT_DEFAULT = 8192
STATS_EVERY_S = 1.0


class Channel:
    """Frames to the peer, from any thread. Blocks while the pipe is full: that is the backpressure."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def send(self, frame: Frame) -> None:
        """Write one frame; the process ends when the peer is gone."""
        data = memoryview(encode(frame))
        with self._lock:
            while data:
                try:
                    data = data[os.write(self._fd, data) :]
                except OSError:
                    os._exit(0)

    def fail(self, rid: int, error: InferenceError) -> None:
        """End request `rid` with `error`."""
        self.send(["error", rid, error.status, error.type, error.code, error.param, error.message])


class Watchdog:
    """Ends the process when the chat template of request `rid` renders for more than TEMPLATE_S."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._timer: threading.Timer | None = None
        self._rid: int | None = None

    def arm(self, rid: int | None) -> None:
        """Begin to wait; `rid` None while the model is loading."""
        self._rid = rid
        self._timer = threading.Timer(TEMPLATE_S, self._bite)
        self._timer.daemon = True
        self._timer.start()

    def disarm(self) -> None:
        """The template is done."""
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _bite(self) -> None:
        message = f"the model's chat template did not finish within {TEMPLATE_S:g} s"
        if self._rid is None:
            self._channel.send(["failed", message])
        else:
            self._channel.fail(self._rid, InvalidRequest(message, code="invalid_model_template", param="model"))
        os._exit(EXIT_TEMPLATE)


class Preparer:
    """Turns a request from the wire into `Work`: template, tokens, limits."""

    def __init__(self, model: Model, template: ChatTemplate | TemplateError, context: int, watchdog: Watchdog) -> None:
        self._model = model
        self._template = template
        self._context = context
        self._watchdog = watchdog

    def work(self, rid: int, request: Generation) -> Work:
        """Raises InvalidRequest or ContextLengthExceeded."""
        prompt = self._tokens(rid, request)
        if not len(prompt):
            prompt = self._model.tokenize("", special=True, add_special=True)
            if not len(prompt):
                raise InvalidRequest("The prompt is empty, and this model has no begin token.", param="prompt")
        room = self._context - len(prompt)
        if room <= 0:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {self._context:,} tokens, but the prompt has "
                f"{len(prompt):,} tokens. Shorten it, or set LLM_ROUTER_CONTEXT higher.",
                param="messages" if isinstance(request.prompt, ChatPrompt) else "prompt",
            )
        sampling = request.sampling
        if sampling.seed is None:
            sampling = replace(sampling, seed=secrets.randbits(63))
        return Work(
            rid,
            prompt,
            sampling=sampling,
            max_tokens=min(request.max_tokens or room, room),
            vocabulary=self._model,
            stop=request.stop,
            produced=request.produced.tokens,
            draws=request.produced.draws,
            ignore_eos=request.ignore_eos,
        )

    def tokens_of_input(self, value: str | list[int]) -> Tokens:
        """Token ids of one text or token array to embed."""
        if isinstance(value, str):
            return self._model.tokenize(value, special=False, add_special=True)
        return self._checked(value, "input")

    def _tokens(self, rid: int, request: Generation) -> Tokens:
        prompt = request.prompt
        if isinstance(prompt, ChatPrompt):
            text = self._rendered(rid, prompt, request)
            bos = self._model.bos_text
            return self._model.tokenize(text, special=True, add_special=not (bos and text.startswith(bos)))
        if isinstance(prompt, TextPrompt):
            return self._model.tokenize(prompt.text, special=True, add_special=True)
        return self._checked(list(prompt.tokens), "prompt")

    def _rendered(self, rid: int, prompt: ChatPrompt, request: Generation) -> str:
        if isinstance(self._template, TemplateError):
            raise InvalidRequest(str(self._template), code="invalid_model_template", param="model")
        self._watchdog.arm(rid)
        try:
            return self._template.render(prompt.messages, now=request.now, utc_offset_s=request.utc_offset_s)
        except TemplateError as error:
            if error.refused:
                raise InvalidRequest(str(error), code="invalid_value", param="messages") from error
            raise InvalidRequest(str(error), code="invalid_model_template", param="model") from error
        finally:
            self._watchdog.disarm()

    def _checked(self, ids: list[int], param: str) -> Tokens:
        worst = max(ids, default=0)
        if worst >= self._model.vocab_size or min(ids, default=0) < 0:
            raise InvalidRequest(
                f"Token id {worst if worst >= self._model.vocab_size else min(ids)} is not in this model's "
                f"vocabulary (0 to {self._model.vocab_size - 1}).",
                code="invalid_value",
                param=param,
            )
        return np.asarray(ids, np.int32)


@dataclass(slots=True)
class EmbedJob:
    """An embeddings request in the worker: what is still to do, and the vectors so far."""

    rid: int
    inputs: list[Tokens]
    dimensions: int | None
    vectors: list[bytes]


class Embedder:
    """Embeds inputs in batches: as many sequences as there are slots, as many tokens as a batch holds."""

    def __init__(self, model: Model, context: Context, sequences: int) -> None:
        self._model, self._context, self._sequences = model, context, sequences
        self._jobs: deque[EmbedJob] = deque()

    @property
    def idle(self) -> bool:
        """True when there is nothing to embed."""
        return not self._jobs

    def submit(self, job: EmbedJob) -> None:
        """Queue a job whose inputs all fit the context."""
        self._jobs.append(job)

    def cancel(self, rid: int) -> None:
        """Drop the job `rid`."""
        self._jobs = deque(j for j in self._jobs if j.rid != rid)

    def step(self, channel: Channel) -> None:
        """Embed one batch of inputs, across jobs; answers the jobs that are complete."""
        c = self._context
        c.clear()
        members: list[EmbedJob] = []
        n = 0
        for job in self._jobs:
            for tokens in job.inputs[len(job.vectors) :]:
                if len(members) == self._sequences or n + len(tokens) > c.batch_size:
                    break
                end = n + len(tokens)
                c.token[n:end] = tokens
                c.position[n:end] = np.arange(len(tokens))
                c.sequence[n:end] = len(members)
                members.append(job)
                n = end
            else:
                continue
            break
        c.wants_row[:n] = 1
        result = c.decode(n)
        if result == 2:  # aborted by a cancellation: the next step does it again
            return
        if result != 0:
            for job in {id(j): j for j in members}.values():
                channel.fail(job.rid, EngineError(f"the engine failed (llama_decode returned {result})"))
                self.cancel(job.rid)
            return
        for sequence, job in enumerate(members):
            vector = self._context.pooled(sequence)[: job.dimensions]
            norm = float(np.linalg.norm(vector))
            job.vectors.append((vector / (norm or 1.0)).astype("<f4").tobytes())
        while self._jobs and len(self._jobs[0].vectors) == len(self._jobs[0].inputs):
            job = self._jobs.popleft()
            dim = len(job.vectors[0]) // 4
            channel.send(["embedded", job.rid, dim, job.vectors, sum(len(t) for t in job.inputs)])


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
        per_request = min(spec.context_per_request or trained, trained, self._context.cells)
        watchdog = Watchdog(channel)
        watchdog.arm(None)
        template = _compiled(self._model)
        watchdog.disarm()
        self._preparer = Preparer(self._model, template, per_request, watchdog)
        self._embedder = Embedder(self._model, self._context, sequences) if spec.embedding else None
        self._batcher = Batcher(
            self._context, self._model, slots=spec.slots, parked=spec.parked, can_rewind=self._model.can_rewind
        )
        self._per_request = per_request
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
                if self._batcher.prefilling(rid) or self._embedder:
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
        inputs = [self._preparer.tokens_of_input(v) for v in values]
        for i, tokens in enumerate(inputs):
            if not 0 < len(tokens) <= self._per_request:
                raise ContextLengthExceeded(
                    f"This model's maximum context length is {self._per_request:,} tokens, but input[{i}] has "
                    f"{len(tokens):,} tokens.",
                    param="input",
                )
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
                self._report(self._batcher.step())
            else:
                self._wake.wait()
                self._wake.clear()

    def _drain(self) -> None:
        while self._inbox:
            kind, value = self._inbox.popleft()
            if kind == "threads":
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
                    },
                ]
            )


def _compiled(model: Model) -> ChatTemplate | TemplateError:
    """The model's template; ChatML for files without one; an error is kept for those who want to chat."""
    try:
        return ChatTemplate(model.template or CHATML, bos=model.bos_text, eos=model.eos_text)
    except TemplateError as error:
        return error


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _die_with_parent() -> None:
    """Linux: SIGKILL when the peer dies, even in the middle of native code. Elsewhere end of file must do."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)


def _frames_from(fd: int) -> Any:
    decoder = Decoder()
    while data := os.read(fd, 1 << 20):
        yield from decoder.feed(data)


def main() -> NoReturn:
    """Load, then serve until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
        worker.stop()

    threading.Thread(target=read, name="reader", daemon=True).start()
    threading.Thread(target=worker.prepare_forever, name="preparer", daemon=True).start()
    worker.run()
    sys.stderr.flush()
    # Without freeing: the process is the arena. os._exit because native threads may still hold locks.
    os._exit(0)


if __name__ == "__main__":
    main()
