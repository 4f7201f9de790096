"""`python -m tests.drills [--all | NAME...]`: drills with their figures, as a table. Exit code 1 when one is too much.

Without a name every drill runs; `--all` does too, and writes the table into docs/reliability.md.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.drills.drills import DRILLS, MESH
from tests.drills.figure import Figure, table
from tests.fixtures.lan import why_no_lan

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- drills: begin -->", "<!-- drills: end -->"


def main(words: list[str]) -> int:
    names = [word for word in words if word != "--all"]
    if unknown := [name for name in names if name not in DRILLS]:
        print(f"no such drill: {', '.join(unknown)}\nthere are: {', '.join(DRILLS)}", file=sys.stderr)
        return 2
    rows: list[tuple[str, Figure]] = []
    failed: list[str] = []
    for name in names or DRILLS:
        if name in MESH and (reason := why_no_lan()) is not None:
            failed.append(f"{name}: {reason}")
            continue
        began = time.monotonic()
        figures: list[Figure] = []
        with tempfile.TemporaryDirectory(prefix="drill-") as folder:
            try:
                figures = DRILLS[name](Path(folder) / name.replace(" ", "-"))
            except Exception as error:  # noqa: BLE001 - the next drill runs all the same
                failed.append(f"{name}: {str(error)[:500]}")
                traceback.print_exception(error)
        rows += [(name, figure) for figure in figures]
        print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr)
        print(*(f"  {f.what}: {f.value:.3g} {f.unit}" for f in figures), sep="\n", file=sys.stderr, flush=True)
    text = "\n".join((_machine(words), "", table(rows), *("", *(f"FAILED {line}  " for line in failed))))
    print(text)
    if "--all" in words:
        PAGE.write_text(rewritten(PAGE.read_text(), text.rstrip()))
    return 1 if failed or not all(figure.holds() for _, figure in rows) else 0


def rewritten(page: str, text: str) -> str:
    """The page with `text` between its marks. Raises ValueError without them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks the marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def _machine(words: list[str]) -> str:
    command = " ".join(("python -m tests.drills", *(f'"{word}"' if " " in word else word for word in words)))
    return (
        f"{time.strftime('%Y-%m-%d')}, `{command}`"
        f", {platform.machine()} with {os.cpu_count()} cores, {platform.system()} {platform.release().split('-')[0]},"
        f" Python {platform.python_version()}."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
