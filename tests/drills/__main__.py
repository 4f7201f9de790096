"""`python -m tests.drills [--all | --add] [NAME...] [--OPTION VALUE]`: drills with their figures, as a table.

Exit code 1 when a figure is too much. Without a name every drill runs; `--all` does too, and writes the table into
docs/reliability.md; `--add` puts the rows of the drills that ran into the table that is there. A name may have hyphens
for its blanks. Options are the sizes of a drill as tests.drills.drills has them: `coordinator-kill --times 100`.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.drills.drills import DRILLS, MESH, Drill
from tests.drills.figure import Figure, table
from tests.fixtures.lan import why_no_lan

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- drills: begin -->", "<!-- drills: end -->"
FIRST_ROW = 2
"""In a table's lines: two are its head."""


class BadCommand(Exception):
    """The command line names something that there is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What is to be done: drills by name, in the size that was asked for."""

    drills: Mapping[str, Drill]
    is_all: bool = False
    is_added: bool = False


def main(words: Sequence[str]) -> int:
    try:
        command = parsed(words)
    except BadCommand as bad:
        print(bad, file=sys.stderr)
        return 2
    rows: list[tuple[str, Figure]] = []
    failed: list[str] = []
    for name, drill in command.drills.items():
        if name in MESH and (reason := why_no_lan()) is not None:
            failed.append(f"{name}: {reason}")
            continue
        began = time.monotonic()
        figures: list[Figure] = []
        with tempfile.TemporaryDirectory(prefix="drill-") as folder:
            try:
                figures = drill(Path(folder) / name.replace(" ", "-"))
            except Exception as error:  # noqa: BLE001 - the next drill runs all the same
                failed.append(f"{name}: {str(error)[:500]}")
                traceback.print_exception(error)
        rows += [(name, figure) for figure in figures]
        print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr)
        print(*(f"  {f.what}: {f.value:.3g} {f.unit}" for f in figures), sep="\n", file=sys.stderr, flush=True)
    text = "\n".join((_machine(words), "", table(rows), *("", *(f"FAILED {line}  " for line in failed))))
    print(text)
    if command.is_all:
        PAGE.write_text(rewritten(PAGE.read_text(), text.rstrip()))
    if command.is_added and not failed:
        page = PAGE.read_text()
        PAGE.write_text(rewritten(page, added(between_marks(page), _machine(words), rows)))
    return 1 if failed or not all(figure.holds() for _, figure in rows) else 0


def parsed(words: Sequence[str]) -> Command:
    """What `words` ask for. Raises BadCommand."""
    names, options, flags = list[str](), dict[str, str](), set[str]()
    left = list(words)
    while left:
        word = left.pop(0)
        if word in ("--all", "--add"):
            flags.add(word)
        elif word.startswith("--"):
            if not left:
                raise BadCommand(f"{word} lacks its value")
            options[word[2:].replace("-", "_")] = left.pop(0)
        else:
            names.append(_named(word))
    drills = {name: DRILLS[name] for name in names or DRILLS}
    for option, text in options.items():
        sized = {name: drill for name, drill in drills.items() if option in _sizes(drill)}
        if not sized:
            raise BadCommand(f"none of these drills has a size {option!r}: {', '.join(drills)}")
        drills |= {name: partial(drill, **{option: _value(option, drill, text)}) for name, drill in sized.items()}
    return Command(drills=drills, is_all="--all" in flags, is_added="--add" in flags)


def _named(word: str) -> str:
    for name in DRILLS:
        if word in (name, name.replace(",", "").replace(" ", "-")):
            return name
    raise BadCommand(f"no such drill: {word}\nthere are: {', '.join(DRILLS)}")


def _sizes(drill: Drill) -> Mapping[str, object]:
    return drill.keywords if isinstance(drill, partial) else {}


def _value(option: str, drill: Drill, text: str) -> object:
    size = _sizes(drill)[option]
    wanted = int if isinstance(size, int) else float if isinstance(size, float) else str
    try:
        return wanted(text)
    except ValueError:
        raise BadCommand(f"--{option.replace('_', '-')}: {text!r} is no {wanted.__name__}") from None


def rewritten(page: str, text: str) -> str:
    """The page with `text` between its marks. Raises ValueError without them."""
    between_marks(page)
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def between_marks(page: str) -> str:
    """What stands there. Raises ValueError without them."""
    _, begin, rest = page.partition(BEGIN)
    text, end, _ = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks the marks {BEGIN} and {END}")
    return text.strip()


def added(text: str, line: str, rows: Sequence[tuple[str, Figure]]) -> str:
    """The text with these rows in its table instead of those of the same drills, and `line` above it.

    Of two lines with the same command the later one stays.
    """
    head, _, body = text.partition("| drill |")
    command = line.split(", ", 2)[1]
    paragraphs = [paragraph for paragraph in head.strip().split("\n\n") if f", {command}, " not in paragraph]
    old = ("| drill |" + body).splitlines()
    new = table(rows).splitlines()
    ran = {name for name, _ in rows}
    kept = [row for row in old[FIRST_ROW:] if row.startswith("|") and _drill_of(row) not in ran]
    order = {name: number for number, name in enumerate(DRILLS)}
    body_rows = sorted([*kept, *new[FIRST_ROW:]], key=lambda row: order.get(_drill_of(row), len(order)))
    return "\n\n".join([*paragraphs, line, "\n".join([*new[:FIRST_ROW], *body_rows])])


def _drill_of(row: str) -> str:
    return row.split("|")[1].strip()


def _machine(words: Sequence[str]) -> str:
    shown = (f'"{word}"' if " " in word else word for word in words if word != "--add")
    return (
        f"{time.strftime('%Y-%m-%d')}, `{' '.join(('python -m tests.drills', *shown))}`"
        f", {platform.machine()} with {os.cpu_count()} cores, {platform.system()} {platform.release().split('-')[0]},"
        f" Python {platform.python_version()}."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
