"""How many files and sockets this process may have open, raised to what its connections need. Not on Windows.

Many systems start programs with 1,024 (macOS: 256) and let them have more. Without it, so many idle connections keep
everybody else out, and no worker can be started.
"""

from __future__ import annotations

import sys

RESERVED = 512
"""For workers (four pipes each), files and logs."""


def room_for_connections(wanted: int) -> int:
    """How many connections there may be at once, at most `wanted`: the limit of open files is raised for them."""
    if sys.platform == "win32":
        return wanted
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + RESERVED
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        except (OSError, ValueError):  # macOS allows less than its hard limit says
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else max(soft // 2, min(wanted, soft - RESERVED))
