"""Comparing two maps, from the asking side: every row once, where it is missing, and never for ever."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pytest

from mesh.admin import exchange as exchange_module
from mesh.admin.admin import Admin
from mesh.admin.clock import NEVER, Clock
from mesh.admin.exchange import Exchange
from mesh.admin.map import BUCKETS, DAY_MS, AdminMap
from mesh.admin.messages import CODEC, DIGEST_BYTES, Ask, Compare, Told, decoded, on_the_wire
from mesh.admin.replica import Taken
from mesh.admin.rounds import ROUNDS_MAX, Rounds, differing
from mesh.admin.rows import Row, signed
from tests.mesh.admin.house import EPOCH_MS, MemoryStore, roster_of, who

ROSTER = roster_of("ab")


@functools.cache
def row(number: int, *, ahead: bool = False) -> Row:
    clock = Clock(EPOCH_MS + (10**9 if ahead else 0), 0)
    return signed(who("b"), ROSTER.mesh_id, key=f"key/{number}", field="name", value=b'"x"', clock=clock, over=NEVER)


async def started(*rows: Row) -> Admin:
    admin = Admin(identity=who("a"), roster=lambda: ROSTER, store=MemoryStore(), now_ms=lambda: EPOCH_MS)
    await admin.start()
    admin.replica.map.apply(admin.replica.map.change(admin.replica.map.plan_with(rows)))
    return admin


def map_of(*rows: Row) -> AdminMap:
    found = AdminMap(ROSTER.mesh_id)
    found.apply(found.change(found.plan_with(rows)))
    return found


class Asking:
    """Rounds of `asker` with `teller`, and how often each row went over the wire."""

    def __init__(self, asker: Admin, teller: Admin) -> None:
        self.questions = 0
        self.told: list[bytes] = []
        self.given: list[bytes] = []
        self._teller = teller
        self._exchange = Exchange(teller.replica, must_ask=lambda peer: None)
        self._asker = asker
        self.rounds = Rounds(asker.replica.map, ask=self._ask, give=self._give, take=self._take)

    async def _ask(self, question: Ask) -> object | None:
        self.questions += 1
        status, body = await self._exchange.sync(who("b").peer_id, CODEC.encode(question))
        assert status == 200
        told = decoded(body)
        assert isinstance(told, Told)
        self.told += told.rows
        return told

    async def _give(self, wire: Sequence[bytes]) -> int:
        self.given += wire
        return (await self._teller.replica.take(wire, who("b").peer_id)).accepted

    async def _take(self, wire: Sequence[bytes]) -> Taken:
        return await self._asker.replica.take(wire, who("b").peer_id)


async def test_each_row_goes_over_once_in_the_direction_in_which_it_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exchange_module, "ROWS_MAX", 7)
    asker = await started(*map(row, range(100)))
    teller = await started(*map(row, range(50, 160)))
    asking = Asking(asker, teller)
    buckets = differing(asker.replica.map, on_the_wire(teller.replica.map.digests()), with_closed=True)
    assert await asking.rounds.run(buckets)
    assert asker.replica.map.digest() == teller.replica.map.digest() == map_of(*map(row, range(160))).digest()
    assert len(asking.told) == len(set(asking.told)) == 60
    assert len(asking.given) == len(set(asking.given)) == 50
    assert asking.rounds.moved == 110


async def test_what_was_refused_is_not_told_again_and_does_not_hide_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "ROWS_MAX", 7)
    asker = await started()
    teller = await started(*(row(number, ahead=number % 2 == 0) for number in range(100)))
    asking = Asking(asker, teller)
    assert not await asking.rounds.run(range(BUCKETS)), "it does not hold all that the other does"
    assert {found.key for found in asker.replica.map.all_rows()} == {f"key/{number}" for number in range(1, 100, 2)}
    assert len(asking.told) == len(set(asking.told)) == 100
    assert not asking.given


async def test_what_the_other_side_refuses_does_not_count_as_moved() -> None:
    teller = await started()
    asking = Asking(await started(*(row(number, ahead=True) for number in range(10))), teller)
    assert await asking.rounds.run(range(BUCKETS))
    assert len(asking.given) == 10 and teller.replica.map.rows == 0
    assert asking.rounds.moved == 0


async def test_more_names_than_one_question_holds_are_asked_about_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.admin.rounds.NAMES_MAX", 10)
    monkeypatch.setattr(exchange_module, "NAMES_MAX", 15)
    asker = await started(*map(row, range(100)))
    teller = await started(*map(row, range(50, 200)))
    asking = Asking(asker, teller)
    assert await asking.rounds.run(range(BUCKETS))
    assert asker.replica.map.digest() == teller.replica.map.digest()
    assert 10 < asking.questions < 60


async def test_a_map_too_old_to_be_merged_hears_so_from_who_asks_it() -> None:
    admin = await started()
    must_ask: list[str] = []
    exchange = Exchange(admin.replica, must_ask=must_ask.append)
    last_month_ms = EPOCH_MS - 31 * DAY_MS
    for last_synced_ms, horizon_ms in ((last_month_ms, last_month_ms), (EPOCH_MS, EPOCH_MS), (last_month_ms, EPOCH_MS)):
        admin.replica.last_synced_ms = last_synced_ms
        assert not must_ask
        question = Compare(
            mesh=ROSTER.mesh_id, now_ms=EPOCH_MS, last_synced_ms=EPOCH_MS, horizon_ms=horizon_ms, digest=b""
        )
        await exchange.sync(who("b").peer_id, CODEC.encode(question))
    assert must_ask == [who("b").peer_id]


@pytest.mark.parametrize(
    "answer",
    [
        None,
        Told(buckets=0, rows=(), wanted=b"", is_all=True),
        Told(buckets=2**40, rows=(), wanted=b"", is_all=True),
        Told(buckets=1, rows=(), wanted=b"", is_all=False),
    ],
)
async def test_an_answer_that_leads_nowhere_ends_it(answer: Told | None) -> None:
    asked: list[Ask] = []

    async def ask(question: Ask) -> object | None:
        asked.append(question)
        return answer

    async def take(wire: Sequence[bytes]) -> Taken:
        raise AssertionError("there is nothing to take")

    assert not await Rounds(map_of(), ask=ask, give=None, take=take).run(range(BUCKETS))
    assert len(asked) == 1


async def test_a_member_that_always_has_more_is_left_after_some_time() -> None:
    asked = 0

    async def ask(question: Ask) -> object | None:
        nonlocal asked
        asked += 1
        return Told(buckets=1, rows=(b"x%d" % asked,), wanted=b"", is_all=False)

    async def take(wire: Sequence[bytes]) -> Taken:
        return Taken(accepted=0, refused={"malformed": 1}, names=frozenset())

    assert not await Rounds(map_of(), ask=ask, give=None, take=take).run([1, 2])
    assert asked == ROUNDS_MAX


def test_a_guest_compares_what_it_may_have() -> None:
    mine, theirs = map_of(), on_the_wire(map_of(row(1)).digests())
    changed = bytearray(theirs)
    changed[200 * DIGEST_BYTES] ^= 1
    (shown,) = differing(mine, theirs, with_closed=False)
    assert shown < BUCKETS // 2
    assert differing(mine, bytes(changed), with_closed=False) == [shown]
    assert differing(mine, bytes(changed), with_closed=True) == [shown, 200]
    assert differing(mine, theirs[: shown * DIGEST_BYTES + 3], with_closed=True) == []
