"""The idle peer: memory without a loaded model, and the time from start to ready.

    python -m benchmarks.idle [--rounds 7]

Start to ready is from the start of the process to the first 200 of /ready, asked every 5 ms; memory is the resident
set of the only process, five seconds later.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

SETTLE_S = 5.0
START_S = 30.0


def started() -> tuple[float, int]:
    """(seconds from start to ready, resident bytes of the peer and its children) of one fresh peer."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-c", "from mesh.cli.entry import main; main()", "up", "--port", "0", "--data-dir", folder,
        ]  # fmt: skip
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            control = Path(folder) / "control.json"
            while not _is_ready(control):
                if time.perf_counter() - began > START_S:
                    raise RuntimeError("the peer did not start")
                time.sleep(0.005)
            ready_s = time.perf_counter() - began
            time.sleep(SETTLE_S)
            peer = psutil.Process(process.pid)
            resident = sum(p.memory_info().rss for p in [peer, *peer.children(recursive=True)])
        finally:
            process.terminate()
            process.wait(15)
    return ready_s, resident


def _is_ready(control: Path) -> bool:
    try:
        port = json.loads(control.read_text())["port"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=1) as response:
            return bool(response.status == 200)
    except (OSError, ValueError, KeyError):
        return False


def main() -> None:
    """Measure and print."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--rounds", type=int, default=7)
    figures = [started() for _ in range(p.parse_args().rounds)]
    ready = sorted(s for s, _ in figures)
    resident = sorted(b / 1e6 for _, b in figures)
    print(f"start to ready, s:   median {statistics.median(ready):.2f}, {ready[0]:.2f} to {ready[-1]:.2f}")
    print(f"resident, idle, MB:  median {statistics.median(resident):.0f}, {resident[0]:.0f} to {resident[-1]:.0f}")


if __name__ == "__main__":
    main()
