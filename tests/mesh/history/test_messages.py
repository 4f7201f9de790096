"""What peers say about logs comes through as it was said, and what is no such thing is refused, whatever it is."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.history.entries import LogId
from mesh.history.messages import (
    SEQ_MAX,
    WANTS_MAX,
    BadMessage,
    Batch,
    Batches,
    Told,
    batch_in,
    batch_out,
    batches_in,
    batches_out,
    digest_of,
    span_in,
    span_out,
    told_in,
    told_out,
    wants_in,
    wants_out,
)
from mesh.history.replicas import Want

LOGS = st.builds(LogId, st.text(min_size=1, max_size=20), st.integers(0, 2**63 - 1))
SPANS = st.tuples(st.integers(0, SEQ_MAX), st.integers(0, SEQ_MAX)).map(lambda pair: (min(pair), max(pair)))
BATCHES = st.builds(
    lambda log, span, first, items: Batch(log=log, low=span[0], have=span[1], first=first, items=tuple(items)),
    LOGS,
    SPANS,
    st.integers(1, SEQ_MAX - 10),
    st.lists(st.binary(max_size=20), max_size=5),
)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=8) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=7),
    max_leaves=12,
)


@given(st.lists(BATCHES, max_size=4), st.booleans())
def test_batches_come_through(batches: list[Batch], has_more: bool) -> None:
    sent = Batches(batches=tuple(batches), has_more=has_more)
    assert batches_in(batches_out(sent)) == sent
    assert [batch_in(batch_out(batch)) for batch in batches] == batches


@given(st.dictionaries(LOGS, SPANS, max_size=5), st.dictionaries(st.integers(0, 99), SPANS), st.binary(max_size=64))
def test_what_a_peer_holds_comes_through(rest: Any, own: Any, digest: bytes) -> None:
    sent = Told(own={LogId("me", run): span for run, span in own.items()}, digest=digest, rest=rest)
    assert told_in(told_out(sent), "me") == sent
    assert digest_of(rest) == digest_of(dict(reversed(rest.items())))


@given(st.lists(st.builds(lambda log, after: Want(log=log, after=after), LOGS, st.integers(0, SEQ_MAX)), max_size=5))
def test_wants_come_through(wants: list[Want]) -> None:
    assert wants_in(wants_out(wants)) == wants


@given(SPANS)
def test_a_span_comes_through(span: tuple[int, int]) -> None:
    assert span_in(span_out(span)) == span


@given(st.binary(max_size=64) | JUNK.map(msgpack.packb))
def test_garbage_is_refused_or_is_none(data: bytes) -> None:
    for read in (batch_in, batches_in, wants_in, span_in, lambda d: told_in(d, "me")):
        try:
            read(data)
        except BadMessage:
            continue


@pytest.mark.parametrize(
    "batch",
    [
        ["p", 1, 0, 5, 0, []],
        ["p", 1, 6, 5, 1, []],
        ["p", 1, 0, 5, SEQ_MAX, [b"x"]],
        ["p", 1, 0, SEQ_MAX + 1, 1, []],
        ["p", -1, 0, 5, 1, []],
        ["", 1, 0, 5, 1, []],
        ["p" * 200, 1, 0, 5, 1, []],
        [b"p", 1, 0, 5, 1, []],
        ["p", 1, 0, 5, 1, ["text"]],
        ["p", 1, 0, True, 1, []],
        ["p", 1, 0, 5, 1],
    ],
)
def test_a_batch_that_cannot_be_is_refused(batch: list[Any]) -> None:
    with pytest.raises(BadMessage):
        batch_in(msgpack.packb(batch))


def test_a_log_of_another_is_not_among_a_peers_own() -> None:
    with pytest.raises(BadMessage):
        told_in(told_out(Told(own={LogId("other", 1): (0, 1)})), "me")


def test_more_wants_than_a_message_takes_are_refused() -> None:
    with pytest.raises(BadMessage):
        wants_in(wants_out([Want(log=LogId("p", run), after=0) for run in range(WANTS_MAX + 1)]))


def test_fields_of_a_later_version_are_ignored() -> None:
    assert span_in(msgpack.packb([1, 2, "new"])) == (1, 2)
    assert told_in(msgpack.packb([[["me", 1, 0, 5, "new"]], b"", None, "new"]), "me").own == {LogId("me", 1): (0, 5)}
