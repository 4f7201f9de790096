"""Log lines over HTTP."""

from __future__ import annotations

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
    """A peer with some lines, or with none."""

    def __init__(self, managed: Managed, url: str, session: aiohttp.ClientSession) -> None:
        self.managed, self._url, self._session = managed, url, session

    async def get(self, path: str, headers: dict[str, str] = ADMIN) -> tuple[int, Any]:
        async with self._session.get(self._url + path, headers=headers) as got:
            return got.status, await got.json()


async def _site(*, has_logs: bool) -> AsyncIterator[Site]:
    managed = Managed()
    services = managed.services(TOKEN)
    listener = Listener(services if has_logs else replace(services, logs=None), [("127.0.0.1", 0)])
    await listener.start()
    async with aiohttp.ClientSession() as session:
        yield Site(managed, f"http://127.0.0.1:{listener.port}", session)
    await listener.close(0)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async for site in _site(has_logs=True):
        yield site


@pytest.fixture
async def silent() -> AsyncIterator[Site]:
    """A peer that keeps no logs."""
    async for site in _site(has_logs=False):
        yield site


async def test_a_peer_shows_its_own_lines(site: Site) -> None:
    status, lines = await site.get("/api/logs?level=warning&since=10m&grep=worker%20died&limit=100")
    assert (status, lines[0]["message"]) == (200, "ready")
    assert site.managed.asked == [
        ("lines", {"level": "warning", "since": "10m", "grep": "worker died", "limit": "100"})
    ]


@pytest.mark.parametrize("query", ["level=loud", "limit=0", "limit=10001", "limit=x", "grep=" + "x" * 257, "a=%1b"])
async def test_a_query_that_cannot_be_is_400(site: Site, query: str) -> None:
    status, answer = await site.get(f"/api/logs?{query}")
    assert (status, list(answer), site.managed.asked) == (400, ["error"], [])


async def test_lines_tell_addresses_and_are_for_administrators(site: Site) -> None:
    for path in ("/api/logs", "/api/agents/attic/logs", "/api/nodes/attic/logs"):
        assert (await site.get(path, {}))[0] == 401
    assert site.managed.asked == []


async def test_a_peer_without_logs_says_so(silent: Site) -> None:
    status, answer = await silent.get("/api/logs")
    assert status == 503 and "keeps no logs" in answer["error"]
