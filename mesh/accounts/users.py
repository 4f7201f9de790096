"""People who log in: name, role, and the hash of a password. An admin may do everything, a viewer only looks.

Names are unique whatever their case. Two machines that could not hear each other may still each have made an "anna":
then the older one is whom the name means, and both are shown. Changing a password or a role begins a new epoch of the
user, which ends every session of the old one; so does deleting the user, for its key never comes back.
"""

from __future__ import annotations

import re
import unicodedata
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

from inference.errors import InvalidRequest
from inference.openai.fields import Fields, bad_value, missing, not_one_of
from mesh.accounts.book import USER, Book, moment, number_of, text_of
from mesh.accounts.errors import BadLogin, NoSuchAccount, NotAllowed, not_vouched
from mesh.accounts.keys import is_person
from mesh.accounts.passwords import BYTES_MAX, Passwords, checked_password
from web.guards import UNCONFIRMED
from web.services import Caller, Role

USERS_MAX = 1000
_NAME = re.compile(r"[^\W_][\w.@+-]{0,63}")
_ROLES = get_args(Role)


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """One user. `created_at` in unix seconds; the hash never leaves this package."""

    id: str
    username: str
    role: Role
    password_hash: str
    epoch: int
    created_at: float
    created_by: str

    def as_json(self) -> dict[str, Any]:
        """What everybody who may look is shown."""
        return {
            "id": self.id,
            "username": self.username,
            "role": self.role,
            "created_at": moment(self.created_at),
            "created_by": self.created_by,
        }

    def brief(self) -> dict[str, Any]:
        """What a login answers."""
        return {"id": self.id, "username": self.username, "role": self.role}


class Users:
    """The users of the mesh. `now` is unix seconds."""

    def __init__(self, book: Book, passwords: Passwords, now: Callable[[], float]) -> None:
        self._book = book
        self._passwords = passwords
        self._now = now

    # -- reading

    def find(self, user_id: str) -> User | None:
        """The living user with that id."""
        fields = self._book.get(USER + user_id)
        if fields is None or not self._book.is_vouched(USER + user_id):
            return None  # also what a machine wrote that came by the open door: it must not take the mesh
        return _user(user_id, fields)

    def named(self, username: str) -> User | None:
        """Whom the name means, in any case."""
        name = folded(username)
        return next((user for user in self.all() if folded(user.username) == name), None)

    def all(self) -> list[User]:
        """The oldest first."""
        found = (self.find(each.removeprefix(USER)) for each in self._book.keys(USER))
        return sorted((user for user in found if user is not None), key=lambda user: (user.created_at, user.id))

    def has_admin(self) -> bool:
        return any(user.role == "admin" for user in self.all())

    def listed(self) -> list[dict[str, Any]]:
        return [user.as_json() for user in self.all()]

    def found(self, who: str) -> dict[str, Any]:
        """One user, by id or name, as JSON. Raises NoSuchAccount."""
        return self._known(who).as_json()

    async def checked(self, username: str, password: str) -> User:
        """The user with that name and password. Raises BadLogin, after the same time for somebody unknown."""
        user = self.named(username) if len(username) <= 256 else None
        is_short = len(password.encode("utf-8", "surrogatepass")) <= BYTES_MAX
        is_right = await self._passwords.is_right(password if is_short else "", user.password_hash if user else None)
        current = self.find(user.id) if user else None  # it may have gone, or changed, while the hash was made
        if not is_right or not is_short or user is None or current != user:
            raise BadLogin("Wrong username or password.")
        return user

    # -- writing

    async def create(self, body: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
        """A new user as JSON. Raises InvalidRequest, also when the name is taken."""
        require_person(caller)
        fields = Fields(dict(body))
        username, password = fields.string("username", 256), fields.string("password")
        if username is None:
            raise missing("username")
        if password is None:
            raise missing("password")
        role = _role(fields.raw("role") if fields.raw("role") is not None else "viewer")
        return (await self.made(username, password, role, by=caller.username or "command line")).as_json()

    async def made(self, username: str, password: str, role: Role, *, by: str) -> User:
        """A new user, whoever asked for it."""
        self._check_vouches()
        name = checked_name(username)
        self._check_free(name)
        if len(self._book.keys(USER)) >= USERS_MAX:
            raise InvalidRequest(f"There are {USERS_MAX:,} users, which is the limit: delete some.")
        password_hash = await self._passwords.hashed(checked_password(password))
        self._check_free(name)  # hashing took a while
        user_id = str(uuid.uuid4())
        await self._book.put(
            USER + user_id,
            {
                "username": name,
                "role": role,
                "password_hash": password_hash,
                "epoch": self._new_epoch(),
                "created_at": self._now(),
                "created_by": by,
            },
        )
        return self._of_id(user_id)

    async def change(self, who: str, body: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
        """The user as JSON after the change of name, role or password."""
        require_person(caller)
        self._check_vouches()
        user = self._known(who)
        fields = Fields(dict(body))
        changes: dict[str, Any] = {}
        if (username := fields.string("username", 256)) is not None and username != user.username:
            changes["username"] = checked_name(username)
            self._check_free(changes["username"], but=user)
        if fields.raw("role") is not None and _role(fields.raw("role")) != user.role:
            changes |= {"role": fields.raw("role"), "epoch": self._new_epoch(user)}
        if (password := fields.string("password")) is not None:
            changes["password_hash"] = await self._passwords.hashed(checked_password(password))
            changes["epoch"] = self._new_epoch(user)
        if "role" in changes:  # asked last, so that nothing can come between
            self._check_not_last(user, "be made a viewer")
        await self._book.put(USER + user.id, changes)
        return self._of_id(user.id).as_json()

    async def change_own_password(self, body: Mapping[str, Any], caller: Caller) -> None:
        """By the user itself, who says the old one too. Raises NotAllowed when that is wrong."""
        self._check_vouches()
        fields = Fields(dict(body))
        old, new = fields.string("current_password"), fields.string("new_password")
        if old is None or new is None:
            raise missing("current_password" if old is None else "new_password")
        user = self.find(caller.user_id or "")
        if user is None:
            raise NotAllowed("Only who is logged in has a password to change.")
        checked_password(new, "new_password")
        if not await self._passwords.is_right(old[:BYTES_MAX], user.password_hash):
            raise NotAllowed("The current password is wrong.")
        password_hash = await self._passwords.hashed(new)
        await self._book.put(USER + user.id, {"password_hash": password_hash, "epoch": self._new_epoch(user)})

    async def delete(self, who: str, caller: Caller) -> dict[str, Any]:
        """Ends the user for ever; who it was. Raises InvalidRequest for the last admin."""
        require_person(caller)
        self._check_vouches()
        user = self._known(who)
        self._check_not_last(user, "be deleted")
        await self._book.end(USER + user.id, "deleted")
        return user.as_json()

    # -- how

    def _check_vouches(self) -> None:
        if not self._book.vouches:
            raise not_vouched("makes and changes no users")

    def _new_epoch(self, user: User | None = None) -> int:
        """Milliseconds: two changes on two sides of a partition are two epochs, and neither is the one before."""
        return max(int(self._now() * 1000), user.epoch + 1 if user else 0)

    def _known(self, who: str) -> User:
        user = self.find(who) or self.named(who)
        if user is None:
            raise NoSuchAccount("There is no user of that id or name: `llm-router users list` shows those there are.")
        return user

    def _of_id(self, user_id: str) -> User:
        user = self.find(user_id)
        if user is None:
            raise NoSuchAccount("The user was deleted meanwhile.")
        return user

    def _check_free(self, name: str, but: User | None = None) -> None:
        """Raises InvalidRequest when somebody else is called so."""
        other = self.named(name)
        if other is not None and other != but:
            raise InvalidRequest(f"There is a user called {other.username!r} already.", param="username", code="taken")

    def _check_not_last(self, user: User, what: str) -> None:
        others = [each for each in self.all() if each.role == "admin" and each.id != user.id]
        if user.role == "admin" and not others:
            raise InvalidRequest(
                f"{user.username!r} is the last administrator and cannot {what}: make another one first.",
                code="last_admin",
            )


def checked_name(username: str, param: str = "username") -> str:
    """`username` in the form that is kept, if it may be one. Raises InvalidRequest."""
    name = unicodedata.normalize("NFKC", username.strip())
    if _NAME.fullmatch(name) is None or _is_uuid(name):
        raise bad_value(param, "expected 1 to 64 letters, digits and . _ - @ +, the first one a letter or digit")
    return name


def folded(username: str) -> str:
    """What two spellings of one name have in common."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", username.strip()).casefold())


def require_person(caller: Caller) -> None:
    """Raises NotAllowed for a key: one that leaked must not make itself permanent."""
    if caller.key_id == UNCONFIRMED:
        raise not_vouched("makes and changes no users")
    if not is_person(caller):
        raise NotAllowed(
            "Users are managed by a person: log in as an administrator, or use `llm-router users` on a machine of "
            "the mesh. No API key may do it."
        )


def _role(value: Any) -> Role:
    if value not in _ROLES:
        raise not_one_of("role", value, _ROLES)
    return cast(Role, value)


def _is_uuid(name: str) -> bool:
    """An id is never a name, so that either can name a user."""
    try:
        uuid.UUID(name)
    except ValueError:
        return False
    return True


def _user(user_id: str, fields: Mapping[str, Any]) -> User | None:
    """None when the row is no whole user."""
    role, epoch = text_of(fields, "role"), number_of(fields, "epoch")
    if role not in _ROLES or epoch is None or not text_of(fields, "username"):
        return None
    return User(
        id=user_id,
        username=text_of(fields, "username"),
        role=cast(Role, role),
        password_hash=text_of(fields, "password_hash"),
        epoch=int(epoch),
        created_at=number_of(fields, "created_at") or 0.0,
        created_by=text_of(fields, "created_by"),
    )
