"""Tests of continuous batching, on a context that checks every call as llama.cpp would, or harder."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.chat import Sampling
from inference.engine.batcher import Admitted, Batcher, Event, Failed, Made, Work

VOCAB = 64
EOG = 0


class FakeModel:
    """Tokens are letters; token 0 ends an answer."""

    is_eog = bytes([1]) + bytes(VOCAB - 1)

    def piece(self, token: int) -> bytes:
        return b"" if token == EOG else bytes([64 + token])


def follower(history: list[int]) -> int:
    """What the fake model says after `history`: it depends on all of it, so a wrong cache shows."""
    return 1 + (sum((i + 3) * t for i, t in enumerate(history)) * 2654435761 >> 7) % (VOCAB - 1)


class FakeState:
    """What a sequence held, ten bytes a token."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.nbytes = 10 * len(tokens)


class FakeContext:
    """Keeps what every sequence really holds, with one pool of cells, and asserts llama.cpp's rules."""

    def __init__(self, *, cells: int, sequences: int, batch_size: int = 64, can_rewind: bool = True) -> None:
        self.batch_size, self.cells, self.can_rewind = batch_size, cells, can_rewind
        self.token = np.zeros(batch_size, np.int32)
        self.position = np.zeros(batch_size, np.int32)
        self.sequence = np.zeros(batch_size, np.int32)
        self.wants_row = np.zeros(batch_size, np.int8)
        self.held: list[list[tuple[int, object]]] = [[] for _ in range(sequences)]  # (token, cell)
        self.rows: list[list[int]] = []
        self.evaluated = 0
        self.fail_next: int | None = None

    def _cells_used(self) -> int:
        return len({id(cell) for held in self.held for _, cell in held})

    def decode(self, n: int) -> int:
        assert 0 < n <= self.batch_size
        if self.fail_next is not None:
            result, self.fail_next = self.fail_next, None
            return result
        if self._cells_used() + n > self.cells:
            return 1
        self.rows = []
        for i in range(n):
            held = self.held[self.sequence[i]]
            assert self.position[i] == len(held), "a gap or an overlap in the positions of a sequence"
            held.append((int(self.token[i]), object()))
            if self.wants_row[i]:
                self.rows.append([t for t, _ in held])
        self.evaluated += n
        return 0

    def logits(self, rows: int) -> npt.NDArray[np.float32]:
        assert rows == len(self.rows)
        out = np.zeros((rows, VOCAB), np.float32)
        for i, history in enumerate(self.rows):
            out[i, follower(history)] = 9.0
        return out

    def forget(self, sequence: int, start: int = -1) -> bool:
        if start > 0 and not self.can_rewind and start < len(self.held[sequence]):
            return False
        del self.held[sequence][max(start, 0) :]
        return True

    def share(self, source: int, target: int, end: int) -> None:
        assert self.can_rewind
        assert not self.held[target]
        assert len(self.held[source]) >= end
        self.held[target] = self.held[source][:end]

    def save(self, sequence: int) -> FakeState:
        return FakeState([t for t, _ in self.held[sequence]])

    def restore(self, sequence: int, state: object) -> bool:
        assert isinstance(state, FakeState)
        assert not self.held[sequence]
        if self._cells_used() + len(state.tokens) > self.cells:
            return False
        self.held[sequence] = [(t, object()) for t in state.tokens]
        return True

    def clear(self) -> None:
        self.held = [[] for _ in self.held]


def alone(tokens: list[int], n: int) -> list[int]:
    """The answer the fake model gives, computed without any batching."""
    history = list(tokens)
    for _ in range(n):
        history.append(follower(history))
    return history[len(tokens) :]


def work(rid: int, tokens: list[int], n: int, **kwargs: object) -> Work:
    return Work(
        rid,
        np.array(tokens, np.int32),
        sampling=Sampling(temperature=0.0),
        max_tokens=n,
        vocabulary=FakeModel(),
        **kwargs,  # type: ignore[arg-type]
    )


def run(batcher: Batcher, limit: int = 5000) -> Iterator[Event]:
    for _ in range(limit):
        if batcher.idle:
            return
        yield from batcher.step()
    raise AssertionError("the batcher does not come to an end")


def answers(events: list[Event]) -> dict[int, list[int]]:
    out: dict[int, list[int]] = {}
    for e in events:
        if isinstance(e, Made):
            out.setdefault(e.rid, []).extend(e.tokens)
    return out


prompts = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=90), min_size=1, max_size=12)


@given(prompts, st.integers(1, 4), st.integers(0, 4), st.booleans(), st.integers(0, 10_000))
@settings(max_examples=150, deadline=None)
def test_every_answer_is_what_the_model_says_alone(
    all_prompts: list[list[int]], slots: int, parked: int, can_rewind: bool, seed: int
) -> None:
    rng = random.Random(seed)
    context = FakeContext(cells=rng.choice([120, 200, 2000]), sequences=slots + parked, can_rewind=can_rewind)
    batcher = Batcher(
        context, FakeModel(), slots=slots, parked=parked, can_rewind=can_rewind, shelf_bytes=rng.choice([0, 900, 10**6])
    )
    lengths = {i: rng.randint(1, 20) for i in range(len(all_prompts))}
    events: list[Event] = []
    for i, tokens in enumerate(all_prompts):
        batcher.submit(work(i, tokens, lengths[i]))
        for _ in range(rng.randint(0, 3)):
            if rng.random() < 0.1:
                context.fail_next = 2  # aborted by somebody's cancellation
            events += batcher.step()
    events += run(batcher)
    made = answers(events)
    for i, tokens in enumerate(all_prompts):
        assert made[i] == alone(tokens, lengths[i])
    assert not any(isinstance(e, Failed) for e in events)
    ends = [e.rid for e in events if isinstance(e, Made) and e.finish]
    assert sorted(ends) == list(range(len(all_prompts)))
    admitted = [e.rid for e in events if isinstance(e, Admitted)]
    assert sorted(admitted) == list(range(len(all_prompts)))


def test_a_second_turn_evaluates_only_what_is_new() -> None:
    context = FakeContext(cells=1000, sequences=4)
    batcher = Batcher(context, FakeModel(), slots=2, parked=2, can_rewind=True)
    first = [1, 2, 3] * 12
    batcher.submit(work(1, first, 5))
    answer = answers(list(run(batcher)))[1]
    before = context.evaluated
    batcher.submit(work(2, [*first, *answer, 7, 8], 1))
    events = list(run(batcher))
    # the last token of the answer was made, but never evaluated
    assert context.evaluated - before == 3
    assert Admitted(2, len(first) + 5 + 2, len(first) + 4) in events


def test_prompts_that_begin_alike_are_evaluated_once() -> None:
    context = FakeContext(cells=4000, sequences=8, batch_size=64)
    batcher = Batcher(context, FakeModel(), slots=4, parked=4, can_rewind=True)
    system = [1 + i % 5 for i in range(200)]
    for i in range(4):
        batcher.submit(work(i, [*system, 10 + i, 11], 3))
    made = answers(list(run(batcher)))
    assert made == {i: alone([*system, 10 + i, 11], 3) for i in range(4)}
    assert context.evaluated < 300  # 824 without sharing; a neighbour is not waited for to the last token


def test_a_request_goes_on_after_what_another_machine_produced() -> None:
    tokens = [5, 4, 3]
    whole = alone(tokens, 9)
    batcher = Batcher(FakeContext(cells=500, sequences=2), FakeModel(), slots=1, parked=1, can_rewind=True)
    batcher.submit(work(1, tokens, 9, produced=whole[:4]))
    events = list(run(batcher))
    assert answers(events)[1] == whole[4:]
    text = "".join(e.text for e in events if isinstance(e, Made))
    assert text == "".join(chr(64 + t) for t in whole[4:])


def test_a_continuation_that_is_already_complete_ends_at_once() -> None:
    batcher = Batcher(FakeContext(cells=500, sequences=1), FakeModel(), slots=1, parked=0, can_rewind=True)
    batcher.submit(work(1, [5, 4], 2, produced=alone([5, 4], 2)))
    assert [e.finish for e in run(batcher) if isinstance(e, Made)] == ["length"]


def test_a_stop_string_split_over_tokens_ends_the_answer_before_it() -> None:
    tokens = [3, 1, 2]
    letters = "".join(chr(64 + t) for t in alone(tokens, 12))
    stop = letters[5:8]
    batcher = Batcher(FakeContext(cells=500, sequences=1), FakeModel(), slots=1, parked=0, can_rewind=True)
    batcher.submit(work(1, tokens, 12, stop=(stop,)))
    made = [e for e in run(batcher) if isinstance(e, Made)]
    assert "".join(e.text for e in made) == letters[: letters.index(stop)]
    assert made[-1].finish == "stop"


def test_a_cancelled_request_frees_its_slot_at_the_next_step() -> None:
    batcher = Batcher(FakeContext(cells=500, sequences=1), FakeModel(), slots=1, parked=0, can_rewind=True)
    batcher.submit(work(1, [1], 1000))
    batcher.submit(work(2, [2], 1))
    batcher.step()
    assert batcher.counts == (1, 0, 1)
    batcher.cancel(1)
    events = batcher.step()
    assert {e.rid for e in events} == {2}
    assert batcher.idle


def test_without_room_the_newest_waits_and_nothing_is_lost() -> None:
    context = FakeContext(cells=70, sequences=3)
    batcher = Batcher(context, FakeModel(), slots=3, parked=0, can_rewind=True)
    tokens = {1: [1, 1, 2], 2: [2, 2, 1], 3: [3, 1, 3]}
    for rid, prompt in tokens.items():
        batcher.submit(work(rid, prompt, 40))
    made = answers(list(run(batcher)))
    assert made == {rid: alone(prompt, 40) for rid, prompt in tokens.items()}


def test_one_request_too_long_for_all_cells_fails_with_the_number() -> None:
    batcher = Batcher(FakeContext(cells=30, sequences=1), FakeModel(), slots=1, parked=0, can_rewind=True)
    batcher.submit(work(1, [1] * 20, 40))
    failed = [e for e in run(batcher) if isinstance(e, Failed)]
    assert len(failed) == 1
    assert "30 tokens" in failed[0].reason


def test_a_failed_evaluation_fails_who_was_in_it_and_the_next_request_works() -> None:
    context = FakeContext(cells=500, sequences=2)
    batcher = Batcher(context, FakeModel(), slots=2, parked=0, can_rewind=True)
    batcher.submit(work(1, [1, 2], 50))
    batcher.step()
    context.fail_next = -3
    assert [type(e) for e in batcher.step()] == [Failed]
    batcher.submit(work(2, [1, 2], 4))
    assert answers(list(run(batcher)))[2] == alone([1, 2], 4)


def test_unusable_logits_fail_only_their_own_request(monkeypatch: pytest.MonkeyPatch) -> None:
    context = FakeContext(cells=500, sequences=2)
    batcher = Batcher(context, FakeModel(), slots=2, parked=0, can_rewind=True)
    honest = context.logits

    def poisoned(rows: int) -> npt.NDArray[np.float32]:
        out = honest(rows)
        for i, history in enumerate(context.rows):
            if history[0] == 9:
                out[i] = np.nan
        return out

    context.logits = poisoned  # type: ignore[method-assign]
    batcher.submit(work(1, [9, 9], 5))
    batcher.submit(work(2, [1, 2], 5))
    events = list(run(batcher))
    assert [e.rid for e in events if isinstance(e, Failed)] == [1]
    assert answers(events)[2] == alone([1, 2], 5)


def test_unusable_logits_leave_nothing_behind_that_another_prompt_could_begin_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context = FakeContext(cells=500, sequences=4)
    batcher = Batcher(context, FakeModel(), slots=2, parked=2, can_rewind=True)
    honest = context.logits
    monkeypatch.setattr(context, "logits", lambda rows: np.full((rows, VOCAB), np.nan, np.float32))
    batcher.submit(work(1, [9] * 80, 5))
    assert [type(e) for e in run(batcher)] == [Admitted, Failed]
    monkeypatch.setattr(context, "logits", honest)
    batcher.submit(work(2, [9] * 90, 3))
    events = list(run(batcher))
    assert Admitted(2, 90, 0) in events
    assert answers(events)[2] == alone([9] * 90, 3)


class Cancelling(FakeContext):
    """In every evaluation a client leaves whose prompt is in it, and the batcher is asked what that is worth."""

    batcher: Batcher
    aborted: int = 0

    def decode(self, n: int) -> int:
        rid = max(w.rid for w in self.batcher._prefilling) if self.batcher._prefilling else 0
        assert not self.batcher.may_abort(1)  # it only generates
        self.batcher.cancel(rid)
        if self.batcher.may_abort(rid):
            self.aborted += 1
            return 2
        return super().decode(n)


def test_clients_that_leave_at_every_step_cannot_stop_the_stream_of_another() -> None:
    context = Cancelling(cells=5000, sequences=4, batch_size=64)
    context.batcher = batcher = Batcher(context, FakeModel(), slots=4, parked=0, can_rewind=True)
    batcher.submit(work(1, [1, 2, 3], 20))
    context.batcher = Batcher(context, FakeModel(), slots=4, parked=0, can_rewind=True)  # nobody leaves yet
    events = batcher.step()
    context.batcher = batcher
    for rid in range(2, 42):
        batcher.submit(work(rid, [rid] * 60, 1))
        events += batcher.step()
    assert answers(events)[1] == alone([1, 2, 3], 20)
    assert context.aborted > 10


def test_a_request_that_waits_for_its_turn_in_prefill_is_not_worth_an_abort() -> None:
    context = FakeContext(cells=5000, sequences=2, batch_size=64)
    batcher = Batcher(context, FakeModel(), slots=2, parked=0, can_rewind=True)
    seen: list[tuple[bool, bool]] = []
    evaluate = context.decode

    def decode(n: int) -> int:
        seen.append((batcher.may_abort(1), batcher.may_abort(2)))
        return evaluate(n)

    context.decode = decode  # type: ignore[method-assign]
    batcher.submit(work(1, [1] * 100, 1))
    batcher.submit(work(2, [2] * 100, 1))
    list(run(batcher))
    assert seen == [(True, False), (True, True), (False, True), (False, True)]
    assert not batcher.may_abort(2)


def test_a_model_that_cannot_rewind_is_never_aborted_because_everybody_would_begin_again() -> None:
    context = FakeContext(cells=5000, sequences=2, can_rewind=False)
    batcher = Batcher(context, FakeModel(), slots=2, parked=0, can_rewind=False)
    seen: list[bool] = []
    evaluate = context.decode
    context.decode = lambda n: (seen.append(batcher.may_abort(1)), evaluate(n))[1]  # type: ignore[method-assign, func-returns-value]
    batcher.submit(work(1, [1] * 100, 1))
    list(run(batcher))
    assert seen and not any(seen)


def test_only_an_evaluation_that_made_tokens_and_nothing_else_is_worth_timing() -> None:
    context = FakeContext(cells=500, sequences=3)
    batcher = Batcher(context, FakeModel(), slots=3, parked=0, can_rewind=True)

    def rows() -> int:
        batcher.step()
        return batcher.decoded_rows

    batcher.submit(work(1, [1, 2], 50))
    batcher.submit(work(2, [2, 1], 50))
    assert [rows(), rows()] == [0, 2]
    context.fail_next = 2
    assert [rows(), rows()] == [0, 2]
    context.fail_next = 1
    assert rows() == 0
    batcher.cancel(1)
    batcher.cancel(2)
    assert rows() == 0 and batcher.idle


def test_a_conversation_that_left_the_cache_comes_back_from_the_shelf() -> None:
    context = FakeContext(cells=4000, sequences=4)
    batcher = Batcher(context, FakeModel(), slots=1, parked=3, can_rewind=True, shelf_bytes=10**6)
    chat = [1, 2, 3] * 200
    batcher.submit(work(1, chat, 5))
    answer = answers(list(run(batcher)))[1]
    for i in range(4):  # others push it out: 600 tokens each, 1,024 and the newest may stay
        batcher.submit(work(10 + i, [4 + i] * 600, 2))
        assert answers(list(run(batcher)))[10 + i] == alone([4 + i] * 600, 2)
    assert sum(len(held) for held in context.held) < 2500
    before = context.evaluated
    batcher.submit(work(2, [*chat, *answer, 7], 4))
    events = list(run(batcher))
    assert answers(events)[2] == alone([*chat, *answer, 7], 4)
    assert context.evaluated - before < 20


def test_without_room_to_restore_the_prompt_is_evaluated_again() -> None:
    context = FakeContext(cells=700, sequences=3)
    batcher = Batcher(context, FakeModel(), slots=2, parked=1, can_rewind=True, shelf_bytes=10**6)
    chat = [1, 2, 3] * 100
    batcher.submit(work(1, chat, 2))
    list(run(batcher))
    batcher.submit(work(2, [9] * 500, 100))  # takes the room; the chat leaves the cache
    events = [e for _ in range(30) for e in batcher.step()]
    batcher.submit(work(3, [*chat, 5], 3))
    events += run(batcher)
    made = answers(events)
    assert made[2] == alone([9] * 500, 100)
    assert made[3] == alone([*chat, 5], 3)
