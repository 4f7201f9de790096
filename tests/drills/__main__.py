"""`python -m tests.drills [NAME...]`: every drill with its figures, as a table. Exit code 1 when one is too much."""

from __future__ import annotations

import platform
import sys
import tempfile
import time
from pathlib import Path

from tests.drills.drills import DRILLS
from tests.drills.figure import Figure, table


def main(names: list[str]) -> int:
    rows: list[tuple[str, Figure]] = []
    failed: list[str] = []
    for name, drill in DRILLS.items():
        if names and name not in names:
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="drill-") as folder:
            try:
                rows += [(name, figure) for figure in drill(Path(folder) / name.replace(" ", "-"))]
            except AssertionError as error:
                failed.append(f"{name}: {error}")
        print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr)
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, Python {platform.python_version()}\n")
    print(table(rows))
    for line in failed:
        print(f"FAILED {line}")
    return 1 if failed or not all(figure.holds() for _, figure in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
