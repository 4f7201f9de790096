"""The contract's calls with curl, at a peer that does not coordinate."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.house import alive, mesh
from tests.fixtures.lan import Lan, needs_lan
from tests.fixtures.peer import ROOT, Peer, until

pytestmark = [pytest.mark.lan, pytest.mark.slow, needs_lan()]

SCRIPT = Path(__file__).with_name("contract.sh")
PASSWORD = "correct horse battery staple"
SERVER = """
import asyncio, sys
from tests.fixtures.openai_server import openai_server

async def main():
    async with openai_server(11434, address=sys.argv[1]):
        print("up", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def test_every_call_of_the_contract_goes_through_a_peer_that_does_not_coordinate(tmp_path: Path) -> None:
    """F83-F85, F155-F157, F162-F167, F178: on three machines, the third of which is an OpenAI-compatible server."""
    with Lan(3) as lan:
        one, two, other = lan
        server = other.spawn(
            [sys.executable, "-c", SERVER, other.ip], env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
        )
        assert server.stdout is not None and server.stdout.readline() == b"up\n"
        env = {"LLM_ROUTER_ADMIN_PASSWORD": PASSWORD}
        with Peer.started(tmp_path / "one", "--port", "8080", "--name", "one", env=env, host=one) as first:
            line = next(word for word in first.command("invite").stdout.split() if "llmr" in word).strip("'")
            joins = {"LLM_ROUTER_JOIN": line}
            with Peer.started(tmp_path / "two", "--port", "8080", "--name", "two", env=joins, host=two) as second:
                peers = {"one": first, "two": second}
                until(lambda: all(len(alive(peer)) == 2 for peer in peers.values()), "they see each other")
                until(lambda: all(mesh(p)["coordinator"] is not None for p in peers.values()), "a coordinator")
                until(lambda: all(not p.get("/api/auth/setup").json["needed"] for p in peers.values()), "an admin")
                asked = next(name for name in peers if name != mesh(first)["coordinator"]["name"])
                host = {"one": one, "two": two}[asked]
                done = host.run(
                    ["bash", str(SCRIPT)],
                    check=False,
                    env=os.environ
                    | {
                        "URL": f"http://{host.ip}:8080",
                        "USERNAME": "admin",
                        "PASSWORD": PASSWORD,
                        "SERVER": f"http://{other.ip}:11434",
                        "PEER": "two" if asked == "one" else "one",
                    },
                )
                assert done.returncode == 0, "\n".join(line for line in done.stdout.splitlines() if "FAILED" in line)
                assert done.stdout.count("ok ") > 80
