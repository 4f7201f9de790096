"""The memory formula, by hand and by its properties."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from inference.models.fit import MIB, bytes_needed, context_that_fits, context_wanted, fits, kv_bytes, shown
from inference.models.model import Header
from tests.fixtures.stored_models import HALF

GB = 10**9


def test_the_kv_cache_is_what_the_engine_allocates() -> None:
    """The engine reported 32 MiB for 32,768 cells of two layers of this shape."""
    assert kv_bytes(replace(HALF, layers=2), 32_768) == 32 * MIB


def test_the_formula_written_out() -> None:
    weights, kv = 400_000_000, 8_192 * 24 * 2 * 128 * 2
    compute = 512 * 4 * (151_936 + 8 * 896)
    assert bytes_needed(HALF, weights, 8_192, 8) == weights + kv + compute + 192 * MIB + weights // 50


def test_with_room_a_chat_gets_4096_a_slot_up_to_the_models_own() -> None:
    assert context_wanted(HALF, 2) == 8_192
    assert context_that_fits(HALF, 400_000_000, budget_bytes=64 * GB, slots=2).context == 8_192
    assert context_that_fits(HALF, 400_000_000, budget_bytes=64 * GB, slots=100).context == 32_768


def test_with_little_room_the_context_shrinks_and_the_reason_has_both_numbers() -> None:
    fixed = bytes_needed(HALF, 400_000_000, 0, 8)
    budget = fixed + kv_bytes(HALF, 1_000)
    fit = context_that_fits(HALF, 400_000_000, budget_bytes=budget, slots=8)
    assert fit.fits
    assert fit.context == 768  # 1,000 in steps of 256
    assert shown(fit.needed_bytes) in fit.reason and shown(budget) in fit.reason and "768 tokens" in fit.reason


def test_without_room_it_says_what_is_missing_and_the_setting() -> None:
    fit = context_that_fits(HALF, 4 * GB, budget_bytes=2 * GB, slots=8)
    assert not fit.fits and fit.context == 0
    assert fit.needed_bytes > 4 * GB
    assert "2.0 GB may be used" in fit.reason and "LLM_NODE_MAX_MEMORY_BYTES" in fit.reason
    assert "smaller quantization" in fit.reason


def test_an_explicit_context_that_does_not_fit_is_told_the_one_that_would() -> None:
    budget = bytes_needed(HALF, 400_000_000, 4_096, 1)
    assert fits(HALF, 400_000_000, 4_096, budget_bytes=budget, slots=1).fits
    fit = fits(HALF, 400_000_000, 4_097, budget_bytes=budget, slots=1)
    assert not fit.fits
    assert "a context of 4,096 would fit" in fit.reason


def test_a_model_with_a_short_context_of_its_own_fits_with_that() -> None:
    short = replace(HALF, context=100)
    assert context_that_fits(short, 1000, budget_bytes=GB, slots=8).context == 100


def test_a_model_without_kv_cache_gets_all_it_wants() -> None:
    recurrent = replace(HALF, heads=0, heads_kv=0)
    assert context_that_fits(recurrent, 1000, budget_bytes=GB, slots=4).context == 16_384


def test_sizes_are_shown_for_people() -> None:
    assert (shown(0), shown(512_000_000), shown(3_400_000_000), shown(10**13)) == (
        "0 MB",
        "512 MB",
        "3.4 GB",
        "10,000.0 GB",
    )


HEADERS = st.builds(
    replace,
    st.just(HALF),
    context=st.integers(1, 2**20),
    layers=st.integers(1, 200),
    heads_kv=st.integers(0, 128),
    key_length=st.integers(0, 512),
    value_length=st.integers(0, 512),
    vocab=st.integers(0, 300_000),
)


@given(HEADERS, st.integers(1, 10**12), st.integers(0, 10**13), st.integers(1, 64))
def test_the_chosen_context_fits_and_the_next_step_would_not(
    header: Header, size: int, budget: int, slots: int
) -> None:
    fit = context_that_fits(header, size, budget_bytes=budget, slots=slots)
    wanted = context_wanted(header, slots)
    if fit.fits:
        assert 0 < fit.context <= wanted
        assert fit.needed_bytes == bytes_needed(header, size, fit.context, slots) <= budget
        assert fits(header, size, fit.context, budget_bytes=budget, slots=slots).fits
        assert fit.context == wanted or bytes_needed(header, size, fit.context + 256, slots) > budget
    else:
        assert bytes_needed(header, size, min(512, wanted), slots) > budget


@given(HEADERS, st.integers(1, 10**12), st.integers(0, 2**20), st.integers(1, 64))
def test_more_context_never_needs_less(header: Header, size: int, context: int, slots: int) -> None:
    assert bytes_needed(header, size, context, slots) <= bytes_needed(header, size, context + 1, slots)
