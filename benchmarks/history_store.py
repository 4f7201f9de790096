"""The store of the history: `python -m benchmarks.history_store --records 1000000 [--body-bytes 600]`.

Fills a store as an ingress does (a Start and an End for each request, many requests at a time), then times the
questions that the dashboard asks, and the exports. Prints a table; files are in a temporary folder that is deleted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import sqlite3
import tempfile
import time
import uuid
from pathlib import Path

from mesh.history.conditions import Mesh
from mesh.history.entries import End, Start, Status, encode
from mesh.history.export import export
from mesh.history.query import HistoryQuery
from mesh.history.retention import Clock, Limits, Retention
from mesh.history.store import HistoryStore

PEERS = [
    (f"{letter * 52}", name) for letter, name in zip("abcde", ("attic", "tower", "den", "shed", "loft"), strict=True)
]
MODELS = ["qwen2.5-7b-instruct", "llama-3.2-3b", "gpt-oss-20b", "openai:gpt-4o", "nomic-embed-text"]
DAYS = 7
WRITERS = 256
PERCENTILES = (("p50", 0.5), ("p99", 0.99), ("max", 1.0))


class Texts:
    """English and Japanese texts from made-up words, of which few are frequent and many rare. Seeded."""

    def __init__(self) -> None:
        self._random = random.Random(1)
        english = ["".join(self._random.choices("abcdefghijklmnopqrstuvwxyz", k=2 + i % 9)) for i in range(8000)]
        kana = [chr(code) for code in range(0x3042, 0x3093)] + [chr(code) for code in range(0x4E00, 0x5400)]
        japanese = ["".join(self._random.choices(kana, k=1 + i % 4)) for i in range(5000)]
        self._pools = [
            self._random.choices(words, [1 / (i + 1) for i in range(len(words))], k=500_000)
            for words in (english, japanese)
        ]

    def text(self, size_bytes: int, is_japanese: bool) -> str:
        """About this many bytes of UTF-8."""
        words = max(1, size_bytes // (7 if is_japanese else 6))
        at = self._random.randrange(500_000 - words)
        return ("" if is_japanese else " ").join(self._pools[is_japanese][at : at + words])


def bodies(texts: Texts, number: int, size_bytes: int) -> tuple[bytes, bytes]:
    """A request and its answer. Every third is Japanese; one in 50,000 holds the words that are searched for."""
    is_japanese = number % 3 == 0
    question = texts.text(size_bytes - 170, is_japanese)
    if number % 50_000 == 77:
        question += " Needle 東京タワー"
    request = {
        "model": MODELS[number % len(MODELS)],
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": question},
        ],
        "stream": True,
    }
    answer = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": texts.text(size_bytes - 150, is_japanese)},
                "finish_reason": "stop",
            }
        ],
    }
    # Half of the clients escape what is not ASCII.
    return json.dumps(request, ensure_ascii=number % 2 == 0).encode(), json.dumps(answer, ensure_ascii=False).encode()


def status_of(number: int) -> Status:
    """Of twenty requests two fail and one is left."""
    rest = number % 20
    return "success" if rest < 17 else "error" if rest < 19 else "cancelled"


async def fill(store: HistoryStore, records: int, size_bytes: int, now_ms: int) -> None:
    """Appends the records, spread over the last days, from many writers at once."""
    texts = Texts()
    numbers = iter(range(records))

    async def write() -> None:
        for number in numbers:
            at = now_ms - DAYS * 86_400_000 + number * DAYS * 86_400_000 // records
            request, answer = bodies(texts, number, size_bytes)
            id_ = str(uuid.UUID(int=at << 80 | number))
            peer, name = PEERS[number % 7 % len(PEERS)]
            start = Start(
                id=id_,
                at_ms=at,
                kind="chat",
                model=MODELS[number % len(MODELS)],
                client_ip=f"192.168.1.{number % 40}",
                key_id=f"key{number % 12}",
                key_name=f"key of {number % 12}",
                request_body=request,
            )
            await store.append([encode(start)])
            end = End(
                id=id_,
                at_ms=at + 100 + number % 9000,
                status=status_of(number),
                node=peer,
                node_name=name,
                node_ip="192.168.1.7",
                prompt_tokens=number % 900,
                completion_tokens=number % 300,
                ttft_ms=number % 700,
                duration_ms=100 + number % 9000,
                response_body=answer,
            )
            await store.append([encode(end)])

    async with asyncio.TaskGroup() as group:
        for _ in range(WRITERS):
            group.create_task(write())


async def latencies(store: HistoryStore, seconds: float, pause_s: float) -> list[float]:
    """Seconds that each of many appends took, begun one after the other with a pause."""
    found: list[float] = []
    ends = time.perf_counter() + seconds
    number = 0
    while time.perf_counter() < ends:
        number += 1
        began = time.perf_counter()
        entry = Start(
            id=f"late {number}", at_ms=time.time_ns() // 10**6, kind="chat", model="m", request_body=b"x" * 600
        )
        await store.append([encode(entry)])
        found.append(time.perf_counter() - began)
        await asyncio.sleep(pause_s)
    return found


def shown(label: str, seconds: float, note: str = "") -> None:
    """A line of the table."""
    time_ = f"{seconds:,.2f} s" if seconds >= 10 else f"{seconds * 1000:,.1f} ms"
    print(f"{label:<58} {time_:>12}  {note}", flush=True)


def spread(found: list[float]) -> str:
    """Percentiles in ms."""
    ranked = sorted(found)
    parts = [f"{name} {ranked[int(share * (len(ranked) - 1))] * 1000:.1f}" for name, share in PERCENTILES]
    return f"of {len(ranked):,}: " + ", ".join(parts) + " ms"


async def questions(history: HistoryQuery, records: int) -> None:
    """Times every question, cold searches included."""
    half = str(records // 200)
    for label, query in (
        ("list, first page of 50", {"per_page": "50"}),
        ("list, the page in the middle (100 a page)", {"per_page": "100", "page": half}),
        ("list, with bodies (50)", {"per_page": "50", "bodies": "true"}),
        ("filter: model", {"model": "llama"}),
        ("filter: agent and status", {"agent": "tower", "status": "error"}),
        ("filter: key, page 100", {"key": "key3", "page": "100"}),
        ("filter: the last day", {"from": "1d"}),
        ("search: ASCII, all records", {"q": "needle"}),
        ("search: Japanese, all records", {"q": "東京タワー"}),
        ("search: two characters, the last day", {"q": "天気", "from": "1d"}),
        ("search: with a filter", {"q": "needle", "model": "llama"}),
    ):
        began = time.perf_counter()
        answer = await history.records(query)
        note = f"{answer['total_count']:,} records"
        if "searched_back_to" in answer:
            note += f", only back to {answer['searched_back_to']}"
        shown(label, time.perf_counter() - began, note)
    record = (await history.records({"page": half}))["records"][0]["id"]
    began = time.perf_counter()
    await history.record(record)
    shown("one record with its bodies", time.perf_counter() - began)
    for days in ("7d", "3d"):
        began = time.perf_counter()
        totals = await history.stats({"from": days})
        shown(f"totals, {days}", time.perf_counter() - began, f"{totals['total_requests']:,} records")
    began = time.perf_counter()
    await history.overview({})
    shown("overview: totals and the last hour by minute", time.perf_counter() - began)


async def exports(history: HistoryQuery) -> None:
    """Writes files to nowhere."""
    for query in ({"format": "csv"}, {"format": "json"}, {"format": "json", "bodies": "true", "from": "1d"}):
        began, size = time.perf_counter(), 0
        async for chunk in export(history, query, time.time_ns() // 10**6).chunks:
            size += len(chunk)
        label = f"export {query['format']}" + (", the last day, with bodies" if "from" in query else "")
        shown(label, time.perf_counter() - began, f"{size / 2**20:,.0f} MiB, {resident()}")


def resident() -> str:
    """The most memory that this process ever had."""
    return f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB"


async def measure(folder: Path, records: int, size_bytes: int) -> None:
    """Everything, in order."""
    path = folder / "router.db"
    now_ms = time.time_ns() // 10**6
    store = await HistoryStore.open(path, PEERS[0][0])
    own = store.own
    began = time.perf_counter()
    await fill(store, records, size_bytes, now_ms)
    took = time.perf_counter() - began
    size = path.stat().st_size / 2**20
    shown(f"insert {records:,} requests", took, f"{records / took:,.0f} requests/s, {size:,.0f} MiB, {resident()}")
    shown("append, one at a time", (found := await latencies(store, 5, 0.005))[0], spread(found))
    await store.close()
    began = time.perf_counter()
    store = await HistoryStore.open(path, PEERS[0][0])
    shown("open", time.perf_counter() - began)
    mesh = Mesh(is_living=lambda log: log == store.own, name_of=lambda peer: dict(PEERS).get(peer, ""))
    history = HistoryQuery(store, mesh)
    await questions(history, records)
    await exports(history)
    async with asyncio.TaskGroup() as group:
        began = time.perf_counter()
        await store.retire(own, min(200_000, records))
        deleting = group.create_task(store.settled())
        found = []
        while not deleting.done():
            found += await latencies(store, 0.2, 0.005)
    shown(
        f"retire {min(200_000, records):,} entries", time.perf_counter() - began, f"appends meanwhile {spread(found)}"
    )
    used = await Retention(store).used_bytes()
    began = time.perf_counter()
    limits, clock = Limits(days=None, bytes_max=used * 9 // 10), Clock(now_ms=now_ms)
    dropping = asyncio.create_task(Retention(store).run(limits, clock))
    found = []
    while not dropping.done():
        found += await latencies(store, 0.2, 0.005)
    note = f"appends meanwhile {spread(found)}"
    shown(f"drop {dropping.result().bodies_dropped:,} bodies", time.perf_counter() - began, note)
    await store.close()


def main() -> None:
    """Prints the command, the machine, and the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--body-bytes", type=int, default=600)
    options = parser.parse_args()
    print(f"python -m benchmarks.history_store --records {options.records} --body-bytes {options.body_bytes}")
    print(f"SQLite {sqlite3.sqlite_version}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(Path(folder), options.records, options.body_bytes))


if __name__ == "__main__":
    main()
