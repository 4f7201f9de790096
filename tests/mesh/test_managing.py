"""What people say of peers and settings: where it goes, what is refused, who is asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gossip.identity import Identity, uuid_of
from inference.errors import InferenceError, InvalidRequest
from mesh.config import load
from mesh.governing import Refused
from mesh.live import LiveSettings
from mesh.managing import Managing, noted
from tests.fixtures.lone_peer import peering
from web.services import AuditNote, Caller

ANNA = Caller(ip="10.0.0.9", username="anna", role="admin")


class Rows(dict[str, dict[str, Any]]):
    """An admin map of one."""

    async def put(self, key: str, fields: Mapping[str, Any]) -> None:
        self[key] = self.get(key, {}) | dict(fields)

    async def end(self, key: str, reason: str) -> None:
        self.pop(key, None)


class Servers:
    """Registered servers: only "ollama" is known."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def _known(self, who: str, what: str) -> None:
        if who != "ollama":
            raise Refused(f"There is no {who}.", status=404, code="agent_not_found")
        self.asked.append(what)

    async def settings(self, who: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        self._known(who, "settings")
        return {"id": who}

    async def disconnect(self, who: str) -> None:
        self._known(who, "disconnect")

    async def enable(self, who: str) -> None:
        self._known(who, "enable")

    async def delete(self, who: str) -> None:
        self._known(who, "delete")

    async def metrics(self, who: str, body: Mapping[str, Any]) -> None:
        self._known(who, "metrics")


class House:
    """A mesh of two: this peer and "tower", which was never seen."""

    def __init__(self, folder: Path) -> None:
        self.peering = peering(folder / "data", [])
        self.tower = Identity.generate()
        roster = self.peering.home.roster
        self.peering.agent.set_roster(
            roster.admit(self.peering.identity, self.tower.certificate_der, "tower", "token", "active", 1_000_000.0)
        )
        self.rows = Rows()
        self.servers = Servers()
        self.audit: list[AuditNote] = []
        self.managing = Managing(
            rows=self.rows,
            overview=self.peering.overview,
            servers=self.servers,
            live=LiveSettings(load({}, {}), self.rows.get),
            revoke=self.peering.governing.revoke,
            audit=self.audit.append,
        )


@pytest.fixture
async def house(tmp_path: Path) -> House:
    return House(tmp_path)


async def test_what_is_written_of_a_peer_is_kept_under_its_id_and_told(house: House) -> None:
    """F83: name, tags and notes of a peer."""
    answer = await house.managing.settings("tower", {"custom_name": " The Tower ", "tags": ["gpu", " ", "gpu"]}, ANNA)
    assert answer["id"] == str(uuid_of(house.tower.peer_id))
    assert (answer["custom_name"], answer["tags"], answer["notes"]) == ("The Tower", ["gpu"], None)
    await house.managing.settings("tower", {"notes": "under the stairs"}, ANNA)
    assert house.managing.notes(house.tower.peer_id)["custom_name"] == "The Tower"
    await house.managing.settings("tower", {"custom_name": ""}, ANNA)
    assert house.managing.notes(house.tower.peer_id)["custom_name"] is None
    assert [note.action for note in house.audit] == ["agent.settings"] * 3


async def test_a_cordon_is_put_and_taken_away(house: House) -> None:
    """C27, F84: disconnecting is a cordon, until the peer is enabled again."""
    await house.managing.disconnect("tower", ANNA)
    assert house.managing.is_cordoned(house.tower.peer_id)
    await house.managing.enable("tower", ANNA)
    assert not house.managing.is_cordoned(house.tower.peer_id)
    assert [note.action for note in house.audit] == ["agent.disconnect", "agent.enable"]


async def test_who_is_no_peer_is_asked_for_among_the_registered_servers(house: House) -> None:
    await house.managing.settings("ollama", {}, ANNA)
    await house.managing.disconnect("ollama", ANNA)
    await house.managing.enable("ollama", ANNA)
    await house.managing.metrics("ollama", {})
    await house.managing.delete("ollama", False, ANNA)
    assert house.servers.asked == ["settings", "disconnect", "enable", "metrics", "delete"]
    with pytest.raises(InferenceError) as refused:
        await house.managing.disconnect("nobody", ANNA)
    assert refused.value.status == 404


async def test_deleting_a_peer_revokes_it(house: House) -> None:
    """C27, F85: who is deleted stays so."""
    await house.managing.delete("tower", False, ANNA)
    assert house.tower.peer_id in house.peering.home.roster.revoked
    assert house.audit[-1].action == "agent.delete"


async def test_a_peer_tells_its_own_load(house: House) -> None:
    with pytest.raises(Refused, match="tower is a peer"):
        await house.managing.metrics("tower", {})


async def test_settings_of_the_mesh_change_together_or_not_at_all(house: House) -> None:
    with pytest.raises(InvalidRequest):
        await house.managing.change_mesh_settings({"history_days": 3, "history_bodies": "no"}, ANNA)
    assert house.rows == {} and house.audit == []
    answer = await house.managing.change_mesh_settings({"history_days": 3, "coordinator": "tower"}, ANNA)
    assert answer["settings"]["history_days"]["value"] == "3"
    assert answer["coordinator"] == {"id": str(uuid_of(house.tower.peer_id)), "name": "tower"}
    answer = await house.managing.change_mesh_settings({"history_days": None, "coordinator": None}, ANNA)
    assert answer["settings"]["history_days"]["value"] == "7" and answer["coordinator"] is None
    assert house.audit[0].detail == "history_days=3, coordinator=tower"


@pytest.mark.parametrize(
    "fields",
    [
        {"custom_name": 3},
        {"custom_name": "x" * 65},
        {"custom_name": "a\x1bb"},
        {"tags": "gpu"},
        {"tags": [1]},
        {"tags": ["x"] * 17},
        {"notes": "x" * 4001},
    ],
)
def test_what_cannot_be_written_of_a_peer_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        noted(fields)
