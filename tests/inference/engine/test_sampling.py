"""Tests of choosing a token, against a plain and slow reading of the same rules."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.chat import Sampling
from inference.engine.sampling import NotFinite, Sampler, shortlist, uniform

Row = npt.NDArray[np.float32]


def plain_shortlist(row: Row, s: Sampling) -> list[int]:
    """The rules of the module's docstring, by sorting everything."""
    ids = sorted(range(len(row)), key=lambda i: (-row[i], i))
    if s.top_k > 0:
        ids = ids[: s.top_k]
    top = float(max(row))
    p = {i: math.exp(float(row[i]) - top) for i in ids}
    if s.top_p < 1.0:
        total, reached, kept = sum(p.values()), 0.0, []
        for i in ids:
            kept.append(i)
            reached += p[i]
            if reached >= s.top_p * total:
                break
        ids = kept
    if s.min_p > 0.0:
        ids = [i for i in ids if p[i] >= s.min_p] or ids[:1]
    return ids


rows = st.lists(st.integers(-3000, 3000), min_size=1, max_size=300).map(lambda xs: np.array(xs, np.float32) / 100)


@given(rows, st.integers(0, 40), st.sampled_from([1.0, 0.95, 0.5, 0.1]), st.sampled_from([0.0, 0.05, 0.5, 1.0]))
@settings(max_examples=300, deadline=None)
def test_shortlist_is_what_sorting_everything_gives(row: Row, top_k: int, top_p: float, min_p: float) -> None:
    s = Sampling(top_k=top_k, top_p=top_p, min_p=min_p)
    if (top_k, top_p, min_p) == (0, 1.0, 0.0):
        return  # nothing is filtered: no shortlist is made
    found = shortlist(row, float(row.max()), s).tolist()
    expected = plain_shortlist(row, s)
    # a sum may reach top_p one token earlier or later by rounding
    assert found[: len(expected) - 1] == expected[: len(found) - 1] or found == expected
    assert abs(len(found) - len(expected)) <= (1 if top_p < 1 else 0)


def test_shortlist_of_a_flat_row_still_reaches_top_p() -> None:
    row = np.zeros(50_000, np.float32)
    assert len(shortlist(row, 0.0, Sampling(top_p=0.5))) == pytest.approx(25_000, abs=2)


@pytest.mark.parametrize(
    "s",
    [
        Sampling(seed=1),
        Sampling(seed=2, temperature=0.5),
        Sampling(seed=3, top_k=3),
        Sampling(seed=4, top_p=0.8),
        Sampling(seed=5, min_p=0.2, temperature=1.5),
    ],
)
def test_draws_follow_the_probabilities(s: Sampling) -> None:
    row = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05], np.float32))
    allowed = plain_shortlist(row, s)
    weights = {i: math.exp(float(row[i]) / s.temperature) for i in allowed}
    sampler = Sampler(s)
    n = 8000
    counts = Counter(sampler.pick(row) for _ in range(n))
    assert set(counts) <= set(allowed)
    for i, weight in weights.items():
        assert counts[i] / n == pytest.approx(weight / sum(weights.values()), abs=0.03)


def test_a_vocabulary_of_many_blocks_is_drawn_from_by_its_probabilities() -> None:
    row = np.full(5000, -30.0, np.float32)
    row[[7, 1024, 4999]] = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    sampler = Sampler(Sampling(seed=9))
    counts = Counter(sampler.pick(row) for _ in range(4000))
    assert set(counts) == {7, 1024, 4999}
    assert counts[7] / 4000 == pytest.approx(0.5, abs=0.03)


@given(st.integers(0, 2**63 - 1), st.integers(0, 30), st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_a_continuation_draws_what_the_undisturbed_request_would_have(seed: int, before: int, after: int) -> None:
    rng = np.random.default_rng(seed % 1000)
    logits = rng.standard_normal((before + after, 64)).astype(np.float32)
    s = Sampling(seed=seed, top_p=0.9, presence_penalty=0.5, frequency_penalty=0.2, repeat_penalty=1.2)
    whole = Sampler(s, prompt=[1, 2])
    tokens = []
    for row in logits:
        tokens.append(whole.pick(row))
        whole.accept(tokens[-1])
        if len(tokens) == before:
            draws = whole.draws
    rest = Sampler(s, prompt=[1, 2], draws=draws if before else 0)
    for token in tokens[:before]:
        rest.accept(token)
    continued = []
    for row in logits[before:]:
        continued.append(rest.pick(row))
        rest.accept(continued[-1])
    assert continued == tokens[before:]


def test_temperature_zero_is_argmax_and_draws_nothing() -> None:
    sampler = Sampler(Sampling(temperature=0.0))
    assert sampler.pick(np.array([0.1, 3.0, 2.9], np.float32)) == 1
    assert sampler.draws == 0


def test_penalties_follow_their_formulas() -> None:
    row = np.array([1.0, 0.9, -1.0, 0.8], np.float32)
    counted = Sampler(Sampling(temperature=0.0, frequency_penalty=0.1, presence_penalty=0.1))
    counted.accept(0)  # 1.0 - 0.1 - 0.1 = 0.8 < 0.9
    assert counted.pick(row) == 1
    repeated = Sampler(Sampling(temperature=0.0, repeat_penalty=2.0), prompt=[0, 1])
    assert repeated.pick(row) == 3  # 0.5, 0.45, -1, 0.8
    biased = Sampler(Sampling(temperature=0.0, logit_bias=((2, 100.0), (99, 5.0))))
    assert biased.pick(row) == 2
    assert row.tolist() == pytest.approx([1.0, 0.9, -1.0, 0.8])  # the engine's buffer is not written to


def test_repeat_penalty_forgets_what_is_older_than_its_window() -> None:
    sampler = Sampler(Sampling(temperature=0.0, repeat_penalty=10.0, repeat_last_n=2), prompt=[0])
    for token in (2, 2):
        sampler.accept(token)
    assert sampler.pick(np.array([1.0, 0.5, 0.9], np.float32)) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_unusable_logits_are_an_error(bad: float) -> None:
    with pytest.raises(NotFinite):
        Sampler(Sampling()).pick(np.array([0.0, bad], np.float32))


def test_random_numbers_are_even_and_independent_of_order() -> None:
    values = [uniform(42, i) for i in range(10_000)]
    assert all(0.0 <= v < 1.0 for v in values)
    assert np.mean(values) == pytest.approx(0.5, abs=0.02)
    assert np.corrcoef(values[:-1], values[1:])[0, 1] == pytest.approx(0.0, abs=0.05)
    assert uniform(42, 7) == values[7]
    assert uniform(43, 7) != values[7]
