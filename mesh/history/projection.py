"""What the entries mean for the tables that are asked: rows made of entries. Pure.

A Start makes a record, its End fills it in, an Audit makes a row of its own. Texts that come again and again (models,
peers, keys) are numbers in the records, and `words` says which: that keeps the one index that all questions use small.
Bodies stay in the entries.
"""

from __future__ import annotations

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
BODIES_DROPPED = -1
"""In `body_bytes`: bodies were there, and went to make room."""

# Of a Start or an End that was written twice (the disk failed while it said that it had written) the first one counts.
# A Start is looked for in the log of its End only: the same id in two logs is two requests.
INSERT_RECORD = (
    "INSERT OR IGNORE INTO records (place, id, arrived, at, kind, model, client_ip, key, key_name, user, stream,"
    " recording, body_bytes) SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13"
    " WHERE NOT EXISTS (SELECT 1 FROM records WHERE id = ?2 AND place BETWEEN ?14 AND ?1)"
)
END_RECORD = (
    "UPDATE records SET state = ?, ended = ?, end_place = ?, ended_at = ?, message = ?, code = ?, http_status = ?,"
    " node = ?, node_name = ?, node_ip = ?, attempts = ?, continued_on = ?, prompt_tokens = ?, completion_tokens = ?,"
    " cached_tokens = ?, ttft_ms = ?, duration_ms = ?, body_bytes = body_bytes + ?"
    " WHERE id = ? AND place BETWEEN ? AND ? AND ended IS NULL"
)
INSERT_AUDIT = "INSERT OR IGNORE INTO audits VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass(slots=True)
class Rows:
    """Parameters for the three statements above."""

    starts: list[tuple[Any, ...]] = field(default_factory=list)
    ends: list[tuple[Any, ...]] = field(default_factory=list)
    audits: list[tuple[Any, ...]] = field(default_factory=list)


def words_of(entry: Entry) -> Iterator[Word]:
    """The words whose numbers `add` needs for this entry."""
    if isinstance(entry, Start):
        yield from (("model", entry.model), ("text", entry.client_ip), ("text", entry.user))
        yield from (("key", entry.key_id), ("name", entry.key_name))
    elif isinstance(entry, End):
        yield from (("node", entry.node), ("name", entry.node_name), ("text", entry.node_ip))


def add(rows: Rows, entry: Entry, *, row: int, first: int, arrived: int, numbers: Mapping[Word, int]) -> None:
    """Adds what the entry at place `row` means. `first` is the place of its log's first entry, `arrived` its turn."""
    if isinstance(entry, Start):
        body = entry.request_body
        rows.starts.append(
            (
                row,
                entry.id,
                arrived,
                entry.at_ms,
                KINDS.index(entry.kind),
                numbers["model", entry.model],
                numbers["text", entry.client_ip],
                numbers["key", entry.key_id],
                numbers["name", entry.key_name],
                numbers["text", entry.user],
                entry.stream,
                RECORDINGS.index(entry.recording),
                len(body) if body is not None else 0,
                first,
            )
        )
    elif isinstance(entry, End):
        body = entry.response_body
        rows.ends.append(
            (
                STATES.index(entry.status),
                arrived,
                row,
                entry.at_ms,
                entry.message,
                entry.code,
                entry.http_status,
                numbers["node", entry.node],
                numbers["name", entry.node_name],
                numbers["text", entry.node_ip],
                entry.attempts,
                " ".join(entry.continued_on),
                entry.prompt_tokens,
                entry.completion_tokens,
                entry.cached_tokens,
                entry.ttft_ms,
                entry.duration_ms,
                len(body) if body is not None else 0,
                entry.id,
                first,
                row,
            )
        )
    else:
        assert isinstance(entry, Audit)
        rows.audits.append(
            (
                row,
                arrived,
                entry.at_ms,
                entry.actor,
                entry.actor_kind,
                entry.ip,
                entry.action,
                entry.target,
                entry.detail,
            )
        )
