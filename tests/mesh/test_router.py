"""mesh.router: the reference's balancer cases, the contract's formula, predicted time to first token."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.router import Ask, Candidate, Mode, Scored, predicted_ttft_s, prefill_rate, ranked, service_time

ASK = Ask(model_id="m", prompt_tokens=100)


def one(peer: str, **facts: Any) -> Candidate:
    return Candidate(peer=peer, **facts)


def order(
    *candidates: Candidate, ask: Ask = ASK, mode: Mode = "auto", turn: int = 0, seed: int = 0, is_sampled: bool = True
) -> list[str]:
    found = ranked(ask, candidates, mode=mode, rng=random.Random(seed), turn=turn, is_sampled=is_sampled)
    return [scored.candidate.peer for scored in found]


def firsts(*candidates: Candidate, picks: int, mode: Mode = "auto", ask: Ask = ASK) -> Counter[str]:
    rng = random.Random(5)
    return Counter(
        ranked(ask, candidates, mode=mode, rng=rng, turn=turn)[0].candidate.peer for turn in range(7, 7 + picks)
    )


# The reference's cases, by number.


def test_case_23_nine_requests_over_three_idle_holders_without_metrics_are_three_each() -> None:
    assert firsts(one("a"), one("b"), one("c"), picks=9) == {"a": 3, "b": 3, "c": 3}


def test_case_24_thirty_requests_over_three_idle_holders_are_ten_each() -> None:
    """F3"""
    assert firsts(one("a"), one("b"), one("c"), picks=30) == {"a": 10, "b": 10, "c": 10}


def test_case_64_the_worked_example_60_beats_170() -> None:
    """F56-F61"""
    a = one("a", cpu_percent=20, memory_percent=30, active_requests=1, metrics_age_s=1)
    b = one("b", cpu_percent=70, memory_percent=50, active_requests=5, metrics_age_s=1)
    found = ranked(ASK, [b, a], mode="metrics", rng=random.Random(0), turn=0)
    assert [(s.candidate.peer, s.score) for s in found] == [("a", 60.0), ("b", 170.0)]


def test_case_65_equal_cpu_and_memory_the_lower_gpu_use_wins() -> None:
    facts: dict[str, Any] = {"cpu_percent": 30, "memory_percent": 30, "metrics_age_s": 1}
    for turn in range(4):
        assert order(one("a", gpu_percent=80, **facts), one("b", gpu_percent=15, **facts), mode="metrics", turn=turn)[
            0
        ] == ("b")


def test_equal_gpu_use_the_greater_capability_wins_then_turns() -> None:
    facts: dict[str, Any] = {"cpu_percent": 30, "memory_percent": 30, "gpu_percent": 20, "metrics_age_s": 1}
    small, big = one("a", gpu_capability=7.5, **facts), one("b", gpu_capability=9.0, **facts)
    assert firsts(small, big, picks=6, mode="metrics") == {"b": 6}
    assert firsts(replace(small, gpu_capability=9.0), big, picks=6, mode="metrics") == {"a": 3, "b": 3}


def test_case_66_all_over_80_percent_cpu_go_by_turns() -> None:
    busy = [
        one(peer, cpu_percent=cpu, memory_percent=50, metrics_age_s=1)
        for peer, cpu in zip("abc", (95, 97, 99), strict=True)
    ]
    assert firsts(*busy, picks=9, mode="metrics") == {"a": 3, "b": 3, "c": 3}


def test_exactly_80_percent_is_not_over_it() -> None:
    at_limit = one("b", cpu_percent=80, memory_percent=90, metrics_age_s=1)
    over = one("a", cpu_percent=81, memory_percent=90, metrics_age_s=1)
    assert firsts(over, at_limit, picks=4, mode="metrics") == {"b": 4}


def test_case_67_a_holder_with_metrics_beats_one_without() -> None:
    heard = one("b", cpu_percent=70, memory_percent=70, active_requests=9, metrics_age_s=5)
    assert firsts(one("a"), heard, picks=4, mode="metrics") == {"b": 4}


def test_metrics_older_than_120_s_are_none() -> None:
    old = one("a", cpu_percent=1, memory_percent=1, metrics_age_s=120.5)
    heard = one("b", cpu_percent=70, memory_percent=70, active_requests=9, metrics_age_s=120.0)
    assert order(old, heard, mode="metrics") == ["b", "a"]


def test_case_68_auto_equal_load_the_faster_answers_win() -> None:
    """F62"""
    slow, quick = one("a", response_ms=240, metrics_age_s=0), one("b", response_ms=120, metrics_age_s=0)
    assert firsts(slow, quick, picks=10) == {"b": 10}


def test_case_69_auto_the_idle_cpu_wins_ten_of_ten() -> None:
    busy, idle = one("a", cpu_percent=95, metrics_age_s=1), one("b", cpu_percent=10, metrics_age_s=1)
    assert firsts(busy, idle, picks=10) == {"b": 10}


def test_case_70_auto_all_over_80_percent_the_lower_one_wins() -> None:
    hot, hotter = one("b", cpu_percent=92, metrics_age_s=1), one("a", cpu_percent=97, metrics_age_s=1)
    assert firsts(hotter, hot, picks=10, ask=replace(ASK, prompt_tokens=0)) == {"b": 10}


def test_case_71_the_greater_capability_until_it_has_a_request() -> None:
    big, small = one("a", gpu_capability=9850, gpu=True), one("b", gpu_capability=9170, gpu=True)
    assert firsts(small, big, picks=4) == {"a": 4}
    assert firsts(small, replace(big, in_flight=1), picks=4) == {"b": 4}


# What the contract adds.


def test_metrics_mode_takes_a_loaded_holder_before_one_that_has_it_on_disk() -> None:
    disk = one("a", is_loaded=False, cpu_percent=1, memory_percent=1, metrics_age_s=1)
    loaded = one("b", cpu_percent=60, memory_percent=60, metrics_age_s=1)
    assert order(disk, loaded, mode="metrics") == ["b", "a"]


@pytest.mark.parametrize("mode", ["auto", "metrics"])
def test_penalized_then_suspect_holders_come_last_and_nobody_is_left_out(mode: Mode) -> None:
    """F4"""
    suspect = one("a", is_suspect=True)
    penalized = one("b", is_penalized=True)
    both = one("c", is_suspect=True, is_penalized=True)
    full = one("d", active=4, queued=16, service_s=60.0, cpu_percent=79, memory_percent=99, active_requests=20)
    assert order(both, suspect, penalized, full, mode=mode) == ["d", "b", "a", "c"]
    assert order(both, mode=mode) == ["c"]
    assert order(mode=mode) == []


def test_a_context_too_short_for_the_prompt_comes_after_everything() -> None:
    short, suspect = one("a", context=50), one("b", context=4096, is_suspect=True)
    assert order(short, suspect) == ["b", "a"]


# Predicted time to first token.


def test_the_score_is_the_sum_of_its_parts_as_written() -> None:
    holder = one(
        "a",
        slots=4,
        active=4,
        queued=2,
        in_flight=1,
        service_s=8.0,
        prefill_tokens_per_s=50.0,
        is_loaded=False,
        load_s=6.0,
        evicts=True,
        forward_s=0.01,
    )
    scored = predicted_ttft_s(ASK, holder)
    assert scored.parts == {
        "queue_s": 8.0,  # 7 ahead of 4 slots: the fourth to finish frees ours
        "prefill_s": 2.0,
        "shared_s": 2.0,
        "load_s": 6.0,
        "evict_s": 6.0,
        "forward_s": 0.01,
    }
    assert scored.score == pytest.approx(24.01)
    assert predicted_ttft_s(replace(ASK, is_background=True), holder).parts["evict_s"] == 60.0
    assert predicted_ttft_s(ASK, replace(holder, is_loading=True)).parts["load_s"] == 3.0


def test_gpus_come_before_cpus_by_rate_measured_or_not() -> None:
    """F11"""
    size = 4_000_000_000
    assert order(one("a", size_bytes=size), one("b", size_bytes=size, gpu=True, forward_s=0.005))[0] == "b"
    quick_cpu = one("a", size_bytes=size, prefill_tokens_per_s=900.0)
    slow_gpu = one("b", size_bytes=size, gpu=True, prefill_tokens_per_s=90.0)
    assert order(slow_gpu, quick_cpu)[0] == "a"


def test_an_unmeasured_4_gb_model_prefills_at_20_and_2000_tokens_a_second() -> None:
    cpu = one("a", size_bytes=4_000_000_000)
    assert prefill_rate(cpu) == pytest.approx(20.0)
    assert prefill_rate(replace(cpu, gpu=True)) == pytest.approx(2000.0)
    assert service_time(replace(ASK, max_tokens=15), cpu) == pytest.approx(2.0)
    assert service_time(ASK, replace(cpu, response_ms=1500)) == pytest.approx(1.5)
    assert service_time(ASK, replace(cpu, response_ms=1500, service_s=3.0)) == 3.0


def test_a_busy_gpu_is_left_for_an_idle_cpu_when_the_queue_is_longer_than_the_prefill() -> None:
    gpu = one("a", gpu=True, prefill_tokens_per_s=2000.0, active=4, queued=4, service_s=10.0, metrics_age_s=0)
    cpu = one("b", prefill_tokens_per_s=20.0, metrics_age_s=0)
    assert order(gpu, cpu) == ["b", "a"]
    assert order(replace(gpu, active=3, queued=0), cpu) == ["a", "b"]


def test_an_idle_peer_serves_itself_and_a_busier_one_does_not() -> None:
    here, there = one("z", is_local=True), one("a", forward_s=0.002, metrics_age_s=0)
    assert firsts(here, there, picks=6) == {"z": 6}
    assert firsts(replace(here, active=1), there, picks=6) == {"a": 6}


def test_idle_here_beats_many_idle_others_of_stale_news() -> None:
    others = [one(peer, metrics_age_s=12.0) for peer in "abcdef"]
    assert firsts(*others, one("z", is_local=True), picks=20) == {"z": 20}


def test_a_kept_prefix_wins_until_its_holder_is_full() -> None:
    ask = Ask(model_id="m", prompt_tokens=4000, affinity={"c": 3900})
    facts: dict[str, Any] = {"prefill_tokens_per_s": 500.0, "service_s": 4.0, "metrics_age_s": 12.0}
    holders = [one(peer, **facts) for peer in "abcde"]
    assert firsts(*holders, picks=20, ask=ask) == {"c": 20}
    wedged = [replace(holder, is_penalized=holder.peer == "c") for holder in holders]
    assert "c" not in firsts(*wedged, picks=20, ask=ask)
    full = [replace(holder, in_flight=20 if holder.peer == "c" else 0) for holder in holders]
    assert "c" not in firsts(*full, picks=20, ask=ask)
    unloaded = [replace(holder, is_loaded=holder.peer != "c", size_bytes=4_000_000_000) for holder in holders]
    assert "c" not in firsts(*unloaded, picks=20, ask=ask)


def test_a_kept_prefix_is_always_in_the_draw() -> None:
    ask = Ask(model_id="m", prompt_tokens=100, affinity={"c": 90})
    facts: dict[str, Any] = {"prefill_tokens_per_s": 500.0, "service_s": 4.0, "metrics_age_s": 12.0, "active": 4}
    holders = [one(peer, queued=0 if peer == "c" else 1, **facts) for peer in "abcde"]
    assert firsts(*holders, picks=20, ask=ask) == {"c": 20}
    assert len(firsts(*holders, picks=20)) > 2


def test_old_news_of_one_idle_holder_does_not_make_a_herd() -> None:
    idle = one("a", metrics_age_s=12.0, service_s=4.0)
    busy = [one(peer, active=4, queued=2, metrics_age_s=12.0, service_s=4.0) for peer in "bcdefgh"]
    found = firsts(idle, *busy, picks=800)
    assert found["a"] < 300
    assert min(found[peer] for peer in "bcdefgh") > 30
    fresh = [replace(holder, metrics_age_s=0.1) for holder in (idle, *busy)]
    assert firsts(*fresh, picks=20) == {"a": 20}


def test_after_refusals_the_least_bad_one_is_first_whatever_is_drawn() -> None:
    holders = [
        one(peer, active=4, queued=index, metrics_age_s=12.0, service_s=4.0) for index, peer in enumerate("abcd")
    ]
    for seed in range(20):
        assert order(*holders, seed=seed, turn=seed, is_sampled=False) == ["a", "b", "c", "d"]


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        peer=st.text("abcdefgh", min_size=1, max_size=2),
        is_local=st.booleans(),
        is_suspect=st.booleans(),
        is_penalized=st.booleans(),
        is_loaded=st.booleans(),
        evicts=st.booleans(),
        slots=st.integers(0, 8),
        active=st.integers(0, 8),
        queued=st.integers(0, 40),
        in_flight=st.integers(0, 9),
        prefill_tokens_per_s=st.none() | st.floats(),
        service_s=st.none() | st.floats(),
        cpu_percent=st.none() | st.floats(0.0, 100.0),
        gpu=st.booleans(),
        gpu_percent=st.none() | st.floats(0.0, 100.0),
        metrics_age_s=st.none() | st.floats(0.0, 300.0),
        active_requests=st.integers(0, 50),
    ),
    max_size=8,
    unique_by=lambda candidate: candidate.peer,
)


@given(CANDIDATES, st.integers(0, 10**9), st.sampled_from(["auto", "metrics"]))
def test_everybody_is_ranked_once_by_standing_and_the_same_chance_gives_the_same_order(
    candidates: list[Candidate], turn: int, mode: Mode
) -> None:
    def found() -> tuple[Scored, ...]:
        return ranked(ASK, candidates, mode=mode, rng=random.Random(1), turn=turn)

    standings = [2 * s.candidate.is_suspect + s.candidate.is_penalized for s in found()]
    assert standings == sorted(standings)
    assert sorted(s.candidate.peer for s in found()) == sorted(c.peer for c in candidates)
    assert found() == found()


@given(CANDIDATES, st.integers(0, 10**9))
def test_the_first_could_be_the_best_whatever_the_news_hide(candidates: list[Candidate], turn: int) -> None:
    """Old news may excuse a queue, never a slow prefill or a load."""
    healthy = [replace(c, is_suspect=False, is_penalized=False) for c in candidates]
    found = ranked(ASK, healthy, rng=random.Random(1), turn=turn)
    if not found:
        return
    best = min(s.score for s in found)
    assert found[0].score - found[0].parts["queue_s"] - found[0].parts["shared_s"] <= best + max(0.02, 0.1 * best)
