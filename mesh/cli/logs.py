"""`llm-router logs`: the log lines of this machine, or of another of the mesh; `-f` goes on as they come."""

from __future__ import annotations

import collections
import datetime
import json
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import click

from mesh.cli.client import Peer, segment, with_query
from mesh.cli.completion import complete_peer
from mesh.cli.failure import Exit, Failure
from mesh.cli.options import json_option, with_peer
from mesh.cli.paging import as_moment
from mesh.logs import as_text
from mesh.moments import moment, rfc_3339

LINES_MAX = 1000
"""What one answer may have."""
SHOWN, SHOWN_BEFORE_FOLLOWING = 200, 10
POLL_S = 1.0
OVERLAP_S = 2.0
"""Lines come in order but for moments: those of so long ago are asked for again, and known ones left out."""

Line = dict[str, Any]


def _as_since(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A time ago is counted by the clock of the machine that is asked; a time of day is of this one's zone."""
    found = as_moment(ctx, param, value)
    return value.strip() if value is not None and re.fullmatch(r"\s*\d+\s*[smhdw]\s*", value) else found


@click.command(
    help="Show log lines, the newest last.\n\n"
    "--json prints one JSON object a line. --grep is a text that stands in the line as JSON."
)
@click.option("--follow", "-f", is_flag=True, help="Go on with new lines as they come, until Ctrl+C.")
@click.option("--node", metavar="MACHINE", shell_complete=complete_peer, help="Of this machine instead.")
@click.option(
    "--level", type=click.Choice(["debug", "info", "warning", "error"]), help="This level, and what is worse."
)
@click.option("--since", metavar="TIME", callback=_as_since, help="Not before: 10m, 2026-11-23 14:00, ...")
@click.option("--grep", metavar="TEXT", help="With this text in it.")
@click.option("--limit", type=click.IntRange(1, LINES_MAX), metavar="N", help="At most so many, the newest.")
@json_option
@with_peer
def logs(
    peer: Peer,
    follow: bool,
    node: str | None,
    level: str | None,
    since: str | None,
    grep: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    path = "/api/logs" if node is None else f"/api/agents/{segment(node)}/logs"
    query: dict[str, object] = {"level": level, "since": since, "grep": grep}
    if not follow:
        _print(_lines(peer, path, query | {"limit": limit or SHOWN}), as_json)
        return
    for fresh in _followed(peer, path, query, limit or SHOWN_BEFORE_FOLLOWING):
        _print(fresh, as_json)
        time.sleep(POLL_S)


class Following:
    """Tells new lines from those that were shown. Pure.

    `since` is what to ask for next; None: as before. `has_gap`: more came at once than an answer may have.
    """

    def __init__(self) -> None:
        self._known: collections.Counter[str] = collections.Counter()
        self.since: str | None = None
        self.has_gap = False

    def fresh(self, lines: Sequence[Line]) -> list[Line]:
        """Those of `lines`, an answer to `since`, that were in no answer before."""
        names = [json.dumps(line, sort_keys=True) for line in lines]
        left = self._known.copy()
        found: list[Line] = []
        for line, name in zip(lines, names, strict=True):
            if left[name] > 0:
                left[name] -= 1
            else:
                found.append(line)
        self.has_gap = self.since is not None and len(found) >= LINES_MAX
        times = [_seconds(line) for line in lines]
        if times:
            newest = max(times) - OVERLAP_S
            self.since = rfc_3339(newest)
            first = moment(self.since, now=0)
            self._known = collections.Counter(name for name, at in zip(names, times, strict=True) if at >= first)
        return found


def _followed(peer: Peer, path: str, query: dict[str, object], shown: int) -> Iterator[list[Line]]:
    """What is new at each look; first the last `shown` that are there."""
    following = Following()
    yield following.fresh(_lines(peer, path, query | {"limit": LINES_MAX}))[-shown:]
    while True:
        since = following.since or query["since"]
        fresh = following.fresh(_lines(peer, path, query | {"since": since, "limit": LINES_MAX}))
        if following.has_gap:
            click.echo("(more lines came than can be followed; some are left out)", err=True)
        yield fresh


def _lines(peer: Peer, path: str, query: dict[str, object]) -> list[Line]:
    answer = peer.get(with_query(path, query))
    lines = answer.get("lines") if isinstance(answer, dict) else answer
    if not isinstance(lines, list) or not all(isinstance(line, dict) for line in lines):
        raise Failure("the peer's answer is not understood", fix="llm-router doctor", code=Exit.UNREACHABLE)
    return lines


def _print(lines: Sequence[Line], as_json: bool) -> None:
    for line in lines:
        click.echo(json.dumps(line, ensure_ascii=True) if as_json else as_text(line))


def _seconds(line: Line) -> float:
    try:
        return datetime.datetime.fromisoformat(str(line.get("time"))).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0
