"""Who listens on a port."""

from __future__ import annotations

import os
import socket

from mesh.ports import port_busy, port_holder


def test_the_holder_of_a_port_is_named_with_its_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        holder = port_holder(port)
        assert holder is not None and f"(process {os.getpid()})" in holder
        error = port_busy(port)
        assert error.what == f"port {port} is in use by {holder}"
        assert "--port 0" in error.fix and error.exit_code == 1
    assert port_holder(port) is None


def test_a_connection_that_does_not_listen_holds_no_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        assert port_holder(client.getsockname()[1]) is None
