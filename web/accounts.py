"""Users and API keys over HTTP. Lists are answered by any peer, changes by the coordinator (web.passing).

    GET POST         /api/users           GET PUT DELETE   /api/users/{id}        {id} is an id or a name
    GET POST         /api/api-keys        GET PUT DELETE   /api/api-keys/{id}

A key is shown once, in the answer to its making; no hash is ever shown. Users are changed by people only, keys of
administrators too: whoever answers `AccountsFacet` sees to that.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from aiohttp import web

from inference.openai.fields import bad_value
from web.auth import accounts_of, note, small_body
from web.border import CALLER
from web.route import Answer, Operation
from web.services import AuditNote, Services
from web.shapes import Many, Number, Text

WHO_LENGTH_MAX = 128


class AccountsRoutes:
    """Handlers of `/api/users*` and `/api/api-keys*`. All are 503 on a peer without accounts."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def users(self, request: web.Request) -> web.Response:
        return web.json_response(accounts_of(self._services).users())

    async def user(self, request: web.Request) -> web.Response:
        return web.json_response(accounts_of(self._services).user(_who(request)))

    async def create_user(self, request: web.Request) -> web.Response:
        accounts = accounts_of(self._services)
        body = await small_body(request, self._services, NewUser)
        made = await accounts.create_user(body, request[CALLER])
        self._note(request, "user.create", made["username"], f"role {made['role']}")
        return web.json_response(made, status=201)

    async def change_user(self, request: web.Request) -> web.Response:
        accounts, who = accounts_of(self._services), _who(request)
        body = await small_body(request, self._services, UserChanges)
        changed = await accounts.change_user(who, body, request[CALLER])
        self._note(request, "user.change", changed["username"], _changed(body, UserChanges))
        return web.json_response(changed)

    async def delete_user(self, request: web.Request) -> web.Response:
        gone = await accounts_of(self._services).delete_user(_who(request), request[CALLER])
        self._note(request, "user.delete", gone["username"])
        return web.Response(status=204)

    async def keys(self, request: web.Request) -> web.Response:
        return web.json_response(accounts_of(self._services).keys())

    async def key(self, request: web.Request) -> web.Response:
        return web.json_response(accounts_of(self._services).key(_who(request)))

    async def create_key(self, request: web.Request) -> web.Response:
        accounts = accounts_of(self._services)
        body = await small_body(request, self._services, NewKey)
        made = await accounts.create_key(body, request[CALLER])
        self._note(request, "key.create", f"{made['name']} ({made['id']})", f"scopes {', '.join(made['scopes'])}")
        return web.json_response(made, status=201, headers={"Cache-Control": "no-store"})

    async def change_key(self, request: web.Request) -> web.Response:
        accounts, who = accounts_of(self._services), _who(request)
        body = await small_body(request, self._services, KeyChanges)
        changed = await accounts.change_key(who, body, request[CALLER])
        self._note(request, "key.change", f"{changed['name']} ({changed['id']})", _changed(body, KeyChanges))
        return web.json_response(changed)

    async def delete_key(self, request: web.Request) -> web.Response:
        gone = await accounts_of(self._services).delete_key(_who(request), request[CALLER])
        self._note(request, "key.delete", f"{gone['name']} ({gone['id']})")
        return web.Response(status=204)

    def _note(self, request: web.Request, action: str, target: str, detail: str = "") -> None:
        note(self._services, AuditNote(action=action, caller=request[CALLER], target=target, detail=detail))


def _who(request: web.Request) -> str:
    who = request.match_info["id"]
    if not who.isprintable() or len(who) > WHO_LENGTH_MAX:
        raise bad_value("id", f"expected up to {WHO_LENGTH_MAX} printable characters")
    return who


def _changed(body: dict[str, Any], shape: Any) -> str:
    """Which members, never what they became: a password is among them."""
    return "changed " + (", ".join(name for name in shape.__annotations__ if name in body) or "nothing")


# -- what is asked and answered

_Role = Literal["admin", "viewer"]
_Scope = Literal["inference", "cloud", "metrics", "admin:read", "admin"]
_Limit = Annotated[int, Number(1, 10**12)]


class NewUser(TypedDict):
    """`role` is viewer unless it is said."""

    username: Annotated[str, Text(256)]
    password: Annotated[str, Text(4096)]
    role: NotRequired[_Role | None]


class UserChanges(TypedDict):
    """What is left out stays. A new role or password ends the user's logins."""

    username: NotRequired[Annotated[str, Text(256)] | None]
    password: NotRequired[Annotated[str, Text(4096)] | None]
    role: NotRequired[_Role | None]


class User(TypedDict):
    id: str
    username: str
    role: _Role
    created_at: str | None
    created_by: str


class NewKey(TypedDict):
    """Scopes are `["inference"]` unless said; no models: all; null or left out: no limit, never, as the peer is set."""

    name: Annotated[str, Text(64, is_line=True)]
    scopes: NotRequired[Annotated[list[_Scope], Many(16)] | None]
    models: NotRequired[Annotated[list[Annotated[str, Text(256)]], Many(64)] | None]
    requests_per_minute: NotRequired[_Limit | None]
    tokens_per_minute: NotRequired[_Limit | None]
    tokens_per_day: NotRequired[_Limit | None]
    expires_at: NotRequired[Annotated[str, Text(64)] | float | None]
    recording: NotRequired[Literal["full", "metadata", "off"] | None]


class KeyChanges(TypedDict):
    """What is left out stays; null takes a limit away."""

    name: NotRequired[Annotated[str, Text(64, is_line=True)]]
    scopes: NotRequired[Annotated[list[_Scope], Many(16)] | None]
    models: NotRequired[Annotated[list[Annotated[str, Text(256)]], Many(64)] | None]
    requests_per_minute: NotRequired[_Limit | None]
    tokens_per_minute: NotRequired[_Limit | None]
    tokens_per_day: NotRequired[_Limit | None]
    expires_at: NotRequired[Annotated[str, Text(64)] | float | None]
    recording: NotRequired[Literal["full", "metadata", "off"] | None]


class Key(TypedDict):
    """`prefix` begins the secret; times are RFC 3339."""

    id: str
    name: str
    prefix: str
    scopes: list[str]
    models: list[str]
    requests_per_minute: int | None
    tokens_per_minute: int | None
    tokens_per_day: int | None
    recording: str | None
    expires_at: str | None
    expired: bool
    created_at: str | None
    created_by: str


class MadeKey(Key):
    """`key` is the secret itself: shown this once."""

    key: str


USERS = Operation(summary="The users", tag="users", answers={200: Answer(shape=list[User])})
USER = Operation(summary="One user", tag="users", answers={200: Answer(shape=User)}, errors=(404,))
CREATE_USER = Operation(summary="Make a user", tag="users", body=NewUser, answers={201: Answer(shape=User)})
CHANGE_USER = Operation(
    summary="Change a user's name, role or password",
    tag="users",
    body=UserChanges,
    answers={200: Answer(shape=User)},
    errors=(404,),
)
DELETE_USER = Operation(summary="Remove a user", tag="users", answers={204: Answer()}, errors=(404,))
KEYS = Operation(summary="The API keys, without their secrets", tag="keys", answers={200: Answer(shape=list[Key])})
KEY = Operation(summary="One API key, without its secret", tag="keys", answers={200: Answer(shape=Key)}, errors=(404,))
CREATE_KEY = Operation(
    summary="Make an API key, which is shown once",
    tag="keys",
    body=NewKey,
    answers={201: Answer(shape=MadeKey)},
    errors=(403,),
)
CHANGE_KEY = Operation(
    summary="Change what an API key may do",
    tag="keys",
    body=KeyChanges,
    answers={200: Answer(shape=Key)},
    errors=(403, 404),
)
DELETE_KEY = Operation(summary="Revoke an API key", tag="keys", answers={204: Answer()}, errors=(403, 404))
