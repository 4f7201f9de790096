"""Whom to evict: examples, then what must hold for any memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference.models.eviction import Evict, Load, Never, Resident, Wait, room_for


def resident(
    model: str, used_at: float, *, size: int = 10, counts: bool = True, busy: bool = False, leaving: bool = False
) -> Resident:
    return Resident(id=model, bytes=size, counts=counts, used_at=used_at, busy=busy, leaving=leaving)


def test_least_recently_used_goes_first() -> None:
    """F48: LLM_NODE_MAX_LOADED_MODELS, least recently used goes first."""
    residents = [resident("new", 3), resident("old", 1), resident("middle", 2)]
    assert room_for(1, True, residents, max_loaded=3, budget_bytes=None) == Evict(("old",))


def test_one_that_serves_is_never_chosen() -> None:
    """F48: never one that is serving."""
    residents = [resident("old", 1, busy=True), resident("new", 3)]
    assert room_for(1, True, residents, max_loaded=2, budget_bytes=None) == Evict(("new",))
    assert room_for(1, True, residents[:1], max_loaded=1, budget_bytes=None) == Wait()


def test_memory_budget_is_enforced_before_a_load() -> None:
    """F49: the budget for loaded models is enforced before a load."""
    residents = [resident("a", 1, size=40), resident("b", 2, size=40)]
    assert room_for(20, True, residents, max_loaded=9, budget_bytes=100) == Load()
    assert room_for(21, True, residents, max_loaded=9, budget_bytes=100) == Evict(("a",))
    assert room_for(100, True, residents, max_loaded=9, budget_bytes=100) == Evict(("a", "b"))
    never = room_for(101_000_000, True, residents, max_loaded=9, budget_bytes=100_000_000)
    assert isinstance(never, Never) and "101 MB" in never.reason and "100 MB" in never.reason


def test_small_old_model_stays_when_a_larger_one_must_go_anyway() -> None:
    residents = [resident("hello", 1, size=5, counts=False), resident("large", 2, size=90)]
    assert room_for(95, True, residents, max_loaded=9, budget_bytes=100) == Evict(("large",))


def test_model_that_does_not_count_needs_no_place() -> None:
    assert room_for(1, False, [resident("a", 1, busy=True)], max_loaded=1, budget_bytes=None) == Load()
    assert room_for(1, True, [resident("hello", 1, counts=False)], max_loaded=1, budget_bytes=None) == Load()


def test_room_that_is_on_its_way_is_waited_for() -> None:
    residents = [resident("leaving", 1, leaving=True), resident("idle", 2)]
    assert room_for(1, True, residents, max_loaded=2, budget_bytes=None) == Wait()


RESIDENTS = st.lists(
    st.tuples(st.integers(0, 50), st.booleans(), st.floats(0, 100), st.booleans(), st.booleans()), max_size=6
).map(
    lambda rows: [
        Resident(id=str(n), bytes=b, counts=c, used_at=u, busy=y, leaving=g) for n, (b, c, u, y, g) in enumerate(rows)
    ]
)


@given(RESIDENTS, st.integers(0, 60), st.booleans(), st.integers(1, 4), st.integers(1, 120))
def test_a_plan_makes_the_room_with_nobody_too_many(
    residents: list[Resident], needed: int, counts: bool, max_loaded: int, budget: int
) -> None:
    def fits(others: list[Resident]) -> bool:
        places = not counts or sum(r.counts for r in others) < max_loaded
        return places and sum(r.bytes for r in others) + needed <= budget

    plan = room_for(needed, counts, residents, max_loaded=max_loaded, budget_bytes=budget)
    staying = [r for r in residents if not r.leaving]
    match plan:
        case Load():
            assert fits(residents)
        case Evict(ids=ids):
            by_id = {r.id: r for r in residents}
            assert ids and not any(by_id[i].busy or by_id[i].leaving for i in ids)
            assert fits([r for r in staying if r.id not in ids])
            for spared in ids:
                assert not fits([r for r in staying if r.id not in ids or r.id == spared])
        case Wait():
            assert not fits(residents)
            assert fits(staying) or not fits([r for r in staying if r.busy])
        case Never():
            assert needed > budget
