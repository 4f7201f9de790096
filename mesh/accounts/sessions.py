"""Logins as tokens: made here, read on every member of the mesh, ended everywhere at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gossip.identity import Identity
from gossip.roster import Roster
from mesh.secret import Secret
from web.services import Principal, Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A new session. `token` is what the cookie holds, `csrf` what the page sends as `x-csrf-token`."""

    token: str = field(repr=False)
    csrf: str = field(repr=False)
    jti: str
    expires_in_s: int


class Sessions:
    """Makes and reads the tokens of logins."""

    def __init__(
        self,
        *,
        identity: Identity,
        roster: Callable[[], Roster],
        is_over: Callable[[str], bool],
        user: Callable[[str], Mapping[str, Any] | None],
        epoch: Callable[[str], int | None],
        jwt_secret: Secret | None,
        now_s: Callable[[], float],
    ) -> None:
        raise NotImplementedError

    def issue(self, user_id: str, username: str, role: Role) -> Issued:
        """A session of twelve hours for this user."""
        raise NotImplementedError

    def of(self, token: str) -> Principal | None:
        """Who this token logs in, or None. Never raises."""
        raise NotImplementedError


def check_csrf(principal: Principal, header: str | None) -> bool:
    """Whether the header is the session's own CSRF token."""
    raise NotImplementedError
