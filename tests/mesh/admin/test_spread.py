"""Several peers, one map: pushed at once, compared after losses and partitions, whatever the clocks show."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence

import pytest

from gossip.identity import Identity
from gossip.roster import Roster
from mesh.admin.clock import NEVER, Clock
from mesh.admin.errors import ClockWrong, KeyEnded, NoSigner
from mesh.admin.map import BUCKETS
from mesh.admin.messages import CODEC, DIGEST_BYTES, Ask, Compare, Compared, Push, Pushed, Told, decoded
from mesh.admin.rows import ENDED, Row, signed, written
from tests.fixtures.virtual_loop import Network, simulate
from tests.mesh.admin.house import EPOCH_MS, House, Peer, who

Scenario = Callable[[House], Awaitable[None]]


def play(scenario: Scenario, limit_s: float = 7200.0, **how: object) -> House:
    """Runs it in virtual time, on a house of five unless told otherwise."""
    houses: list[House] = []

    async def whole() -> None:
        house = House(**{"seed": 1, "names": "abcde", **how})  # type: ignore[arg-type]
        houses.append(house)
        async with house.running():
            await scenario(house)

    simulate(whole(), Network(seed=1), limit_s)
    return houses[0]


async def equal(house: House, names: Iterable[str] = (), *, within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while not house.all_equal(names):
            await asyncio.sleep(0.1)


# --- telling and comparing


@pytest.mark.parametrize("seed", range(20))
def test_after_a_partition_both_sides_have_what_was_ended_and_what_was_made(seed: int) -> None:
    async def scenario(house: House) -> None:
        a, d = house["a"].admin, house["d"].admin
        house.coordinators = "ad"
        await a.put("key/old", {"name": "laptop"})
        await a.put("setting/name", {"value": "attic"})
        await equal(house, within_s=60)
        house.partition("abc", "de")
        await a.end("key/old", "stolen", keep=["name"])
        await d.put("key/old", {"name": "renamed over there"})
        await d.put("key/new", {"name": "phone"})
        await a.put("setting/name", {"value": "cellar"})
        await asyncio.sleep(2)
        await d.put("setting/name", {"value": "kitchen"})
        await asyncio.sleep(60)
        assert not house["d"].admin.is_ended("key/old")
        house.heal()
        await equal(house, within_s=60 if house.loss else 5)
        for peer in house.peers.values():
            assert peer.admin.ended("key/old") == {"reason": "stolen", "name": "laptop"}
            assert peer.admin.get("key/new") == {"name": "phone"}
            assert peer.admin.get("setting/name") == {"value": "kitchen"}
            with pytest.raises(KeyEnded):
                await peer.admin.put("key/old", {"name": "again"})

    house = play(scenario, seed=seed, loss=0.1 if seed % 2 else 0.0)
    # the edits that were lost are told once, where they were made
    assert {(row.key, row.value) for row, _ in house["a"].lost} == {("setting/name", b'"cellar"')}
    assert {(row.key, row.value) for row, _ in house["d"].lost} == {("key/old", b'"renamed over there"')}
    assert not house["b"].lost + house["c"].lost + house["e"].lost


def test_edits_that_knew_of_each_other_are_not_called_lost() -> None:
    async def scenario(house: House) -> None:
        for round_ in range(5):
            for peer in house.peers.values():
                await peer.admin.put("setting/name", {"value": f"{peer.name} {round_}"})
        await house["c"].admin.end("setting/name", "no more")

    house = play(scenario)
    assert not [peer.lost for peer in house.peers.values() if peer.lost]


def test_a_write_is_everywhere_when_it_returns() -> None:
    async def scenario(house: House) -> None:
        version = await house["a"].admin.put("user/1", {"name": "ann", "role": "admin"})
        for peer in house.peers.values():
            assert peer.admin.get("user/1") == {"name": "ann", "role": "admin"}
            assert await peer.admin.reached(version, 0.01)
        assert house["a"].admin.version == version

    play(scenario)


def test_a_member_that_does_not_answer_delays_a_write_by_half_a_second_at_most() -> None:
    async def scenario(house: House) -> None:
        house.frozen.add("d")
        loop = asyncio.get_running_loop()
        before = loop.time()
        await house["a"].admin.put("setting/x", {"value": 1})
        assert loop.time() - before <= 0.51
        assert house["c"].admin.get("setting/x") == {"value": 1}
        for number in range(50):  # and the next ones not at all, as long as the first is not given up
            await house["a"].admin.put("setting/x", {"value": number})
        assert loop.time() - before <= 4
        house.frozen.clear()
        await equal(house, within_s=15)

    play(scenario)


def test_who_passed_a_write_on_asks_its_writer_when_the_push_was_lost() -> None:
    async def scenario(house: House) -> None:
        await asyncio.sleep(40)
        house.partition("ab", "cde")
        version = await house["a"].admin.put("user/1", {"name": "ann"})
        house.groups = []  # nobody was told that they see each other again
        assert not await house["c"].admin.reached(version, 0.2)
        assert await house["c"].admin.reached(version, 1.0, teller=house["a"].id)
        assert house["c"].admin.get("user/1") == {"name": "ann"}

    play(scenario)


def test_what_a_version_names_is_reached_by_something_newer_too() -> None:
    async def scenario(house: House) -> None:
        a = house["a"].admin
        house.partition("a", "bcde")
        first = await a.put("user/1", {"name": "ann"})
        await a.put("user/2", {"name": "bob"})
        both = a.version
        await a.put("user/1", {"name": "anna"})
        await a.end("user/2", "left")
        assert not await house["b"].admin.reached(first, 0.1)
        house.heal()
        assert await house["b"].admin.reached(first, 5)
        assert await house["b"].admin.reached(both, 5)
        for nonsense in ("x", "1.2", ",", "0.0.user/1,", "ffffffffffffff.0.user/1", "1.1." + "k" * 5000):
            assert not await house["b"].admin.reached(nonsense, 5)
        assert await house["b"].admin.reached("", 0)

    play(scenario)


def test_a_peer_that_was_off_has_everything_within_seconds() -> None:
    async def scenario(house: House) -> None:
        await house.turn_off("e")
        for number in range(300):
            await house["a"].admin.put(f"agent/{number}", {"url": "http://x" * 200, "n": number})
        await house["a"].admin.end("agent/7", "gone")
        await house.turn_on("e")
        await equal(house, within_s=5)
        assert house["e"].admin.get("agent/299") == {"url": "http://x" * 200, "n": 299}
        await house.turn_off("e")
        await house.turn_on("e")
        assert house["e"].admin.is_ended("agent/7"), "from its own disk"

    play(scenario)


def test_maps_with_thousands_of_differences_on_both_sides_become_equal() -> None:
    async def scenario(house: House) -> None:
        house.partition("a", "b")
        a, b = house["a"].admin, house["b"].admin
        await asyncio.gather(*(a.put(f"session/a{n}", {"x": n}) for n in range(1500)))
        await asyncio.gather(*(b.put(f"session/b{n}", {"x": n}) for n in range(1500)))
        house.heal()
        before = house.calls
        await equal(house, within_s=5)
        assert house.calls - before < 40
        assert house["a"].admin.replica.map.rows == 3000

    play(scenario, names="ab")


def test_equal_maps_are_left_alone_but_for_a_question_now_and_then() -> None:
    async def scenario(house: House) -> None:
        await house["a"].admin.put("setting/x", {"value": 1})
        await asyncio.sleep(60)
        before = house.calls
        await asyncio.sleep(600)
        assert 5 * 600 / 37.5 - 5 <= house.calls - before <= 5 * 600 / 22.5 + 5
        assert house["c"].spread.status().differing == ()
        age = house["c"].admin.status().last_sync_age_s
        assert age is not None and age < 40

    play(scenario)


def test_a_full_disk_refuses_a_write_here_and_still_takes_in_what_was_revoked_elsewhere() -> None:
    async def scenario(house: House) -> None:
        await house["a"].admin.put("key/1", {"name": "x"})
        house["b"].store.is_full = True
        with pytest.raises(Exception, match="disk is full"):
            await house["b"].admin.put("key/2", {"name": "y"})
        assert house["b"].admin.get("key/2") is None
        await house["a"].admin.end("key/1", "stolen")
        assert house["b"].admin.is_ended("key/1")
        assert house["b"].admin.status().not_stored == 1
        await house.turn_off("b")
        house["b"].store.is_full = False
        await house.turn_on("b")
        assert not house["b"].admin.is_ended("key/1")
        await equal(house, within_s=5)

    play(scenario)


def test_a_version_names_all_writes_of_the_last_seconds() -> None:
    async def scenario(house: House) -> None:
        house.partition("a", "bcde")
        a = house["a"].admin
        await a.put("user/1", {"name": "ann"})
        await a.put("user/2", {"name": "bob"})
        version = a.version
        house.groups = []
        second = [row for row in house["a"].rows if row.key == "user/2"]
        await push_of(house["a"].id, house, second, to="b")
        assert house["b"].admin.get("user/2") and not await house["b"].admin.reached(version, 0.1)
        await push_of(house["a"].id, house, list(house["a"].rows), to="b")
        assert await house["b"].admin.reached(version, 0.1)
        await asyncio.sleep(11)
        assert a.version == ""

    play(scenario)


def test_a_write_to_what_somebody_else_had_ended_before_is_reached_where_it_is_over() -> None:
    async def scenario(house: House) -> None:
        await house["a"].admin.put("key/1", {"name": "x"})
        house.partition("ac", "bde")
        await house["b"].admin.end("key/1", "stolen")
        await asyncio.sleep(1)
        version = await house["a"].admin.put("key/1", {"name": "y"})
        assert await house["d"].admin.reached(version, 0.1)

    play(scenario)


def test_who_missed_a_push_sees_it_by_the_digest_that_others_tell() -> None:
    async def scenario(house: House) -> None:
        await asyncio.sleep(5)
        for number in range(5):
            house.frozen.add("e")  # nobody reaches it, it reaches everybody
            await house["a"].admin.put("setting/x", {"value": number})
            assert house["e"].admin.get("setting/x") != {"value": number}
            await equal(house, within_s=5)
            house.frozen.clear()
            await asyncio.sleep(10)

    play(scenario)


# --- clocks


def test_rows_of_a_clock_that_is_ahead_are_refused_and_people_see_it_on_both_sides() -> None:
    async def scenario(house: House) -> None:
        # d is five minutes ahead and writes before it has heard anybody
        house.partition("abce", "d")
        await house["d"].admin.put("setting/x", {"value": "from the future"})
        house.heal()
        await asyncio.sleep(10)
        assert house["a"].admin.get("setting/x") is None
        assert house["a"].admin.status().refused["clock"] >= 1
        assert "d" in house["a"].admin.status().clock
        assert house["d"].admin.status().clock.startswith("the clock of this machine is 300 s ahead of that of a, b")
        # from now on it is told when it writes, instead of writing what counts nowhere
        with pytest.raises(ClockWrong, match="300 s ahead"):
            await house["d"].admin.put("setting/y", {"value": 1})
        # but what it ends is over, everywhere and at once
        await house["a"].admin.put("key/1", {"name": "x"})
        await house["d"].admin.end("key/1", "stolen")
        assert all(peer.admin.is_ended("key/1") for peer in house.peers.values())
        (ending,) = (row for row in house["a"].rows if row.field == ENDED)
        assert abs(ending.clock.ms - house["a"].now_ms()) < 1000, "dated by the others' clocks"
        # and what was refused is taken once its time has come; until then nobody asks for it all the time
        before = house.calls
        await asyncio.sleep(225)
        assert house.calls - before < 5 * 225 / 5
        assert house["a"].admin.get("setting/x") is None
        await asyncio.sleep(15)
        await equal(house, within_s=60)
        assert house["a"].admin.get("setting/x") == {"value": "from the future"}
        # nobody's clock was pulled further than that
        now_ms = house["a"].now_ms()
        assert not any(house[name].admin.replica.clock.last.is_ahead(now_ms) for name in "abce")

    play(scenario, skew_s={"d": 300})


def test_a_clock_that_is_behind_reads_late_and_does_not_write_over_what_it_cannot_read() -> None:
    async def scenario(house: House) -> None:
        await house["a"].admin.put("key/1", {"name": "first"})
        await asyncio.sleep(5)
        await house["a"].admin.put("key/1", {"name": "second"})
        e = house["e"].admin
        assert e.get("key/1") is None
        with pytest.raises(ClockWrong, match="one of the two clocks is wrong"):
            await e.put("key/1", {"name": "third"})
        await e.put("key/2", {"name": "mine"})
        assert house["a"].admin.get("key/2") == {"name": "mine"}
        assert e.status().clock.startswith("the clock of this machine is 300 s behind")
        assert e.status().refused["clock"] >= 2
        await house["b"].admin.end("key/2", "stolen")
        assert e.is_ended("key/2"), "endings count whatever the clocks say"
        await asyncio.sleep(300)
        await equal(house, within_s=60)
        assert e.get("key/1") == {"name": "second"}
        await e.put("key/1", {"name": "third"})
        await equal(house, within_s=30)
        assert house["a"].admin.get("key/1") == {"name": "third"}

    play(scenario, skew_s={"e": -300})


def test_a_machine_whose_clock_was_hours_ahead_is_one_of_them_once_it_is_set() -> None:
    async def scenario(house: House) -> None:
        house.partition("ab", "c")
        c = house["c"]
        await c.admin.put("key/1", {"name": "made at night"})
        await c.admin.put("key/1", {"note": "x"})
        house.heal()
        await asyncio.sleep(10)
        assert house["a"].admin.get("key/1") is None
        c.skew_ms = 0
        await asyncio.sleep(60)
        assert house.all_equal()
        assert house["a"].admin.get("key/1") == {"name": "made at night", "note": "x"}
        await c.admin.put("key/1", {"name": "and renamed"})
        assert house["a"].admin.get("key/1") == {"name": "and renamed", "note": "x"}
        # and the same again, with a process that has known better
        house.partition("ab", "c")
        await asyncio.sleep(700)
        c.skew_ms = 9 * 3_600_000
        await c.admin.put("key/1", {"name": "the third name"})
        c.skew_ms = 0
        await c.admin.put("key/2", {"name": "while alone"})
        house.heal()
        await asyncio.sleep(60)
        assert house.all_equal()
        assert house["a"].admin.get("key/1") == {"name": "the third name", "note": "x"}
        assert house["a"].admin.get("key/2") == {"name": "while alone"}

    play(scenario, names="abc", skew_s={"c": 9 * 3600})


# --- who counts


def test_what_a_revoked_peer_wrote_is_signed_anew_and_what_it_writes_since_counts_nowhere() -> None:
    async def scenario(house: House) -> None:
        d = house["d"].admin
        await d.put("key/1", {"name": "by d"})
        await d.put("key/2", {"name": "by d, ended"})
        await d.end("key/2", "old")
        await equal(house, within_s=10)
        house.partition("abce", "d")
        house.revoke("a", "d")
        await d.put("key/1", {"name": "by a thief"})
        await d.put("key/3", {"name": "by a thief"})
        await d.put("key/1", {"name": "by a thief again"})
        house.heal()
        await equal(house, "abce", within_s=15)
        await asyncio.sleep(120)
        for name in "abce":
            admin = house[name].admin
            assert admin.get("key/1") == {"name": "by d"}
            assert admin.is_ended("key/2")
            assert admin.get("key/3") is None
            assert {row.author for row in house[name].rows} == {house["a"].id}
        assert house.all_equal("abce")

    play(scenario)


def test_new_signatures_for_the_rows_of_who_left_are_told_at_once() -> None:
    async def scenario(house: House) -> None:
        await house["d"].admin.put("key/1", {"name": "by d"})
        await equal(house, within_s=10)
        house.revoke("a", "d")
        await asyncio.sleep(0.1)
        assert {row.author for name in "abce" for row in house[name].rows} == {house["a"].id}

    play(scenario)


def test_what_a_thief_wrote_on_the_other_side_of_a_partition_falls_but_its_endings_stay() -> None:
    async def scenario(house: House) -> None:
        thief = house["d"].admin
        await house["a"].admin.put("key/1", {"name": "a"})
        await house["a"].admin.put("key/2", {"name": "a"})
        house.partition("abc", "de")
        await asyncio.sleep(60)
        house.revoke("a", "d")
        await thief.put("user/evil", {"role": "admin"})
        await thief.put("key/1", {"name": "thief"})
        await thief.end("key/2", "by a thief")
        assert house["e"].admin.get("user/evil") == {"role": "admin"}
        await asyncio.sleep(60)
        house.partition("abce", "d")
        house.learn(house["a"].roster, "e")
        for one in "abc":
            house.greet(house[one], house["e"])
            house.greet(house["e"], house[one])
        await equal(house, "abc", within_s=5)
        await asyncio.sleep(150)
        assert house.all_equal("abce")
        for name in "abce":
            assert house[name].admin.get("user/evil") is None
            assert house[name].admin.get("key/1") == {"name": "a"}
            assert house[name].admin.is_ended("key/2"), "what was seen to end does not come back"

    play(scenario)


def test_without_a_coordinator_nothing_of_a_departed_member_is_lost_until_there_is_one() -> None:
    async def scenario(house: House) -> None:
        await house["a"].admin.put("key/1", {"name": "by a"})
        await equal(house, within_s=10)
        house.revoke("b", "a")
        house.coordinators = ""
        house.partition("bcde", "a")
        await asyncio.sleep(30)
        assert all(house[name].admin.get("key/1") for name in "bcde")
        house.coordinators = "b"
        await asyncio.sleep(120)
        assert house.all_equal("bcde")
        assert all(house[name].admin.get("key/1") == {"name": "by a"} for name in "bcde")

    play(scenario)


def test_a_guest_has_keys_and_settings_but_neither_users_nor_secrets_and_writes_nothing() -> None:
    async def scenario(house: House) -> None:
        a, guest = house["a"].admin, house["e"]
        await a.put("user/1", {"name": "ann", "password": "argon2"})
        await a.put("key/1", {"hash": "sha256"})
        await a.put("agent/1", {"url": "http://x", "secret_token": "abc"})
        await a.end("session/1", "logged out")
        await a.end("user/2", "deleted")

        async def check() -> None:
            assert guest.admin.get("user/1") is None and not guest.admin.is_ended("user/2")
            assert guest.admin.get("key/1") == {"hash": "sha256"}
            assert guest.admin.get("agent/1") == {"url": "http://x"}
            assert guest.admin.is_ended("session/1")
            assert house["b"].admin.get("agent/1") == {"url": "http://x", "secret_token": "abc"}

        await check()
        with pytest.raises(NoSigner):
            await guest.admin.put("key/2", {"hash": "mine"})
        with pytest.raises(NoSigner):
            await guest.admin.end("key/1", "mine")
        # what it missed it asks for, and gets no more than that
        house.partition("abcd", "e")
        await a.put("user/3", {"name": "bob"})
        await a.put("key/3", {"hash": "x"})
        house.heal()
        await asyncio.sleep(10)
        assert guest.admin.get("key/3") == {"hash": "x"} and guest.admin.get("user/3") is None
        await check()
        assert guest.spread.status().differing == (), "what it may not have does not look like a difference"
        assert house["a"].spread.status().differing == ()
        # however it asks
        everything = Ask(mesh=house.roster.mesh_id, buckets=tuple(range(BUCKETS)), have=b"unknown?")
        for name, rows in (("e", 4), ("b", 4 + 5)):
            status, body = await house["a"].spread.exchange.sync(house[name].id, CODEC.encode(everything))
            told = decoded(body)
            assert status == 200 and isinstance(told, Told) and len(told.rows) == rows
            assert told.wanted == (b"" if name == "e" else b"unknown?")
        nothing = Compare(mesh=house.roster.mesh_id, now_ms=EPOCH_MS, last_synced_ms=0, horizon_ms=0, digest=b"")
        _, body = await house["a"].spread.exchange.sync(house["e"].id, CODEC.encode(nothing))
        compared = decoded(body)
        assert isinstance(compared, Compared) and len(compared.digests) == BUCKETS // 2 * DIGEST_BYTES
        # a push by it is refused whatever it holds
        push = Push(
            mesh=house.roster.mesh_id, now_ms=EPOCH_MS, last_synced_ms=guest.admin.replica.last_synced_ms, rows=()
        )
        assert await house["a"].spread.exchange.rows(house["e"].id, CODEC.encode(push)) == (403, b"")

    play(scenario, guests="e")


def test_who_becomes_a_guest_gives_back_what_guests_do_not_have_and_gets_it_again_when_trusted() -> None:
    async def scenario(house: House) -> None:
        await house["a"].admin.put("user/1", {"name": "ann"})
        assert house["e"].admin.get("user/1")
        demoted = house["a"].roster.demote(who("a"), house["e"].id, 7)
        house.learn(demoted, "abcde")
        await asyncio.sleep(1)
        assert house["e"].admin.get("user/1") is None
        assert ("user/1", "name") not in house["e"].store.rows
        house.learn(demoted.trust(who("a"), house["e"].id, 8), "abcde")
        await equal(house, within_s=60)
        assert house["e"].admin.get("user/1") == {"name": "ann"}

    play(scenario)


# --- long absences


def test_endings_are_collected_after_thirty_days_but_those_of_keys_peers_and_users() -> None:
    async def scenario(house: House) -> None:
        a = house["a"].admin
        for key in ("session/1", "agent/1", "key/1", "peer/1", "user/1"):
            await a.put(key, {"x": 1})
            await a.end(key, "over")
        await house.days(29)
        assert all(peer.admin.is_ended("session/1") for peer in house.peers.values())
        await house.days(2.1)
        for peer in house.peers.values():
            assert [key for key in ("session/1", "agent/1") if peer.admin.is_ended(key)] == []
            assert all(peer.admin.is_ended(key) for key in ("key/1", "peer/1", "user/1"))
            assert ("session/1", "ended") not in peer.store.rows
        assert house.all_equal()

    play(scenario, names="ab")


def test_a_machine_whose_clock_is_months_ahead_forgets_no_ending() -> None:
    async def scenario(house: House) -> None:
        await house["a"].admin.put("agent/1", {"url": "x"})
        await house["a"].admin.end("agent/1", "gone")
        await equal(house, within_s=60)
        house["c"].skew_ms = 90 * 86_400_000
        for _ in range(20):
            await asyncio.sleep(7)
            assert house["c"].admin.is_ended("agent/1")
        assert house["c"].admin.replica.horizon_ms <= house["a"].now_ms() - 30 * 86_400_000

    play(scenario, names="abc")


def test_who_was_away_for_longer_takes_a_copy_and_brings_back_nothing_but_what_it_made_meanwhile() -> None:
    async def scenario(house: House) -> None:
        await house["a"].admin.put("agent/1", {"url": "old"})
        await house["a"].admin.put("agent/2", {"url": "kept"})
        await equal(house, within_s=60)
        await house.turn_off("c")
        await house["a"].admin.end("agent/1", "gone")
        await house.days(32)
        assert not house["a"].admin.is_ended("agent/1"), "nobody knows of it any more"
        await house.turn_on("c")
        house.partition("ab", "c")
        await house["c"].admin.put("key/new", {"name": "made alone"})
        await house["c"].admin.put("agent/1", {"note": "edited alone"})
        assert house["c"].admin.get("agent/1") is not None
        house.groups = []  # nobody was told that they see each other again
        # neither takes from the other before the one that was away has a copy; it hears that it needs one
        told = await push_of(house["c"].id, house, list(house["c"].rows), to="b", by=house["c"])
        assert told == {"stale": 1} and house["b"].admin.get("key/new") is None
        await house["a"].spread.sync(house["c"].id)
        assert house["a"].admin.get("key/new") is None
        await equal(house, within_s=5)
        for peer in house.peers.values():
            assert peer.admin.get("agent/1") is None
            assert peer.admin.get("agent/2") == {"url": "kept"}
            assert peer.admin.get("key/new") == {"name": "made alone"}
        ((name, rows),) = house["c"].store.archives
        assert name == f"admin-{house.roster.mesh_id[:8]}-2026-10-23.db"
        assert "agent/1" in {row.key for row in rows}
        assert not house["a"].store.archives + house["b"].store.archives

    play(scenario, names="abc")


def test_a_house_that_was_all_off_for_months_has_lost_nothing() -> None:
    async def scenario(house: House) -> None:
        await house["a"].admin.put("key/1", {"name": "x"})
        await house["a"].admin.end("agent/1", "gone")
        await equal(house, within_s=60)
        for name in "abc":
            await house.turn_off(name)
        await house.days(100)
        for name in "abc":
            await house.turn_on(name)
        await asyncio.sleep(60)
        assert house.all_equal()
        assert all(peer.admin.get("key/1") == {"name": "x"} for peer in house.peers.values())
        assert not [peer.store.archives for peer in house.peers.values() if peer.store.archives]

    play(scenario, names="abc")


# --- other meshes


def test_two_young_meshes_become_one_and_the_newcomers_keys_come_along() -> None:
    async def scenario(house: House) -> None:
        roster = Roster.found(who("x"), "x", 0)
        x = house.add("x", roster)
        await asyncio.sleep(5)
        await house.turn_on("x")
        await x.admin.put("setting/name", {"value": "the newcomer's"})
        await x.admin.put("setting/other", {"value": "the newcomer's"})
        await asyncio.sleep(1)
        await house["a"].admin.put("setting/name", {"value": "the larger mesh's"})
        await x.admin.put("key/x", {"name": "laptop"})
        await x.admin.put("key/gone", {"name": "laptop"})
        await x.admin.end("key/gone", "lost")
        old = x.rows
        joined = house["a"].roster.admit(who("a"), who("x").certificate_der, "x", "door", "active", 9)
        x.roster = joined
        house.learn(joined, "abc")
        await x.admin.move(joined.mesh_id, bring=True)
        await equal(house, within_s=20)
        for peer in house.peers.values():
            assert peer.admin.get("key/x") == {"name": "laptop"}
            assert peer.admin.is_ended("key/gone")
            assert peer.admin.get("setting/name") == {"value": "the larger mesh's"}, "it is the newer one"
            assert peer.admin.get("setting/other") == {"value": "the newcomer's"}
        assert [(name, len(rows)) for name, rows in x.store.archives] == [
            (f"admin-{roster.mesh_id[:8]}-2026-09-21.db", 4)
        ]
        # rows of the old mesh mean nothing here
        clock = Clock(x.now_ms(), 5)
        late = signed(who("x"), roster.mesh_id, key="key/x", field="name", value=b'"old"', clock=clock, over=NEVER)
        assert await push_of(house["a"].id, house, [*old, late], to="b") == {"older": 4, "signature": 1}

    play(scenario, names="abc")


async def push_of(sender: str, house: House, rows: Sequence[Row], *, to: str, by: Peer | None = None) -> dict[str, int]:
    """Why which of these rows are refused, pushed by a peer that knows as much as `to`, or as `by`."""
    target = house[to]
    push = Push(
        mesh=target.roster.mesh_id,
        now_ms=target.now_ms(),
        last_synced_ms=(by or target).admin.replica.last_synced_ms,
        rows=tuple(written(row) for row in rows),
    )
    status, body = await target.spread.exchange.rows(sender, CODEC.encode(push))
    pushed = decoded(body)
    assert status == 200 and isinstance(pushed, Pushed)
    return {"stale": 1} if pushed.is_stale else dict(pushed.refused)


def test_members_of_another_mesh_are_told_so_before_anything_is_looked_at() -> None:
    async def scenario(house: House) -> None:
        exchange, sender = house["a"].spread.exchange, house["b"].id
        for message in (
            Compare(mesh="other", now_ms=EPOCH_MS, last_synced_ms=2**50, horizon_ms=0, digest=b""),
            Ask(mesh="other", buckets=(), have=b""),
        ):
            assert await exchange.sync(sender, CODEC.encode(message)) == (409, b"")
        push = Push(mesh="other", now_ms=EPOCH_MS, last_synced_ms=2**50, rows=())
        assert await exchange.rows(sender, CODEC.encode(push)) == (409, b"")

    play(scenario)


def test_old_rows_told_again_change_nothing() -> None:
    async def scenario(house: House) -> None:
        a = house["a"].admin
        old: set[Row] = set()
        for number in range(4):
            await a.put("key/1", {"name": f"name {number}"})
            await a.put("agent/1", {"url": f"url {number}"})
            old |= house["a"].rows
        await a.end("agent/1", "gone")
        await equal(house, within_s=10)
        before = house["b"].digest
        refused = await push_of(house["c"].id, house, sorted(old, key=lambda row: row.clock, reverse=True), to="b")
        assert refused == {"older": 3, "ended": 4}
        assert house["b"].digest == before

    play(scenario)


def test_rows_are_judged_one_by_one_and_what_is_wrong_with_them_is_counted() -> None:
    async def scenario(house: House) -> None:
        stranger, b = Identity.generate(), house["b"]
        now = Clock(b.now_ms(), 0)

        def row(by: Identity, key: str = "key/1", mesh: str = house.roster.mesh_id, **how: object) -> Row:
            defaults: dict[str, object] = {"field": "name", "value": b'"x"', "clock": now, "over": NEVER}
            return signed(by, mesh, key=key, **{**defaults, **how})  # type: ignore[arg-type]

        good = row(who("c"), key="key/good")
        rows = [
            row(stranger),
            dataclasses.replace(row(who("c")), value=b'"forged"'),
            dataclasses.replace(row(stranger), author=house["c"].id),
            row(who("c"), mesh="another mesh"),
            row(who("c"), clock=Clock(b.now_ms() + 61_000, 0)),
            good,
            good,
        ]
        wire = [*map(written, rows), b"", b"\xc1", b"\x90", written(good)[:-1], b"x" * 70_000]
        push = Push(
            mesh=house.roster.mesh_id, now_ms=EPOCH_MS, last_synced_ms=b.admin.replica.last_synced_ms, rows=tuple(wire)
        )
        status, body = await b.spread.exchange.rows(house["c"].id, CODEC.encode(push))
        pushed = CODEC.decode(body)
        assert status == 200 and isinstance(pushed, Pushed)
        assert dict(pushed.refused) == {"author": 1, "signature": 3, "clock": 1, "malformed": 5}
        assert b.rows == {good}
        assert b.admin.status().refused == dict(pushed.refused)
        far = row(who("c"), key="key/good", field=ENDED, value=b'"over"', clock=Clock(b.now_ms() + 10**9, 0))
        assert await push_of(house["c"].id, house, [far], to="b") == {}
        assert b.admin.is_ended("key/good")

    play(scenario)


@pytest.mark.parametrize("seed", range(5))
def test_garbage_from_a_member_is_answered_and_changes_nothing(seed: int) -> None:
    async def scenario(house: House) -> None:
        await house["a"].admin.put("key/1", {"name": "x"})
        exchange, rng, sender = house["b"].spread.exchange, random.Random(seed), house["c"].id
        before = house["b"].digest
        mesh = house.roster.mesh_id
        messages = [
            CODEC.encode(message)
            for message in (
                Push(mesh=mesh, now_ms=EPOCH_MS, last_synced_ms=2**60, rows=(b"x",) * 1001),
                Push(mesh=mesh, now_ms=EPOCH_MS, last_synced_ms=2**60, rows=(b"x",)),
                Push(mesh="other", now_ms=EPOCH_MS, last_synced_ms=0, rows=()),
                Pushed(now_ms=0, digest=b""),
                Compare(mesh=mesh, now_ms=EPOCH_MS, last_synced_ms=0, horizon_ms=2**60, digest=b""),
                Compare(mesh="other", now_ms=EPOCH_MS, last_synced_ms=0, horizon_ms=0, digest=b""),
                Ask(mesh=mesh, buckets=tuple(range(8000)), have=b"x" * 5),
                Ask(mesh=mesh, buckets=(2**60,), have=b""),
                Ask(mesh=mesh, buckets=(), have=b"abc" * 100_000),
            )
        ]
        for _ in range(300):
            data = bytearray(rng.choice([*messages, rng.randbytes(rng.randrange(50))]))
            for _ in range(rng.randrange(4)):
                if data:
                    data[rng.randrange(len(data))] = rng.randrange(256)
            for answer in (exchange.rows, exchange.sync):
                status, body = await answer(sender, bytes(data))
                assert status in (200, 400, 403, 409)
                assert status != 200 or decoded(body) is not None
        assert house["b"].digest == before
        await house["a"].admin.put("key/2", {"name": "y"})
        assert house["b"].admin.get("key/2") == {"name": "y"}, "and it goes on as before"

    play(scenario)


@pytest.mark.parametrize("seed", range(5))
def test_a_member_that_answers_nonsense_stops_nobody(seed: int) -> None:
    async def scenario(house: House) -> None:
        rng = random.Random(seed)

        def nonsense() -> bytes:
            digest = rng.randbytes(32)
            return rng.choice(
                [
                    rng.randbytes(rng.randrange(100)),
                    CODEC.encode(Pushed(now_ms=rng.randrange(2**60), digest=digest, is_stale=rng.random() < 0.5)),
                    CODEC.encode(
                        Compared(
                            now_ms=house["a"].now_ms(),
                            last_synced_ms=rng.choice([0, 2**60]),
                            horizon_ms=rng.choice([0, 2**60]),
                            digests=rng.randbytes(rng.choice([0, 7, 4096])),
                        )
                    ),
                    CODEC.encode(
                        Told(
                            buckets=rng.choice([0, 1, 256, 2**40]),
                            rows=tuple(rng.randbytes(rng.randrange(9)) for _ in range(rng.randrange(3))),
                            wanted=rng.randbytes(rng.randrange(50)),
                            is_all=rng.random() < 0.5,
                        )
                    ),
                ]
            )

        house.liars["c"] = nonsense
        for number in range(60):
            await house["a"].admin.put("key/1", {"n": number})
            house["c"].set_fact("admin", rng.randbytes(32))
            await asyncio.sleep(3)
        assert house.all_equal("abde")
        assert house["b"].admin.get("key/1") == {"n": 59}
        assert not house["a"].store.archives

    play(scenario)
