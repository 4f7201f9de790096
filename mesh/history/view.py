"""A record as the API shows it: a row of `records` made into the contract's fields, and ours after them. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from mesh.history.conditions import Mesh, node_uuid
from mesh.history.entries import LogId
from mesh.history.projection import BODIES_DROPPED, KINDS, RECORDINGS, STATES, TIME_MS_MAX
from mesh.moments import rfc_3339

CANCELLED = "the client left"
INTERRUPTED = "the machine that took the request stopped before it ended"

_WORDS = ("model", "client_ip", "key", "key_name", "user", "node", "node_name", "node_ip")
_PLAIN = (
    "place", "id", "at", "kind", "stream", "recording", "state", "ended_at", "message", "code", "http_status",
    "attempts", "continued_on", "prompt_tokens", "completion_tokens", "cached_tokens", "ttft_ms", "duration_ms",
    "body_bytes", "end_place",
)  # fmt: skip
_COLUMNS = (*_PLAIN, *_WORDS)
_TEXTS = [f"(SELECT text FROM words WHERE no = records.{word})" for word in _WORDS]  # noqa: S608 - columns from above
SELECT = f"SELECT {', '.join((*_PLAIN, *_TEXTS))} FROM records"  # noqa: S608
"""The rows that `record` reads; what follows says which."""

FIELDS = (
    "id", "timestamp", "request_type", "model", "node_id", "agent_machine_name", "agent_ip", "client_ip",
    "request_body", "response_body", "duration_ms", "status", "completed_at", "state", "code", "http_status",
    "prompt_tokens", "completion_tokens", "cached_tokens", "ttft_ms", "attempts", "continued_on", "ingress_node_id",
    "ingress_machine_name", "api_key", "api_key_id", "user", "stream", "recording", "bodies_dropped",
)  # fmt: skip
"""The fields of a record, in order."""
_LONE_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def record(row: Sequence[Any], log: LogId, mesh: Mesh) -> dict[str, Any]:
    """The record of a row of SELECT, of this log. Its bodies are None: whoever has them puts them in."""
    raw = dict(zip(_COLUMNS, row, strict=True))
    state = STATES[raw["state"]]
    if state == "running" and not mesh.is_living(log):
        state = "interrupted"
    has_ended = raw["ended_at"] is not None
    return {
        "id": raw["id"],
        "timestamp": _time(raw["at"]),
        "request_type": KINDS[raw["kind"]],
        "model": raw["model"],
        "node_id": node_uuid(raw["node"] or ""),
        "agent_machine_name": raw["node_name"] or mesh.name_of(raw["node"] or "") or None,
        "agent_ip": raw["node_ip"] or None,
        "client_ip": raw["client_ip"] or None,
        "request_body": None,
        "response_body": None,
        "duration_ms": raw["duration_ms"],
        "status": _status(state, raw["message"]),
        "completed_at": _time(raw["ended_at"]) if has_ended else None,
        "state": state,
        "code": raw["code"] or None,
        "http_status": raw["http_status"],
        "prompt_tokens": raw["prompt_tokens"],
        "completion_tokens": raw["completion_tokens"],
        "cached_tokens": raw["cached_tokens"],
        "ttft_ms": raw["ttft_ms"],
        "attempts": raw["attempts"],
        "continued_on": json.loads(raw["continued_on"]) if raw["continued_on"] not in (None, "[]") else [],
        "ingress_node_id": node_uuid(log.peer),
        "ingress_machine_name": mesh.name_of(log.peer) or None,
        "api_key": raw["key_name"] or None,
        "api_key_id": raw["key"] or None,
        "user": raw["user"] or None,
        "stream": bool(raw["stream"]),
        "recording": RECORDINGS[raw["recording"]],
        "bodies_dropped": raw["body_bytes"] == BODIES_DROPPED,
    }


def audit(row: Sequence[Any], log: LogId, mesh: Mesh) -> dict[str, Any]:
    """What somebody did, of a row with the columns place, at, actor, actor_kind, ip, action, target, detail."""
    _, at, actor, actor_kind, ip, action, target, detail = row
    return {
        "timestamp": _time(at),
        "actor": actor,
        "actor_kind": actor_kind,
        "ip": ip or None,
        "action": action,
        "target": target or None,
        "detail": detail or None,
        "ingress_node_id": node_uuid(log.peer),
        "ingress_machine_name": mesh.name_of(log.peer) or None,
    }


def places(row: Sequence[Any]) -> tuple[int, int | None]:
    """Where the entries of a row of SELECT are: its Start, and its End."""
    return row[0], row[_COLUMNS.index("end_place")]


def body(data: bytes | None) -> Any:
    """A body as JSON where it is JSON that can be written again, else as text; None as it is."""
    if data is None:
        return None
    text = data.decode("utf-8", "replace")
    try:
        value = json.loads(text, parse_constant=_refused, parse_float=_finite)
        if _LONE_SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return text
    return value


def _refused(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError("a number that JSON cannot say again")
    return value


def _status(state: str, message: str | None) -> dict[str, str]:
    if state in ("running", "success"):
        return {"type": state}
    default = {"cancelled": CANCELLED, "interrupted": INTERRUPTED}.get(state, "")
    return {"type": "error", "message": default or message or "it failed, and nothing says why"}


def _time(ms: int) -> str:
    return rfc_3339(min(ms, TIME_MS_MAX) / 1000)
