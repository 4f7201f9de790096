"""Our peer over HTTP against llama-server and against `Llama` behind a lock: one run, interleaved.

    python -m benchmarks.engine --llama-server PATH --vocab GGUF [--rounds 3] [--tokens 48] [--json FILE]

Every round asks every contender at every concurrency, in turns, so that a machine that slows down slows all of them.
Each request has a prompt of its own (no prefix in common) and streams a fixed number of tokens, greedy. `chats` are
conversations that share a system prompt and take three turns. Ratios are of the medians of pairs within one round.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.load import Answer, ask
from benchmarks.servers import Server, llama_server, locked_llama, ours

WORDS = (
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state",
    "family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company", "system",
    "work", "number", "night", "point", "home", "water", "room", "mother", "area", "money", "story", "fact", "month",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One contender at one load, in one round."""

    server: str
    load: str
    round: int
    tokens_per_s: float
    ttft_mean_s: float
    ttft_p99_s: float
    prompt_tokens_per_s: float


def prompt(rng: random.Random, words: int) -> str:
    """Text of about `words` tokens that nobody has cached."""
    return " ".join(rng.choice(WORDS) for _ in range(words))


def body(server: Server, messages: list[dict[str, str]], tokens: int) -> dict[str, Any]:
    """The same request for everybody."""
    return {
        "model": server.model, "messages": messages, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
    }  # fmt: skip


def row(server: Server, load: str, number: int, answers: list[Answer], wall_s: float) -> Row:
    """Figures of one load. Prompt tokens/s counts until the last first token."""
    first = sorted(a.ttft_s for a in answers)
    return Row(
        server=server.name,
        load=load,
        round=number,
        tokens_per_s=sum(a.completion_tokens for a in answers) / wall_s,
        ttft_mean_s=statistics.fmean(first),
        ttft_p99_s=first[min(len(first) - 1, int(len(first) * 0.99))],
        prompt_tokens_per_s=sum(a.prompt_tokens for a in answers) / first[-1],
    )


async def burst(server: Server, *, concurrency: int, number: int, words: int, tokens: int) -> Row:
    """`concurrency` requests at once."""
    rng = random.Random(f"{number}/{concurrency}")
    bodies = [body(server, [{"role": "user", "content": prompt(rng, words)}], tokens) for _ in range(concurrency)]
    began = time.perf_counter()
    answers = await asyncio.gather(*(ask(server.port, b) for b in bodies))
    return row(server, f"{concurrency}", number, answers, time.perf_counter() - began)


async def chats(server: Server, *, users: int, number: int, tokens: int) -> Row:
    """`users` conversations of three turns that share a long system prompt."""
    system = prompt(random.Random(f"system {number}"), 400)
    began = time.perf_counter()

    async def conversation(user: int) -> list[Answer]:
        rng = random.Random(f"{number}/{user}")
        messages = [{"role": "system", "content": system}]
        answers = []
        for _ in range(3):
            messages.append({"role": "user", "content": prompt(rng, 20)})
            answers.append(await ask(server.port, body(server, messages, tokens), keep_text=True))
            messages.append({"role": "assistant", "content": answers[-1].text})
        return answers

    nested = await asyncio.gather(*(conversation(u) for u in range(users)))
    answers = [a for some in nested for a in some]
    return row(server, f"chats x{users}", number, answers, time.perf_counter() - began)


async def measured(servers: list[Server], options: argparse.Namespace) -> list[Row]:
    """Every round, every load, every contender in turn; the first round's order turns with each round."""
    rows: list[Row] = []
    for server in servers:  # loads the model, fills caches
        await ask(server.port, body(server, [{"role": "user", "content": "warm up"}], 4))
    for number in range(options.rounds):
        for concurrency in options.concurrency:
            for server in servers[number % len(servers) :] + servers[: number % len(servers)]:
                rows.append(
                    await burst(
                        server, concurrency=concurrency, number=number, words=options.words, tokens=options.tokens
                    )
                )
                print(_line(rows[-1]), file=sys.stderr)
        for server in servers[number % len(servers) :] + servers[: number % len(servers)]:
            rows.append(await chats(server, users=options.chats, number=number, tokens=options.tokens))
            print(_line(rows[-1]), file=sys.stderr)
    return rows


def _line(r: Row) -> str:
    return (
        f"round {r.round} {r.server:<13} {r.load:>9}: {r.tokens_per_s:6.1f} tok/s  ttft mean {r.ttft_mean_s:5.2f} "
        f"p99 {r.ttft_p99_s:5.2f} s  prompt {r.prompt_tokens_per_s:6.1f} tok/s"
    )


def table(rows: list[Row], servers: list[str]) -> str:
    """Medians over the rounds, and our ratios to the others (median of the ratios of each round)."""
    us, *others = servers
    lines = [
        "| requests at once | " + " | ".join(f"{s}: tok/s, TTFT mean / p99 s, prompt tok/s" for s in servers)
        + " | " + " | ".join(f"ratio to {s}: tok/s, TTFT" for s in others) + " |",
        "|---|" + "---|" * (len(servers) + len(others)),
    ]  # fmt: skip
    for load in dict.fromkeys(r.load for r in rows):
        cells = []
        for s in servers:
            mine = [r for r in rows if r.load == load and r.server == s]
            cells.append(
                f"{statistics.median(r.tokens_per_s for r in mine):.1f}, "
                f"{statistics.median(r.ttft_mean_s for r in mine):.2f} / "
                f"{statistics.median(r.ttft_p99_s for r in mine):.2f}, "
                f"{statistics.median(r.prompt_tokens_per_s for r in mine):.0f}"
            )
        for s in others:
            pairs = [
                (a, b)
                for a in rows
                for b in rows
                if a.load == b.load == load and a.round == b.round and a.server == us and b.server == s
            ]
            cells.append(
                f"{statistics.median(a.tokens_per_s / b.tokens_per_s for a, b in pairs):.2f}, "
                f"{statistics.median(a.ttft_mean_s / b.ttft_mean_s for a, b in pairs):.2f}"
            )
        lines.append(f"| {load} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine() -> str:
    """What it ran on, in a line."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return f"{model}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def made_model(folder: str, vocab: str) -> Path:
    """The 0.5B-shaped model with random weights."""
    path = Path(folder) / "bench.gguf"
    maker = Path(__file__).parent.parent / "tests" / "fixtures" / "make_gguf.py"
    subprocess.run([sys.executable, maker, "bench", path, "--vocab", vocab], check=True)
    return path


def main() -> None:
    """Measure and print the table."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--llama-server", type=Path, help="the binary; left out: not measured")
    p.add_argument("--model", type=Path, help="a GGUF; left out: one is made (needs --vocab)")
    p.add_argument("--vocab", help="a GGUF to take the tokenizer of the made model from")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--tokens", type=int, default=48, help="tokens of each answer")
    p.add_argument("--words", type=int, default=64, help="length of each prompt")
    p.add_argument("--chats", type=int, default=4, help="conversations at once")
    p.add_argument("--concurrency", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--no-lock", action="store_true", help="leave out Llama behind a lock")
    p.add_argument("--json", type=Path, help="write every row there")
    options = p.parse_args()
    slots, context = 16, 16384
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        model = options.model or made_model(folder, options.vocab)
        servers = [stack.enter_context(ours(model, slots=slots, context=context, threads=options.threads))]
        if options.llama_server:
            servers.append(
                stack.enter_context(
                    llama_server(options.llama_server, model, slots=slots, context=context, threads=options.threads)
                )
            )
        if not options.no_lock:
            servers.append(stack.enter_context(locked_llama(model, context=context, threads=options.threads)))
        rows = asyncio.run(measured(servers, options))
        memory = {s.name: s.memory_bytes() for s in servers}
    print(f"{datetime.date.today()}, {machine()}, {options.threads} threads, {options.rounds} rounds, "
          f"prompts of {options.words} words, answers of {options.tokens} tokens\n")  # fmt: skip
    print(table(rows, [s.name for s in servers]))
    print("\nmemory (PSS, MB): " + ", ".join(f"{name} {size / 1e6:.0f}" for name, size in memory.items()))
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in rows], indent=1))


if __name__ == "__main__":
    main()
