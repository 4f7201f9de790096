"""control.json and the lock of the data folder."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mesh import control
from mesh.errors import AlreadyRunning, NotPrivate, StartError

posix_only = pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")


def published(folder: Path, token: str = "t0ken") -> control.Control:
    return control.publish(folder, port=8080, url="http://127.0.0.1:8080", version="0.1.0", token=token)


def test_what_is_published_is_read_and_withdrawn(tmp_path: Path) -> None:
    assert control.read(tmp_path) is None
    mine = published(tmp_path)
    assert control.read(tmp_path) == mine
    assert mine.pid == os.getpid()
    control.withdraw(tmp_path, mine)
    assert list(tmp_path.iterdir()) == []


def test_over_https_the_file_names_the_certificate_and_an_older_file_names_none(tmp_path: Path) -> None:
    url = control.local_url("0.0.0.0", 8443, is_https=True)
    assert url == "https://127.0.0.1:8443"
    control.publish(tmp_path, port=8443, url=url, version="0.1.0", token="t0ken", fingerprint="ab" * 32)
    found = control.read(tmp_path)
    assert found is not None and (found.url, found.fingerprint) == (url, "ab" * 32)
    path = tmp_path / "control.json"
    table = json.loads(path.read_text())
    del table["fingerprint"]
    path.write_text(json.dumps(table))
    older = control.read(tmp_path)
    assert older is not None and older.fingerprint == ""


def test_a_peer_withdraws_only_its_own_file(tmp_path: Path) -> None:
    mine = published(tmp_path, "mine")
    other = published(tmp_path, "another")
    control.withdraw(tmp_path, mine)
    assert control.read(tmp_path) == other


@posix_only
def test_the_file_is_its_owners_only_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        published(tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "control.json").stat().st_mode) == 0o600


@posix_only
def test_a_file_that_others_may_read_is_refused_with_the_way_out(tmp_path: Path) -> None:
    published(tmp_path)
    (tmp_path / "control.json").chmod(0o640)
    expected = pytest.raises(NotPrivate, match="mode 0640; allowed is 0600")
    with expected as error:
        control.read(tmp_path)
    assert error.value.fix == f"chmod 600 {tmp_path / 'control.json'}"
    with pytest.raises(NotPrivate):
        published(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"port": 1}', '{"port": "x", "token": 1, "pid": 1, "url": "", "version": ""}']
)
def test_a_damaged_file_is_no_peer(tmp_path: Path, text: str) -> None:
    path = tmp_path / "control.json"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    assert control.read(tmp_path) is None


def test_the_token_is_new_each_time_long_and_not_in_the_repr(tmp_path: Path) -> None:
    tokens = {control.new_token() for _ in range(100)}
    assert len(tokens) == 100 and min(map(len, tokens)) >= 43
    assert "t0ken" not in repr(published(tmp_path))
    assert json.loads((tmp_path / "control.json").read_text())["token"] == "t0ken"


def test_a_second_peer_on_the_folder_is_refused_naming_the_process(tmp_path: Path) -> None:
    refused = pytest.raises(AlreadyRunning, match=f"in use by another peer, process {os.getpid()}")
    with control.locked(tmp_path), refused, control.locked(tmp_path):
        raise AssertionError("two peers own one folder")
    with control.locked(tmp_path):
        assert (tmp_path / "lock").exists()


def test_two_folders_have_two_peers(tmp_path: Path) -> None:
    with control.locked(tmp_path / "a"), control.locked(tmp_path / "b"):
        assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


@posix_only
def test_a_peer_that_was_killed_leaves_its_folder_to_the_next(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from mesh.control import locked\n"
        f"with locked(Path({str(tmp_path)!r})): print('locked', flush=True); time.sleep(60)"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=root) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"locked\n"
        with pytest.raises(AlreadyRunning, match=f"process {holder.pid}"), control.locked(tmp_path):
            raise AssertionError("the folder was free")
        holder.send_signal(signal.SIGKILL)
        holder.wait(30)
    with control.locked(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


@posix_only
def test_the_folder_is_made_private_and_an_open_one_is_refused(tmp_path: Path) -> None:
    made = tmp_path / "deep" / "data"
    with control.locked(made):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700

    given = tmp_path / "given"
    given.mkdir(mode=0o755)
    with control.locked(given):  # empty: it is given to us, and becomes ours
        assert stat.S_IMODE(given.stat().st_mode) == 0o700

    given.chmod(0o755)
    with pytest.raises(NotPrivate, match="mode 0755; allowed is 0700") as error, control.locked(given):
        raise AssertionError("an open folder was taken")
    assert error.value.fix == f"chmod 700 {given}"


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="cannot be used"), control.locked(tmp_path / "file" / "data"):
        raise AssertionError("a file became a folder")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:8080"),
        ("::", "http://[::1]:8080"),
        ("::1", "http://[::1]:8080"),
        ("192.168.1.5", "http://192.168.1.5:8080"),
        ("nas.lan", "http://nas.lan:8080"),
    ],
)
def test_the_local_url_of_a_listener(host: str, url: str) -> None:
    assert control.local_url(host, 8080) == url
