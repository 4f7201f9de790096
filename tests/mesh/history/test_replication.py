"""Logs travel between members on virtual time: pushed at once, pulled by who should hold them, and by nobody else."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from urllib.parse import parse_qsl, urlsplit

import pytest

from inference.errors import PeerGone
from mesh.calls import Answer
from mesh.history.entries import Audit, LogId, encode
from mesh.history.messages import (
    PULL_PATH,
    PUSH_PATH,
    VECTOR_PATH,
    Batch,
    Batches,
    Told,
    batch_in,
    batch_out,
    batches_in,
    batches_out,
    told_in,
    told_out,
    wants_out,
)
from mesh.history.replicas import Behind, Mate, View, Want
from mesh.history.replication import ASK_AGAIN_S, PULL_S, Replication
from mesh.history.writer import Place
from tests.fixtures.history_disk import FakeStore
from tests.fixtures.virtual_loop import Network, VirtualLoop

EPOCH_MS = 1_000_000


def virtually(work: Callable[[], Awaitable[None]]) -> None:
    """Runs it on a clock that jumps."""
    loop = VirtualLoop(Network(1))
    try:
        loop.run_until_complete(asyncio.wait_for(work(), 10_000))
    finally:
        loop.close()


def item(number: int, size: int = 0) -> bytes:
    return encode(
        Audit(at_ms=number, actor="ann", actor_kind="user", action="x", detail="d" * min(size, 4000))
    ) + bytes(max(0, size - 4000))


class Peer:
    """A store with its replication. `store` may be None: it is not open."""

    def __init__(self, house: House, name: str) -> None:
        self.house, self.name = house, name
        self.store: FakeStore | None = FakeStore(name, house.now_ms())
        self.floors: dict[LogId, int] = {}
        self.standing = Mate(peer=name, is_alive=True)
        self.replication = Replication(
            store=lambda: self.store,
            view=lambda: house.view(name),
            call=self._call,
            floors=lambda: self.floors,
            now_ms=house.now_ms,
            rng=random.Random(name),
        )
        self.task: asyncio.Task[None] | None = None

    @property
    def disk(self) -> FakeStore:
        assert self.store is not None
        return self.store

    async def write(self, *items: bytes) -> Place:
        last = await self.disk.append(items)
        self.replication.committed()
        return Place(log=self.disk.own, seq=last)

    def holds(self, log: LogId) -> list[bytes | None]:
        copy = self.disk.disk.logs.get(log)
        return copy.items if copy is not None else []

    def start(self) -> None:
        self.task = asyncio.create_task(self.replication.run())

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            self.task = None

    async def _call(
        self, peer: str, method: str, path: str, *, body: bytes = b"", timeout_s: float = 10.0, bytes_max: int = 0
    ) -> Answer:
        house = self.house
        house.asked.append((self.name, peer, urlsplit(path).path))
        await asyncio.sleep(house.delay_s)
        if not house.linked(self.name, peer):
            await asyncio.sleep(timeout_s if peer in house.silent else 0)
            raise PeerGone(f"{peer} is gone")
        target = house.peers[peer].replication.serving
        status, data = await target.answer(self.name, urlsplit(path).path, dict(parse_qsl(urlsplit(path).query)), body)
        await asyncio.sleep(house.delay_s)
        if not house.linked(peer, self.name):
            raise PeerGone(f"the answer of {peer} is lost")
        return Answer(status=status, headers={}, body=data)


class House:
    """Peers on a network that may be cut. Everybody sees the same, but who is dead is said by the test."""

    def __init__(self, *names: str, coordinator: str | None = "a") -> None:
        self.names = names
        self.coordinator = coordinator
        self.delay_s = 0.001
        self.cut: set[tuple[str, str]] = set()
        self.silent: set[str] = set()
        self.asked: list[tuple[str, str, str]] = []
        self.peers = {name: Peer(self, name) for name in names}

    def now_ms(self) -> int:
        return EPOCH_MS + round(asyncio.get_running_loop().time() * 1000)

    def linked(self, one: str, other: str) -> bool:
        return self.peers[other].task is not None and (one, other) not in self.cut

    def view(self, me: str) -> View:
        mine = self.peers[me].standing
        mates = {name: peer.standing for name, peer in self.peers.items() if name != me}
        line = [n for n, p in self.peers.items() if p.standing.is_alive and p.standing.is_eligible]
        return View(
            me=me,
            is_guest=mine.is_guest,
            is_eligible=mine.is_eligible,
            mates=mates,
            coordinator=self.coordinator,
            succession=tuple(line),
        )

    def start(self) -> None:
        for peer in self.peers.values():
            peer.start()

    def changed(self) -> None:
        for peer in self.peers.values():
            peer.replication.changed()

    async def kill(self, name: str, *, has_left: bool = False) -> None:
        """The process ends, and everybody knows."""
        await self.peers[name].stop()
        self.peers[name].standing = replace(
            self.peers[name].standing, is_alive=False, has_left=has_left, since_ms=self.now_ms()
        )
        self.changed()

    async def close(self) -> None:
        for peer in self.peers.values():
            await peer.stop()


def play(*names: str, coordinator: str | None = "a") -> Callable[[Callable[[House], Awaitable[None]]], None]:
    """Runs the scene in a house of these peers, all of them started."""

    def run(scene: Callable[[House], Awaitable[None]]) -> None:
        async def all_of_it() -> None:
            house = House(*names, coordinator=coordinator)
            house.start()
            await asyncio.sleep(1)
            try:
                await scene(house)
            finally:
                await house.close()

        virtually(all_of_it)

    return run


# -- pushing


def test_what_is_written_is_pushed_at_once_to_the_coordinator_and_one_successor() -> None:
    @play("a", "b", "c", "d")
    async def _(house: House) -> None:
        d = house.peers["d"]
        place = await d.write(item(1), item(2))
        await asyncio.sleep(0.01)
        assert [house.peers[name].holds(place.log) for name in "abc"] == [[item(1), item(2)], [item(1), item(2)], []]


def test_the_coordinator_pushes_to_two_successors() -> None:
    @play("a", "b", "c", "d")
    async def _(house: House) -> None:
        place = await house.peers["a"].write(item(1))
        await asyncio.sleep(0.01)
        assert [len(house.peers[name].holds(place.log)) for name in "bcd"] == [1, 1, 0]


def test_one_message_is_on_its_way_and_the_next_carries_what_came_meanwhile() -> None:
    @play("a", "b")
    async def _(house: House) -> None:
        b = house.peers["b"]
        house.delay_s = 0.1
        house.asked.clear()
        for number in range(1, 11):
            await b.write(item(number))
        await asyncio.sleep(1)
        assert len(house.peers["a"].holds(b.disk.own)) == 10
        assert [asked for asked in house.asked if asked == ("b", "a", PUSH_PATH)] == [("b", "a", PUSH_PATH)] * 2


def test_a_busy_peer_sends_twenty_messages_a_second_and_more_when_somebody_waits() -> None:
    @play("a", "b")
    async def _(house: House) -> None:
        b = house.peers["b"]
        for is_waited_for in (False, True):
            house.asked.clear()
            for number in range(200):
                place = await b.write(item(number))
                if is_waited_for:
                    assert await b.replication.replicated(place)
                else:
                    await asyncio.sleep(0.005)
            pushes = [asked for asked in house.asked if asked == ("b", "a", PUSH_PATH)]
            assert len(pushes) >= 200 if is_waited_for else 15 <= len(pushes) <= 25
            await asyncio.sleep(1)
        assert len(house.peers["a"].holds(b.disk.own)) == 400


def test_large_logs_travel_in_several_messages() -> None:
    @play("a", "b")
    async def _(house: House) -> None:
        b = house.peers["b"]
        for number in range(5):
            b.disk.disk.append([item(number, 700_000)])
        b.disk.disk.fsync()
        b.replication.committed()
        await asyncio.sleep(1)
        assert len(house.peers["a"].holds(b.disk.own)) == 5


def test_older_runs_are_pushed_too_and_the_newest_first() -> None:
    @play("a", "b")
    async def _(house: House) -> None:
        b = house.peers["b"]
        first = await b.write(item(1))
        house.cut = {("b", "a"), ("a", "b")}
        await b.write(item(2))
        b.disk.disk.begin_run(house.now_ms())
        second = await b.write(item(3))
        house.cut = set()
        await asyncio.sleep(10)
        a = house.peers["a"]
        assert (a.holds(first.log), a.holds(second.log)) == ([item(1), item(2)], [item(3)])


def test_a_target_that_is_not_there_is_tried_again_less_and_less_often() -> None:
    @play("a", "b", coordinator=None)
    async def _(house: House) -> None:
        b = house.peers["b"]
        house.cut = {("b", "a")}
        house.asked.clear()
        await b.write(item(1))
        await asyncio.sleep(60)
        tries = len([asked for asked in house.asked if asked[:2] == ("b", "a")])
        assert 10 < tries < 25
        house.cut = set()
        await asyncio.sleep(7)
        assert house.peers["a"].holds(b.disk.own) == [item(1)]


def test_a_target_whose_disk_is_full_gets_it_later() -> None:
    @play("a", "b")
    async def _(house: House) -> None:
        a, b = house.peers["a"], house.peers["b"]
        a.disk.is_full = True
        await b.write(item(1))
        await asyncio.sleep(10)
        a.disk.is_full = False
        await asyncio.sleep(7)
        assert a.holds(b.disk.own) == [item(1)]


def test_a_target_that_lost_its_disk_is_found_out() -> None:
    @play("a", "b", coordinator="b")
    async def _(house: House) -> None:
        a, b = house.peers["a"], house.peers["b"]
        await b.write(item(1))
        await asyncio.sleep(0.01)
        a.store = FakeStore("a", house.now_ms())
        await asyncio.sleep(ASK_AGAIN_S + 1)
        assert a.holds(b.disk.own) == [item(1)]


def test_what_was_retired_goes_on_the_copies_too() -> None:
    @play("a", "b")
    async def _(house: House) -> None:
        a, b = house.peers["a"], house.peers["b"]
        await b.write(*map(item, range(1, 6)))
        await asyncio.sleep(0.1)
        await b.disk.retire(b.disk.own, 3)
        b.replication.committed()
        await asyncio.sleep(0.1)
        assert a.disk.vector()[b.disk.own] == (3, 5)


def test_private_entries_stay_at_home() -> None:
    @play("a", "b", coordinator=None)
    async def _(house: House) -> None:
        a, b = house.peers["a"], house.peers["b"]
        b.floors[b.disk.own] = 2
        await b.write(item(1), item(2))
        await asyncio.sleep(1)
        assert a.holds(b.disk.own) == []
        status, data = await b.replication.serving.answer("a", VECTOR_PATH, {}, b"")
        assert (status, told_in(data, "b").own) == (200, {})
        await b.write(item(3))
        await asyncio.sleep(1)
        assert a.holds(b.disk.own) == [None, None, item(3)]
        house.coordinator = "a"
        a.store = FakeStore("a", house.now_ms())
        house.changed()
        await asyncio.sleep(1)
        assert a.holds(b.disk.own) == [None, None, item(3)]


# -- acknowledged elsewhere


def test_another_disk_has_it_as_soon_as_one_of_two_says_so() -> None:
    @play("a", "b", "c")
    async def _(house: House) -> None:
        house.cut = {("c", "a")}
        c = house.peers["c"]
        place = await c.write(item(1))
        async with asyncio.timeout(0.01):
            assert await c.replication.replicated(place)


def test_nobody_else_holds_it_where_there_is_nobody() -> None:
    @play("a")
    async def _(house: House) -> None:
        a = house.peers["a"]
        assert not await a.replication.replicated(await a.write(item(1)))


def test_a_copy_that_did_not_reach_a_disk_counts_for_nothing() -> None:
    @play("a", "b")
    async def _(house: House) -> None:
        a, b = house.peers["a"], house.peers["b"]
        a.disk.is_full = True
        place = await b.write(item(1))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(100):
                await b.replication.replicated(place)


# -- pulling


def test_a_new_coordinator_takes_over_what_the_successor_did_not_have() -> None:
    @play("a", "b", "c", "d")
    async def _(house: House) -> None:
        places = [await house.peers[name].write(item(1)) for name in "abcd"]
        await asyncio.sleep(0.1)
        await house.kill("a")
        house.coordinator = "d"
        house.changed()
        await asyncio.sleep(0.1)
        assert [house.peers["d"].holds(place.log) for place in places] == [[item(1)]] * 4


def test_the_coordinator_looks_every_five_seconds() -> None:
    @play("a", "b")
    async def _(house: House) -> None:
        house.asked.clear()
        await asyncio.sleep(10 * PULL_S)
        looks = [asked for asked in house.asked if asked == ("a", "b", VECTOR_PATH)]
        assert 9 <= len(looks) <= 11
        assert ("b", "a", VECTOR_PATH) in house.asked, "the first successor looks at the coordinator"


def test_only_the_coordinator_and_its_successors_look() -> None:
    @play("a", "b", "c", "d", "e")
    async def _(house: House) -> None:
        await asyncio.sleep(1)
        house.asked.clear()
        await asyncio.sleep(PULL_S * 2)
        assert {who for who, _, path in house.asked if path == VECTOR_PATH} <= {"a", "b", "c"}


def test_the_successor_takes_logs_of_the_dead_from_the_coordinator() -> None:
    """So that they survive the coordinator as well."""

    @play("a", "b", "c", "d")
    async def _(house: House) -> None:
        d = house.peers["d"]
        house.cut = {("d", "b")}
        place = await d.write(*map(item, range(1, 4)))
        await asyncio.sleep(1)
        assert house.peers["b"].holds(place.log) == []
        house.cut = set()
        await house.kill("d")
        await asyncio.sleep(PULL_S + 1)
        assert house.peers["b"].holds(place.log) == [item(1), item(2), item(3)]


def test_after_a_partition_the_coordinator_has_what_the_other_side_wrote() -> None:
    @play("a", "b", "c", "d")
    async def _(house: House) -> None:
        sides = ["ab", "cd"]
        house.cut = {(x, y) for x in "abcd" for y in "abcd" if not any(x in s and y in s for s in sides)}
        places = [await house.peers[name].write(item(ord(name))) for name in "abcd"]
        await asyncio.sleep(30)
        house.cut = set()
        await asyncio.sleep(PULL_S + 1)
        assert [len(house.peers["a"].holds(place.log)) for place in places] == [1, 1, 1, 1]


def test_large_amounts_are_pulled_in_several_messages() -> None:
    @play("a", "b", "c", coordinator="b")
    async def _(house: House) -> None:
        b, c = house.peers["b"], house.peers["c"]
        for number in range(5):
            c.disk.disk.append([item(number, 600_000)])
            b.disk.disk.take(LogId("gone", 7), number + 1, [item(number, 600_000)], 0)
        b.disk.disk.fsync()
        c.disk.disk.fsync()
        await asyncio.sleep(PULL_S + 1)
        assert len(b.holds(c.disk.own)) == 5
        house.coordinator = "c"
        house.changed()
        await asyncio.sleep(1)
        assert len(c.holds(LogId("gone", 7))) == 5


def test_a_silent_member_does_not_hold_up_the_others_for_long() -> None:
    @play("a", "b", "c", "d")
    async def _(house: House) -> None:
        house.silent = {"b"}
        house.cut = {(x, "b") for x in "acd"}
        await house.kill("a")
        place = await house.peers["c"].write(item(1))
        house.coordinator = "d"
        house.changed()
        await asyncio.sleep(3.5)
        assert house.peers["d"].holds(place.log) == [item(1)]


def test_a_member_that_has_less_than_it_says_does_not_keep_a_log_from_the_coordinator() -> None:
    @play("a", "b", "c", coordinator="c")
    async def _(house: House) -> None:
        log = LogId("gone", 7)
        for name in "ab":
            await house.peers[name].disk.take(log, 1, [item(1), item(2)], 0)
        boaster = house.peers["a"].replication.serving

        async def boast(member: str, path: str, query: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
            if path == PULL_PATH:
                return 200, batches_out(Batches())
            return 200, told_out(Told(own={}, digest=b"x", rest={log: (0, 99)}))

        boaster.answer = boast  # type: ignore[method-assign]
        await asyncio.sleep(2 * PULL_S + 1)
        assert house.peers["c"].holds(log) == [item(1), item(2)]


def test_who_lost_its_disk_gets_its_older_logs_back() -> None:
    @play("a", "b", "c")
    async def _(house: House) -> None:
        c = house.peers["c"]
        place = await c.write(item(1), item(2))
        await asyncio.sleep(0.1)
        c.store = FakeStore("c", house.now_ms())
        c.store.was_rebuilt = True
        await asyncio.sleep(PULL_S + 1)
        assert c.holds(place.log) == [item(1), item(2)]
        assert c.disk.own != place.log


def test_a_store_that_is_not_open_is_no_fault_of_anybody() -> None:
    @play("a", "b")
    async def _(house: House) -> None:
        b, store = house.peers["b"], house.peers["b"].store
        place = await b.write(item(1))
        a = house.peers["a"]
        kept, a.store = a.store, None
        await asyncio.sleep(20)
        b.store = None
        await asyncio.sleep(20)
        a.store, b.store = kept, store
        house.changed()
        await asyncio.sleep(10)
        assert a.holds(place.log) == [item(1)]


# -- who may not


def test_guests_are_told_nothing_and_nothing_is_taken_from_them() -> None:
    @play("a", "b", "g")
    async def _(house: House) -> None:
        guest = house.peers["g"]
        guest.standing = Mate(peer="g", is_alive=True, is_guest=True)
        house.changed()
        await guest.write(item(1))
        await house.peers["b"].write(item(2))
        await asyncio.sleep(2 * PULL_S)
        assert [house.peers[name].holds(guest.disk.own) for name in "ab"] == [[], []]
        assert set(guest.disk.vector()) == {guest.disk.own}
        serving = house.peers["a"].replication.serving
        log = guest.disk.own
        push = batch_out(Batch(log=log, low=0, have=1, first=1, items=(item(1),)))
        for path, body in ((VECTOR_PATH, b""), (PUSH_PATH, push), (PULL_PATH, wants_out([Want(log=log, after=0)]))):
            assert (await serving.answer("g", path, {}, body))[0] == 403
        guest.standing = Mate(peer="g", is_alive=True)
        house.changed()
        await asyncio.sleep(1)
        assert house.peers["a"].holds(log) == [item(1)], "once it is trusted, all of it"


def test_nobody_pushes_the_log_of_another() -> None:
    @play("a", "b", "c")
    async def _(house: House) -> None:
        place = await house.peers["c"].write(item(1))
        await asyncio.sleep(0.1)
        for log in (place.log, LogId("c", 5), LogId("a", 5), house.peers["a"].disk.own):
            forged = batch_out(Batch(log=log, low=0, have=2, first=2, items=(item(99),)))
            assert (await house.peers["a"].replication.serving.answer("b", PUSH_PATH, {}, forged))[0] == 403
        assert house.peers["a"].holds(place.log) == [item(1)]


def test_what_another_holds_of_a_living_peers_log_is_not_asked_for() -> None:
    @play("a", "b", "c")
    async def _(house: House) -> None:
        c = house.peers["c"]
        place = await c.write(item(1))
        await asyncio.sleep(0.1)
        await house.peers["b"].disk.take(place.log, 2, [item(99)], 0)
        await house.peers["b"].disk.take(LogId("c", 5), 1, [item(98)], 0)
        await asyncio.sleep(3 * PULL_S)
        assert house.peers["a"].holds(place.log) == [item(1)]
        assert house.peers["a"].holds(LogId("c", 5)) == []


def test_who_never_coordinates_holds_only_its_own_and_is_given_only_its_own() -> None:
    @play("a", "n", "c")
    async def _(house: House) -> None:
        never = house.peers["n"]
        never.standing = Mate(peer="n", is_alive=True, is_eligible=False)
        house.changed()
        place = await house.peers["a"].write(item(1))
        mine = await never.write(item(2))
        await asyncio.sleep(2 * PULL_S)
        assert set(never.disk.vector()) == {mine.log}
        assert house.peers["c"].holds(mine.log) == [item(2)]
        push = batch_out(Batch(log=place.log, low=0, have=1, first=1, items=(item(1),)))
        assert (await never.replication.serving.answer("a", PUSH_PATH, {}, push))[0] == 403
        wants = wants_out([Want(log=place.log, after=0), Want(log=mine.log, after=0)])
        _, data = await house.peers["a"].replication.serving.answer("n", PULL_PATH, {}, wants)
        assert [batch.log for batch in batches_in(data).batches] == [mine.log]


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x93\x01\x02\x03", b"\x81\x01\x02", b"\xff" * 100])
def test_garbage_is_refused(body: bytes) -> None:
    @play("a", "b")
    async def _(house: House) -> None:
        serving = house.peers["a"].replication.serving
        for path in (PUSH_PATH, PULL_PATH):
            assert (await serving.answer("b", path, {}, body))[0] == 400


def test_a_peer_cannot_fill_the_store_with_logs_without_end() -> None:
    @play("a", "b")
    async def _(house: House) -> None:
        a = house.peers["a"]
        for run in range(1, 4097):
            await a.disk.take(LogId("b", run), 1, [item(1)], 0)
        push = batch_out(Batch(log=LogId("b", 5000), low=0, have=1, first=1, items=(item(1),)))
        assert (await a.replication.serving.answer("b", PUSH_PATH, {}, push))[0] == 403


def test_the_vector_is_told_again_only_when_it_is_another_one() -> None:
    @play("a", "b")
    async def _(house: House) -> None:
        b = house.peers["b"]
        await b.disk.take(LogId("gone", 1), 1, [item(1)], 0)
        _, data = await b.replication.serving.answer("a", VECTOR_PATH, {}, b"")
        told = told_in(data, "b")
        assert told.rest == {LogId("gone", 1): (0, 1)}
        _, data = await b.replication.serving.answer("a", VECTOR_PATH, {"rest": told.digest.hex()}, b"")
        assert told_in(data, "b").rest is None
        await b.disk.take(LogId("gone", 1), 2, [item(2)], 0)
        _, data = await b.replication.serving.answer("a", VECTOR_PATH, {"rest": told.digest.hex()}, b"")
        assert told_in(data, "b").rest == {LogId("gone", 1): (0, 2)}


# -- what is missing


def test_the_coordinator_says_whose_newest_records_it_may_lack_and_since_when() -> None:
    @play("a", "b", "c")
    async def _(house: House) -> None:
        a = house.peers["a"]
        await asyncio.sleep(PULL_S)
        assert a.replication.behind() == []
        house.cut = {("c", "a"), ("a", "c")}
        await house.peers["c"].write(item(1))
        await asyncio.sleep(PULL_S + 1)
        (found,) = a.replication.behind()
        assert (found.peer, found.reason) == ("c", "behind")
        since = found.since_ms
        await asyncio.sleep(3 * PULL_S)
        assert a.replication.behind()[0].since_ms == since
        await house.kill("c")
        died = house.now_ms()
        await asyncio.sleep(PULL_S)
        assert a.replication.behind() == [Behind(peer="c", reason="offline", since_ms=died)]
        house.cut = set()
        house.peers["c"].standing = Mate(peer="c", is_alive=True)
        house.peers["c"].start()
        house.changed()
        await asyncio.sleep(PULL_S + 1)
        assert a.replication.behind() == []


def test_what_is_known_to_be_missing_is_counted() -> None:
    @play("a", "b", "c")
    async def _(house: House) -> None:
        a, c = house.peers["a"], house.peers["c"]
        await asyncio.sleep(PULL_S)
        a.disk.is_full = True
        await c.write(*map(item, range(1, 8)))
        await asyncio.sleep(PULL_S)
        assert [(b.peer, b.entries) for b in a.replication.behind()] == [("c", 7)]


def test_what_is_on_its_way_is_not_called_missing_and_what_is_stuck_is() -> None:
    @play("a", "b", "c")
    async def _(house: House) -> None:
        a, c = house.peers["a"], house.peers["c"]
        await asyncio.sleep(PULL_S)
        house.delay_s = 0.05
        for number in range(2000):
            await c.write(item(number))
            await asyncio.sleep(0.005)
            assert a.replication.behind() == []
        await asyncio.sleep(1)
        a.disk.is_full = True
        stuck_ms = house.now_ms()
        for number in range(1000):
            await c.write(item(number))
            await asyncio.sleep(0.005)
        (found,) = a.replication.behind()
        assert found.peer == "c"
        assert found.since_ms is not None
        assert stuck_ms <= found.since_ms <= stuck_ms + 500
        a.disk.is_full = False
        await asyncio.sleep(10)
        assert a.replication.behind() == []


def test_who_said_goodbye_after_its_last_push_is_not_missed() -> None:
    @play("a", "b", "c")
    async def _(house: House) -> None:
        c = house.peers["c"]
        await c.write(item(1))
        assert await c.replication.drained(1.0)
        await house.kill("c", has_left=True)
        assert house.peers["a"].replication.behind() == []


def test_a_stop_does_not_wait_long_for_targets_that_are_not_there() -> None:
    @play("a", "b")
    async def _(house: House) -> None:
        b = house.peers["b"]
        house.cut = {("b", "a")}
        await b.write(item(1))
        assert not await b.replication.drained(1.0)
        house.cut = set()
        assert await b.replication.drained(10.0)
        assert house.peers["a"].holds(b.disk.own) == [item(1)]


def test_a_batch_comes_through_as_it_was_sent() -> None:
    batch = Batch(log=LogId("p", 7), low=3, have=9, first=4, items=(b"x", b""))
    assert batch_in(batch_out(batch)) == batch
