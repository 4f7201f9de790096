"""Users: names, roles, passwords, and the last administrator."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from inference.errors import InvalidRequest
from mesh.accounts.book import USER
from mesh.accounts.errors import BadLogin, NoSuchAccount, NotAllowed
from mesh.accounts.passwords import Passwords
from mesh.accounts.users import Users, folded
from tests.fixtures.book import MemoryBook
from tests.fixtures.peer_accounts import PASSWORD, PERSON, Clock
from web.services import Caller


@pytest.fixture
def book() -> MemoryBook:
    return MemoryBook()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def users(book: MemoryBook, clock: Clock) -> AsyncIterator[Users]:
    passwords = Passwords()
    yield Users(book, passwords, clock)
    passwords.close()


async def made(users: Users, username: str, role: str = "viewer") -> dict[str, Any]:
    return await users.create({"username": username, "password": PASSWORD, "role": role}, PERSON)


async def test_a_user_logs_in_with_its_password_in_any_case_of_its_name(users: Users) -> None:
    await made(users, "Anna")
    assert (await users.checked("anna", PASSWORD)).username == "Anna"
    assert (await users.checked(" ANNA ", PASSWORD)).username == "Anna"


async def test_a_wrong_password_and_an_unknown_user_are_the_same(users: Users) -> None:
    """Case 35 of the reference."""
    await made(users, "anna")
    said = []
    for username, password in (("anna", "wrong password"), ("bert", PASSWORD), ("anna", "x" * 5000), ("", "")):
        with pytest.raises(BadLogin) as refused:
            await users.checked(username, password)
        said.append((refused.value.status, refused.value.message))
    assert len(set(said)) == 1


async def test_nothing_that_is_shown_holds_a_hash(users: Users) -> None:
    """Case 42 of the reference."""
    anna = await made(users, "anna", "admin")
    shown = [anna, *users.listed(), users.found("anna"), await users.change("anna", {"role": "admin"}, PERSON)]
    assert all("password_hash" not in each and "argon2" not in repr(each) for each in shown)
    assert shown[0] == {
        "id": anna["id"],
        "username": "anna",
        "role": "admin",
        "created_at": "2027-01-15T08:00:00Z",
        "created_by": "command line",
    }


@pytest.mark.parametrize("again", ["anna", "ANNA", " Anna ", "Ａnna"])
async def test_a_name_is_one_users_whatever_its_case(users: Users, again: str) -> None:
    """Case 39 of the reference."""
    await made(users, "anna")
    with pytest.raises(InvalidRequest) as refused:
        await made(users, again)
    assert (refused.value.status, refused.value.code) == (400, "taken")


@pytest.mark.parametrize("name", ["ann", "Zoë", "山田", "a.b-c_d+e@example.org", "7", "x" * 64])
async def test_names_of_people_are_names(users: Users, name: str) -> None:
    assert (await made(users, name))["username"] == name


@pytest.mark.parametrize(
    "name",
    ["", " ", "a b", "../x", "a/b", "-a", "_a", "<img>", "a\0", "x" * 65, "12345678-1234-1234-1234-123456789012"],
)
async def test_other_texts_are_not(users: Users, book: MemoryBook, name: str) -> None:
    with pytest.raises(InvalidRequest):
        await made(users, name)
    assert book.rows == {}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"username": "anna"},
        {"password": PASSWORD},
        {"username": "anna", "password": "short"},
        {"username": "anna", "password": PASSWORD, "role": "root"},
        {"username": "anna", "password": PASSWORD, "role": ["admin"]},
        {"username": 5, "password": PASSWORD},
    ],
)
async def test_half_a_user_is_refused(users: Users, book: MemoryBook, body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        await users.create(body, PERSON)
    assert book.rows == {}


async def test_a_user_is_a_viewer_unless_told_otherwise(users: Users) -> None:
    assert (await users.create({"username": "anna", "password": PASSWORD}, PERSON))["role"] == "viewer"


async def test_the_last_administrator_cannot_go_nor_be_demoted(users: Users) -> None:
    """Case 40 of the reference."""
    await made(users, "anna", "admin")
    await made(users, "bert")
    for attempt in (users.delete("anna", PERSON), users.change("anna", {"role": "viewer"}, PERSON)):
        with pytest.raises(InvalidRequest) as refused:
            await attempt
        assert (refused.value.status, refused.value.code) == (400, "last_admin")
    await users.change("bert", {"role": "admin"}, PERSON)
    await users.change("anna", {"role": "viewer"}, PERSON)
    await users.delete("anna", PERSON)
    assert [user.username for user in users.all()] == ["bert"]
    assert users.has_admin()


async def test_two_administrators_who_demote_each_other_at_once_leave_one(users: Users) -> None:
    import asyncio

    await made(users, "anna", "admin")
    await made(users, "bert", "admin")
    demotion: dict[str, Any] = {"role": "viewer", "password": "another password"}
    found = await asyncio.gather(
        users.change("anna", demotion, PERSON), users.change("bert", demotion, PERSON), return_exceptions=True
    )
    assert sum(isinstance(each, InvalidRequest) for each in found) == 1
    assert users.has_admin()


async def test_a_new_password_or_role_begins_a_new_epoch_and_a_new_name_does_not(users: Users, clock: Clock) -> None:
    await made(users, "anna", "admin")
    await made(users, "bert", "admin")
    before = users.named("anna")
    assert before is not None
    epochs = [before.epoch]
    for change in ({"password": "another password"}, {"role": "viewer"}, {"password": "another password"}):
        await users.change("anna", change, PERSON)
        anna = users.named("anna")
        assert anna is not None
        epochs.append(anna.epoch)
    assert epochs == sorted(set(epochs))
    await users.change("anna", {"username": "Anne", "role": "viewer"}, PERSON)
    renamed = users.named("anne")
    assert renamed is not None and renamed.epoch == epochs[-1]


async def test_the_old_password_is_none_after_a_change(users: Users) -> None:
    await made(users, "anna")
    await users.change("anna", {"password": "another password"}, PERSON)
    assert await users.checked("anna", "another password")
    with pytest.raises(BadLogin):
        await users.checked("anna", PASSWORD)


async def test_one_changes_ones_own_password_knowing_the_old_one(users: Users) -> None:
    anna = await made(users, "anna")
    caller = Caller(ip="", user_id=anna["id"], username="anna", role="viewer")
    body = {"current_password": PASSWORD, "new_password": "another password"}
    with pytest.raises(NotAllowed):
        await users.change_own_password(body | {"current_password": "wrong password"}, caller)
    with pytest.raises(InvalidRequest):
        await users.change_own_password(body | {"new_password": "short"}, caller)
    with pytest.raises(NotAllowed):
        await users.change_own_password(body, PERSON)  # the command line is nobody's login
    await users.change_own_password(body, caller)
    assert await users.checked("anna", "another password")


@pytest.mark.parametrize(
    "caller",
    [
        Caller(ip="", key_id="abcdefgh", scopes=frozenset({"admin", "admin:read"})),
        Caller(ip="", user_id="u", role="viewer"),
        Caller(ip=""),
    ],
)
async def test_only_a_person_manages_users(users: Users, caller: Caller) -> None:
    await made(users, "anna", "admin")
    await made(users, "bert", "admin")
    for attempt in (
        users.create({"username": "carl", "password": PASSWORD}, caller),
        users.change("anna", {"password": "another password"}, caller),
        users.delete("anna", caller),
    ):
        with pytest.raises(NotAllowed):
            await attempt
    assert len(users.all()) == 2


async def test_of_two_annas_made_on_two_sides_the_older_one_is_meant(
    users: Users, book: MemoryBook, clock: Clock
) -> None:
    older = await made(users, "anna")
    fields = dict(book.rows[USER + older["id"]])
    book.rows[USER + "00000000-0000-4000-8000-000000000000"] = fields | {
        "created_at": clock.now + 5,
        "username": "Anna",
    }
    assert [user.username for user in users.all()] == ["anna", "Anna"]
    found = users.named("anna")
    assert found is not None and found.id == older["id"]


async def test_a_deleted_user_is_nobody_and_its_name_is_free(users: Users) -> None:
    anna = await made(users, "anna")
    gone = await users.delete("anna", PERSON)
    assert gone["id"] == anna["id"]
    with pytest.raises(NoSuchAccount):
        users.found("anna")
    with pytest.raises(BadLogin):
        await users.checked("anna", PASSWORD)
    assert (await made(users, "anna"))["id"] != anna["id"]


def test_spellings_of_a_name_are_folded() -> None:
    assert folded("STRASSE") == folded("straße") == folded(" Straße")
    assert folded("ﬁ") == folded("FI")
