"""The settings of the mesh over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from tests.fixtures.managed import Managed
from web.listener import Listener

TOKEN = "control-token-of-the-tests"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}


class Site:
    """A peer that coordinates."""

    def __init__(self, managed: Managed, url: str, session: aiohttp.ClientSession) -> None:
        self.managed, self._url, self._session = managed, url, session

    async def ask(self, method: str, body: Any = None, headers: dict[str, str] = ADMIN) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body)
        async with self._session.request(method, f"{self._url}/api/settings", data=data, headers=headers) as got:
            return got.status, await got.json()


async def _site(*, has_agents: bool) -> AsyncIterator[Site]:
    managed = Managed()
    services = managed.services(TOKEN)
    listener = Listener(services if has_agents else replace(services, agents=None), [("127.0.0.1", 0)])
    await listener.start()
    async with aiohttp.ClientSession() as session:
        yield Site(managed, f"http://127.0.0.1:{listener.port}", session)
    await listener.close(0)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async for site in _site(has_agents=True):
        yield site


@pytest.fixture
async def unmanaged() -> AsyncIterator[Site]:
    """A peer without settings of a mesh."""
    async for site in _site(has_agents=False):
        yield site


async def test_what_is_changed_is_read(site: Site) -> None:
    for method, body, days in (("GET", None, 7), ("PUT", {"history_days": 3}, 3), ("GET", None, 3)):
        status, answer = await site.ask(method, body)
        assert (status, answer["settings"]["history_days"]["value"]) == (200, days)
    assert site.managed.asked == [("change settings", {"history_days": 3})]


@pytest.mark.parametrize("value", [None, True, 5, 5.5, "full"])
async def test_a_setting_may_be_any_plain_value(site: Site, value: Any) -> None:
    assert (await site.ask("PUT", {"history_days": value}))[0] == 200
    assert site.managed.settings == {"history_days": value}


@pytest.mark.parametrize(
    "body", [[], 5, {"a": []}, {"a": {}}, {"a": "x" * 4097}, {str(n): 1 for n in range(65)}, {"a": "\x00"}]
)
async def test_what_is_no_setting_is_400(site: Site, body: Any) -> None:
    status, answer = await site.ask("PUT", body)
    assert (status, list(answer), site.managed.asked) == (400, ["error"], [])


async def test_a_setting_that_nobody_knows_is_refused_by_who_knows_them(site: Site) -> None:
    assert (await site.ask("PUT", {"colour": "red"}))[0] == 404


async def test_reading_wants_a_login_and_writing_an_administrator(site: Site) -> None:
    assert (await site.ask("GET", headers={}))[0] == 401
    assert (await site.ask("PUT", {"history_days": 1}, {}))[0] == 401
    assert site.managed.settings == {"history_days": 7}


async def test_a_peer_without_them_says_so(unmanaged: Site) -> None:
    for method, body in (("GET", None), ("PUT", {})):
        status, answer = await unmanaged.ask(method, body)
        assert status == 503 and "settings" in answer["error"]
