"""Tests of the prefixes in plain memory."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np

from inference.engine.shelf import Shelf


@dataclass(frozen=True)
class Bytes:
    nbytes: int


def tokens(*ids: int) -> array[int]:
    return array("i", ids)


def prompt(*ids: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(ids, np.int32)


def test_the_entry_with_most_in_common_is_found() -> None:
    shelf = Shelf(1000)
    shelf.put(tokens(1, 2, 3), Bytes(10))
    shelf.put(tokens(1, 2, 9, 9), Bytes(10))
    common, saved = shelf.best(prompt(1, 2, 3, 4), whole=False)
    assert common == 3
    assert saved is not None and saved.tokens == tokens(1, 2, 3)
    assert shelf.best(prompt(5), whole=False) == (0, None)


def test_a_model_that_cannot_rewind_finds_only_what_it_can_use_to_the_end() -> None:
    shelf = Shelf(1000)
    shelf.put(tokens(1, 2, 3, 4, 5), Bytes(10))
    shelf.put(tokens(1, 2), Bytes(10))
    common, saved = shelf.best(prompt(1, 2, 3, 9), whole=True)
    assert common == 2
    assert saved is not None and saved.tokens == tokens(1, 2)


def test_the_oldest_go_when_the_budget_is_spent_and_what_is_used_is_new_again() -> None:
    shelf = Shelf(100)
    for i in range(3):
        shelf.put(tokens(i, i), Bytes(30))
    _, saved = shelf.best(prompt(0, 0, 1), whole=False)
    assert saved is not None
    shelf.used(saved)
    shelf.put(tokens(7, 7), Bytes(30))
    assert shelf.holds(tokens(0, 0)) and shelf.holds(tokens(2, 2)) and shelf.holds(tokens(7, 7))
    assert not shelf.holds(tokens(1, 1))


def test_what_is_larger_than_the_budget_is_not_kept() -> None:
    shelf = Shelf(100)
    shelf.put(tokens(1), Bytes(101))
    assert len(shelf) == 0


def test_a_longer_entry_takes_the_place_of_its_own_beginning() -> None:
    shelf = Shelf(100)
    shelf.put(tokens(1, 2), Bytes(10))
    shelf.put(tokens(1, 2, 3), Bytes(10))
    assert len(shelf) == 1
    assert shelf.holds(tokens(1, 2))
