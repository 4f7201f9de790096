"""`llm-router tls`, and how the commands reach a peer over HTTPS: by its certificate, and before a secret is said."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mesh import control
from mesh.accounts.https import SelfSigned, fingerprint_of, self_signed, server_context, shown
from mesh.cli.client import connect, elsewhere
from mesh.cli.entry import Program
from mesh.cli.failure import Exit, Failure
from mesh.cli.group import Entry
from tests.fixtures.scripted_mesh import ScriptedMesh, services
from web.listener import Listener

TOKEN = "t0ken-of-the-tests"
PROGRAM = Program(name="llm-router", entries={"tls": Entry("mesh.cli.tls:tls", "HTTPS.")})


def run(*arguments: str) -> Result:
    return CliRunner().invoke(PROGRAM, arguments)


# -- making one


def test_self_signed_prints_files_fingerprint_and_the_two_settings_to_set(tmp_path: Path) -> None:
    result = run("tls", "self-signed", "--name", "nas.lan", "--name", "10.0.0.7")
    assert result.exit_code == 0, result.stderr
    cert, key = tmp_path / "tls" / "cert.pem", tmp_path / "tls" / "key.pem"
    server_context(cert, key, datetime.now(UTC))
    lines = result.stdout.splitlines()
    assert lines[-2:] == [f"LLM_ROUTER_TLS_CERT={cert}", f"LLM_ROUTER_TLS_KEY={key}"]
    assert shown(fingerprint_of(cert)) in result.stdout
    assert "start the peer again" in result.stderr
    assert "PRIVATE" not in result.output


def test_it_is_for_what_was_asked_for_and_for_the_machines_own_names(tmp_path: Path) -> None:
    result = run("tls", "self-signed", "--name", "NAS.lan", "--name", "fe80::7", "--json")
    names = json.loads(result.stdout)["names"]
    assert {"nas.lan", "fe80::7", "localhost", "127.0.0.1", "llm-router.local"} <= set(names)
    assert socket.gethostname().lower() in names
    assert [name for name in names if name.startswith("fe80")] == ["fe80::7"]


def test_before_the_first_start_it_makes_the_data_folder_as_a_peer_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "new" / "data"
    monkeypatch.setenv("LLM_ROUTER_DATA_DIR", str(folder))
    assert run("tls", "self-signed").exit_code == 0
    with control.locked(folder):
        assert (folder / "tls" / "key.pem").exists()


def test_with_json_stdout_is_json(tmp_path: Path) -> None:
    result = run("tls", "self-signed", "--json")
    assert result.stderr == ""
    answer = json.loads(result.stdout)
    assert set(answer) == {"cert", "key", "names", "valid_until", "fingerprint", "settings"}
    assert answer["settings"]["LLM_ROUTER_TLS_CERT"] == answer["cert"]
    shown_one = json.loads(run("tls", "show", "--json").stdout)
    assert shown_one == {name: answer[name] for name in ("cert", "names", "valid_until", "fingerprint")}


def test_a_second_time_needs_force(tmp_path: Path) -> None:
    first = json.loads(run("tls", "self-signed", "--json").stdout)
    result = run("tls", "self-signed")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error: there is a certificate already" in result.stderr and "--force" in result.stderr
    again = json.loads(run("tls", "self-signed", "--force", "--json").stdout)
    assert again["cert"] == first["cert"] and again["fingerprint"] != first["fingerprint"]


@pytest.mark.parametrize("name", ["a b", "https://nas.lan", "*.lan", ""])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    result = run("tls", "self-signed", "--name", name)
    assert result.exit_code == 1
    assert "is no host name" in result.stderr
    assert not (tmp_path / "tls" / "key.pem").exists()


def test_show_says_when_there_is_none_and_when_it_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("tls", "show")
    assert result.exit_code == Exit.NOT_FOUND
    assert "llm-router tls self-signed" in result.stderr
    made = json.loads(run("tls", "self-signed", "--json").stdout)
    assert "it is not used" in run("tls", "show").stderr
    for name, value in made["settings"].items():
        monkeypatch.setenv(name, value)
    result = run("tls", "show")
    assert made["fingerprint"] in result.stdout
    assert result.stderr == ""


# -- who the commands talk to


@asynccontextmanager
async def https_peer(folder: Path, made: SelfSigned, fingerprint: str) -> AsyncIterator[Listener]:
    """A peer with that certificate, and a control.json that names `fingerprint`."""
    context = server_context(made.cert, made.key, datetime.now(UTC))
    listener = Listener(services(ScriptedMesh(), TOKEN), [("127.0.0.1", 0)], ssl_context=context)
    await listener.start()
    url = control.local_url("0.0.0.0", listener.port, is_https=True)
    control.publish(folder, port=listener.port, url=url, version="0.1.0", token=TOKEN, fingerprint=fingerprint)
    try:
        yield listener
    finally:
        await listener.close(0)


def certificate(folder: Path, *names: str) -> SelfSigned:
    return self_signed(folder, names or ["tower"], [], datetime.now(UTC))


async def test_the_peer_of_this_machine_is_known_by_its_fingerprint_whatever_its_names_are(tmp_path: Path) -> None:
    made = certificate(tmp_path / "own", "a-name-of-another-machine")
    async with https_peer(tmp_path, made, made.fingerprint) as listener:
        peer = connect(tmp_path)
        assert peer.control.url == f"https://127.0.0.1:{listener.port}"
        assert (await asyncio.to_thread(peer.get, "/api/mesh"))["name"] == "tower"
        answer = await asyncio.to_thread(peer.post, "/api/mesh/invite", {"uses": 1, "hours": 1.0})
        assert answer["line"], "the token went with it"


class Impostor(asyncio.Protocol):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.is_left = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.heard += data

    def connection_lost(self, error: BaseException | None) -> None:
        self.is_left.set()


@pytest.mark.parametrize("fingerprint", ["", "0" * 64])
async def test_a_peer_that_shows_another_certificate_gets_no_token(tmp_path: Path, fingerprint: str) -> None:
    made = certificate(tmp_path / "own")
    context = server_context(made.cert, made.key, datetime.now(UTC))
    impostor = Impostor()
    server = await asyncio.get_running_loop().create_server(lambda: impostor, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    url = f"https://127.0.0.1:{port}"
    control.publish(tmp_path, port=port, url=url, version="0.1.0", token=TOKEN, fingerprint=fingerprint)
    with pytest.raises(Failure, match="is not the peer that is meant") as error:
        await asyncio.to_thread(connect(tmp_path).get, "/api/mesh")
    assert error.value.exit_code == Exit.NOT_ALLOWED
    await asyncio.wait_for(impostor.is_left.wait(), 10)
    assert bytes(impostor.heard) == b""
    server.close()


async def test_the_fingerprint_is_checked_at_every_request(tmp_path: Path) -> None:
    """Who takes the port after the peer has ended is not the peer."""
    own, other = certificate(tmp_path / "own"), certificate(tmp_path / "other")
    async with https_peer(tmp_path, own, own.fingerprint):
        peer = connect(tmp_path)
        await asyncio.to_thread(peer.get, "/api/mesh")
    context = server_context(other.cert, other.key, datetime.now(UTC))
    listener = Listener(services(ScriptedMesh(), TOKEN), [("127.0.0.1", peer.control.port)], ssl_context=context)
    await listener.start()
    with pytest.raises(Failure, match="is not the peer that is meant"):
        await asyncio.to_thread(peer.get, "/api/mesh")
    await listener.close(0)


async def test_a_peer_elsewhere_is_taken_by_its_fingerprint_or_by_an_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = certificate(tmp_path / "own", "localhost")
    async with https_peer(tmp_path, made, made.fingerprint) as listener:
        url = f"https://localhost:{listener.port}"
        with pytest.raises(Failure, match="is not the peer that is meant") as error:
            await asyncio.to_thread(elsewhere(url).get, "/health")
        assert "--fingerprint" in error.value.fix and "self-signed" in error.value.why
        with pytest.raises(Failure, match="is not the peer that is meant"):
            await asyncio.to_thread(elsewhere(url, fingerprint="0" * 64).get, "/health")
        pinned = elsewhere(url, fingerprint=made.fingerprint)
        assert await asyncio.to_thread(pinned.get, "/health") == {"status": "ok"}
        monkeypatch.setenv("SSL_CERT_FILE", str(made.cert))
        assert await asyncio.to_thread(elsewhere(url).get, "/health") == {"status": "ok"}


async def test_plain_http_where_https_is_spoken_and_the_other_way_round_is_told(tmp_path: Path) -> None:
    made = certificate(tmp_path / "own")
    async with https_peer(tmp_path, made, made.fingerprint) as listener:
        with pytest.raises(Failure, match="does not answer") as error:
            await asyncio.to_thread(elsewhere(f"http://127.0.0.1:{listener.port}").get, "/health")
        assert error.value.exit_code == Exit.UNREACHABLE
    plain = Listener(services(ScriptedMesh(), TOKEN), [("127.0.0.1", 0)])
    await plain.start()
    with pytest.raises(Failure, match="does not answer"):
        await asyncio.to_thread(elsewhere(f"https://127.0.0.1:{plain.port}", fingerprint="0" * 64).get, "/health")
    await plain.close(0)


@pytest.mark.parametrize(
    "url",
    ["", "attic", "attic:8080", "ftp://attic", "http://", "http://attic:99999", "http://attic:x", "http://[::1",
     "http://attic/path", "http://attic?x=1", "http://anna:secret@attic", "https:attic"],
)  # fmt: skip
def test_what_is_no_address_of_a_peer_is_a_usage_error(url: str) -> None:
    with pytest.raises(Failure, match="is not the address of a peer") as error:
        elsewhere(url)
    assert error.value.exit_code == Exit.USAGE
