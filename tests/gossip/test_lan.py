"""The LAN that other tests stand on does to its hosts what it says; and virtual time is decided by its seed."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.fixtures.lan import Lan, needs_lan
from tests.fixtures.virtual_loop import Network, Trace, VirtualLoop, simulate

# Answers every datagram with itself.
_ECHO = """
import socket
end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end.bind(("0.0.0.0", 7000))
print("ready", flush=True)
while True:
    end.sendto(*end.recvfrom(2000))
"""
# The seconds until an answer to a datagram came; "nothing" when none did in half a second.
_ASK = """
import socket, sys, time
end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end.settimeout(0.5)
began = time.monotonic()
try:
    end.sendto(b"x", (sys.argv[1], 7000))
    end.recv(2000)
    print(time.monotonic() - began)
except OSError:
    print("nothing")
"""


@contextlib.contextmanager
def echoing(lan: Lan, *names: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    found = [lan[name].spawn([sys.executable, "-c", _ECHO], stdout=subprocess.PIPE) for name in names]
    for process in found:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    yield found


def answer(lan: Lan, source: str, target: str) -> str:
    return lan[source].run([sys.executable, "-c", _ASK, lan[target].ip]).stdout.strip()


def reaches(lan: Lan, source: str, target: str) -> bool:
    return answer(lan, source, target) != "nothing"


@needs_lan()
def test_partitions_and_one_way_blocks_are_silent_and_heal() -> None:
    with Lan(3) as lan, echoing(lan, "h1", "h2"):
        assert reaches(lan, "h3", "h1")
        lan.partition(["h1", "h2"], ["h3"])
        assert not reaches(lan, "h3", "h1")
        assert reaches(lan, "h1", "h2")
        lan.heal()
        assert reaches(lan, "h3", "h1")
        lan.block("h1", "h3")
        assert not reaches(lan, "h3", "h1")
        assert reaches(lan, "h3", "h2")


@needs_lan()
def test_a_frozen_host_goes_on_and_a_host_without_power_does_not() -> None:
    with Lan(2) as lan, echoing(lan, "h1", "h2") as (first, second):
        lan.freeze("h1")
        assert not reaches(lan, "h2", "h1")
        lan.thaw("h1")
        assert reaches(lan, "h2", "h1")
        lan.power_off("h1")
        assert first.wait(10) == -signal.SIGKILL
        assert not reaches(lan, "h2", "h1")
        assert second.poll() is None
        lan.power_on("h1")
        with echoing(lan, "h1"):
            assert reaches(lan, "h2", "h1")


@needs_lan()
def test_a_shaped_cable_is_slow_or_lossy_until_it_is_healed() -> None:
    with Lan(2) as lan, echoing(lan, "h1"):
        lan.shape("h1", delay=0.1)
        assert float(answer(lan, "h2", "h1")) >= 0.2  # both ways
        lan.shape("h1", loss=1.0)
        assert not reaches(lan, "h2", "h1")
        lan.heal()
        assert reaches(lan, "h2", "h1")


@needs_lan()
def test_two_lans_at_once_do_not_meet() -> None:
    with Lan(1) as one, Lan(2) as two, echoing(one, "h1"):
        assert one["h1"].ip == two["h1"].ip
        assert not reaches(two, "h2", "h1")


class _Pinger(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.heard = 0

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.heard += 1


def _trace(seed: int) -> Trace:
    network = Network(seed, loss=0.2)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        here, _ = await loop.create_datagram_endpoint(_Pinger, ("10.0.0.1", 7000))
        _, there = await loop.create_datagram_endpoint(_Pinger, ("10.0.0.2", 7000))
        for _ in range(1_000):
            await asyncio.sleep(3.6)
            here.sendto(b"ping", ("10.0.0.2", 7000))
        assert isinstance(there, _Pinger)
        assert 700 < there.heard < 900
        network.partition({"10.0.0.1"}, {"10.0.0.2"})
        before = there.heard
        here.sendto(b"ping", ("10.0.0.2", 7000))
        await asyncio.sleep(1)
        assert there.heard == before

    return simulate(scenario(), network)


def test_the_same_seed_gives_the_same_hour() -> None:
    first = _trace(1)
    assert first == _trace(1)
    assert first.digest != _trace(2).digest
    assert first.seconds > 3_600


def test_a_deadlock_raises_instead_of_hanging() -> None:
    async def scenario() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="cannot happen"):
        simulate(scenario(), Network(1))
