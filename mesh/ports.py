"""Who listens on a port of this machine, and what to say when it is the port we want."""

from __future__ import annotations

from mesh.errors import PortBusy


def port_holder(port: int) -> str | None:
    """The program that listens there, such as `ollama (process 812)`, or None when nobody does.

    May take tens of milliseconds. Other users' programs are "another user's program" unless we are root.
    """
    import psutil  # 20 ms, for one question

    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:  # macOS shows other processes to root only
        return _own_holder(port)
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            return _program(connection.pid) if connection.pid else "another user's program"
    return None


def port_busy(port: int) -> PortBusy:
    """The error to raise when binding failed because the port is taken."""
    holder = port_holder(port) or "a program that cannot be seen from here"
    return PortBusy(
        f"port {port} is in use by {holder}", fix="stop it, or start with --port 0 (any free port) or --port NUMBER"
    )


def _own_holder(port: int) -> str | None:
    import psutil

    for process in psutil.process_iter():
        try:
            connections = process.net_connections("tcp")
        except psutil.Error:
            continue
        if any(c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port for c in connections):
            return _program(process.pid)
    return None


def _program(pid: int) -> str:
    import psutil

    try:
        process = psutil.Process(pid)
        words = " ".join(process.cmdline()[:4])
        name = "llm-router" if "llm-router" in words or "mesh.cli" in words else process.name()
    except psutil.Error:
        name = "a program"
    return f"{name} (process {pid})"
