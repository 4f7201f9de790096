"""The drills of one peer as tests: what must be exact is exact, figures may be three times as large as by command.

And what the drills themselves are made of: figures, the table on its page, and the ledger, which must be able to fail.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.drills.__main__ import BEGIN, END, BadCommand, added, between_marks, parsed, rewritten
from tests.drills.clients import Answer, Question
from tests.drills.drills import MESH, ONE_PEER, ONE_PEER_IN_CI
from tests.drills.figure import LENIENCY_IN_CI, Figure, assert_holds, table
from tests.drills.ledger import Findings, compared, is_acknowledged, was_cut
from tests.fixtures.tree import ROOT


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", ONE_PEER_IN_CI)
def test_drill_passes(name: str, tmp_path: Path) -> None:
    """F74: a worker that dies is replaced and nobody notices; and the other promises of the table of drills."""
    assert_holds(name, ONE_PEER_IN_CI[name](tmp_path / "drill"))


def test_ci_runs_every_drill_of_one_peer() -> None:
    assert set(ONE_PEER_IN_CI) == set(ONE_PEER)


# -- figures and their page


def test_figure_above_its_limit_does_not_hold_and_is_marked_in_the_table() -> None:
    figure = Figure(what="silence", value=4.0, limit=3.0, unit="s")
    assert not figure.holds() and figure.holds(LENIENCY_IN_CI)
    assert "| silence | 4 s | 3 s | TOO MUCH |" in table([("crash", figure)])


def test_only_what_stands_between_the_marks_is_rewritten() -> None:
    page = f"# Reliability\n\n{BEGIN}\nold\n{END}\n\nAfter.\n"
    assert rewritten(page, "new | table") == f"# Reliability\n\n{BEGIN}\nnew | table\n{END}\n\nAfter.\n"
    assert between_marks(page) == "old"
    with pytest.raises(ValueError, match="marks"):
        rewritten("# Reliability\n", "new")


def test_the_page_has_the_marks() -> None:
    assert rewritten((ROOT / "docs" / "reliability.md").read_text(), "x")


def _rows(*found: tuple[str, float]) -> list[tuple[str, Figure]]:
    return [(name, Figure(what="time", value=value, limit=9, unit="s")) for name, value in found]


def test_rows_of_drills_that_ran_again_are_put_in_their_place_with_the_line_of_their_command() -> None:
    text = "\n\n".join(
        ("day 1, `all`, a machine.\nIt was busy.", table(_rows(("idle peer", 1), ("partition", 2), ("short soak", 3))))
    )
    for day in (2, 3):
        text = added(text, f"day {day}, `partition`, a machine.", _rows(("partition", 10 * day), ("worker killed", 4)))
    assert text == "\n\n".join(
        (
            "day 1, `all`, a machine.\nIt was busy.",
            "day 3, `partition`, a machine.",
            table(_rows(("idle peer", 1), ("worker killed", 4), ("partition", 30), ("short soak", 3))),
        )
    )


def test_the_command_line_takes_names_with_hyphens_and_sizes_of_drills() -> None:
    command = parsed(["coordinator-kill", "--times", "7", "partition", "--add"])
    kill = command.drills["coordinator kill"]
    assert isinstance(kill, partial) and kill.keywords == {"times": 7}
    assert command.drills["partition"] is MESH["partition"] and command.is_added and not command.is_all
    assert set(parsed(["--all"]).drills) == {*ONE_PEER, *MESH}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "no such drill: nothing"),
        (["partition", "--times", "7"], "has a size 'times'"),
        (["coordinator kill", "--times"], "lacks its value"),
        (["coordinator kill", "--times", "many"], "'many' is no int"),
    ],
)
def test_a_command_that_cannot_be_meant_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(BadCommand, match=message):
        parsed(words)


# -- the ledger

QUESTION = Question("tiny", "question 1", 1, 2)


def _answer(**but: Any) -> Answer:
    """The whole answer to a stream."""
    whole: dict[str, Any] = {
        "asked": "h1",
        "status": 200,
        "is_done": True,
        "finishes": 1,
        "text": "two words",
        "usage": {"completion_tokens": 2},
        "headers": {"x-request-id": "abc"},
    }
    return Answer(QUESTION.body, **{**whole, **but})


def _record(**but: Any) -> dict[str, Any]:
    """What is recorded of it."""
    answer = {
        "id": "chatcmpl-abc",
        "choices": [{"message": {"content": "two words"}}],
        "usage": {"completion_tokens": 2},
    }
    whole = {
        "id": "1",
        "state": "success",
        "ingress_machine_name": "h1",
        "request_body": QUESTION.body,
        "response_body": answer,
    }
    return {**whole, **but}


def test_what_was_answered_and_recorded_once_is_all_right() -> None:
    assert compared([(QUESTION, _answer())], [_record()], is_over=True) == Findings()
    assert not str(Findings())


@pytest.mark.parametrize(
    ("answer", "records", "kind"),
    [
        (_answer(), [], "lost"),
        (_answer(), [_record(), _record(id="2")], "doubled"),
        (_answer(), [_record(state="interrupted")], "wrong"),
        (_answer(), [_record(ingress_machine_name="h2")], "wrong"),
        (_answer(text="two other words"), [_record()], "wrong"),
        (_answer(headers={"x-request-id": "another"}), [_record()], "wrong"),
        (_answer(usage={"completion_tokens": 3}), [_record()], "wrong"),
        (_answer(), [_record(response_body=None)], "wrong"),
        (_answer(is_done=False, trouble="cut"), [_record(state="running")], "wrong"),
        (_answer(is_done=False, error={"code": "stream_interrupted"}), [_record()], "wrong"),
    ],
)
def test_the_ledger_finds_what_is_lost_doubled_or_wrong(
    answer: Answer, records: list[dict[str, Any]], kind: str
) -> None:
    findings = compared([(QUESTION, answer)], records, is_over=True)
    assert {name for name in ("lost", "doubled", "wrong") if getattr(findings, name)} == {kind}
    assert "question 1" in str(findings)


def test_a_client_that_was_cut_off_has_a_record_or_none() -> None:
    for records in ([], [_record(state="interrupted", response_body=None)], [_record()]):
        assert compared([(QUESTION, _answer(is_done=False, trouble="cut"))], records, is_over=True) == Findings()


def test_a_record_that_nobody_asked_for_is_wrong_once_all_is_over() -> None:
    assert compared([], [_record()], is_over=True).wrong
    assert compared([], [_record()], is_over=False) == Findings()


def test_an_answer_counts_as_acknowledged_with_its_last_byte() -> None:
    assert is_acknowledged(_answer()) and is_acknowledged(_answer(is_stream=False, is_done=False))
    assert not is_acknowledged(_answer(is_done=False))
    assert not is_acknowledged(_answer(trouble="cut"))
    assert not is_acknowledged(_answer(status=503))
    assert not is_acknowledged(_answer(is_stream=False, finishes=0))


def test_only_what_came_in_by_the_killed_machine_while_it_was_killed_was_cut_off() -> None:
    answer = _answer(began_at=10.0, ended_at=12.0)
    assert was_cut(answer, [("h1", 11.0)])
    assert not was_cut(answer, [("h2", 11.0)])
    assert not was_cut(answer, [("h1", 13.0), ("h1", 8.0)])
