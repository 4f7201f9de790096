"""Where a request goes next, by plain calls."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    HolderFull,
    InferenceError,
    InvalidRequest,
    LoadFailed,
    ModelNotFound,
    ModelUnavailable,
    Overloaded,
    PeerGone,
    PeerLeaving,
    PeerSilent,
    StreamInterrupted,
    WorkerDied,
)
from mesh.attempts import (
    ATTEMPTS_MAX,
    BUDGET_MIN,
    EXPLAIN_BYTES_MAX,
    PATIENCE_S,
    WEDGED,
    Attempts,
    Failure,
    RetryBudget,
    Step,
)
from mesh.router import Ask, Candidate

A, B, C = (Candidate(peer=p, name=p, load_s=10.0 * n, is_loaded=n == 0, sha256="f") for n, p in enumerate("abc"))
HERE = Candidate(peer="here", name="here", is_local=True, sha256="f")


def tries(**changes: object) -> Attempts:
    ask = Ask(model_id="m", max_tokens=changes.pop("max_tokens", None))  # type: ignore[arg-type]
    return Attempts(
        ask=ask, mode="auto", rng=random.Random(1), turn=0, budget=RetryBudget(), **changes  # type: ignore[arg-type]
    )  # fmt: skip


def peers(one: Attempts, candidates: list[Candidate], *errors: InferenceError) -> list[str]:
    """Who is asked, one after another, when each fails with the next error."""
    asked = []
    for error in errors:
        step = one.next(candidates, 0.0)
        asked.append(step.candidate.peer)
        failure = one.failed(step, error, 0.0)
        assert failure.final is None, failure.final
    return [*asked, one.next(candidates, 0.0).candidate.peer]


@pytest.mark.parametrize(
    "error",
    [PeerGone("x"), PeerSilent("x"), PeerLeaving("x"), WorkerDied("x"), LoadFailed("x"), ModelUnavailable("x"),
     Overloaded("x"), ModelNotFound("x"), InferenceError("x"), DeadlineExceeded("their queue is too long")],
)  # fmt: skip
def test_every_trouble_of_a_holder_is_tried_elsewhere(error: InferenceError) -> None:
    assert peers(tries(), [A, B], error) == ["a", "b"]


def test_callers_own_fault_is_told_at_once() -> None:
    one = tries()
    error = InvalidRequest("no such thing")
    assert one.failed(one.next([A, B], 0.0), error, 0.0).final is error


def test_bad_request_of_one_that_was_to_go_on_is_that_holders_fault() -> None:
    one = tries(had_slot=True, tokens=3, made_by=A)
    step = one.next([A, B], 0.0)
    assert one.failed(step, InvalidRequest("what is this"), 0.0) == Failure()


def test_too_long_for_one_holder_is_tried_at_a_larger_one_only() -> None:
    small, same, large = (
        Candidate(peer=p, is_loaded=n == 0, load_s=10.0 * n, context=c)
        for n, (p, c) in enumerate([("small", 100), ("same", 100), ("large", 200)])
    )
    error = ContextLengthExceeded("too long")
    assert peers(tries(), [small, same, large], error) == ["small", "large"]
    one = tries()
    one.failed(one.next([small, same], 0.0), error, 0.0)
    with pytest.raises(ContextLengthExceeded):
        one.next([small, same], 0.0)


def test_full_holders_are_passed_over_twice_and_then_the_least_bad_one_is_waited_for() -> None:
    one = tries()
    for peer, may_refuse in (("a", True), ("b", True), ("a", False)):
        step = one.next([A, B, C], 0.0)
        assert (step.candidate.peer, step.may_refuse, step.attempt) == (peer, may_refuse, 1)
        one.failed(step, HolderFull("full"), 0.0)


def test_only_holder_is_not_given_the_chance_to_refuse() -> None:
    assert not tries().next([A], 0.0).may_refuse
    assert not tries(had_slot=True).next([A, B], 0.0).may_refuse, "it has waited once"


def test_two_that_are_full_are_each_asked_once_before_one_is_waited_for() -> None:
    one = tries()
    asked = []
    for _ in range(3):
        step = one.next([A, B], 0.0)
        asked.append((step.candidate.peer, step.may_refuse))
        one.failed(step, HolderFull("full"), 0.0)
    assert asked == [("a", True), ("b", True), ("a", False)]


def test_one_that_broke_is_asked_again_when_there_is_no_other_but_once() -> None:
    assert peers(tries(), [A, B], PeerGone("x"), PeerLeaving("x")) == ["a", "b", "a"]
    one = tries()
    for _ in range(2):
        one.failed(one.next([A], 0.0), PeerGone("x"), 0.0)
    with pytest.raises(ModelUnavailable, match="could answer"):
        one.next([A], 0.0)


def test_two_dead_workers_are_enough() -> None:
    one = tries()
    assert one.failed(one.next([A, B, C], 0.0), WorkerDied("x"), 0.0) == Failure()
    step = one.next([A, B, C], 0.0)
    assert step.candidate.peer == "b"
    final = one.failed(step, WorkerDied("x"), 0.0).final
    assert isinstance(final, ModelUnavailable) and "crashed 2 times" in final.message


def test_attempts_are_few() -> None:
    many = [Candidate(peer=f"{n}", sha256="f") for n in range(9)]
    one = tries()
    for n in range(1, ATTEMPTS_MAX + 1):
        step = one.next(many, 0.0)
        assert step.attempt == n
        failure = one.failed(step, PeerLeaving("x"), 0.0)
        assert (failure.final is None) is (n < ATTEMPTS_MAX)


def test_answer_that_began_is_continued_by_the_same_file_with_room_for_it() -> None:
    began = Candidate(peer="a", sha256="f", context=1000)
    other = Candidate(peer="b", sha256="e", context=1000)
    small = Candidate(peer="c", sha256="f", context=500)
    good = Candidate(peer="d", sha256="f", context=900, load_s=99.0, is_loaded=False)
    one = tries(had_slot=True, tokens=3, prompt_tokens=400, made_by=began, max_tokens=200)
    assert peers(one, [began, other, small, good], PeerGone("x")) == ["a", "d"]
    assert one.next([good], 0.0).is_resumed


def test_answer_that_ends_with_its_holders_context_needs_no_larger_one() -> None:
    began = Candidate(peer="a", sha256="f", context=1000)
    twin = Candidate(peer="b", sha256="f", context=1000)
    one = tries(had_slot=True, tokens=3, prompt_tokens=400, made_by=began, max_tokens=4096)
    assert peers(one, [began, twin], PeerSilent("x")) == ["a", "b"]


def test_file_without_a_hash_is_continued_where_it_began() -> None:
    began, twin = Candidate(peer="a"), Candidate(peer="b")
    one = tries(had_slot=True, tokens=3, made_by=began)
    assert peers(one, [began, twin], WorkerDied("x")) == ["a", "a"]


def test_holder_that_has_not_told_its_hash_yet_is_asked_to_go_on_after_those_that_have() -> None:
    """Seen in a drill: hashed since the last news, the one file there was did not go on after its worker crashed."""
    began, told = Candidate(peer="a", sha256="f"), Candidate(peer="c", sha256="f", load_s=99.0, is_loaded=False)
    untold, other = Candidate(peer="b"), Candidate(peer="d", sha256="e")
    one = tries(had_slot=True, tokens=3, made_by=began)
    assert peers(one, [replace(began, sha256=""), other], WorkerDied("x")) == ["a", "a"]
    one = tries(had_slot=True, tokens=3, made_by=began)
    assert peers(one, [untold, told, other], ModelUnavailable("x")) == ["c", "b"]
    one = tries(had_slot=True, tokens=3, made_by=began)
    with pytest.raises(StreamInterrupted):
        one.next([other], 0.0)


def test_answer_that_began_ends_as_an_interrupted_stream() -> None:
    one = tries(had_slot=True, tokens=3, made_by=A)
    cause = PeerSilent("it is silent")
    one.failed(one.next([A], 0.0), cause, 0.0)  # perhaps only its connection: the last holder is asked once more
    one.failed(one.next([A], 0.0), cause, 0.0)
    with pytest.raises(StreamInterrupted, match="after 3 tokens: it is silent") as caught:
        one.next([A], 0.0)
    assert caught.value.__cause__ is cause


def test_deadline_of_the_caller_ends_it_and_that_of_a_queue_does_not() -> None:
    one = tries(deadline=5.0)
    step = one.next([A, B], 0.0)
    assert one.failed(step, DeadlineExceeded("my queue is longer"), 1.0) == Failure()
    error = DeadlineExceeded("late")
    assert one.failed(one.next([A, B], 1.0), error, 5.0).final is error
    with pytest.raises(DeadlineExceeded):
        tries(deadline=5.0).next([A], 5.0)


def test_patience_is_for_other_machines_when_there_is_another() -> None:
    patience_s = tries().next([A, B], 0.0).patience_s
    assert patience_s is not None and patience_s >= PATIENCE_S
    assert tries().next([A], 0.0).patience_s is None, "the last one is waited for"
    assert tries().next([HERE, B], 0.0).patience_s is None, "this machine sees for itself"


def test_others_hear_of_what_is_gone_and_what_is_wedged() -> None:
    one = tries()
    hows = []
    for error in (PeerGone("x"), PeerSilent("x", code=WEDGED), PeerSilent("x")):
        hows.append(one.failed(one.next([A, B, C], 0.0), error, 0.0).how)
    assert hows == ["gone", "wedged", "gone"]
    assert one.failed(tries().next([A], 0.0), PeerLeaving("x"), 0.0).how is None


def test_retries_come_out_of_a_budget_but_those_of_machines_that_are_gone_do_not() -> None:
    budget = RetryBudget()
    spent = 0
    while True:
        one = Attempts(ask=Ask(model_id="m"), mode="auto", rng=random.Random(1), turn=0, budget=budget)
        one.failed(one.next([A, B], 0.0), ModelUnavailable("x"), 0.0)
        try:
            one.next([A, B], 0.0)
        except ModelUnavailable:
            break
        spent += 1
    assert spent == BUDGET_MIN
    one = Attempts(ask=Ask(model_id="m"), mode="auto", rng=random.Random(1), turn=0, budget=budget)
    assert peers(one, [A, B], PeerGone("x")) == ["a", "b"]
    for _ in range(5):
        budget.request()
    assert budget.take() and not budget.take()


def test_failure_without_another_holder_costs_no_budget() -> None:
    budget = RetryBudget()
    one = Attempts(ask=Ask(model_id="m"), mode="auto", rng=random.Random(1), turn=0, budget=budget)
    one.failed(one.next([A], 0.0), Overloaded("x"), 0.0)
    with pytest.raises(Overloaded):
        one.next([A], 0.0)
    assert [budget.take() for _ in range(11)] == [True] * 10 + [False]


def test_nobody_to_ask_is_unavailable() -> None:
    with pytest.raises(ModelUnavailable, match="No peer can serve the model m now"):
        tries().next([], 0.0)


def test_explanation_is_small_and_fits_a_header() -> None:
    one = tries()
    one.next([Candidate(peer=f"{n}", name=f"屋根裏\n{n}", load_s=3.0, is_loaded=False) for n in range(100)], 0.0)
    text = one.explained()
    assert len(text) <= EXPLAIN_BYTES_MAX and text.isascii() and text.isprintable()
    rows = json.loads(text)
    assert len(rows) > 5 and {"peer", "score", "load_s"} <= rows[0].keys()


ERRORS: list[type[InferenceError]] = [
    PeerGone, PeerSilent, PeerLeaving, WorkerDied, LoadFailed, ModelUnavailable, Overloaded, HolderFull,
    ModelNotFound, InvalidRequest, ContextLengthExceeded, DeadlineExceeded, StreamInterrupted, InferenceError,
]  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(ERRORS), st.booleans()), max_size=30), st.integers(0, 5))
def test_every_request_ends(course: list[tuple[type[InferenceError], bool]], count: int) -> None:
    """Whatever happens: a bounded number of tries, never one more at a machine that is out, and an error of ours."""
    candidates = [Candidate(peer=f"{n}", sha256="f", context=100 * n) for n in range(count)]
    one = tries()
    asked: list[Step] = []
    for kind, makes_token in course + [(PeerGone, False)] * 30:
        try:
            step = one.next(candidates, 0.0)
        except InferenceError as error:
            assert not isinstance(error, HolderFull | PeerGone | PeerSilent | PeerLeaving | WorkerDied)
            break
        asked.append(step)
        if makes_token and not (step.may_refuse and kind is HolderFull):
            one.had_slot, one.tokens, one.made_by = True, one.tokens + 1, one.made_by or step.candidate
        if one.failed(step, kind("x"), 0.0).final is not None:
            break
    else:
        raise AssertionError("it went on for ever")
    assert len({(s.candidate.peer, s.attempt, s.may_refuse) for s in asked}) <= ATTEMPTS_MAX * 2 + 2
