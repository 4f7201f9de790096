"""Users and API keys over HTTP, with the real accounts behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mesh.accounts.accounts import Accounts
from tests.fixtures.peer_accounts import NOW, PASSWORD, PERSON, peer_accounts
from web.services import Access, AuditNote, HistoryFacet

LAN = {"via": "1.1 proxy"}


@pytest.fixture
async def accounts(tmp_path: Path) -> AsyncIterator[Accounts]:
    async with peer_accounts(tmp_path) as found:
        await found.users.create({"username": "anna", "password": PASSWORD, "role": "admin"}, PERSON)
        yield found


@pytest.fixture
def notes() -> list[AuditNote]:
    return []


@pytest.fixture
async def peer(start: Any, accounts: Accounts, notes: list[AuditNote], token: str) -> Any:
    def nothing(*_: Any) -> Any:
        raise AssertionError("history was asked")

    history = HistoryFacet(
        begin=nothing,
        audit=notes.append,
        records=nothing,
        record=nothing,
        export=nothing,
        stats=nothing,
        overview=nothing,
        audits=nothing,
    )
    access = Access(hosts=frozenset({"attic.local"}), control_token=token)
    return await start(access=access, accounts=accounts.facet, history=history)


@pytest.fixture
async def admin(accounts: Accounts, peer: Any) -> dict[str, str]:
    """The headers of a script that anna logged in, on the LAN."""
    login = await accounts.login("anna", PASSWORD, PERSON)
    return {"authorization": f"Bearer {login.token}"} | LAN


async def test_users_are_made_shown_changed_and_removed(
    peer: Any, admin: dict[str, str], notes: list[AuditNote]
) -> None:
    body = {"username": "bert", "password": PASSWORD, "role": "viewer"}
    status, bert, _ = await peer.ask("POST", "/api/users", body, **admin)
    assert (status, bert["username"], bert["role"], bert["created_by"]) == (201, "bert", "viewer", "anna")
    _, listed, _ = await peer.ask("GET", "/api/users", **admin)
    assert {user["username"] for user in listed} == {"anna", "bert"}
    for who in (bert["id"], "bert", "BERT"):
        assert (await peer.ask("GET", f"/api/users/{who}", **admin))[1] == bert
    changes = {"role": "admin", "password": "another password"}
    status, changed, _ = await peer.ask("PUT", "/api/users/bert", changes, **admin)
    assert (status, changed["role"]) == (200, "admin")
    assert (await peer.ask("DELETE", f"/api/users/{bert['id']}", **admin))[0] == 204
    assert (await peer.ask("GET", "/api/users/bert", **admin))[0] == 404
    assert [(note.action, note.target, note.detail) for note in notes] == [
        ("user.create", "bert", "role viewer"),
        ("user.change", "bert", "changed password, role"),
        ("user.delete", "bert", ""),
    ]
    assert all(note.caller.username == "anna" for note in notes) and "another" not in repr(notes)


async def test_no_answer_ever_holds_a_hash(peer: Any, admin: dict[str, str]) -> None:
    """Case 42 of the reference."""
    answers = [
        await peer.ask("POST", "/api/users", {"username": "bert", "password": PASSWORD}, **admin),
        await peer.ask("GET", "/api/users", **admin),
        await peer.ask("PUT", "/api/users/bert", {"role": "admin"}, **admin),
        await peer.ask("POST", "/api/api-keys", {"name": "scripts"}, **admin),
        await peer.ask("GET", "/api/api-keys", **admin),
    ]
    for _, answer, _ in answers:
        assert not any(word in repr(answer) for word in ("hash", "argon2", "sha256", "epoch"))


async def test_a_key_is_shown_in_the_answer_to_its_making_only(peer: Any, admin: dict[str, str]) -> None:
    """Case 30 of the reference."""
    body = {"name": "scripts", "requests_per_minute": 5, "expires_at": "2030-01-31T12:00:00Z"}
    status, made, headers = await peer.ask("POST", "/api/api-keys", body, **admin)
    assert status == 201 and made["key"].startswith("sk-") and headers["cache-control"] == "no-store"
    assert (made["expires_at"], made["requests_per_minute"]) == ("2030-01-31T12:00:00Z", 5)
    _, listed, _ = await peer.ask("GET", "/api/api-keys", **admin)
    _, one, _ = await peer.ask("GET", f"/api/api-keys/{made['id']}", **admin)
    assert listed == [one] and one == {name: value for name, value in made.items() if name != "key"}
    _, changed, _ = await peer.ask("PUT", f"/api/api-keys/{made['id']}", {"requests_per_minute": None}, **admin)
    assert changed == one | {"requests_per_minute": None}
    assert (await peer.ask("DELETE", f"/api/api-keys/{made['id']}", **admin))[0] == 204
    assert (await peer.ask("GET", "/api/api-keys", **admin))[1] == []


@pytest.mark.parametrize("value", ["tomorrow", True, -5, [], "2030-01-31"])
async def test_a_bad_expiry_is_a_bad_request(peer: Any, admin: dict[str, str], value: Any) -> None:
    """Case 33 of the reference."""
    status, answer, _ = await peer.ask("POST", "/api/api-keys", {"name": "x", "expires_at": value}, **admin)
    assert status == 400 and "expires_at" in answer["error"]


async def test_a_name_that_is_taken_and_the_last_administrator_are_bad_requests(
    peer: Any, admin: dict[str, str]
) -> None:
    """Cases 39 and 40 of the reference."""
    status, answer, _ = await peer.ask("POST", "/api/users", {"username": "ANNA", "password": PASSWORD}, **admin)
    assert status == 400 and "already" in answer["error"]
    status, answer, _ = await peer.ask("DELETE", "/api/users/anna", **admin)
    assert status == 400 and "last administrator" in answer["error"]
    status, answer, _ = await peer.ask("PUT", "/api/users/anna", {"role": "viewer"}, **admin)
    assert status == 400 and "last administrator" in answer["error"]


async def test_a_viewer_sees_and_changes_nothing(peer: Any, accounts: Accounts) -> None:
    """Case 37 of the reference."""
    await accounts.users.create({"username": "bert", "password": PASSWORD}, PERSON)
    login = await accounts.login("bert", PASSWORD, PERSON)
    viewer = {"authorization": f"Bearer {login.token}"} | LAN
    assert (await peer.ask("GET", "/api/users", **viewer))[0] == 200
    for method, path, body in (
        ("POST", "/api/users", {"username": "eve", "password": PASSWORD, "role": "admin"}),
        ("PUT", "/api/users/bert", {"role": "admin"}),
        ("DELETE", "/api/users/anna", None),
        ("POST", "/api/api-keys", {"name": "x"}),
    ):
        assert (await peer.ask(method, path, body, **viewer))[0] == 403
    assert len(accounts.users.all()) == 2 and accounts.keys.all() == []


async def test_nobody_sees_or_changes_users(peer: Any, accounts: Accounts) -> None:
    """Case 38 of the reference; this machine without a key is nobody too."""
    for headers in ({}, LAN):
        for method, path in (("GET", "/api/users"), ("POST", "/api/users"), ("DELETE", "/api/users/anna")):
            body = {"username": "eve", "password": PASSWORD} if method == "POST" else None
            assert (await peer.ask(method, path, body, **headers))[0] == 401
    assert len(accounts.users.all()) == 1


async def test_an_administrators_key_makes_plain_keys_and_neither_users_nor_keys_like_itself(
    peer: Any, accounts: Accounts
) -> None:
    robot = (await accounts.keys.create({"name": "robot", "scopes": ["admin"]}, PERSON))["key"]
    header = {"x_api_key": robot} | LAN
    assert (await peer.ask("POST", "/api/api-keys", {"name": "plain"}, **header))[0] == 201
    for method, path, body in (
        ("POST", "/api/api-keys", {"name": "x", "scopes": ["admin"]}),
        ("POST", "/api/api-keys", {"name": "x", "scopes": ["inference", "admin:read"]}),
        ("PUT", "/api/api-keys/plain", {"scopes": ["admin"]}),
        ("PUT", "/api/api-keys/robot", {"expires_at": None}),
        ("POST", "/api/users", {"username": "eve", "password": PASSWORD, "role": "admin"}),
        ("PUT", "/api/users/anna", {"password": "another password"}),
        ("DELETE", "/api/users/anna", None),
    ):
        status, answer, _ = await peer.ask(method, path, body, **header)
        assert status == 403 and "person" in answer["error"], (method, path, body)
    assert {key.name for key in accounts.keys.all()} == {"robot", "plain"}


@pytest.mark.parametrize("path", ["/api/users/nobody", "/api/api-keys/nothing", "/api/users/..%2F..%2Fetc"])
async def test_what_is_unknown_is_404(peer: Any, admin: dict[str, str], path: str) -> None:
    for method, body in (("GET", None), ("PUT", {}), ("DELETE", None)):
        status, answer, _ = await peer.ask(method, path, body, **admin)
        assert status == 404 and answer["error"]


async def test_an_id_that_cannot_be_is_a_bad_request(peer: Any, admin: dict[str, str]) -> None:
    for path in ("/api/users/" + "x" * 200, "/api/users/a%00b"):
        assert (await peer.ask("GET", path, **admin))[0] == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/users", {"username": "x"}),
        ("/api/users", {"username": "x", "password": 5}),
        ("/api/users", {"username": "x y", "password": PASSWORD}),
        ("/api/users", {"username": "x", "password": "short"}),
        ("/api/users", {"username": "x", "password": PASSWORD, "role": "root"}),
        ("/api/api-keys", {}),
        ("/api/api-keys", {"name": ""}),
        ("/api/api-keys", {"name": "x", "scopes": ["root"]}),
        ("/api/api-keys", {"name": "x", "models": "hf/*"}),
        ("/api/api-keys", {"name": "x", "tokens_per_day": 0}),
        ("/api/api-keys", {"name": "x", "recording": "some"}),
    ],
)
async def test_what_cannot_be_is_a_bad_request_and_changes_nothing(
    peer: Any, accounts: Accounts, admin: dict[str, str], path: str, body: dict[str, Any]
) -> None:
    status, answer, _ = await peer.ask("POST", path, body, **admin)
    assert status == 400 and PASSWORD not in answer["error"]
    assert len(accounts.users.all()) == 1 and accounts.keys.all() == []


async def test_an_expired_key_is_shown_as_such(peer: Any, accounts: Accounts, admin: dict[str, str]) -> None:
    await accounts.keys.create({"name": "old", "expires_at": NOW - 1}, PERSON)
    _, (key,), _ = await peer.ask("GET", "/api/api-keys", **admin)
    assert key["expired"] is True and key["expires_at"] == "2027-01-15T07:59:59Z"
