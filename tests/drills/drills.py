"""Every drill of this version by its name."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.drills import crash
from tests.drills.figure import Figure
from tests.drills.idle import idle
from tests.drills.leak import leak
from tests.drills.leave import leave
from tests.drills.slow import slow

DRILLS: dict[str, Callable[[Path], list[Figure]]] = {
    "idle peer": idle,
    "worker killed": partial(crash.once, number=signal.SIGKILL),
    "worker segfaults": partial(crash.once, number=signal.SIGSEGV),
    "worker segfaults twice": crash.twice,
    "worker sends garbage": partial(crash.sampled, how="garbage"),
    "worker falls silent": partial(crash.sampled, how="silence"),
    "client leaves": leave,
    "thousand requests": leak,
    "slow clients": slow,
}
