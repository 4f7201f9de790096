"""Who owns a new mesh: the one who reads its set-up code, or whose password it was started with.

The code is made when the mesh has no administrator, kept in the data folder so that a restart shows the same one, and
printed as the fragment of a link, which no browser sends and no server logs. Who comes over the LAN without it owns
nothing. Claiming also says which of the machines that came by the open door belong here: the others become guests.

The mesh is claimed first, then the administrator is made: until that is done the code is good, so whatever ends the
peer in between, the same link finishes the work. One claim at a time; the second finds an administrator. Of two on two
machines in the very same moment, each with that machine's own code, both are made: both could read a terminal.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from inference.errors import InferenceError, InvalidRequest
from inference.openai.fields import Fields, bad_value, missing
from mesh.accounts.errors import AlreadyClaimed, TooManyTries, WrongCode
from mesh.accounts.tries import Tries, by_address
from mesh.errors import NotPrivate, SettingError
from mesh.logs import hide
from mesh.private import require_private, write_private
from mesh.secret import Secret

FILE = "setup-code"
CODE_LENGTH = 32
"""Characters of 6 bits: 192 bits."""
CONFIRMED_MAX = 1024
TEXT_MAX = 4096
"""What a name and a password may be in particular is `check_admin`'s."""

_CODE = re.compile(rf"[A-Za-z0-9_-]{{{CODE_LENGTH}}}")

log = logging.getLogger(__name__)


class Claim:
    """The set-up of one mesh, as this peer offers it. All methods belong to one loop.

    `check_admin` raises InvalidRequest for a name or password that cannot be, `create_admin` answers the user as JSON.
    `claim_mesh` is given the ids of the machines that were confirmed, `peer_of` knows them by id or name.
    `mark_claimed` leaves a mark in the admin map, which `was_claimed` finds: the mesh has had an administrator.
    """

    def __init__(
        self,
        *,
        folder: Path,
        has_admin: Callable[[], bool],
        was_claimed: Callable[[], bool],
        mark_claimed: Callable[[], Awaitable[object]],
        check_admin: Callable[[str, str], object],
        create_admin: Callable[[str, str], Awaitable[Mapping[str, Any]]],
        claim_mesh: Callable[[frozenset[str]], Awaitable[object]],
        unconfirmed: Callable[[], list[dict[str, Any]]],
        peer_of: Callable[[str], str],
        now_s: Callable[[], float],
    ) -> None:
        """`now_s` is monotonic."""
        self._path = folder / FILE
        self._has_admin = has_admin
        self._was_claimed = was_claimed
        self._mark_claimed = mark_claimed
        self._check_admin = check_admin
        self._create_admin = create_admin
        self._claim_mesh = claim_mesh
        self._unconfirmed = unconfirmed
        self._peer_of = peer_of
        self._now_s = now_s
        self._tries = Tries()
        self._lock = asyncio.Lock()
        self._code: str | None = None

    async def start(self) -> None:
        """Has the code when one is needed, and none otherwise. Again when this peer belongs to another mesh."""
        if self.needed():
            self._code = await asyncio.to_thread(self._kept_or_new)
        await self.settled()

    async def settled(self) -> None:
        """For when an administrator may have been made by another way: by the command line, or before a crash.

        It owns the mesh too. Nobody was asked about the machines that came by the door, so they become guests. Never
        fails: a peer that starts makes up for it.
        """
        if self.needed():
            return
        self._forget()
        if self._was_claimed():
            return
        try:
            await self._claim_mesh(frozenset())
        except InferenceError as error:  # this machine came by the door itself
            log.warning("the mesh is not claimed from here", extra={"reason": error.message})
            return
        await self._marked()

    def changed(self, keys: frozenset[str]) -> None:
        """For `Admin.watch`: the code is over once there is an administrator, wherever it was made."""
        if self._code is not None and not self.needed():
            self._forget()

    def needed(self) -> bool:
        """Whether the mesh still has no admin."""
        return not self._has_admin()

    def link(self, url: str) -> str | None:
        """The address that a person opens to make the first admin; None when there is one."""
        return f"{url}/dashboard#setup={self._code}" if self._code is not None and self.needed() else None

    def setup(self) -> dict[str, Any]:
        """What the page asks about: `{needed, machines: [{id, name}]}`; machines only while it is needed."""
        is_needed = self.needed()
        return {"needed": is_needed, "machines": self._unconfirmed() if is_needed else []}

    def check(self, code: str, ip: str) -> None:
        """Raises AlreadyClaimed, WrongCode, and TooManyTries after five wrong ones from there within a minute."""
        if not self.needed():
            raise AlreadyClaimed("This mesh has an administrator already: log in.")
        who = (by_address(ip),)
        if wait_s := self._tries.begin(who, self._now_s()):
            raise TooManyTries(f"Too many wrong set-up codes; try again in {wait_s} s.", retry_after_s=wait_s)
        if self._code is None or not hmac.compare_digest(code.encode("utf-8", "surrogatepass"), self._code.encode()):
            raise WrongCode(
                "That is not the set-up code of this machine: its terminal shows the link when llm-router starts."
            )
        self._tries.was_right(who)

    async def claim(self, body: Mapping[str, Any], ip: str) -> Mapping[str, Any]:
        """Makes the first administrator of `{code, username, password, confirm: [machine, ...] or "all"}`.

        Raises InvalidRequest, and what `check`, `claim_mesh` and `create_admin` do: then the code is still good.
        """
        fields = Fields(dict(body))
        code, username, password = (fields.string(name, TEXT_MAX) for name in ("code", "username", "password"))
        self.check(code or "", ip)
        if username is None or password is None:
            raise missing("username" if username is None else "password")
        self._check_admin(username, password)
        confirmed = self._confirmed(fields.raw("confirm"))
        async with self._lock:
            self.check(code or "", ip)  # it may have waited for another one's claim
            await self._claim_mesh(confirmed)
            user = await self._create_admin(username, password)
            self._forget()
        await self._marked()
        return user

    async def first_admin(self, username: str, password: Secret | None) -> bool:
        """Makes the administrator that the settings name, in a mesh that never had one: True when it did.

        Nobody was asked about the machines that came by the door, so they become guests. Raises SettingError when such
        a name or password cannot be, and what `create_admin` does.
        """
        if password is None:
            return False
        async with self._lock:
            if not self.needed() or self._was_claimed():
                return False
            try:
                self._check_admin(username, password.reveal())
            except InvalidRequest as error:
                name = "admin_username" if error.param == "username" else "admin_password"
                raise SettingError(f"setting {name}: {error.message}") from None
            try:
                await self._claim_mesh(frozenset())
            except InferenceError as error:  # this machine came by the door itself
                log.warning("the first admin is not made here", extra={"reason": error.message})
                return False
            await self._create_admin(username, password.reveal())
            self._forget()
        await self._marked()
        return True

    # -- how

    async def _marked(self) -> None:
        """Never fails what was done already: a peer that starts makes up for it."""
        if not self._has_admin() or self._was_claimed():
            return
        try:
            await self._mark_claimed()
        except InferenceError as error:
            log.warning("not marked as claimed", extra={"reason": error.message})

    def _confirmed(self, value: Any) -> frozenset[str]:
        """Peer ids. Nothing said: nobody; "all": whoever is asked about.

        Raises InvalidRequest, and what `peer_of` does for somebody unknown.
        """
        if value == "all":
            value = [machine["id"] for machine in self._unconfirmed()]
        if value is None:
            return frozenset()
        if not isinstance(value, list) or len(value) > CONFIRMED_MAX or not all(isinstance(v, str) for v in value):
            raise bad_value("confirm", "expected 'all', or a list of ids of machines")
        return frozenset(self._peer_of(each) for each in value)

    def _kept_or_new(self) -> str:
        code = self._kept()
        if code is None:
            code = secrets.token_urlsafe(CODE_LENGTH * 3 // 4)
            write_private(self._path, code + "\n")
        hide(code)
        return code

    def _kept(self) -> str | None:
        try:
            require_private(self._path)
            code = self._path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return None
        except (NotPrivate, OSError, ValueError) as error:  # others may have read it: a new one is made
            log.warning("the kept set-up code cannot be used", extra={"reason": str(error)})
            return None
        return code if _CODE.fullmatch(code) else None

    def _forget(self) -> None:
        self._code = None
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the set-up code stays in its file, and is good for nothing", extra={"reason": str(error)})
