"""Every drill of this version by its name; CI runs the same with smaller numbers, in minutes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from tests.drills import (
    crash,
    filling,
    forming,
    killing,
    leaving,
    losing,
    noticing,
    parting,
    reigning,
    soaking,
    spoiling,
    strangers,
    wedging,
)
from tests.drills.figure import Figure
from tests.drills.idle import idle
from tests.drills.leak import leak
from tests.drills.leave import leave
from tests.drills.slow import slow

Drill = Callable[[Path], list[Figure]]

ONE_PEER: Mapping[str, Drill] = {
    "idle peer": idle,
    "worker killed": partial(crash.once, number=signal.SIGKILL),
    "worker segfaults": partial(crash.once, number=signal.SIGSEGV),
    "worker segfaults twice": crash.twice,
    "worker sends garbage": partial(crash.sampled, how="garbage"),
    "worker falls silent": partial(crash.sampled, how="silence"),
    "client leaves": leave,
    "thousand requests": leak,
    "slow clients": slow,
    "killed while it writes": partial(killing.while_it_writes, times=200),
}
ONE_PEER_IN_CI: Mapping[str, Drill] = {
    **ONE_PEER,
    "killed while it writes": partial(killing.while_it_writes, times=15),
}
MESH: Mapping[str, Drill] = {
    "two find each other": partial(forming.by_mdns, hosts=2),
    "five find each other": partial(forming.by_mdns, hosts=5),
    "two by address": partial(forming.by_address, hosts=2),
    "five by address": partial(forming.by_address, hosts=5),
    "twelve at once": forming.many,
    "docker on every host": forming.with_docker,
    "copied data folder": forming.copied,
    "holder killed before the first token": partial(losing.before_first_token, rounds=10),
    "holder killed in the middle": partial(losing.greedy, kills=60),
    "holder killed in the middle, sampled": partial(losing.sampled, kills=40),
    "holder without power in the middle": partial(losing.sampled, kills=5, how="power-off"),
    "only holder killed": losing.without_another,
    "holder stopped": partial(wedging.frozen, pause_s=30.0),
    "holder wedged": wedging.wedged,
    "holder slowed": partial(wedging.slowed, baseline_s=15.0, slow_s=30.0),
    "peer crashed": partial(noticing.gone, how="crash"),
    "peer without power": partial(noticing.gone, how="power-off"),
    "peer without power, bad network": partial(noticing.gone, how="power-off", loss=0.05),
    "cores pegged": partial(noticing.pegged, for_s=120.0),
    "rolling restart": partial(leaving.rolling, hosts=5),
    "stopped while it serves": partial(leaving.drained, tokens=600),
    "strangers": partial(strangers.strangers, packets=100_000, knocks=400),
    "coordinator kill": partial(reigning.coordinator_kill, times=100),
    "partition": partial(parting.partition, for_s=60.0),
    "disks full": partial(filling.full, for_s=30.0),
    "databases locked": partial(spoiling.lock, for_s=60.0),
    "database damaged at the start": partial(spoiling.spoilt_at_start, times=9),
    "database damaged while it runs": partial(spoiling.spoilt_while_it_runs, times=6),
    "short soak": partial(soaking.soak, minutes=10.0, every_s=10.0),
}
"""They need a LAN (tests.fixtures.lan)."""
DRILLS: Mapping[str, Drill] = {**ONE_PEER, **MESH}

MESH_IN_CI: Mapping[str, Drill] = {
    **{
        name: MESH[name]
        for name in (
            "five find each other",
            "five by address",
            "twelve at once",
            "docker on every host",
            "copied data folder",
            "only holder killed",
            "holder wedged",
            "peer crashed",
            "peer without power",
        )
    },
    "holder killed before the first token": partial(losing.before_first_token, rounds=2),
    "holder killed in the middle": partial(losing.greedy, kills=3),
    "holder killed in the middle, sampled": partial(losing.sampled, kills=2),
    "holder stopped": partial(wedging.frozen, pause_s=6.0, streams_s=6.0),
    "holder slowed": partial(wedging.slowed, baseline_s=3.0, slow_s=8.0),
    "cores pegged": partial(noticing.pegged, for_s=10.0),
    "rolling restart": partial(leaving.rolling, hosts=3),
    "stopped while it serves": partial(leaving.drained, tokens=400),
    "strangers": partial(strangers.strangers, packets=10_000, knocks=40),
    "coordinator kill": partial(reigning.coordinator_kill, times=3),
    "partition": partial(parting.partition, for_s=6.0),
    "disks full": partial(filling.full, for_s=2.0),
    "databases locked": partial(spoiling.lock, for_s=5.0),
    "database damaged at the start": partial(spoiling.spoilt_at_start, times=2),
    "database damaged while it runs": partial(spoiling.spoilt_while_it_runs, times=1),
    "short soak": partial(soaking.soak, minutes=0.4, every_s=4.0),
}
