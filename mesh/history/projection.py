"""What the entries mean for the tables that are asked: rows made of entries. Pure.

A Start makes a record, its End fills it in, an Audit makes a row of its own. Texts that come again and again (models,
peers, keys) are numbers in the records, and `words` says which: that keeps the one index that all questions use small.
Bodies stay in the entries.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from mesh.history.entries import Audit, End, Entry, Start

Word: TypeAlias = tuple[str, str]
"""A kind (`model`, `node`, `name`, `key`, `text`) and a text."""

STATES = ("running", "success", "error", "cancelled", "interrupted")
"""A record's `state` is the index here. Only ever added to."""
KINDS = ("chat", "generate", "embeddings")
RECORDINGS = ("full", "metadata")
BAND_WIDTH = 1.1
COUNT_MAX = 1 << 40
TIME_MS_MAX = 253_402_214_400_000
"""The last day of the year 9999. Later, and no calendar has a name for it."""
BODIES_DROPPED = -1
"""In `body_bytes`: bodies were there, and went to make room."""

# Of a Start or an End that was written twice (the disk failed while it said that it had written, or its file was
# damaged and a new log begun) the first one counts. The same id in the logs of two peers is two requests; the upper
# bits of a place say which log it is in (mesh.history.schema).
INSERT_RECORD = (
    "INSERT INTO records (place, id, arrived, at, kind, model, client_ip, key, key_name, user, stream,"
    " recording, body_bytes, state, node, node_name, node_ip)"
    " SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, 0, 0, 0, 0"
    " WHERE NOT EXISTS (SELECT 1 FROM records WHERE id = ?2 AND"
    " (SELECT peer FROM logs WHERE no = records.place >> 40) = (SELECT peer FROM logs WHERE no = ?1 >> 40))"
)
END_RECORD = (
    "UPDATE records SET state = ?, ended = ?, end_place = ?, ended_at = ?, message = ?, code = ?, http_status = ?,"
    " node = ?, node_name = ?, node_ip = ?, attempts = ?, continued_on = ?, prompt_tokens = ?, completion_tokens = ?,"
    " cached_tokens = ?, ttft_ms = ?, duration_ms = ?, duration_band = ?, body_bytes = max(body_bytes, 0) + ?"
    " WHERE id = ? AND ended IS NULL AND"
    " (SELECT peer FROM logs WHERE no = records.place >> 40) = (SELECT peer FROM logs WHERE no = ? >> 40)"
)
# An End may come before its Start, when they are in two logs of one peer: it waits for it.
FIND_RECORD = (
    "SELECT 1 FROM records WHERE id = ? AND"
    " (SELECT peer FROM logs WHERE no = records.place >> 40) = (SELECT peer FROM logs WHERE no = ? >> 40)"
)
KEEP_END = "INSERT INTO early_ends (place, id) VALUES (?, ?)"
FIND_ENDS = (
    "SELECT early_ends.place, data FROM early_ends JOIN entries ON entries.place = early_ends.place"
    " WHERE id = ? ORDER BY early_ends.place"
)
INSERT_AUDIT = "INSERT INTO audits VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass(slots=True)
class Rows:
    """Parameters for the three statements above."""

    starts: list[tuple[Any, ...]] = field(default_factory=list)
    ends: list[tuple[Any, ...]] = field(default_factory=list)
    audits: list[tuple[Any, ...]] = field(default_factory=list)


def band_of(duration_ms: int) -> int:
    """The band of a duration, for percentiles without sorting: each is a tenth wider than the one before."""
    return round(math.log1p(duration_ms) / math.log(BAND_WIDTH))


def duration_of(band: int) -> float:
    """The middle of that band in ms; at most 5 % from every duration in it."""
    return math.expm1(band * math.log(BAND_WIDTH))


def words_of(entry: Entry) -> Iterator[Word]:
    """The words whose numbers `add` needs for this entry."""
    if isinstance(entry, Start):
        yield from (("model", entry.model), ("text", entry.client_ip), ("text", entry.user))
        yield from (("key", entry.key_id), ("name", entry.key_name))
    elif isinstance(entry, End):
        yield from (("node", entry.node), ("name", entry.node_name), ("text", entry.node_ip))


def add(rows: Rows, entry: Entry, *, row: int, arrived: int, numbers: Mapping[Word, int]) -> None:
    """Adds what the entry at place `row` means, which is in a log that `logs` has. `arrived`: its turn."""
    if isinstance(entry, Start):
        body = entry.request_body
        rows.starts.append(
            (
                row,
                entry.id,
                arrived,
                min(entry.at_ms, TIME_MS_MAX),
                KINDS.index(entry.kind),
                numbers["model", entry.model],
                numbers["text", entry.client_ip],
                numbers["key", entry.key_id],
                numbers["name", entry.key_name],
                numbers["text", entry.user],
                entry.stream,
                RECORDINGS.index(entry.recording),
                len(body) if body is not None else 0,
            )
        )
    elif isinstance(entry, End):
        body = entry.response_body
        rows.ends.append(
            (
                STATES.index(entry.status),
                arrived,
                row,
                min(entry.at_ms, TIME_MS_MAX),
                entry.message,
                entry.code,
                entry.http_status,
                numbers["node", entry.node],
                numbers["name", entry.node_name],
                numbers["text", entry.node_ip],
                entry.attempts,
                json.dumps(entry.continued_on),
                _bounded(entry.prompt_tokens),
                _bounded(entry.completion_tokens),
                _bounded(entry.cached_tokens),
                _bounded(entry.ttft_ms),
                _bounded(entry.duration_ms),
                band_of(entry.duration_ms),
                len(body) if body is not None else 0,
                entry.id,
                row,
            )
        )
    else:
        assert isinstance(entry, Audit)
        rows.audits.append(
            (
                row,
                arrived,
                min(entry.at_ms, TIME_MS_MAX),
                entry.actor,
                entry.actor_kind,
                entry.ip,
                entry.action,
                entry.target,
                entry.detail,
            )
        )


def _bounded(count: int | None) -> int | None:
    """So that millions of them can be added up in 63 bits, whatever a peer says."""
    return None if count is None else min(count, COUNT_MAX)
