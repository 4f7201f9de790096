"""Keys, users, logins and limits of one peer, put together: what the HTTP surface is given, and what gossip carries.

Reading is from memory, so that keys and logins work while there is no coordinator. What changes users and keys is
called at the coordinator; logging in and out, the set-up and the limits are each peer's own business.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

from gossip.identity import Identity
from gossip.roster import Roster
from inference.errors import InvalidRequest
from mesh.accounts.book import CLAIMED, KEY, SESSION, USER, Book
from mesh.accounts.claim import Claim
from mesh.accounts.errors import TooManyLogins, TooManyTries
from mesh.accounts.keys import Keys
from mesh.accounts.limits import HELD_S_MAX, Admitted, Held, Ledger, Left, Meter, Refused
from mesh.accounts.passwords import Passwords, checked_password
from mesh.accounts.sessions import Sessions
from mesh.accounts.tries import Tries, by_address
from mesh.accounts.users import Users, checked_name, folded
from mesh.private import write_private
from mesh.secret import Secret
from web.errors import HttpRefusal
from web.services import AccountsFacet, Caller, Login, Spending

log = logging.getLogger(__name__)

USED_FILE = "used.json"
SAVE_S = 30.0
"""What a crash may make a key's day longer by."""
HELD_MAX = 512
"""Requests that wait for their key's share of a limit, at most."""

_UNLIMITED = Spending()


class Accounts:
    """Use as `async with`, in the loop that everything belongs to.

    `others`: ids of the peers that live now, this one not among them. The rest is what `Sessions` and `Claim` ask for.
    """

    def __init__(
        self,
        *,
        book: Book,
        identity: Identity,
        roster: Callable[[], Roster],
        data_dir: Path,
        others: Callable[[], Collection[str]],
        claim: Callable[..., Claim],
        jwt_secret: Secret | None = None,
        now_s: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`claim` makes the set-up: `Claim`, with those of its arguments that are the mesh's already given."""
        self._book = book
        self._used_path = data_dir / USED_FILE
        self._me = identity.peer_id
        self._others = others
        self._now_s = now_s
        self._clock = clock
        self._passwords = Passwords()
        self._ledger = Ledger(identity.peer_id)
        self._tries = Tries()
        self._held = 0
        self._listeners: list[Callable[[], None]] = []
        self._saving: asyncio.Task[None] | None = None
        self._saved: object = None
        self.keys = Keys(book, now_s)
        self.users = Users(book, self._passwords, now_s)
        self.sessions = Sessions(
            identity=identity,
            roster=roster,
            is_over=book.is_ended,
            user=self._user_of,
            epoch=self._epoch_of,
            jwt_secret=jwt_secret,
            now_s=now_s,
        )
        self.claim = claim(
            folder=data_dir,
            has_admin=self.users.has_admin,
            was_claimed=lambda: book.get(CLAIMED) is not None and book.is_vouched(CLAIMED),
            mark_claimed=lambda: book.put(CLAIMED, {"at": now_s()}),
            check_admin=lambda username, password: (checked_name(username), checked_password(password)),
            create_admin=self._admin_made,
            now_s=clock,
        )
        book.watch(self._changed)

    @property
    def facet(self) -> AccountsFacet:
        """What the HTTP surface is given."""
        return AccountsFacet(
            of_key=self.keys.of_secret,
            of_session=self.sessions.of,
            spend=self.spend,
            revoked=self.is_revoked,
            on_change=self._listeners.append,
            login=self.login,
            logout=self.logout,
            setup=self.setup,
            claim=self.set_up,
            change_password=self.change_password,
            users=self.users.listed,
            user=self.users.found,
            create_user=self.create_user,
            change_user=self.change_user,
            delete_user=self.users.delete,
            keys=self.keys.listed,
            key=self.keys.found,
            create_key=self.keys.create,
            change_key=self.keys.change,
            delete_key=self.keys.delete,
        )

    async def __aenter__(self) -> Self:
        self._ledger.restore(*await asyncio.to_thread(self._read_used), self._clock(), self._now_s())
        await self.claim.start()
        self._saving = asyncio.create_task(self._keep_saved(), name="used limits")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._saving is not None
        self._saving.cancel()
        await asyncio.gather(self._saving, return_exceptions=True)
        await asyncio.to_thread(self._save_used)
        self._passwords.close()

    # -- once in a mesh: the coordinator's

    async def ensure_first_key(self) -> str | None:
        """The first key, for printing once; None when this mesh has had one."""
        return await self.keys.ensure_first()

    async def create_user(self, body: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
        """See Users.create. The first administrator owns the mesh, however it was made."""
        made = await self.users.create(body, caller)
        await self.claim.settled()
        return made

    async def change_user(self, who: str, body: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
        """See Users.change."""
        changed = await self.users.change(who, body, caller)
        await self.claim.settled()
        return changed

    # -- logins

    async def login(self, username: str, password: str, caller: Caller) -> Login:
        """A session of whom name and password prove. Raises BadLogin, TooManyTries, TooManyLogins, NotAllowed."""
        async with self._trying(username, caller.ip):
            user = await self.users.checked(username, password)
        return self._session_of(user.brief())

    async def change_password(self, body: Mapping[str, Any], caller: Caller) -> None:
        """One's own. Ends all one's logins."""
        async with self._trying(caller.username or "", caller.ip):
            await self.users.change_own_password(body, caller)

    async def logout(self, caller: Caller) -> None:
        """The login ends, at every member. Who came by another way has none to end."""
        if caller.session_id is not None:
            await self._book.end(SESSION + caller.session_id, "logged out")

    def setup(self, caller: Caller, code: str | None) -> dict[str, Any]:
        """Whether the mesh has no administrator; and, for who knows the code, which machines it asks about."""
        found = self.claim.setup()
        if found["needed"] and code is not None:
            self.claim.check(code, caller.ip)
        elif caller.key_id != "control":
            found["machines"] = []
        return found

    async def set_up(self, body: Mapping[str, Any], caller: Caller) -> Login:
        """Makes the first administrator, and logs it in."""
        return self._session_of(await self.claim.claim(body, caller.ip))

    def is_revoked(self, caller: Caller) -> bool:
        """Asked while something of this caller runs."""
        if caller.session_id is not None:
            return not self.sessions.stands(caller.session_id, caller.user_id or "", caller.role or "viewer")
        return caller.key_id not in (None, "control") and self.keys.is_over(caller.key_id or "")

    # -- limits

    async def spend(self, caller: Caller, tokens: int) -> Spending:
        """Counts a request of about so many tokens; waits a little for this peer's share of the limit, if it must.

        Raises HttpRefusal 429 above a limit of the caller's key.
        """
        key = self.keys.find(caller.key_id) if caller.key_id is not None else None
        if key is None or not key.quota.is_limited:
            return _UNLIMITED
        came = self._clock()
        while True:
            now = self._clock()
            others = set(self._others()) - {self._me}
            found = self._ledger.ask(key.id, key.quota, tokens, now, self._now_s(), others)
            match found:
                case Admitted():
                    return Spending(headers=_headers(found.left), ended=partial(self._ended, found, [False]))
                case Refused():
                    raise _above(found)
                case Held():
                    if found.until > came + HELD_S_MAX or self._held >= HELD_MAX:
                        raise _busy()
                    self._held += 1
                    try:
                        await asyncio.sleep(found.until - now)
                    finally:
                        self._held -= 1

    def used_out(self) -> bytes:
        """What the other peers should know of the limits: for a fast fact, every half second, if it changed."""
        return self._ledger.told(self._clock(), self._now_s())

    def used_in(self, peer: str, data: bytes) -> None:
        """What another peer told."""
        self._ledger.heard(peer, data, self._clock(), self._now_s())

    def left(self, peer: str) -> None:
        """That peer is no member any more."""
        self._ledger.forget(peer)

    # -- how

    def _changed(self, keys: frozenset[str]) -> None:
        self.claim.changed(keys)
        if any(key.startswith((KEY, USER, SESSION)) for key in keys):
            for listener in self._listeners:
                listener()

    @asynccontextmanager
    async def _trying(self, username: str, ip: str) -> AsyncIterator[None]:
        """A password is tried in the block; the try counts unless it was right, or nobody could look."""
        name, address = f"user {folded(username)[:64]}", by_address(ip)
        names = self._tries.names(name, address)
        if wait_s := self._tries.begin(names, self._clock()):
            raise TooManyTries(f"Too many wrong passwords; try again in {wait_s} s.", retry_after_s=wait_s)
        try:
            yield
        except (InvalidRequest, TooManyLogins):
            self._tries.was_right(names)
            raise
        self._tries.was_right(names)
        self._tries.was_good(name, address)

    def _session_of(self, user: Mapping[str, Any]) -> Login:
        issued = self.sessions.issue(user["id"], user["username"], user["role"])
        return Login(user=user, token=issued.token, csrf=issued.csrf, expires_in_s=issued.expires_in_s)

    async def _admin_made(self, username: str, password: str) -> Mapping[str, Any]:
        return (await self.users.made(username, password, "admin", by="set-up")).brief()

    def _user_of(self, user_id: str) -> Mapping[str, Any] | None:
        user = self.users.find(user_id)
        return user.brief() if user is not None else None

    def _epoch_of(self, user_id: str) -> int | None:
        user = self.users.find(user_id)
        return user.epoch if user is not None else None

    def _ended(self, admitted: Admitted, is_done: list[bool], tokens: int) -> None:
        if not is_done[0]:
            is_done[0] = True
            self._ledger.settle(admitted, max(0, tokens), self._clock(), self._now_s())

    # -- what of today survives a restart

    async def _keep_saved(self) -> None:
        while True:
            await asyncio.sleep(SAVE_S)
            await asyncio.to_thread(self._save_used)

    def _save_used(self) -> None:
        day, tokens = self._ledger.saved()
        if (day, tokens) == self._saved:
            return
        try:
            write_private(self._used_path, json.dumps({"day": day, "tokens": tokens}) + "\n")
            self._saved = (day, tokens)
        except OSError as error:
            log.warning("what keys used today cannot be kept", extra={"reason": str(error)})

    def _read_used(self) -> tuple[int, dict[str, int]]:
        try:
            found = json.loads(self._used_path.read_text(encoding="utf-8"))
            tokens = {str(key): int(used) for key, used in dict(found["tokens"]).items() if int(used) >= 0}
            return int(found["day"]), tokens
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return 0, {}


def _headers(left: Mapping[Meter, Left]) -> dict[str, str]:
    """As api.openai.com has them; those of the day are ours."""
    found = {}
    for meter, of in left.items():
        name = "tokens-day" if meter == "day" else meter
        found[f"x-ratelimit-limit-{name}"] = str(of.limit)
        found[f"x-ratelimit-remaining-{name}"] = str(max(0, of.remaining))
        found[f"x-ratelimit-reset-{name}"] = f"{of.reset_s}s"
    return found


def _above(refused: Refused) -> HttpRefusal:
    headers = {"Retry-After": str(refused.retry_after_s)}
    left = {refused.meter: Left(limit=refused.limit, remaining=0, reset_s=refused.retry_after_s)}
    if refused.meter == "day":
        return HttpRefusal(
            429,
            f"This key's {refused.limit:,} tokens of today are used ({refused.used:,}); there are new ones at midnight "
            "UTC.",
            code="insufficient_quota",
            error_type="insufficient_quota",
            headers=headers | _headers(left) | {"x-should-retry": "false"},
        )
    return HttpRefusal(
        429,
        f"Rate limit reached for this key: {refused.limit:,} {refused.meter} a minute, used {refused.used:,}. Please "
        f"try again in {refused.retry_after_s}s.",
        code="rate_limit_exceeded",
        error_type="rate_limit_error",
        headers=headers | _headers(left),
    )


def _busy() -> HttpRefusal:
    """There is room in the limit, but other peers may be using it this very second."""
    return HttpRefusal(
        429,
        "The limits of this key are being used through several machines at once; please try again.",
        code="rate_limit_exceeded",
        error_type="rate_limit_error",
        headers={"Retry-After": "3"},
    )
