"""Tests of turning tokens into text."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from inference.engine.text import TextAssembler


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(i, len(data)) for i in at), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(st.text(max_size=60), st.lists(st.integers(0, 200), max_size=20))
def test_text_is_the_same_however_it_is_cut_into_tokens(text: str, at: list[int]) -> None:
    assembler = TextAssembler()
    shown = "".join(assembler.push(p) for p in cut(text.encode(), at)) + assembler.finish()
    assert shown == text


@given(
    st.text(alphabet="abcé", max_size=40),
    st.lists(st.integers(0, 80), max_size=20),
    st.lists(st.text(alphabet="abcé", min_size=1, max_size=4), min_size=1, max_size=4),
)
@settings(max_examples=400)
def test_text_ends_before_the_stop_string_that_is_complete_first(text: str, at: list[int], stop: list[str]) -> None:
    assembler = TextAssembler(tuple(stop))
    shown = ""
    for piece in cut(text.encode(), at):
        shown += assembler.push(piece)
        if assembler.stopped:
            break
    else:
        shown += assembler.finish()
    assert all(s not in shown for s in stop)
    assert text.startswith(shown)
    assert assembler.stopped == any(s in text for s in stop)
    if not assembler.stopped:
        assert shown == text
    else:
        assert any(text.startswith(shown + s) for s in stop)


def test_what_may_begin_a_stop_string_is_held_back_and_shown_when_it_does_not() -> None:
    assembler = TextAssembler(("</end>",))
    assert assembler.push(b"one </en") == "one "
    assert assembler.push(b"try") == "</entry"
    assert assembler.push(b" </") == " "
    assert assembler.finish() == "</"
    assert not assembler.stopped


def test_nothing_is_shown_after_a_stop_string() -> None:
    assembler = TextAssembler(("X",))
    assert assembler.push(b"aXb") == "a"
    assert assembler.push(b"c") == ""
    assert assembler.finish() == ""


def test_a_broken_character_at_the_end_becomes_a_replacement_character() -> None:
    assembler = TextAssembler()
    assert assembler.push(b"ok \xe3\x81") == "ok "
    assert assembler.finish() == "�"
