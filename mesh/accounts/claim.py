"""Who owns a new mesh: the one who reads its set-up code, or whose password it was started with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any


class Claim:
    """The set-up code, and the act of making the first admin."""

    def __init__(
        self,
        *,
        folder: Path,
        has_admin: Callable[[], bool],
        create_admin: Callable[[str, str], Awaitable[Mapping[str, Any]]],
        claim_mesh: Callable[[frozenset[str] | None], Awaitable[Any]],
        unconfirmed: Callable[[], list[dict[str, Any]]],
        peer_of: Callable[[str], str],
        now_s: Callable[[], float],
    ) -> None:
        raise NotImplementedError

    def needed(self) -> bool:
        """Whether the mesh still has no admin."""
        raise NotImplementedError

    def link(self, url: str) -> str:
        """The address that a person opens to make the first admin."""
        raise NotImplementedError

    def check(self, code: str, ip: str) -> None:
        """Raises for a wrong code, and for too many of them."""
        raise NotImplementedError
