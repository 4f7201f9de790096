"""A house falls in two and comes together again: both halves answer, record, and change keys and users.

The change of one half counts in both afterwards, a revoked key above all; and the history is that of both.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.drills.clients import Load
from tests.drills.figure import Figure, count, seconds
from tests.drills.house import PORT, House, waited
from tests.drills.ledger import Ledger, control
from tests.fixtures.lan import inside

LARGE, SMALL = ("h1", "h2", "h3"), ("h4", "h5")
EVERYBODY = (*LARGE, *SMALL)
CLIENTS = 10
TOKENS = 40
WORKER = f"--tokens {TOKENS} --rate 50"
PAUSE_S = 0.3
LED_S = 10.0
HEALED_S = 5.0
CLOSED_S = 30.0
FIRST_TOKEN_S = 7.0
USER = "sam"


def partition(folder: Path, for_s: float) -> list[Figure]:
    """Three against two for `for_s` seconds, clients on both sides all the time."""
    with House.built(folder, len(EVERYBODY), holders=EVERYBODY, worker=WORKER) as house:
        house.until_all_see_all()
        house.until_one_coordinator()
        house.until_all_know("tiny", holders=len(EVERYBODY))
        house.until_files_known()
        _confirm(house)
        kept, revoked = _made_key(house, "h1", "kept"), _made_key(house, "h5", "revoked")
        _told(house, "h2", "POST", "/api/users", {"username": USER, "password": "a long password", "role": "viewer"})
        waited(lambda: _statuses(house, EVERYBODY, revoked) == {200}, "every peer knows the key", LED_S)
        peers = [house.peers[name] for name in EVERYBODY]
        with Load(
            lambda: peers,
            model="tiny",
            tokens=TOKENS,
            clients=CLIENTS,
            pause_s=PAUSE_S,
            is_stream=lambda number: number % 2 == 0,
        ) as load:
            ledger = Ledger(lambda: load.seen)
            time.sleep(1.0)
            parted_at = time.monotonic()
            house.lan.partition(LARGE, SMALL)
            led_s = max(_until_led(house, side) for side in (LARGE, SMALL))
            # Not where they were made: each half changes what the other one knows.
            _told(house, "h4", "DELETE", f"/api/api-keys/{revoked['id']}")
            made = _made_key(house, "h3", "made in the larger half")
            _told(house, "h2", "PUT", f"/api/users/{USER}", {"role": "admin"})
            assert _statuses(house, SMALL, revoked) == {401} and _statuses(house, LARGE, revoked) == {200}
            assert _statuses(house, SMALL, made) == {401} and _statuses(house, LARGE, made) == {200}
            time.sleep(max(0.0, parted_at + for_s - time.monotonic()))
            both = [sum(a.asked in side and a.began_at > parted_at for a in load.answers) for side in (LARGE, SMALL)]
            assert min(both) > 5, both
            healed_at = time.monotonic()
            house.lan.heal()
            one_s = house.until_one_coordinator()
            keys_s = _until_same(house, kept, revoked, made) - healed_at
            history_s = _until_same_history(house, ledger) - healed_at
        assert not load.wrong(), load.wrong()[:5]
        ledger.until_closed(house.peers["h5"], CLOSED_S)
        slowest_s = max(a.first_token_s for a in load.answers)
    asked = f"{len(LARGE)} against {len(SMALL)} for {for_s:g} s, {len(load.seen)} requests"
    return [
        count(f"{asked}: failed", 0, 0),
        count(f"{asked}: records lost or doubled", 0, 0),
        seconds(f"{asked}: slowest first token", slowest_s, FIRST_TOKEN_S),
        seconds("from the cut to a coordinator on each side", led_s, LED_S),
        seconds("from the heal to one coordinator", one_s, HEALED_S),
        seconds("from the heal to the same keys, revocations and roles everywhere", keys_s, HEALED_S),
        seconds("from the heal to the whole history at each of 5", history_s, HEALED_S),
    ]


def _confirm(house: House) -> None:
    """All came by the open door but one; that one's user says that they are his, as the set-up asks."""
    found = {name: _told(house, "h1", "GET", f"/api/agents/{name}") for name in EVERYBODY}
    founder = next(name for name, peer in found.items() if peer["joined_by"] == "founder")
    for name in EVERYBODY:
        if name != founder:
            _told(house, founder, "POST", f"/api/mesh/peers/{name}/trust", {})


def _until_led(house: House, side: Sequence[str]) -> float:
    return house.until_one_coordinator(side, timeout_s=3 * LED_S)


def _until_same(house: House, kept: dict[str, Any], revoked: dict[str, Any], made: dict[str, Any]) -> float:
    """When all of what either half did holds in both."""

    def same() -> bool:
        return (
            _statuses(house, EVERYBODY, revoked) == {401}
            and _statuses(house, EVERYBODY, made) == {200}
            and _statuses(house, EVERYBODY, kept) == {200}
            and {_role(house, name) for name in EVERYBODY} == {"admin"}
        )

    waited(same, "keys and users are the same everywhere", 3 * HEALED_S)
    return time.monotonic()


def _until_same_history(house: House, ledger: Ledger) -> float:
    """When each of them, asked, shows all that was answered by anybody until now."""
    with ThreadPoolExecutor(len(EVERYBODY)) as pool:
        list(pool.map(lambda name: ledger.until_recorded(house.peers[name], 3 * HEALED_S), EVERYBODY))
    return time.monotonic()


def _told(house: House, name: str, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    reply = control(house.peers[name], method, path, body)
    assert reply.status in (200, 201, 204), (name, method, path, reply.status, reply.body)
    return reply.json if reply.body else None


def _made_key(house: House, name: str, called: str) -> dict[str, Any]:
    made: dict[str, Any] = _told(house, name, "POST", "/api/api-keys", {"name": called})
    return made


def _role(house: House, name: str) -> str:
    return str(_told(house, name, "GET", f"/api/users/{USER}")["role"])


def _statuses(house: House, names: Sequence[str], key: dict[str, Any]) -> set[int]:
    """What each of them answers to who comes with that key by the network."""
    return {_status(house, name, key["key"]) for name in names}


def _status(house: House, name: str, key: str) -> int:
    host = house.lan[name]
    connection = http.client.HTTPConnection(host.ip, PORT, timeout=10)
    try:
        with inside(host):
            connection.connect()
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
        return connection.getresponse().status
    finally:
        connection.close()
