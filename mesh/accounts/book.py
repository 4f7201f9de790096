"""The part of the admin map that accounts read and write, and how texts in it become values.

    user/<uuid>     {username, role, password_hash, epoch, created_at, created_by}
    key/<id>        {name, sha256, scopes, models, requests_per_minute, tokens_per_minute, tokens_per_day, expires_at,
                     recording, created_at, created_by}
    session/<jti>   only ever ended: a login that is over before its time
    mesh/<what>     marks of what is done once in a mesh

Rows come from other peers too, which may be newer, or broken: what cannot be read is no user and no key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

USER = "user/"
KEY = "key/"
SESSION = "session/"
FIRST_KEY = "mesh/first-key"
CLAIMED = "mesh/claimed"


class Book(Protocol):
    """mesh.admin.admin.Admin, or a test's."""

    def get(self, key: str) -> dict[str, Any] | None: ...

    def is_ended(self, key: str) -> bool: ...

    def keys(self, prefix: str) -> list[str]: ...

    def is_vouched(self, key: str) -> bool:
        """False if a machine wrote on it that came by the open door and that nobody confirmed."""
        ...

    @property
    def vouches(self) -> bool:
        """False on such a machine."""
        ...

    async def put(self, key: str, fields: Mapping[str, Any]) -> str: ...

    async def end(self, key: str, reason: str) -> str: ...

    def watch(self, callback: Callable[[frozenset[str]], None]) -> None: ...


def moment(unix_s: float | None) -> str | None:
    """As RFC 3339 in UTC, seconds only."""
    if unix_s is None:
        return None
    return datetime.fromtimestamp(int(unix_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def text_of(fields: Mapping[str, Any], name: str) -> str:
    """The text in that field; empty when it is none."""
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def number_of(fields: Mapping[str, Any], name: str) -> float | None:
    """The number in that field, None when it is none."""
    value = fields.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def texts_of(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The texts in that list."""
    value = fields.get(name)
    return tuple(each for each in value if isinstance(each, str)) if isinstance(value, list) else ()
