"""The peer's end of a worker: starts the process, speaks frames with it, hands each request its chunks.

One `EngineClient` is one worker process with one model loaded. It decides nothing about which model to load,
who may ask, or what to do after a crash (`inference.models.pool` and `mesh.dispatch` do); it never imports
llama_cpp. The channel is inference/engine/frames.py over the child's stdin and stdout; stderr goes to the log.

Frames are cut in the event loop's own callback (asyncio.SubprocessProtocol), not in a task: with 16 streams the
cost of an event is what limits tokens/s on a small machine. Each request has a mailbox; a consumer that is slow
finds several steps merged into one chunk, so a mailbox is never longer than the answer.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

import inference
from inference.chat import Chunk, EmbeddingRequest, Embeddings, Generation, Started
from inference.engine import pulse
from inference.engine.frames import Decoder, Frame, FrameError, encode, generation_out
from inference.engine.spec import EngineInfo, EngineSpec
from inference.errors import InferenceError, LoadFailed, WorkerDied, error_in

log = logging.getLogger(__name__)

DEFAULT_WORKER = "inference.engine.worker"
STDERR_LINES = 50
STDERR_LINE_CHARS = 1000
# After the first sign of an end (exit, or end of a pipe) the other signs get this long: a grandchild may hold a
# pipe open, and a worker may close its pipes and live on.
STRAGGLER_S = 1.0
# How long a killed process may take to disappear before it is left to the operating system.
KILL_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """How a worker ended. `exit_code` is negative for a signal (POSIX), None if it could not be waited for.

    `asked`: we told it to end. `blames_model`: the end may be the file's fault (a fault in native code, nonsense
    on the channel); False for SIGKILL and SIGTERM, which come from outside: the kernel short of memory, a person.
    """

    exit_code: int | None
    reason: str
    asked: bool
    blames_model: bool


class LoadCrashed(LoadFailed):
    """The worker ended before it was ready; `death` says how."""

    def __init__(self, message: str, death: Death) -> None:
        super().__init__(message)
        self.death = death


class EngineClient:
    """A running worker. Made by `start`; ended by `close`, or by itself (`died`).

    `died` is done once the process is gone and everything it sent before has been handed out.
    """

    def __init__(self) -> None:
        """For `start` only."""
        self.info: EngineInfo
        self.stats: dict[str, Any] = {}  # the worker's latest counters
        self._loop = asyncio.get_running_loop()
        self.died: asyncio.Future[Death] = self._loop.create_future()
        self._child = _Child(receive=self._receive, ended=self._ended)
        self._loaded: asyncio.Future[EngineInfo] = self._loop.create_future()
        self._on_progress: Callable[[float], None] = lambda fraction: None
        self._rids = itertools.count(1)
        self._mailboxes: dict[int, _Mailbox] = {}
        self._embeddings: dict[int, asyncio.Future[Embeddings]] = {}
        self._pulse = pulse.Pulse()
        self._next_look: asyncio.TimerHandle | None = None

    @classmethod
    async def start(
        cls,
        spec: EngineSpec,
        *,
        worker: str = DEFAULT_WORKER,
        timeout_s: float = 600.0,
        on_progress: Callable[[float], None] = lambda fraction: None,
        environment: Mapping[str, str] | None = None,
    ) -> EngineClient:
        """A worker with the model of `spec` loaded.

        `worker` is a module and its arguments, as one would type them. `environment` is added to what the child
        gets. Raises LoadFailed; LoadCrashed if the process ended by itself. No process is left behind then.
        """
        client = cls()
        client._on_progress = on_progress
        await client._child.spawn(
            [sys.executable, "-P", "-m", *shlex.split(worker)],
            worker_environment(os.environ) | dict(environment or {}),
        )
        ready = False
        try:
            client._child.write(encode(["load", asdict(spec)]))
            async with asyncio.timeout(timeout_s):
                client.info = await client._loaded
            ready = True
        except TimeoutError:
            raise LoadFailed(f"it was not loaded within {timeout_s:g} s") from None
        except LoadFailed as error:
            for line in client.stderr_lines:
                error.add_note(line)  # for the log; the caller sees the message only
            raise
        finally:
            if not ready:
                await client.close(grace_s=0)
        log.info("worker ready", extra={"pid": client.pid, "load_s": client.info.load_s})
        client._look()
        return client

    async def generate(
        self,
        request: Generation,
        *,
        on_begin: Callable[[Callable[[InferenceError], None]], None] | None = None,
        on_finish: Callable[[], None] | None = None,
    ) -> AsyncGenerator[Chunk, None]:
        """The chunks of one answer: `started` first, the last with `finish_reason`.

        `on_begin` gets what ends the answer from outside, with an error: cheaper than a timeout around every chunk.
        `on_finish` is called when the worker has made the last chunk, which a slow reader may read much later.
        Closing the iterator, or cancelling who reads it, tells the worker at once. Raises WorkerDied after
        everything that had arrived, or the error the worker answered with.
        """
        self._assert_alive()
        rid = next(self._rids)
        mailbox = self._mailboxes[rid] = _Mailbox(self._loop, on_finish)
        if on_begin is not None:
            on_begin(mailbox.fail)
        try:
            self._child.write(encode(["generate", rid, generation_out(request)]))
            await self._child.drained()
            while True:
                chunk = await mailbox.take()
                yield chunk
                if chunk.finish_reason is not None:
                    return
        finally:
            if self._mailboxes.pop(rid, None) is not None:
                self._cancel(rid)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """The vectors of `request.inputs`, in their order. Raises as `generate` does."""
        self._assert_alive()
        rid = next(self._rids)
        answer: asyncio.Future[Embeddings] = self._loop.create_future()
        self._embeddings[rid] = answer
        try:
            inputs = [i if isinstance(i, str) else list(i) for i in request.inputs]
            self._child.write(encode(["embed", rid, inputs, request.dimensions]))
            await self._child.drained()
            return await answer
        finally:
            if self._embeddings.pop(rid, None) is not None:
                self._cancel(rid)

    def set_threads(self, threads: int) -> None:
        """The worker computes with this many threads from its next step on."""
        self._child.write(encode(["threads", threads]))

    async def close(self, grace_s: float = 5.0) -> None:
        """Ends the worker: asked first, killed after `grace_s`. Requests still running get WorkerDied."""
        self._child.asked = True
        if self.died.done():
            return
        try:
            self._child.write(encode(["close"]))
            await asyncio.wait([self.died], timeout=grace_s)
        finally:
            self._child.kill()
        await asyncio.wait([self.died], timeout=KILL_S)
        if not self.died.done():
            log.error("worker cannot be killed", extra={"pid": self.pid})

    @property
    def alive(self) -> bool:
        return not self.died.done()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def active(self) -> int:
        """Requests that this worker has and has not answered to the end."""
        return len(self._mailboxes) + len(self._embeddings)

    @property
    def stderr_lines(self) -> tuple[str, ...]:
        """The last lines the worker wrote to stderr."""
        return tuple(self._child.stderr)

    # -- what the worker says

    def _receive(self, frame: Frame) -> None:
        """One frame. Whatever is wrong with its shape raises ValueError, TypeError or KeyError."""
        match frame[0]:
            case "step":
                mailboxes = self._mailboxes
                for row in frame[1]:
                    rid, _text, _tokens, _draws, finish = row
                    mailbox = mailboxes.get(rid)
                    if mailbox is None:
                        continue  # cancelled meanwhile
                    mailbox.put(row)
                    if finish is not None:
                        del mailboxes[rid]
                        mailbox.finished()
            case "started":
                _, rid, prompt_tokens, cached_tokens = frame
                if (mailbox := self._mailboxes.get(rid)) is not None:
                    mailbox.put_started(Started(prompt_tokens=prompt_tokens, cached_tokens=cached_tokens))
            case "embedded":
                _, rid, dim, vectors, prompt_tokens = frame
                answer = self._embeddings.pop(rid, None)
                if answer is not None and not answer.done():
                    answer.set_result(Embeddings(vectors=tuple(vectors), dim=dim, prompt_tokens=prompt_tokens))
            case "error":
                _, rid, *fields = frame
                self._fail(rid, error_in(*fields))
            case "stats":
                self.stats = dict(frame[1])
            case "progress":
                self._on_progress(min(1.0, max(0.0, float(frame[1]))))
            case "ready":
                if not self._loaded.done():
                    self._loaded.set_result(EngineInfo(**frame[1]))
            case "failed":
                if not self._loaded.done():
                    self._loaded.set_exception(LoadFailed(str(frame[1])))
            case name:
                raise ValueError(f"unknown frame {name!r}")

    def _fail(self, rid: int, error: InferenceError) -> None:
        if (mailbox := self._mailboxes.pop(rid, None)) is not None:
            mailbox.fail(error)
        answer = self._embeddings.pop(rid, None)
        if answer is not None and not answer.done():
            answer.set_exception(error)

    def _look(self) -> None:
        """Kills a worker that hangs; who waits for it gets WorkerDied, and goes on elsewhere."""
        if self.died.done():
            return
        is_busy = self.active > 0
        fault = self._pulse.fault(
            self._loop.time(),
            is_busy=is_busy,
            heard_at=self._child.heard_at,
            processor_s=processor_seconds(self.pid) if is_busy else None,
        )
        if fault is not None:
            log.error("worker hangs", extra={"pid": self.pid, "reason": fault, "active": self.active})
            self._child.kill(fault)
        self._next_look = self._loop.call_later(pulse.LOOK_EVERY_S, self._look)

    def _ended(self, death: Death) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
        level = logging.DEBUG if death.asked else logging.WARNING
        log.log(level, "worker ended", extra={"pid": self.pid, "reason": death.reason, "active": self.active})
        for rid in (*self._mailboxes, *self._embeddings):
            self._fail(rid, WorkerDied(f"The worker of this model {death.reason}."))
        if not self._loaded.done():
            last = f" Its last words: {self.stderr_lines[-1][:300]}" if self._child.stderr else ""
            message = f"the worker {death.reason} while it loaded the model.{last}"
            self._loaded.set_exception(LoadCrashed(message, death))
            self._loaded.exception()  # nobody may be waiting any more
        self.died.set_result(death)

    # -- what we say

    def _assert_alive(self) -> None:
        if self.died.done():
            raise WorkerDied(f"The worker of this model {self.died.result().reason}.")

    def _cancel(self, rid: int) -> None:
        self._child.write(encode(["cancel", rid]))


class _Mailbox:
    """What has arrived for one request and was not read yet."""

    __slots__ = ("_error", "_loop", "_on_finish", "_rows", "_started", "_waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_finish: Callable[[], None] | None) -> None:
        self._loop = loop
        self._on_finish = on_finish
        self._rows: list[list[Any]] = []
        self._started: Started | None = None
        self._error: InferenceError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, row: list[Any]) -> None:
        if self._error is None:
            self._rows.append(row)
            self._wake()

    def put_started(self, started: Started) -> None:
        self._started = started
        self._wake()

    def finished(self) -> None:
        if self._on_finish is not None:
            self._on_finish()

    def fail(self, error: InferenceError) -> None:
        self._error = error
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def take(self) -> Chunk:
        """Everything that arrived, as one chunk; waits for something. One reader only."""
        while not self._rows and self._started is None:
            if self._error is not None:
                raise self._error
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._started is not None:
            started, self._started = self._started, None
            return Chunk(started=started)
        rows, self._rows = self._rows, []
        if len(rows) == 1:
            _, text, tokens, draws, finish = rows[0]
            return Chunk(text=text, tokens=tuple(tokens), draws=draws, finish_reason=finish)
        return Chunk(
            text="".join(row[1] for row in rows),
            tokens=tuple(itertools.chain.from_iterable(row[2] for row in rows)),
            draws=rows[-1][3],
            finish_reason=rows[-1][4],
        )


class _Child(asyncio.SubprocessProtocol):
    """The process and its three pipes: bytes in and out, the last lines of stderr, how it ended."""

    def __init__(self, *, receive: Callable[[Frame], None], ended: Callable[[Death], None]) -> None:
        self._receive = receive
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder()
        self._open = {"stdout", "stderr", "process"}
        self._fault = ""  # what it did for which we killed it
        self._straggler: asyncio.TimerHandle | None = None
        self._transport: asyncio.SubprocessTransport
        self._stdin: asyncio.WriteTransport
        self._writable = asyncio.Event()
        self._writable.set()
        self._line = b""
        self.stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self.asked = False
        self.pid = 0
        self.heard_at = self._loop.time()

    async def spawn(self, argv: list[str], environment: dict[str, str]) -> None:
        """Its own session (its own process group on Windows): Ctrl+C in the terminal is the peer's, not its."""
        where: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            where = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
        try:
            transport, _ = await self._loop.subprocess_exec(lambda: self, *argv, env=environment, **where)
        except OSError as error:
            raise LoadFailed(f"the worker process cannot be started: {error}") from error
        self.pid = transport.get_pid()

    def write(self, data: bytes) -> None:
        """Sends `data` now or when the pipe takes it; to a dead worker: nowhere."""
        if not self._stdin.is_closing():
            self._stdin.write(data)

    async def drained(self) -> None:
        """Waits while the worker is behind with reading."""
        await self._writable.wait()

    def kill(self, fault: str = "") -> None:
        """Ends the process at once; `fault`: what it did, if it was not asked to end."""
        self._fault = self._fault or fault
        if "process" in self._open:
            try:
                self._transport.kill()
            except ProcessLookupError:
                pass

    # -- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport
        stdin = transport.get_pipe_transport(0)
        assert isinstance(stdin, asyncio.WriteTransport)
        self._stdin = stdin

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self._take_stderr(data)
            return
        if self._fault:
            return
        self.heard_at = self._loop.time()
        try:
            for frame in self._decoder.feed(data):
                self._receive(frame)
        except (FrameError, ValueError, TypeError, KeyError) as error:
            reason = str(error) or repr(error)
            log.error("worker sent nonsense", extra={"pid": self.pid, "reason": reason})
            self.kill(f"broke the protocol ({reason})")

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 0:
            self._writable.set()
        else:
            self._gone("stdout" if fd == 1 else "stderr")

    def process_exited(self) -> None:
        self._gone("process")

    # -- the end

    def _gone(self, what: str) -> None:
        self._open.discard(what)
        if not self._open:
            self._finish()
        elif self._straggler is None and what != "stderr":
            self._straggler = self._loop.call_later(STRAGGLER_S, self._no_more_waiting)

    def _no_more_waiting(self) -> None:
        if "process" in self._open:
            self.kill("broke the protocol (closed its channel and went on running)")  # process_exited follows
            self._open.difference_update(("stdout", "stderr"))
        else:
            self._finish()

    def _finish(self) -> None:
        if self._straggler is not None:
            self._straggler.cancel()
        if self._transport.is_closing():
            return
        self._open.clear()
        if self._line:
            self._take_stderr(b"\n")
        self._writable.set()
        self._transport.close()
        self._ended(death_of(self._transport.get_returncode(), fault=self._fault, asked=self.asked))

    def _take_stderr(self, data: bytes) -> None:
        *lines, rest = (self._line + data).split(b"\n")
        self._line = rest[-STDERR_LINE_CHARS:]
        for line in lines:
            text = line[:STDERR_LINE_CHARS].decode("utf-8", "replace").rstrip()
            if text:
                self.stderr.append(text)
                log.debug("worker says", extra={"pid": self.pid, "line": text})


def processor_seconds(pid: int) -> float | None:
    """Processor time a process has used so far; None when that cannot be known."""
    try:
        times = psutil.Process(pid).cpu_times()
    except (psutil.Error, OSError):
        return None
    return float(times.user + times.system)


def death_of(exit_code: int | None, *, fault: str, asked: bool) -> Death:
    """What an exit code means. `fault`: what it did for which we killed it, or ""."""
    outside = {None, -1, -2, -9, -15}  # unknown, SIGHUP, SIGINT, SIGKILL, SIGTERM
    if fault:
        reason = fault
    elif exit_code is None:
        reason = "ended"
    elif exit_code < 0:
        try:
            reason = f"was ended by {signal.Signals(-exit_code).name}"
        except ValueError:
            reason = f"was ended by signal {-exit_code}"
    else:
        reason = f"exited with code {exit_code if exit_code < 2**31 else hex(exit_code)}"
    blames = not asked and (bool(fault) or exit_code not in outside)
    return Death(exit_code=exit_code, reason=reason, asked=asked, blames_model=blames)


# Names of variables that hold, or point to, something a worker has no business with.
_SECRET = re.compile(
    r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH|COOKIE|_PROXY|DATABASE_URL|DSN|WEBHOOK|_PAT$|LLM_ROUTER_JOIN", re.IGNORECASE
)
_URL_WITH_PASSWORD = re.compile(r"://[^/\s@]*:[^/\s@]*@")


def worker_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What a worker gets of our environment: no secrets, our packages on its path, the engine's settings.

    The worker is started with `-P`, so the current folder is not on its path. An installation in site-packages is
    found there; a source tree needs PYTHONPATH.
    """
    kept = {n: v for n, v in environ.items() if not _SECRET.search(n) and not _URL_WITH_PASSWORD.search(v)}
    root = Path(inference.__file__).resolve().parent.parent
    if root.name not in ("site-packages", "dist-packages"):
        kept["PYTHONPATH"] = os.pathsep.join(p for p in (str(root), kept.get("PYTHONPATH", "")) if p)
    # ggml runs gdb on abort() if it is installed: seconds, in a process that is already lost. OpenMP's wait policy is
    # left as it is: see inference.engine.threads.
    return {"GGML_NO_BACKTRACE": "1"} | kept
