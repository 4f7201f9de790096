"""The history over HTTP: what is asked of the facet, what is answered, what is written down of who looked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import pytest

from inference.errors import InvalidRequest, ModelUnavailable
from tests.fixtures.managed import Managed, record
from web.history import LOOKS_MAX, _Looks
from web.listener import Listener
from web.services import Caller

TOKEN = "control-token-of-the-tests"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
RECORDS = "/api/dashboard/request-responses"
EVERYTHING = [
    RECORDS,
    f"{RECORDS}/r1",
    f"{RECORDS}/export",
    "/api/dashboard/stats",
    "/api/dashboard/overview",
    "/api/audit",
]


@dataclass(frozen=True)
class Site:
    """A peer that coordinates."""

    managed: Managed
    url: str
    session: aiohttp.ClientSession

    async def get(
        self, path: str, headers: dict[str, str] = ADMIN, method: str = "GET"
    ) -> tuple[int, Any, dict[str, str]]:
        async with self.session.request(method, self.url + path, headers=headers) as got:
            text = await got.text()
            found = {name.lower(): value for name, value in got.headers.items()}
            return got.status, json.loads(text) if text and got.content_type == "application/json" else text, found


@asynccontextmanager
async def _site(*, has_history: bool = True) -> AsyncIterator[Site]:
    managed = Managed()
    services = managed.services(TOKEN)
    listener = Listener(services if has_history else replace(services, history=None), [("127.0.0.1", 0)])
    await listener.start()
    async with aiohttp.ClientSession() as session:
        yield Site(managed, f"http://127.0.0.1:{listener.port}", session)
    await listener.close(0)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with _site() as site:
        yield site


async def test_a_page_of_records_is_what_the_history_says(site: Site) -> None:
    """F155: newest first, with the filters as they were sent."""
    status, answer, _ = await site.get(
        f"{RECORDS}?page=2&per_page=25&model=ti&agent=attic&status=error&from=2026-11-25&to=2026-11-26T00:00:00Z&q=a%26b"
    )
    assert status == 200
    assert (answer["records"], answer["total_count"], answer["incomplete"]) == ([record()], 1, [])
    assert site.managed.asked == [
        (
            "records",
            {
                "page": "2",
                "per_page": "25",
                "model": "ti",
                "agent": "attic",
                "status": "error",
                "from": "2026-11-25",
                "to": "2026-11-26T00:00:00Z",
                "q": "a&b",
            },
        )
    ]


async def test_one_record_comes_with_its_bodies_and_an_unknown_one_is_404(site: Site) -> None:
    """F156."""
    assert (await site.get(f"{RECORDS}/r1"))[:2] == (200, record())
    status, answer, _ = await site.get(f"{RECORDS}/r2")
    assert (status, answer) == (404, {"error": "There is no request 'r2' in the history."})
    assert (await site.get(f"{RECORDS}/{'x' * 500}"))[0] == 404
    assert [call for call in site.managed.asked if call[0] == "record"] == [("record", "r1"), ("record", "r2")]


@pytest.mark.parametrize(
    ("query", "content_type"),
    [("", "application/json"), ("?format=json", "application/json"), ("?format=csv", "text/csv")],
)
async def test_an_export_is_a_file_with_a_name(site: Site, query: str, content_type: str) -> None:
    """F157."""
    status, _, headers = await site.get(f"{RECORDS}/export{query}")
    assert (status, headers["content-type"]) == (200, content_type)
    assert headers["content-disposition"] == 'attachment; filename="request-responses.json"'


async def test_a_file_name_holds_nothing_that_a_header_or_a_disk_stumbles_over(site: Site) -> None:
    site.managed.filename = 'a"b\r\nSet-Cookie: x/../あ.csv'
    _, _, headers = await site.get(f"{RECORDS}/export")
    assert headers["content-disposition"] == 'attachment; filename="a_b__Set-Cookie__x_..__.csv"'
    assert "set-cookie" not in headers


async def test_a_large_export_comes_in_pieces_and_whole(site: Site) -> None:
    site.managed.pieces = [bytes([65 + n % 26]) * 70_000 for n in range(40)]
    _, text, headers = await site.get(f"{RECORDS}/export?format=csv")
    assert text.encode() == b"".join(site.managed.pieces)
    assert headers["transfer-encoding"] == "chunked"


async def test_an_export_that_fails_is_an_error_before_its_first_bytes_and_a_broken_connection_after(
    site: Site,
) -> None:
    site.managed.pieces, site.managed.broken_after = [b"x" * 70_000] * 3, 0
    status, answer, _ = await site.get(f"{RECORDS}/export")
    assert status == 500 and "attic" not in answer["error"]
    site.managed.broken_after = 2
    with pytest.raises(aiohttp.ClientPayloadError):
        await site.get(f"{RECORDS}/export")


async def test_asking_for_the_head_of_an_export_makes_none_of_it(site: Site) -> None:
    status, text, headers = await site.get(f"{RECORDS}/export", method="HEAD")
    assert (status, text, site.managed.pieces_made) == (200, "", 0)
    assert "attachment" in headers["content-disposition"]


async def test_the_overview_holds_peers_totals_and_sixty_minutes(site: Site) -> None:
    status, answer, _ = await site.get("/api/dashboard/overview")
    assert status == 200 and len(answer["history"]) == 60
    assert {"nodes", "stats", "history", "generated_at", "generation_time_ms"} <= answer.keys()
    assert [node["ip_address"] for node in answer["nodes"]] == ["192.168.1.20", "192.168.1.21", "192.168.1.22"]
    assert (await site.get("/api/dashboard/stats"))[1] == answer["stats"]


async def test_who_looks_is_written_down_records_and_files_each_time_lists_once_in_a_while(site: Site) -> None:
    for path in (
        RECORDS,
        f"{RECORDS}?page=2&per_page=10",
        f"{RECORDS}?q=secret&model=tiny",
        f"{RECORDS}/r1",
        f"{RECORDS}/r1",
        f"{RECORDS}/nothing",
        f"{RECORDS}/export?format=csv&status=error",
        "/api/dashboard/stats",
        "/api/audit",
    ):
        await site.get(path)
    notes = [(note.action, note.target, note.detail, note.caller.key_id) for note in site.managed.notes]
    assert notes == [
        ("history.list", "", "", "control"),
        ("history.list", "model=tiny&q=***", "", "control"),
        ("history.view", "r1", "", "control"),
        ("history.view", "r1", "", "control"),
        ("history.export", "status=error", "csv", "control"),
    ]
    entries = (await site.get("/api/audit"))[1]["entries"]
    assert [entry["action"] for entry in entries][-1] == "history.export"


def test_looks_are_told_apart_by_who_and_at_what_and_are_not_kept_for_ever() -> None:
    looks = _Looks()
    ann, bob = Caller(ip="1", user_id="ann"), Caller(ip="1", user_id="bob")
    assert [looks.is_new(ann, ""), looks.is_new(ann, ""), looks.is_new(bob, ""), looks.is_new(ann, "q=***")] == [
        True, False, True, True,
    ]  # fmt: skip
    for number in range(LOOKS_MAX):
        assert looks.is_new(Caller(ip=str(number)), "")
    assert len(looks._seen) == LOOKS_MAX
    assert looks.is_new(ann, "")


@pytest.mark.parametrize(
    "query",
    [
        "page=x",
        "page=1e9",
        "page=99999999999999999999",
        "per_page=ten",
        "page=1&page=2",
        "model=" + "x" * 513,
        "q=a%00b",
        "q=a%0ab",
        "from=" + "1" * 65,
        "status=fine",
        "bodies=yes",
        "&".join(f"x{n}=1" for n in range(40)),
    ],
)
async def test_a_query_that_has_not_the_form_is_400_and_reaches_nobody(site: Site, query: str) -> None:
    status, answer, _ = await site.get(f"{RECORDS}?{query}")
    assert (status, list(answer), site.managed.asked) == (400, ["error"], [])
    assert (await site.get(f"{RECORDS}/export?format=xml"))[0] == 400


@pytest.mark.parametrize(("page", "per_page"), [("0", "15"), ("-1", "0"), ("1", "1000")])
async def test_pages_that_are_merely_odd_are_the_historys_to_mend(site: Site, page: str, per_page: str) -> None:
    assert (await site.get(f"{RECORDS}?page={page}&per_page={per_page}"))[0] == 200


@pytest.mark.parametrize(
    ("error", "status"), [(InvalidRequest("Invalid 'from': no time."), 400), (ModelUnavailable("Locked."), 503)]
)
async def test_what_the_history_cannot_do_is_said_in_its_words(site: Site, error: Exception, status: int) -> None:
    site.managed.error = error
    for path in EVERYTHING:
        assert (await site.get(path))[:2] == (status, {"error": str(error)})
    assert site.managed.notes == []


@pytest.mark.parametrize("path", EVERYTHING)
async def test_a_peer_without_history_says_so(path: str) -> None:
    async with _site(has_history=False) as site:
        status, answer, headers = await site.get(path)
        assert status == 503 and "keeps no history" in answer["error"] and headers["retry-after"]


@pytest.mark.parametrize("path", EVERYTHING)
async def test_being_on_this_machine_is_not_enough(site: Site, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer sk-mesh-guessed"}, {"x-mesh-context": "e30="}):
        status, answer, _ = await site.get(path, headers)
        assert (status, list(answer)) == (401, ["error"])
    assert (site.managed.asked, site.managed.notes) == ([], [])
