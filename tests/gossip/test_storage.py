"""What a peer keeps of its mesh: it comes back whole, damage is set aside, and a crash never leaves half a file."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip import storage
from gossip.election import Claim
from gossip.errors import UnusableIdentity
from gossip.home import Home
from gossip.identity import Identity
from gossip.private import write_private
from gossip.storage import MESH_FILE, MeshFile, MeshState, StoredClaim, StoredToken

FULL = MeshState(
    mesh_id="m" * 52,
    statements=(b"\x00one", b"two"),
    door_until=1_700_000_600.5,
    door_set_at=1_700_000_000.0,
    is_claimed=True,
    is_mature=True,
    tokens=(StoredToken(secret_hash=b"h" * 32, uses_left=2, expires_at=1.5),),
    claim=StoredClaim(term=9, peer_id="p" * 52, is_solo=True),
    addresses=("[fe80::1]:8081", "10.0.0.2:8081"),
)


def test_nothing_saved_is_an_empty_state(tmp_path: Path) -> None:
    assert MeshFile(tmp_path).load() == MeshState()


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    file = MeshFile(tmp_path)
    file.save(FULL)
    assert MeshFile(tmp_path).load() == FULL
    file.save(MeshState())
    assert file.load() == MeshState()
    assert [path.name for path in tmp_path.iterdir()] == [MESH_FILE]
    if os.name == "posix":
        assert file.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"null",
        b'{"format": 2}',
        b"[" * 100_000,
        json.dumps({"format": 1, "mesh_id": 7}).encode(),
    ],
)
def test_a_damaged_file_is_set_aside_and_said(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    file = MeshFile(tmp_path)
    write_private(file.path, content)
    with caplog.at_level(logging.WARNING):
        assert file.load() == MeshState()
    (aside,) = tmp_path.iterdir()
    assert aside.name.startswith(f"{MESH_FILE}.corrupt-")
    assert aside.read_bytes() == content
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    file.save(FULL)
    assert file.load() == FULL
    assert aside.exists()


@pytest.mark.parametrize("field", sorted(json.loads(storage._encoded(FULL))))
@pytest.mark.parametrize("wrong", ["wrong", 1.5, [[]], {"a": 1}, ["not base64!"]])
def test_a_field_of_another_kind_is_damage_not_a_crash(tmp_path: Path, field: str, wrong: object) -> None:
    table = json.loads(storage._encoded(FULL))
    table[field] = wrong
    file = MeshFile(tmp_path)
    write_private(file.path, json.dumps(table).encode())
    loaded = file.load()
    is_right = wrong == "wrong" and field == "mesh_id"
    is_right = is_right or (wrong == 1.5 and field in ("door_until", "door_set_at"))
    is_right = is_right or (wrong == ["not base64!"] and field == "addresses")
    assert (loaded == MeshState()) is not is_right


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    if os.name != "posix":
        pytest.skip("modes are POSIX's")
    file = MeshFile(tmp_path)
    file.save(FULL)
    file.path.chmod(0o644)
    with pytest.raises(UnusableIdentity, match="0644"):
        file.load()
    assert file.path.exists()


def test_a_crash_before_the_rename_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = MeshFile(tmp_path)
    file.save(FULL)

    def crash(self: Path, target: Path) -> Path:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", crash)
        with pytest.raises(OSError, match="no space"):
            file.save(MeshState())
    assert file.load() == FULL
    assert [path.name for path in tmp_path.iterdir()] == [MESH_FILE]


@given(st.lists(st.integers(min_value=0, max_value=60)))
def test_the_last_addresses_are_kept_once_each(order: list[int]) -> None:
    state = MeshState()
    for number in order:
        state = state.with_address(f"10.0.0.{number}:1")
    newest_first = list(dict.fromkeys(f"10.0.0.{number}:1" for number in reversed(order)))
    assert list(state.addresses) == newest_first[:32]


class FullDisk:
    """A disk that takes nothing, until somebody makes room."""

    def __init__(self) -> None:
        self.is_full = False
        self.state = MeshState()

    def load(self) -> MeshState:
        return self.state

    def save(self, state: MeshState) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.state = state


def test_a_full_disk_ends_nothing_is_said_once_and_what_it_missed_is_written_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Models fill disks: a peer that stopped for it would take its requests with it."""
    disk = FullDisk()
    home = Home(identity=Identity.generate(), name="attic", keeper=disk, now_s=lambda: 1_000.0, door_s=60.0)
    disk.is_full = True
    claim = Claim(term=7, peer="p" * 52, is_solo=False)
    with caplog.at_level(logging.ERROR):
        home.set_claim(claim)
        home.set_door(0.0)
        home.flush()
    assert home.claim == claim and home.door_seconds_left() == 0.0
    assert disk.state.claim is None
    assert len(caplog.records) == 1 and "No space left" in caplog.text
    disk.is_full = False
    home.flush()
    assert disk.state.claim == StoredClaim(term=7, peer_id="p" * 52, is_solo=False)
    disk.is_full = True
    home.set_door(60.0)
    assert len(caplog.records) == 2, "it is full again"
