"""`llm-router keys`: the real command line against the real HTTP surface over real accounts."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mesh import control
from mesh.accounts.accounts import Accounts
from mesh.accounts.limits import Quota
from mesh.cli import keys as module
from mesh.cli.failure import Exit
from tests.fixtures.peer_accounts import peer_accounts
from tests.fixtures.scripted_mesh import services
from web.guards import SCOPES
from web.listener import Listener

if TYPE_CHECKING:
    from tests.mesh.cli.conftest import Run


@pytest.fixture
async def accounts(tmp_path: Path) -> AsyncIterator[Accounts]:
    """Those of the peer that control.json of the data folder points at."""
    async with peer_accounts(tmp_path, clock=time.time) as found:
        surface = dataclasses.replace(services(None, "t0ken"), accounts=found.facet)
        listener = Listener(surface, [("127.0.0.1", 0)])
        await listener.start()
        url = f"http://127.0.0.1:{listener.port}"
        control.publish(tmp_path, port=listener.port, url=url, version="0.3.0", token="t0ken")
        yield found
        await listener.close(0)


async def test_a_key_is_the_only_thing_on_stdout_and_works(accounts: Accounts, run: Run) -> None:
    result = await run("keys", "create", "laptop")
    secret = result.stdout.strip()
    assert result.exit_code == 0 and secret not in result.stderr and "this once" in result.stderr
    found = accounts.keys.of_secret(secret)
    assert found is not None and found.key_name == "laptop" and found.scopes == {"inference"}


async def test_every_field_has_an_option(accounts: Accounts, run: Run) -> None:
    before = time.time()
    result = await run(
        *(
            "keys",
            "create",
            "robot",
            "--scope",
            "inference",
            "--scope",
            "cloud",
            "--model",
            "hf/qwen/*",
            "--model",
            "x",
        ),
        *("--rpm", "60", "--tpm", "100000", "--tpd", "1000000", "--expires", "30d", "--recording", "off", "--json"),
    )
    made = json.loads(result.stdout)
    key = accounts.keys.find(made["id"])
    assert key is not None
    assert key.quota == Quota(requests_per_minute=60, tokens_per_minute=100_000, tokens_per_day=1_000_000)
    assert (key.scopes, key.models, key.recording) == (("inference", "cloud"), ("hf/qwen/*", "x"), "off")
    assert key.expires_at is not None and 30 * 86_400 - 2 <= key.expires_at - before <= 30 * 86_400 + 60


async def test_keys_are_listed_and_shown_without_their_secrets(accounts: Accounts, run: Run) -> None:
    empty = await run("keys")
    assert "keys create" in empty.stderr
    secret = (await run("keys", "create", "laptop", "--tpd", "5000")).stdout.strip()
    listed = await run("keys")
    shown = await run("keys", "show", "laptop")
    raw = await run("keys", "list", "--json")
    assert "laptop" in listed.stdout and "5,000 tokens/day" in listed.stdout and secret[:16] in listed.stdout
    assert "tokens per day" in shown.stdout
    assert json.loads(raw.stdout)["keys"][0]["name"] == "laptop"
    assert not any(secret[17:] in result.output or "sha256" in result.output for result in (listed, shown, raw))


async def test_a_revoked_key_is_none(accounts: Accounts, run: Run) -> None:
    secret = (await run("keys", "create", "laptop")).stdout.strip()
    asked = await run("keys", "revoke", "laptop")
    assert asked.exit_code == Exit.USAGE and "refused at once" in asked.stderr
    assert (await run("keys", "revoke", "laptop", "--yes")).stdout == "laptop is revoked\n"
    found = accounts.keys.of_secret(secret)
    assert found is not None and found.refusal == "API key revoked"
    again = await run("keys", "revoke", "laptop", "--yes")
    assert again.exit_code == Exit.NOT_FOUND


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--expires", "tomorrow"), Exit.FAILED),
        (("--scope", "root"), Exit.USAGE),
        (("--rpm", "0"), Exit.USAGE),
        (("--recording", "some"), Exit.USAGE),
        (("--model", ""), Exit.FAILED),
    ],
)
async def test_what_a_key_cannot_be_is_said(
    accounts: Accounts, run: Run, arguments: tuple[str, ...], code: Exit
) -> None:
    result = await run("keys", "create", "laptop", *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert accounts.keys.all() == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2030-01-31T12:00:00Z", "2030-01-31T12:00:00Z"), ("1900000000", 1_900_000_000), ("soon", "soon"), (None, None)],
)
def test_a_time_goes_to_the_peer_as_it_is(text: str | None, expected: object) -> None:
    assert module._moment(text) == expected


def test_the_scopes_are_the_guards_own() -> None:
    assert set(module.SCOPES) == SCOPES
