"""This peer's own log lines, newest first wanted: the files of `mesh.logs`, read backwards and filtered.

Memory is bounded by the answer, whatever the files hold; time by `SCAN_BYTES_MAX`, and one read runs at a time, in a
thread. Secrets were taken out when the lines were written. Nothing is sorted: the order is that of the files.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from inference.errors import InvalidRequest, ModelUnavailable, Overloaded
from mesh.logs import as_written, day_of
from mesh.moments import moment

LIMIT = 200
LIMIT_MAX = 1000
GREP_LENGTH_MAX = 500
LEVELS = ("debug", "info", "warning", "error", "critical")
_RANKS = {level.encode(): rank for rank, level in enumerate(LEVELS)}

ANSWER_BYTES_MAX = 2 * 1024 * 1024
"""Lines are about 300 bytes, a traceback a few thousand: 1,000 of them fit, and 1,000 of the longest do not."""
LINE_BYTES_MAX = 256 * 1024
SCAN_BYTES_MAX = 256 * 1024 * 1024
"""A second or two. What lies further back is found with another `since`, or in the files."""
WAITING_MAX = 8
CLOCK_BACK_S = 60.0
"""A clock that was set back by less than this hides no line."""

_BLOCK_BYTES = 64 * 1024
# As mesh.logs writes it: the time always in UTC and as long, so that moments compare as their texts do. What a query
# does not want is passed over without being parsed.
_HEAD = re.compile(rb'\{"time": "([0-9T:.+-]{29})", "level": "([a-z0-9 ]{1,20})"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A query, parsed. `since` and `reach` are moments as they stand in lines: the oldest line that is wanted, and how
    far back to look for it. `greps`: the text as it may stand in a file; one is enough."""

    rank: int = 0
    since: bytes = b""
    reach: bytes = b""
    greps: tuple[bytes, ...] = ()
    limit: int = LIMIT

    @classmethod
    def of(cls, query: Mapping[str, str], *, now: float) -> Wanted:
        """Raises InvalidRequest naming the parameter."""
        if unknown := sorted(set(query) - {"level", "since", "grep", "limit"}):
            raise _bad(unknown[0][:40], "there is no such filter; there are level, since, grep and limit")
        since, reach = _since(query.get("since", ""), now)
        return cls(
            rank=_rank(query.get("level", "")),
            since=since,
            reach=reach,
            greps=_greps(query.get("grep", "")),
            limit=_limit(query.get("limit", "")),
        )

    def takes(self, line: bytes, written_at: bytes, level: bytes) -> bool:
        return (
            written_at >= self.since
            and _RANKS.get(level, _RANKS[b"info"]) >= self.rank
            and (not self.greps or any(grep in line for grep in self.greps))
        )


class LogLines:
    """`web.services.LogsFacet` over one folder."""

    def __init__(self, folder: Path, *, now: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._now = now
        self._turn = asyncio.Semaphore(1)
        self._asked = 0

    async def lines(self, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """The newest lines that match, the oldest of them first; see `Wanted` for the query.

        Raises InvalidRequest, Overloaded when too many ask, ModelUnavailable when the files cannot be read.
        """
        wanted = Wanted.of(query, now=self._now())
        if self._asked >= WAITING_MAX:
            raise Overloaded("The logs are being read by others; try again.", retry_after_s=2)
        self._asked += 1
        is_over = threading.Event()
        try:
            async with self._turn:
                return await asyncio.to_thread(found_lines, self._folder, wanted, is_over)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ModelUnavailable(f"The log files cannot be read: {reason}.", code="logs_unavailable") from error
        finally:
            is_over.set()  # a caller that left: the thread stops at its next line
            self._asked -= 1


def found_lines(folder: Path, wanted: Wanted, is_over: threading.Event) -> list[dict[str, Any]]:
    """Reads the files of `folder`, the newest first; blocks."""
    found: list[dict[str, Any]] = []
    size = scanned = 0
    for line in _lines(folder, wanted.reach[:10].decode()):
        scanned += len(line) + 1
        if scanned > SCAN_BYTES_MAX or is_over.is_set():
            break
        match = _HEAD.match(line)
        if match is None:
            continue  # not ours, or cut off by a crash
        if match[1] < wanted.reach:
            break
        if not wanted.takes(line, match[1], match[2]) or (parsed := _parsed(line)) is None:
            continue
        size += len(line)
        if size > ANSWER_BYTES_MAX:
            break
        found.append(parsed)
        if len(found) == wanted.limit:
            break
    found.reverse()
    return found


def backwards(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file from its last one, without line ends. Empty ones and those above LINE_BYTES_MAX are left
    out; no more than that is in memory at a time."""
    at = file.seek(0, 2)
    rest = b""  # the beginning of a line whose end was read before
    is_too_long = False
    while at > 0:
        step = min(_BLOCK_BYTES, at)
        at -= step
        file.seek(at)
        rest, *lines = (file.read(step) + rest).split(b"\n")
        if is_too_long and lines:
            lines.pop()
            is_too_long = False
        yield from (line for line in reversed(lines) if line)
        if is_too_long or len(rest) > LINE_BYTES_MAX:
            rest, is_too_long = b"", True
    if rest:
        yield rest


def _lines(folder: Path, first_day: str) -> Iterator[bytes]:
    try:
        paths = sorted((path for path in folder.iterdir() if (day_of(path) or "") >= (first_day or "0")), reverse=True)
    except FileNotFoundError:
        return  # nothing was logged yet
    for path in paths:
        try:
            with path.open("rb") as file:
                yield from backwards(file)
        except FileNotFoundError:
            continue  # its days are over


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line, parse_constant=str)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _rank(text: str) -> int:
    level = text.strip().lower()
    if level not in ("", *LEVELS):
        raise _bad("level", f"{text[:40]!r} is not one of {', '.join(LEVELS)}")
    return LEVELS.index(level) if level else 0


def _since(text: str, now: float) -> tuple[bytes, bytes]:
    if not text.strip():
        return b"", b""
    try:
        seconds = moment(text, now=now)
        return _as_in_lines(seconds), _as_in_lines(seconds - CLOCK_BACK_S)
    except (ValueError, OverflowError, OSError) as error:
        raise _bad("since", f"{text[:60]!r} is not understood: {error}") from None


def _as_in_lines(seconds: float) -> bytes:
    when = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return when.isoformat(timespec="milliseconds").encode()


def _greps(text: str) -> tuple[bytes, ...]:
    """Between quotes it stands escaped, and what a person copies from a file has the escapes in it."""
    if len(text) > GREP_LENGTH_MAX:
        raise _bad("grep", f"it has {len(text)} characters, allowed are {GREP_LENGTH_MAX}")
    forms = dict.fromkeys((text, as_written(text)[1:-1]))
    return tuple(form.encode("utf-8", "surrogatepass") for form in forms if form)


def _limit(text: str) -> int:
    if not text.strip():
        return LIMIT
    if not re.fullmatch(r"\d{1,9}", text.strip(), re.ASCII) or not 1 <= int(text) <= LIMIT_MAX:
        raise _bad("limit", f"{text[:40]!r} is no whole number from 1 to {LIMIT_MAX}")
    return int(text)


def _bad(param: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{param}': {reason}.", param=param, code="invalid_value")
