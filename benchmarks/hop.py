"""What a hop costs: a stream through another peer beside the same stream direct, through nginx, and through LiteLLM.

    python -m benchmarks.hop [--litellm PATH] [--rates 30 100] [--rounds 3] [--seconds 5] [--json FILE]

Two peers on this machine make a mesh. The holder has the models; their worker is that of the tests, which makes tokens
at a fixed rate for each of 16 streams and writes the time into each. All ways end at that holder and take turns within
each round; "added" is a way's percentile minus the direct way's of the same round; printed are medians of the rounds.
The hop is TLS with certificates on both sides, the others speak plain HTTP. A flood is as fast as it goes.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks.arrivals import Arrivals
from benchmarks.engine import machine
from benchmarks.paths import SLOTS, Way, litellm, nginx, processor_s, two_peers
from tests.fixtures.peer import Peer

ROOT = Path(__file__).parents[1]
FLOOD_TOKENS = 2000
FIRST_TOKENS = 40  # answers of one token, one after the other
HEAD = (
    "| tokens/s of a stream | way | latency of a token, ms, p50 / p99 | added p50 / p99 | tokens/s, ratio to direct "
    "| tokens that came alone | longest gap, ms | processor time a token, us: in the middle | at the holder |"
)
WAYS = ("direct", "nginx", "hop", "LiteLLM")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way at one load, in one round. `middle_us` and `holder_us`: processor time of a token there."""

    way: str
    load: str
    round: int
    p50_ms: float
    p99_ms: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    tokens_per_s: float
    alone: float
    gap_ms: float
    middle_us: float
    holder_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """A peer of a mesh of two that nobody asks: share of one core in percent, resident and own memory (MB)."""

    name: str
    cpu_percent: float
    rss_mb: float
    pss_mb: float


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of them do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def arrivals(way: Way, model: str, *, streams: int, tokens: int, times: int = 1) -> Arrivals:
    """What a client in its own process saw. Raises RuntimeError when an answer was not whole."""
    words = [
        "--port",
        way.port,
        "--key",
        way.key,
        "--model",
        model,
        "--streams",
        streams,
        "--tokens",
        tokens,
        "--times",
        times,
    ]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.arrivals", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{way.name}, {model}: {done.stderr[-1000:]}")
    return Arrivals(**json.loads(done.stdout))


def measured_once(way: Way, holder: Peer, load: str, number: int, run: Callable[[Way], Arrivals]) -> Row:
    """One way, one load."""
    middle, own = way.processor_s(), processor_s(holder.process.pid, with_children=False)
    found = run(way)
    middle, own = way.processor_s() - middle, processor_s(holder.process.pid, with_children=False) - own
    return Row(
        way=way.name,
        load=load,
        round=number,
        p50_ms=percentile(found.latencies_ms, 0.5),
        p99_ms=percentile(found.latencies_ms, 0.99),
        ttft_p50_ms=percentile(found.ttfts_ms, 0.5),
        ttft_p99_ms=percentile(found.ttfts_ms, 0.99),
        tokens_per_s=found.tokens / found.wall_s,
        alone=found.alone / found.tokens,
        gap_ms=found.gap_ms,
        middle_us=middle / found.tokens * 1e6,
        holder_us=own / found.tokens * 1e6,
    )


def measured(ways: Sequence[Way], holder: Peer, options: argparse.Namespace) -> list[Row]:
    """Every round, every load, every way in turn; who begins changes with each round."""
    streams = options.streams
    loads: dict[str, Callable[[Way], Arrivals]] = {
        "first token": lambda way: arrivals(way, "rate-0", streams=1, tokens=1, times=FIRST_TOKENS),
        **{
            f"{rate}/s": lambda way, rate=rate: arrivals(  # type: ignore[misc]
                way, f"rate-{rate}", streams=streams, tokens=max(2, int(rate * options.seconds))
            )
            for rate in options.rates
        },
        "flood": lambda way: arrivals(way, "rate-0", streams=streams, tokens=options.flood),
    }
    for way in ways:  # loads the models, opens connections
        for rate in (0, *options.rates):
            arrivals(way, f"rate-{rate}", streams=streams, tokens=2)
    rows = []
    for number in range(options.rounds):
        for load, run in loads.items():
            for way in (*ways[number % len(ways) :], *ways[: number % len(ways)]):
                rows.append(measured_once(way, holder, load, number, run))
                print(line(rows[-1]), file=sys.stderr)
    return rows


def line(r: Row) -> str:
    """A row as it is made."""
    return (
        f"round {r.round} {r.way:<8} {r.load:>11}: latency {r.p50_ms:7.2f} / {r.p99_ms:7.2f} ms  "
        f"ttft {r.ttft_p50_ms:7.2f} / {r.ttft_p99_ms:7.2f} ms  {r.tokens_per_s:7.0f} tok/s  "
        f"alone {r.alone:4.0%}  gap {r.gap_ms:6.1f} ms  {r.middle_us:4.0f} + {r.holder_us:4.0f} us"
    )


def idle(peers: Sequence[Peer], seconds: float) -> list[Idle]:
    """What peers cost that nobody asks."""
    pids = [peer.process.pid for peer in peers]
    before = [processor_s(pid) for pid in pids]
    began = time.monotonic()
    time.sleep(seconds)
    took_s = time.monotonic() - began
    found = []
    for name, pid, used in zip(("ingress", "holder"), pids, before, strict=True):
        memory = psutil.Process(pid).memory_full_info()
        found.append(
            Idle(
                name=name,
                cpu_percent=(processor_s(pid) - used) / took_s * 100,
                rss_mb=memory.rss / 1e6,
                pss_mb=memory.pss / 1e6,
            )
        )
    return found


# -- the tables


def median_of(rows: Sequence[Row], way: str, load: str, of: Callable[[Row], float]) -> float:
    """The median over the rounds."""
    return statistics.median(of(r) for r in rows if r.way == way and r.load == load)


def added(rows: Sequence[Row], way: str, load: str, of: Callable[[Row], float]) -> float:
    """The median over the rounds of what a way has more than the direct one in the same round."""
    direct = {r.round: of(r) for r in rows if r.way == "direct" and r.load == load}
    return statistics.median(of(r) - direct[r.round] for r in rows if r.way == way and r.load == load)


def ratio(rows: Sequence[Row], way: str, load: str) -> float:
    """Tokens/s to the direct way's, likewise."""
    direct = {r.round: r.tokens_per_s for r in rows if r.way == "direct" and r.load == load}
    return statistics.median(r.tokens_per_s / direct[r.round] for r in rows if r.way == way and r.load == load)


def tables(rows: Sequence[Row]) -> str:
    """One of first tokens, one of streams."""
    ways, loads = {r.way for r in rows}, dict.fromkeys(r.load for r in rows)
    lines = ["| way | time to first token, ms, p50 / p99 | added p50 / p99 |", "|---|---|---|"]
    for way in WAYS:
        if way not in ways:
            lines.append(f"| {way} | not measured | |")
            continue
        p50, p99 = (lambda r: r.ttft_p50_ms), (lambda r: r.ttft_p99_ms)
        load = "first token"
        lines.append(
            f"| {way} | {median_of(rows, way, load, p50):.1f} / {median_of(rows, way, load, p99):.1f} "
            f"| {added(rows, way, load, p50):.1f} / {added(rows, way, load, p99):.1f} |"
        )
    lines += [
        "",
        HEAD,
        "|" + "---|" * 9,
    ]
    for load in loads:
        for way in WAYS if load != "first token" else ():
            lines.append(stream_line(rows, way, load) if way in ways else f"| {load} | {way} | not measured " + "|" * 8)
    return "\n".join(lines)


def stream_line(rows: Sequence[Row], way: str, load: str) -> str:
    """A line of the second table. A flood's latency is the length of queues: nobody keeps up with it."""
    p50, p99 = (lambda r: r.p50_ms), (lambda r: r.p99_ms)
    cells = [load, way]
    if load == "flood":
        cells += ["", ""]
    else:
        cells += [
            f"{median_of(rows, way, load, p50):.2f} / {median_of(rows, way, load, p99):.2f}",
            f"{added(rows, way, load, p50):.2f} / {added(rows, way, load, p99):.2f}",
        ]
    cells += [
        f"{median_of(rows, way, load, lambda r: r.tokens_per_s):.0f}, {ratio(rows, way, load):.2f}",
        f"{median_of(rows, way, load, lambda r: r.alone):.0%}",
        f"{median_of(rows, way, load, lambda r: r.gap_ms):.0f}",
        f"{median_of(rows, way, load, lambda r: r.middle_us):.0f}",
        f"{median_of(rows, way, load, lambda r: r.holder_us):.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def options_of(argv: Sequence[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--litellm", type=Path, help="the proxy's program; left out: not measured")
    p.add_argument("--no-nginx", action="store_true", help="leave out nginx")
    p.add_argument("--rates", type=int, nargs="*", default=[30, 100], help="tokens/s of each stream")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--seconds", type=float, default=5.0, help="how long each stream of a rate runs")
    p.add_argument("--streams", type=int, default=SLOTS)
    p.add_argument("--flood", type=int, default=FLOOD_TOKENS, help="tokens of each stream without a rate")
    p.add_argument("--idle", type=float, default=30.0, help="seconds to watch the idle mesh; 0: not measured")
    p.add_argument("--json", type=Path, help="write every row there")
    return p.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = options_of(argv)
    rates = (0, *options.rates)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        ingress, holder = stack.enter_context(two_peers(folder, rates))
        rested = idle((ingress, holder), options.idle) if options.idle else []
        others = [
            None if options.no_nginx else stack.enter_context(nginx(folder, holder)),
            Way(name="hop", port=ingress.port, pid=ingress.process.pid),
            stack.enter_context(litellm(folder, options.litellm, holder, rates)),
        ]
        ways = [Way(name="direct", port=holder.port, pid=None), *(way for way in others if way is not None)]
        rows = measured(ways, holder, options)
    print(f"{datetime.date.today()}, {machine()}, {options.streams} streams, {options.rounds} rounds\n")
    print(tables(rows))
    for i in rested:
        print(f"\nidle {i.name}: {i.cpu_percent:.2f} % of a core, {i.rss_mb:.0f} MB resident, {i.pss_mb:.0f} MB PSS")
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in rows], indent=1))


if __name__ == "__main__":
    main()
