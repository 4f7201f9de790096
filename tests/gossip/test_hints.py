"""What is believed of records that anybody can send, and how often anybody is told of them."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.hints import (
    KNOWN_MAX,
    NEWS_S,
    TOLD_BURST,
    TOLD_PER_S,
    Hint,
    Pace,
    hint_of,
    host_name,
    peer_named,
    service_name,
    txt_of,
)
from gossip.interfaces import ADVERTISED_MAX
from tests.fixtures.mdns_host import peer

ME = peer(0)


def records(**changes: Any) -> dict[str, Any]:
    properties = {
        key.encode(): value.encode() for key, value in txt_of(version="0.1.0", mesh="a" * 52, peer_id=ME).items()
    }
    good = {
        "name": service_name(ME),
        "server": host_name(ME),
        "port": 8081,
        "properties": properties,
        "hosts": ["192.168.1.20", "fd00::20"],
    }
    return good | changes


def test_the_records_of_our_peers_are_a_hint() -> None:
    assert hint_of(**records()) == Hint(
        peer_id=ME, mesh="a" * 16, version="0.1.0", hosts=("192.168.1.20", "fd00::20"), port=8081
    )
    found = hint_of(**records())
    assert found is not None
    assert found.addresses == ("192.168.1.20:8081", "[fd00::20]:8081")


def test_a_peer_of_no_mesh_and_one_of_a_later_version_are_understood() -> None:
    no_mesh = hint_of(**records(properties={b"v": b"2.0.0rc1", b"later": b"x", b"flag": None}))
    assert no_mesh is not None
    assert (no_mesh.mesh, no_mesh.version) == ("", "2.0.0rc1")


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "attic._llm-router._tcp.local."},
        {"name": service_name(ME).upper()},
        {"name": service_name(ME[:-1])},
        {"name": service_name("1" + ME[1:])},
        {"name": f"{ME}._http._tcp.local."},
        {"server": "router.local."},
        {"server": host_name(peer(1))},
        {"server": None},
        {"port": None},
        {"port": 0},
        {"port": 65_536},
        {"properties": {b"m": b"A" * 16}},
        {"properties": {b"m": b"a" * 17}},
        {"properties": {b"m": b"\xff"}},
        {"properties": {b"v": b"1.0\n"}},
        {"properties": {b"v": b"<script>"}},
        {"properties": {b"v": b"1" * 33}},
        {"properties": {b"p": peer(1)[:8].encode()}},
        {"properties": {b"x": b"y" * 500}},
        {"hosts": []},
        {"hosts": ["127.0.0.1", "::1", "0.0.0.0", "224.0.0.251", "169.254.1.1", "fe80::1", "255.255.255.255", "attic"]},
    ],
)
def test_anything_else_is_none(changes: dict[str, Any]) -> None:
    assert hint_of(**records(**changes)) is None


def test_of_many_addresses_a_handful_is_taken() -> None:
    found = hint_of(**records(hosts=[f"10.0.{n >> 8}.{n & 255}" for n in range(1, 5_000)]))
    assert found is not None
    assert len(found.hosts) == ADVERTISED_MAX


_TXT = st.dictionaries(
    st.one_of(st.sampled_from([b"v", b"m", b"p"]), st.binary(max_size=20)), st.none() | st.binary(), max_size=8
)
_NAMES = st.one_of(st.text(), st.just(service_name(ME)), st.just(host_name(ME)))


@given(_NAMES, st.none() | _NAMES, st.none() | st.integers(), _TXT, st.lists(st.text() | st.ip_addresses().map(str)))
def test_garbage_never_raises_and_what_gets_through_is_well_formed(
    name: str, server: str | None, port: int | None, properties: dict[bytes, bytes | None], hosts: list[str]
) -> None:
    found = hint_of(name=name, server=server, port=port, properties=properties, hosts=hosts)
    assert peer_named(name) in (None, ME)
    if found is not None:
        assert found.peer_id == ME
        assert 1 <= found.port <= 65_535
        assert 1 <= len(found.hosts) <= ADVERTISED_MAX
        assert len(found.mesh) <= 16
        assert found.version.isprintable()


def test_both_names_of_a_peer_lead_to_it() -> None:
    assert peer_named(service_name(ME)) == ME
    assert peer_named(host_name(ME)) == ME
    assert peer_named("llm-router.local.") is None


def test_a_txt_record_is_small() -> None:
    text = txt_of(version="9" * 500, mesh="a" * 500, peer_id=ME)
    assert sum(len(key) + len(value) + 2 for key, value in text.items()) < 80
    assert "m" not in txt_of(version="1", mesh="", peer_id=ME)


# -- how often


def test_the_first_of_a_peer_is_told_at_once_and_the_next_a_second_later() -> None:
    pace = Pace(0.0)
    pace.add(ME, 0.0)
    pace.add(ME, 0.0)
    assert pace.wait_s(0.0) == 0.0
    assert pace.take(0.0) == [ME]
    assert pace.wait_s(0.0) is None
    pace.add(ME, 0.1)
    assert pace.take(0.1) == []
    assert pace.wait_s(0.1) == pytest.approx(NEWS_S - 0.1)
    assert pace.take(NEWS_S) == [ME]


@pytest.mark.parametrize("peers", [1, 60, 900, 5_000])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_flood_is_told_at_a_bounded_rate_and_remembered_in_bounded_memory(seed: int, peers: int) -> None:
    rng, pace, now, told = random.Random(seed), Pace(0.0), 0.0, 0
    for _ in range(5_000):
        now += rng.random() * 0.002
        pace.add(f"peer{rng.randrange(peers)}", now)
        told += len(pace.take(now))
    assert told <= TOLD_BURST + TOLD_PER_S * now + 1
    assert len(pace._due) <= KNOWN_MAX
    assert len(pace._told) <= KNOWN_MAX


def test_whoever_waits_gets_a_turn() -> None:
    pace, now, told = Pace(0.0), 0.0, set[str]()
    for number in range(500):
        pace.add(peer(number), 0.0)
    while (wait_s := pace.wait_s(now)) is not None:
        now += wait_s
        told.update(pace.take(now))
        assert now < 60
    assert len(told) == 500
