"""Keys, users, logins and limits of one peer together, over an admin map in memory."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from gossip.identity import Identity
from gossip.roster import Roster
from mesh.accounts import accounts as module
from mesh.accounts.accounts import USED_FILE, Accounts
from mesh.accounts.book import SESSION
from mesh.accounts.errors import AlreadyClaimed, BadLogin, NotAllowed, TooManyTries, WrongCode
from tests.fixtures.book import MemoryBook
from tests.fixtures.peer_accounts import NOW, PASSWORD, PERSON, Clock, peer_accounts
from web.errors import HttpRefusal
from web.services import Caller, Principal, Spending

LAN = Caller(ip="10.0.0.9")


async def user(accounts: Accounts, username: str = "anna", role: str = "admin") -> dict[str, Any]:
    return await accounts.users.create({"username": username, "password": PASSWORD, "role": role}, PERSON)


async def key(accounts: Accounts, **fields: Any) -> tuple[str, Caller]:
    """A key's secret, and the caller that uses it."""
    made = await accounts.keys.create({"name": "scripts"} | fields, PERSON)
    return made["key"], Caller(ip="10.0.0.9", key_id=made["id"])


def as_caller(found: Principal | None) -> Caller:
    assert found is not None
    return Caller(ip="", user_id=found.user_id, username=found.username, role=found.role, session_id=found.session_id)


# -- logins


async def test_a_login_is_a_session_on_every_member(tmp_path: Path) -> None:
    book, clock = MemoryBook(), Clock()
    one, other = Identity.generate(), Identity.generate()
    roster = Roster.found(one, "attic", NOW).admit(one, other.certificate_der, "tower", "token", "active", NOW)
    here = peer_accounts(tmp_path, book=book, identity=one, roster=lambda: roster, clock=clock)
    there = peer_accounts(tmp_path, book=book, identity=other, roster=lambda: roster, clock=clock)
    made = await user(here)
    login = await here.login("Anna", PASSWORD, LAN)
    assert (login.user, login.expires_in_s) == ({"id": made["id"], "username": "anna", "role": "admin"}, 43_200)
    for accounts in (here, there):
        found = accounts.sessions.of(login.token)
        assert found is not None and (found.user_id, found.role, found.csrf) == (made["id"], "admin", login.csrf)
    await there.logout(as_caller(there.sessions.of(login.token)))
    assert here.sessions.of(login.token) is None and there.sessions.of(login.token) is None


@pytest.mark.parametrize(
    "ending",
    [
        lambda accounts: accounts.users.change("bert", {"password": "another password"}, PERSON),
        lambda accounts: accounts.users.change("bert", {"role": "viewer"}, PERSON),
        lambda accounts: accounts.users.delete("bert", PERSON),
    ],
)
async def test_a_new_password_a_new_role_and_deletion_end_the_logins_of_that_user_only(
    tmp_path: Path, ending: Any
) -> None:
    accounts = peer_accounts(tmp_path)
    await user(accounts, "anna")
    await user(accounts, "bert")
    annas, berts = await accounts.login("anna", PASSWORD, LAN), await accounts.login("bert", PASSWORD, LAN)
    anna, bert = as_caller(accounts.sessions.of(annas.token)), as_caller(accounts.sessions.of(berts.token))
    assert not accounts.is_revoked(anna) and not accounts.is_revoked(bert)
    await ending(accounts)
    assert accounts.sessions.of(berts.token) is None
    assert accounts.sessions.of(annas.token) is not None
    assert accounts.is_revoked(bert) and not accounts.is_revoked(anna)


async def test_the_sixth_wrong_password_of_a_minute_is_not_looked_at(tmp_path: Path) -> None:
    clock = Clock()
    accounts = peer_accounts(tmp_path, clock=clock)
    await user(accounts)
    for n in range(5):
        with pytest.raises(BadLogin):
            await accounts.login("anna", "wrong password", Caller(ip=f"10.0.0.{n}"))
    with pytest.raises(TooManyTries) as refused:
        await accounts.login("ANNA", PASSWORD, Caller(ip="10.0.0.200"))
    assert (refused.value.status, refused.value.retry_after_s) == (429, 60)
    clock.now += 60
    assert await accounts.login("anna", PASSWORD, Caller(ip="10.0.0.200"))


async def test_one_address_has_five_tries_a_minute_whoever_it_tries_to_be(tmp_path: Path) -> None:
    accounts = peer_accounts(tmp_path)
    await user(accounts)
    for n in range(5):
        with pytest.raises(BadLogin):
            await accounts.login(f"user{n}", "wrong password", LAN)
    with pytest.raises(TooManyTries):
        await accounts.login("anna", PASSWORD, LAN)
    assert await accounts.login("anna", PASSWORD, Caller(ip="10.0.0.10"))


async def test_right_passwords_are_never_too_many(tmp_path: Path) -> None:
    accounts = peer_accounts(tmp_path)
    await user(accounts)
    for _ in range(8):
        await accounts.login("anna", PASSWORD, LAN)


async def test_guessing_the_old_password_is_limited_too(tmp_path: Path) -> None:
    accounts = peer_accounts(tmp_path)
    made = await user(accounts)
    caller = Caller(ip="10.0.0.9", user_id=made["id"], username="anna", role="admin", session_id="s")
    body = {"current_password": "wrong password", "new_password": "another password"}
    for _ in range(5):
        with pytest.raises(NotAllowed):
            await accounts.change_password(body, caller)
    with pytest.raises(TooManyTries):
        await accounts.change_password(body | {"current_password": PASSWORD}, caller)


# -- revoking, and being told


async def test_whoever_listens_is_told_when_a_key_ends_and_can_ask_about_it(tmp_path: Path) -> None:
    accounts = peer_accounts(tmp_path)
    _, caller = await key(accounts)
    told: list[bool] = []
    accounts.facet.on_change(lambda: told.append(accounts.is_revoked(caller)))
    await accounts.keys.change(caller.key_id or "", {"name": "other"}, PERSON)
    await accounts.keys.delete(caller.key_id or "", PERSON)
    assert told == [False, True]


async def test_an_expired_key_is_revoked_without_anybody_saying_so(tmp_path: Path) -> None:
    clock = Clock()
    accounts = peer_accounts(tmp_path, clock=clock)
    _, caller = await key(accounts, expires_at=clock.now + 10)
    assert not accounts.is_revoked(caller)
    clock.now += 10
    assert accounts.is_revoked(caller)


@pytest.mark.parametrize("caller", [PERSON, LAN])
async def test_nobody_and_the_command_line_cannot_be_revoked(tmp_path: Path, caller: Caller) -> None:
    assert not peer_accounts(tmp_path).is_revoked(caller)


async def test_logging_out_by_another_way_than_a_login_ends_nothing(tmp_path: Path) -> None:
    book = MemoryBook()
    await peer_accounts(tmp_path, book=book).logout(PERSON)
    assert not any(row.startswith(SESSION) for row in book.written)


# -- limits


async def test_a_key_without_limits_and_nobody_are_let_through(tmp_path: Path) -> None:
    accounts = peer_accounts(tmp_path)
    _, caller = await key(accounts)
    for who in (caller, PERSON, LAN, Caller(ip="", key_id="unknown1")):
        assert await accounts.spend(who, 10**9) == Spending()


async def test_above_the_limit_it_is_openais_429(tmp_path: Path) -> None:
    accounts = peer_accounts(tmp_path)
    _, caller = await key(accounts, requests_per_minute=2, tokens_per_minute=10_000)
    first = await accounts.spend(caller, 100)
    assert first.headers == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "60s",
        "x-ratelimit-limit-tokens": "10000",
        "x-ratelimit-remaining-tokens": "9900",
        "x-ratelimit-reset-tokens": "60s",
    }
    await accounts.spend(caller, 100)
    with pytest.raises(HttpRefusal) as refused:
        await accounts.spend(caller, 100)
    error = refused.value
    assert (error.status, error.type, error.code) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(error.headers["Retry-After"]) <= 61
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    assert "x-should-retry" not in error.headers


async def test_the_tokens_of_a_day_are_another_error_which_clients_do_not_repeat(tmp_path: Path) -> None:
    accounts = peer_accounts(tmp_path)
    _, caller = await key(accounts, tokens_per_day=100)
    spending = await accounts.spend(caller, 50)
    spending.ended(100)
    spending.ended(100)  # said twice, it counts once
    with pytest.raises(HttpRefusal) as refused:
        await accounts.spend(caller, 50)
    error = refused.value
    assert (error.status, error.type, error.code) == (429, "insufficient_quota", "insufficient_quota")
    assert error.headers["x-should-retry"] == "false" and int(error.headers["Retry-After"]) == 57_600


async def test_what_a_request_did_not_take_is_there_for_the_next(tmp_path: Path) -> None:
    accounts = peer_accounts(tmp_path)
    _, caller = await key(accounts, tokens_per_minute=1000)
    spending = await accounts.spend(caller, 1000)
    with pytest.raises(HttpRefusal):
        await accounts.spend(caller, 10)
    spending.ended(0)
    assert await accounts.spend(caller, 1000)


async def test_a_limit_that_is_changed_counts_from_the_next_request_on(tmp_path: Path) -> None:
    accounts = peer_accounts(tmp_path)
    _, caller = await key(accounts, requests_per_minute=1)
    await accounts.spend(caller, 0)
    await accounts.keys.change(caller.key_id or "", {"requests_per_minute": 5}, PERSON)
    await accounts.spend(caller, 0)


async def test_what_peers_tell_each_other_holds_the_limit(tmp_path: Path) -> None:
    book, clock = MemoryBook(), Clock()
    here, there = (peer_accounts(tmp_path, book=book, clock=clock) for _ in range(2))
    _, caller = await key(here, requests_per_minute=3)
    for _ in range(3):
        await there.spend(caller, 0)
    here.used_in("there", there.used_out())
    with pytest.raises(HttpRefusal):
        await here.spend(caller, 0)


async def test_with_other_peers_there_a_small_limit_waits_for_the_news_and_is_then_there_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        clock.now += seconds

    accounts = peer_accounts(tmp_path, clock=clock, others=("tower", "cellar"))
    _, caller = await key(accounts, requests_per_minute=3)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    for _ in range(3):
        await accounts.spend(caller, 0)
    assert waited == [pytest.approx(2.5)]
    with pytest.raises(HttpRefusal):
        await accounts.spend(caller, 0)


async def test_only_so_many_requests_wait_for_their_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_MAX", 2)
    accounts = peer_accounts(tmp_path, others=("tower",))
    _, caller = await key(accounts, requests_per_minute=4)
    waiting = [asyncio.create_task(accounts.spend(caller, 0)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(HttpRefusal) as refused:
        await accounts.spend(caller, 0)
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "3")
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert accounts._held == 0


async def test_what_was_used_today_is_kept_in_a_private_file(tmp_path: Path) -> None:
    book = MemoryBook()
    async with peer_accounts(tmp_path, book=book) as accounts:
        _, caller = await key(accounts, tokens_per_day=100)
        (await accounts.spend(caller, 90)).ended(90)
    path = tmp_path / USED_FILE
    assert json.loads(path.read_text())["tokens"] == {caller.key_id: 90}
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    async with peer_accounts(tmp_path, book=book) as accounts:
        with pytest.raises(HttpRefusal):
            await accounts.spend(caller, 20)
        await accounts.spend(caller, 10)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"day": "x", "tokens": {}}', '{"day": 1, "tokens": {"k": "x"}}'])
async def test_a_damaged_file_of_used_tokens_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / USED_FILE).write_text(text)
    async with peer_accounts(tmp_path) as accounts:
        _, caller = await key(accounts, tokens_per_day=100)
        await accounts.spend(caller, 100)


# -- the set-up


async def test_the_machines_are_shown_to_who_has_the_code_only(tmp_path: Path) -> None:
    async with peer_accounts(tmp_path, machines={"m1": "tower"}) as accounts:
        link = accounts.claim.link("http://localhost:8080")
        assert link is not None
        code = link.partition("#setup=")[2]
        assert accounts.setup(LAN, None) == {"needed": True, "machines": []}
        with pytest.raises(WrongCode):
            accounts.setup(LAN, "wrong")
        shown = {"needed": True, "machines": [{"id": "m1", "name": "tower"}]}
        assert accounts.setup(LAN, code) == accounts.setup(PERSON, None) == shown


async def test_setting_up_makes_an_administrator_logs_it_in_and_claims_the_mesh(tmp_path: Path) -> None:
    claimed: list[Any] = []
    async with peer_accounts(tmp_path, machines={"m1": "tower", "m2": "loft"}, claimed=claimed) as accounts:
        code = (accounts.claim.link("") or "").partition("#setup=")[2]
        body = {"code": code, "username": "anna", "password": PASSWORD, "confirm": ["m2"]}
        login = await accounts.set_up(body, LAN)
        assert (login.user["username"], login.user["role"]) == ("anna", "admin")
        assert accounts.sessions.of(login.token) is not None
        assert claimed == [frozenset({"m2"})]
        assert accounts.setup(LAN, None) == {"needed": False, "machines": []}
        with pytest.raises(AlreadyClaimed):
            await accounts.set_up(body, LAN)
        assert await accounts.login("anna", PASSWORD, LAN)


async def test_an_administrator_that_another_peer_made_ends_the_code(tmp_path: Path) -> None:
    async with peer_accounts(tmp_path) as accounts:
        assert accounts.claim.link("") is not None
        await user(accounts)
        assert accounts.claim.link("") is None


async def test_the_first_key_is_handed_out_once(tmp_path: Path) -> None:
    accounts = peer_accounts(tmp_path)
    secret = await accounts.ensure_first_key()
    assert secret is not None and accounts.keys.of_secret(secret) is not None
    assert await accounts.ensure_first_key() is None
