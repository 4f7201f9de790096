"""A client that asks for `/v1/models` all the time: whatever happens, the peer must answer it."""

from __future__ import annotations

import http.client
import threading
import time
from types import TracebackType
from typing import Self

from tests.fixtures.peer import Peer

PAUSE_S = 0.02


class Watch:
    """Runs while the block does; leaving it raises AssertionError if an answer failed."""

    def __init__(self, peer: Peer) -> None:
        self._port = peer.port
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._problem = ""
        self.answers_s: list[float] = []

    @property
    def worst_s(self) -> float:
        return max(self.answers_s)

    @property
    def p99_s(self) -> float:
        return sorted(self.answers_s)[len(self.answers_s) * 99 // 100]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join(60)
        if error is None:
            assert not self._problem, self._problem
            assert self.answers_s, "nobody asked"

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            while not self._is_over.is_set():
                began = time.monotonic()
                connection.request("GET", "/v1/models")
                response = connection.getresponse()
                body = response.read()
                self.answers_s.append(time.monotonic() - began)
                if response.status != 200 or b'"hello"' not in body:
                    self._problem = f"/v1/models answered {response.status} {body[:200]!r}"
                    return
                time.sleep(PAUSE_S)
        except (OSError, http.client.HTTPException) as error:
            self._problem = f"/v1/models did not answer: {error!r}"
        finally:
            connection.close()
