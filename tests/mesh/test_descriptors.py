"""Tests of the limit of open files, in processes of their own."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")

_ASKED = """
import resource, sys
from mesh.descriptors import room_for_connections

soft, hard, wanted = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(room_for_connections(wanted), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "connections", "limit"),
    [
        (256, 4096, 1000, 1000, 1512),
        (2000, 4096, 1000, 1000, 2000),
        (1024, 2048, 12_000, 1536, 2048),
        (256, 256, 12_000, 128, 256),
    ],
)
def test_connections_leave_room_for_files_and_workers(
    soft: int, hard: int, wanted: int, connections: int, limit: int
) -> None:
    arguments = [sys.executable, "-c", _ASKED, str(soft), str(hard), str(wanted)]
    found = subprocess.run(arguments, capture_output=True, timeout=60, check=True)
    assert found.stdout.split() == [b"%d" % connections, b"%d" % limit]
