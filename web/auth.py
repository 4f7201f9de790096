"""Logging in and out, the set-up of a new mesh, and what a key may use: models, clouds, so many requests and tokens.

    POST /api/auth/login      {username, password, token?} -> {user, expires_in, csrf, token?} and the cookie
    POST /api/auth/logout     204
    GET  /api/auth/me         {user, csrf, scopes}
    POST /api/auth/password   {current_password, new_password}: one's own; ends all one's logins
    GET  /api/auth/setup      {needed, machines}; the machines only for who sends the code, as x-setup-code
    POST /api/auth/setup      {code, username, password, confirm} -> as login

The cookie is HttpOnly, SameSite=Strict and lasts as long as the login. Every member takes a login of any other, so
that all of these but the change of a password are answered by the peer that is asked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, NotRequired, TypedDict, TypeVar

from aiohttp import web

from inference.chat import ChatPrompt, EmbeddingRequest, Generation, Prompt, TextPrompt
from inference.errors import InferenceError
from web.body import for_anybody, parsed_body
from web.border import CALLER, LIMIT_HEADERS, PRINCIPAL
from web.errors import HttpRefusal
from web.guards import COOKIE
from web.route import Answer, Operation
from web.services import AccountsFacet, AuditNote, Caller, Login, Services, Spending
from web.shapes import Many, Text, checked
from web.sparing import Sparing

FAILURES_NOTED_MAX = 30
FAILURES_NOTED_S = 60.0
"""So many wrong logins a minute are noted one by one: whoever guesses must not fill the log."""
CHARACTERS_PER_TOKEN = 4
"""Of English; for an estimate that is corrected when the tokens are counted."""
ANSWER_TOKENS_ESTIMATED = 256

T = TypeVar("T")


class AuthRoutes:
    """Handlers of `/api/auth/*`. All are 503 on a peer without users."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._failures = Sparing()

    async def login(self, request: web.Request) -> web.Response:
        accounts, caller = accounts_of(self._services), request[CALLER]
        body = await self._body(request, Credentials)
        try:
            login = await accounts.login(body["username"], body["password"], caller)
        except InferenceError as error:
            self._note_failure(accounts, caller, body["username"], error)
            if error.status in (401, 429):
                self._services.state.login_ended("limited" if error.status == 429 else "refused")
            raise
        self._services.state.login_ended("ok")
        self._note("session.create", _as_user(caller, login), str(login.user["username"]))
        return self._logged_in(login, with_token=body.get("token") is True)

    async def logout(self, request: web.Request) -> web.Response:
        caller = request[CALLER]
        await accounts_of(self._services).logout(caller)
        if caller.session_id is not None:
            self._note("session.end", caller, caller.username or "")
        response = web.Response(status=204)
        response.del_cookie(COOKIE, path="/", httponly=True, samesite="Strict", secure=self._services.access.is_https)
        return response

    async def me(self, request: web.Request) -> web.Response:
        """Who asks: a login, or the command line, which is nobody's login."""
        accounts_of(self._services)
        caller, principal = request[CALLER], request[PRINCIPAL]
        user = {"id": caller.user_id, "username": caller.username, "role": caller.role} if caller.user_id else None
        return web.json_response({"user": user, "csrf": principal.csrf, "scopes": sorted(caller.scopes)})

    async def password(self, request: web.Request) -> web.Response:
        accounts, caller = accounts_of(self._services), request[CALLER]
        body = await self._body(request, NewPassword)
        await accounts.change_password(body, caller)
        self._note("user.password", caller, caller.username or "")
        return web.Response(status=204)

    async def setup(self, request: web.Request) -> web.Response:
        accounts = accounts_of(self._services)
        return web.json_response(accounts.setup(request[CALLER], request.headers.get("x-setup-code")))

    async def claim(self, request: web.Request) -> web.Response:
        """Also claims the mesh."""
        accounts, caller = accounts_of(self._services), request[CALLER]
        body = await self._body(request, SetUp)
        login = await accounts.claim(body, caller)
        self._note("mesh.claim", _as_user(caller, login), str(login.user["username"]))
        return self._logged_in(login, with_token=False, status=201)

    # -- how

    def _logged_in(self, login: Login, *, with_token: bool, status: int = 200) -> web.Response:
        answer = {"user": dict(login.user), "expires_in": login.expires_in_s, "csrf": login.csrf}
        if with_token:
            answer["token"] = login.token
        response = web.json_response(answer, status=status, headers={"Cache-Control": "no-store"})
        response.set_cookie(
            COOKIE,
            login.token,
            max_age=login.expires_in_s,
            path="/",
            httponly=True,
            samesite="Strict",
            secure=self._services.access.is_https,
        )
        return response

    def _note(self, action: str, caller: Caller, target: str, detail: str = "") -> None:
        note(self._services, AuditNote(action=action, caller=caller, target=target, detail=detail))

    def _note_failure(self, accounts: AccountsFacet, caller: Caller, username: str, error: InferenceError) -> None:
        """What was typed is noted only if it is a user's name: people type passwords into the wrong field."""
        if error.status not in (401, 429) or not (
            missed := self._failures.may_note(FAILURES_NOTED_MAX, FAILURES_NOTED_S)
        ):
            return
        name = username.strip().casefold()
        known = next((user["username"] for user in accounts.users() if user["username"].casefold() == name), None)
        more = f"; {missed - 1} more were not noted" if missed > 1 else ""
        why = "too many tries" if error.status == 429 else "wrong password" if known else "unknown user"
        self._note("session.fail", caller, known or "", why + more)

    async def _body(self, request: web.Request, shape: type[Any]) -> dict[str, Any]:
        return await small_body(request, self._services, shape)


def accounts_of(services: Services) -> AccountsFacet:
    """Raises HttpRefusal 503 without one."""
    if services.accounts is None:
        raise HttpRefusal(503, "This peer has no users and no keys.", code="no_accounts", error_type="server_error")
    return services.accounts


async def small_body(request: web.Request, services: Services, shape: type[Any]) -> dict[str, Any]:
    """The JSON object in the body, which has that shape. Raises InvalidRequest or HttpRefusal."""

    def parse(body: dict[str, Any]) -> dict[str, Any]:
        checked(shape, body)
        return body

    return await parsed_body(request, for_anybody(services.limits), parse)


def note(services: Services, what: AuditNote) -> None:
    """For the audit log, where there is one."""
    if services.history is not None:
        services.history.audit(what)


def _as_user(caller: Caller, login: Login) -> Caller:
    """The caller as who it is from now on."""
    user: Mapping[str, Any] = login.user
    return replace(caller, user_id=user["id"], username=user["username"], role=user["role"])


# -- what a key may use


def may_use(caller: Caller, model_id: str) -> bool:
    """Whether the caller's key lets it use that model, or see it."""
    return not caller.models or any(fnmatchcase(model_id, glob) for glob in caller.models)


def check_model(caller: Caller, model_id: str) -> None:
    """Raises HttpRefusal 403 when the caller's key is not for that model. `model_id`: the id, not an alias."""
    if not may_use(caller, model_id):
        allowed = ", ".join(caller.models[:5]) + (", ..." if len(caller.models) > 5 else "")
        raise HttpRefusal(
            403,
            f"This key may not use the model '{model_id[:200]}'. It is for: {allowed}.",
            code="model_not_allowed",
            error_type="permission_error",
            param="model",
        )


def check_cloud(caller: Caller) -> None:
    """Raises HttpRefusal 403 when the caller may not use what costs money."""
    if "cloud" not in caller.scopes:
        raise HttpRefusal(
            403,
            "Models in clouds need an API key with the scope 'cloud': `llm-router keys create NAME --scope inference "
            "--scope cloud`.",
            code="cloud_not_allowed",
            error_type="permission_error",
            param="model",
        )


@dataclass(slots=True)
class Spent:
    """What a request has taken until now, in tokens of prompt and answer."""

    tokens: int = 0


@asynccontextmanager
async def spending(request: web.Request, services: Services, tokens: int) -> AsyncIterator[Spent]:
    """Counts the request, of about so many tokens, against the limits of its key; at the end what it really took.

    Raises HttpRefusal 429, before the block.
    """
    found = Spending() if services.accounts is None else await services.accounts.spend(request[CALLER], tokens)
    request[LIMIT_HEADERS] = dict(found.headers)
    spent = Spent()
    try:
        yield spent
    finally:
        found.ended(spent.tokens)


def estimated_tokens(generation: Generation) -> int:
    """Of prompt and answer, before anything has counted them."""
    answer = ANSWER_TOKENS_ESTIMATED if generation.max_tokens is None else generation.max_tokens
    return _prompt_tokens(generation.prompt) + answer


def estimated_input(request: EmbeddingRequest) -> int:
    """Of all that is to be embedded."""
    return sum(_size(each) for each in request.inputs)


def _prompt_tokens(prompt: Prompt) -> int:
    if isinstance(prompt, ChatPrompt):
        contents = [message.content or "" for message in prompt.messages]
        return sum(_size(c) if isinstance(c, str) else sum(_size(part.text) for part in c) for c in contents)
    return _size(prompt.text) if isinstance(prompt, TextPrompt) else len(prompt.tokens)


def _size(text: str | tuple[int, ...]) -> int:
    return len(text) // CHARACTERS_PER_TOKEN + 1 if isinstance(text, str) else len(text)


# -- what is asked and answered

_Name = Annotated[str, Text(256)]
_Password = Annotated[str, Text(4096)]


class Credentials(TypedDict):
    """`token`: answer the token as well, for `Authorization: Bearer`."""

    username: _Name
    password: _Password
    token: NotRequired[bool | None]


class NewPassword(TypedDict):
    current_password: _Password
    new_password: _Password


class SetUp(TypedDict):
    """`confirm`: ids of the machines that are yours, of those that came by the open door; the others become guests."""

    code: Annotated[str, Text(256)]
    username: _Name
    password: _Password
    confirm: NotRequired[Literal["all"] | Annotated[list[Annotated[str, Text(128)]], Many(1024)] | None]


class LoggedIn(TypedDict):
    """`csrf` goes into `x-csrf-token` of whatever a browser changes; `expires_in` seconds."""

    user: dict[str, Any]
    expires_in: int
    csrf: str
    token: NotRequired[str]


class Me(TypedDict):
    """`user` is null for the command line of the peer's machine."""

    user: dict[str, Any] | None
    csrf: str | None
    scopes: list[str]


class Needed(TypedDict):
    """`machines` came by the open door: `{id, name}`."""

    needed: bool
    machines: list[dict[str, Any]]


LOGIN = Operation(
    summary="Log in",
    tag="auth",
    body=Credentials,
    answers={200: Answer(shape=LoggedIn, headers=("Set-Cookie",))},
    errors=(401, 403, 429),
)
LOGOUT = Operation(summary="Log out, everywhere", tag="auth", answers={204: Answer()})
ME = Operation(summary="Who is logged in", tag="auth", answers={200: Answer(shape=Me)})
PASSWORD = Operation(
    summary="Change one's own password", tag="auth", body=NewPassword, answers={204: Answer()}, errors=(403, 429)
)
SETUP = Operation(
    summary="Whether the mesh has no administrator yet",
    tag="auth",
    answers={200: Answer(shape=Needed)},
    errors=(403, 429),
)
CLAIM = Operation(
    summary="Make the first administrator, with the set-up code",
    tag="auth",
    body=SetUp,
    answers={201: Answer(shape=LoggedIn, headers=("Set-Cookie",))},
    errors=(403, 404, 409, 429),
)
