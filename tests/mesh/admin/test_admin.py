"""The admin map of one peer: what is written is there, also after a restart; what was ended stays so."""

from __future__ import annotations

from pathlib import Path

import pytest

from gossip.identity import Identity
from gossip.roster import Roster
from mesh.admin.admin import Admin
from mesh.admin.errors import KeyEnded
from mesh.admin.storage import AdminFile


def admin_of(folder: Path, identity: Identity, roster: Roster) -> Admin:
    return Admin(identity=identity, roster=lambda: roster, store=AdminFile(folder, program="0.3.0"))


async def test_what_was_put_is_there_after_a_restart_and_what_was_ended_stays_ended(tmp_path: Path) -> None:
    identity = Identity.generate()
    roster = Roster.found(identity, "me", 0)
    admin = admin_of(tmp_path, identity, roster)
    await admin.start()
    seen: list[frozenset[str]] = []
    admin.watch(seen.append)
    await admin.put("key/one", {"name": "laptop", "scopes": ["inference"], "expires_at": None})
    await admin.put("key/one", {"name": "notebook"})
    await admin.put("key/two", {"name": "x"})
    await admin.end("key/two", "lost", keep=["name"])
    await admin.end("session/abc", "logged out")
    await admin.close()

    again = admin_of(tmp_path, identity, roster)
    await again.start()
    assert again.get("key/one") == {"name": "notebook", "scopes": ["inference"], "expires_at": None}
    assert again.keys("key/") == ["key/one"]
    assert again.get("key/two") is None
    assert again.ended("key/two") == {"reason": "lost", "name": "x"}
    assert again.is_ended("session/abc")
    with pytest.raises(KeyEnded):
        await again.put("key/two", {"name": "back"})
    await again.close()
    assert seen[0] == frozenset({"key/one"})
