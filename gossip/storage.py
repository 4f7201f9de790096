"""What a peer keeps of its mesh on disk, `<data dir>/mesh.json`.

A save is durable when it returns: written to a new file, flushed, renamed over the old one, and the folder flushed too.
A file that cannot be read is set aside, never overwritten: a person may want it back. Modes are POSIX's; on Windows the
profile folder's own access list protects these files.

Not here: what the statements mean (gossip.roster), the key (gossip.identity).
"""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gossip.private import require_private, write_private

log = logging.getLogger(__name__)

MESH_FILE = "mesh.json"
ADDRESSES_MAX = 32
"""Good addresses remembered: one that still answers is enough to find the others again."""
FILE_BYTES_MAX = 32 * 2**20
"""Far above a full roster (4,096 statements of about 800 bytes): a larger file is not ours."""
_FORMAT = 1

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredToken:
    """An invitation that was made here. Its secret is kept as SHA-256 only. Times are unix seconds."""

    secret_hash: bytes
    uses_left: int
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredClaim:
    """The highest claim of a coordinator this peer ever heard: terms never fall, not even over a restart."""

    term: int
    peer_id: str
    is_solo: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshState:
    """All that a peer must know after a restart. `mesh_id` is empty as long as it formed or joined none.

    `door_set_at` says when the door was last opened or shut: the newest word in the mesh wins. A mature mesh is never
    young again. Times are unix seconds.
    """

    mesh_id: str = ""
    statements: tuple[bytes, ...] = ()
    door_until: float = 0.0
    door_set_at: float = 0.0
    is_claimed: bool = False
    is_mature: bool = False
    tokens: tuple[StoredToken, ...] = ()
    claim: StoredClaim | None = None
    addresses: tuple[str, ...] = ()
    """The last 32 that answered, the latest first."""

    def with_address(self, address: str) -> MeshState:
        """The same with this address as the latest that answered."""
        kept = (address, *(other for other in self.addresses if other != address))
        return dataclasses.replace(self, addresses=kept[:ADDRESSES_MAX])


class MeshFile:
    """The file in one data folder. One owner at a time; calls block on the disk: the shell gives them to a thread."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / MESH_FILE

    def load(self) -> MeshState:
        """What was saved last, or an empty state.

        A damaged file is moved to `mesh.json.corrupt-<unix time>` with a warning: this peer then knows no mesh. A file
        that cannot be opened at all raises OSError: it may be whole, and saving would replace it.
        """
        require_private(self.path)
        try:
            if self.path.stat().st_size > FILE_BYTES_MAX:
                raise ValueError(f"more than {FILE_BYTES_MAX} bytes")
            return _parsed(self.path.read_bytes())
        except FileNotFoundError:
            return MeshState()
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            aside = self.path.with_name(f"{self.path.name}.corrupt-{int(time.time())}-{secrets.token_hex(2)}")
            self.path.replace(aside)
            log.warning(
                "What this peer knew of its mesh cannot be read and was set aside; it starts as a mesh of its own",
                extra={"path": str(self.path), "set_aside": str(aside), "reason": f"{type(error).__name__}: {error}"},
            )
            return MeshState()

    def save(self, state: MeshState) -> None:
        """Replaces the file; on disk when this returns."""
        write_private(self.path, _encoded(state))


def _encoded(state: MeshState) -> bytes:
    table = {
        "format": _FORMAT,
        "mesh_id": state.mesh_id,
        "door_until": state.door_until,
        "door_set_at": state.door_set_at,
        "is_claimed": state.is_claimed,
        "is_mature": state.is_mature,
        "tokens": [
            {"secret_hash": _text(token.secret_hash), "uses_left": token.uses_left, "expires_at": token.expires_at}
            for token in state.tokens
        ],
        "claim": dataclasses.asdict(state.claim) if state.claim else None,
        "addresses": list(state.addresses[:ADDRESSES_MAX]),
        "statements": [_text(statement) for statement in state.statements],
    }
    return (json.dumps(table, indent=1) + "\n").encode("utf-8")


def _parsed(data: bytes) -> MeshState:
    """Raises ValueError, KeyError or TypeError for anything that `_encoded` does not write."""
    table = json.loads(data)
    if table["format"] != _FORMAT:
        raise ValueError(f"format {table['format']!r} is not {_FORMAT}")
    claim = table["claim"]
    return MeshState(
        mesh_id=_typed(table, "mesh_id", str),
        statements=_each(table, "statements", _bytes),
        door_until=_number(table, "door_until"),
        door_set_at=_number(table, "door_set_at"),
        is_claimed=_typed(table, "is_claimed", bool),
        is_mature=_typed(table, "is_mature", bool),
        tokens=_each(table, "tokens", _token),
        claim=None
        if claim is None
        else StoredClaim(
            term=_typed(claim, "term", int),
            peer_id=_typed(claim, "peer_id", str),
            is_solo=_typed(claim, "is_solo", bool),
        ),
        addresses=_each(table, "addresses", _string)[:ADDRESSES_MAX],
    )


def _token(entry: dict[str, Any]) -> StoredToken:
    return StoredToken(
        secret_hash=_bytes(entry["secret_hash"]),
        uses_left=_typed(entry, "uses_left", int),
        expires_at=_number(entry, "expires_at"),
    )


def _typed(table: dict[str, Any], key: str, kind: type[_T]) -> _T:
    value = table[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{key} is no {kind.__name__}")
    return value


def _number(table: dict[str, Any], key: str) -> float:
    value = table[key]
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{key} is no number")
    return float(value)


def _each(table: dict[str, Any], key: str, parse: Callable[[Any], _T]) -> tuple[_T, ...]:
    return tuple(parse(value) for value in _typed(table, key, list))


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("an address is no text")
    return value


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
