"""Logging in and out, the set-up, and what a key may use: over HTTP, with the real accounts behind."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from inference.chat import ChatPrompt, EmbeddingRequest, Generation, Message, TextPart, TextPrompt, TokenPrompt
from mesh.accounts.accounts import Accounts
from tests.fixtures.peer_accounts import PASSWORD, PERSON, Clock, peer_accounts
from web import auth
from web.auth import estimated_input, estimated_tokens, may_use
from web.guards import COOKIE
from web.services import Access, AuditNote, Caller, HistoryFacet, StateFacet

CHAT = "/v1/chat/completions"
LOGIN = "/api/auth/login"
LAN = {"via": "1.1 proxy"}
"""What makes a caller of the tests as foreign as one on another machine."""


class Notes:
    """The audit log; the rest of history is not asked."""

    def __init__(self) -> None:
        self.notes: list[AuditNote] = []

    def facet(self) -> HistoryFacet:
        def nothing(*_: Any) -> Any:
            raise AssertionError("history was asked")

        class Record:
            def started(self, started: Any) -> None: ...

            def first_token(self) -> None: ...

            async def ended(self, outcome: Any) -> None: ...

        return HistoryFacet(
            begin=lambda asked: Record(),
            audit=self.notes.append,
            records=nothing,
            record=nothing,
            export=nothing,
            stats=nothing,
            overview=nothing,
            audits=nothing,
        )

    @property
    def said(self) -> list[tuple[str, str]]:
        return [(note.action, note.target) for note in self.notes]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def accounts(tmp_path: Path, clock: Clock) -> AsyncIterator[Accounts]:
    async with peer_accounts(tmp_path, clock=clock, machines={"m1": "tower", "m2": "loft"}) as found:
        yield found


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
async def peer(start: Any, accounts: Accounts, notes: Notes, token: str) -> Any:
    """A surface with accounts; nobody is there yet."""
    access = Access(hosts=frozenset({"attic.local"}), control_token=token)
    return await start(access=access, accounts=accounts.facet, history=notes.facet())


async def user(accounts: Accounts, username: str = "anna", role: str = "admin") -> dict[str, Any]:
    return await accounts.users.create({"username": username, "password": PASSWORD, "role": role}, PERSON)


async def key(accounts: Accounts, **fields: Any) -> dict[str, Any]:
    return await accounts.keys.create({"name": "scripts"} | fields, PERSON)


def cookie_of(headers: dict[str, str]) -> str:
    return headers["set-cookie"].split(";")[0]


class Browser:
    """Logged in by cookie, on the dashboard's own page."""

    def __init__(self, peer: Any, cookie: str, csrf: str) -> None:
        self.peer, self.cookie, self.csrf = peer, cookie, csrf

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        own = {"cookie": self.cookie, "origin": self.peer.url, "x_csrf_token": self.csrf} | LAN
        found: tuple[int, Any, dict[str, str]] = await self.peer.ask(method, path, body, **(own | headers))
        return found


async def logged_in(peer: Any, username: str = "anna") -> Browser:
    status, answer, headers = await peer.ask("POST", LOGIN, {"username": username, "password": PASSWORD}, **LAN)
    assert status == 200, answer
    return Browser(peer, cookie_of(headers), answer["csrf"])


# -- logins


async def test_a_login_answers_the_user_and_sets_a_cookie_that_no_script_reads(peer: Any, accounts: Accounts) -> None:
    """Case 34 of the reference, and what was decided of it."""
    made = await user(accounts)
    status, answer, headers = await peer.ask("POST", LOGIN, {"username": "Anna", "password": PASSWORD}, **LAN)
    assert status == 200
    assert answer.pop("csrf")
    assert answer == {"user": {"id": made["id"], "username": "anna", "role": "admin"}, "expires_in": 43_200}
    attributes = {part.strip().lower() for part in headers["set-cookie"].split(";")[1:]}
    assert attributes == {"httponly", "samesite=strict", "path=/", "max-age=43200"}
    assert cookie_of(headers).startswith(f"{COOKIE}=") and headers["cache-control"] == "no-store"


async def test_over_https_the_cookie_is_for_https_only(start: Any, accounts: Accounts) -> None:
    await user(accounts)
    surface = await start(access=Access(hosts=frozenset(), is_https=True), accounts=accounts.facet)
    _, _, headers = await surface.ask("POST", LOGIN, {"username": "anna", "password": PASSWORD})
    assert "; secure" in headers["set-cookie"].lower()


async def test_a_script_gets_the_token_and_needs_no_csrf(peer: Any, accounts: Accounts) -> None:
    await user(accounts)
    body = {"username": "anna", "password": PASSWORD, "token": True}
    _, answer, _ = await peer.ask("POST", LOGIN, body, **LAN)
    bearer = {"authorization": f"Bearer {answer['token']}"} | LAN
    assert (await peer.ask("POST", "/api/api-keys", {"name": "made by a script"}, **bearer))[0] == 201
    assert (await peer.ask("GET", "/api/auth/me", **bearer))[1]["user"]["username"] == "anna"


async def test_a_wrong_password_and_an_unknown_user_get_the_same_401(peer: Any, accounts: Accounts) -> None:
    """Case 35 of the reference."""
    await user(accounts)
    found = [
        await peer.ask("POST", LOGIN, {"username": name, "password": password})
        for name, password in (("anna", "wrong password"), ("bert", PASSWORD))
    ]
    assert [status for status, _, _ in found] == [401, 401]
    assert found[0][1] == found[1][1] == {"error": "Wrong username or password."}
    assert all("set-cookie" not in headers for _, _, headers in found)


async def test_too_many_tries_are_429_with_the_time_to_wait(peer: Any, accounts: Accounts) -> None:
    await user(accounts)
    wrong = {"username": "anna", "password": "wrong password"}
    assert [(await peer.ask("POST", LOGIN, wrong))[0] for _ in range(5)] == [401] * 5
    status, answer, headers = await peer.ask("POST", LOGIN, {"username": "anna", "password": PASSWORD})
    assert (status, headers["retry-after"]) == (429, "60") and "60 s" in answer["error"]


@pytest.mark.parametrize(
    "body",
    [{}, {"username": "anna"}, {"username": 5, "password": "x"}, {"username": "a" * 300, "password": "x"}, []],
)
async def test_half_a_login_is_a_bad_request(peer: Any, body: Any) -> None:
    assert (await peer.ask("POST", LOGIN, body))[0] == 400


async def test_anybody_may_try_so_bodies_are_small(peer: Any) -> None:
    status, _, _ = await peer.ask("POST", LOGIN, {"username": "anna", "password": "x" * 100_000})
    assert status == 413


async def test_me_says_who_asks_by_whichever_way(peer: Any, accounts: Accounts, token: str) -> None:
    """Case 36 of the reference."""
    assert (await peer.ask("GET", "/api/auth/me"))[0] == 401
    assert (await peer.ask("GET", "/api/auth/me", authorization="Bearer a.b.c"))[0] == 401
    secret = (await key(accounts))["key"]
    assert (await peer.ask("GET", "/api/auth/me", x_api_key=secret))[0] == 403
    _, answer, _ = await peer.ask("GET", "/api/auth/me", x_api_key=token)
    assert answer["user"] is None and answer["csrf"] is None and "admin" in answer["scopes"]
    made = await user(accounts, role="viewer")
    browser = await logged_in(peer)
    _, answer, _ = await browser.ask("GET", "/api/auth/me")
    assert answer == {
        "user": {"id": made["id"], "username": "anna", "role": "viewer"},
        "csrf": browser.csrf,
        "scopes": ["admin:read"],
    }


async def test_logging_out_ends_the_login_and_takes_the_cookie(peer: Any, accounts: Accounts) -> None:
    """Case 41 of the reference."""
    await user(accounts)
    browser, other = await logged_in(peer), await logged_in(peer)
    status, _, headers = await browser.ask("POST", "/api/auth/logout")
    assert status == 204 and re.search(rf'^{COOKIE}="?"?; .*Max-Age=0', headers["set-cookie"])
    assert (await browser.ask("GET", "/api/auth/me"))[0] == 401
    assert (await other.ask("GET", "/api/auth/me"))[0] == 200


async def test_one_changes_ones_password_and_all_ones_logins_end(peer: Any, accounts: Accounts) -> None:
    await user(accounts)
    browser, other = await logged_in(peer), await logged_in(peer)
    body = {"current_password": PASSWORD, "new_password": "another password"}
    assert (await browser.ask("POST", "/api/auth/password", body | {"current_password": "wrong one"}))[0] == 403
    assert (await browser.ask("POST", "/api/auth/password", body))[0] == 204
    assert (await browser.ask("GET", "/api/auth/me"))[0] == (await other.ask("GET", "/api/auth/me"))[0] == 401
    status, _, _ = await peer.ask("POST", LOGIN, {"username": "anna", "password": "another password"})
    assert status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_a_cookie_changes_nothing_without_its_csrf_token(peer: Any, accounts: Accounts, method: str) -> None:
    await user(accounts)
    browser = await logged_in(peer)
    path = "/api/users" if method == "POST" else "/api/users/anna"
    for headers in ({"x_csrf_token": ""}, {"x_csrf_token": "x" * 32}, {"origin": ""}):
        status, answer, _ = await browser.ask(method, path, {"role": "viewer"}, **headers)
        assert status == 403, answer
    assert accounts.users.has_admin()


async def test_a_foreign_page_changes_nothing_whatever_it_holds(peer: Any, accounts: Accounts) -> None:
    await user(accounts)
    browser = await logged_in(peer)
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        status, _, headers = await browser.ask(method, "/api/users", origin="https://evil.example")
        assert status == 403 and "access-control-allow-origin" not in headers


async def test_logins_are_audited_and_what_was_typed_is_not(peer: Any, accounts: Accounts, notes: Notes) -> None:
    await user(accounts)
    await peer.ask("POST", LOGIN, {"username": "my secret password", "password": "anna"})
    await peer.ask("POST", LOGIN, {"username": "ANNA", "password": "wrong password"})
    browser = await logged_in(peer)
    await browser.ask("POST", "/api/auth/logout")
    assert notes.said == [
        ("session.fail", ""),
        ("session.fail", "anna"),
        ("session.create", "anna"),
        ("session.end", "anna"),
    ]
    assert [note.detail for note in notes.notes[:2]] == ["unknown user", "wrong password"]
    assert notes.notes[2].caller.username == "anna" and notes.notes[2].caller.ip == "127.0.0.1"
    assert "secret" not in repr(notes.notes)


async def test_who_guesses_does_not_fill_the_audit_log(
    peer: Any, accounts: Accounts, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "FAILURES_NOTED_MAX", 3)
    for n in range(8):
        await peer.ask("POST", LOGIN, {"username": f"user{n}", "password": "wrong password"})
    assert len(notes.notes) == 3
    monkeypatch.setattr(auth, "FAILURES_NOTED_S", 0.0)
    await peer.ask("POST", LOGIN, {"username": "user9", "password": "wrong password"})
    assert notes.notes[-1].detail == "too many tries; 5 more were not noted"


# -- the set-up


def code_of(accounts: Accounts) -> str:
    link = accounts.claim.link("")
    assert link is not None
    return link.partition("#setup=")[2]


async def test_who_has_the_code_sets_the_mesh_up_from_anywhere(peer: Any, accounts: Accounts, notes: Notes) -> None:
    assert (await peer.ask("GET", "/api/auth/setup", **LAN))[1] == {"needed": True, "machines": []}
    code = code_of(accounts)
    _, answer, _ = await peer.ask("GET", "/api/auth/setup", x_setup_code=code, **LAN)
    assert [machine["name"] for machine in answer["machines"]] == ["tower", "loft"]
    body = {"code": code, "username": "anna", "password": PASSWORD, "confirm": ["m1"]}
    status, answer, headers = await peer.ask("POST", "/api/auth/setup", body, **LAN)
    assert status == 201 and answer["user"]["role"] == "admin"
    browser = Browser(peer, cookie_of(headers), answer["csrf"])
    assert (await browser.ask("GET", "/api/users"))[0] == 200
    assert (await peer.ask("GET", "/api/auth/setup", **LAN))[1] == {"needed": False, "machines": []}
    assert (await peer.ask("POST", "/api/auth/setup", body, **LAN))[0] == 409
    assert notes.said == [("mesh.claim", "anna")]


async def test_who_comes_first_without_the_code_owns_nothing(peer: Any, accounts: Accounts) -> None:
    body = {"code": "x" * 32, "username": "eve", "password": PASSWORD, "confirm": "all"}
    found = [(await peer.ask("POST", "/api/auth/setup", body, **LAN))[0] for _ in range(7)]
    assert found == [403] * 5 + [429] * 2
    assert (await peer.ask("GET", "/api/auth/setup", x_setup_code="x" * 32, **LAN))[0] == 429
    assert accounts.users.all() == []


async def test_a_peer_without_accounts_says_so(surface: Any, token: str) -> None:
    for method, path, body in (
        ("POST", LOGIN, {"username": "anna", "password": "x"}),
        ("GET", "/api/auth/setup", None),
        ("GET", "/api/auth/me", None),
    ):
        status, answer, _ = await surface.ask(method, path, body, x_api_key=token)
        assert (status, answer["error"]) == (503, "This peer has no users and no keys.")


# -- keys at work


def chat(model: str = "tiny", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hi"}]} | more


async def test_a_key_works_from_the_lan_in_every_header_until_it_is_deleted(peer: Any, accounts: Accounts) -> None:
    """Cases 25, 26, 27, 29, 31 of the reference."""
    assert (await peer.ask("GET", "/v1/models", **LAN))[0] == 401
    assert (await peer.ask("GET", "/v1/models", x_api_key="garbage", **LAN))[0] == 401
    made = await key(accounts)
    spellings = ({"authorization": f"Bearer {made['key']}"}, {"x_api_key": made["key"]}, {"api_key": made["key"]})
    for header in spellings:
        assert (await peer.ask("GET", "/v1/models", **header, **LAN))[0] == 200
    assert (await peer.ask("GET", "/v1/models", authorization="Basic x"))[0] == 401
    await accounts.keys.delete(made["id"], PERSON)
    for header in spellings:
        status, answer, _ = await peer.ask("GET", "/v1/models", **header)
        assert (status, answer["error"]["message"]) == (401, "API key revoked.")


async def test_an_expired_key_is_401_with_the_reason(peer: Any, accounts: Accounts, clock: Clock) -> None:
    """Case 32 of the reference."""
    made = await key(accounts, expires_at=clock.now + 60)
    assert (await peer.ask("POST", CHAT, chat(), x_api_key=made["key"], **LAN))[0] == 200
    clock.now += 60
    status, answer, _ = await peer.ask("POST", CHAT, chat(), x_api_key=made["key"], **LAN)
    assert (status, answer["error"]["message"], answer["error"]["code"]) == (401, "API key expired.", "invalid_api_key")


async def test_what_a_key_says_of_its_requests_goes_along(peer: Any, accounts: Accounts) -> None:
    made = await key(accounts, scopes=["inference", "cloud"], recording="off", models=["t*"])
    await peer.ask("POST", CHAT, chat(), x_api_key=made["key"], **LAN)
    (caller,) = peer.script.callers
    assert (caller.key_id, caller.key_name, caller.recording) == (made["id"], "scripts", "off")
    assert caller.scopes == {"inference", "cloud"} and caller.models == ("t*",) and not caller.is_local


async def test_a_key_uses_and_sees_the_models_it_is_for(peer: Any, accounts: Accounts) -> None:
    secret = (await key(accounts, models=["hf/*", "emb?d"]))["key"]
    _, answer, _ = await peer.ask("GET", "/v1/models", x_api_key=secret, **LAN)
    assert [model["id"] for model in answer["data"]] == ["hf/a/b.gguf", "embed"]
    assert (await peer.ask("POST", CHAT, chat("hf/a/b.gguf"), x_api_key=secret, **LAN))[0] == 200
    for method, path, body in (
        ("POST", CHAT, chat("tiny")),
        ("POST", CHAT, chat("tiny", stream=True)),
        ("POST", "/v1/completions", {"model": "tiny", "prompt": "x"}),
        ("POST", "/api/generate", {"model": "tiny", "prompt": "x"}),
        ("GET", "/v1/models/tiny", None),
    ):
        status, answer, _ = await peer.ask(method, path, body, x_api_key=secret, **LAN)
        error = answer["error"]
        assert (status, error["type"], error["code"], error["param"]) == (
            403,
            "permission_error",
            "model_not_allowed",
            "model",
        )
    assert len(peer.script.generations) == 1


@pytest.mark.parametrize(
    ("globs", "model", "expected"),
    [
        ((), "anything", True),
        (("qwen",), "qwen", True),
        (("qwen",), "Qwen", False),
        (("hf/*",), "hf/a/b.gguf", True),
        (("*",), "openai:gpt-4o", True),
        (("openai:*",), "openai:gpt-4o", True),
        (("[a-c]x", "y?"), "bx", True),
        (("[a-c]x", "y?"), "y", False),
        (("*a*a*a*a*a*a*a*a*a*a*b",), "a" * 5000, False),
    ],
)
def test_globs_are_those_of_a_shell(globs: tuple[str, ...], model: str, expected: bool) -> None:
    assert may_use(Caller(ip="", models=globs), model) is expected


async def test_limits_are_said_and_held(peer: Any, accounts: Accounts) -> None:
    secret = (await key(accounts, requests_per_minute=2))["key"]
    status, _, headers = await peer.ask("POST", CHAT, chat(), x_api_key=secret, **LAN)
    assert (status, headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == (200, "2", "1")
    assert (await peer.ask("POST", CHAT, chat("nothing"), x_api_key=secret, **LAN))[0] == 404
    status, answer, headers = await peer.ask("POST", CHAT, chat(), x_api_key=secret, **LAN)
    assert (status, answer["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(headers["retry-after"]) >= 1 and headers["x-ratelimit-remaining-requests"] == "0"
    assert (await peer.ask("GET", "/v1/models", x_api_key=secret, **LAN))[0] == 200  # nothing is made for it


async def test_tokens_are_counted_as_they_were_used(peer: Any, accounts: Accounts) -> None:
    """The script's answer has three tokens, and its prompt one message, which it counts as one."""
    made = await key(accounts, tokens_per_day=1000)
    await peer.ask("POST", CHAT, chat(max_tokens=500), x_api_key=made["key"], **LAN)
    await peer.events(CHAT, chat(stream=True, max_tokens=500), x_api_key=made["key"], **LAN)
    assert accounts._ledger.saved()[1] == {made["id"]: 8}
    await peer.ask("POST", "/v1/embeddings", {"model": "embed", "input": ["a", "b"]}, x_api_key=made["key"], **LAN)
    assert accounts._ledger.saved()[1] == {made["id"]: 12}
    peer.script.error_after = RuntimeError("the engine broke")
    await peer.events(CHAT, chat(stream=True, max_tokens=500), x_api_key=made["key"], **LAN)
    assert accounts._ledger.saved()[1] == {made["id"]: 16}  # what was made counts


# -- revoked while it is used


@pytest.mark.parametrize("how", ["deleted", "expired"])
async def test_a_stream_ends_when_its_key_does(peer: Any, accounts: Accounts, clock: Clock, how: str) -> None:
    """Lesson 17: a revocation that live streams do not hear of is none."""
    made = await key(accounts, expires_at=clock.now + 60)
    peer.script.before_piece.clear()
    async with peer.session.post(
        peer.url + CHAT, json=chat(stream=True), headers={"x-api-key": made["key"]} | LAN
    ) as answer:
        assert answer.status == 200
        await answer.content.readuntil(b"\n\n")  # it has begun
        if how == "deleted":
            await accounts.keys.delete(made["id"], PERSON)
        else:
            clock.now += 60
        async with asyncio.timeout(5):
            rest = await answer.content.read()
    assert b"revoked" in rest and b"[DONE]" not in rest
    await asyncio.wait_for(peer.script.closed.wait(), 5)


async def test_a_request_that_waits_for_its_answer_ends_too_with_401(peer: Any, accounts: Accounts) -> None:
    made = await key(accounts)
    peer.script.before_start.clear()
    asked = asyncio.create_task(peer.ask("POST", CHAT, chat(), x_api_key=made["key"], **LAN))
    await asyncio.wait_for(peer.script.started.wait(), 5)
    await accounts.keys.delete(made["id"], PERSON)
    status, answer, _ = await asyncio.wait_for(asked, 5)
    assert (status, answer["error"]["code"]) == (401, "invalid_api_key")


async def test_others_go_on_when_one_is_revoked(peer: Any, accounts: Accounts) -> None:
    one, other = await key(accounts), await key(accounts)
    peer.script.before_start.clear()
    tasks = [asyncio.create_task(peer.ask("POST", CHAT, chat(), x_api_key=each["key"], **LAN)) for each in (one, other)]
    while len(peer.script.generations) < 2:
        await asyncio.sleep(0)
    await accounts.keys.delete(one["id"], PERSON)
    assert (await asyncio.wait_for(tasks[0], 5))[0] == 401
    peer.script.before_start.set()
    assert (await asyncio.wait_for(tasks[1], 5))[0] == 200


async def test_a_login_that_ends_ends_its_streams(peer: Any, accounts: Accounts) -> None:
    await user(accounts)
    await user(accounts, "bert")
    browser = await logged_in(peer, "bert")
    peer.script.before_start.clear()
    asked = asyncio.create_task(browser.ask("POST", "/api/chat", chat()))
    await asyncio.wait_for(peer.script.started.wait(), 5)
    await accounts.users.change("bert", {"role": "viewer"}, PERSON)
    assert (await asyncio.wait_for(asked, 5))[0] == 401


async def test_a_key_of_an_administrator_deletes_other_keys_and_not_itself(peer: Any, accounts: Accounts) -> None:
    made = await key(accounts)
    robot = await key(accounts, scopes=["admin"], name="robot")
    assert (await peer.ask("DELETE", f"/api/api-keys/{made['id']}", x_api_key=robot["key"], **LAN))[0] == 204
    status, answer, _ = await peer.ask("DELETE", f"/api/api-keys/{robot['id']}", x_api_key=robot["key"], **LAN)
    assert (status, answer["error"].startswith("Keys that see or change administration")) == (403, True)


# -- estimates


def generation(prompt: Any, max_tokens: int | None) -> Generation:
    return Generation(id="x", model="tiny", prompt=prompt, max_tokens=max_tokens)


def test_tokens_are_estimated_from_what_is_asked() -> None:
    messages = (
        Message(role="system", content="x" * 400),
        Message(role="user", content=(TextPart(text="y" * 40), TextPart(text="z" * 4))),
        Message(role="assistant", content=None),
    )
    assert estimated_tokens(generation(ChatPrompt(messages=messages), 50)) == 50 + 101 + 11 + 2 + 1
    assert estimated_tokens(generation(TextPrompt(text="x" * 399), None)) == 256 + 100
    assert estimated_tokens(generation(TokenPrompt(tokens=(1, 2, 3)), 7)) == 10
    request = EmbeddingRequest(id="x", model="embed", inputs=("x" * 40, (1, 2, 3)))
    assert estimated_input(request) == 11 + 3


async def test_logins_and_refused_keys_are_counted(start: Any, accounts: Accounts) -> None:
    await user(accounts)
    logins: list[str] = []
    keys: list[int] = []
    state = StateFacet(
        name="attic",
        version="0.3.0",
        ready=lambda: True,
        status=dict,
        ps=dict,
        metrics=bytes,
        observe=lambda route, method, status, seconds: None,
        login_ended=logins.append,
        key_refused=keys.append,
    )
    peer = await start(accounts=accounts.facet, state=state)
    for password in (PASSWORD, "not that one", *["guess"] * 6):
        await peer.ask("POST", LOGIN, {"username": "anna", "password": password}, **LAN)
    assert logins[:2] == ["ok", "refused"] and logins[-1] == "limited"
    assert keys == []
    await peer.ask("GET", "/v1/models", x_api_key="sk-mesh-wrong", **LAN)
    await peer.ask("GET", "/v1/models", **LAN)
    assert keys == [401]
