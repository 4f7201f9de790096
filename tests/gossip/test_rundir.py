"""Peers of one user on one machine: the folder in which they find each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gossip.rundir import Housemate, RunDir

ME, OTHER = "a" * 52, "b" * 52


@pytest.fixture
def other() -> Iterator[Housemate]:
    """A living process that is not this one."""
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        yield Housemate(peer=OTHER, port=8081, pid=process.pid, secret="s")
        assert process.stdin is not None
        process.stdin.close()


def test_a_living_peer_of_the_same_user_is_found_until_it_withdraws(tmp_path: Path, other: Housemate) -> None:
    RunDir(tmp_path / "run").publish(other)
    assert RunDir(tmp_path / "run").others(ME) == [other]
    assert RunDir(tmp_path / "run").others(OTHER) == []
    assert other.address == "127.0.0.1:8081"


def test_the_folder_and_the_files_are_the_users_alone(tmp_path: Path, other: Housemate) -> None:
    RunDir(tmp_path / "run").publish(other)
    (file,) = (tmp_path / "run").iterdir()
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_folder_that_others_may_enter_is_not_used(tmp_path: Path, other: Housemate) -> None:
    RunDir(tmp_path / "run").publish(other)
    (tmp_path / "run").chmod(0o755)
    assert RunDir(tmp_path / "run").others(ME) == []
    RunDir(tmp_path / "run").publish(Housemate(peer=ME, port=1, pid=os.getpid(), secret="t"))
    assert not (tmp_path / "run" / f"{ME}.json").exists()


def test_the_file_of_a_process_that_is_gone_is_removed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pid = process.pid
    RunDir(tmp_path / "run").publish(Housemate(peer=OTHER, port=8081, pid=pid, secret="s"))
    assert RunDir(tmp_path / "run").others(ME) == []
    assert not list((tmp_path / "run").iterdir())


def test_withdrawing_leaves_the_file_of_a_later_process_alone(tmp_path: Path, other: Housemate) -> None:
    mine = RunDir(tmp_path / "run")
    mine.publish(Housemate(peer=ME, port=1, pid=os.getpid(), secret="t"))
    RunDir(tmp_path / "run").publish(Housemate(peer=ME, port=2, pid=other.pid, secret="u"))
    mine.withdraw()
    assert (tmp_path / "run" / f"{ME}.json").exists()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        json.dumps({"peer_id": "../" * 10, "port": 1, "pid": 1, "secret": "s"}),
        json.dumps({"peer_id": OTHER, "port": 70000, "pid": 1, "secret": "s"}),
        json.dumps({"peer_id": OTHER, "port": True, "pid": 1, "secret": "s"}),
        json.dumps({"peer_id": OTHER, "port": 1, "pid": -1, "secret": "s"}),
        json.dumps({"peer_id": OTHER, "port": 1, "pid": 2**40, "secret": "s"}),
        "[" * 4000,
        json.dumps({"peer_id": OTHER, "port": 1, "pid": 1, "secret": "s"}) + " " * 5000,
    ],
)
def test_a_file_that_is_none_of_ours_is_nobody(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    path = folder / f"{OTHER}.json"
    path.write_text(content)
    path.chmod(0o600)
    assert RunDir(folder).others(ME) == []
