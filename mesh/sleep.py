"""How long this machine has slept: what its monotonic clock, which the event loop goes by, leaves out.

Linux and macOS stop that clock while a laptop's lid is shut; Windows does not, so there a gap in it shows the sleep.
Source: clock_gettime(2), CLOCK_BOOTTIME; Darwin clock_gettime(3), CLOCK_UPTIME_RAW.
"""

from __future__ import annotations

import sys
import time


def asleep_s() -> float:
    """Seconds of sleep since it was switched on, as far as the monotonic clock does not count them."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
    if sys.platform == "darwin":
        return time.clock_gettime(time.CLOCK_MONOTONIC_RAW) - time.clock_gettime(time.CLOCK_UPTIME_RAW)
    return 0.0
