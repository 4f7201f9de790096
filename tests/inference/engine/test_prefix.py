"""Tests of choosing a sequence for a prompt."""

from __future__ import annotations

from array import array

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from inference.engine.prefix import (
    Placement,
    Sequence,
    common_prefix,
    placed,
    surplus,
)


def seq(i: int, tokens: list[int], *, busy: bool = False, last_used: int = 0) -> Sequence:
    return Sequence(id=i, tokens=array("i", tokens), busy=busy, last_used=last_used)


def prompt(*tokens: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(tokens, np.int32)


def test_a_conversation_that_goes_on_extends_its_own_sequence() -> None:
    sequences = [seq(0, [1, 2, 3, 4]), seq(1, []), seq(2, [1, 9])]
    assert placed(prompt(1, 2, 3, 4, 5, 6), sequences, can_rewind=True) == Placement(id=0, keep=4)


def test_the_last_token_is_always_evaluated() -> None:
    assert placed(prompt(1, 2, 3), [seq(0, [1, 2, 3])], can_rewind=True) == Placement(id=0, keep=2)


def test_a_short_request_shares_a_long_parked_prefix_instead_of_destroying_it() -> None:
    sequences = [seq(0, list(range(1, 100)), last_used=5), seq(1, [], last_used=1)]
    assert placed(prompt(1, 2, 3, 500), sequences, can_rewind=True) == Placement(id=1, keep=3, donor=0)


def test_a_running_sequence_can_be_shared_from() -> None:
    sequences = [seq(0, [1, 2, 3, 4], busy=True), seq(1, [])]
    assert placed(prompt(1, 2, 3, 7), sequences, can_rewind=True) == Placement(id=1, keep=3, donor=0)


def test_an_unknown_prompt_takes_an_empty_sequence_before_the_oldest_parked_one() -> None:
    sequences = [seq(0, [5, 6], last_used=1), seq(1, []), seq(2, [7], last_used=2)]
    assert placed(prompt(1, 2), sequences, can_rewind=True) == Placement(id=1, keep=0)
    sequences[1] = seq(1, [8], last_used=9)
    assert placed(prompt(1, 2), sequences, can_rewind=True).id in (0, 2)


def test_a_model_that_cannot_rewind_only_extends_whole_sequences() -> None:
    sequences = [seq(0, [1, 2, 3, 4]), seq(1, [1, 2]), seq(2, [])]
    assert placed(prompt(1, 2, 3, 9), sequences, can_rewind=False) == Placement(id=1, keep=2)
    assert placed(prompt(1, 9), sequences, can_rewind=False) == Placement(id=2, keep=0)


lists = st.lists(st.integers(0, 3), max_size=12)


@given(lists, lists)
def test_common_prefix_counts_equal_tokens_at_the_start(a: list[int], b: list[int]) -> None:
    expected = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert common_prefix(np.array(a, np.int32), array("i", b)) == expected
    assert common_prefix(np.array(a, np.int32), np.array(b, np.int32)) == expected


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=12), st.lists(st.tuples(lists, st.booleans()), max_size=5),
    st.booleans(),
)  # fmt: skip
def test_what_is_kept_is_really_there(tokens: list[int], held: list[tuple[list[int], bool]], can_rewind: bool) -> None:
    sequences = [seq(i, t, busy=b) for i, (t, b) in enumerate(held)] + [seq(len(held), [])]
    place = placed(np.array(tokens, np.int32), sequences, can_rewind=can_rewind)
    target = sequences[place.id]
    source = sequences[place.donor] if place.donor is not None else target
    assert not target.busy
    assert place.keep <= len(tokens) - 1
    assert list(source.tokens[: place.keep]) == tokens[: place.keep]
    if not can_rewind:
        assert place.donor is None
        assert place.keep in (0, len(target.tokens))


def test_parked_tokens_stay_within_their_bound_and_the_oldest_leave_first() -> None:
    sequences = [seq(i, [i] * 400, last_used=10 - i) for i in range(5)]
    sequences[4].busy = True
    leaving = surplus(sequences)
    assert [s.id for s in leaving] == [3, 2]  # 1,600 parked, 1,024 may stay: 800 do
    assert surplus([s for s in sequences if s not in leaving]) == []


def test_the_newest_sequence_stays_however_long_it_is() -> None:
    chat, old = seq(0, [1] * 5000, last_used=2), seq(1, [2] * 30, last_used=1)
    assert surplus([chat]) == []
    assert surplus([chat, old]) == [old]
