"""Knocking at a peer port: who is there, its clock, and every reason why nobody is."""

from __future__ import annotations

import asyncio
import email.utils
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gossip.identity import Identity
from gossip.roster import Roster
from gossip.tls import Tls
from gossip.transport import PeerPort
from mesh.knock import all_knocked, knocked


@pytest.fixture
def identity() -> Identity:
    return Identity.generate()


@pytest.fixture
async def address(identity: Identity) -> AsyncIterator[str]:
    """A peer port, alone in its mesh."""
    roster = Roster.found(identity, "attic", 0.0)
    tls = Tls(identity)
    tls.update(roster)
    port = PeerPort(tls, roster=lambda: roster)
    await port.start(["127.0.0.1"], [0])
    yield f"127.0.0.1:{port.port}"
    await port.close()


@pytest.fixture
def silent() -> Iterator[str]:
    """Takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


async def test_a_peer_shows_who_it_is_and_what_its_clock_says(identity: Identity, address: str) -> None:
    found = await asyncio.to_thread(knocked, address)
    assert (found.peer, found.reason) == (identity.peer_id, "")
    assert found.ahead_s is not None and abs(found.ahead_s) < 30


@pytest.mark.parametrize("ahead_s", [600, -86_400])
def test_a_clock_that_differs_is_told(identity: Identity, tmp_path: Path, ahead_s: int) -> None:
    pem = tmp_path / "identity.pem"
    pem.write_text(identity.key_pem + identity.certificate_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    date = email.utils.formatdate(time.time() + ahead_s, usegmt=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            plain, _ = listener.accept()
            with context.wrap_socket(plain, server_side=True) as connection:
                connection.recv(4096)
                connection.sendall(f"HTTP/1.1 403 no\r\nDate: {date}\r\nContent-Length: 0\r\n\r\n".encode())

        thread = threading.Thread(target=answer)
        thread.start()
        found = knocked(f"127.0.0.1:{listener.getsockname()[1]}")
        thread.join()
    assert found.peer == identity.peer_id
    assert found.ahead_s is not None and abs(found.ahead_s - ahead_s) < 30


def test_nobody_is_there_for_different_reasons(silent: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        shut = f"127.0.0.1:{listener.getsockname()[1]}"
    assert knocked(shut).reason == "refused"
    assert knocked(silent, timeout_s=0.2).reason == "silent"
    assert knocked("no address").reason == "no peer"


def test_what_speaks_no_tls_is_no_peer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert knocked(f"127.0.0.1:{listener.getsockname()[1]}").reason == "no peer"
        thread.join()


def test_all_are_asked_at_once_and_nobody_is_waited_for_beyond_the_limit(silent: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        shut = f"127.0.0.1:{listener.getsockname()[1]}"
    found = all_knocked([silent, shut, silent], within_s=0.3)
    assert [(knock.address, knock.reason) for knock in found] == [(silent, "silent"), (shut, "refused")]
    assert all_knocked([]) == []
