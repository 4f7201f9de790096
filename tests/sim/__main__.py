"""A mesh simulated, with figures: `python -m tests.sim --peers 500 --seed 7 --minutes 10`.

Prints convergence, age of load, detection of a killed process and of a lost machine, false deaths, bytes a second.
`--splits` measures fail-over of the coordinator instead, `--detect RUNS` the distribution of detection over seeds.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time

from gossip.config import LAN
from tests.sim.scenarios import detection, failover, long_run, splits


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sim")
    parser.add_argument("--peers", type=int, default=50)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--loss", type=float, default=0.0)
    parser.add_argument("--load-interval", type=float, default=0.5)
    parser.add_argument("--joined", action="store_true", help="begin with everybody knowing everybody")
    parser.add_argument("--detect", type=int, metavar="RUNS")
    parser.add_argument("--splits", type=int, metavar="RUNS")
    parser.add_argument("--failover", type=int, metavar="RUNS")
    options = parser.parse_args(arguments)
    # Everything lives until the end: looking for cycles is a third of the time.
    gc.disable()
    began = time.perf_counter()
    if options.detect:
        lines = detection(options.peers, options.seed, options.detect, options.loss, LAN)
    elif options.splits:
        lines = splits(options.seed, options.splits, options.loss, LAN)
    elif options.failover:
        lines = failover(options.peers, options.seed, options.failover, options.loss, LAN)
    else:
        lines = long_run(
            options.peers,
            options.seed,
            options.minutes,
            options.loss,
            options.load_interval,
            LAN,
            is_joined=options.joined,
        )
    for line in lines:
        print(line, flush=True)
    print(f"took {time.perf_counter() - began:.1f} s")


main(sys.argv[1:])
