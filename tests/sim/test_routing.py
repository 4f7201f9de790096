"""The goals of routing, small and with margin; `python -m tests.sim.routing` shows the whole figures."""

from __future__ import annotations

import statistics

import pytest

from tests.sim.routing import p99, prompt_tokens, slow_share, waits

SEEDS = range(3)


def _p99(policy: str, age_s: float) -> float:
    return statistics.fmean(p99(waits(policy, age_s=age_s, seed=seed, requests=3_000)) for seed in SEEDS)


@pytest.mark.parametrize("age_s", [1.0, 12.0])
def test_old_news_cost_at_most_1_6_times_the_wait_of_perfect_knowledge(age_s: float) -> None:
    """F3: the goal is 1.6 over 20 seeds of 20,000 requests."""
    ours = _p99("mesh", age_s)
    assert ours < 1.6 * _p99("shortest queue, perfect knowledge", age_s)
    assert ours < 0.6 * _p99("least loaded as heard", age_s)
    assert ours < 0.5 * _p99("round robin", age_s)


def test_the_same_seed_gives_the_same_waits() -> None:
    first, again = (waits("mesh", age_s=1.0, seed=4, requests=300) for _ in range(2))
    assert first == again


def test_a_chat_goes_where_its_prefix_is_unless_that_peer_is_full() -> None:
    """70 % less prompt time than round robin, and nobody waits longer for it."""
    for seed in SEEDS:
        ours, _, wait_s = prompt_tokens("mesh", seed=seed)
        theirs, _, their_wait_s = prompt_tokens("round robin", seed=seed)
        assert ours < 0.3 * theirs
        assert wait_s < 1.2 * their_wait_s


@pytest.mark.parametrize("load", [0.2, 0.6])
def test_a_holder_that_becomes_40_times_slower_loses_its_requests_within_ten_seconds(load: float) -> None:
    for seed in SEEDS:
        before, after = slow_share(seed=seed, load=load)
        assert before > 0.08
        assert after < 0.03
