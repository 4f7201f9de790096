"""The limits of keys: at one peer exactly, over several to 1.2 times, whatever a client does."""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.accounts.limits import (
    ACTIVE_S,
    HELD_S_MAX,
    MINUTE_S,
    TOLD_BYTES_MAX,
    Admitted,
    Held,
    Ledger,
    Quota,
    Refused,
    told_within_s,
)

NOON = 86_400.0 * 20_000 + 43_200
NOBODY: frozenset[str] = frozenset()
TEN = Quota(requests_per_minute=10)


def ask(ledger: Ledger, now: float, quota: Quota = TEN, tokens: int = 0) -> Admitted | Held | Refused:
    return ledger.ask("k", quota, tokens, now, NOON + now, NOBODY)


def test_a_peer_alone_lets_exactly_the_limit_through() -> None:
    ledger = Ledger("a")
    found = [ask(ledger, 100.0 + n / 10) for n in range(12)]
    assert [type(each) for each in found] == [Admitted] * 10 + [Refused] * 2
    refused = found[-1]
    assert isinstance(refused, Refused)
    assert (refused.meter, refused.limit, refused.used, refused.retry_after_s) == ("requests", 10, 10, 60)


def test_the_minute_slides() -> None:
    ledger = Ledger("a")
    for n in range(10):
        assert isinstance(ask(ledger, 100.0 + n), Admitted)
    assert isinstance(ask(ledger, 159.0), Refused)
    assert isinstance(ask(ledger, 161.0), Admitted)  # the first one left the window
    refused = ask(ledger, 161.5)
    assert isinstance(refused, Refused) and refused.retry_after_s == 1  # the second leaves next


def test_a_key_without_limits_is_none_of_the_ledgers_business() -> None:
    assert not Quota().is_limited
    assert TEN.is_limited and Quota(tokens_per_day=1).is_limited


def test_tokens_are_reserved_and_corrected_at_the_end() -> None:
    ledger, quota = Ledger("a"), Quota(tokens_per_minute=1000)
    first = ask(ledger, 100.0, quota, 800)
    assert isinstance(first, Admitted)
    assert first.left["tokens"].remaining == 200
    assert isinstance(ask(ledger, 100.5, quota, 300), Refused)
    ledger.settle(first, 100, 101.0, NOON)
    second = ask(ledger, 101.0, quota, 300)
    assert isinstance(second, Admitted)
    ledger.settle(second, 900, 102.0, NOON)  # it took more than was thought
    assert isinstance(ask(ledger, 102.0, quota, 1), Refused)


def test_a_request_larger_than_the_limit_takes_all_of_it() -> None:
    ledger, quota = Ledger("a"), Quota(tokens_per_minute=100)
    assert isinstance(ask(ledger, 100.0, quota, 5000), Admitted)
    assert isinstance(ask(ledger, 101.0, quota, 1), Refused)


def test_the_day_ends_at_midnight_of_utc() -> None:
    ledger, quota = Ledger("a"), Quota(tokens_per_day=1000)
    assert isinstance(ledger.ask("k", quota, 1000, 100.0, NOON, NOBODY), Admitted)
    refused = ledger.ask("k", quota, 1, 200.0, NOON + 100, NOBODY)
    assert isinstance(refused, Refused)
    assert (refused.meter, refused.retry_after_s) == ("day", 43_100)
    assert isinstance(ledger.ask("k", quota, 1, 50_000.0, NOON + 43_200, NOBODY), Admitted)


def test_what_was_used_today_survives_a_restart_and_yesterday_does_not() -> None:
    quota = Quota(tokens_per_day=1000)
    before = Ledger("a")
    before.ask("k", quota, 900, 100.0, NOON, NOBODY)
    day, tokens = before.saved()
    after = Ledger("a")
    after.restore(day, tokens, 5.0, NOON + 60)
    assert isinstance(after.ask("k", quota, 200, 6.0, NOON + 60, NOBODY), Refused)
    later = Ledger("a")
    later.restore(day, tokens, 5.0, NOON + 86_400)
    assert isinstance(later.ask("k", quota, 200, 6.0, NOON + 86_400, NOBODY), Admitted)


def test_what_other_peers_told_counts() -> None:
    here, there = Ledger("a"), Ledger("b")
    for n in range(9):
        assert isinstance(ask(there, 100.0 + n / 10), Admitted)
    here.heard("b", there.told(101.0, NOON), 101.0, NOON)
    assert isinstance(ask(here, 101.0), Admitted)
    assert isinstance(ask(here, 101.1), Refused)


def test_the_last_word_of_a_peer_that_fell_silent_ages() -> None:
    here, there = Ledger("a"), Ledger("b")
    for n in range(10):
        ask(there, 100.0 + n / 10)
    here.heard("b", there.told(101.0, NOON), 101.0, NOON)
    assert isinstance(ask(here, 160.0), Refused)
    assert isinstance(ask(here, 101.0 + MINUTE_S + 1), Admitted)


def test_the_first_request_in_a_mesh_waits_only_as_long_as_news_travels() -> None:
    ledger = Ledger("a")
    others = frozenset({"b", "c"})
    assert isinstance(ledger.ask("k", TEN, 0, 100.0, NOON, others), Admitted)  # a tenth of the limit for each other
    held = ledger.ask("k", TEN, 0, 100.0, NOON, others)
    assert held == Held(until=102.5)
    found = [ledger.ask("k", TEN, 0, 102.5, NOON, others) for _ in range(10)]
    assert [type(each) for each in found] == [Admitted] * 9 + [Refused]  # then the whole limit is there


def test_a_high_limit_needs_no_waiting_for_the_first_requests() -> None:
    ledger = Ledger("a")
    quota = Quota(requests_per_minute=60, tokens_per_minute=100_000)
    assert isinstance(ledger.ask("k", quota, 2000, 100.0, NOON, frozenset({"b", "c"})), Admitted)


def test_what_is_told_fits_a_fast_fact_and_holds_the_busiest() -> None:
    ledger = Ledger("a")
    quota = Quota(tokens_per_day=10**9)
    for n in range(100):
        ledger.ask(f"key{n:05}", quota, 10_000 + 100 * n, 100.0, NOON, NOBODY)
    data = ledger.told(101.0, NOON)
    assert len(data) <= TOLD_BYTES_MAX
    other = Ledger("b")
    other.heard("a", data, 101.0, NOON)
    assert isinstance(other.ask("key00099", Quota(tokens_per_day=19_900), 1, 101.0, NOON, NOBODY), Refused)
    assert isinstance(other.ask("key00000", Quota(tokens_per_day=10_000), 1, 101.0, NOON, NOBODY), Admitted)


def test_nothing_new_is_told_of_keys_that_are_not_used() -> None:
    ledger = Ledger("a")
    ledger.ask("k", Quota(tokens_per_day=1000), 10, 100.0, NOON, NOBODY)
    later = {ledger.told(now, NOON) for now in (170.0, 171.5, 200.0, 3000.0)}
    assert len(later) == 1 and ledger.told(101.0, NOON) not in later


def test_steady_use_is_news_again_and_again_so_that_it_is_not_forgotten() -> None:
    ledger = Ledger("a")
    quota = Quota(requests_per_minute=1000)
    told = set()
    for n in range(300):
        ledger.ask("k", quota, 0, 100.0 + n, NOON, NOBODY)
        if n >= 120:  # as many come as go: the sums stay the same
            told.add(ledger.told(100.0 + n, NOON))
    assert len(told) >= 180 / MINUTE_S * 3


def test_a_key_that_is_not_used_is_forgotten() -> None:
    ledger = Ledger("a")
    for n in range(50):
        ledger.ask(f"k{n}", TEN, 0, 100.0, NOON, NOBODY)
    busy, idle = ledger.told(101.0, NOON), ledger.told(300.0, NOON)
    assert len(idle) < 12 < len(busy)


@given(st.binary(max_size=200))
def test_garbage_from_a_peer_is_ignored(data: bytes) -> None:
    ledger = Ledger("a")
    ledger.heard("b", data, 100.0, NOON)
    assert isinstance(ask(ledger, 100.0), Admitted)


# -- several peers, and a client that does its worst


@dataclass
class Mesh:
    """Peers that hear what the others told `age_s` ago; told every half second."""

    count: int
    quota: Quota
    age_s: float = 1.0
    now: float = 1000.0
    admitted: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledgers = {f"peer{n}": Ledger(f"peer{n}") for n in range(self.count)}
        self.news: deque[tuple[float, str, bytes]] = deque()
        self.told_at = self.now

    def to(self, now: float) -> None:
        """Time passes: news are told, and arrive."""
        while self.told_at <= now:
            for name, ledger in self.ledgers.items():
                self.news.append((self.told_at + self.age_s, name, ledger.told(self.told_at, NOON + self.told_at)))
            self.told_at += 0.5
        while self.news and self.news[0][0] <= now:
            at, name, data = self.news.popleft()
            for other, ledger in self.ledgers.items():
                if other != name:
                    ledger.heard(name, data, at, NOON + at)
        self.now = now

    def ask(self, peer: str, tokens: int = 0) -> Admitted | Held | Refused:
        others = self.ledgers.keys() - {peer}
        found = self.ledgers[peer].ask("k", self.quota, tokens, self.now, NOON + self.now, others)
        if isinstance(found, Admitted):
            self.admitted.append((self.now, tokens))
        return found

    def worst(self, *, is_tokens: bool = False, window_s: float = MINUTE_S) -> int:
        """The most that went through in any window."""
        worst = total = 0
        window: deque[tuple[float, int]] = deque()
        for at, tokens in self.admitted:
            amount = tokens if is_tokens else 1
            window.append((at, amount))
            total += amount
            while window[0][0] <= at - window_s:
                total -= window.popleft()[1]
            worst = max(worst, total)
        return worst


def play(mesh: Mesh, arrivals: list[tuple[float, str, int]]) -> int:
    """Requests as they arrive (seconds from the start, peer, tokens); held ones ask again. How many were refused."""
    waiting = [(mesh.now + at, mesh.now + at, peer, tokens) for at, peer, tokens in arrivals]
    heapq.heapify(waiting)
    refused = 0
    while waiting:
        due, came, peer, tokens = heapq.heappop(waiting)
        mesh.to(max(due, mesh.now))
        found = mesh.ask(peer, tokens)
        if isinstance(found, Held) and found.until <= came + HELD_S_MAX:
            heapq.heappush(waiting, (found.until, came, peer, tokens))
        elif not isinstance(found, Admitted):
            refused += 1
    return refused


def _patterns(limit: int, rng: random.Random) -> dict[str, list[tuple[float, str, int]]]:
    """What clients do to five peers in five minutes: when, where, how many tokens."""
    many = 2 * limit

    def peer(n: int) -> str:
        return f"peer{n % 5}"

    return {
        "twice the limit": [(rng.uniform(0, 300), peer(rng.randrange(5)), 0) for _ in range(10 * limit)],
        "ten times the limit": [(rng.uniform(0, 300), peer(rng.randrange(5)), 0) for _ in range(50 * limit)],
        "all at once": [(0.0, peer(n), 0) for n in range(3 * limit)],
        "all at once, again and again": [
            (10.0 * k + rng.random() / 2, peer(n), 0) for k in range(30) for n in range(limit)
        ],
        "from one peer to the next": [
            (5 * k + 5 * rng.random(), peer(k), 0) for k in range(60) for _ in range(limit // 4)
        ],
        "faster from one to the next": [(k + rng.random(), peer(k), 0) for k in range(300) for _ in range(limit // 10)],
        "warmed up, then all at once": [(n, peer(n), 0) for n in range(20)] + [(21.0, peer(n), 0) for n in range(many)],
        "mostly at one": [(rng.uniform(0, 300), peer(max(0, rng.randrange(16) - 11)), 0) for _ in range(10 * limit)],
        "at two": [(rng.uniform(0, 300), peer(rng.randrange(2)), 0) for _ in range(10 * limit)],
        "at one": [(rng.uniform(0, 300), peer(0), 0) for _ in range(10 * limit)],
    }


@pytest.mark.parametrize("pattern", _patterns(60, random.Random(0)))
@pytest.mark.parametrize("age_s", [1.0, 2.0])
def test_five_peers_together_let_no_more_than_a_fifth_too_much_through(pattern: str, age_s: float) -> None:
    mesh = Mesh(5, Quota(requests_per_minute=60), age_s=age_s)
    arrivals = _patterns(60, random.Random(1))[pattern]
    play(mesh, arrivals)
    assert mesh.worst() <= 1.2 * 60
    if arrivals[-1][0] > 100:  # they go on and on: then the limit can be used
        assert len(mesh.admitted) >= 0.9 * 60 * 5


def test_in_a_large_mesh_news_take_longer_and_the_limit_waits_for_them() -> None:
    assert [told_within_s(n) for n in (1, 15, 16, 63, 127, 128, 2000)] == [2.5, 2.5, 4.0, 4.0, 4.0, 20.0, 20.0]
    mesh = Mesh(40, Quota(requests_per_minute=60), age_s=3.4)
    play(mesh, [(0.0, f"peer{n % 40}", 0) for n in range(240)])
    assert mesh.worst() <= 1.2 * 60


@pytest.mark.parametrize(("largest", "usable"), [(5_000, 0.9), (20_000, 0.6)])
@pytest.mark.parametrize("seed", range(3))
def test_tokens_are_held_to_the_limit_too_whatever_the_sizes(seed: int, largest: int, usable: float) -> None:
    rng = random.Random(seed)
    mesh = Mesh(5, Quota(tokens_per_minute=100_000), age_s=1.0)
    sizes = [int(largest ** rng.uniform(0.3, 1)) for _ in range(5_000_000 // largest)]
    play(mesh, [(rng.uniform(0, 300), f"peer{rng.randrange(5)}", tokens) for tokens in sizes])
    assert mesh.worst(is_tokens=True) <= 1.2 * 100_000
    assert sum(tokens for _, tokens in mesh.admitted) >= usable * 100_000 * 5


def test_the_tokens_of_a_day_are_held_to_the_limit_over_all_peers() -> None:
    rng = random.Random(3)
    mesh = Mesh(5, Quota(tokens_per_day=50_000), age_s=1.0)
    play(mesh, [(rng.uniform(0, 100), f"peer{rng.randrange(5)}", rng.randrange(1000)) for _ in range(300)])
    assert 0.9 * 50_000 <= sum(tokens for _, tokens in mesh.admitted) <= 1.2 * 50_000


def test_a_small_limit_is_there_in_full_for_a_client_that_stays_at_one_peer() -> None:
    mesh = Mesh(5, Quota(requests_per_minute=3), age_s=1.0)
    refused = play(mesh, [(n / 10, "peer2", 0) for n in range(4)])
    assert (len(mesh.admitted), refused) == (3, 1)


def test_where_a_key_was_not_used_for_a_while_news_must_travel_again() -> None:
    mesh = Mesh(2, Quota(requests_per_minute=3), age_s=1.0)
    play(mesh, [(0.0, "peer0", 0)])
    mesh.to(mesh.now + ACTIVE_S + 1)
    assert isinstance(mesh.ask("peer0"), Held)
