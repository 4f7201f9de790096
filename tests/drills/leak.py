"""A thousand requests, good and bad, leave the peer as it was: memory, file handles, threads, processes, requests."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from tests.drills.figure import Figure
from tests.drills.models import made
from tests.fixtures.peer import ROOT, Peer, chat_body, until

WARM_UP = 200
REQUESTS = 1000
CLIENTS = 6
GROWTH_MIB = 16.0
COUNTER = """
import asyncio, os, pathlib, signal

def count(number, frame):
    path = pathlib.Path(os.environ["COUNT_INTO"])
    path.with_suffix(".part").write_text(str(len(asyncio.all_tasks())))
    path.with_suffix(".part").replace(path)

signal.signal(signal.SIGUSR1, count)
"""
"""A sitecustomize.py for the peer's process: asked by a signal, it tells how many asyncio tasks there are."""


def leak(folder: Path) -> list[Figure]:
    """Every kind of request is checked for its answer; then the peer is looked at."""
    flags = ["--models-dir", str(made(folder / "models")), "--max-loaded-models", "2"]
    (folder / "sitecustomize.py").write_text(COUNTER)
    env = {"PYTHONPATH": os.pathsep.join((str(folder), str(ROOT))), "COUNT_INTO": str(folder / "tasks")}
    with Peer.started(folder / "data", *flags, env=env) as peer:
        _asked(peer, WARM_UP, seed=1)
        before, tasks_before = _footprint(peer), _tasks(peer, folder / "tasks")
        _asked(peer, REQUESTS, seed=2)
        after, tasks_after = _footprint(peer), _tasks(peer, folder / "tasks")
        assert not peer.ps()["requests"]
        assert (after["workers"], after["threads"]) == (before["workers"], before["threads"]), (before, after)
        assert "Traceback" not in peer.stderr and "never retrieved" not in peer.stderr, peer.stderr[-4000:]
        assert not [line for line in peer.stderr.splitlines() if '"level": "error"' in line]
    return [
        Figure(what="growth of the peer", value=after["peer_mib"] - before["peer_mib"], limit=GROWTH_MIB, unit="MiB"),
        Figure(
            what="growth of its workers",
            value=after["workers_mib"] - before["workers_mib"],
            limit=GROWTH_MIB,
            unit="MiB",
        ),
        Figure(what="asyncio tasks left", value=tasks_after - tasks_before, limit=0, unit=""),
        Figure(what="file handles left", value=after["handles"] - before["handles"], limit=0, unit=""),
    ]


def _footprint(peer: Peer) -> dict[str, float]:
    process = psutil.Process(peer.process.pid)
    workers = process.children()
    mib = 1024 * 1024
    return {
        "peer_mib": process.memory_info().rss / mib,
        "workers_mib": sum(w.memory_info().rss for w in workers) / mib,
        "workers": len(workers),
        "handles": sum(p.num_fds() for p in (process, *workers)),
        "threads": sum(w.num_threads() for w in workers),  # the peer's own pool of threads fills up to its limit
    }


def _tasks(peer: Peer, answer: Path) -> int:
    answer.unlink(missing_ok=True)
    peer.signal(signal.SIGUSR1)
    until(answer.exists, "the peer counts its tasks")
    return int(answer.read_text())


def _asked(peer: Peer, count: int, seed: int) -> None:
    rng = random.Random(seed)
    with ThreadPoolExecutor(CLIENTS) as clients:
        asked = [clients.submit(rng.choice(KINDS), peer, number) for number in range(count)]
        for future in asked:
            future.result(120)
    until(lambda: not peer.ps()["requests"], "nothing runs any more")
    until(lambda: not _open_connections(peer), "every connection is closed")


def _open_connections(peer: Peer) -> int:
    found = psutil.Process(peer.process.pid).net_connections("tcp")
    return sum(c.status != psutil.CONN_LISTEN for c in found)


def _chat(peer: Peer, number: int) -> None:
    reply = peer.post("/v1/chat/completions", chat_body("tiny", f"question {number}", max_tokens=8, ignore_eos=True))
    assert reply.status == 200 and reply.json["usage"]["completion_tokens"] == 8


def _hello(peer: Peer, number: int) -> None:
    assert peer.post("/v1/chat/completions", chat_body("hello", "Hello", max_tokens=10)).status == 200


def _stream(peer: Peer, number: int) -> None:
    body = chat_body("tiny", f"question {number}", max_tokens=20, stop=["zzz"])
    stream = peer.stream("/v1/chat/completions", body).read()
    assert stream.is_done and stream.error is None


def _long(peer: Peer, number: int) -> None:
    stream = peer.stream("/v1/completions", {"model": "tiny", "prompt": f"{number} word " * 250, "max_tokens": 4})
    assert stream.read().is_done


def _embeddings(peer: Peer, number: int) -> None:
    reply = peer.post("/v1/embeddings", {"model": "embed", "input": [f"text {number}"] * (1 + number % 20)})
    assert reply.status == 200 and len(reply.json["data"]) == 1 + number % 20


def _leaves_in_the_middle(peer: Peer, number: int) -> None:
    stream = peer.stream("/v1/chat/completions", chat_body("tiny", f"question {number}", ignore_eos=True))
    assert stream.status == 200
    next(stream.events())
    stream.close()


def _leaves_before_the_answer(peer: Peer, number: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", peer.port, timeout=60)
    body = json.dumps(chat_body("tiny", f"question {number} " * 100, ignore_eos=True))
    connection.request("POST", "/v1/chat/completions", body=body, headers={"Content-Type": "application/json"})
    connection.close()


def _oversized(peer: Peer, number: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", peer.port, timeout=60)
    try:
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("Content-Length", str(64 * 1024 * 1024))
        connection.endheaders()
        connection.send(b"{" * 1024)
        assert connection.getresponse().status == 413
    finally:
        connection.close()


def _refused(status: int, path: str, body: Any) -> Callable[[Peer, int], None]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    def ask(peer: Peer, number: int) -> None:
        reply = peer.request("POST", path, data)
        assert reply.status == status, reply
        assert reply.json["error"]["message"]

    return ask


CHAT = "/v1/chat/completions"
KINDS: list[Callable[[Peer, int], None]] = [
    *[_chat, _hello, _stream, _long, _embeddings, _leaves_in_the_middle, _leaves_before_the_answer] * 2,
    _oversized,
    _refused(404, CHAT, chat_body("no-such-model", "Hello")),
    _refused(400, CHAT, chat_body("tiny", "Hello", top_p=7)),
    _refused(400, CHAT, chat_body("tiny", "Hello", n=3)),
    _refused(400, CHAT, chat_body("tiny", "word " * 20_000)),
    _refused(400, CHAT, chat_body("embed", "Hello")),
    _refused(400, CHAT, b"{not json"),
    _refused(400, CHAT, b"[" * 100_000),
    _refused(400, "/v1/embeddings", {"model": "embed", "input": []}),
    _refused(404, "/v1/nothing", {}),
]
