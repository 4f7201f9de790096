"""`llm-router users`: the real command line against the real HTTP surface over real accounts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mesh import control
from mesh.accounts.accounts import Accounts
from mesh.accounts.errors import BadLogin
from mesh.cli.failure import Exit
from tests.fixtures.peer_accounts import PASSWORD, PERSON, peer_accounts
from tests.fixtures.scripted_mesh import services
from web.listener import Listener

if TYPE_CHECKING:
    from tests.mesh.cli.conftest import Run


@pytest.fixture
async def accounts(tmp_path: Path) -> AsyncIterator[Accounts]:
    """Those of the peer that control.json of the data folder points at; an admin is there, anna."""
    async with peer_accounts(tmp_path) as found:
        await found.users.create({"username": "anna", "password": PASSWORD, "role": "admin"}, PERSON)
        surface = dataclasses.replace(services(None, "t0ken"), accounts=found.facet)
        listener = Listener(surface, [("127.0.0.1", 0)])
        await listener.start()
        url = f"http://127.0.0.1:{listener.port}"
        control.publish(tmp_path, port=listener.port, url=url, version="0.3.0", token="t0ken")
        yield found
        await listener.close(0)


async def test_users_are_listed_without_anything_secret(accounts: Accounts, run: Run) -> None:
    result = await run("users")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0][:3] == ["NAME", "ROLE", "SINCE"]
    assert lines[1][:3] == ["anna", "admin", "2027-01-15T08:00:00Z"]
    listed = json.loads((await run("users", "list", "--json")).stdout)
    assert [user["username"] for user in listed["users"]] == ["anna"]
    assert "argon2" not in result.stdout + json.dumps(listed)


async def test_a_user_is_added_with_a_password_from_a_pipe_and_logs_in(accounts: Accounts, run: Run) -> None:
    result = await run("users", "add", "bert", "--password-stdin", stdin="a long password\n")
    assert (result.exit_code, result.stdout) == (0, "bert may log in as viewer\n")
    assert (await accounts.users.checked("bert", "a long password")).role == "viewer"
    result = await run("users", "add", "carl", "--role", "admin", "--password-stdin", "--json", stdin="a long password")
    assert json.loads(result.stdout)["role"] == "admin"


async def test_without_a_terminal_and_a_pipe_there_is_nobody_to_ask(accounts: Accounts, run: Run) -> None:
    result = await run("users", "add", "bert")
    assert result.exit_code == Exit.USAGE and "--password-stdin" in result.stderr
    assert len(accounts.users.all()) == 1


@pytest.mark.parametrize("command", ["add", "passwd", "reset-password", "role"])
async def test_no_command_takes_a_password_as_an_argument(run: Run, command: str) -> None:
    """Everybody on the machine sees arguments."""
    text = (await run("users", command, "--help")).output
    assert "--password " not in text and "PASSWORD" not in text.replace("--password-stdin", "")


async def test_a_short_password_is_a_mistake_of_usage_and_is_not_shown(accounts: Accounts, run: Run) -> None:
    result = await run("users", "passwd", "anna", "--password-stdin", stdin="s3cret\n")
    assert result.exit_code == Exit.USAGE and "s3cret" not in result.output
    assert await accounts.users.checked("anna", PASSWORD)


async def test_a_password_is_changed(accounts: Accounts, run: Run) -> None:
    result = await run("users", "passwd", "ANNA", "--password-stdin", stdin="another password\n")
    assert result.exit_code == 0 and "another password" not in result.output
    assert await accounts.users.checked("anna", "another password")


async def test_a_lost_password_is_made_anew_and_printed_once(accounts: Accounts, run: Run) -> None:
    """The way back in when every administrator's password is lost: it needs this machine only."""
    result = await run("users", "reset-password", "anna")
    password = result.stdout.strip()
    assert result.exit_code == 0 and len(password) == 16
    assert await accounts.users.checked("anna", password)
    with pytest.raises(BadLogin):
        await accounts.users.checked("anna", PASSWORD)
    again = json.loads((await run("users", "reset-password", "anna", "--json")).stdout)
    assert again["username"] == "anna" and again["password"] != password


async def test_the_last_administrator_stays_one(accounts: Accounts, run: Run) -> None:
    for arguments in (("role", "anna", "viewer"), ("rm", "anna", "--yes")):
        result = await run("users", *arguments)
        assert result.exit_code == Exit.FAILED
        assert "last administrator" in result.stderr
    assert accounts.users.has_admin()


async def test_roles_change_and_users_go(accounts: Accounts, run: Run) -> None:
    await run("users", "add", "bert", "--password-stdin", stdin="a long password\n")
    assert (await run("users", "role", "bert", "admin")).stdout == "bert is admin now\n"
    asked = await run("users", "rm", "anna")
    assert asked.exit_code == Exit.USAGE and "ends its logins" in asked.stderr
    assert (await run("users", "rm", "anna", "--yes")).stdout == "anna is no user any more\n"
    assert [user.username for user in accounts.users.all()] == ["bert"]


@pytest.mark.parametrize(
    "arguments", [("passwd", "nobody", "--password-stdin"), ("role", "nobody", "admin"), ("rm", "nobody", "--yes")]
)
async def test_somebody_unknown_is_not_found(accounts: Accounts, run: Run, arguments: tuple[str, ...]) -> None:
    result = await run("users", *arguments, stdin="a long password\n")
    assert result.exit_code == Exit.NOT_FOUND and "users list" in result.stderr


async def test_a_name_with_a_slash_is_somebody_unknown_and_no_other_url(accounts: Accounts, run: Run) -> None:
    result = await run("users", "rm", "../api-keys/x", "--yes")
    assert result.exit_code == Exit.NOT_FOUND
