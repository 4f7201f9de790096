"""Tests of how a stored model is loaded on a machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from inference.errors import ModelUnavailable
from inference.models.model import StoredModel
from mesh.loading import ENGINE_MISSING, SLOTS, Loading
from tests.fixtures.stored_models import HALF

GB = 10**9


def model(*, context: int = 8192, pooling: int | None = None, size: int = GB) -> StoredModel:
    header = replace(HALF, context=context, vocab=32_000, pooling=pooling, weights_bytes=size)
    return StoredModel(
        id="m", path=Path("/m.gguf"), size_bytes=size, sha256=None, header=header, origin="import", added_at=0.0
    )


def test_slots_share_as_much_context_as_memory_allows() -> None:
    roomy = Loading(budget_bytes=64 * GB, cores=4).spec(model())
    tight = Loading(budget_bytes=int(1.36 * GB), cores=4).spec(model())
    assert roomy.slots == roomy.parked == SLOTS
    assert roomy.context == 8192
    assert 0 < tight.context < roomy.context


def test_a_small_embedder_finds_room_beside_a_model_whose_context_took_what_there_was() -> None:
    embedder = model(pooling=1, context=512, size=GB // 4)
    for budget, size in ((8 * GB, 5 * GB), (16 * GB, 13 * GB)):
        loading = Loading(budget_bytes=budget, cores=4)
        small = model(context=1_048_576, size=size)
        chat = replace(small, header=replace(small.header, heads_kv=14))  # 2.8 GB of KV cache for all slots
        assert loading.spec(chat).context > 15_000
        assert loading.bytes_needed(chat) + loading.bytes_needed(embedder) <= budget


def test_no_more_than_half_of_the_context_is_given_up_for_a_model_that_may_never_come() -> None:
    loading = Loading(budget_bytes=int(2.1 * GB), cores=4)
    assert loading.bytes_needed(model()) > 1.3 * GB and loading.spec(model()).context == 8192


def test_a_context_that_the_user_asks_for_is_given_whole_or_refused() -> None:
    allowed = Loading(budget_bytes=64 * GB, cores=4, context=100_000)
    assert allowed.spec(model(context=131_072)).context == 100_000
    assert allowed.spec(model(context=131_072)).context_per_request == 100_000
    assert allowed.spec(model(context=2048)).context == 2048  # the model's own is the limit
    with pytest.raises(ModelUnavailable, match="context of 100,000"):
        Loading(budget_bytes=2 * GB, cores=4, context=100_000).spec(model(context=131_072))


def test_a_model_that_cannot_fit_is_refused_with_both_numbers() -> None:
    with pytest.raises(ModelUnavailable, match=r"`m` does not fit this machine.*9\.\d GB.*2\.0 GB"):
        Loading(budget_bytes=2 * GB, cores=4).spec(model(size=9 * GB))


def test_what_cannot_fit_still_has_a_size_for_the_pool() -> None:
    assert Loading(budget_bytes=2 * GB, cores=4).bytes_needed(model(size=9 * GB)) > 9 * GB


def test_an_embedding_model_is_loaded_to_embed() -> None:
    assert Loading(budget_bytes=64 * GB, cores=4).spec(model(pooling=1)).embedding
    assert not Loading(budget_bytes=64 * GB, cores=4).spec(model(pooling=0)).embedding


def test_threads_and_slots_of_the_user_win_over_what_is_chosen() -> None:
    spec = Loading(budget_bytes=64 * GB, cores=8, slots=3, threads=5).spec(model())
    assert (spec.slots, spec.threads) == (3, 5)
    assert Loading(budget_bytes=64 * GB, cores=8).spec(model()).threads == 7


def test_a_tiny_model_gets_one_thread() -> None:
    assert Loading(budget_bytes=64 * GB, cores=8).spec(model(size=3_000_000)).threads == 1


def test_without_the_engine_the_message_says_how_to_add_it() -> None:
    with pytest.raises(ModelUnavailable) as refused:
        Loading(budget_bytes=64 * GB, cores=8, has_engine=False).spec(model())
    assert refused.value.message == ENGINE_MISSING
    assert "llm-router-mesh[llama]" in ENGINE_MISSING
