"""Records as a file, JSON or CSV, made while it is sent: a few hundred of them are in memory at a time.

JSON is an array of what the API answers. CSV has a column for each field in the same order, `status` as its type and
`error` beside it; lines and quotes are RFC 4180's, text is UTF-8. A cell that a spreadsheet would take for a formula
gets an apostrophe in front (https://owasp.org/www-community/attacks/CSV_Injection), and so does what would be a cell of
its own where semicolons or tabs separate them, as in half of Europe: lines end within quotes there. Bodies are left out
unless asked for, in CSV as the text that was stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import json
import re
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from inference.openai.fields import not_one_of
from mesh.history.filters import Filters, filters_of
from mesh.history.query import HistoryQuery
from mesh.history.view import FIELDS
from mesh.moments import rfc_3339
from web.services import Export, Query

RECORDS = 256
RECORDS_WITH_BODIES = 16
"""So many at a time; a body has up to 1 MiB, and there are two."""
BODIES_BYTES_MAX = 1 << 40
"""No bound but that: an export leaves nothing out."""
FORMATS = ("json", "csv")

_BODIES = ("request_body", "response_body")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_FORMULA_WITHIN = re.compile("([;\t\r\n])(?=[=+@＝＋－＠-])")


def export(history: HistoryQuery, query: Query, now_ms: int) -> Export:
    """The file that `query` asks for: the filters of a list, `format` (json or csv), `bodies=true`.

    For CSV `bom=true` begins it with a byte order mark, without which Excel does not know that it is UTF-8. Raises
    InvalidRequest; what fails later breaks the stream off.
    """
    filters = filters_of(query, now_ms)
    form, has_bodies = query.get("format") or "json", query.get("bodies") == "true"
    if form not in FORMATS:
        raise not_one_of("format", form, FORMATS)
    name = f"llm-router-history-{rfc_3339(now_ms / 1000)[:19].replace(':', '')}Z.{form}"
    if form == "json":
        return Export(filename=name, content_type="application/json", chunks=as_json(history, filters, has_bodies))
    chunks = as_csv(history, filters, has_bodies, has_mark=query.get("bom") == "true")
    return Export(filename=name, content_type="text/csv; charset=utf-8", chunks=chunks)


async def as_json(history: HistoryQuery, filters: Filters, has_bodies: bool) -> AsyncGenerator[bytes, None]:
    """The records as a JSON array, one a line."""
    separator = b"[\n"
    async with contextlib.aclosing(_records(history, filters, has_bodies)) as lists:
        async for records in lists:
            yield separator + await asyncio.to_thread(_json_lines, records, has_bodies)
            separator = b",\n"
    yield b"\n]\n" if separator == b",\n" else b"[]\n"


async def as_csv(
    history: HistoryQuery, filters: Filters, has_bodies: bool, *, has_mark: bool = False
) -> AsyncGenerator[bytes, None]:
    """The records as CSV, with the names of the columns first."""
    names = columns(has_bodies)
    yield ("\ufeff" if has_mark else "").encode() + _csv_lines([names])
    async with contextlib.aclosing(_records(history, filters, has_bodies)) as lists:
        async for records in lists:
            yield await asyncio.to_thread(_csv_of, records, names)


def columns(has_bodies: bool) -> list[str]:
    """The columns of CSV."""
    names = [name for name in FIELDS if has_bodies or name not in _BODIES]
    names.insert(names.index("status") + 1, "error")
    return names


def cell(value: Any) -> str:
    """One value as a cell that no spreadsheet takes for a formula."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return _FORMULA_WITHIN.sub(r"\1'", f"'{text}" if text.startswith(_FORMULA) else text)


async def _records(
    history: HistoryQuery, filters: Filters, has_bodies: bool
) -> AsyncGenerator[list[dict[str, Any]], None]:
    size = RECORDS_WITH_BODIES if has_bodies else RECORDS
    async with contextlib.aclosing(history.walked(filters, size)) as lists:
        async for places in lists:
            if records := await history.shown(places, with_bodies=has_bodies, bytes_max=BODIES_BYTES_MAX):
                yield records


def _json_lines(records: list[dict[str, Any]], has_bodies: bool) -> bytes:
    if not has_bodies:
        for record in records:
            for name in _BODIES:
                del record[name]
    return ",\n".join(json.dumps(record, ensure_ascii=False, separators=(",", ":")) for record in records).encode()


def _csv_of(records: list[dict[str, Any]], names: Sequence[str]) -> bytes:
    lines = []
    for record in records:
        status = record["status"]
        record |= {
            "status": status["type"],
            "error": status.get("message"),
            "continued_on": "; ".join(record["continued_on"]),
        }
        lines.append([cell(record[name]) for name in names])
    return _csv_lines(lines)


def _csv_lines(lines: Sequence[Sequence[str]]) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file).writerows(lines)
    return file.getvalue().encode()
