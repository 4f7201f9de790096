"""The contenders of the engine benchmark, each a process with a port: our peer, llama-server, Llama behind a lock."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

START_S = 120.0


@dataclass(slots=True, kw_only=True)
class Server:
    """A running contender; `model` is the name it wants in requests."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    model: str

    def memory_bytes(self) -> int:
        """Memory of the process and its children: private and shared pages once each (PSS), file pages included."""
        total = 0
        for process in [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total


@contextlib.contextmanager
def ours(model: Path, *, slots: int, context: int, threads: int) -> Iterator[Server]:
    """Our peer as a user starts it, with the model dropped into its models folder."""
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        models.mkdir()
        os.link(model, models / "bench.gguf") if _same_disk(model, models) else (models / "bench.gguf").symlink_to(
            model
        )
        command = [
            sys.executable, "-c", "from mesh.cli.entry import main; main()", "up", "--port", "0", "--data-dir", folder,
            "--slots", str(slots), "--threads", str(threads), "--log-level", "error",
        ]  # fmt: skip
        if context:
            command += ["--context", str(context)]
        with running("llm-router", command) as process:
            control = Path(folder) / "control.json"
            until(lambda: control.exists() and "port" in control.read_text(), process)
            port = json.loads(control.read_text())["port"]
            until(lambda: answers(port, "/ready"), process)
            yield Server(name="llm-router", port=port, process=process, model="bench")


@contextlib.contextmanager
def llama_server(binary: Path, model: Path, *, slots: int, context: int, threads: int) -> Iterator[Server]:
    """llama.cpp's own server, same number of slots and threads, unified KV cache of the same size."""
    port = free_port()
    command = [
        str(binary), "-m", str(model), "--port", str(port), "-np", str(slots), "-c", str(context), "-kvu",
        "-t", str(threads), "-tb", str(threads), "--log-disable",
    ]  # fmt: skip
    with running("llama-server", command) as process:
        until(lambda: answers(port, "/health"), process)
        yield Server(name="llama-server", port=port, process=process, model="bench")


@contextlib.contextmanager
def locked_llama(model: Path, *, context: int, threads: int) -> Iterator[Server]:
    """llama-cpp-python's high-level Llama behind a lock: what most small Python servers do."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.locked", str(model), str(port), str(context), str(threads)]
    with running("Llama + lock", command) as process:
        until(lambda: answers(port, "/health"), process)
        yield Server(name="Llama + lock", port=port, process=process, model="bench")


@contextlib.contextmanager
def running(name: str, command: list[str], env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env=env
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            print(f"{name} did not stop; killed", file=sys.stderr)
            process.kill()
            process.wait(5)


def until(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Waits for it. Raises RuntimeError when the process ends before, or after START_S."""
    deadline = time.monotonic() + START_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} did not start (exit code {process.poll()})")
        time.sleep(0.1)


def answers(port: int, path: str) -> bool:
    """Whether GET `path` is answered with 200."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def free_port() -> int:
    """A port that nobody had a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _same_disk(a: Path, b: Path) -> bool:
    return a.stat().st_dev == b.stat().st_dev
