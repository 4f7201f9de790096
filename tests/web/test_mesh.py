"""The routes of the mesh: what they pass on, what they hide, what they refuse. Real sockets, a scripted mesh."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures.scripted_mesh import ATTIC, KITCHEN, LINE, TOWER, ScriptedMesh, services
from web.listener import Listener
from web.mesh import normal_digits, without_addresses

TOKEN = "control-token-of-the-tests"
CONTROL = {"Authorization": f"Bearer {TOKEN}"}
# Method, path and body of every route that changes something or tells what only this machine's owner may know.
GUARDED: list[tuple[str, str, Any]] = [
    ("GET", "/api/mesh/identity", None),
    ("GET", "/api/mesh/joins", None),
    ("POST", "/api/mesh/door", {"minutes": 5}),
    ("POST", "/api/mesh/approve", {"who": "481920"}),
    ("POST", "/api/mesh/deny", {"who": "r1"}),
    ("POST", "/api/mesh/invite", {}),
    ("POST", "/api/mesh/join", {"to": LINE}),
    ("POST", "/api/mesh/leave", None),
    ("POST", "/api/mesh/peers/attic/rename", {"name": "loft"}),
    ("POST", "/api/mesh/peers/attic/revoke", None),
    ("POST", "/api/mesh/peers/kitchen/trust", None),
]
LISTS = ["/api/mesh", "/api/agents", "/api/nodes", "/api/agents/attic", "/api/nodes/attic"]


class Site:
    """The listener of one peer, and calls to it."""

    def __init__(self, mesh: ScriptedMesh, url: str, session: aiohttp.ClientSession) -> None:
        self.mesh, self._url, self._session = mesh, url, session

    async def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] = CONTROL) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body)
        async with self._session.request(method, self._url + path, data=data, headers=headers) as answer:
            return answer.status, await answer.json()


async def _site(mesh: ScriptedMesh, *, has_mesh: bool) -> AsyncIterator[Site]:
    listener = Listener(services(mesh if has_mesh else None, TOKEN), [("127.0.0.1", 0)])
    await listener.start()
    async with aiohttp.ClientSession() as session:
        yield Site(mesh, f"http://127.0.0.1:{listener.port}", session)
    await listener.close(0)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async for site in _site(ScriptedMesh(), has_mesh=True):
        yield site


@pytest.fixture
async def alone() -> AsyncIterator[Site]:
    """A peer that has no mesh."""
    async for site in _site(ScriptedMesh(), has_mesh=False):
        yield site


@pytest.mark.parametrize("path", LISTS)
async def test_programs_of_this_machine_see_the_mesh_but_no_address(site: Site, path: str) -> None:
    """F75: `GET /api/agents`, `/api/nodes`, `/api/mesh`: addresses are empty unless admin."""
    status, answer = await site.ask("GET", path, headers={})
    assert status == 200
    assert "192.168." not in json.dumps(answer)
    assert '"ip_address": ""' in json.dumps(answer)
    _, told = await site.ask("GET", path)
    assert "192.168.1.21" in json.dumps(told)
    assert without_addresses(told) == answer


async def test_the_overview_is_passed_on_whole(site: Site) -> None:
    _, answer = await site.ask("GET", "/api/mesh")
    assert answer == site.mesh.overview()


@pytest.mark.parametrize("path", ["/api/agents", "/api/nodes"])
async def test_agents_and_nodes_are_the_same_list(site: Site, path: str) -> None:
    """F164-F165: every peer is in the list, under both paths."""
    _, answer = await site.ask("GET", path)
    assert [(row["id"], row["machine_name"], row["status"]) for row in answer] == [
        (TOWER, "tower", "online"),
        (ATTIC, "attic", "online"),
        (KITCHEN, "kitchen", "online"),
    ]


async def test_one_agent_carries_its_id_under_both_names_and_an_unknown_one_names_the_nearest(site: Site) -> None:
    _, answer = await site.ask("GET", "/api/agents/bbbbbb")
    assert answer["agent_id"] == answer["node_id"] == answer["id"] == ATTIC
    assert await site.ask("GET", "/api/nodes/at%2Fic") == (
        404,
        {"error": "There is no machine 'at/ic'; nearest: attic."},
    )


@pytest.mark.parametrize(("method", "path", "body"), GUARDED)
async def test_governing_wants_the_control_token_on_this_machine(site: Site, method: str, path: str, body: Any) -> None:
    for headers in ({}, {"Authorization": "Bearer guessed"}, CONTROL | {"X-Forwarded-For": "192.168.1.9"}):
        status, answer = await site.ask(method, path, body, headers)
        assert (status, list(answer)) == (401, ["error"])
    assert site.mesh.asked == []
    status, answer = await site.ask(method, path, body)
    assert status in (200, 201), answer


@pytest.mark.parametrize("path", LISTS)
async def test_the_lists_are_for_this_machine(site: Site, path: str) -> None:
    status, _ = await site.ask("GET", path, headers={"Via": "1.1 proxy"})
    assert status == 401


@pytest.mark.parametrize(("method", "path", "body"), [*GUARDED, *(("GET", path, None) for path in LISTS)])
async def test_a_peer_without_mesh_says_so(alone: Site, method: str, path: str, body: Any) -> None:
    status, answer = await alone.ask(method, path, body)
    assert status == 404
    assert answer == {"error": "This peer has no mesh: it serves its own machine only."}


@pytest.mark.parametrize(
    ("path", "body", "asked"),
    [
        ("/api/mesh/door", {"minutes": 0}, ("door", 0.0)),
        ("/api/mesh/door", {"minutes": 1440}, ("door", 1440.0)),
        ("/api/mesh/approve", {"who": "481920"}, ("approve", "481 920")),
        ("/api/mesh/approve", {"who": " 481-920 "}, ("approve", "481 920")),
        ("/api/mesh/deny", {"who": "r1"}, ("deny", "r1")),
        ("/api/mesh/invite", {}, ("invite", 1, 24.0)),
        ("/api/mesh/invite", {"uses": 1000, "hours": 0.5}, ("invite", 1000, 0.5)),
        ("/api/mesh/join", {"to": f" {LINE}\n"}, ("join", LINE)),
        ("/api/mesh/join", {"to": LINE, "bring_history": True}, ("join", LINE, "and its history")),
        ("/api/mesh/peers/bbbbbb/rename", {"name": "Dachboden"}, ("rename", "bbbbbb", "Dachboden")),
        (f"/api/mesh/peers/{ATTIC}/revoke", None, ("revoke", ATTIC)),
        ("/api/mesh/peers/kitchen/trust", {}, ("trust", "kitchen")),
        ("/api/mesh/leave", None, ("leave",)),
    ],
)
async def test_what_is_asked_reaches_the_mesh(site: Site, path: str, body: Any, asked: tuple[Any, ...]) -> None:
    status, answer = await site.ask("POST", path, body)
    assert status in (200, 201), answer
    assert site.mesh.asked == [asked]


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("/api/mesh/door", {}, "'minutes'"),
        ("/api/mesh/door", {"minutes": "5"}, "'minutes'"),
        ("/api/mesh/door", {"minutes": -1}, "'minutes'"),
        ("/api/mesh/door", {"minutes": 1441}, "<= 1440"),
        ("/api/mesh/door", {"minutes": True}, "'minutes'"),
        ("/api/mesh/door", [], "object"),
        ("/api/mesh/approve", {}, "'who'"),
        ("/api/mesh/approve", {"who": " "}, "empty"),
        ("/api/mesh/deny", {"who": 481920}, "'who'"),
        ("/api/mesh/deny", {"who": "1" * 129}, "128"),
        ("/api/mesh/invite", {"uses": 0}, "'uses'"),
        ("/api/mesh/invite", {"uses": 1001}, "<= 1000"),
        ("/api/mesh/invite", {"uses": 1.5}, "'uses'"),
        ("/api/mesh/invite", {"hours": 0}, "'hours'"),
        ("/api/mesh/invite", {"hours": 8761}, "<= 8760"),
        ("/api/mesh/join", {"to": "a\x1bb"}, "printed"),
        ("/api/mesh/join", {"to": "x" * 4097}, "4096"),
        ("/api/mesh/peers/attic/rename", {"name": ""}, "empty"),
        ("/api/mesh/peers/attic/rename", {"name": "x" * 65}, "64"),
        ("/api/mesh/peers/attic/rename", {"name": "two\nlines"}, "printed"),
        ("/api/mesh/peers/attic/rename", {"name": "\u202eevil"}, "printed"),
        (f"/api/mesh/peers/{'x' * 129}/revoke", None, "128"),
        ("/api/mesh/peers/a%0Ab/trust", None, "printable"),
    ],
)
async def test_a_bad_request_names_what_is_wrong_and_reaches_nobody(
    site: Site, path: str, body: Any, word: str
) -> None:
    status, answer = await site.ask("POST", path, body)
    assert (status, list(answer)) == (400, ["error"])
    assert word in answer["error"]
    assert site.mesh.asked == []


async def test_an_invitation_is_made_not_read(site: Site) -> None:
    status, answer = await site.ask("POST", "/api/mesh/invite", {})
    assert (status, answer["command"]) == (201, f"llm-router join '{LINE}'")


async def test_digits_that_nobody_shows_are_404_in_the_words_of_the_mesh(site: Site) -> None:
    status, answer = await site.ask("POST", "/api/mesh/approve", {"who": "111111"})
    assert (status, answer["error"]) == (
        404,
        "No machine that asks to join shows '111 111'; those that ask show 481 920.",
    )


async def test_the_well_known_page_says_version_mesh_and_port_and_nothing_else(site: Site, alone: Site) -> None:
    """F37, F118: what another peer asks first."""
    path = "/.well-known/llm-router"
    assert await site.ask("GET", path, headers={}) == (
        200,
        {"version": "0.1.0", "mesh": "k3f9q2", "peer_port": 8081},
    )
    assert (await alone.ask("GET", path, headers={}))[1] == {"version": "0.1.0", "mesh": None, "peer_port": None}


@given(st.text(alphabet=" -'\"", max_size=3), st.from_regex(r"[0-9]{6}", fullmatch=True), st.integers(0, 6))
def test_digits_are_the_same_however_they_are_typed(noise: str, digits: str, at: int) -> None:
    assert normal_digits(digits[:at] + noise + digits[at:]) == f"{digits[:3]} {digits[3:]}"


@pytest.mark.parametrize("who", ["r1", "12345", "1234567", "٤٨١٩٢٠", "48192o"])
def test_what_is_not_six_digits_stays_as_it_is(who: str) -> None:
    assert normal_digits(who) == who


def test_addresses_are_blank_at_any_depth_and_nothing_else_is() -> None:
    value = {"a": [{"ip_address": "1.2.3.4", "name": "n"}], "addresses": ["x"], "b": ({"address": "y"},), "c": 1}
    assert without_addresses(value) == {
        "a": [{"ip_address": "", "name": "n"}],
        "addresses": [],
        "b": [{"address": ""}],
        "c": 1,
    }
