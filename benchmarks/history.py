"""What recording costs: requests per second and latency with history off, without bodies, and whole.

    python -m benchmarks.history [--rounds 5] [--seconds 6] [--clients 16] [--tokens 16] [--json FILE]

Three peers on this machine, each with the tests' worker (answers without a model, as fast as it goes), which differ in
LLM_ROUTER_HISTORY_BODIES alone. They take turns within each round, in an order that turns too; printed are medians over
the rounds of the ratio to "off" in the same round, and what the percentiles of the latency have more than "off".
Clients are in a process of their own and keep their connections. Disk: that of the folder for temporary files.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp

from benchmarks.engine import machine
from benchmarks.hop import percentile
from benchmarks.paths import processor_s
from tests.fixtures import make_gguf
from tests.fixtures.peer import Peer

ROOT = Path(__file__).parents[1]
MODES = ("off", "metadata", "full")
PROMPT = "Tell me about the machines of this house, one after the other, and what each of them is good for. " * 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One mode in one round."""

    mode: str
    round: int
    is_stream: bool
    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


async def asked(port: int, clients: int, seconds: float, tokens: int, *, is_stream: bool) -> list[float]:
    """The latencies (s) of as many whole answers as come within `seconds`."""
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": tokens,
        "stream": is_stream,
    }
    took: list[float] = []
    until = time.monotonic() + seconds
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def client() -> None:
            while time.monotonic() < until:
                began = time.monotonic()
                async with session.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body) as response:
                    data = await response.read()
                    if response.status != 200 or (is_stream and not data.endswith(b"data: [DONE]\n\n")):
                        raise RuntimeError(f"{response.status}: {data[-300:]!r}")
                took.append(time.monotonic() - began)

        await asyncio.gather(*(client() for _ in range(clients)))
    return took


def measured(peer: Peer, arguments: argparse.Namespace, mode: str, number: int, *, is_stream: bool) -> Row:
    """What clients in a process of their own saw, and what the peer's own process took of the processors."""
    before = processor_s(peer.process.pid, with_children=False)
    words = [peer.port, arguments.clients, arguments.seconds, arguments.tokens, int(is_stream)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.history", "--client", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{mode}: {done.stderr[-1000:]}")
    took = json.loads(done.stdout)
    return Row(
        mode=mode,
        round=number,
        is_stream=is_stream,
        per_s=len(took) / arguments.seconds,
        p50_ms=percentile(took, 0.5) * 1000,
        p99_ms=percentile(took, 0.99) * 1000,
        cpu_us=(processor_s(peer.process.pid, with_children=False) - before) / len(took) * 1e6,
    )


@contextlib.contextmanager
def peers(folder: Path) -> Iterator[dict[str, Peer]]:
    """A peer for each mode."""
    models = folder / "models"
    models.mkdir()
    make_gguf.tiny(models / "m.gguf")
    with contextlib.ExitStack() as stack:
        yield {
            mode: stack.enter_context(
                Peer.started(
                    folder / mode,
                    "--models-dir",
                    str(models),
                    env={
                        "LLM_ROUTER_HISTORY_BODIES": mode,
                        "LLM_ROUTER_WORKER": "tests.fixtures.fake_worker --slots 16 --tokens 100000",
                        "LLM_ROUTER_LOG_LEVEL": "error",
                    },
                )
            )
            for mode in MODES
        }


def table(rows: list[Row]) -> str:
    """Medians over the rounds, as Markdown."""
    lines = [
        "| answers | history | requests/s | ratio to off | p50 added, ms | p99 added, ms | processor time, us |",
        "|---|---|---|---|---|---|---|",
    ]
    for is_stream in (False, True):
        off = {row.round: row for row in rows if row.mode == "off" and row.is_stream is is_stream}
        for mode in MODES:
            found = [row for row in rows if row.mode == mode and row.is_stream is is_stream]
            ratio = statistics.median(row.per_s / off[row.round].per_s for row in found)
            p50 = statistics.median(row.p50_ms - off[row.round].p50_ms for row in found)
            p99 = statistics.median(row.p99_ms - off[row.round].p99_ms for row in found)
            per_s = statistics.median(row.per_s for row in found)
            cpu = statistics.median(row.cpu_us for row in found)
            kind = "streams" if is_stream else "whole"
            lines.append(f"| {kind} | {mode} | {per_s:.0f} | {ratio:.2f} | {p50:+.1f} | {p99:+.1f} | {cpu:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table, and writes every round as JSON if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--client", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.client is not None:
        port, clients, seconds, tokens, is_stream = arguments.client
        took = asyncio.run(asked(int(port), int(clients), float(seconds), int(tokens), is_stream=is_stream == "1"))
        print(json.dumps(took))
        return
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, peers(Path(folder)) as running:
        for mode in MODES:  # the model is loaded by the first request
            measured(running[mode], arguments, mode, -1, is_stream=False)
        for number in range(arguments.rounds):
            turned = MODES[number % len(MODES) :] + MODES[: number % len(MODES)]
            for is_stream in (False, True):
                rows += [measured(running[m], arguments, m, number, is_stream=is_stream) for m in turned]
    print(f"{datetime.date.today()}, {machine()}; {arguments.clients} clients, answers of {arguments.tokens} tokens\n")
    print(table(rows))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
