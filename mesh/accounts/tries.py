"""Five tries a minute: what slows down who guesses a password or a set-up code. Pure.

A try counts when it begins, so that a hundred at once are not one; it is given back when it was right. IPv6 addresses
count by /64, which is what one household or one machine has.

Tries count for the address and for the name that is tried, or five machines would have five times as many. But then
whoever guesses keeps the user out as well: so where that name was right before, only the address counts.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict, deque

TRIES_MAX = 5
WINDOW_S = 60.0
NAMES_MAX = 4096
"""Whoever tries from so many addresses or for so many names pushes out the oldest ones; the hash still takes time."""


GOOD_MAX = 1024
"""Places where a name was right that are remembered."""


class Tries:
    """Those of the last minute, by who tries and for whom. `now` is monotonic seconds."""

    def __init__(self) -> None:
        self._tries: OrderedDict[str, deque[float]] = OrderedDict()
        self._good: OrderedDict[tuple[str, str], None] = OrderedDict()

    def names(self, name: str, address: str) -> tuple[str, ...]:
        """What a try for that name from that address counts for (`by_address`)."""
        return (address,) if (name, address) in self._good else (name, address)

    def was_good(self, name: str, address: str) -> None:
        """Somebody proved there to be that name."""
        self._good[name, address] = None
        self._good.move_to_end((name, address))
        if len(self._good) > GOOD_MAX:
            self._good.popitem(last=False)

    def begin(self, names: tuple[str, ...], now: float) -> int:
        """0 when the try may go, and counts it for each of `names`; else in how many seconds the next one may."""
        wait_s = max((self._wait_s(name, now) for name in names), default=0)
        if wait_s:
            return wait_s
        for name in names:
            self._tries.setdefault(name, deque()).append(now)
            self._tries.move_to_end(name)
        while len(self._tries) > NAMES_MAX:
            self._tries.popitem(last=False)
        return 0

    def was_right(self, names: tuple[str, ...]) -> None:
        """The last try was right: it does not count."""
        for name in names:
            tries = self._tries.get(name)
            if tries:
                tries.pop()

    def _wait_s(self, name: str, now: float) -> int:
        tries = self._tries.get(name)
        while tries and tries[0] <= now - WINDOW_S:
            tries.popleft()
        if not tries:
            self._tries.pop(name, None)
            return 0
        return max(1, math.ceil(tries[0] + WINDOW_S - now)) if len(tries) >= TRIES_MAX else 0


def by_address(ip: str) -> str:
    """What an address counts as."""
    try:
        address = ipaddress.ip_address(ip.partition("%")[0])
    except ValueError:
        return "ip "
    mapped = getattr(address, "ipv4_mapped", None) or address
    if mapped.version == 4:
        return f"ip {mapped}"
    return f"ip {ipaddress.ip_network((int(address) >> 64 << 64, 64))}"
