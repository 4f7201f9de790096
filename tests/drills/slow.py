"""Row 17, small: clients that send headers or bodies a byte at a time are closed in time, and disturb nobody."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from pathlib import Path

from tests.drills.figure import Figure
from tests.drills.watch import Watch
from tests.fixtures.peer import Peer
from web.connection import LINGER_S
from web.services import Limits

EACH = 50
SLACK_S = 1.0
NOISE_S = 0.02
"""Answers that take less say more about the machine than about the peer."""


def slow(folder: Path) -> list[Figure]:
    """Three kinds of slowness at once, and a client that asks normally beside them."""
    limits = Limits()
    folder.mkdir(parents=True, exist_ok=True)
    with Peer.started(folder / "data") as peer:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        with Watch(peer) as alone:
            time.sleep(3)
        with Watch(peer) as beside:
            closed_s = _closed(
                peer.port,
                {
                    "nothing": (b"", b""),
                    "headers": (head, b"x"),
                    "body": (head + b"Content-Type: application/json\r\nContent-Length: 5000\r\n\r\n", b" "),
                },
                limits.body_s + 30,
            )
        assert peer.get("/ready").status == 200
    slower = beside.p99_s / max(alone.p99_s, NOISE_S)
    return [
        Figure(what="silent from the start", value=closed_s["nothing"], limit=limits.headers_s + SLACK_S, unit="s"),
        Figure(what="slow headers", value=closed_s["headers"], limit=limits.headers_s + SLACK_S, unit="s"),
        Figure(what="slow body", value=closed_s["body"], limit=limits.body_s + LINGER_S + SLACK_S, unit="s"),
        Figure(what="p99 of others, times that without", value=slower, limit=1.5, unit=""),
    ]


def _closed(port: int, kinds: dict[str, tuple[bytes, bytes]], timeout_s: float) -> dict[str, float]:
    """Seconds until the peer had closed the last connection of each kind: (sent first, sent every half second)."""
    worst: dict[str, float] = {}
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for kind, (first, again) in kinds.items():
            for _ in range(EACH):
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
                connection.sendall(first)
                selector.register(connection, selectors.EVENT_READ, (kind, again))
        began = time.monotonic()
        send_at = began
        while selector.get_map():
            assert time.monotonic() - began < timeout_s, f"{len(selector.get_map())} connections were never closed"
            for key, _events in selector.select(0.1):
                connection, kind = _socket(key), key.data[0]
                if _is_over(connection):
                    worst[kind] = time.monotonic() - began
                    selector.unregister(connection)
            if time.monotonic() >= send_at:
                send_at += 0.5
                for key in list(selector.get_map().values()):
                    with contextlib.suppress(OSError):
                        _socket(key).sendall(key.data[1])
    return worst


def _socket(key: selectors.SelectorKey) -> socket.socket:
    assert isinstance(key.fileobj, socket.socket)
    return key.fileobj


def _is_over(connection: socket.socket) -> bool:
    """The other end closed; what it said before is read past."""
    try:
        return not connection.recv(65536)
    except OSError:
        return True
